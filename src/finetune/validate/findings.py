"""A finding: the result of one check, with the place, the numbers and the line to change."""

from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or worth knowing."""

    code: str
    severity: Severity
    where: str
    what: str
    fix: str

    def to_json(self) -> dict[str, str]:
        """For the report."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.fix}"


def by_severity(findings: list[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; within one severity in the order of the checks."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def to_markdown(findings: list[Finding], counts: dict[str, dict[str, int]], schedule: dict[str, int]) -> str:
    """The report that a person reads."""
    lines = [
        "# Validation",
        "",
        f"{len(findings)} findings, {sum(f.severity == 'error' for f in findings)} of them errors.",
    ]
    if findings:
        lines += ["", "| severity | code | where | what | fix |", "|---|---|---|---|---|"]
    for finding in findings:
        cells = [finding.severity, f"`{finding.code}`", finding.where, finding.what, finding.fix]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "## Schedule", "", "| what | value |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value:,} |" for name, value in schedule.items()]
    names = list(next(iter(counts.values()))) if counts else []
    lines += ["", "## Tokens", "", "| split | " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines += ["|---" * (len(names) + 1) + "|"]
    lines += [f"| {split} | " + " | ".join(f"{row[name]:,}" for name in names) + " |" for split, row in counts.items()]
    return "\n".join(lines) + "\n"
