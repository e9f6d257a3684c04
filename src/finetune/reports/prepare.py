"""`reports/prepare.json`: the ledger of all rows."""

from typing import Any

from finetune.reports.base import Report


class RiskReport(Report):
    """The number of rows with one kind of risk, and the lines of the first few."""

    rows: int
    first_lines: list[int]


class SourceReport(Report):
    """The counts of one source: the rows read are those dropped and those kept."""

    place: str
    format: str
    detected: bool
    sha256: str | None
    revision: str | None
    bytes: int
    unused_columns: list[str]
    read: int
    dropped: dict[str, int]
    bad_rows: list[str]
    risks: dict[str, RiskReport]
    kept: int
    splits: dict[str, int]
    groups: int
    labels: dict[str, int]


class SplitReport(Report):
    """The composition of a split."""

    examples: int
    groups: int
    by_agent: dict[str, int]
    by_source: dict[str, int]
    by_label: dict[str, int]


class PrepareReport(Report):
    """The complete ledger; `labels` are those of kept rows, by agent."""

    settings: dict[str, Any]  # the section `data` of params.yaml
    sources: dict[str, SourceReport]
    splits: dict[str, SplitReport]
    labels: dict[str, list[str]]
    prepared_sha256: dict[str, str]
