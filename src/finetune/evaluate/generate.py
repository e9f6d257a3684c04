"""Generate answers in batches of similar length, and compute the likelihood of references and labels."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune.config.evaluate import SamplingConfig
from finetune.evaluate.answers import batches_by_length
from finetune.hardware.failures import is_out_of_memory
from finetune.model.tokens import IGNORED, Tokenized

# A base model's generation_config.json is ignored except for its end tokens. Other settings in it, such as a repetition
# penalty, would affect the sides differently: both use greedy decoding, or sampling as set in params.yaml.
UNUSED = (
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("sequence_bias", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "guidance_scale"),
    *("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "renormalize_logits"),
    *("min_length", "min_new_tokens", "max_time", "stop_strings", "token_healing", "watermarking_config"),
    *("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp"),
)

PLAIN = {**dict.fromkeys(UNUSED), "num_return_sequences": 1, "return_dict_in_generate": False}


@dataclass(frozen=True, slots=True)
class Generated:
    """The new tokens of one prompt, without the end token; `finished` states whether it was reached."""

    tokens: list[int]
    finished: bool


class FirstToken:
    """Records the time of an answer's first token: transformers passes the prompt first, then each token."""

    def __init__(self) -> None:
        self.calls = 0
        self.at: float | None = None

    def put(self, value: Any) -> None:  # noqa: ARG002
        """Record the time at the second call; the first one passes the prompt."""
        self.calls += 1
        if self.calls == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        """Do nothing, since no output is buffered."""


def generation_settings(
    model: Any, tokenizer: Any, max_new_tokens: int, sampling: SamplingConfig | None = None
) -> dict[str, Any]:
    """Return a side's settings for `generate` and the report: the template's end tokens, greedy or sampled decoding."""
    ends = model.generation_config.eos_token_id
    known = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p} if sampling else {}
    return {
        "do_sample": False,
        **how,
        "num_beams": 1,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": sorted(token for token in known if token is not None),
        "pad_token_id": tokenizer.pad_token_id,
    }


def generate(
    model: Any, prompts: Sequence[list[int]], settings: dict[str, Any], streamer: Any = None
) -> list[Generated]:
    """Generate the answers to one batch of prompts (token ids), padded on the left."""
    input_ids, mask = pad_left(prompts, settings["pad_token_id"], model.device)
    with torch.inference_mode():
        output = model.generate(input_ids=input_ids, attention_mask=mask, streamer=streamer, **{**PLAIN, **settings})
    return [cut_at_end(row, settings["eos_token_id"]) for row in output[:, input_ids.shape[1] :].tolist()]


def cut_at_end(tokens: list[int], ends: Sequence[int]) -> Generated:
    """Return the tokens before the first end token."""
    for at, token in enumerate(tokens):
        if token in ends:
            return Generated(tokens[:at], finished=True)
    return Generated(tokens, finished=False)


def generate_or_halve(
    model: Any, prompts: Sequence[list[int]], settings: dict[str, Any], seed: int
) -> list[Generated | str]:
    """Answer a batch, halving it whenever memory runs out; a prompt that does not fit alone gets the reason instead.

    `seed` makes sampled answers repeatable regardless of previous answers.
    """
    torch.manual_seed(seed)
    try:
        return list(generate(model, prompts, settings))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory(model)
    if len(prompts) == 1:
        return [f"out of memory for a prompt of {len(prompts[0])} tokens"]
    half = len(prompts) // 2
    return [
        *generate_or_halve(model, prompts[:half], settings, seed),
        *generate_or_halve(model, prompts[half:], settings, seed),
    ]


def free_memory(model: Any) -> None:
    """Release what an attempt left in the device's cache."""
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    elif model.device.type == "mps":
        torch.mps.empty_cache()


def reference_nll(
    model: Any, references: Sequence[Tokenized], pad_token_id: int, batch_size: int
) -> list[float | None]:
    """Return for each conversation the summed negative log-likelihood, in nats, of its supervised tokens.

    None if it does not fit into memory alone or has no supervised token.
    """
    nats: dict[int, float | None] = {}
    room = getattr(model.config, "max_position_embeddings", None)
    able = [at for at, row in enumerate(references) if row.supervised and (room is None or len(row.input_ids) <= room)]
    for places in batches_by_length([len(references[at].input_ids) for at in able], batch_size):
        batch = [able[place] for place in places]
        found = _batch_nats(model, [references[at] for at in batch], pad_token_id)
        nats |= dict(zip(batch, found, strict=True))
    return [nats.get(at) for at in range(len(references))]


def _batch_nats(model: Any, batch: Sequence[Tokenized], pad_token_id: int) -> list[float | None]:
    """Compute `reference_nll` for one batch, halving it if memory runs out."""
    try:
        return [*_forward_nats(model, batch, pad_token_id)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory(model)
    if len(batch) == 1:
        return [None]
    half = len(batch) // 2
    return [*_batch_nats(model, batch[:half], pad_token_id), *_batch_nats(model, batch[half:], pad_token_id)]


def _forward_nats(model: Any, batch: Sequence[Tokenized], pad_token_id: int) -> list[float]:
    input_ids, mask = pad_left([row.input_ids for row in batch], pad_token_id, model.device)
    labels, _ = pad_left([row.labels for row in batch], IGNORED, model.device)
    first = int((labels != IGNORED).any(dim=0).nonzero()[0])
    kept = labels.shape[1] - first + 1  # logits from one position before the first supervised token on
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.inference_mode():
        logits = model(input_ids=input_ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, first:], ignore_index=IGNORED, reduction="none"
    )
    return [float(value) for value in losses.sum(dim=1)]


def pad_left(rows: Sequence[list[int]], fill: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids as a tensor (rows, longest), padded on the left, and the mask of non-padding."""
    longest = max(len(row) for row in rows)
    padded = torch.tensor([[fill] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return padded, mask
