"""A finding: the result of one check, with the location, the numbers and the setting to change."""

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
    """The result of a check; severity and cost are those of its code."""

    accepted: str | None = None  # the reason, if params.yaml accepts it

    @classmethod
    def of(cls, problem: Problem, code: str | None = None) -> Self:
        """Convert a problem that would stop a later stage to a finding, reported with all the others."""
        return cls(code or problem.code, problem.place, problem.message, problem.remedy)

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

    @property
    def severity(self) -> Severity:
        """The severity of its code."""
        return CODES[self.code].severity

    @property
    def stops(self) -> bool:
        """Whether the finding stops the run."""
        return self.severity == "error" and self.accepted is None

    def report(self) -> FindingReport:
        """Convert to the report's form."""
        return FindingReport(**asdict(self), severity=self.severity, cost=CODES[self.code].cost)


def by_cost(findings: Sequence[Finding]) -> list[Finding]:
    """Sort: findings that stop the run first, then by severity, then by cost; accepted ones last."""

    def rank(finding: Finding) -> tuple[bool, int, int]:
        cost = list(COSTS).index(CODES[finding.code].cost)
        return finding.accepted is not None, SEVERITIES.index(finding.severity), cost

    return sorted(findings, key=rank)


def accept(findings: Sequence[Finding], accepted: Mapping[str, str]) -> list[Finding]:
    """Mark accepted findings with their reason, and add findings about `findings.accept` itself."""
    codes = {finding.code for finding in findings}
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
        elif code not in codes:
            given.append(Finding("accepted-unused", where, "was not found in this run", "remove it"))
    return by_cost(given)


def to_markdown(findings: Sequence[Finding], tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the readable report: the findings, then each table of `tables` (title -> row -> value or cells)."""
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
    """Format one line per row: a value, or one cell for each name of a mapping."""
    first = next(iter(rows.values()), 0)
    columns = list(first) if isinstance(first, Mapping) else ["value"]
    lines = []
    for name, value in rows.items():
        cells = [value[column] for column in columns] if isinstance(value, Mapping) else [value]
        shown = [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
        lines.append([name.replace("_", " "), *shown])
    return markdown_table(["", *(name.replace("_", " ") for name in columns)], lines)


def counted(findings: Sequence[Finding]) -> str:
    """Return the number of findings in words."""
    return "1 finding" if len(findings) == 1 else f"{len(findings)} findings"


def format_finding(finding: Finding) -> str:
    """Format a finding in one line; an accepted one with its reason in place of the fix."""
    if finding.accepted is None:
        return str(finding)
    return f"{finding.place}: {finding.message} (accepted: {finding.accepted})"


def show_findings(findings: Sequence[Finding]) -> None:
    """Print the findings as a table, in order of cost."""
    rows = [[finding.severity, finding.code, format_finding(finding)] for finding in findings]
    table("findings", ["severity", "code", "place, problem, fix"], rows)
