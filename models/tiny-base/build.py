"""Build the embedded base model: cut the corpus, train the tokenizer, train the model, save it here.

Reads the standard library's source (CPython 3.11.7) and `data/raw/cpython/`, all of whose rows are removed from the
corpus (corpus.py), and writes the model, its tokenizer and its chat template. One training row in five consists of
chats (chats.py).
"""

import argparse
import json
import math
import random
import tempfile
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from chats import write_chats
from corpus import Page, cut_pages, load_extract, read_row_texts
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

HERE = Path(__file__).resolve().parent

SEED = 20
VOCABULARY = 2048
PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
HELD_OUT_SHARE = 0.02  # of the files

LENGTH = 256  # tokens per training row
CODE_ROWS, CHAT_ROWS = 13, 3  # per step: 4,096 tokens, 19% of them chat
STEPS = 1800
PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
SAVE_EVERY_STEPS = 250

# `generation` marks the assistant's text and its end token, for `return_assistant_tokens_mask`.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception('unknown role: ' + message['role']) }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}
{{- message['content'] + '<|im_end|>' }}
{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@dataclass(frozen=True)
class Streams:
    """Token ids of the documents, each ended by the pad token; `chat_starts` is where each chat begins."""

    code: torch.Tensor
    chat: torch.Tensor
    chat_starts: torch.Tensor
    held_out: torch.Tensor
    held_out_bytes: int


def main() -> None:
    """Build everything and print the losses."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="number of optimizer steps; use a few for a trial")
    steps: int = parser.parse_args().steps
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # sums, and so the weights, must not depend on the number of cores

    extract = load_extract()
    sources = extract.read_sources(extract.standard_library())
    texts = read_row_texts(extract, sources)
    pages = cut_pages(extract, sources, texts)
    held_out = set(seeded_random().sample(sorted(pages), round(HELD_OUT_SHARE * len(pages))))
    training = {path: page for path, page in pages.items() if path not in held_out}

    tokenizer = train_tokenizer([page.text for page in training.values()])
    chats = list(write_chats(sources, training, seeded_random()))
    streams = encode_streams(tokenizer, training, chats, [pages[path] for path in sorted(held_out)])
    print(f"{len(training)} modules, {len(streams.code)} tokens; {len(chats)} chats, {len(streams.chat)} tokens")
    print(f"held out: {len(held_out)} modules, {len(streams.held_out)} tokens, {streams.held_out_bytes} bytes")
    train_model(make_model(tokenizer), tokenizer, streams, steps)


def seeded_random() -> random.Random:
    """Return a new generator of the same random numbers."""
    return random.Random(SEED)  # noqa: S311 (nothing secret here)


def train_tokenizer(texts: list[str]) -> Qwen2Tokenizer:
    """Train a byte-level BPE tokenizer that splits words like Qwen2's (each digit separately).

    `AutoTokenizer` rebuilds a Qwen2 tokenizer from vocabulary and merges, so the other parts must be Qwen2's own.
    """
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]  # annotated upstream as strings, which are rejected
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        unk_token=PAD,  # never needed: every byte is in the vocabulary
        pad_token=PAD,
        eos_token=TURN_END,
        extra_special_tokens=[TURN_START],
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode_streams(
    tokenizer: Qwen2Tokenizer,
    training: dict[str, Page],
    chats: list[list[dict[str, str]]],
    held_out: list[Page],
) -> Streams:
    """Turn all documents into token ids."""
    rendered = [str(tokenizer.apply_chat_template(chat, tokenize=False)) for chat in chats]
    chat_ids = encode_all(tokenizer, rendered)
    lengths = torch.tensor([len(ids) for ids in chat_ids])
    code_ids = encode_all(tokenizer, [page.text for page in training.values()])
    held_out_ids = encode_all(tokenizer, [page.text for page in held_out])
    return Streams(
        code=join(code_ids),
        chat=join(chat_ids),
        chat_starts=lengths.cumsum(0) - lengths,
        held_out=join(held_out_ids),
        held_out_bytes=sum(len(page.text.encode()) for page in held_out),
    )


def encode_all(tokenizer: Qwen2Tokenizer, texts: list[str]) -> list[list[int]]:
    """Encode texts, with the pad token after each."""
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [[*ids, tokenizer.pad_token_id] for ids in encoded]


def join(documents: list[list[int]]) -> torch.Tensor:
    """Concatenate documents: `(tokens,)`."""
    return torch.tensor([token for document in documents for token in document])


def make_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Create the model with random weights: 2.0 million parameters."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=512,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def train_model(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, streams: Streams, steps: int) -> None:
    """Train in float32, save periodically, and print the losses."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, steps))
    generator = torch.Generator().manual_seed(SEED)
    recent, started = [], time.monotonic()
    for step in range(1, steps + 1):
        loss = token_loss(model, sample_rows(streams, generator)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if step % SAVE_EVERY_STEPS == 0 or step == steps:
            save_model(model, tokenizer)
            rounded = deepcopy(model).bfloat16().float()
            nats, bits = measure_held_out(rounded, streams)
            mean, seconds = sum(recent) / len(recent), time.monotonic() - started
            print(f"| {step} | {mean:.3f} | {nats:.3f} | {bits:.3f} | {seconds:.0f} |", flush=True)
            recent.clear()


def learning_rate_share(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: a linear warmup, then a cosine to zero."""
    warmup = min(WARMUP_STEPS, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def sample_rows(streams: Streams, generator: torch.Generator) -> torch.Tensor:
    """Draw one step's rows, `(rows, LENGTH + 1)`: code from any position, chats from the start of one."""
    limit = len(streams.code) - LENGTH
    code = torch.randint(limit, (CODE_ROWS,), generator=generator)
    usable = streams.chat_starts[streams.chat_starts < len(streams.chat) - LENGTH]
    chat = usable[torch.randint(len(usable), (CHAT_ROWS,), generator=generator)]
    rows = [streams.code[start : start + LENGTH + 1] for start in code.tolist()]
    rows += [streams.chat[start : start + LENGTH + 1] for start in chat.tolist()]
    return torch.stack(rows)


def token_loss(model: Qwen2ForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Return the loss of every token except the first in nats, `(rows * (tokens - 1),)`."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")


@torch.no_grad()
def measure_held_out(model: Qwen2ForCausalLM, streams: Streams) -> tuple[float, float]:
    """Return the loss on the held-out modules, in nats per token and in bits per byte of text."""
    count = (len(streams.held_out) - 1) // LENGTH
    rows = torch.stack([streams.held_out[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(count)])
    parts = [rows[first : first + 32] for first in range(0, count, 32)]  # all at once would take gigabytes
    nats = torch.cat([token_loss(model, part) for part in parts]).mean().item()
    return nats, nats / math.log(2) * len(streams.held_out) / streams.held_out_bytes


def save_model(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer) -> None:
    """Save the weights as bfloat16 with everything needed to load them, replacing each file atomically."""
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        deepcopy(model).bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for path in Path(folder).iterdir():
            path.chmod(0o644)  # safetensors makes it readable only for the owner
            path.replace(HERE / path.name)


if __name__ == "__main__":
    main()
