"""The ledger of all rows: read, dropped with the reason, kept, and in which split. Its sums must balance."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from finetune.config.types import SPLITS
from finetune.console import markdown_table, short
from finetune.prepare.row_table import REASONS, Column, Table
from finetune.prepare.split import Places
from finetune.reports.prepare import PrepareReport, RiskReport, SourceReport, SplitReport

SHOWN = 20  # rows of a kind that the ledger lists; data/prepared/{dropped,risks}.jsonl list all


@dataclass
class Risk:
    """The number of rows with one kind of risk, and the lines of the first few."""

    rows: int = 0
    first_lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        """Count one more row."""
        self.rows += 1
        if len(self.first_lines) < SHOWN:
            self.first_lines.append(line)


@dataclass
class SourceAccount:
    """The counts of one source."""

    place: str
    format: str
    detected: bool
    sha256: str | None
    revision: str | None
    bytes: int
    unused_columns: list[str]
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    bad_rows: list[str] = field(default_factory=list)  # the first few, as `file:line: why`
    risks: dict[str, Risk] = field(default_factory=dict)  # by kind
    kept: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    groups: int = 0  # of kept rows that stay together: by group, or without groups by prompt and similarity
    labels: dict[str, int] = field(default_factory=dict)

    def report(self) -> SourceReport:
        """Convert to the report's form, with reasons and kinds sorted by name."""
        risks = {kind: RiskReport(**vars(risk)) for kind, risk in sorted(self.risks.items())}
        return SourceReport(**(vars(self) | {"dropped": dict(sorted(self.dropped.items())), "risks": risks}))


def account_table(accounts: Sequence[SourceAccount], table: Table, places: Places, cluster: Column) -> None:
    """Add the rows dropped after reading to the counts, and split, group and label of the other rows."""
    for at, account in enumerate(accounts):
        rows = np.flatnonzero(table.source == at)
        reasons = np.bincount(table.reason[rows], minlength=len(REASONS))
        account.dropped.update({name: int(n) for name, n in zip(REASONS, reasons, strict=True) if name and n})
        kept = rows[table.reason[rows] == 0]
        counts = np.bincount(places[kept], minlength=len(SPLITS))
        account.kept = len(kept)
        account.splits = {name: int(n) for name, n in zip(SPLITS, counts, strict=True)}
        account.groups = _count_groups(table, kept, cluster)
        account.labels = _count(table.label[kept][table.label[kept] >= 0], table.labels)


def account_splits(table: Table, places: Places, cluster: Column, sources: Sequence[str]) -> dict[str, SplitReport]:
    """Return for each split: examples, groups of rows that stay together, and examples by agent, source and label."""
    found: dict[str, SplitReport] = {}
    for at, name in enumerate(SPLITS):
        rows = np.flatnonzero((table.reason == 0) & (places == at))
        found[name] = SplitReport(
            examples=len(rows),
            groups=_count_groups(table, rows, cluster),
            by_agent=_count(table.agent[rows], table.agents),
            by_source=_count(table.source[rows], sources),
            by_label=_count(table.label[rows][table.label[rows] >= 0], table.labels),
        )
    return found


def _count_groups(table: Table, rows: Column, cluster: Column) -> int:
    group = table.group[rows]
    return len(np.unique(group[group != 0])) + len(np.unique(cluster[rows][group == 0]))


def _count(numbers: Column, names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(numbers, minlength=len(names))
    return dict(sorted((name, int(n)) for name, n in zip(names, counts, strict=True) if n))


def check_balance(
    accounts: Sequence[SourceAccount], splits: Mapping[str, SplitReport], written: Mapping[str, int]
) -> None:
    """Raise AssertionError unless every row was dropped with a reason, or written to exactly one split."""
    for account in accounts:
        dropped = sum(account.dropped.values())
        assert account.read == account.kept + dropped, f"the ledger of {account.place} does not add up"
        assert account.kept == sum(account.splits.values()), f"{account.place}: kept rows and rows in the splits differ"
    for name in SPLITS:
        split, examples = splits[name], splits[name].examples
        assert examples == sum(account.splits[name] for account in accounts), f"{name}: sources do not add up"
        for by, counts in (("agent", split.by_agent), ("source", split.by_source)):
            assert examples == sum(counts.values()), f"{name}: counts by {by} do not add up"
        assert written[name] == examples, f"{name}: {examples} examples accounted for, {written[name]} written"


def to_markdown(report: PrepareReport) -> str:
    """Format the ledger as Markdown."""
    sources = report.sources
    lines = [
        "# Rows",
        "",
        "Every row read was either dropped for a stated reason or assigned to exactly one split.",
        "",
    ]
    lines += _table(["source", "read", "dropped", "kept", *SPLITS], [_rows_of(name, sources[name]) for name in sources])
    lines += ["", "## Sources", ""]
    about = ["source", "format", "bytes", "content", "groups", "labels", "unused columns"]
    lines += _table(about, [_about(name, sources[name]) for name in sources])
    for by, what in (("by_agent", "agent"), ("by_label", "label")):
        counted = {split: getattr(report.splits[split], by) for split in SPLITS}
        names = sorted({name for counts in counted.values() for name in counts})
        if names:
            counts = [[name, *(f"{counted[split].get(name, 0):,}" for split in SPLITS)] for name in names]
            lines += ["", f"## Examples by {what}", "", *_table([what, *SPLITS], counts)]
    risks = [
        [name, kind, f"{found.rows:,}", ", ".join(map(str, found.first_lines))]
        for name, account in sources.items()
        for kind, found in account.risks.items()
    ]
    if risks:
        lines += ["", "## Risky rows", "", "All of them are listed in `data/prepared/risks.jsonl`.", ""]
        lines += _table(["source", "kind", "rows", "first lines"], risks)
    bad = [[line] for account in sources.values() for line in account.bad_rows]
    if bad:
        lines += ["", "## Bad rows", "", *_table(["first cases"], bad)]
    return "\n".join(lines) + "\n"


def _rows_of(name: str, account: SourceReport) -> list[str]:
    placed = (f"{account.splits[split]:,}" for split in SPLITS)
    return [name, f"{account.read:,}", drops(account.dropped), f"{account.kept:,}", *placed]


def _about(name: str, account: SourceReport) -> list[str]:
    what = f"sha256 {account.sha256}" if account.sha256 else f"revision {account.revision}"
    labels, unused = len(account.labels), ", ".join(account.unused_columns) or "none"
    return [
        name,
        format_of(account),
        f"{account.bytes:,}",
        what,
        f"{account.groups:,}",
        f"{labels:,}",
        unused,
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a table without HTML, links or markup, whatever names a file gives its agents."""
    plain = [[re.sub(r"([\\<>\[\]`*])", r"\\\1", short(cell, 300)) for cell in row] for row in rows]
    return markdown_table(columns, plain)


def format_of(account: SourceReport) -> str:
    """Return the source's format, and whether it was detected."""
    return f"{account.format}{' (detected)' if account.detected else ''}"


def drops(dropped: Mapping[str, int]) -> str:
    """Format drops as `12 exact_duplicate, 3 bad_row`, or `none`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()) if count) or "none"
