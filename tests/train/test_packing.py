"""Packed rows: no example is cut, none attends to its neighbour, and every supervised token is trained on."""

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
    """Return a validated workspace of packed rows and make it the working directory."""
    return validated(tmp_path_factory.mktemp("packed") / "run", **CHANGES)


def test_rows_are_full_and_hold_every_example_once(run: tuple[Config, Paths]) -> None:
    """36 examples of about 30 tokens fit into a quarter as many rows of 128 tokens."""
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


def test_packed_examples_do_not_attend_to_neighbours(run: tuple[Config, Paths]) -> None:
    """The packing check of rehearse passes; with a mask of ones, as some collators build, neighbours leak."""
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


def test_an_epoch_with_missing_labels_is_refused(run: tuple[Config, Paths], monkeypatch: pytest.MonkeyPatch) -> None:
    """A collator that loses labels, as one did with packed batches, is detected in the first epoch."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from finetune.train import stage

    config, paths = run
    shutil.rmtree(paths.checkpoints, ignore_errors=True)  # otherwise the finished run would only be published again
    whole = DataCollatorForLanguageModeling.torch_call

    def lossy(self: DataCollatorForLanguageModeling, examples: list[dict[str, object]]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = whole(self, examples)
        supervised = (batch["labels"] != -100).nonzero()
        batch["labels"][tuple(supervised[0])] = -100
        return batch

    monkeypatch.setattr(DataCollatorForLanguageModeling, "torch_call", lossy)
    wrong = r"after step 0 has \d+ supervised tokens, but validate counted \d+ in its rows"
    for _ in range(2):  # the second start refuses it as well
        with pytest.raises(DataError, match=wrong):
            stage.run(params_of("train", config), Paths(Path()))
