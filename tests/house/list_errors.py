"""Writes the list in docs/troubleshooting.md: every error that the sources raise, with its remedy.

`PYTHONPATH=src:. python -m tests.house.list_errors`"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from finetune.console import markdown_table
from finetune.errors import ConfigError, DataError, FinetuneError, InterruptedRunError, MachineError

ROOT = Path(__file__).parents[2]
MARK = "<!-- printed by python -m tests.house.list_errors -->"
KINDS: dict[type[FinetuneError], str] = {
    ConfigError: "Usage or configuration errors",
    DataError: "Invalid data or evidence",
    MachineError: "Hardware or system errors",
    InterruptedRunError: "Interrupted",
}
CLASSES = {kind.__name__: kind for kind in KINDS} | {"BaseModelError": ConfigError}


def text_of(node: ast.expr | None, known: Mapping[str, ast.expr]) -> str:
    """Return a text of the sources, with `…` for each inserted value except texts that `known` has by name."""
    if isinstance(node, ast.Name):
        found = known.get(node.id)
        is_text = isinstance(found, ast.JoinedStr) or (isinstance(found, ast.Constant) and isinstance(found.value, str))
        return text_of(found, known) if is_text else "…"
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.FormattedValue) else part for part in node.values)
        return "".join(text_of(part, known) for part in parts)
    return "" if node is None else "…"


def calls_in(tree: ast.Module) -> Iterator[tuple[ast.Call, dict[str, ast.expr]]]:
    """Yield the calls of a module, each with the values last assigned to each name above it."""
    known: dict[str, ast.expr] = {}
    for node in sorted((node for node in ast.walk(tree) if hasattr(node, "lineno")), key=lambda node: node.lineno):
        if isinstance(node, ast.FunctionDef):
            known = {name: value for name, value in known.items() if name.isupper()}
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = node.value
        if isinstance(node, ast.Call):
            yield node, dict(known)


def raised() -> Iterator[tuple[type[FinetuneError], str, str]]:
    """Yield class, message and remedy of each error whose message is not just a value."""
    for path in (ROOT / "src/finetune").rglob("*.py"):
        for node, known in calls_in(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node.func, ast.Name) and node.func.id in CLASSES):
                continue
            named = {keyword.arg: keyword.value for keyword in node.keywords}
            given = dict(
                zip(("place", "message", "remedy"), node.args[node.func.id == "BaseModelError" :], strict=False)
            )
            message, remedy = (text_of(given.get(name) or named.get(name), known) for name in ("message", "remedy"))
            if any(letter.isalpha() for letter in message):
                yield CLASSES[node.func.id], message, remedy


def plain(text: str) -> str:
    """Return a text without repeated white space."""
    return " ".join(text.split())


def to_markdown() -> str:
    """Return the generated part of docs/troubleshooting.md."""
    rows = sorted(set(raised()), key=lambda row: (row[1].lstrip("… ").lower(), row[1], row[2]))
    lines = [MARK, ""]
    for kind, title in KINDS.items():
        cells = [[f"`{plain(message)}`", plain(remedy)] for found, message, remedy in rows if found is kind]
        lines += [
            f"### {title} (exit code {kind.exit_code})",
            "",
            *markdown_table(["message", "what to do"], cells),
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    page = ROOT / "docs/troubleshooting.md"
    page.write_text(page.read_text(encoding="utf-8").partition(MARK)[0] + to_markdown(), encoding="utf-8")
