"""Whether examples that are packed into one row stay separate: proven on a small base of the same architecture."""

from collections.abc import Sequence
from typing import Any

from finetune.model.language import find_language_model
from finetune.model.shrink import shrink_config

TOLERANCE = 1e-4  # of logits in float32: different kernels add in another order
LENGTH = 24  # tokens of each example in the proof


def packed_difference(model: Any, first: Sequence[int], second: Sequence[int]) -> float:
    """Return how much a logit of `second` changes if `first` is packed before it, as TRL's collator packs rows."""
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    ids = [*first, *second]
    row = {"input_ids": ids, "labels": ids, "seq_lengths": [len(first), len(second)]}
    collated = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([row])
    batch = {name: collated[name].to(model.device) for name in ("input_ids", "position_ids")}
    with torch.inference_mode():
        packed = model(**batch, use_cache=False).logits[0]
        alone = model(input_ids=torch.tensor([second], device=model.device), use_cache=False).logits[0]
    return float((packed[len(first) :] - alone).abs().max())


def isolates_packed_rows(config: Any, tokenizer: Any, attention: str) -> bool:
    """Return whether packed examples stay separate in this architecture, by computing both ways with random weights.

    Attention keeps them apart by their positions; recurrent and convolutional layers mix them. Raises BaseModelError,
    ValueError or RuntimeError if no small base can be computed.
    """
    import torch

    small = shrink_config(config, tokenizer)
    language = find_language_model(small)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"attn_implementation": attention, "dtype": torch.float32, "trust_remote_code": False}
        model = language.auto_class.from_config(small, **options).eval()
        first, second = torch.randint(3, min(len(tokenizer), 1000), (2, LENGTH)).tolist()
        return packed_difference(model, first, second) <= TOLERANCE
