"""Findings about the run's steps, accepted findings, their order, their report and their reference page."""

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
from tests.builders.checked_settings import codes, finding_text
from tests.builders.kinds import Change
from tests.conftest import ROOT

Check = Callable[..., list[Finding]]
NOTHING_CUT = 240  # 15 full steps of 16 examples per epoch


# ---- The run's steps


@pytest.fixture
def check(change: Change) -> Check:
    """`check(240, warmup_steps=50)`: return the findings for 2 x 8 examples per step, 3 epochs, with keys changed."""

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


def test_a_valid_run_has_no_finding(check: Check) -> None:
    """A valid run causes no finding: users ignore checks that always warn."""
    assert check() == []


def test_warmup_and_saves_beyond_the_run_are_reported(check: Check) -> None:
    """With 238 examples, the 45 steps are fewer than the 50 of warmup and of the save interval."""
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
    """Of 45 steps, a warmup up to a third has no warning; a longer one leaves too few at the full rate."""
    assert check(warmup_steps=15) == check(warmup_steps=0) == []
    (finding,) = check(warmup_steps=warmup)
    text = f"{steps} of the run's 45 steps are warmup; use 5 or train longer"
    assert finding_text(finding, "warmup-long") == f"params.yaml: train.warmup_steps: {text}"


@pytest.mark.parametrize("warmup", [45, 46, 0.99])
def test_a_warmup_as_long_as_the_run_is_an_error(check: Check, warmup: float) -> None:
    """The rate reaches its peak at the very end, or never."""
    (finding,) = check(warmup_steps=warmup)
    assert (finding.code, finding.severity) == ("warmup-too-long", "error")


@pytest.mark.parametrize(
    ("key", "code"), [("logging_steps", "logging-never"), ("eval_steps", "eval-never"), ("save_steps", "save-never")]
)
def test_an_event_that_never_happens_is_an_error(check: Check, key: str, code: str) -> None:
    """With an interval of 45 it happens once, at the last step; with 46 never."""
    assert code not in codes(check(**{key: 45}))
    (finding,) = [finding for finding in check(**{key: 46}, load_best_model_at_end=False) if finding.code == code]
    assert (finding.severity, finding.place, finding.remedy) == ("error", f"params.yaml: train.{key}", "use 9")


def test_the_advice_for_a_very_short_run_is_one_step(check: Check) -> None:
    """`use 0` would be an invalid setting."""
    found = check(16, warmup_steps=10, num_train_epochs=1)
    fixes = [finding.remedy for finding in found if finding.severity == "error"]
    assert fixes == ["use 1 or train longer", *["use 1"] * 3]


@pytest.mark.parametrize(
    ("saves", "evals", "fix"), [(20, 15, "use 15"), (40, 15, "use 45"), (5, 15, "use 15"), (15, 10, "use 20")]
)
def test_saves_between_evaluations_hide_the_best_checkpoint(check: Check, saves: int, evals: int, fix: str) -> None:
    """transformers refuses this only after loading the model; if the best checkpoint is not used, it is allowed."""
    (finding,) = check(save_steps=saves, eval_steps=evals)
    text = f"{saves} is not a multiple of eval_steps {evals}; the best checkpoint can't be determined; {fix}"
    assert finding_text(finding, "best-checkpoint-unknown") == f"params.yaml: train.save_steps: {text}"
    assert check(save_steps=saves, eval_steps=evals, load_best_model_at_end=False) == []
    assert check(save_steps=int(fix.removeprefix("use ")), eval_steps=evals) == []


def test_early_stopping_needs_the_best_checkpoint(check: Check) -> None:
    """Early stopping ends after the loss has risen, so the last checkpoint is not the best."""
    (finding,) = check(early_stopping_patience=1, load_best_model_at_end=False)
    assert (finding.code, finding.severity) == ("early-stopping-keeps-last", "error")
    assert finding.remedy == "set train.load_best_model_at_end: true"


def test_early_stopping_that_can_never_stop_is_a_warning(check: Check) -> None:
    """With three evaluations, the last at the end, a patience of 1 can save steps and one of 2 or more cannot."""
    assert check(early_stopping_patience=1) == []
    assert codes(check(early_stopping_patience=2)) == ["early-stopping-never"]
    (finding,) = check(early_stopping_patience=3)
    text = "3 can't be used up by the 3 evaluations of the run; use a smaller patience, null, or eval_steps 3"
    assert finding_text(finding, "early-stopping-never") == f"params.yaml: train.early_stopping_patience: {text}"
    assert check(early_stopping_patience=3, eval_steps=3) == []


def test_a_partial_last_batch_is_a_note(check: Check) -> None:
    """It is informative only; a run of less than one batch has other findings."""
    (finding,) = check(238)
    text = "the last step of each epoch takes 14 instead of 16 examples; nothing to do; the loss is per token"
    assert str(finding) == f"params.yaml: train: {text}"
    assert finding.severity == "note"
    assert "last-batch-partial" not in codes(check(15, num_train_epochs=45))


def test_a_warmup_with_the_constant_schedule_is_a_warning(check: Check) -> None:
    """transformers silently ignores the warmup; a long one is therefore not an error."""
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
    """Return a finding with this code."""
    return Finding(code, "params.yaml: key", what, "fix")


def test_an_accepted_error_stops_nothing_and_is_shown_with_its_reason() -> None:
    """A user accepts an error with a reason in params.yaml; other errors still stop the run."""
    told, left = accept([finding("warmup-too-long"), finding("eval-never")], {"warmup-too-long": "meant so"})[::-1]
    assert (told.code, told.stops, told.accepted, told.severity) == ("warmup-too-long", False, "meant so", "error")
    assert (left.code, left.stops, left.accepted) == ("eval-never", True, None)
    fields = {"severity": "error", "cost": "quality", "message": "what", "remedy": "fix", "accepted": "meant so"}
    assert told.report().to_json() == {"code": "warmup-too-long", "place": "params.yaml: key", **fields}


def test_every_finding_of_an_accepted_code_is_accepted() -> None:
    """An accepted code covers all findings of this code."""
    found = accept([finding("mask-wrong", "in train"), finding("mask-wrong", "in validation")], {"mask-wrong": "y"})
    assert [told.accepted for told in found] == ["y", "y"]


def test_an_unknown_code_is_an_error_with_the_nearest_name() -> None:
    """A mistyped code would accept nothing, and the run would stop unexpectedly."""
    (wrong,) = accept([], {"warmup-to-long": "meant so"})
    assert str(wrong) == (
        "params.yaml: findings.accept.warmup-to-long: is not the code of a finding; did you mean warmup-too-long?"
    )
    assert (wrong.code, wrong.stops) == ("accepted-unknown", True)
    (far,) = accept([], {"xyz": "why not"})
    assert far.remedy == "docs/findings.md lists them"


@pytest.mark.parametrize("code", ["base-missing", "accepted-unknown"])
def test_binding_findings_cannot_be_accepted(code: str) -> None:
    """A missing base cannot be accepted, as train would fail; nor can a mistake in the list of codes itself."""
    found = accept([finding(code)], {code: "I know"})
    assert [told.accepted for told in found] == [None, None]
    assert all(told.stops for told in found)
    (told,) = [told for told in found if told.place == f"params.yaml: findings.accept.{code}"]
    assert str(told).endswith(": can't be accepted: the run could not continue; remove it")


def test_an_unused_acceptance_is_a_note() -> None:
    """An outdated acceptance would hide the next finding of its code."""
    (unused,) = accept([], {"warmup-long": "meant so"})
    text = "params.yaml: findings.accept.warmup-long: was not found in this run; remove it"
    assert (unused.code, unused.severity, str(unused)) == ("accepted-unused", "note", text)
    assert accept([], {}) == []


# ---- Order and report


def test_the_most_costly_findings_come_first() -> None:
    """The order is errors, warnings, notes; within each, findings that affect the complete run come first."""
    given = ["last-batch-partial", "warmup-long", "memory-tight", "warmup-too-long", "split-overlap", "save-never"]
    wanted = ["save-never", "split-overlap", "warmup-too-long", "memory-tight", "warmup-long", "last-batch-partial"]
    assert codes(by_cost([finding(code) for code in given])) == wanted


def test_findings_of_one_cost_are_stable_and_accepted_ones_last() -> None:
    """Accepted findings come last, even if they are errors."""
    given = [finding("eval-never", "first"), finding("logging-never", "second"), finding("eval-never", "third")]
    assert by_cost(given) == given
    found = accept([finding("save-never"), finding("last-batch-partial")], {"save-never": "an hour's run"})
    assert codes(found) == ["last-batch-partial", "save-never"]


def test_the_markdown_report_has_the_expected_text() -> None:
    """The expected report is written by hand. A pipe in a text would add a column, so it is escaped."""
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


def test_a_report_without_findings_states_it() -> None:
    """An empty table would look truncated; a table without rows is not an error."""
    found = to_markdown([], {"Schedule": {"steps": 1}, "Tokens": {}})
    assert found.startswith("# Validation\n\n0 findings, 0 of them errors.\n\n## Schedule\n")


# ---- The codes and their page

SOURCES = [path for path in (ROOT / "src/finetune").rglob("*.py") if path.name != "codes.py"]


def test_every_code_is_raised_somewhere() -> None:
    """Every code in the reference can occur."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert [code for code in all_codes() if not re.search(f'"{code}"(?!:)', text)] == []


def test_every_code_that_is_raised_is_in_the_table() -> None:
    """A missing code would be an AssertionError during a user's validation."""
    raised = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) and node.args else ""
            if name in ("Finding", "BaseModelError"):
                texts = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
                raised |= {text for text in texts if isinstance(text, str)}
    assert len(raised) > 50
    assert sorted(raised - set(all_codes())) == []


def test_a_check_declares_or_imports_its_codes() -> None:
    """A check's codes are declared next to it, in `codes.py`, or in a module that it imports."""
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


def test_a_finding_with_an_unknown_code_is_a_programming_error() -> None:
    """An unknown code is a programming error: it has no severity."""
    with pytest.raises(AssertionError, match="no-such-code"):
        finding("no-such-code")


def test_codes_have_a_severity_a_cost_and_a_sentence() -> None:
    """A binding code is an error: a warning stops nothing that would have to be accepted."""
    for name, code in all_codes().items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert code.severity in SEVERITIES and code.cost in COSTS, name
        assert code.meaning.endswith(".") and len(code.meaning) < 100, name
        assert code.severity == "error" or not code.binding, name


def test_the_reference_lists_each_code_once_in_the_order_of_cost() -> None:
    """The page is the reference in which users look up codes."""
    lines = [line for line in to_reference().splitlines() if line.startswith("| `")]
    listed = [re.findall(r"`(.+?)`", line)[0] for line in lines]
    assert sorted(listed) == sorted(all_codes())
    codes = all_codes()
    ranks = [(SEVERITIES.index(codes[name].severity), list(COSTS).index(codes[name].cost), name) for name in listed]
    assert ranks == sorted(ranks)
    binding = [code for code, line in zip(listed, lines, strict=True) if "*Binding.*" in line]
    assert binding == [code for code in listed if codes[code].binding]


def test_the_shipped_reference_is_up_to_date() -> None:
    """docs/findings.md equals the output of `python -m finetune findings`."""
    assert Path(ROOT / "docs/findings.md").read_text(encoding="utf-8") == to_reference()
