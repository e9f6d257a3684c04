"""The pages name only things that exist, quote only errors that the program raises, and show the plan's figures."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from finetune import VERSION
from finetune.config.recipes import read_recipe
from finetune.config.scorers import SCORERS
from finetune.plan.schedule import plan_schedule
from tests.builders.doc_claims import complaints, wrong_commands, wrong_links, wrong_scripts, wrong_targets
from tests.builders.doc_text import ROOT
from tests.house.list_errors import MARK, to_markdown

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("recipes", "jobs", "requirements", "scorers", "benchmarks")),
    ROOT / "models/templates/README.md",
]
ORIGINS = [ROOT / folder / "README.md" for folder in ("models/tiny-base", "data/raw/cpython", "data/banking77")]


def text_of(name: str) -> str:
    """Return the text of a page."""
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_on_a_page_exist(page: Path) -> None:
    """Every command, path and key on a page exists."""
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":
        text = text.partition("\n## [0.1.0]")[0]  # past versions may have had other names
    assert complaints(text, page) == []


@pytest.mark.parametrize("page", ORIGINS, ids=lambda page: page.parent.name)
def test_commands_and_links_on_an_origins_page_exist(page: Path) -> None:
    """Commands, options and links exist; these pages otherwise show another program's source, or a model."""
    text = page.read_text(encoding="utf-8")
    assert [line for check in (wrong_targets, wrong_commands, wrong_scripts) for line in check(text)] == []
    assert list(wrong_links(text, page)) == []
    scripts = re.findall(r"^python (\S+\.py)", text, flags=re.MULTILINE)
    assert scripts and all((ROOT / name).is_file() for name in scripts)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("`make plna`", "make plna: no such target"),
        ("```\n./finetune use h1000\n```", "finetune use h1000: no such recipe"),
        ("```\nmake repro DETACHED=1\n```", "make DETACHED=1: nothing reads DETACHED"),
        ("`make train-h1000`", "make train-h1000: no such target"),
        ("```\nmake lint && make tset\n```", "make tset: no such target"),
        ("```\n./finetune push && ./finetune pul\n```", "finetune pul: no command pul"),
        ("`make lint tset`", "make tset: no such target"),
        ("`HF_HOME=x make plna`", "make plna: no such target"),
        ("```\n./finetune push | ./finetune pul\n```", "finetune pul: no command pul"),
        ("`./finetune push || make tset`", "make tset: no such target"),
        ("`.venv/bin/python -m finetune plna`", "python -m finetune plna: no command plna"),
        ("`HF_HOME=x .venv/bin/dvc exp runn`", "dvc exp runn: no command runn"),
        ("`python -m tests.nothing`", "python -m tests.nothing: no such module"),
        ("`python -m finetune.nope`", "python -m finetune.nope: no such module"),
        ("`python -m pytset tests`", "python -m pytset: no such module"),
        ("`python -m tests.chaos --rouns 3`", "python -m tests.chaos: no option --rouns"),
        ("`python benchmarks/run.py --onyl x`", "python benchmarks/run.py: no option --onyl"),
        ("`lora_aplha: 3`", "lora_aplha: no key of params.yaml"),
        ("`- lora_aplha: 3`", "lora_aplha: no key of params.yaml"),
        ("`{rule: at_least, metirc: a}`", "metirc: no key of {rule: at_least, metirc: a}"),
        ("```yaml\nlora_aplha: 3\n```", "lora_aplha: no key of params.yaml"),
        ("```yaml\nadapter:\n  lora_aplha: 3\n```", "lora_aplha: no key of params.yaml"),
        ("so: `sbatch jobs/slurm.sh h1000`", "job of h1000: no such recipe"),
        ("`python -m finetune paln h100`", "python -m finetune paln h100: no command paln"),
        ("`python -m finetune plan --exampels 3`", "python -m finetune plan --exampels 3: no option --exampels"),
        ("`./finetune plan --exampels 3`", "finetune plan --exampels 3: no option --exampels"),
        ("`finetune try --agnet x`", "finetune try --agnet x: no option --agnet"),
        ("`./finetune dvc exp runn`", "finetune dvc exp runn: no command runn"),
        ("`dvc exp runn`", "dvc exp runn: no command runn"),
        ("`dvc repro --forse`", "dvc repro --forse: no option --forse"),
        ("`dvc exp run -S train.learning=1`", "-S train.learning: no key of params.yaml"),
        ("```\nmkae plan\n```", "mkae plan: mkae is not a program that these pages use"),
        ("`src/finetune/trainer.py`", "src/finetune/trainer.py: no such place"),
        ("`reports/verdict.json`", "reports/verdict.json: no such place"),
        ("`parms.yaml`", "parms.yaml: no such file"),
        ("`train.warmup_stepz`", "train.warmup_stepz: no key of params.yaml"),
        ("`data.sources.0.paht`", "data.sources.0.paht: no key of params.yaml"),
        ("`{rule: at_leats}`", "rule: at_leats: no such kind"),
        ("`{scorer: exact}`", "scorer: exact: no such kind"),
        ("```yaml\ndistributed: {devices: 4, nods: 1}\n```", "nods: no key of params.yaml"),
        ("```yaml\ntrain:\n  max_length: long\n```", "max_length: Input should be a valid integer"),
        ("```yaml\nevaluate:\n  scorers: {a: {scorer: no, of: null}}\n```", "scorers: Input tag 'no' found"),
        ("`warmup-to-long`", "warmup-to-long: neither a finding nor a recipe, target or package"),
        ("```yaml\nfindings:\n  accept:\n    warmup-to-long: why\n```", "warmup-to-long: no finding"),
        ("[x](nowhere.md)", "(nowhere.md): no such file"),
        ("[x](README.md#no-such-title)", "(README.md#no-such-title): no such heading"),
    ],
)
def test_names_that_do_not_exist_are_reported(text: str, complaint: str) -> None:
    """The checks detect names that do not exist."""
    assert any(line.startswith(complaint) for line in complaints(text, ROOT / "page.md"))


def test_names_that_exist_are_accepted() -> None:
    """Valid names of the same kinds are accepted, and prose is ignored."""
    text = (
        "`./finetune plan h100 --price 2.5`, `make train-h100 DETACH=1`, `python -m finetune --debug STAGE`, "
        "`./finetune dvc repro -f`, "
        "`dvc exp run --queue -S adapter.r=8`, `src/finetune/train`, `reports/train.json`, `data.sources.0.path`, "
        "`make lint test`, `HF_HOME=x ./finetune push | finetune pull`, `python -m tests.chaos --rounds 3 --only x`, "
        "`python benchmarks/run.py --only x`, `.venv/bin/python -m finetune plan h100`, `lora_alpha: 3`, "
        "`{rule: at_least, metric, threshold: 0.5}`, `python -m pytest -n 2`, "
        "`warmup-too-long`, [x](README.md#results); make haste, train.well\n\n    make repro runs in the background\n"
        "\n```yaml\nsplit: {method: exact, train: 0.8, validation: 0.1, test: 0.1, stratify_by: null}\n```\n"
    )
    assert complaints(text, ROOT / "page.md") == []


def test_every_page_is_in_the_index_and_every_target_on_a_page() -> None:
    """Every page is reachable from the index, and every target is documented."""
    index = text_of("docs/README.md")
    pages = [page.name for page in PAGES if page.parent.name == "docs" and page.name != "README.md"]
    assert [name for name in pages if f"({name})" not in index] == []
    contents = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    targets = re.findall(r"^([a-z][a-z-]*):", text_of("Makefile"), flags=re.MULTILINE)
    assert [name for name in targets if not is_mentioned(name, contents)] == []


def is_mentioned(name: str, contents: str) -> bool:
    """Return whether a text has this target, and not only a longer one."""
    return bool(re.search(rf"\bmake\s+{re.escape(name)}(?![\w-])", contents))


def test_a_longer_target_is_not_a_mention() -> None:
    """`make test-fast` is not a mention of `make test`."""
    assert is_mentioned("test", "run `make\ntest` first") and is_mentioned("test-fast", "make test-fast x")
    assert not is_mentioned("test", "make test-fast, make tests and remake test")


def test_every_scorer_is_documented() -> None:
    """The table of the verdict page is where users look for scorers."""
    page = text_of("docs/verdict.md")
    assert [name for name in SCORERS if f"\n| `{name}` | " not in page] == []


def test_the_readme_is_within_its_limits() -> None:
    """The README can be read in a few minutes; its picture exists and is small."""
    assert len(re.findall(r"[A-Za-z][\w'./-]*", text_of("README.md"))) < 900
    assert "](docs/report.png)" in text_of("README.md")
    assert (ROOT / "docs/report.png").stat().st_size < 200_000


# ---- Quoted errors

OF_OTHERS = {
    "Unable to read RWLock-file",
    "dvc: command not found",
    "finetune: command not found",
}  # errors of DVC, the shell and Python


def quoted_errors() -> Iterator[str]:
    """Yield the messages quoted on the pages on troubleshooting and containers, cut at ellipses."""
    titles = {
        "docs/troubleshooting.md": "## The most frequent messages",
        "docs/containers.md": "## When it does not start",
    }
    for name, title in titles.items():
        table = text_of(name).partition(f"{title}\n")[2].partition("\n## ")[0]
        for quoted in re.findall(r"^\| `(.+?)` \|", table, flags=re.MULTILINE):
            parts = (part.strip(" ():;,?") for part in re.split("…|; ", quoted))
            yield from (part for part in parts if len(part) > 4)


@cache
def templates() -> list[list[str | None]]:
    """Return every text of the sources in pieces; None marks an inserted value."""
    found: list[list[str | None]] = []
    for path in (ROOT / "src/finetune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append([part.value if isinstance(part, ast.Constant) else None for part in node.values])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append([node.value])
    return found


def literal_letters(text: str, template: list[str | None]) -> int:
    """Return how many letters of the text are literal in the template; 0 if it does not match."""
    symbols = [letter for part in template for letter in (part if part is not None else [None])]
    states = dict.fromkeys(range(len(symbols)), 0)
    for letter in text:
        reached: dict[int, int] = {}
        for at, count in states.items():
            while at < len(symbols) and symbols[at] is None:  # a value matches any letters, or none
                reached[at] = max(reached.get(at, 0), count)
                at += 1
            if at < len(symbols) and symbols[at] == letter:
                reached[at + 1] = max(reached.get(at + 1, 0), count + 1)
        states = reached
    return max(states.values(), default=0)


def is_raised(quoted: str) -> bool:
    """Return whether a text of the sources can produce this, mostly literally; keys before a colon are ignored."""
    text = re.sub(r"^(?:[\w.]+: )+", "", quoted)
    words = re.findall(r"[a-z]{3,}", text)
    near = [one for one in templates() if any(word in part for part in one if part for word in words)]
    return any(2 * literal_letters(text, one) >= len(text) for one in near)


@pytest.mark.parametrize("quoted", sorted(set(quoted_errors()) - OF_OTHERS))
def test_errors_on_the_pages_exist_in_the_sources(quoted: str) -> None:
    """Quoted messages equal those of the program, so that users can search for them."""
    assert is_raised(quoted)


def test_the_list_of_errors_is_up_to_date() -> None:
    """The page is generated from the sources by PYTHONPATH=src:. python -m tests.house.list_errors."""
    assert text_of("docs/troubleshooting.md").partition(MARK)[2] == to_markdown().partition(MARK)[2]


def test_an_invented_error_is_detected() -> None:
    """A nearly correct quotation is detected, too."""
    assert is_raised("predicted peak 26.6 GB, available 25.8 GB")
    assert not is_raised("a peak of 26.6 GB is foreseen, 25.8 GB are there")
    assert not is_raised("the adapter has gone out for lunch")


# ---- Figures

FIGURES = (("estimate", 1), ("lower", 1), ("target", 0))


def test_the_worked_steps_equal_the_plans() -> None:
    """The steps worked out in docs/recipes.md equal those of the plan."""
    page = text_of("docs/recipes.md")
    for name, rows in (("cpu", 238), ("h100", 15_000), ("a100x4", 10_000), ("tiny", 2_731)):
        train = read_recipe(name, ROOT).train
        schedule = plan_schedule(train, rows, train.distributed.devices)
        row = rf"\| `{name}`, {rows:,} \| .* \| .*\b{schedule.steps_per_epoch:,} \| .* = {schedule.steps:,} \|"
        assert re.search(row, page), schedule


@pytest.mark.slow
def test_the_shown_plan_equals_its_output() -> None:
    """The shown output equals that of the command up to where the page cuts it."""
    words = ["plan", "h100", "--examples", "15000", "--length", "1500", "--price", "2.5"]
    done = subprocess.run([sys.executable, "-m", "finetune", *words], cwd=ROOT, capture_output=True, text=True)
    shown = text_of("docs/h100.md").partition("    plan of recipe h100")[2].partition("\n\n")[0]
    for line in ("plan of recipe h100" + shown).splitlines():
        assert line.strip().removesuffix("…").rstrip() in done.stdout
    for part, size in re.findall(
        r"^\| \**(\w+)\** \| .*?\| \**([\d.]+)\** \|$", text_of("docs/recipes.md"), re.MULTILINE
    ):
        assert re.search(rf"^{part} +│ {size} GB", done.stdout, flags=re.MULTILINE), part


def test_the_results_on_the_pages_equal_those_of_the_run() -> None:
    """Reproducible figures agree: right answers and their bounds, but not times and memory."""
    report = ROOT / "reports/decision.json"
    if not report.exists():
        pytest.skip("no finished run is here (make repro)")
    decision = json.loads(report.read_text(encoding="utf-8"))
    if f"finetune-tiny-{decision['adapter_sha256'][:12]}" not in text_of("docs/h100.md"):
        pytest.skip("the finished run here is another one than the pages speak of")
    shown = [criterion for criterion in decision["criteria"] if criterion["method"] == "Clopper-Pearson"]
    assert len(shown) == 2
    for criterion in shown:
        estimate, lower, asked = (f"{100 * criterion[key]:.{digits}f}%" for key, digits in FIGURES)
        row = rf"^\| {criterion['group']} \| .* \| \*\*{estimate}\*\* \| {lower} \(required: {asked}\) \|$"
        assert re.search(row, text_of("README.md"), flags=re.MULTILINE), row
    first = shown[0]
    for figure in (first["estimate"], first["lower"], first["upper"]):
        assert f"{100 * figure:.1f}%" in text_of("docs/verdict.md")


# ---- Configurations run elsewhere


def commands_of(text: str, pattern: str) -> list[str]:
    """Return the commands of a file by the pattern of their line."""
    return re.findall(pattern, text, flags=re.MULTILINE)


def test_the_workflow_runs_make_targets() -> None:
    """Actions are pinned and without write permission, jobs have time limits, and developers can run every command."""
    text = text_of(".github/workflows/ci.yml")
    runs = commands_of(text, r"^ +(?:- )?run: (?:sudo env (?:\S+=\S+ )+)?(.*)$")
    assert {"make lint", "make test", "make repro", "make test-end-to-end", "make test-images"} <= set(runs)
    assert complaints("".join(f"`{run}`\n" for run in runs if run.startswith("make ")), ROOT / "page.md") == []
    uses = commands_of(text, r"uses: (.*)$")
    assert uses and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v[\d.]+", one) for one in uses)
    assert "permissions:\n  contents: read\n" in text and text.count("permissions:") == 1
    assert text.count("runs-on:") == text.count("timeout-minutes:")


def test_the_hooks_use_the_locked_tools() -> None:
    """The hooks use the same tool versions as the checks."""
    locked = text_of("requirements/dev.lock")
    for entry in commands_of(text_of(".pre-commit-config.yaml"), r"entry: \.venv/bin/(.*)$"):
        tool = entry.removeprefix("python -m ").split()[0]
        assert re.search(rf"^{tool}==", locked, flags=re.MULTILINE), tool


def test_licence_and_version_are_consistent() -> None:
    """pyproject.toml, LICENSE, README and CHANGELOG agree."""
    project = text_of("pyproject.toml")
    assert 'license = "Apache-2.0"' in project and "Apache License" in text_of("LICENSE")
    assert "Licence: Apache-2.0" in text_of("README.md")
    (version,) = commands_of(project, r'^version = "(.*)"$')
    assert f"\n## [{version}]" in text_of("CHANGELOG.md") and version == VERSION
