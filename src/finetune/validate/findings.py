"""A finding: the result of one check, with the place, the numbers and the line to change."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from finetune.console import markdown_table, table
from finetune.errors import Problem
from finetune.reports.validation import FindingReport
from finetune.validate.codes import CODES, COSTS, SEVERITIES, Severity, all_codes


@dataclass(frozen=True, slots=True)
class Finding(Problem):
    """The result of a check; severity and cost are its code's."""

    accepted: str | None = None  # the reason, where params.yaml accepts it

    @classmethod
    def of(cls, problem: Problem, code: str | None = None) -> Self:
        """A problem that a stage would stop at, as a finding that is reported with all the others."""
        return cls(code or problem.code, problem.place, problem.message, problem.remedy)

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return CODES[self.code].severity

    @property
    def stops(self) -> bool:
        """Whether the run stops at it."""
        return self.severity == "error" and self.accepted is None

    def report(self) -> FindingReport:
        """For the report."""
        return FindingReport(**asdict(self), severity=self.severity, cost=CODES[self.code].cost)


def by_cost(findings: Sequence[Finding]) -> list[Finding]:
    """What stops the run first, then by severity, then by what it costs; accepted ones after all others."""

    def rank(finding: Finding) -> tuple[bool, int, int]:
        cost = list(COSTS).index(CODES[finding.code].cost)
        return finding.accepted is not None, SEVERITIES.index(finding.severity), cost

    return sorted(findings, key=rank)


def accept(findings: Sequence[Finding], accepted: Mapping[str, str]) -> list[Finding]:
    """The findings, those that params.yaml accepts with the reason; and what is wrong with `findings.accept` itself."""
    found = {finding.code for finding in findings}
    given = [
        finding if CODES[finding.code].binding else replace(finding, accepted=accepted.get(finding.code))
        for finding in findings
    ]
    known = all_codes()
    for code in accepted:
        where = f"params.yaml: findings.accept.{code}"
        if code not in known:
            near = difflib.get_close_matches(code, known, n=1)
            advice = f"did you mean {near[0]}?" if near else "docs/findings.md lists them"
            given.append(Finding("accepted-unknown", where, "is not the code of a finding", advice))
        elif known[code].binding:
            what = "can't be accepted: the run could not continue"
            given.append(Finding("accepted-unknown", where, what, "remove it"))
        elif code not in found:
            given.append(Finding("accepted-unused", where, "was not found in this run", "remove it"))
    return by_cost(given)


def to_markdown(findings: Sequence[Finding], tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The report that a person reads: the findings, then each table of `tables` (title -> row -> value or cells)."""
    stopping, accepted = sum(f.stops for f in findings), sum(f.accepted is not None for f in findings)
    summary = f"{counted(findings)}, {stopping} of them errors" + (f", {accepted} accepted" if accepted else "")
    lines = ["# Validation", "", f"{summary}."]
    rows = []
    for finding in findings:
        state = finding.severity if finding.accepted is None else f"{finding.severity}, accepted"
        remedy = finding.remedy if finding.accepted is None else f"accepted: {finding.accepted}"
        rows.append([state, f"`{finding.code}`", finding.place, finding.message, remedy])
    if rows:
        lines += ["", *markdown_table(["severity", "code", "where", "what", "fix"], rows)]
    for title, content in tables.items():
        lines += ["", f"## {title}", "", *_table(content)]
    return "\n".join(lines) + "\n"


def _table(rows: Mapping[str, Any]) -> list[str]:
    """One line a row: a value, or one cell for each name of a mapping."""
    first = next(iter(rows.values()), 0)
    columns = list(first) if isinstance(first, Mapping) else ["value"]
    lines = []
    for name, value in rows.items():
        cells = [value[column] for column in columns] if isinstance(value, Mapping) else [value]
        shown = [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
        lines.append([name.replace("_", " "), *shown])
    return markdown_table(["", *(name.replace("_", " ") for name in columns)], lines)


def counted(findings: Sequence[Finding]) -> str:
    """How many findings, in words."""
    return "1 finding" if len(findings) == 1 else f"{len(findings)} findings"


def format_finding(finding: Finding) -> str:
    """A finding in one line; an accepted one with the reason in place of the fix."""
    if finding.accepted is None:
        return str(finding)
    return f"{finding.place}: {finding.message} (accepted: {finding.accepted})"


def show_findings(findings: Sequence[Finding]) -> None:
    """The findings as a table, in order of cost."""
    rows = [[finding.severity, finding.code, format_finding(finding)] for finding in findings]
    table("findings", ["severity", "code", "place, problem, fix"], rows)
