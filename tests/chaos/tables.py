"""The description and the table of the rounds, for the raw results and the page."""

from collections import Counter
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from typing import Any

from finetune.hardware.devices import describe_machine
from finetune.hardware.versions import versions
from tests.chaos.faults import KINDS
from tests.chaos.rounds import FAILED, SAME, TOLD, UNHIT


def what_ran() -> dict[str, Any]:
    """Return date, machine and versions."""
    ran = {"date": str(date.today()), "machine": describe_machine("cpu").model_dump()}
    return {**ran, "versions": {**versions(), "dvc": version("dvc")}}


def table_of(content: Mapping[str, Any]) -> list[str]:
    """Return rounds and outcomes by kind as a Markdown table."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for item in content["rounds"]:
        counts[item["kind"]][item["outcome"]] += 1
    lines = [
        "| kind | rounds | same result | error, then same result | no effect | failed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind, found in counts.items():
        lines.append(row(kind, found))
    return [*lines, row("all", sum(counts.values(), start=Counter[str]()))]


def row(kind: str, found: Counter[str]) -> str:
    """Return the row of one kind."""
    cells = [kind, found.total(), *(found[outcome] for outcome in (SAME, TOLD, UNHIT, FAILED))]
    return f"| {' | '.join(map(str, cells))} |"
