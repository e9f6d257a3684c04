"""Findings: those about the run's steps, what params.yaml accepts, their order, their report, their reference page."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.plan.schedule import plan_schedule
from finetune.validate.checks.schedule import check_run
from finetune.validate.codes import COSTS, SEVERITIES, all_codes, to_reference
from finetune.validate.findings import Finding, accept, by_cost, to_markdown
from tests.builders.checked_settings import codes, told
from tests.builders.kinds import Change
from tests.conftest import ROOT

Check = Callable[..., list[Finding]]
NOTHING_CUT = 240  # 15 whole steps of 16 examples an epoch


# ---- The run's steps


@pytest.fixture
def check(change: Change) -> Check:
    """`check(240, warmup_steps=50)`: the findings on 2 x 8 examples a step, 3 epochs, with some keys changed."""

    def checked(examples: int = NOTHING_CUT, **changed: Any) -> list[Finding]:
        keys: dict[str, Any] = {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 8,
            "num_train_epochs": 3,
        }
        keys |= {"warmup_steps": 4, "logging_steps": 5, "eval_steps": 15, "save_steps": 15}
        keys |= {"load_best_model_at_end": True, "early_stopping_patience": None}
        train = change(**{f"train.{key}": value for key, value in (keys | changed).items()}).train
        return check_run(train, plan_schedule(train, examples))

    return checked


def test_a_run_with_nothing_wrong_has_no_finding(check: Check) -> None:
    """A check that always warns is a check that nobody reads."""
    assert check() == []


def test_the_cpu_recipes_mistake_is_caught(check: Check) -> None:
    """Warmup 50 and saves every 50, but 238 examples are 45 steps: a whole day at a low rate, and no checkpoint."""
    found = check(238, warmup_steps=50, save_steps=50, eval_steps=50, logging_steps=10)
    errors = [str(finding) for finding in found if finding.severity == "error"]
    assert errors == [
        "params.yaml: train.warmup_steps: 50 is more than the run's 45 steps; "
        "the learning rate never reaches its peak; use 5 or train longer",
        "params.yaml: train.eval_steps: 50 is more than the run's 45 steps; "
        "the validation loss is measured at the end only; use 9",
        "params.yaml: train.save_steps: 50 is more than the run's 45 steps; a killed run restarts from the "
        "beginning; use 9",
    ]
    assert codes(found) == ["warmup-too-long", "eval-never", "save-never", "last-batch-partial"]


@pytest.mark.parametrize(("warmup", "steps"), [(16, 16), (44, 44), (0.34, 16)])
def test_a_long_warmup_is_a_warning(check: Check, warmup: float, steps: int) -> None:
    """Of 45 steps: up to a third is silent; more of them leave too few at the full rate."""
    assert check(warmup_steps=15) == check(warmup_steps=0) == []
    (finding,) = check(warmup_steps=warmup)
    text = f"{steps} of the run's 45 steps are warmup; use 5 or train longer"
    assert told(finding, "warmup-long") == f"params.yaml: train.warmup_steps: {text}"


@pytest.mark.parametrize("warmup", [45, 46, 0.99])
def test_a_warmup_of_the_whole_run_is_an_error(check: Check, warmup: float) -> None:
    """The rate reaches its peak at the very end, or never."""
    (finding,) = check(warmup_steps=warmup)
    assert (finding.code, finding.severity) == ("warmup-too-long", "error")


@pytest.mark.parametrize(
    ("key", "code"), [("logging_steps", "logging-never"), ("eval_steps", "eval-never"), ("save_steps", "save-never")]
)
def test_an_event_that_never_happens_is_an_error(check: Check, key: str, code: str) -> None:
    """At 45 it happens once, at the last step; at 46 never."""
    assert code not in codes(check(**{key: 45}))
    (finding,) = [finding for finding in check(**{key: 46}, load_best_model_at_end=False) if finding.code == code]
    assert (finding.severity, finding.place, finding.remedy) == ("error", f"params.yaml: train.{key}", "use 9")


def test_the_advice_of_a_very_short_run_is_one_step(check: Check) -> None:
    """`use 0` would be refused by the config in turn."""
    found = check(16, warmup_steps=10, num_train_epochs=1)
    fixes = [finding.remedy for finding in found if finding.severity == "error"]
    assert fixes == ["use 1 or train longer", *["use 1"] * 3]


@pytest.mark.parametrize(
    ("saves", "evals", "fix"), [(20, 15, "use 15"), (40, 15, "use 45"), (5, 15, "use 15"), (15, 10, "use 20")]
)
def test_saves_between_evaluations_hide_the_best_checkpoint(check: Check, saves: int, evals: int, fix: str) -> None:
    """transformers refuses this only after it has loaded the model; without the best checkpoint it is no mistake."""
    (finding,) = check(save_steps=saves, eval_steps=evals)
    text = f"{saves} is not a multiple of eval_steps {evals}; the best checkpoint can't be determined; {fix}"
    assert told(finding, "best-checkpoint-unknown") == f"params.yaml: train.save_steps: {text}"
    assert check(save_steps=saves, eval_steps=evals, load_best_model_at_end=False) == []
    assert check(save_steps=int(fix.removeprefix("use ")), eval_steps=evals) == []


def test_early_stopping_needs_the_best_checkpoint(check: Check) -> None:
    """It stops when the loss has risen, so the last checkpoint is the worse one."""
    (finding,) = check(early_stopping_patience=1, load_best_model_at_end=False)
    assert (finding.code, finding.severity) == ("early-stopping-keeps-last", "error")
    assert finding.remedy == "set train.load_best_model_at_end: true"


def test_early_stopping_that_can_never_stop_is_a_warning(check: Check) -> None:
    """Three evaluations, the last at the run's end: a patience of 1 may save something, one of 2 or more nothing."""
    assert check(early_stopping_patience=1) == []
    assert codes(check(early_stopping_patience=2)) == ["early-stopping-never"]
    (finding,) = check(early_stopping_patience=3)
    text = "3 can't be used up by the 3 evaluations of the run; use a smaller patience, null, or eval_steps 3"
    assert told(finding, "early-stopping-never") == f"params.yaml: train.early_stopping_patience: {text}"
    assert check(early_stopping_patience=3, eval_steps=3) == []


def test_a_partial_last_batch_is_a_note(check: Check) -> None:
    """Worth knowing and nothing to do; a run of less than one batch says it in other findings."""
    (finding,) = check(238)
    text = "the last step of each epoch takes 14 instead of 16 examples; nothing to do; the loss is per token"
    assert str(finding) == f"params.yaml: train: {text}"
    assert finding.severity == "note"
    assert "last-batch-partial" not in codes(check(15, num_train_epochs=45))


def test_a_warmup_of_the_constant_schedule_is_a_warning(check: Check) -> None:
    """transformers ignores it in silence; a long one there is no error, for it is none at all."""
    assert check(lr_scheduler_type="constant", warmup_steps=0) == []
    (found,) = check(lr_scheduler_type="constant", warmup_steps=50)
    assert (found.code, found.severity) == ("warmup-ignored", "warning")
    assert str(found) == (
        "params.yaml: train.warmup_steps: 50 has no effect: the constant schedule has no warmup; "
        "use lr_scheduler_type: constant_with_warmup, or 0"
    )
    assert codes(check(lr_scheduler_type="constant_with_warmup", warmup_steps=50)) == ["warmup-too-long"]


# ---- Accepting


def finding(code: str, what: str = "what") -> Finding:
    """A finding of this code."""
    return Finding(code, "params.yaml: key", what, "fix")


def test_an_accepted_error_stops_nothing_and_shows_its_reason() -> None:
    """Who knows better says so in params.yaml, where the next reader finds it; others of its severity still stop."""
    told, left = accept([finding("warmup-too-long"), finding("eval-never")], {"warmup-too-long": "meant so"})[::-1]
    assert (told.code, told.stops, told.accepted, told.severity) == ("warmup-too-long", False, "meant so", "error")
    assert (left.code, left.stops, left.accepted) == ("eval-never", True, None)
    fields = {"severity": "error", "cost": "quality", "message": "what", "remedy": "fix", "accepted": "meant so"}
    assert told.report().to_json() == {"code": "warmup-too-long", "place": "params.yaml: key", **fields}


def test_every_finding_of_an_accepted_code_is_accepted() -> None:
    """A code stands for what is known, wherever it is met."""
    found = accept([finding("mask-wrong", "in train"), finding("mask-wrong", "in validation")], {"mask-wrong": "y"})
    assert [told.accepted for told in found] == ["y", "y"]


def test_an_unknown_code_is_an_error_with_the_nearest_name() -> None:
    """A typing error would accept nothing, and the run would stop after the night that it was meant for."""
    (wrong,) = accept([], {"warmup-to-long": "meant so"})
    assert str(wrong) == (
        "params.yaml: findings.accept.warmup-to-long: is not the code of a finding; did you mean warmup-too-long?"
    )
    assert (wrong.code, wrong.stops) == ("accepted-unknown", True)
    (far,) = accept([], {"xyz": "why not"})
    assert far.remedy == "docs/findings.md lists them"


@pytest.mark.parametrize("code", ["base-missing", "accepted-unknown"])
def test_what_no_run_could_follow_cant_be_accepted(code: str) -> None:
    """An accepted missing base would stop train instead of validate; nor can the list of codes excuse itself."""
    found = accept([finding(code)], {code: "I know"})
    assert [told.accepted for told in found] == [None, None]
    assert all(told.stops for told in found)
    (told,) = [told for told in found if told.place == f"params.yaml: findings.accept.{code}"]
    assert str(told).endswith(": can't be accepted: the run could not continue; remove it")


def test_what_was_accepted_and_not_found_is_a_note() -> None:
    """A reason that has outlived its finding would hide the next one of this code."""
    (unused,) = accept([], {"warmup-long": "meant so"})
    text = "params.yaml: findings.accept.warmup-long: was not found in this run; remove it"
    assert (unused.code, unused.severity, str(unused)) == ("accepted-unused", "note", text)
    assert accept([], {}) == []


# ---- Order and report


def test_what_costs_most_comes_first() -> None:
    """A person reads the top of the list: errors, warnings, notes; in each the whole run before some of the quality."""
    given = ["last-batch-partial", "warmup-long", "memory-tight", "warmup-too-long", "split-overlap", "save-never"]
    wanted = ["save-never", "split-overlap", "warmup-too-long", "memory-tight", "warmup-long", "last-batch-partial"]
    assert codes(by_cost([finding(code) for code in given])) == wanted


def test_findings_of_one_cost_keep_their_order_and_accepted_ones_come_last() -> None:
    """What is known and accepted is no news, be it an error."""
    given = [finding("eval-never", "first"), finding("logging-never", "second"), finding("eval-never", "third")]
    assert by_cost(given) == given
    found = accept([finding("save-never"), finding("last-batch-partial")], {"save-never": "an hour's run"})
    assert codes(found) == ["last-batch-partial", "save-never"]


def test_the_markdown_report() -> None:
    """By hand: what a person reads on GitHub. A pipe in a text would be a column more, so it is escaped."""
    known = Finding("warmup-long", "params.yaml: b", "long", "use 4", "meant so")
    wrong = Finding("warmup-too-long", "params.yaml: a|b", "x | y", "use z")
    tokens = {"train": {"examples": 1234, "lost_tokens": 0}}
    found = to_markdown([wrong, known], {"Schedule": {"steps": 45, "warmup_steps": 4}, "Tokens": tokens})
    assert found == (
        "# Validation\n\n2 findings, 1 of them errors, 1 accepted.\n\n"
        "| severity | code | where | what | fix |\n|---|---|---|---|---|\n"
        "| error | `warmup-too-long` | params.yaml: a\\|b | x \\| y | use z |\n"
        "| warning, accepted | `warmup-long` | params.yaml: b | long | accepted: meant so |\n\n"
        "## Schedule\n\n|  | value |\n|---|---|\n| steps | 45 |\n| warmup steps | 4 |\n\n"
        "## Tokens\n\n|  | examples | lost tokens |\n|---|---|---|\n| train | 1,234 | 0 |\n"
    )


def test_a_report_without_findings_says_so() -> None:
    """An empty table would look like a report that was cut off; a table without rows is no error."""
    found = to_markdown([], {"Schedule": {"steps": 1}, "Tokens": {}})
    assert found.startswith("# Validation\n\n0 findings, 0 of them errors.\n\n## Schedule\n")


# ---- The codes and their page

SOURCES = [path for path in (ROOT / "src/finetune").rglob("*.py") if path.name != "codes.py"]


def test_every_code_is_raised_somewhere() -> None:
    """A code in the reference that nothing raises is a promise that nobody keeps."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert [code for code in all_codes() if not re.search(f'"{code}"(?!:)', text)] == []


def test_every_code_that_is_raised_is_in_the_table() -> None:
    """One that is missing there would be an AssertionError in the midst of a user's validation."""
    raised = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) and node.args else ""
            if name in ("Finding", "BaseModelError"):
                texts = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
                raised |= {text for text in texts if isinstance(text, str)}
    assert len(raised) > 50
    assert sorted(raised - set(all_codes())) == []


def test_a_check_knows_the_codes_that_it_names() -> None:
    """Whatever else was imported: they are declared beside it, in `codes.py`, or in a module that it imports."""
    folder = ROOT / "src/finetune/validate/checks"
    for path in sorted(folder.glob("[a-z]*.py")):
        code = (
            "import sys; from importlib import import_module; from finetune.validate.codes import CODES; "
            f"import_module('finetune.validate.checks.{path.stem}'); print(*CODES)"
        )
        known = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=True
        )
        named = set(re.findall(r'"([a-z0-9]+(?:-[a-z0-9]+)+)"', path.read_text(encoding="utf-8"))) & set(all_codes())
        assert sorted(named - set(known.stdout.split())) == [], path.name


def test_a_finding_of_no_code_is_a_mistake_of_ours() -> None:
    """Not of the user's: it would have no severity."""
    with pytest.raises(AssertionError, match="no-such-code"):
        finding("no-such-code")


def test_codes_have_a_severity_a_cost_and_a_sentence() -> None:
    """And what is binding is an error: a warning stops nothing that would need accepting."""
    for name, code in all_codes().items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert code.severity in SEVERITIES and code.cost in COSTS, name
        assert code.meaning.endswith(".") and len(code.meaning) < 100, name
        assert code.severity == "error" or not code.binding, name


def test_the_reference_lists_each_code_once_in_the_order_of_cost() -> None:
    """It is the page that a finding's code is looked up in."""
    lines = [line for line in to_reference().splitlines() if line.startswith("| `")]
    listed = [re.findall(r"`(.+?)`", line)[0] for line in lines]
    assert sorted(listed) == sorted(all_codes())
    codes = all_codes()
    ranks = [(SEVERITIES.index(codes[name].severity), list(COSTS).index(codes[name].cost), name) for name in listed]
    assert ranks == sorted(ranks)
    binding = [code for code, line in zip(listed, lines, strict=True) if "*Binding.*" in line]
    assert binding == [code for code in listed if codes[code].binding]


def test_the_shipped_reference_is_this_one() -> None:
    """`python -m finetune findings > docs/findings.md` was not forgotten."""
    assert Path(ROOT / "docs/findings.md").read_text(encoding="utf-8") == to_reference()
