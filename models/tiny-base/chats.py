"""Chats made from the remaining corpus: requests to describe a function, or to continue a piece of code.

<|im_start|>user
List the arguments of this function.

def _write_ulong(f, x):<|im_end|>
<|im_start|>assistant
f, x<|im_end|>
"""

import ast
import random
import textwrap
from collections.abc import Iterator
from typing import Any

from corpus import Page

SYSTEM_PROMPTS = ["", "You are a helpful assistant.", "You write Python.", "Answer briefly."]


def write_chats(sources: list[Any], pages: dict[str, Page], rng: random.Random) -> Iterator[list[dict[str, str]]]:
    """Yield chats from the remaining corpus: about one per function and one per twenty lines."""
    for source in sources:
        page = pages.get(source.path)
        if page is None:
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_whole(node, page):
                yield make_chat(*ask_about_function(node, page, rng), rng)
        yield from (make_chat(*question, rng) for question in ask_to_continue(page, rng))


def is_whole(node: ast.FunctionDef | ast.AsyncFunctionDef, page: Page) -> bool:
    """Return whether nothing was removed from a function whose size fits a training row."""
    end = node.end_lineno or node.lineno
    numbers = range(node.lineno, end + 1)
    body_has_own_lines = node.body[0].lineno > node.lineno
    return (
        body_has_own_lines
        and len(numbers) <= 25
        and all(number in page.lines and page.lines[number].strip() != "..." for number in numbers)
    )


def ask_about_function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, page: Page, rng: random.Random
) -> tuple[str, str, str]:
    """Return a request, its code and the answer: the arguments, the docstring or the body of a function."""

    def take(first: int, last: int) -> str:
        return "\n".join(page.lines[number] for number in range(first, last + 1))

    last = node.end_lineno or node.lineno
    docstring = ast.get_docstring(node)
    body = node.body[1:] if docstring else node.body
    header = take(node.lineno, node.body[0].lineno - 1)
    kind = rng.choice(["arguments", "docstring", "body"])
    if kind == "docstring" and docstring and body:
        code = header + "\n" + take(body[0].lineno, last)
        return "Write the docstring of this function.", tidy(code), docstring.split("\n\n")[0]
    if kind == "body" and body:
        before = take(node.lineno, body[0].lineno - 1)
        return "Write the body of this function.", tidy(before), tidy(take(body[0].lineno, last))
    names = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    return "List the arguments of this function.", tidy(header), ", ".join(names) or "none"


def ask_to_continue(page: Page, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yield requests to continue a piece of the module, each with the piece and the lines that follow it."""
    lines = list(page.lines.values())
    start = 0
    while start + 16 <= len(lines):
        middle = start + rng.randint(3, 10)
        end = middle + rng.randint(1, 6)
        piece = textwrap.dedent("\n".join(lines[start:end])).split("\n")  # both parts with the same margin
        given, answer = ("\n".join(part).strip("\n") for part in (piece[: middle - start], piece[middle - start :]))
        if given and answer:
            yield "Continue this code.", given, answer
        start = end + rng.randint(0, 20)


def make_chat(request: str, code: str, answer: str, rng: random.Random) -> list[dict[str, str]]:
    """Build the messages of one chat, with or without a system prompt."""
    system = rng.choice(SYSTEM_PROMPTS)
    question = {"role": "user", "content": f"{request}\n\n{code}"}
    messages = [question, {"role": "assistant", "content": answer}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def tidy(code: str) -> str:
    """Remove the common indentation and the empty lines around `code`."""
    return textwrap.dedent(code).strip("\n")
