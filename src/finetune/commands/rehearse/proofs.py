"""Proofs that the rehearsal computes itself: functions that return an observation and whether it held."""

import json
from typing import Any

from finetune.config.params import Config
from finetune.config.train import TrainConfig
from finetune.files.manifests import read_manifest
from finetune.model.adapter import CONFIG, WEIGHTS, load_adapter
from finetune.model.base import load_base
from finetune.model.language import find_language_model
from finetune.model.packing import TOLERANCE, packed_difference
from finetune.model.tokens import IGNORED, load_tokenizer, runs, tokenize
from finetune.paths import Paths
from finetune.records.io import read_examples
from finetune.reports.base import read_report
from finetune.reports.validation import Schedule, ValidationReport

ROUNDING = 1e-5  # of sums in float32, relative to their terms


def replay_schedule(train: TrainConfig, schedule: Schedule) -> dict[str, Any]:
    """Replay the steps of the real run through transformers' scheduler and control flow, without a model."""
    import tempfile

    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments, get_scheduler
    from transformers.trainer_callback import DefaultFlowCallback

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=train.learning_rate)
    scheduler = get_scheduler(train.lr_scheduler_type, optimizer, schedule.warmup_steps, schedule.steps)
    with tempfile.TemporaryDirectory() as folder:
        steps = {"logging_steps": train.logging_steps, "eval_steps": train.eval_steps, "save_steps": train.save_steps}
        arguments = TrainingArguments(folder, eval_strategy="steps", save_strategy="steps", use_cpu=True, **steps)
    state, control, flow = TrainerState(max_steps=schedule.steps), TrainerControl(), DefaultFlowCallback()
    state.compute_steps(arguments, schedule.steps)
    seen = {"logs": 0, "evaluations": 0, "saves": 0}
    peak = 0.0
    for step in range(1, schedule.steps + 1):
        peak = max(peak, scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        state.global_step = step
        control = flow.on_step_end(arguments, state, control)
        for name, happens in zip(seen, (control.should_log, control.should_evaluate, control.should_save), strict=True):
            seen[name] += bool(happens)
        control._new_step()
    return {"steps": schedule.steps, "peak_learning_rate": peak, **seen}


def decode_mask(config: Config, paths: Paths) -> tuple[str, bool]:
    """Return one training example as the model receives it, with supervised text in brackets."""
    tokenizer = load_tokenizer(config.model)
    counts = read_report(paths.reports / "validation.json", ValidationReport).tokens["train"]
    example = read_examples(paths.prepared / "train.jsonl")[0]
    whole = tokenize(tokenizer, example.messages, example.tools)
    shown, at = [], 0
    for begin, end in runs([label != IGNORED for label in whole.labels]):
        shown += [
            tokenizer.decode(whole.input_ids[at:begin]),
            "【" + tokenizer.decode(whole.input_ids[begin:end]) + "】",
        ]
        at = end
    text = "".join([*shown, tokenizer.decode(whole.input_ids[at:])]).replace("\n", " ⏎ ")
    return f"{counts.supervised_tokens} tokens of {counts.examples} examples; first example: {text}", True


def check_packing(config: Config, paths: Paths) -> tuple[str, bool]:
    """Check that packed examples do not attend to each other: largest change of a logit by a neighbour, in float32."""
    tokenizer = load_tokenizer(config.model)
    plain = config.model.model_copy(update={"dtype": "float32", "quantization": "none"})
    device = "cuda" if config.environment == "cuda" else "cpu"
    model = load_base(plain, device).eval()
    examples = read_examples(paths.prepared / "train.jsonl")
    first, second = (tokenize(tokenizer, example.messages, example.tools).input_ids for example in examples[:2])
    difference = packed_difference(model, first, second)
    return f"a packed neighbour changes logits by {difference:.1e}", difference <= TOLERANCE


def check_adapter(config: Config, paths: Paths) -> tuple[str, bool]:  # noqa: ARG001 - all proofs take both
    """Report for each target module how many layers have it and in how many it was trained (B A is not zero)."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(paths.adapter / WEIGHTS)
    content = json.loads((paths.adapter / CONFIG).read_text(encoding="utf-8"))
    firsts = sorted(key for key in weights if ".lora_A" in key)
    names = [key.split(".lora_A")[0].removesuffix(".base_layer").rsplit(".", 1)[-1] for key in firsts]
    asked = [] if isinstance(content["target_modules"], str) else content["target_modules"]
    coverage = dict.fromkeys((name.rsplit(".", 1)[-1] for name in asked), (0, 0))
    for name, key in zip(names, firsts, strict=True):
        trained, layers = coverage.get(name, (0, 0))
        pair = weights[key].float(), weights[key.replace("lora_A", "lora_B")].float()
        coverage[name] = trained + adds_something(*pair), layers + 1
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    text = ", ".join(f"{name} {trained}/{layers}" for name, (trained, layers) in coverage.items())
    return text, finite and all(layers and layers == trained for trained, layers in coverage.values())


def adds_something(first: Any, second: Any) -> bool:
    """Return whether B A exceeds the rounding of its terms: some initializations have a zero product only."""
    return bool((second @ first).norm() > ROUNDING * second.norm() * first.norm())


def load_in_plain_peft(config: Config, paths: Paths) -> tuple[str, bool]:
    """Load the adapter with PEFT alone and with our loader; check that both agree and differ from the base model."""
    import torch
    from peft import PeftModel
    from transformers import AutoConfig

    read_manifest(paths.adapter)  # DataError unless every file is as published
    plain = config.model.model_copy(update={"dtype": "float32", "quantization": "none"})
    language = find_language_model(AutoConfig.from_pretrained(config.model.base))
    base = language.auto_class.from_pretrained(config.model.base, dtype=torch.float32, use_safetensors=True)
    peft = PeftModel.from_pretrained(base, str(paths.adapter)).eval()
    ours = load_adapter(load_base(plain, "cpu"), paths.adapter)
    tokenizer = load_tokenizer(config.model, paths.adapter)
    example = read_examples(paths.prepared / "test.jsonl")[0]
    ids = torch.tensor([tokenize(tokenizer, example.messages, example.tools).input_ids])
    with torch.inference_mode():
        theirs, mine = peft(input_ids=ids).logits, ours(input_ids=ids).logits
        with peft.disable_adapter():
            without = peft(input_ids=ids).logits
    to_ours, to_base = float((theirs - mine).abs().max()), float((theirs - without).abs().max())
    text = f"logits differ by {to_ours:.1e} from ours, {to_base:.1e} from the base"
    return text, to_ours < TOLERANCE and to_base > 0
