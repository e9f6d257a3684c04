"""The benchmarks page is generated from raw results, and every script is described and compares equal work."""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
APART = {"bench_train_cuda.py"}  # needs a GPU
PARAMS = {
    "seed": 7,
    "model": {"base": "base"},
    "adapter": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
    "train": {
        "max_length": 64,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "effective_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": False,
        "logging_steps": 1,
        "save_steps": 5,
        "eval_steps": 5,
    },
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a module of benchmarks/, imported with that folder on the path, as its scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_the_page_agrees_with_the_results(script: Any) -> None:
    """A manually changed figure, or a result without its table, is detected."""
    tables: ModuleType = script("tables")
    for path, names in ((tables.PAGE, set(tables.TABLES)), (tables.README, {"real"})):
        page = path.read_text(encoding="utf-8")
        assert set(tables.marked(page)) == names
        assert tables.page_with(page, tables.tables_for(path)) == page, "run python benchmarks/tables.py"


def test_a_changed_figure_is_corrected(script: Any) -> None:
    """The check above can fail."""
    tables: ModuleType = script("tables")
    page = tables.PAGE.read_text(encoding="utf-8")
    at = page.index("|", page.index("<!-- table: start -->"))
    forged = page[:at] + "| invented | 1 |\n" + page[at:]
    assert tables.page_with(forged, tables.tables_for(tables.PAGE)) == page


def test_the_newest_result_is_used(script: Any, tmp_path: Path) -> None:
    """The newest result is chosen by the date in its name; a longer name is another benchmark."""
    for name in ("prepare-2026-01-02.json", "prepare-2026-01-10.json", "prepare-engines-2026-02-01.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    tables: ModuleType = script("tables")
    found = tables.newest("prepare", tmp_path)
    assert found is not None
    assert found.name == "prepare-2026-01-10.json"
    assert tables.newest("train", tmp_path) is None


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_result_has_date_machine_and_versions(path: Path) -> None:
    """Every result has date, machine and versions."""
    result = json.loads(path.read_text(encoding="utf-8"))
    assert re.search(r"-\d{4}-\d\d-\d\d$", path.stem)
    assert {"processor", "cores", "memory_bytes"} <= result["machine"].keys()
    assert result["versions"]


def test_every_script_is_run_and_documented(script: Any) -> None:
    """`make bench` runs all scripts except those that need another machine."""
    scripts = {path.name for path in BENCHMARKS.glob("bench_*.py")} | {"engines_prepare.py"}
    assert {benchmark.script for benchmark in script("run").BENCHMARKS.values()} == scripts - APART
    described = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert {name for name in scripts if f"`{name}`" not in described} == set()


def test_all_sides_get_the_same_settings(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tool has its own names for rank, batch, epochs, rate and seed; soup-cli's warmup is a share, rounded up."""
    monkeypatch.chdir(tmp_path)
    Path("conversations.jsonl").write_text("{}\n" * 40, encoding="utf-8")
    sides = {side.name: side for side in script("train_sides").SIDES}
    for side in sides.values():
        side.ask(PARAMS)
    factory = json.loads(Path("llamafactory.yaml").read_text(encoding="utf-8"))
    assert [factory[name] for name in ("lora_rank", "lora_alpha", "lora_dropout", "seed")] == [8, 16, 0.1, 7]
    same = ("num_train_epochs", "learning_rate", "per_device_train_batch_size", "warmup_steps")
    assert [factory[name] for name in same] == [PARAMS["train"][name] for name in same]  # type: ignore[index]
    soup = json.loads(Path("soup.yaml").read_text(encoding="utf-8"))["training"]
    assert [soup[name] for name in ("epochs", "lr", "batch_size", "seed")] == [2, 1e-3, 4, 7]
    assert 2 < soup["warmup_ratio"] * 20 <= 3
    assert soup["lora"] == {"r": 8, "alpha": 16, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


def test_a_sides_row_compares_round_by_round(script: Any) -> None:
    """The row has medians over rounds; the ratio is computed within each, so a busy round favours no side."""

    def run(number: int, seconds: float) -> dict[str, Any]:
        same = {"process_seconds": 9.0, "peak_memory_bytes": 1, "train_loss": 1.0, "validation_loss": 2.0}
        counts = {"steps": 3, "positions": 50, "supervised_tokens": 60, "versions": {}}
        return {"round": number, "step_seconds": seconds, "step_cpu_seconds": seconds, **same, **counts}

    train: ModuleType = script("bench_train")
    runs = {
        train.BASELINE: [run(0, 10.0), run(1, 40.0), run(2, 10.0)],
        "ours": [run(0, 5.0), run(1, 10.0), run(2, 5.0)],
    }
    ours = next(row for row in train.summarize(runs) if row["side"] == "ours")
    assert ours["faster"] == [2.0, 2.0, 4.0]
    assert ours["tokens_per_second"] == [6.0, 12.0, 12.0]


def test_unequal_work_is_refused(script: Any) -> None:
    """Fewer tokens, other rates or another loss would make a side look faster."""
    train: ModuleType = script("bench_train")
    same = {"supervised_tokens": 60, "steps": 3, "learning_rates": [0.1, 0.2], "validation_loss": 1.0}
    assert list(train.unequal_work({train.BASELINE: [same], "ours": [same]}, 60)) == []
    for harm in ({"supervised_tokens": 59}, {"steps": 2}, {"learning_rates": [0.1, 0.1]}, {"validation_loss": 1.2}):
        assert len(list(train.unequal_work({train.BASELINE: [same], "ours": [{**same, **harm}]}, 60))) == 1
    packed = {**same, "steps": 2, "learning_rates": [0.1]}
    assert list(train.unequal_work({train.BASELINE: [same], train.PACKED: [packed]}, 60)) == []


def test_only_time_within_training_is_subtracted(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation after train() is not part of it: subtracting it would make that side look faster."""
    watched: ModuleType = script("watched_training")
    now = [0.0]
    monkeypatch.setattr(watched.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(watched.time, "process_time", lambda: now[0])

    class Trainer:
        def train(self) -> None:
            now[0] += 10
            self.evaluate()
            self._save_checkpoint()

        def evaluate(self) -> None:
            now[0] += 3

        def _save_checkpoint(self) -> None:
            now[0] += 1

        def training_step(self) -> None:
            """Fail if this is called."""

    watch = watched.Watch()
    watch.wait_for(Trainer)
    trainer = Trainer()
    trainer.train()
    trainer.evaluate()
    assert {name: spent[0] for name, spent in watch.seconds.items()} == {"train": 14, "evaluations": 3, "saves": 1}
    with pytest.raises(RuntimeError, match="a second trainer"):
        Trainer()
