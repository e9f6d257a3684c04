"""Packed rows: nothing cut, nothing seen of a neighbour, and every supervised token trained on."""

import shutil
from pathlib import Path

import pyarrow
import pytest
import torch

from finetune.config.params import Config, params_of
from finetune.errors import DataError
from finetune.files.strict_json import read_json
from finetune.paths import Paths
from tests.builders.small_run import validated

pytestmark = pytest.mark.slow
CHANGES = {"train__packing": True, "train__max_length": 128, "train__gradient_accumulation_steps": 1}
CHANGES |= {"train__per_device_train_batch_size": 2, "train__effective_batch_size": 2}
CHANGES |= {"train__train_sampling_strategy": "random", "train__warmup_steps": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Paths]:
    """A validated workspace of packed rows, which the tests stand in."""
    return validated(tmp_path_factory.mktemp("packed") / "run", **CHANGES)


def test_rows_are_full_and_hold_every_example_once(run: tuple[Config, Paths]) -> None:
    """36 examples of some 30 tokens fit into a quarter as many rows of 128."""
    _, paths = run
    table = pyarrow.ipc.open_stream(paths.validated / "train.arrow").read_all().to_pylist()
    counts = read_json(paths.reports / "validation.json")["tokens"]["train"]
    ids = [name for row in table for name in row["ids"]]
    assert counts["examples"] == len(ids) == len(set(ids)) == 36
    assert counts["rows"] == len(table) <= 12
    assert counts["positions"] == counts["tokens"]
    for row in table:
        assert sum(row["seq_lengths"]) == row["length"] == len(row["input_ids"]) == len(row["labels"]) <= 128
        assert len(row["seq_lengths"]) == len(row["ids"])


def test_a_packed_neighbour_is_not_seen(run: tuple[Config, Paths]) -> None:
    """The rehearsal's proof holds; and it can fail: with a mask of ones, as some collators make, neighbours leak."""
    from finetune.commands.rehearse.proofs import TOLERANCE, check_packing
    from finetune.model.base import load_base

    config, paths = run
    _, held = check_packing(config, paths)
    assert held
    model = load_base(config.model, "cpu").eval()
    ids = torch.arange(2, 42)[None]
    positions = torch.cat([torch.arange(20), torch.arange(20)])[None]
    with torch.inference_mode():
        alone = model(input_ids=ids[:, 20:], use_cache=False).logits
        leaky = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False)
    assert float((leaky.logits[:, 20:] - alone).abs().max()) > 10 * TOLERANCE


def test_packed_training_takes_every_supervised_token(run: tuple[Config, Paths]) -> None:
    """Each micro-batch is compared with validate's count, so a run that ends has trained on exactly these."""
    from finetune.train import stage

    config, paths = run
    stage.run(params_of("train", config), paths)
    report, planned = read_json(paths.reports / "train.json"), read_json(paths.reports / "validation.json")["schedule"]
    assert report["steps"] == report["planned_steps"] == planned["steps"]


def test_an_epoch_of_less_is_refused(run: tuple[Config, Paths], monkeypatch: pytest.MonkeyPatch) -> None:
    """A collator that loses labels, as one did with rows of a packed batch, must not go unnoticed for hours."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from finetune.train import stage

    config, paths = run
    shutil.rmtree(paths.checkpoints, ignore_errors=True)  # a finished run would only be published again
    whole = DataCollatorForLanguageModeling.torch_call

    def lossy(self: DataCollatorForLanguageModeling, examples: list[dict[str, object]]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = whole(self, examples)
        supervised = (batch["labels"] != -100).nonzero()
        batch["labels"][tuple(supervised[0])] = -100
        return batch

    monkeypatch.setattr(DataCollatorForLanguageModeling, "torch_call", lossy)
    wrong = r"after step 0 has \d+ supervised tokens, but validate counted \d+ in its rows"
    for _ in range(2):  # and again when it is started again
        with pytest.raises(DataError, match=wrong):
            stage.run(params_of("train", config), Paths(Path()))
