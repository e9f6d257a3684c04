"""Generate millions of chat rows with duplicates as in real collections, reproducible by seed.

    python benchmarks/chat_rows.py rows.jsonl 1000000

Words are drawn from CPython's standard library by their frequency; a row has one to three rounds and about 1 KB. Of all
rows, 5% repeat an earlier one exactly, 2% up to white space, and 10% with 1 to 12% of their words changed.
"""

import argparse
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SEED = 7
EXACT, SPACED, EDITED = 0.05, 0.02, 0.10
OPENINGS = ["Sure! ", "Of course. ", "", "", "Here is what I found: ", ""]
SYSTEM = "You are a helpful assistant. Answer briefly and say so when you are not sure."
BLOCK = 5000  # rows generated at once; a copy repeats a row of this or the previous block


def vocabulary() -> tuple[np.ndarray, np.ndarray]:
    """Return the words of the standard library's top-level modules with their probabilities."""
    library = Path(sysconfig.get_path("stdlib"))
    text = "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in sorted(library.glob("*.py")))
    words, counts = np.unique(re.findall(r"[A-Za-z][a-z']+", text), return_counts=True)
    return words, counts / counts.sum()


def write_rows(path: Path, count: int, seed: int = SEED) -> None:
    """Write `count` rows as JSON lines."""
    rng = np.random.default_rng(seed)
    words, chances = vocabulary()
    with path.open("w", encoding="utf-8") as file:
        previous: list[list[list[str]]] = []
        for start in range(0, count, BLOCK):
            block: list[list[list[str]]] = []
            for turns in make_block(rng, words, chances, previous, min(BLOCK, count - start)):
                block.append(turns)
                file.write(to_line(turns, rng.random()))
            previous = block


def make_block(
    rng: np.random.Generator, words: np.ndarray, chances: np.ndarray, previous: list[list[list[str]]], count: int
) -> Iterator[list[list[str]]]:
    """Yield conversations as lists of turns, each a list of words; some repeat one of this or the previous block."""
    rounds = rng.choice([1, 2, 3], size=count, p=[0.6, 0.25, 0.15])
    pool = words[rng.choice(len(words), size=count * 190, p=chances)].tolist()
    kinds, at, made = rng.random(count), 0, []
    for number in range(count):
        known = len(previous) + number
        if known and kinds[number] < EXACT + SPACED + EDITED:
            chosen = int(rng.integers(known))
            original = previous[chosen] if chosen < len(previous) else made[chosen - len(previous)]
            turns = [list(turn) for turn in original]
            if kinds[number] < SPACED:
                turns[0] = [word + " " if place % 7 == 3 else word for place, word in enumerate(turns[0])]
            elif kinds[number] < SPACED + EDITED:
                edit(rng, turns, pool, at)
        else:
            turns = []
            for _ in range(rounds[number]):
                for mean in (30, 95):
                    size = int(rng.integers(mean // 2, mean * 3 // 2) / rounds[number] ** 0.5)
                    turns.append(pool[at : at + size])
                    at += size
            turns[1] = (OPENINGS[number % len(OPENINGS)] + " ".join(turns[1])).split(" ")
        made.append(turns)
        yield turns


def edit(rng: np.random.Generator, turns: list[list[str]], pool: list[str], at: int) -> None:
    """Change 1 to 12% of the words, in place."""
    sizes = [len(turn) for turn in turns]
    changes = max(1, int(sum(sizes) * rng.uniform(0.01, 0.12)))
    for place in rng.integers(sum(sizes), size=changes):
        turn = 0
        while place >= sizes[turn]:
            place -= sizes[turn]
            turn += 1
        turns[turn][place] = pool[(at + int(place)) % len(pool)]


def to_line(turns: list[list[str]], chance: float) -> str:
    """Format one row of the chat format; half of them have the same system message."""
    messages = [{"role": "system", "content": SYSTEM}] if chance < 0.5 else []
    for place, turn in enumerate(turns):
        messages.append({"role": ("user", "assistant")[place % 2], "content": " ".join(turn)})
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    write_rows(options.file, options.count)
