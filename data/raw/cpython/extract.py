"""Extract the embedded data set, interactions of two imaginary agents, from Python's standard library.

Reads the source of the standard library of the Python that runs it (the committed output: CPython 3.11.7)
and writes `interactions.jsonl`, one JSON object a line, the same bytes every time:

    {"id": "cab3c7d1ae4c", "agent": "exception-namer", "task": "function: seek\\nmessage: cannot seek",
     "output": "OSError", "success": true, "origin": "chunk.py:111"}
"""

import argparse
import ast
import builtins
import hashlib
import json
import re
import sys
import sysconfig
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# Tests and applications (their messages are fixtures), what is installed beside the library, and what the
# build of one machine generated (`config-*`, `_sysconfigdata*`): with that the output would depend on it.
LEFT_OUT_FOLDERS = {
    *("__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3"),
    *("site-packages", "test", "tests", "turtledemo"),
}
LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata")

MIN_CLASS_EXAMPLES = 25  # a rarer class would have one or two examples in the test split
MIN_NAME_DOCSTRINGS = 3  # a name needs two docstrings to learn from when a third is the test
MAX_DOCSTRING_CHARACTERS = 300

# Names that many modules give to an exception of their own: what was written does not tell the class.
AMBIGUOUS_NAMES = {"error", "Error"}
TRANSLATION_CALLS = {"_", "gettext", "ngettext"}
PLACEHOLDER = re.compile(r"\{[^{}]*\}|%(\([^)]*\))?[-#0 +]*[\d*]*(\.[\d*]+)?[a-zA-Z]")
WORD = re.compile(r"[A-Za-z]{2,}")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Scope = tuple[FunctionNode | ast.ClassDef, ...]  # the functions and classes around a node, outermost first


@dataclass(frozen=True)
class Source:
    """One parsed module; `path` is relative to the standard library, with forward slashes."""

    path: str
    text: str
    tree: ast.Module


@dataclass(frozen=True)
class RaisedCall:
    """A `raise Class(...)` statement; `message` is empty where none of the arguments holds any words."""

    path: str
    line: int
    last_line: int
    exception: str
    message: str
    function: str

    @property
    def task(self) -> str:
        """What the agent is asked."""
        return f"function: {self.function}\nmessage: {self.message}"


@dataclass(frozen=True)
class DocumentedFunction:
    """A function with a docstring; `line` is its first decorator's; only a method has a `class_name`."""

    path: str
    line: int
    last_line: int
    name: str
    arguments: str
    class_name: str
    docstring: str

    @property
    def task(self) -> str:
        """What the agent is asked."""
        context = f"class {self.class_name}\n" if self.class_name else ""
        return f"{context}def ...({self.arguments})\n{self.docstring}"


@dataclass(frozen=True)
class Row:
    """One interaction, with its fields in the order of the file."""

    id: str
    agent: str
    task: str
    output: str
    success: bool
    origin: str


def read_sources(root: Path) -> list[Source]:
    """Read and parse every module of the standard library under `root`, sorted by path."""
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    return [read_source(name, paths[name]) for name in sorted(paths) if is_wanted(name)]


def is_wanted(name: str) -> bool:
    """Tell whether the module with this relative path is library code that is the same on every machine."""
    return not any(part in LEFT_OUT_FOLDERS or part.startswith(LEFT_OUT_PREFIXES) for part in name.split("/"))


def read_source(name: str, path: Path) -> Source:
    """Read one module in the encoding that it declares."""
    with tokenize.open(path) as file:
        text = file.read()
    return Source(name, text, ast.parse(text))


def walk_scopes(node: ast.AST, scope: Scope = ()) -> Iterator[tuple[ast.AST, Scope]]:
    """Yield every node below `node` in source order, each with the scope that it stands in."""
    for child in ast.iter_child_nodes(node):
        yield child, scope
        inner = (*scope, child) if isinstance(child, FunctionNode | ast.ClassDef) else scope
        yield from walk_scopes(child, inner)


def find_raised_calls(source: Source) -> Iterator[RaisedCall]:
    """Yield every `raise` of a call with a plain or dotted name, with or without a message."""
    for node, scope in walk_scopes(source.tree):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
            continue
        functions = [outer.name for outer in scope if isinstance(outer, FunctionNode)]
        yield RaisedCall(
            path=source.path,
            line=node.lineno,
            last_line=node.end_lineno or node.lineno,
            exception=ast.unparse(node.exc.func),
            message=find_message(node.exc),
            function=functions[-1] if functions else "<module>",
        )


def find_message(call: ast.Call) -> str:
    """Give, on one line, the first argument that has words besides its placeholders; empty if none has."""
    for argument in call.args:
        text = " ".join(render_text(argument).split())
        if WORD.search(PLACEHOLDER.sub("", text)):
            return text
    return ""


def render_text(node: ast.expr) -> str:
    """Give the text of a string expression, with what is filled in at run time left as a placeholder.

    A literal gives itself, `f"no {name!r}"` gives `no {name!r}`, a %- or `.format` expression its template, a
    sum its parts with `{expression}` for what is no text, a translated string its original. Anything else
    gives nothing.
    """
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(render_text(part) for part in parts)
        case ast.FormattedValue(value=value, conversion=conversion, format_spec=spec):
            suffix = f"!{chr(conversion)}" if conversion != -1 else ""
            suffix += f":{render_text(spec)}" if spec else ""
            return f"{{{ast.unparse(value)}{suffix}}}"
        case ast.BinOp(left=left, op=ast.Mod()):
            return render_text(left)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            before, after = render_text(left), render_text(right)
            if not (before or after):
                return ""
            return (before or f"{{{ast.unparse(left)}}}") + (after or f"{{{ast.unparse(right)}}}")
        case ast.Call(func=ast.Attribute(value=template, attr="format")):
            return render_text(template)
        case ast.Call(func=ast.Name(id=name), args=[text, *_]) if name in TRANSLATION_CALLS:
            return render_text(text)
    return ""


def find_documented_functions(source: Source) -> Iterator[DocumentedFunction]:
    """Yield every function and method, nested ones too, that has a docstring with any words."""
    for node, scope in walk_scopes(source.tree):
        if not isinstance(node, FunctionNode):
            continue
        docstring = shorten(first_paragraph(ast.get_docstring(node) or ""))
        if WORD.search(docstring):
            parent = scope[-1] if scope else None
            yield DocumentedFunction(
                path=source.path,
                line=min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]),
                last_line=node.end_lineno or node.lineno,
                name=node.name,
                arguments=ast.unparse(node.args),
                class_name=parent.name if isinstance(parent, ast.ClassDef) else "",
                docstring=docstring,
            )


def first_paragraph(docstring: str) -> str:
    """Give the text before the first blank line, on one line."""
    return " ".join(re.split(r"\n\s*\n", docstring, maxsplit=1)[0].split())


def shorten(text: str, limit: int = MAX_DOCSTRING_CHARACTERS) -> str:
    """Cut `text` after the last whole word within `limit` characters."""
    if len(text) <= limit:
        return text
    return text[: limit + 1].rsplit(" ", 1)[0]


def name_exceptions(raised: list[RaisedCall]) -> Iterator[Row]:
    """Yield the rows of the agent that names exceptions: frequent builtin classes, and ambiguous failures."""
    raised = [call for call in raised if call.message]
    frequency = Counter(call.exception for call in raised if is_builtin_exception(call.exception))
    for call in raised:
        ambiguous = call.exception.rpartition(".")[2] in AMBIGUOUS_NAMES
        if ambiguous or frequency[call.exception] >= MIN_CLASS_EXAMPLES:
            origin = f"{call.path}:{call.line}"
            yield make_row("exception-namer", call.task, call.exception, not ambiguous, origin)


def is_builtin_exception(name: str) -> bool:
    """Tell whether `name` is an exception class that needs no import."""
    value = getattr(builtins, name, None)
    return isinstance(value, type) and issubclass(value, BaseException)


def name_functions(functions: list[DocumentedFunction]) -> Iterator[Row]:
    """Yield the rows of the agent that names functions."""
    for function in choose_functions(functions):
        origin = f"{function.path}:{function.line}"
        yield make_row("function-namer", function.task, function.name, True, origin)


def choose_functions(functions: list[DocumentedFunction]) -> list[DocumentedFunction]:
    """Keep the functions whose name has at least `MIN_NAME_DOCSTRINGS` different docstrings."""
    docstrings = defaultdict(set)
    for function in functions:
        docstrings[function.name].add(function.docstring)
    return [function for function in functions if len(docstrings[function.name]) >= MIN_NAME_DOCSTRINGS]


def make_row(agent: str, task: str, output: str, success: bool, origin: str) -> Row:
    """Make a row; its id hashes the origin too, so that two equal tasks are two rows."""
    digest = hashlib.sha256("\0".join([agent, origin, task, output]).encode()).hexdigest()
    return Row(digest[:12], agent, task, output, success, origin)


def collect_rows(sources: list[Source]) -> list[Row]:
    """Give all rows of both agents, in the order of path and line."""
    raised = [call for source in sources for call in find_raised_calls(source)]
    functions = [function for source in sources for function in find_documented_functions(source)]
    rows = [*name_exceptions(raised), *name_functions(functions)]
    return sorted(rows, key=origin_order)


def origin_order(row: Row) -> tuple[str, int, str]:
    """Order rows by path, then by line as a number."""
    path, _, line = row.origin.rpartition(":")
    return path, int(line), row.agent


def standard_library() -> Path:
    """Give the folder of the standard library of the Python that runs."""
    return Path(sysconfig.get_paths()["stdlib"])


def write_rows(rows: list[Row], path: Path) -> None:
    """Write `rows` as JSON lines, with the same bytes on every platform."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def main() -> None:
    """Write the rows and print their counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("interactions.jsonl"))
    output: Path = parser.parse_args().output
    rows = collect_rows(read_sources(standard_library()))
    write_rows(rows, output)
    print(f"{len(rows)} rows from Python {sys.version.split()[0]} in {output}")
    for agent in sorted({row.agent for row in rows}):
        outputs = Counter(row.output for row in rows if row.agent == agent and row.success)
        failed = sum(row.agent == agent and not row.success for row in rows)
        print(f"{agent}: {outputs.total()} succeeded, {failed} failed; {outputs.most_common(12)}")
    contents = Counter((row.agent, row.task, row.output) for row in rows)
    print(f"exact duplicates of an earlier row: {len(rows) - len(contents)}")


if __name__ == "__main__":
    main()
