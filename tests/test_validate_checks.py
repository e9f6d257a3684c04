"""Each finding: what raises it, what it says, and the case next to it that raises nothing."""

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.config import Config
from finetune.config_types import Split
from finetune.plan.schedule import plan_schedule
from finetune.records import Example
from finetune.validate import machine_checks
from finetune.validate.data_checks import check_data, check_overlap, check_test_size
from finetune.validate.findings import Finding, by_severity, to_markdown
from finetune.validate.machine_checks import check_machine
from finetune.validate.run_checks import check_run

NOTHING_CUT = 240  # 15 whole steps of 16 examples an epoch


def codes(findings: list[Finding]) -> list[str]:
    """The codes alone."""
    return [finding.code for finding in findings]


# ---- The run's steps


@pytest.fixture
def check(change: Callable[..., Config]) -> Callable[..., list[Finding]]:
    """`check(240, warmup_steps=50)`: the findings on 2 x 8 examples a step, 3 epochs, with some keys changed."""

    def checked(examples: int = NOTHING_CUT, **changed: Any) -> list[Finding]:
        keys = {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 8,
            "num_train_epochs": 3,
            "warmup_steps": 4,
            "logging_steps": 5,
            "eval_steps": 15,
            "save_steps": 15,
            "load_best_model_at_end": True,
            "early_stopping_patience": None,
        }
        train = change(**{f"train.{key}": value for key, value in (keys | changed).items()}).train
        return check_run(train, plan_schedule(train, examples))

    return checked


def test_a_run_with_nothing_wrong_has_no_finding(check: Callable[..., list[Finding]]) -> None:
    """A check that always warns is a check that nobody reads."""
    assert check() == []


def test_the_cpu_recipes_mistake_is_caught(check: Callable[..., list[Finding]]) -> None:
    """Warmup 50 and saves every 50, but 238 examples are 45 steps: a whole day at a low rate, and no checkpoint."""
    found = check(238, warmup_steps=50, save_steps=50, eval_steps=50, logging_steps=10)
    errors = [str(finding) for finding in found if finding.severity == "error"]
    assert errors == [
        "params.yaml: train.warmup_steps: 50 is more than the run's 45 steps; "
        "the learning rate never reaches its peak; use 5 or train longer",
        "params.yaml: train.eval_steps: 50 is more than the run's 45 steps; "
        "the validation loss is taken at the end only; use 9",
        "params.yaml: train.save_steps: 50 is more than the run's 45 steps; a killed run starts from nothing; use 9",
    ]
    assert codes(found) == ["warmup-too-long", "eval-never", "save-never", "last-batch-partial"]


@pytest.mark.parametrize(("warmup", "steps"), [(16, 16), (44, 44), (0.34, 16)])
def test_a_long_warmup_is_a_warning(check: Callable[..., list[Finding]], warmup: float, steps: int) -> None:
    """Of 45 steps: up to a third is silent; more of them leave too few at the full rate."""
    assert check(warmup_steps=15) == check(warmup_steps=0) == []
    (finding,) = check(warmup_steps=warmup)
    text = f"{steps} of the run's 45 steps are warmup; use 5 or train longer"
    assert str(finding) == f"params.yaml: train.warmup_steps: {text}"
    assert (finding.code, finding.severity) == ("warmup-long", "warning")


@pytest.mark.parametrize("warmup", [45, 46, 0.99])
def test_a_warmup_of_the_whole_run_is_an_error(check: Callable[..., list[Finding]], warmup: float) -> None:
    """The rate reaches its peak at the very end, or never."""
    (finding,) = check(warmup_steps=warmup)
    assert (finding.code, finding.severity) == ("warmup-too-long", "error")


@pytest.mark.parametrize(
    ("key", "code"), [("logging_steps", "logging-never"), ("eval_steps", "eval-never"), ("save_steps", "save-never")]
)
def test_an_event_that_never_happens_is_an_error(check: Callable[..., list[Finding]], key: str, code: str) -> None:
    """At 45 it happens once, at the last step; at 46 never."""
    assert code not in codes(check(**{key: 45}))
    (finding,) = [finding for finding in check(**{key: 46}, load_best_model_at_end=False) if finding.code == code]
    assert (finding.severity, finding.where, finding.fix) == ("error", f"params.yaml: train.{key}", "use 9")


def test_the_advice_of_a_very_short_run_is_one_step(check: Callable[..., list[Finding]]) -> None:
    """`use 0` would be refused by the config in turn."""
    found = check(16, warmup_steps=10, num_train_epochs=1)
    assert [finding.fix for finding in found if finding.severity == "error"] == [
        "use 1 or train longer",
        "use 1",
        "use 1",
        "use 1",
    ]


@pytest.mark.parametrize(
    ("saves", "evals", "fix"), [(20, 15, "use 15"), (40, 15, "use 45"), (5, 15, "use 15"), (15, 10, "use 20")]
)
def test_saves_between_evaluations_hide_the_best_checkpoint(
    check: Callable[..., list[Finding]], saves: int, evals: int, fix: str
) -> None:
    """transformers refuses this only after it has loaded the model; without the best checkpoint it is no mistake."""
    (finding,) = check(save_steps=saves, eval_steps=evals)
    text = f"{saves} is no multiple of eval_steps {evals}; the best checkpoint can't be known; {fix}"
    assert str(finding) == f"params.yaml: train.save_steps: {text}"
    assert (finding.code, finding.severity) == ("best-checkpoint-unknown", "error")
    assert check(save_steps=saves, eval_steps=evals, load_best_model_at_end=False) == []
    assert check(save_steps=int(fix.removeprefix("use ")), eval_steps=evals) == []


def test_early_stopping_needs_the_best_checkpoint(check: Callable[..., list[Finding]]) -> None:
    """It stops when the loss has risen, so the last checkpoint is the worse one."""
    (finding,) = check(early_stopping_patience=1, load_best_model_at_end=False)
    assert (finding.code, finding.severity) == ("early-stopping-keeps-last", "error")
    assert finding.fix == "set train.load_best_model_at_end: true"


def test_early_stopping_that_can_never_stop_is_a_warning(check: Callable[..., list[Finding]]) -> None:
    """Three evaluations in the run: a patience of 2 may be used up, one of 3 never, and its key does nothing."""
    assert check(early_stopping_patience=2) == []
    (finding,) = check(early_stopping_patience=3)
    text = "3 can't be used up by the run's 3 evaluations; use a smaller patience, null, or eval_steps 3"
    assert str(finding) == f"params.yaml: train.early_stopping_patience: {text}"
    assert (finding.code, finding.severity) == ("early-stopping-never", "warning")
    assert check(early_stopping_patience=3, eval_steps=3) == []


def test_a_partial_last_batch_is_a_note(check: Callable[..., list[Finding]]) -> None:
    """Worth knowing and nothing to do; a run of less than one batch says it in other findings."""
    (finding,) = check(238)
    text = "the last step of each epoch takes 14 instead of 16 examples; nothing to do; the loss is per token"
    assert str(finding) == f"params.yaml: train: {text}"
    assert finding.severity == "note"
    assert "last-batch-partial" not in codes(check(15, num_train_epochs=45))


# ---- The data


Splits = dict[Split, list[Example]]


@pytest.fixture
def splits(example: Callable[..., Example]) -> Splits:
    """Splits that share no prompt: 20 to train on, 5 and 10 held out."""
    return {
        "train": [example(f"train {at}") for at in range(20)],
        "validation": [example(f"validation {at}") for at in range(5)],
        "test": [example(f"test {at}") for at in range(10)],
    }


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_prompt_in_train_and_held_out_is_an_error(
    splits: Splits, example: Callable[..., Example], name: Split
) -> None:
    """Whoever edits a split by hand must not get a score for what was learnt by heart."""
    assert check_overlap(splits) == []
    leak = example(" train  3\n", "another answer")
    splits[name].append(leak)
    (finding,) = check_overlap(splits)
    size = len(splits[name])
    text = f"1 of {size} prompts stand in train too (ids {leak.id}…); run prepare again; it keeps prompts apart"
    assert str(finding) == f"data/prepared/{name}.jsonl: {text}"
    assert (finding.code, finding.severity) == ("split-overlap", "error")


def test_validation_and_test_may_share_a_prompt(splits: Splits, example: Callable[..., Example]) -> None:
    """Neither is trained on; prepare keeps even these apart."""
    splits["validation"].append(example("test 0"))
    assert check_overlap(splits) == []


@pytest.fixture
def gate(change: Callable[..., Config]) -> Callable[..., Config]:
    """A config with one criterion and one look at 95%."""

    def made(policy: str = "interval", **criterion: Any) -> Config:
        return change(
            **{
                "decide.confidence": 0.95,
                "decide.looks": 1,
                "decide.policy": policy,
                "decide.criteria": [criterion],
            }
        )

    return made


AT_LEAST = {"rule": "at_least", "metric": "exact_match", "group": "all", "threshold": 0.98}


def test_a_test_set_that_can_prove_nothing_is_a_warning(
    gate: Callable[..., Config], example: Callable[..., Example]
) -> None:
    """At 148 examples even a perfect score fails the gate, at 149 it passes: known before the run, not after."""
    test = [example(f"test {at}") for at in range(149)]
    assert check_test_size(gate(**AT_LEAST), test) == []
    (finding,) = check_test_size(gate(**AT_LEAST), test[1:])
    assert str(finding) == (
        "params.yaml: decide.criteria.0: 148 test examples of 'all' can't prove exact_match at least 0.98 even with no "
        "failure: 149 are needed at 95.0% confidence; add test examples or lower it"
    )
    assert (finding.code, finding.severity) == ("test-set-too-small", "warning")


def test_the_size_is_that_of_the_group(gate: Callable[..., Config], example: Callable[..., Example]) -> None:
    """148 examples of one agent are not saved by the hundreds of another."""
    test = [example(f"test {at}") for at in range(148)]
    test += [example(f"other {at}", agent="other") for at in range(300)]
    assert check_test_size(gate(**AT_LEAST), test) == []
    assert codes(check_test_size(gate(**AT_LEAST | {"group": "namer"}), test)) == ["test-set-too-small"]
    assert check_test_size(gate(**AT_LEAST | {"group": "other"}), test) == []


def test_what_proves_nothing_needs_no_size(gate: Callable[..., Config], splits: Splits) -> None:
    """The policy `point`, a comparison with the baseline and macro-F1 have no such least number."""
    compared = {"rule": "better_than_baseline", "metric": "exact_match", "group": "all"}
    for config in (gate("point", **AT_LEAST), gate(**compared), gate(**AT_LEAST | {"metric": "macro_f1"})):
        assert check_data(config, splits) == []


def test_more_looks_need_more_examples(change: Callable[..., Config], example: Callable[..., Example]) -> None:
    """Five looks share the 5%: each is taken at 99%, where 149 examples are too few (228 are needed)."""
    test = [example(f"test {at}") for at in range(228)]
    asked = change(
        **{"decide.policy": "interval", "decide.confidence": 0.95, "decide.looks": 5, "decide.criteria": [AT_LEAST]}
    )
    assert check_test_size(asked, test) == []
    assert "228 are needed at 99.0% confidence" in check_test_size(asked, test[1:])[0].what


def test_a_group_without_examples_is_an_error(gate: Callable[..., Config], splits: Splits) -> None:
    """A mistyped agent could never be measured, so the verdict could never be deploy."""
    config = gate(rule="better_than_baseline", metric="macro_f1", group="nmaer")
    (finding,) = check_data(config, splits)
    text = "group 'nmaer' has no example in the test split; use one of all, namer"
    assert str(finding) == f"params.yaml: decide.criteria.0.group: {text}"
    assert (finding.code, finding.severity) == ("group-unknown", "error")


def test_criteria_on_cost_need_no_test_examples(gate: Callable[..., Config], splits: Splits) -> None:
    """Latency and memory have no group."""
    assert check_data(gate(rule="memory_at_most", limit="2 GB"), splits) == []


# ---- The machine

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`machine(missing="no CUDA device answers", free=5 * 10**8)`: this machine, as the checks see it."""

    def seen(missing: str | None = None, free: int = 10**12) -> None:
        monkeypatch.setattr(machine_checks, "why_unavailable", lambda environment: missing)
        monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda root: Usage(free, 0, free))

    return seen


CUDA = {"environment": "cuda", "train.optim": "adamw_8bit", "train.fp16": True, "train.bf16": False}
CUDA |= {"model.attention": "flash_attention_2"}
PLAIN = {"environment": "cpu", "train.optim": "adamw_torch", "train.fp16": False, "model.attention": "sdpa"}


def test_what_needs_cuda_is_silent_on_cuda(machine: Callable[..., None], change: Callable[..., Config]) -> None:
    """The counterpart of the next two."""
    machine()
    assert check_machine(change(**CUDA), Path()) == []
    assert check_machine(change(**PLAIN), Path()) == []


@pytest.mark.parametrize("environment", ["cpu", "apple"])
@pytest.mark.parametrize(
    ("key", "value", "code", "what", "fix"),
    [
        ("train.optim", "adamw_8bit", "optimizer-needs-cuda", "adamw_8bit needs CUDA", "use adamw_torch"),
        ("train.optim", "paged_adamw_8bit", "optimizer-needs-cuda", "paged_adamw_8bit needs CUDA", "use adamw_torch"),
        ("train.fp16", True, "fp16-needs-cuda", "fp16 needs CUDA's loss scaling", "set it to false"),
        ("model.attention", "flash_attention_2", "attention-needs-cuda", "flash_attention_2 needs CUDA", "use sdpa"),
    ],
)
def test_what_needs_cuda_is_an_error_elsewhere(
    machine: Callable[..., None],
    change: Callable[..., Config],
    environment: str,
    key: str,
    value: Any,
    code: str,
    what: str,
    fix: str,
) -> None:
    """Each would be found out only after the base was loaded, on a machine that is paid by the hour."""
    machine()
    config = change(**PLAIN | {"train.bf16": False, "environment": environment, key: value})
    (finding,) = check_machine(config, Path())
    assert str(finding) == f"params.yaml: {key}: {what}, the environment is {environment}; {fix}"
    assert (finding.code, finding.severity) == (code, "error")


def test_a_missing_device_is_a_warning(machine: Callable[..., None], change: Callable[..., Config]) -> None:
    """Validate is run on a laptop before the machine is rented, so the device need not be here yet."""
    machine(missing="no CUDA device answers")
    (finding,) = check_machine(change(**PLAIN | {"environment": "cuda"}), Path())
    text = "no CUDA device answers; use a recipe for this machine (make recipes)"
    assert str(finding) == f"params.yaml: environment: {text}"
    assert (finding.code, finding.severity) == ("device-missing", "warning")


def test_a_nearly_full_disk_is_an_error(
    machine: Callable[..., None], change: Callable[..., Config], tmp_path: Path
) -> None:
    """A run that ends at its first checkpoint has cost all its hours."""
    machine(free=10**9)
    assert check_machine(change(**PLAIN), tmp_path) == []
    machine(free=4 * 10**8)
    (finding,) = check_machine(change(**PLAIN), tmp_path)
    text = "0.4 GB are free, checkpoints and caches need 1 GB; free some (dvc gc -w)"
    assert str(finding) == f"{tmp_path}: {text}"
    assert (finding.code, finding.severity) == ("disk-nearly-full", "error")


# ---- The report


def test_errors_come_first_and_checks_keep_their_order() -> None:
    """A person reads the top of the list."""
    severities: Any = ["note", "error", "warning", "error", "note"]
    findings = [Finding(f"f{at}", severity, "where", "what", "fix") for at, severity in enumerate(severities)]
    assert codes(by_severity(findings)) == ["f1", "f3", "f2", "f0", "f4"]


def test_the_markdown_report(check: Callable[..., list[Finding]]) -> None:
    """By hand: what a person reads on GitHub. A pipe in a text would be a column more, so it is escaped."""
    finding = Finding("a-code", "error", "params.yaml: a|b", "x | y", "use z")
    found = to_markdown([finding], {"train": {"examples": 1234, "lost_tokens": 0}}, {"steps": 45, "warmup_steps": 4})
    assert found == (
        "# Validation\n\n1 findings, 1 of them errors.\n\n"
        "| severity | code | where | what | fix |\n|---|---|---|---|---|\n"
        "| error | `a-code` | params.yaml: a\\|b | x \\| y | use z |\n\n"
        "## Schedule\n\n| what | value |\n|---|---|\n| steps | 45 |\n| warmup steps | 4 |\n\n"
        "## Tokens\n\n| split | examples | lost tokens |\n|---|---|---|\n| train | 1,234 | 0 |\n"
    )


def test_a_report_without_findings_says_so() -> None:
    """An empty table would look like a report that was cut off."""
    found = to_markdown([], {"train": {"examples": 1}}, {"steps": 1})
    assert found.startswith("# Validation\n\n0 findings, 0 of them errors.\n\n## Schedule\n")
