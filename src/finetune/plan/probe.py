"""A short probe of this machine: train real layers of the architecture with random weights for a few micro-batches.

All layers are alike, so two layers of full width are enough to measure the device's speed, without the real weights.
The micro-batch grows until it takes a second or reaches the run's own size.
"""

import copy
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune.config.train import TrainParams
from finetune.errors import MachineError
from finetune.hardware.devices import require_device, synchronize
from finetune.model.adapter import add_adapter
from finetune.model.architecture import measure_architecture
from finetune.model.base import load_base
from finetune.model.base_config import find_base_config
from finetune.model.language import find_language_model
from finetune.model.quantization import FOUR_BITS, bits_of_linears, find_method, forget_quantization
from finetune.plan.time import flops_per_position

LAYERS, VOCABULARY = 2, 1024  # the head is left out: its share of the work is computed separately
REPETITIONS = 5
ENOUGH_SECONDS = 1.0
SHORTEST = 32  # tokens


def measure_throughput(params: TrainParams, root: Path, length: int) -> tuple[float, float]:
    """Return the slowest and fastest training throughput of one device in floating-point operations per second.

    `length` is the number of tokens of a typical row. Raises MachineError if this machine lacks the recipe's device.
    """
    device = require_device(params.environment)
    with TemporaryDirectory(dir=_scratch(root)) as folder:
        layers, model = _build(params, root, Path(folder), device)
    micro, tokens = params.train.per_device_train_batch_size, min(SHORTEST, length)
    _step(model, micro, tokens, params)  # warms up caches and kernels
    while tokens < length and _step(model, micro, tokens, params) < ENOUGH_SECONDS:
        tokens = min(2 * tokens, length)
    work = micro * tokens * flops_per_position(layers, params.train, tokens)
    seconds = [_step(model, micro, tokens, params) for _ in range(REPETITIONS)]
    return work / max(seconds), work / min(seconds)


def _scratch(root: Path) -> Path:
    folder = root / "work/probe"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _build(params: TrainParams, root: Path, folder: Path, device: str) -> tuple[Any, Any]:
    """Build the layers with their adapter on the device, as train would; also return their architecture."""
    import torch

    language = find_language_model(copy.deepcopy(find_base_config(params.model, root)))
    small = language.text
    small.num_hidden_layers, small.vocab_size = LAYERS, VOCABULARY
    stored = bits_of_linears(params.model, find_method(language.config))
    forget_quantization(small, language.config)
    small.bos_token_id, small.eos_token_id, small.pad_token_id = None, 1, 0
    if getattr(small, "layer_types", None):
        small.layer_types = list(small.layer_types)[:LAYERS]
    try:
        base = language.auto_class.from_config(language.config, dtype=torch.bfloat16, trust_remote_code=False)
        base.save_pretrained(folder)
        del base
        held = "none" if stored is None else "nf4" if stored <= FOUR_BITS else "int8"
        changes = {"base": str(folder), "revision": None, "add_tokens": (), "quantization": held}
        adapter = params.adapter.model_copy(update={"layers_to_transform": None, "trainable_token_indices": ()})
        trained = add_adapter(load_base(params.model.model_copy(update=changes), device), adapter)
    except (MemoryError, torch.OutOfMemoryError):
        raise MachineError(
            "", f"two layers of {params.model.base} don't fit on this machine, so it can't be probed"
        ) from None
    if params.train.activation_checkpointing:
        trained.enable_input_require_grads()
        trained.activation_checkpointing_enable({"use_reentrant": False})
    return measure_architecture(language.config), trained.train()


def _step(model: Any, micro: int, tokens: int, params: TrainParams) -> float:
    """Return the seconds of one micro-batch, forward and backward."""
    import torch

    ids = torch.randint(2, VOCABULARY, (micro, tokens), device=next(model.parameters()).device)
    number_format = torch.bfloat16 if params.train.bf16 else torch.float16
    synchronize(params.environment)
    started = time.perf_counter()
    with torch.autocast(ids.device.type, number_format, enabled=params.train.bf16 or params.train.fp16):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    synchronize(params.environment)
    return time.perf_counter() - started
