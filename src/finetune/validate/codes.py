"""Every finding that validate can make: its code, how severe it is, what it costs when nobody acts, what it means.

`docs/findings.md` is this table as a page (`finetune findings` prints it). A code never changes its meaning:
params.yaml names codes in `findings.accept`.
"""

from dataclasses import dataclass
from typing import Literal

from finetune.console import markdown_table

Severity = Literal["error", "warning", "note"]
Cost = Literal["run", "verdict", "time", "quality", "nothing"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
COSTS: dict[Cost, str] = {
    "run": "the whole run",
    "verdict": "what the verdict is worth",
    "time": "time or money",
    "quality": "some of the quality",
    "nothing": "nothing",
}


@dataclass(frozen=True, slots=True)
class Code:
    """What one code stands for; `binding` ones can't be accepted, for no run could follow."""

    severity: Severity
    cost: Cost
    meaning: str
    binding: bool = False
    in_params: bool = True  # a key of params.yaml is at fault; else the rows, or the disk


CODES: dict[str, Code] = {
    # ---- the base model, its tokenizer and its template
    "base-missing": Code("error", "run", "Neither a local folder nor the cache holds the base.", binding=True),
    "base-unpinned": Code("error", "run", "The same name may be another model tomorrow.", binding=True),
    "file-unwatched": Code("error", "verdict", "DVC does not see when this file changes: old results would stand."),
    "base-class-unknown": Code("error", "run", "The base's config describes no model that can be built.", binding=True),
    "base-incomplete": Code("error", "run", "A file of the base is missing, cut off or damaged.", binding=True),
    "base-unsafe": Code("error", "run", "Only pickled weights are there; safetensors alone are loaded.", binding=True),
    "template-missing": Code("error", "run", "Without a chat template messages are no tokens.", binding=True),
    "template-broken": Code("error", "run", "The template does not render these messages.", binding=True),
    "template-unmarked": Code("error", "run", "Nothing says which tokens the assistant wrote.", binding=True),
    "template-foreign": Code("error", "quality", "The template's marks are no tokens of this tokenizer."),
    "end-token-unknown": Code("error", "quality", "Generation does not stop where the template ends an answer."),
    "pad-missing": Code("error", "run", "Rows of a batch can't be made equally long.", binding=True),
    "pad-is-end": Code("note", "nothing", "Harmless here, where labels come from the template and not from ids."),
    "tokens-without-embeddings": Code("error", "run", "A token id has no row in the base's embeddings.", binding=True),
    "tokens-untrained": Code("warning", "quality", "A mark of the template has an embedding that was never trained."),
    "length-beyond-base": Code("error", "quality", "Positions that the base has never seen."),
    "quantization-shape": Code("error", "run", "bitsandbytes has no 4-bit CPU kernel for such a layer.", binding=True),
    # ---- the adapter
    "target-modules-missing": Code("error", "run", "A target module is nowhere in the architecture.", binding=True),
    "target-modules-partial": Code("note", "quality", "Layers of the base that get no adapter."),
    "alpha-unusual": Code("warning", "quality", "The adapter's scale is outside what is known to train well."),
    "learning-rate-high": Code("warning", "run", "Above the usual range for this method, runs tend to diverge."),
    "learning-rate-low": Code("warning", "quality", "Below the usual range for this method, little is learnt."),
    # ---- the schedule
    "warmup-too-long": Code("error", "quality", "The learning rate never reaches its peak."),
    "warmup-long": Code("warning", "quality", "Most of the run is below its learning rate."),
    "warmup-ignored": Code("warning", "nothing", "The schedule has no warmup."),
    "logging-never": Code("error", "quality", "No curve is drawn."),
    "eval-never": Code("error", "quality", "The validation loss is not watched."),
    "save-never": Code("error", "run", "A killed run starts from nothing."),
    "best-checkpoint-unknown": Code("error", "run", "Saves without an evaluation; the trainer refuses.", binding=True),
    "early-stopping-keeps-last": Code("error", "quality", "What is kept is the checkpoint that was worse."),
    "early-stopping-never": Code("warning", "time", "The patience is longer than the run."),
    "last-batch-partial": Code("note", "nothing", "The last step of an epoch averages over fewer examples."),
    "effective-batch-differs": Code("error", "quality", "The run is another one than effective_batch_size says."),
    # ---- the machine
    "device-missing": Code("warning", "time", "This machine can't run the recipe; another one can."),
    "devices-missing": Code("warning", "time", "This machine has fewer devices than the run is spread over."),
    "memory-short": Code("error", "run", "The predicted peak is more than this machine has."),
    "memory-tight": Code("warning", "run", "The predicted peak is within a tenth of what this machine has."),
    "this-machine-short": Code("warning", "time", "This machine has less memory than the one the recipe is for."),
    "disk-short": Code("error", "run", "Checkpoints and caches need more than is free.", in_params=False),
    "optimizer-needs-cuda": Code("error", "run", "8-bit optimizers have no kernels off CUDA.", binding=True),
    "optimizer-needs-deepspeed": Code("error", "run", "DeepSpeed offloads its own optimizer only.", binding=True),
    "fp16-needs-cuda": Code("error", "run", "fp16's loss scaling exists on CUDA alone.", binding=True),
    "bf16-unsupported": Code("error", "run", "This device computes no bfloat16.", binding=True),
    "bf16-slow": Code("warning", "time", "This processor emulates bfloat16."),
    "tf32-unsupported": Code("error", "run", "tf32 exists on CUDA devices from Ampere on.", binding=True),
    "dtype-slow": Code("warning", "time", "CPUs compute float16 slowly, where they can."),
    "float32-weights-large": Code("warning", "time", "Frozen weights in 32 bit take twice the memory for nothing."),
    "attention-needs-cuda": Code("error", "run", "flash_attention_2 has CUDA kernels alone.", binding=True),
    "attention-dtype": Code("error", "run", "flash_attention_2 computes in 16 bit alone.", binding=True),
    "attention-missing": Code("warning", "time", "No flash-attention is installed here."),
    "attention-fallback": Code("note", "time", "auto finds no flash attention here and takes sdpa."),
    "liger-needs-cuda": Code("error", "run", "Liger's fused kernels are Triton's, for CUDA.", binding=True),
    "liger-missing": Code("error", "run", "The package liger-kernel is not installed here.", binding=True),
    "tracker-missing": Code("warning", "run", "A tracker that is asked for is not installed here."),
    "quantization-slow": Code("warning", "time", "4-bit weights on a Mac go through fallbacks."),
    "adapter-impossible": Code("error", "run", "This kind of adapter can't be trained on this base.", binding=True),
    "quantization-strategy": Code("error", "run", "4-bit weights can't be sharded this way.", binding=True),
    "quantization-needless": Code("note", "time", "16-bit weights would fit, and need no dequantization."),
    "checkpointing-needless": Code("warning", "time", "Activations are computed twice though they would fit."),
    "strategy-needs-cuda": Code("error", "run", "Only DDP runs on CPUs, and nothing on several Macs.", binding=True),
    "strategy-needless": Code("warning", "nothing", "A strategy for many devices on one."),
    "strategy-missing": Code("warning", "run", "The package that this strategy needs is not installed here."),
    "offload-ignored": Code("warning", "run", "An option that this strategy does not read; memory stays as it is."),
    "evaluations-costly": Code("warning", "time", "Evaluations take a good part of the run."),
    "effective-batch-changed": Code("warning", "quality", "The learning rate was chosen for another batch size."),
    "dtype-unscaled": Code("warning", "quality", "float16 gradients vanish without loss scaling."),
    "packing-slow": Code("warning", "time", "Without flash-attention a packed row has a square mask."),
    "packing-ignores-sampling": Code("note", "nothing", "Packed rows are all alike in length."),
    # ---- the rows
    "split-overlap": Code("error", "verdict", "A held-out row is trained on whole.", binding=True, in_params=False),
    "split-same-prompt": Code(
        "error", "verdict", "A tested prompt is trained on, with another answer.", binding=True, in_params=False
    ),
    "split-near-overlap": Code("warning", "verdict", "A held-out row is nearly one that is trained on."),
    "test-near-overlap": Code("error", "verdict", "A test row is nearly one that is trained on.", in_params=False),
    "split-empty": Code("error", "run", "Nothing is left in a split.", binding=True, in_params=False),
    "test-prompts-repeated": Code("warning", "verdict", "Copies of a prompt are no new evidence."),
    "test-prompts-mostly-repeated": Code("error", "verdict", "Over 5% of test prompts are copies.", in_params=False),
    "test-set-too-small": Code("warning", "verdict", "Too few test examples for a criterion, even if all are right."),
    "test-set-tiny": Code("warning", "verdict", "A criterion on fewer than 20 examples: each of them moves the score."),
    "group-unknown": Code("error", "verdict", "A criterion on a group that no test example is of."),
    "scorer-unusable": Code("error", "verdict", "A scorer or forgetting test that can score nothing.", binding=True),
    "group-ambiguous": Code("error", "verdict", "An agent and a source of one name and other examples.", binding=True),
    "agents-imbalanced": Code("warning", "quality", "One agent has over twenty times the rows of another."),
    "agent-missing": Code("error", "quality", "An agent that is tested was never trained on.", in_params=False),
    "labels-imbalanced": Code("warning", "quality", "One label has over twenty times the rows of another."),
    "label-missing-in-train": Code("error", "quality", "A label that is tested was never trained on.", in_params=False),
    "label-missing-in-test": Code("warning", "verdict", "A label that is trained on is never tested."),
    "answers-constant": Code("warning", "verdict", "One answer is right for over four in five rows."),
    "answers-repeated": Code("note", "quality", "Long answers that stand in many rows, letter by letter."),
    "language-shift": Code("warning", "verdict", "Test rows are in other scripts or words than train rows."),
    "length-shift": Code("warning", "verdict", "Test rows are of another length than those trained on."),
    "system-prompt-unused": Code("warning", "quality", "A system prompt for an agent that no row is of."),
    # ---- the tokens
    "mask-empty": Code("error", "run", "No token at all is trained on.", binding=True),
    "mask-wrong": Code("error", "run", "What is trained on is not what the assistant wrote."),
    "end-token-unsupervised": Code("error", "run", "The model never learns to stop."),
    "special-tokens-in-text": Code("warning", "quality", "A text that the tokenizer turns into control tokens."),
    "rows-truncated": Code("warning", "quality", "Rows are longer than max_length."),
    "rows-without-supervision": Code("warning", "quality", "Rows whose answers are cut off whole are left out."),
    "truncated-over-budget": Code("error", "quality", "More rows are cut than train.budget allows."),
    "end-tokens-over-budget": Code("error", "quality", "More rows lose their end than train.budget allows."),
    "supervised-over-budget": Code("error", "quality", "More answer tokens are cut than train.budget allows."),
    "padding-over-budget": Code("error", "time", "More positions are padding than train.budget allows."),
    "answers-cut-off": Code("warning", "verdict", "Test answers that max_new_tokens makes impossible."),
    "prompts-beyond-base": Code("error", "verdict", "Test prompts that leave no room for an answer.", in_params=False),
    # ---- what params.yaml accepts
    "accepted-unknown": Code("error", "nothing", "findings.accept names no code, or a binding one.", binding=True),
    "accepted-unused": Code("note", "nothing", "findings.accept names what was not found."),
}


def to_reference() -> str:
    """The reference page of all codes, as Markdown."""
    lines = [
        "# Findings of validate",
        "",
        "Each finding has a code that never changes its meaning, the place, the numbers, and the line to change. An",
        "error stops the run, a warning and a note do not. To go on in spite of a finding, name its code and your",
        "reason:",
        "",
        "```yaml",
        "findings:",
        "  accept:",
        "    warmup-too-long: the learning rate is meant to rise all the way",
        "```",
        "",
        "The report then lists it as accepted, with the reason. Codes marked *binding* can't be accepted: no run could",
        "follow. Findings are listed in the order of severity, then of what they cost.",
    ]
    for severity in SEVERITIES:
        chosen = [(list(COSTS).index(code.cost), name) for name, code in CODES.items() if code.severity == severity]
        codes = [(name, CODES[name]) for _, name in sorted(chosen)]
        marks = {True: " *Binding.*", False: ""}
        rows = [[f"`{name}`", COSTS[code.cost], code.meaning + marks[code.binding]] for name, code in codes]
        lines += ["", f"## {severity.capitalize()}s", ""]
        lines += markdown_table(["code", "what it costs", "what it means"], rows)
    return "\n".join(lines) + "\n"
