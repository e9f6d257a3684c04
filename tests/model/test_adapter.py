"""model/adapter: every initialization ends in a plain LoRA adapter that fits the published base."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config.model import AdapterConfig, ModelConfig
from finetune.config.params import Config, parse_config
from finetune.errors import ConfigError, DataError
from finetune.files.hashing import sha256_file
from finetune.model.adapter import (
    CONFIG,
    REWRITING,
    WEIGHTS,
    add_adapter,
    find_adapter_problem,
    load_adapter,
    save_adapter,
)
from finetune.model.base import load_base
from tests.builders.small_run import build_base, params

pytestmark = pytest.mark.slow

NAME = "organization/base"
IDS = torch.randint(0, 1000, (4, 24), generator=torch.Generator().manual_seed(1))
PLAIN = ("default", "gaussian", "orthogonal")
# The largest difference of a logit. Measured over all initializations: in float32 at most 2.1e-6 (orders of summation),
# in bfloat16 at most 0.026 (a modified base is rounded again); ten training steps change logits by 1.
TOLERANCES = {"float32": 2e-5, "bfloat16": 0.06}
MOVED = 0.3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a small base in a folder."""
    folder = tmp_path_factory.mktemp("base")
    build_base(folder)
    return folder


@pytest.fixture
def settings(base: Path) -> Callable[..., Config]:
    """`settings(init, model__dtype="bfloat16")`: return a config with this initialization on the small base."""

    def make(init: str = "default", **changes: Any) -> Config:
        keys = {"model__base": str(base), "adapter__init_lora_weights": init, "adapter__lora_dropout": 0.0}
        return parse_config(params(**(keys | changes)), "params.yaml")

    return make


def logits(model: Any) -> torch.Tensor:
    """Return the model's logits for some tokens (rows, tokens, vocabulary), in float32."""
    model.eval()
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits.float()
    return found


def start(config: Config) -> Any:
    """Return a base with a new adapter, initialized from the seed."""
    torch.manual_seed(config.seed)
    return add_adapter(load_base(config.model, "cpu"), config.adapter)


def take_steps(model: Any, steps: int = 6) -> None:
    """Take real optimizer steps towards repeating the input."""
    model.train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in weights} == {torch.float32}
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of a logit."""
    return float((one - other).abs().max())


@pytest.mark.parametrize("variant", [{}, {"adapter__use_rslora": True}, {"adapter__use_dora": True}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("init", [*PLAIN, *REWRITING])
def test_the_published_adapter_equals_the_trained_one(
    settings: Callable[..., Config], tmp_path: Path, init: str, dtype: str, variant: dict[str, bool]
) -> None:
    """Before training the model equals its base, and a fresh base with the published adapter equals the trained model.

    An adapter that moved a part of the base into its weights must be converted, or it does not fit the original
    base."""
    config = settings(init, model__dtype=dtype, **variant)
    before = logits(load_base(config.model, "cpu"))
    model = start(config)
    assert difference(logits(model), before) < TOLERANCES[dtype]
    take_steps(model)
    trained = logits(model)
    assert difference(trained, before) > MOVED
    save_adapter(model, NAME, tmp_path)
    again = load_adapter(load_base(config.model, "cpu"), tmp_path)
    assert difference(logits(again), trained) < TOLERANCES[dtype]
    with again.disable_adapter():
        assert difference(logits(again), before) == 0  # loading does not change the base


@pytest.mark.parametrize("variant", [{}, {"adapter__use_rslora": True}, {"adapter__use_dora": True}])
@pytest.mark.parametrize("init", ["default", "gaussian"])
def test_quantized_base_supports_plain_initializations(
    settings: Callable[..., Config], tmp_path: Path, init: str, variant: dict[str, bool]
) -> None:
    """The same round trip works on NF4, where quantizing the same weights twice is exact."""
    config = settings(init, model__quantization="nf4", **variant)
    before = logits(load_base(config.model, "cpu"))
    model = start(config)
    assert difference(logits(model), before) < TOLERANCES["float32"]
    take_steps(model)
    trained = logits(model)
    assert difference(trained, before) > MOVED
    save_adapter(model, NAME, tmp_path)
    assert difference(logits(load_adapter(load_base(config.model, "cpu"), tmp_path)), trained) == 0


@pytest.mark.parametrize("init", ["default", "orthogonal", "olora", "pissa", "pissa_niter_16"])
def test_published_form_is_plain_lora(settings: Callable[..., Config], tmp_path: Path, init: str) -> None:
    """Loading must not initialize it again: PEFT would subtract the same part from the base again."""
    from peft import PeftModel

    config = settings(init, adapter__use_rslora=True, adapter__r=4, adapter__lora_alpha=8)
    model = start(config)
    take_steps(model)
    save_adapter(model, NAME, tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    twice = 2 if init in REWRITING else 1
    assert content["base_model_name_or_path"] == NAME
    assert content["init_lora_weights"] is True
    assert content["r"] == 4 * twice
    assert content["lora_alpha"] / content["r"] ** 0.5 == pytest.approx(8 / 4**0.5)
    assert content["target_modules"] == sorted(config.adapter.target_modules)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    loaded = PeftModel.from_pretrained(load_base(config.model, "cpu"), str(tmp_path))
    assert difference(logits(loaded), logits(model)) < TOLERANCES["float32"]


def test_the_same_seed_gives_the_same_bytes(settings: Callable[..., Config], tmp_path: Path) -> None:
    """A conversion that is not reproducible would make the complete run irreproducible."""
    for init in ("gaussian", "orthogonal", *REWRITING):
        hashes = []
        for name in ("one", "two"):
            model = start(settings(init))
            take_steps(model, steps=2)
            folder = tmp_path / init / name
            hashes.append(
                [save_adapter(model, NAME, folder), sha256_file(folder / WEIGHTS), sha256_file(folder / CONFIG)]
            )
        assert hashes[0] == hashes[1], init


def test_conversion_equals_that_of_peft(settings: Callable[..., Config], tmp_path: Path) -> None:
    """If PEFT can convert the adapter itself, tensors and scale are equal."""
    from safetensors.torch import load_file

    model = start(settings("pissa", adapter__use_rslora=True))
    model.save_pretrained(tmp_path / "start")
    take_steps(model)
    save_adapter(model, NAME, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    read = [json.loads((tmp_path / name / CONFIG).read_text(encoding="utf-8")) for name in ("ours", "theirs")]
    for key in ("r", "lora_alpha", "use_rslora", "init_lora_weights"):
        assert read[0][key] == read[1][key], key


def test_embeddings_survive_the_conversion(settings: Callable[..., Config], tmp_path: Path) -> None:
    """PEFT's own conversion silently drops their matrices, and saves the base's embeddings with them."""
    from safetensors import safe_open

    config = settings("pissa", adapter__target_modules=["q_proj", "embed_tokens"])
    model = start(config)
    take_steps(model)
    save_adapter(model, NAME, tmp_path)
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        assert all("lora_" in name for name in file.keys())  # noqa: SIM118
    again = load_adapter(load_base(config.model, "cpu"), tmp_path)
    assert difference(logits(again), logits(model)) < TOLERANCES["float32"]


@pytest.mark.parametrize("init", [*PLAIN, *REWRITING])
def test_resuming_from_a_checkpoint_gives_the_same_adapter(
    settings: Callable[..., Config], tmp_path: Path, init: str
) -> None:
    """The Trainer saves with PEFT and loads onto a base initialized again from the seed: the bits are equal."""
    model, whole = start(settings(init)), start(settings(init))
    for part in (model, whole):
        take_steps(part, steps=3)
    model.save_pretrained(tmp_path / "checkpoint")
    resumed = start(settings(init))
    resumed.load_adapter(str(tmp_path / "checkpoint"), "default", is_trainable=True)
    for part in (resumed, whole):
        take_steps(part, steps=3)
    assert save_adapter(resumed, NAME, tmp_path / "one") == save_adapter(whole, NAME, tmp_path / "two")


@pytest.mark.parametrize("init", ["olora", "pissa", "pissa_niter_16"])
def test_modifying_initialization_on_nf4_is_refused(settings: Callable[..., Config], init: str) -> None:
    """The rest of the base would be quantized again, and the adapter would fit no existing base."""
    config = settings(init, model__quantization="nf4")
    with pytest.raises(ConfigError) as caught:
        start(config)
    expected = (
        f"adapter.init_lora_weights: {init} changes the base weights, and quantizing them again would "
        "change the base; use default or gaussian, or model.quantization: none"
    )
    assert str(caught.value) == f"params.yaml: {expected}"
    assert str(find_adapter_problem(config.adapter, config.model)) == f"params.yaml: {expected}"


def test_orthogonal_initialization_needs_floats_and_an_even_rank(settings: Callable[..., Config]) -> None:
    """PEFT would raise a RuntimeError and a ValueError of its own after the base was loaded."""
    with pytest.raises(ConfigError, match=r"init_lora_weights: orthogonal is computed by PEFT .* nf4 stores integers"):
        start(settings("orthogonal", model__quantization="nf4"))
    with pytest.raises(
        ConfigError, match=r"adapter.r: 3 is odd, but init_lora_weights: orthogonal halves the rank; use 4"
    ):
        start(settings("orthogonal", adapter__r=3))


def test_rank_beyond_a_modified_matrix_is_refused(settings: Callable[..., Config]) -> None:
    """PEFT reduces the rank but writes the original one to the config, so that the adapter cannot be loaded."""
    with pytest.raises(ConfigError, match=r"adapter.r: 100 is larger than pissa can extract from .*q_proj \(64 x 64\)"):
        start(settings("pissa", adapter__r=100))


def test_adapter_on_the_loss_head_is_refused(settings: Callable[..., Config]) -> None:
    """TRL refuses it with a ValueError after loading everything: its loss uses the head's own weights."""
    config = settings(adapter__target_modules=["q_proj", "lm_head"])
    expected = "adapter.target_modules: lm_head is the LM head, whose adapter TRL's loss would bypass; "
    expected += "remove it; adapter.modules_to_save can train it completely"
    with pytest.raises(ConfigError) as caught:
        start(config)
    assert str(caught.value) == f"params.yaml: {expected}"


def test_every_other_combination_is_allowed(settings: Callable[..., Config]) -> None:
    """The check must not refuse valid combinations."""
    for init in (*PLAIN, *REWRITING):
        config = settings(init)
        assert find_adapter_problem(config.adapter, config.model) is None
    model: ModelConfig = settings(model__quantization="nf4").model
    adapters: list[AdapterConfig] = [settings(init, adapter__r=3).adapter for init in ("default", "gaussian")]
    assert [find_adapter_problem(adapter, model) for adapter in adapters] == [None, None]


def test_adapter_of_another_base_is_refused(settings: Callable[..., Config], tmp_path: Path) -> None:
    """The error is one line instead of PEFT's list of every tensor."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = settings("pissa")
    save_adapter(start(config), NAME, tmp_path)
    other = AutoConfig.from_pretrained(config.model.base)
    other.hidden_size = 128
    with pytest.raises(DataError, match="does not fit the base") as caught:
        load_adapter(AutoModelForCausalLM.from_config(other), tmp_path)
    assert "\n" not in str(caught.value)
