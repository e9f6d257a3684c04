"""The account of every row: read, dropped and why, kept, and where it went. Its sums must balance."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.config import Split
from finetune.records import Example

BAD_ROW, FAILED, DUPLICATE = "bad_row", "not_successful", "exact_duplicate"


@dataclass
class SourceAccount:
    """The account of one source."""

    path: str
    sha256: str
    bytes: int
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    bad_rows: list[str] = field(default_factory=list)  # the first few, as `file:line: why`
    kept: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the report; reasons in order of their names."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "read": self.read,
            "dropped": dict(sorted(self.dropped.items())),
            "bad_rows": self.bad_rows,
            "kept": self.kept,
        }


def account_splits(splits: Mapping[Split, list[Example]]) -> dict[str, Any]:
    """For each split: examples, by agent and by source."""
    return {
        name: {
            "examples": len(examples),
            "by_agent": dict(sorted(Counter(example.agent for example in examples).items())),
            "by_source": dict(sorted(Counter(example.source for example in examples).items())),
        }
        for name, examples in splits.items()
    }


def check_balance(accounts: Mapping[str, SourceAccount], splits: Mapping[Split, list[Example]]) -> None:
    """AssertionError unless every row read was dropped for a reason or is in exactly one split."""
    for name, account in accounts.items():
        assert account.read == account.kept + sum(account.dropped.values()), f"ledger of {name} does not balance"
        placed = sum(example.source == name for examples in splits.values() for example in examples)
        assert placed == account.kept, f"{name}: {account.kept} rows kept, {placed} in the splits"
    rows = [(example.source, example.line) for examples in splits.values() for example in examples]
    assert len(rows) == len(set(rows)), "one row is in two places"
