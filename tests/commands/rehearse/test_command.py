"""The rehearsal: which settings it changes, its checks, each of which can fail, and a run of every recipe."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.cli.main import main
from finetune.commands.rehearse import proofs, workspace
from finetune.commands.rehearse.command import prepare_rows, prove_schedule
from finetune.commands.rehearse.workspace import choose_rows, rehearsal_params
from finetune.config.params import Config, parse_config
from finetune.config.recipes import with_recipe
from finetune.config.validate import ValidateParams
from finetune.errors import ConfigError, DataError
from finetune.files.run_lock import pipeline_lock
from finetune.files.strict_json import read_json
from finetune.model.base_config import find_base_config
from finetune.paths import Paths
from finetune.plan.schedule import plan_schedule
from finetune.records.examples import Example
from finetune.validate.preview import find_stale_rows, look_ahead
from tests.builders.small_bases import KINDS
from tests.builders.small_run import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


def recipe(name: str) -> Config:
    """Return params.yaml with a shipped recipe."""
    return with_recipe(ROOT / "recipes", name, ROOT / "params.yaml")


# ---- What is changed


@pytest.mark.parametrize("name", RECIPES)
def test_the_rehearsal_of_every_recipe_is_a_valid_config(name: str) -> None:
    """It keeps the essentials of the recipe: adapter, schedule type, optimizer settings, the user's criteria."""
    real = recipe(name)
    content, changes = rehearsal_params(real, rows=32, longest=200)
    small = parse_config(content, "params.yaml")
    assert small.adapter == real.adapter
    assert small.decide == real.decide
    assert small.model.quantization == real.model.quantization
    for key in ("learning_rate", "lr_scheduler_type", "weight_decay", "packing", "activation_checkpointing", "bf16"):
        assert getattr(small.train, key) == getattr(real.train, key)
    made = small.train.per_device_train_batch_size * small.train.gradient_accumulation_steps
    assert small.train.effective_batch_size == made
    assert any(change.startswith("train.max_length") for change in changes)


def test_unsupported_kernels_are_replaced_with_a_warning(
    change: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with a GPU nothing is replaced: the rehearsal runs the recipe's own kernels."""
    keys = {"environment": "cuda", "model.attention": "flash_attention_2", "train.optim": "adamw_8bit"}
    real = change(**keys, **{"train.tf32": True, "train.fp16": True, "model.dtype": "float16"})

    def kept(missing: str | None) -> tuple[list[str], list[str]]:
        monkeypatch.setattr(workspace, "find_missing_device", lambda environment: missing)
        content, changes = rehearsal_params(real, 32, 200)
        return [content["environment"], content["model"]["attention"], content["train"]["optim"]], changes

    found, changes = kept("no CUDA device found")
    assert found == ["cpu", "sdpa", "adamw_torch"]
    assert "model.attention: flash_attention_2 -> sdpa (has no kernels on cpu)" in changes
    assert "environment: cuda -> cpu (this machine has no such device)" in changes
    assert kept(None)[0] == ["cuda", "flash_attention_2", "adamw_8bit"]


class Words:
    """A tokenizer of words, sufficient to choose rows by length."""

    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012

    def apply_chat_template(self, turns: list[dict[str, Any]], **options: Any) -> dict[str, list[int]]:
        """Return one token per word."""
        words = " ".join(turn["content"] for turn in turns).split()
        return {"input_ids": list(range(len(words))), "assistant_masks": [0] * len(words)}


def test_the_sample_takes_every_agent_and_short_rows(example: Callable[..., Example]) -> None:
    """One long row would dominate the run time; with one agent only, the prompts of others would be missing."""
    rows = [example(f"word {at}", agent="one") for at in range(50)]
    rows += [example(f"other {at}", agent="two") for at in range(5)]
    rows += [example("long " * 600 + str(at), agent="one") for at in range(20)]
    chosen, longest = choose_rows(Words(), rows, 10, 1024)
    assert [row.agent for row in chosen[:4]] in (["one", "two"] * 2, ["two", "one"] * 2)
    assert sum(row.agent == "two" for row in chosen) == 5
    assert longest < 20
    assert choose_rows(Words(), list(reversed(rows)), 10, 1024) == (chosen, longest)


def test_long_rows_are_used_if_there_are_no_others(example: Callable[..., Example]) -> None:
    """A data set of long documents is rehearsed with its shortest rows."""
    rows = [example("long " * (600 + at)) for at in range(12)]
    chosen, longest = choose_rows(Words(), rows, 4, 1024)
    assert len(chosen) == 4
    assert 600 <= longest < 700
    with pytest.raises(DataError, match="nothing to rehearse"):
        choose_rows(Words(), [], 4, 1024)


# ---- The proofs, and that they can fail


@pytest.mark.parametrize("name", RECIPES)
def test_the_replayed_schedule_is_the_planned_one(name: str) -> None:
    """The schedule of transformers is replayed for the actual number of steps of 15,000 examples."""
    train = recipe(name).train
    plan = plan_schedule(train, 15_000, train.distributed.devices)
    planned = {key: getattr(plan, key) for key in ("steps", "logs", "evaluations", "saves")}
    peak = pytest.approx(train.learning_rate)
    assert proofs.replay_schedule(train, plan) == planned | {"peak_learning_rate": peak}


def test_a_schedule_that_never_reaches_its_peak_is_detected(change: Callable[..., Config]) -> None:
    """A warmup of 50 steps in a run of 45 never reaches the peak learning rate."""
    config = change(**{"train.warmup_steps": 50, "train.num_train_epochs": 3, "train.effective_batch_size": 16})
    plan = plan_schedule(config.train, 240)
    assert plan.steps == 45
    seen = proofs.replay_schedule(config.train, plan)
    assert seen["peak_learning_rate"] < config.train.learning_rate

    preview = SimpleNamespace(outlook=SimpleNamespace(schedule=plan))
    assert not prove_schedule(config, preview).held  # type: ignore[arg-type]


# ---- The rows


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a copy of the inputs of a rehearsal and make it the working directory."""
    for name in ("recipes", "models", "data/raw"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rows_are_prepared_again_after_a_change(
    tree: Path, change: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    """A corrected source is prepared again, and the splits of a real run are not touched."""
    paths, config = Paths(), change()
    prepare_rows(config, Path())
    first = read_json(paths.reports / "prepare.json")
    capsys.readouterr()
    before = (paths.prepared / "train.jsonl").stat().st_ino
    prepare_rows(config, Path())
    assert (paths.prepared / "train.jsonl").stat().st_ino == before, "nothing changed, nothing is written"
    source = Path("data/raw/cpython/interactions.jsonl")
    source.write_text("".join(source.read_text(encoding="utf-8").splitlines(keepends=True)[:-9]), encoding="utf-8")
    assert find_stale_rows(config, Path()) == "from a different version of data/raw/cpython/interactions.jsonl"
    with pipeline_lock(paths.work / "pipeline.lock", "train"), pytest.raises(ConfigError, match="stage train"):
        prepare_rows(config, Path())
    assert read_json(paths.reports / "prepare.json") == first
    prepare_rows(config, Path())
    assert "it is rebuilt, as dvc repro prepare would" in capsys.readouterr().out
    assert read_json(paths.reports / "prepare.json")["sources"]["cpython"]["read"] == 3756 - 9
    other = change(**{"data.max_bad_fraction": 0.5})
    assert find_stale_rows(other, Path()) == "with different settings in the section data"


# ---- Complete rehearsals, in their own target: a minute or two each


QUICK = "a100x4-quick-test"  # its warmup of 50 steps is longer than one epoch of the embedded rows


def kind_of(name: str) -> tuple[str, ...]:
    """Return what distinguishes rehearsals on a machine without a GPU: architecture, number formats, packing.

    Recipes of one kind differ in values alone, which the tests above compare for every recipe, or in a model type
    whose stages are tested by themselves (tests/model/test_bases.py)."""
    real = recipe(name)
    content, _ = rehearsal_params(real, rows=32, longest=200)
    architecture = find_base_config(real.model, ROOT)
    assert architecture is not None
    model, train = content["model"], content["train"]
    tested = "tested" if architecture.model_type in KINDS else architecture.model_type
    return (tested, model["quantization"], model["dtype"], f"packing {train['packing']}")


# One recipe of each kind: two are rehearsed in the tests below, one without packing and one with it.
REHEARSED_APART = (QUICK, "tiny")
REHEARSED = ("apple-m4", "laptop", "qwen3-30b-a3b", "qwen3-8b")


def test_a_recipe_of_every_kind_is_rehearsed() -> None:
    """A recipe of a new kind must be added to the rehearsed ones; one of a known kind need not be."""
    rehearsed = [kind_of(name) for name in (*REHEARSED, *REHEARSED_APART)]
    assert len(set(rehearsed)) == len(rehearsed), "two rehearsals of one kind"
    assert {kind_of(name) for name in RECIPES} == set(rehearsed)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_has_no_known_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal would find no error in the params."""
    monkeypatch.chdir(ROOT)  # the recipes' paths are relative to it
    real = recipe(name)
    preview = look_ahead(ValidateParams.select_from(real), ROOT, examples=15_000, length=200)
    assert [finding.code for finding in preview.findings if finding.severity == "error"] == []


def proofs_held(tree: Path, name: str) -> list[str]:
    """Return the checks of a rehearsal's report that held; fail on a failed check or a missing verdict."""
    report = (tree / "work/rehearsal" / name / "report.md").read_text(encoding="utf-8")
    assert "**failed**" not in report
    decision = read_json(tree / "work/rehearsal" / name / "reports/decision.json")
    assert decision["verdict"] in ("deploy", "iterate", "abort")
    return re.findall(r"^\| held \| (.*?) \|", report, flags=re.MULTILINE)


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", REHEARSED)
def test_a_recipe_rehearses(tree: Path, name: str) -> None:
    """The recipe is validated, trained, killed, resumed, evaluated and judged on a base of its architecture."""
    assert main(["rehearse", name]) == 0
    assert len(proofs_held(tree, name)) >= 7


@pytest.mark.end_to_end
def test_a_warmup_longer_than_the_run_fails_the_rehearsal(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 43 steps, 50 are warmup: this alone is reported, so the other checks hold."""
    assert main(["rehearse", QUICK]) == 2
    output = capsys.readouterr().err
    assert "1 of 7 checks failed" in output
    assert "43 steps replayed: the learning rate peaks at 0.000168" in output


@pytest.mark.end_to_end
def test_a_packed_recipe_rehearses(tree: Path) -> None:
    """The rehearsal includes the check that packed examples do not attend to each other."""
    path = tree / "recipes/tiny.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("packing: false", "packing: true"), encoding="utf-8")
    assert main(["rehearse", "tiny"]) == 0
    held = proofs_held(tree, "tiny")
    assert len(held) >= 8 and "packed rows are isolated" in held


@pytest.mark.end_to_end
def test_a_recipe_that_loses_its_answers_fails_the_rehearsal(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A template that marks the wrong turn trains on prompts: the rehearsal detects it before the real run."""
    template = (tree / "models/templates/chatml.jinja").read_text(encoding="utf-8")
    wrong = template.replace("message.role == 'assistant'", "message.role == 'user'")
    (tree / "models/templates/wrong.jinja").write_text(wrong, encoding="utf-8")
    path = tree / "recipes/tiny.yaml"
    text = path.read_text(encoding="utf-8").replace("template: null ", "template: models/templates/wrong.jinja ")
    path.write_text(text, encoding="utf-8")
    assert main(["rehearse", "tiny"]) == 2
    output = capsys.readouterr().err
    assert "checks failed" in output
    assert "but the answer is" in output
