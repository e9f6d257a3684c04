"""The code on a page: spans, fenced blocks, indented blocks. Prose is not checked."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")


def code_of(text: str) -> list[str]:
    """Return every code span, fenced line (except of patches) and indented line; wrapped spans are joined."""
    blocks = [line for language, block in FENCED.findall(text) if language != "diff" for line in block.splitlines()]
    return spans_of(text) + blocks + indented_of(text)


def spans_of(text: str) -> list[str]:
    """Return the code spans outside of blocks, each on one line."""
    return [" ".join(span.split()) for span in SPAN.findall(INDENTED.sub("\n", FENCED.sub("", text)))]


def indented_of(text: str) -> list[str]:
    """Return the indented lines, which are mostly program output."""
    return [line.strip() for block in INDENTED.findall(FENCED.sub("", text)) for line in block.splitlines()]
