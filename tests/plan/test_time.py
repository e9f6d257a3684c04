"""Duration and cost of a run, compared with computations by hand and with torch's counter."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.config.params import Config, parse_config
from finetune.model.architecture import measure_architecture
from finetune.model.base_config import find_base_config
from finetune.paths import Paths
from finetune.plan.time import ASSUMED_SHARE, Range, assumed_time, cost, flops_per_position, measured_time, run_flops
from tests.builders.planned_run import make_here
from tests.builders.planned_run import ready as ready
from tests.builders.small_run import params, trainer_of


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate the same machine for every test: a CPU with 32 GB, no accelerator; and change to the root folder."""
    make_here(monkeypatch)


# ---- Time


def test_time_and_cost_equal_those_by_hand() -> None:
    """900 operations at 10 per second on two devices take 45 seconds at full speed, of which a share is reached."""
    time = assumed_time(900, 10, 2)
    low, high = ASSUMED_SHARE
    assert (time.least, time.most) == (pytest.approx(45 / high), pytest.approx(45 / low))
    assert 0 < low < high < 1
    assert measured_time(900, (3, 9), 1) == Range(100, 300)
    assert measured_time(900, (3, 9), 4) == Range(25, 75)
    paid = cost(Range(1800, 5400), 2.5)
    assert (paid.least, paid.most) == (1.25, 3.75)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ((3, 119), "3 to 119 seconds"),
        ((60, 120), "1.0 to 2.0 minutes"),
        ((3600, 7199), "60.0 to 120.0 minutes"),
        ((3600, 7200), "1.0 to 2.0 hours"),
        ((86400, 172800), "1.0 to 2.0 days"),
    ],
)
def test_a_range_is_shown_in_a_suitable_unit(seconds: tuple[float, float], text: str) -> None:
    """`57866 seconds` would be hard to read."""
    assert Range(*seconds).to_text() == text


def test_operations_per_position_equal_those_by_hand(change: Callable[..., Config]) -> None:
    """Each weight of the layers has two operations forward, two backward, two with checkpointing; plus attention."""
    architecture: Any = SimpleNamespace(
        linears=[SimpleNamespace(name="q_proj", parameters=1000)],
        experts=[SimpleNamespace(name="experts.up_proj", parameters=8 * 100, experts=8)],
        active_experts=2,
        layers=3,
        heads=2,
        head_dim=5,
        hidden=10,
        vocabulary=50,
    )
    plain, again = change().train, change(**{"train.activation_checkpointing": True}).train
    attention = 2 * 3 * 8 * 2 * 5
    assert flops_per_position(architecture, plain, 8) == 4 * 1200 + 3 * attention
    assert flops_per_position(architecture, again, 8) == 6 * 1200 + 4 * attention
    whole = run_flops(architecture, plain, positions=100, length=8.4, supervised_share=0.25)
    assert whole == 100 * 2 * (4 * 1200 + 3 * attention + 6 * 10 * 50 * 0.25)


@pytest.mark.parametrize(("length", "checkpointing"), [(64, False), pytest.param(256, True, marks=pytest.mark.slow)])
def test_operations_agree_with_torchs_counter(change: Callable[..., Config], length: int, checkpointing: bool) -> None:
    """The count for a small Llama with LoRA is within four percent of torch's own counter.

    Eager attention also computes the masked half, so it counts twice here; the adapter's operations are left out of
    both, except for the few of rank 1."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager"}
    config = LlamaConfig(**shape, **heads, bos_token_id=0, eos_token_id=1)
    model = LlamaForCausalLM(config)
    architecture = measure_architecture(config)
    train = change(**{"train.activation_checkpointing": checkpointing}).train
    lora = LoraConfig(r=1, target_modules=list(change().adapter.target_modules), task_type="CAUSAL_LM")
    peft = get_peft_model(model, lora).train()
    if checkpointing:
        peft.enable_input_require_grads()
        peft.activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.arange(2 * length).reshape(2, length) % 64
    with FlopCounterMode(display=False) as counter:
        hidden = peft.base_model.model.model(input_ids=ids, use_cache=False).last_hidden_state
        hidden.sum().backward()
    attention = 2 * architecture.layers * length * 128 * (4 if checkpointing else 3)
    expected = flops_per_position(architecture, train, length) + attention
    assert counter.get_total_flops() / ids.numel() == pytest.approx(expected, rel=0.04)


@pytest.mark.slow
def test_operations_of_a_real_step_agree_with_the_plan(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's loss on a real micro-batch, with its loss head, is within a tenth.

    The first of the two layers needs no gradient of its input; in a real base it is one of many."""
    from torch.utils.flop_counter import FlopCounterMode

    from finetune.model.tokens import IGNORED

    monkeypatch.chdir(ready)
    config = parse_config(params(model__attention="eager", adapter__r=1), "params.yaml")
    trainer = trainer_of(config, Paths())
    batch = next(iter(trainer.get_train_dataloader()))
    rows, length = batch["input_ids"].shape
    share = float((batch["labels"] != IGNORED).sum()) / batch["labels"].numel()
    with FlopCounterMode(display=False) as counter:
        trainer.compute_loss(trainer.model.train(), batch).backward()
    architecture = measure_architecture(find_base_config(config.model, Path()))
    attention = 2 * architecture.layers * length * architecture.heads * architecture.head_dim * 3
    planned = run_flops(architecture, config.train, positions=1, length=length, supervised_share=share)
    expected = rows * length * (planned / config.train.num_train_epochs + attention)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.1)
