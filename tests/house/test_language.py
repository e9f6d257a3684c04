"""Pages, messages, docstrings and comments are plain English, without phrases that readers would have to translate."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.doc_text import FENCED, INDENTED, ROOT, SPAN

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")})
SCRIPTS = ("Makefile", "finetune", "Dockerfile.*", "*.yaml", ".ci/run", "*/*.yaml", "*/*.sh", "*.toml")
UNIT = r"(?:second|minute|hour|day|epoch|step|layer|row|token|device|node|process)"
FOREIGN = {
    "use print, report, list or name": r"\b(?:tells?|told|telling|speaks? of)\b(?! to)",
    "use is or are": r"\b(?:stands?|stood|lies|lay)\b(?!-)",
    "write what it is": r"\b(?:is|are) no (?=price|key|file|folder|token|tokens|option|proof|evidence|error)\b",
    "write default:": r"\bwhere (?:it is left out|nothing is said|none is named)\b",
    "use resume, continue or fix": r"\b(?:goes on|go on|going on|went on|mend(?:s|ed|ing)?)\b",
    "write with a warning, or silently": r"\b(?:aloud|in silence|without a word)\b",
    "use per": rf"\b(?:tokens|steps|rows|lines|bytes|operations|times|answers) an? {UNIT}\b",
    "name the hardware": r"\b(?:the|this) machine can't\b",
}


def prose_of(path: Path) -> str:
    """Return a page without code, quoted output and addresses."""
    text = INDENTED.sub("\n", FENCED.sub("", path.read_text(encoding="utf-8")))
    return re.sub(r"\]\([^)]*\)", "]", SPAN.sub("", text))


def foreign_phrases(text: str) -> list[str]:
    """Return advice for each foreign phrase of a text."""
    line = " ".join(text.split())
    return [
        f"{advice}: …{line[max(hit.start() - 30, 0) : hit.end() + 20]}…"
        for advice, pattern in FOREIGN.items()
        for hit in re.finditer(pattern, line)
    ]


def prose_in_code(path: Path, *, messages: bool) -> Iterator[str]:
    """Yield the docstrings and comments of a module and, if asked for, its strings of several words."""
    code = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        if messages and isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_is_plain_english(page: Path) -> None:
    """The pages contain none of the most frequent forms of terse or foreign English."""
    assert foreign_phrases(prose_of(page)) == []


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "models", "data", "scorers"])
def test_messages_docstrings_and_comments_are_plain_english(folder: str) -> None:
    """The code contains none of these forms either, in docstrings, comments and (except in tests) strings."""
    found = {
        path.relative_to(ROOT).as_posix(): phrases
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in prose_in_code(path, messages=folder in ("src", "benchmarks", "models", "data"))
        if (phrases := foreign_phrases(text))
    }
    assert found == {}


def test_comments_in_settings_and_scripts_are_plain_english() -> None:
    """The comments of params, recipes, jobs, Makefile, Dockerfiles and scripts contain none of these forms."""
    files = sorted(path for pattern in SCRIPTS for path in ROOT.glob(pattern))
    assert len(files) > 20
    comments = {path: re.findall(r"(?:^| )#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE) for path in files}
    found = {path.name: phrases for path, lines in comments.items() if (phrases := foreign_phrases("\n".join(lines)))}
    assert found == {}


def test_the_report_is_plain_english() -> None:
    """The templates of report, summary and model card contain none of these forms."""
    templates = sorted((ROOT / "src").rglob("*.j2"))
    assert len(templates) == 3
    assert [phrases for path in templates if (phrases := foreign_phrases(path.read_text(encoding="utf-8")))] == []


@pytest.mark.parametrize(
    "text",
    [
        "status tells more",
        "the file lies there",
        "that is no price",
        "5 where nothing is said",
        "the run goes on",
        "it is made smaller, aloud",
        "1,300 tokens a second",
        "this machine can't",
    ],
)
def test_foreign_text_is_detected(text: str, tmp_path: Path) -> None:
    """The check detects one example of each form."""
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    assert sum(bool(re.search(pattern, prose_of(page))) for pattern in FOREIGN.values()) == 1
