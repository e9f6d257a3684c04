"""What was run and seen, as it stands in the raw results and on the page."""

import os
import platform
from collections import Counter
from collections.abc import Mapping
from datetime import date
from typing import Any

from tests.chaos.faults import KINDS
from tests.chaos.rounds import FAILED, SAME, TOLD


def what_ran() -> dict[str, Any]:
    """Date, machine and versions."""
    from finetune.machine import processor_name, usable_memory, versions

    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": usable_memory(),
    }
    from importlib.metadata import version

    return {"date": str(date.today()), "machine": machine, "versions": {**versions(), "dvc": version("dvc")}}


def table_of(content: Mapping[str, Any]) -> list[str]:
    """Rounds and outcomes by kind, in Markdown."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for item in content["rounds"]:
        counts[item["kind"]][item["outcome"]] += 1
    lines = [
        "| kind | rounds | the same at once | a clear error, then the same | failed |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind, found in counts.items():
        lines.append(f"| {kind} | {found.total()} | {found[SAME]} | {found[TOLD]} | {found[FAILED]} |")
    every = sum(counts.values(), start=Counter[str]())
    return [*lines, f"| all | {every.total()} | {every[SAME]} | {every[TOLD]} | {every[FAILED]} |"]
