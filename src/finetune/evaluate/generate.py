"""Greedy answers in batches of like length, and how probable a model finds the reference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune.console import progress
from finetune.model.tokens import IGNORED, Tokenized


@dataclass(frozen=True, slots=True)
class Generated:
    """The new tokens of one prompt, without the end token; `finished` says that it was reached."""

    tokens: list[int]
    finished: bool


def generation_settings(model: Any, tokenizer: Any, max_new_tokens: int) -> dict[str, Any]:
    """What both sides generate with, for `generate` and for the report: greedy, up to the template's end tokens."""
    ends = model.generation_config.eos_token_id
    known = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    return {
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": sorted(token for token in known if token is not None),
        "pad_token_id": tokenizer.pad_token_id,
    }


def generate(model: Any, prompts: Sequence[list[int]], settings: dict[str, Any]) -> list[Generated]:
    """The answers to one batch of prompts (token ids), padded on the left."""
    input_ids, mask = pad_left(prompts, settings["pad_token_id"], model.device)
    plain = {"temperature": None, "top_p": None, "top_k": None}  # a base's own sampling settings say nothing here
    with torch.inference_mode():
        output = model.generate(input_ids=input_ids, attention_mask=mask, **settings, **plain)
    return [cut_at_end(row, settings["eos_token_id"]) for row in output[:, input_ids.shape[1] :].tolist()]


def cut_at_end(tokens: list[int], ends: Sequence[int]) -> Generated:
    """The tokens before the first end token."""
    for at, token in enumerate(tokens):
        if token in ends:
            return Generated(tokens[:at], finished=True)
    return Generated(tokens, finished=False)


def generate_all(
    model: Any, prompts: Sequence[list[int]], settings: dict[str, Any], batch_size: int, what: str
) -> list[Generated]:
    """The answers to all prompts, in their order; longest batches first, so that no memory shows at once."""
    answers: dict[int, Generated] = {}
    for batch in progress(list(batches_by_length([len(prompt) for prompt in prompts], batch_size)), what):
        found = generate(model, [prompts[at] for at in batch], settings)
        answers |= dict(zip(batch, found, strict=True))
    return [answers[at] for at in range(len(prompts))]


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Positions in batches of like length, longest first; ties in their order."""
    order = sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def reference_nats(
    model: Any, references: Sequence[Tokenized], pad_token_id: int, batch_size: int, what: str
) -> list[float]:
    """For each conversation the summed negative log-likelihood, in nats, of its supervised tokens."""
    nats: dict[int, float] = {}
    for batch in progress(list(batches_by_length([len(row.input_ids) for row in references], batch_size)), what):
        found = _batch_nats(model, [references[at] for at in batch], pad_token_id)
        nats |= dict(zip(batch, found, strict=True))
    return [nats[at] for at in range(len(references))]


def _batch_nats(model: Any, batch: list[Tokenized], pad_token_id: int) -> list[float]:
    input_ids, mask = pad_left([row.input_ids for row in batch], pad_token_id, model.device)
    labels, _ = pad_left([row.labels for row in batch], IGNORED, model.device)
    first = int((labels != IGNORED).any(dim=0).nonzero()[0])
    kept = labels.shape[1] - first + 1  # logits from one place before the first supervised token on
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.inference_mode():
        logits = model(input_ids=input_ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, first:], ignore_index=IGNORED, reduction="none"
    )
    return [float(value) for value in losses.sum(dim=1)]


def pad_left(rows: Sequence[list[int]], fill: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as a tensor (rows, longest), padded on the left, and the mask of what is no padding."""
    longest = max(len(row) for row in rows)
    padded = torch.tensor([[fill] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return padded, mask
