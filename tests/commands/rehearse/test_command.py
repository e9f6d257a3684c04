"""The rehearsal: what it changes and what not, its proofs, each of which can fail, and every recipe through it."""

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
from finetune.model.architecture import find_architecture
from finetune.paths import Paths
from finetune.plan.schedule import plan_schedule
from finetune.records.examples import Example
from finetune.validate.preview import find_stale_rows, look_ahead
from tests.builders.small_run import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


def recipe(name: str) -> Config:
    """params.yaml with a shipped recipe."""
    return with_recipe(ROOT / "recipes", name, ROOT / "params.yaml")


# ---- What is changed


@pytest.mark.parametrize("name", RECIPES)
def test_the_rehearsal_of_every_recipe_is_a_valid_config(name: str) -> None:
    """And keeps what makes the recipe: adapter, kind of schedule, optimizer's settings, the user's criteria."""
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


def test_what_this_machine_has_no_kernels_for_is_replaced_and_said(
    change: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on a machine with a GPU is left as it is: there the rehearsal runs the recipe's own kernels."""
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
    """A tokenizer of words, enough to choose rows by length."""

    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012

    def apply_chat_template(self, turns: list[dict[str, Any]], **options: Any) -> dict[str, list[int]]:
        """One token a word."""
        words = " ".join(turn["content"] for turn in turns).split()
        return {"input_ids": list(range(len(words))), "assistant_masks": [0] * len(words)}


def test_the_sample_takes_every_agent_and_short_rows(example: Callable[..., Example]) -> None:
    """One long row would decide the time of it all; one agent alone would leave the others' prompts unseen."""
    rows = [example(f"word {at}", agent="one") for at in range(50)]
    rows += [example(f"other {at}", agent="two") for at in range(5)]
    rows += [example("long " * 600 + str(at), agent="one") for at in range(20)]
    chosen, longest = choose_rows(Words(), rows, 10, 1024)
    assert [row.agent for row in chosen[:4]] in (["one", "two"] * 2, ["two", "one"] * 2)
    assert sum(row.agent == "two" for row in chosen) == 5
    assert longest < 20
    assert choose_rows(Words(), list(reversed(rows)), 10, 1024) == (chosen, longest)


def test_long_rows_are_taken_where_there_are_no_others(example: Callable[..., Example]) -> None:
    """A data set of long documents is rehearsed with its shortest ones."""
    rows = [example("long " * (600 + at)) for at in range(12)]
    chosen, longest = choose_rows(Words(), rows, 4, 1024)
    assert len(chosen) == 4
    assert 600 <= longest < 700
    with pytest.raises(DataError, match="nothing to rehearse with"):
        choose_rows(Words(), [], 4, 1024)


# ---- The proofs, and that they can fail


@pytest.mark.parametrize("name", RECIPES)
def test_the_replayed_schedule_is_the_planned_one(name: str) -> None:
    """transformers' own scheduler and decisions, over the real number of steps of 15,000 examples."""
    train = recipe(name).train
    plan = plan_schedule(train, 15_000, train.distributed.devices)
    planned = {key: getattr(plan, key) for key in ("steps", "logs", "evaluations", "saves")}
    peak = pytest.approx(train.learning_rate)
    assert proofs.replay_schedule(train, plan) == planned | {"peak_learning_rate": peak}


def test_a_schedule_that_never_reaches_its_peak_is_seen(change: Callable[..., Config]) -> None:
    """Warmup of 50 steps in a run of 45: the mistake that started all this."""
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
    """A copy of what a rehearsal reads, to stand in: recipes, params.yaml, models and the embedded rows."""
    for name in ("recipes", "models", "data/raw"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rows_are_prepared_anew_where_they_or_the_settings_changed(
    tree: Path, change: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mended source must not be rehearsed with the rows of before, nor a run's splits be changed beneath it."""
    paths, config = Paths(), change()
    prepare_rows(config, Path())
    first = read_json(paths.reports / "prepare.json")
    capsys.readouterr()
    before = (paths.prepared / "train.jsonl").stat().st_ino
    prepare_rows(config, Path())
    assert (paths.prepared / "train.jsonl").stat().st_ino == before, "nothing changed, nothing is written"
    source = Path("data/raw/cpython/interactions.jsonl")
    source.write_text("".join(source.read_text(encoding="utf-8").splitlines(keepends=True)[:-9]), encoding="utf-8")
    assert find_stale_rows(config, Path()) == "of another data/raw/cpython/interactions.jsonl than is there now"
    with pipeline_lock(paths.work / "pipeline.lock", "train"), pytest.raises(ConfigError, match="stage train"):
        prepare_rows(config, Path())
    assert read_json(paths.reports / "prepare.json") == first
    prepare_rows(config, Path())
    assert "it is made anew, as dvc repro prepare does" in capsys.readouterr().out
    assert read_json(paths.reports / "prepare.json")["sources"]["cpython"]["read"] == 3756 - 9
    other = change(**{"data.max_bad_fraction": 0.5})
    assert find_stale_rows(other, Path()) == "with different settings in the section data"


# ---- Whole rehearsals, in their own target: a minute or two each


QUICK = "a100x4-quick-test"  # its warmup of 50 steps is longer than one epoch of the embedded rows


def kind_of(name: str) -> tuple[str, ...]:
    """What makes a rehearsal another one on a machine without a GPU: architecture, number formats, packing.

    Recipes of one kind differ in values alone, which the tests above compare for every recipe.
    """
    real = recipe(name)
    content, _ = rehearsal_params(real, rows=32, longest=200)
    architecture = find_architecture(real.model, ROOT)
    assert architecture is not None
    model, train = content["model"], content["train"]
    return (architecture.model_type, model["quantization"], model["dtype"], f"packing {train['packing']}")


# One recipe of each kind: the two below rehearse in tests of their own, the one without packing and the other with it.
REHEARSED_APART = (QUICK, "tiny")
REHEARSED = ("apple-m4", "cpu", "laptop")


def test_a_recipe_of_every_kind_is_rehearsed() -> None:
    """A new recipe of another kind must be added to those that are rehearsed, one of a known kind need not."""
    rehearsed = [kind_of(name) for name in (*REHEARSED, *REHEARSED_APART)]
    assert len(set(rehearsed)) == len(rehearsed), "two rehearsals of one kind"
    assert {kind_of(name) for name in RECIPES} == set(rehearsed)


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_is_known_to_stand_against_a_recipe(name: str) -> None:
    """What a rehearsal would find in its params alone: no error, but for a base that `finetune pin` will pin."""
    real = recipe(name)
    preview = look_ahead(ValidateParams.select_from(real), ROOT, examples=15_000, length=200)
    expected = [] if (ROOT / real.model.base).is_dir() else ["base-unpinned"]
    assert [finding.code for finding in preview.findings if finding.severity == "error"] == expected


def proofs_held(tree: Path, name: str) -> list[str]:
    """The proofs of a rehearsal's report that held; a failed one, or a run without a verdict, fails."""
    report = (tree / "work/rehearsal" / name / "report.md").read_text(encoding="utf-8")
    assert "**failed**" not in report
    decision = read_json(tree / "work/rehearsal" / name / "reports/decision.json")
    assert decision["verdict"] in ("deploy", "iterate", "abort")
    return re.findall(r"^\| held \| (.*?) \|", report, flags=re.MULTILINE)


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", REHEARSED)
def test_a_recipe_rehearses(tree: Path, name: str) -> None:
    """Validated, trained, killed, resumed, evaluated and judged, on a base of its own architecture."""
    assert main(["rehearse", name]) == 0
    assert len(proofs_held(tree, name)) >= 7


@pytest.mark.end_to_end
def test_a_warmup_longer_than_the_run_fails_the_rehearsal(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """43 steps, 50 of them warmup: that alone is reported, so the rest of this kind of recipe holds."""
    assert main(["rehearse", QUICK]) == 2
    told = capsys.readouterr().err
    assert "1 of 7 did not hold" in told
    assert "43 steps replayed: the learning rate peaks at 0.000168" in told


@pytest.mark.end_to_end
def test_a_packed_recipe_rehearses(tree: Path) -> None:
    """With the proof that packing isolates."""
    path = tree / "recipes/tiny.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("packing: false", "packing: true"), encoding="utf-8")
    assert main(["rehearse", "tiny"]) == 0
    held = proofs_held(tree, "tiny")
    assert len(held) >= 8 and "packed rows are isolated" in held


@pytest.mark.end_to_end
def test_a_recipe_that_loses_its_answers_fails_the_rehearsal(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A template that marks the wrong turn trains on prompts: found here, not after the afternoon."""
    template = (tree / "models/templates/chatml.jinja").read_text(encoding="utf-8")
    wrong = template.replace("message.role == 'assistant'", "message.role == 'user'")
    (tree / "models/templates/wrong.jinja").write_text(wrong, encoding="utf-8")
    path = tree / "recipes/tiny.yaml"
    text = path.read_text(encoding="utf-8").replace("template: null ", "template: models/templates/wrong.jinja ")
    path.write_text(text, encoding="utf-8")
    assert main(["rehearse", "tiny"]) == 2
    told = capsys.readouterr().err
    assert "did not hold" in told
    assert "is trained on for the answer" in told
