"""The bytes that a training step keeps and temporarily needs, computed from an architecture's dimensions.

What autograd keeps for the backward pass is counted tensor by tensor, as torch's saved-tensor hooks show it
(tests/plan/test_memory.py compares the two). Frozen linear layers keep nothing, because no gradient of their weights is
needed. Norms, attention and the products of the MLP keep tensors, and every adapter keeps its own input.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from finetune.config.kernels import is_flash
from finetune.config.model import AdapterConfig, Environment, ModelConfig
from finetune.config.train import TrainConfig
from finetune.model.architecture import Architecture, Layers
from finetune.model.quantization import bits_of_linears
from finetune.model.targets import Targets, find_targets, trainable_parameters, trained_rows

WIDE, NARROW = 4, 2  # bytes of a float32, of a bfloat16 or float16
MAPPED = 32 * 2**20  # bytes from which glibc always uses mmap (DEFAULT_MMAP_THRESHOLD_MAX, malloc/malloc.c)
TILE_TOKENS, TILE_VOCABULARY = 4096, 32_768  # of TRL's chunked loss head (trl.kernels.chunked_logprob, trainer.utils)


@dataclass(frozen=True)
class Run:
    """The inputs of the computations below."""

    architecture: Architecture
    model: ModelConfig
    adapter: AdapterConfig
    train: TrainConfig
    environment: Environment
    batch: int
    length: int
    supervised: int
    ranks: int

    @property
    def tokens(self) -> int:
        """The positions that a micro-batch computes, including padding."""
        return self.batch * self.length

    @property
    def row(self) -> int:
        """The positions that attend to each other: packing turns the entire micro-batch into one row."""
        return self.tokens if self.train.packing else self.length

    @property
    def masked(self) -> bool:
        """Whether attention needs a mask: for several padded rows, or to separate packed ones."""
        return self.batch > 1 or self.train.packing

    @property
    def autocast(self) -> bool:
        """Whether matrix products use 16 bits regardless of the weights' format (mixed precision)."""
        return self.train.bf16 or self.train.fp16

    @property
    def bits(self) -> int | None:
        """The bits of a quantized weight; None if the base is not quantized."""
        return bits_of_linears(self.model, self.architecture.quantized)

    @property
    def weight_size(self) -> int:
        """The bytes of an unquantized weight."""
        return WIDE if self.model.dtype == "float32" else NARROW

    @property
    def size(self) -> int:
        """The bytes of an activation inside a layer."""
        return NARROW if self.autocast else self.weight_size

    @property
    def lora_size(self) -> int:
        """The bytes of an adapter's input; its weights are float32: PEFT casts the input up, autocast down again."""
        return NARROW if self.autocast else WIDE

    @cached_property
    def targets(self) -> Targets:
        """The parts of the base that are trained."""
        return find_targets(self.architecture, self.adapter)

    @property
    def trained(self) -> int:
        """The number of trained parameters."""
        return trainable_parameters(self.architecture, self.adapter, len(self.model.add_tokens))

    def of_adapted(self, layers: Layers, size: int) -> int:
        """Return a size for the average of these layers, if it applies only to those with an adapter."""
        return size * self.targets.adapted(layers) // layers.count

    def shares(self, *names: str) -> bool:
        """Return whether one of these layers has an adapter, wherever in the model."""
        return any(layers.name in names for layers in self.targets.layers)


# ------------------------------------------------------------------------------------------- kept for the backward pass


def attention_saved(run: Run) -> int:
    """Return the bytes per token that attention keeps: queries, keys, values, output or probabilities, mask."""
    shape = run.architecture
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if run.model.attention == "eager":  # keys and values for all heads, the float32 softmax and its 16-bit copy
        probabilities = shape.heads * run.row * (WIDE + (NARROW if run.size == NARROW else 0))
        return 3 * queries * run.size + probabilities
    repeated = run.masked and run.model.attention == "sdpa"  # with a mask, sdpa repeats keys and values for all heads
    kept = (2 * queries + 2 * (queries if repeated else keys)) * run.size + shape.heads * WIDE  # and a log-sum per head
    return kept + (run.row * run.size if repeated else 0)  # the additive mask, created anew in every layer


def lora_saved(run: Run, linear: Layers) -> int:
    """Return the bytes per token that an adapter keeps: its input after dropout, mask, middle; DoRA's outputs."""
    kept = linear.inputs * run.lora_size + run.adapter.r * run.lora_size
    if run.adapter.lora_dropout:
        kept += linear.inputs * (1 if run.environment == "cuda" else WIDE)  # CUDA keeps booleans, other devices numbers
    elif run.size == WIDE:
        kept -= linear.inputs * WIDE  # nothing was cast or dropped: all adapters share the layer's own tensor
    if run.adapter.use_dora:
        kept += 2 * linear.outputs * (WIDE if run.adapter.lora_dropout else run.size)
    return run.of_adapted(linear, kept)


def token_saved(run: Run) -> tuple[int, int]:
    """Return the bytes per token that one decoder layer keeps, in tensors of the MLP's width and in others."""
    shape = run.architecture
    others = 2 * (shape.hidden + 1) * WIDE  # two norms: their input in float32 and the reciprocal root
    others += attention_saved(run)
    wide = 3 * shape.intermediate * run.size  # gate, its activation, up
    if not run.adapter.lora_dropout and run.size == WIDE:  # the tensors that the adapters share are counted once
        shared = run.shares("q_proj", "k_proj", "v_proj") + run.shares("gate_proj", "up_proj")
        heads = shape.heads * shape.head_dim * (run.shares("o_proj") and run.model.attention == "eager")
        others += (shape.hidden * shared + heads) * WIDE
        wide += shape.intermediate * WIDE * run.shares("down_proj")
    for linear in run.architecture.linears:
        if linear.inputs == shape.intermediate:
            wide += lora_saved(run, linear)
        else:
            others += lora_saved(run, linear)
    return wide, others


def layer_saved(run: Run) -> int:
    """Return the bytes that one decoder layer keeps for its backward pass."""
    return run.tokens * sum(token_saved(run)) + weights_saved(run)


def weights_saved(run: Run) -> int:
    """Return the bytes of weights that one layer's graph holds in addition to the base and the adapter.

    Autocast makes a 16-bit copy of every float32 weight, and the graph keeps it, because autocast does not cache frozen
    weights. DoRA with dropout multiplies by a float32 copy of each target's weight.
    """
    held = 0
    plain = run.model.dtype == "float32" and run.bits is None
    for linear in run.architecture.linears:
        size = linear.inputs * linear.outputs
        if run.autocast and plain:
            held += size * NARROW
        adapted = run.adapter.r * (linear.inputs + linear.outputs) * NARROW * run.autocast
        dora = run.adapter.use_dora and run.adapter.lora_dropout > 0
        adapted += size * run.lora_size * (dora and (run.autocast or not plain))
        adapted += 3 * linear.outputs * WIDE * run.adapter.use_dora  # norm, quotient, quotient minus 1
        held += run.of_adapted(linear, adapted)
    return held + adapted_experts(run)


def adapted_experts(run: Run) -> int:
    """Return the bytes of one layer's experts with their adapters added, for which PEFT makes complete new weights."""
    layers = max(run.architecture.layers, 1)
    return sum(experts.parameters for experts in run.targets.experts) * run.weight_size // layers


def saved_bytes(run: Run) -> int:
    """Return the bytes that autograd holds when the backward pass begins."""
    shape = run.architecture
    end = run.tokens * shape.hidden * (WIDE + run.size)  # the last norm's input, and the hidden states
    if not run.train.activation_checkpointing:
        return shape.layers * layer_saved(run) + end
    stream = WIDE if run.autocast and run.weight_size == WIDE else run.size
    return shape.layers * run.tokens * shape.hidden * stream + end  # each layer's input, but no tensors inside


def head_gradient_bytes(run: Run) -> int:
    """Return the bytes for training the head's weights: a copy with the trained rows, and a gradient of all rows.

    TRL computes it in float32 and casts it; PEFT copies the complete weights even if few rows are trained.
    """
    shape = run.architecture
    size = shape.vocabulary * shape.hidden
    copied = run.weight_size if trained_rows(shape, run.adapter, len(run.model.add_tokens)) else 0
    end = shape.embeddings if shape.tied else shape.head
    trained = any(path == end for path, _ in run.targets.saved)
    return size * (2 * copied + WIDE) if copied else size * WIDE * trained


# ---------------------------------------------------------------------------------------------------- temporary memory


def loss_head_bytes(run: Run, supervised: int, *, backward: bool) -> int:
    """Return the bytes of TRL's chunked loss head: a tile of logits and the values computed from it.

    Triton computes a tile in place on CUDA. Elsewhere torch uses complete tiles in float32: three at once in the
    forward pass, seven and a boolean one in the backward pass (`_backward_tile`: y, z, log p, p, grad and two terms).
    """
    shape = run.architecture
    rows, columns = min(supervised, TILE_TOKENS), min(shape.vocabulary, TILE_VOCABULARY)
    hidden = supervised * shape.hidden * (run.size + (WIDE + run.size if backward else 0))
    cast = columns * shape.hidden * run.size if run.size != run.weight_size else 0
    if run.environment == "cuda":
        return rows * TILE_VOCABULARY * run.size + hidden + cast
    tile = rows * columns
    product = tile * WIDE + columns * shape.hidden * WIDE if run.size == NARROW else 0  # both factors in float32
    fold = int(tile * WIDE * (7.25 if backward else 3.5))
    return tile * run.size + max(fold, product if backward else 0) + hidden + cast


def backward_bytes(run: Run) -> int:
    """Return the additional bytes of a layer's backward pass: gradients of the widest tensor, and a complete weight."""
    shape = run.architecture
    needed = run.tokens * shape.intermediate * (run.lora_size + run.size)
    if run.model.attention == "eager":
        needed = max(needed, run.tokens * shape.heads * run.row * (2 * WIDE + run.size))
    if run.bits:
        needed += max(linear.inputs * linear.outputs for linear in run.architecture.linears) * run.weight_size
    return needed + dora_bytes(run) + adapted_experts(run)


def dora_bytes(run: Run) -> int:
    """Return the bytes of DoRA's norm in one layer: an identity matrix, the product A B, its scaled copy, the sum."""
    if not run.adapter.use_dora:
        return 0
    return max((x.inputs**2 + 3 * x.inputs * x.outputs) * WIDE for x in run.architecture.linears)


def forward_bytes(run: Run) -> int:
    """Return the bytes of a forward pass that keeps nothing: peak of the MLP (four of its tensors) or of attention."""
    shape = run.architecture
    wide = shape.intermediate * (2 * run.size + 2 * run.lora_size) + 4 * shape.hidden * run.size
    scores = shape.heads * run.row * 3 * WIDE if run.model.attention == "eager" else 0
    mask = run.row * (1 + run.size) if run.masked and not is_flash(run.model.attention) else 0
    dequantized = 0
    if run.bits:
        dequantized = max(linear.inputs * linear.outputs for linear in run.architecture.linears) * run.weight_size
    return run.tokens * (max(wide, scores) + mask) + dequantized + dora_bytes(run)


def heap_slack(run: Run) -> int:
    """Return the bytes of the C library's heap that a CPU run holds but cannot use, on Linux.

    glibc's heap holds tensors under 32 MiB (larger ones are mapped, and returned at once). Aligned requests of equal
    size do not fit into each other's holes once a small object occupies part of them (glibc 2.36, _int_memalign), so
    temporary tensors of a forward pass leave holes, in proportion to the memory that passes through all layers: what
    they keep, or would keep with dropout. Measured on base models of 8, 12 and 18 layers: 0.43 to 0.56 of that; with
    activation checkpointing, which frees it and runs every layer twice, 0.27 to 0.85, and 0.50 and 0.63 in two runs of
    one case. With every tensor mapped (MALLOC_MMAP_THRESHOLD_=1048576) there is no such loss, but steps take 20% to 80%
    longer.
    """
    shape = run.architecture
    dropping = run.adapter.model_copy(update={"lora_dropout": run.adapter.lora_dropout or 0.05})
    wide, others = token_saved(replace(run, adapter=dropping))
    if run.bits:  # PEFT copies the output of a 4-bit layer
        others += sum(run.of_adapted(linear, linear.outputs) for linear in run.architecture.linears) * run.size
    # With more tokens they are mapped; the previous size of the heap is kept as an unmeasured bound.
    widest, usual = (MAPPED // (width * WIDE) for width in (shape.intermediate, shape.hidden))
    passing = wide * min(run.tokens, widest) + others * min(run.tokens, usual)
    share = 0.62 if run.train.activation_checkpointing else 0.48
    return int(share * shape.layers * passing)
