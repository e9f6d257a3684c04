"""What of a page is code: spans, fenced blocks, indented blocks. Prose claims nothing."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")


def code_of(text: str) -> list[str]:
    """Every code span, fenced line (but of patches) and indented line; a span that was folded is one line again."""
    blocks = [line for language, block in FENCED.findall(text) if language != "diff" for line in block.splitlines()]
    rest = FENCED.sub("", text)
    indented = [line.strip() for block in INDENTED.findall(rest) for line in block.splitlines()]
    return [" ".join(span.split()) for span in SPAN.findall(INDENTED.sub("\n", rest))] + blocks + indented
