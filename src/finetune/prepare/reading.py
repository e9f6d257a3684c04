"""Read all sources into one table: detect formats, read rows in parallel, and account for every row."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO

import orjson

from finetune.config.data import DataConfig, PrepareParams, Source
from finetune.console import byte_progress, short
from finetune.errors import ConfigError, DataError
from finetune.prepare.ledger import SHOWN, Risk, SourceAccount
from finetune.prepare.readers.batches import BadRow, Batch, Row
from finetune.prepare.risks import category_of
from finetune.prepare.row_table import Spool
from finetune.prepare.rows import BAD_ROW, Reading, ReadRows, read_batch
from finetune.prepare.sources import Opened, open_source
from finetune.prepare.workers import Workers
from finetune.records.formats import SHOWN_NAMES, check_columns, detect_format, parse_row, unused_columns

ROWS_LOOKED_AT = 100  # rows used to detect a format


class Notes:
    """The files that list every dropped and every risky row."""

    def __init__(self, dropped: IO[bytes], risks: IO[bytes]) -> None:
        self._dropped, self._risks = dropped, risks

    def dropped(self, source: str, line: int, reason: str, like: str | None = None) -> None:
        """Write one dropped row; `like` names the row that it repeats."""
        row = {"source": source, "line": line, "reason": reason} | ({"like": like} if like else {})
        self._dropped.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def risk(self, source: str, line: int, example_id: str, kind: str) -> None:
        """Write one kind of risk in one row, without the risky text itself."""
        row = {"source": source, "line": line, "kind": kind} | ({"id": example_id} if example_id else {})
        self._risks.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


@contextmanager
def open_notes(folder: Path) -> Iterator[Notes]:
    """Open both files in a folder."""
    with (folder / "dropped.jsonl").open("wb") as dropped, (folder / "risks.jsonl").open("wb") as risks:
        yield Notes(dropped, risks)


def read_source(
    at: int,
    params: PrepareParams,
    root: Path,
    labels: dict[str, list[str]],
    workers: Workers,
    spool: Spool,
    notes: Notes,
) -> SourceAccount:
    """Read one source into the spool; return its counts. Raise DataError according to `on_bad_row` and `risks`."""
    data, source = params.data, params.data.sources[at]
    opened = open_source(data, source, root)
    format_, unused, batches = know_format(opened, source)
    columns, detected = [short(name) for name in unused[:SHOWN_NAMES]], source.format is None
    account = SourceAccount(
        opened.where, format_, detected, opened.sha256, opened.revision, opened.bytes, unused_columns=columns
    )
    tokenizer = (params.model.base, params.model.revision) if data.filters.tokens.given else None
    reading = Reading(source, format_, data, labels, tokenizer)
    with byte_progress(opened.bytes, f"reading {source.name}") as show:
        for found in workers(read_batch, ((reading, batch) for batch in batches)):
            account_batch(found, account, opened, source, data, notes)
            spool.add(at, found)
            show(found.read_bytes)
    check_bad_fraction(data, account)
    return account


def know_format(opened: Opened, source: Source) -> tuple[str, list[str], Iterator[Batch]]:
    """Return the format (named or detected), the columns that it ignores, and all batches, including the first."""
    first = next(opened.batches, None)
    rows = first.rows()[:ROWS_LOOKED_AT] if first else []
    good = [row.fields for row in rows if isinstance(row, Row)]
    format_ = source.format
    if format_ is None and not good:
        bad = next((row for row in rows if isinstance(row, BadRow)), None)
        what = f"{opened.at(bad.line)}: {bad.why}" if bad else f"{opened.where}: has no rows"
        raise DataError(
            "", f"{what}; so the format of source {source.name!r} can't be detected", "fix it or set format"
        )
    try:
        format_ = format_ or detect_format(good, source.columns)
        if good:
            check_columns(good, source.columns)
    except ValueError as error:
        raise DataError(opened.where, f"source {source.name!r} {error}") from None
    batches = chain([first] if first else [], opened.batches)
    return format_, unused_columns(good, format_, source.columns), batches


def account_batch(
    found: ReadRows, account: SourceAccount, opened: Opened, source: Source, data: DataConfig, notes: Notes
) -> None:
    """Count a batch's rows, or stop at the first bad or risky one if so configured."""
    if found.bad and data.on_bad_row == "stop":
        bad = found.bad[0]
        raise DataError(opened.at(bad.line), bad.why, "fix the row, or set data.on_bad_row: skip")
    if found.stopped:
        line, kind = found.stopped
        remedy = f"fix the row, or set data.risks.{category_of(kind)}: drop (or note)"
        raise DataError(opened.at(line), f"contains {kind}", remedy)
    account.read += len(found.lines)
    for line, reason in zip(found.lines, found.reasons, strict=True):
        if reason is not None:
            account.dropped[reason] += 1
            notes.dropped(source.name, line, reason)
    for bad in found.bad[: SHOWN - len(account.bad_rows)]:
        account.bad_rows.append(f"{opened.at(bad.line)}: {bad.why}")
    for line, example_id, kind in found.risky:
        account.risks.setdefault(kind, Risk()).add(line)
        notes.risk(source.name, line, example_id, kind)


def check_bad_fraction(data: DataConfig, account: SourceAccount) -> None:
    """Raise DataError if more of the source is bad than `data.max_bad_fraction` allows, or if it has no rows."""
    if not account.read:
        raise DataError(account.place, "has no rows", "add rows to it or remove it from data.sources")
    bad = account.dropped[BAD_ROW]
    if bad > data.max_bad_fraction * account.read:
        what = f"{bad} of {account.read} rows are bad, which exceeds data.max_bad_fraction: {data.max_bad_fraction:g}"
        raise DataError(account.place, what, f"the first one: {account.bad_rows[0]}")


def read_labels(data: DataConfig, root: Path) -> dict[str, list[str]]:
    """Return the labels of all classification sources by agent, if `data.labels_in_prompt` is set.

    Raises ConfigError if a test or validation file names an agent without training data: its prompts would differ.
    """
    found: dict[str, set[str]] = {}
    trained: set[str] = set()
    for source in data.sources if data.labels_in_prompt else ():
        opened = open_source(data, source, root)
        format_, _, batches = know_format(opened, source)
        if format_ == "classification":
            agents = collect_labels(batches, source, found)
            trained |= set() if source.held_out else agents
    if unknown := sorted(set(found) - trained):
        what = f"agent {unknown[0]!r} occurs in test but not in training, so its prompts would list other labels"
        remedy = "give the sources of one task the same agent"
        raise ConfigError("params.yaml: data.labels_in_prompt", what, remedy)
    return {agent: sorted(labels) for agent, labels in sorted(found.items())}


def collect_labels(batches: Iterator[Batch], source: Source, found: dict[str, set[str]]) -> set[str]:
    """Add one source's labels and return its agents; bad rows are ignored here and reported when they are read."""
    agents = set()
    for row in chain.from_iterable(batch.rows() for batch in batches):
        try:
            conversation = parse_row(row.fields if isinstance(row, Row) else {}, "classification", source.columns)
        except ValueError:
            continue
        agent = conversation.agent or source.default_agent
        agents.add(agent)
        found.setdefault(agent, set()).add(conversation.label or "")
    return agents
