"""The prepare stage: sources -> `data/prepared/*.jsonl`, `reports/prepare.json` and `reports/prepare.md`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from finetune.config.data import DataConfig, PrepareParams
from finetune.config.types import SPLITS
from finetune.console import say, table
from finetune.errors import DataError
from finetune.files.atomic import publish_directory, write_json, write_lines
from finetune.files.hashing import sha256_file
from finetune.paths import Paths
from finetune.prepare.dedup import continued_pairs, drop_exact, drop_near, find_near
from finetune.prepare.hashing import Pairs, equal_pairs
from finetune.prepare.ledger import (
    SourceAccount,
    account_splits,
    account_table,
    check_balance,
    drops,
    format_of,
    to_markdown,
)
from finetune.prepare.mixture import sample
from finetune.prepare.reading import Notes, open_notes, read_labels, read_source
from finetune.prepare.row_table import REASONS, Table, open_spool
from finetune.prepare.sources import work_bytes
from finetune.prepare.split import Places, place_rows
from finetune.prepare.workers import Workers, open_workers
from finetune.reports.prepare import PrepareReport, SplitReport


def run(params: PrepareParams, paths: Paths) -> None:
    """Read all sources, select rows as configured, split them, and account for the others."""
    data, root = params.data, paths.root
    labels = read_labels(data, root)
    with (
        publish_directory(paths.prepared) as folder,
        open_notes(folder) as notes,
        open_spool(paths.spool) as spool,
        open_workers(work_bytes(data, root)) as workers,
    ):
        numbers = range(len(data.sources))
        accounts = [read_source(at, params, root, labels, workers, spool, notes) for at in numbers]
        rows = spool.table()
        sample(rows, data.sources, data.seed)
        links = drop_duplicates(rows, params, workers)
        places, cluster = place_rows(rows, links, [source.split for source in data.sources], data.split, data.seed)
        account_table(accounts, rows, places, cluster)
        splits = account_splits(rows, places, cluster, [source.name for source in data.sources])
        check_filled(splits, accounts)
        check_balance(accounts, splits, write_splits(folder, rows, places))
        note_dropped(rows, params, notes)
        report = PrepareReport(
            settings=data.model_dump(mode="json", exclude_unset=True),
            sources={source.name: account.report() for source, account in zip(data.sources, accounts, strict=True)},
            splits=splits,
            labels=label_sets(rows),
            prepared_sha256={name: sha256_file(folder / f"{name}.jsonl") for name in SPLITS},
        )
        ledger = to_markdown(report)
    write_lines(paths.reports / "prepare.md", [ledger])
    write_json(paths.reports / "prepare.json", report.to_json())
    show(report, data)


def drop_duplicates(rows: Table, params: PrepareParams, workers: Workers) -> Pairs:
    """Drop copies as configured; return the pairs of rows that belong together: by prompt, near-duplicates, or a
    conversation and its continuation.
    """
    settings = params.data.duplicates
    held_out = np.array([source.held_out for source in params.data.sources])
    may_go = ~held_out[rows.source]
    if settings.exact == "drop":
        drop_exact(rows, rows.kept[may_go[rows.kept]])
    kept = rows.kept
    links = [kept[equal_pairs(rows.prompt[kept])], continued_pairs(rows)]
    if settings.near != "ignore":
        links.append(find_near(rows, settings, workers))
    if settings.near == "drop":
        drop_near(rows, links[-1], may_go)
    return np.concatenate(links)


def check_filled(splits: Mapping[str, SplitReport], accounts: Sequence[SourceAccount]) -> None:
    """Raise DataError if a split is empty, with the fate of the rows."""
    dropped = sum((account.dropped for account in accounts), start=Counter[str]())
    for name in SPLITS:
        if not splits[name].examples:
            left, groups = (sum(getattr(split, key) for split in splits.values()) for key in ("examples", "groups"))
            what = f"the {name} split is empty: {left} examples remain, in {groups} independent groups"
            remedy = "loosen the filters, add rows or change data.split"
            raise DataError("params.yaml: data", f"{what} (dropped: {drops(dropped)})", remedy)


def write_splits(folder: Path, rows: Table, places: Places) -> dict[str, int]:
    """Write the splits, each in the order of the sources; return the number of lines of each."""
    written: dict[str, int] = {}
    for at, name in enumerate(SPLITS):
        members = np.flatnonzero((rows.reason == 0) & (places == at))
        with (folder / f"{name}.jsonl").open("wb") as file:
            written[name] = sum(file.write(line) > 0 for line in rows.lines(members))
    return written


def note_dropped(rows: Table, params: PrepareParams, notes: Notes) -> None:
    """List the rows that were dropped after reading."""
    names = [source.name for source in params.data.sources]
    dropped = np.flatnonzero(rows.reason)
    like = np.where(rows.like[dropped] < 0, dropped, rows.like[dropped])
    own = (rows.source[dropped], rows.line[dropped], rows.reason[dropped], rows.like[dropped])
    for row in zip(*(part.tolist() for part in (*own, rows.source[like], rows.line[like])), strict=True):
        source, line, reason, repeats, other_source, other_line = row
        other = f"{names[other_source]}:{other_line}" if repeats >= 0 else None
        notes.dropped(names[source], line, REASONS[reason], other)


def label_sets(rows: Table) -> dict[str, list[str]]:
    """Return the labels of the kept rows by agent."""
    found: dict[str, set[str]] = {}
    kept = rows.kept[rows.label[rows.kept] >= 0]
    for agent, label in np.unique(np.stack([rows.agent[kept], rows.label[kept]], axis=1), axis=0).tolist():
        found.setdefault(rows.agents[agent], set()).add(rows.labels[label])
    return {agent: sorted(labels) for agent, labels in sorted(found.items())}


def show(report: PrepareReport, data: DataConfig) -> None:
    """Print a short summary."""
    cells = []
    for name, account in report.sources.items():
        cells.append([name, format_of(account), f"{account.read:,}", drops(account.dropped), f"{account.kept:,}"])
    table("prepare: rows by source", ["source", "format", "read", "dropped", "kept"], cells)
    for name, account in report.sources.items():
        if account.unused_columns:
            say(f"{name}: unused columns: {', '.join(account.unused_columns)}")
        risks = [f"{found.rows:,} {kind}" for kind, found in account.risks.items()]
        if risks:
            say(f"{name}: rows with {', '.join(risks)}; data/prepared/risks.jsonl names them")
    trained, *others = (set(split.by_agent) for split in report.splits.values())
    if new := sorted(set().union(*others) - trained):
        say(f"agents in test but not in training: {', '.join(new)}; a source may need the same agent name")
    if unknown := sorted(set(data.system_prompts) - trained.union(*others)):
        say(f"data.system_prompts names agents that no row has: {', '.join(unknown)}")
    sizes = ", ".join(f"{split.examples:,} {name}" for name, split in report.splits.items())
    say(f"wrote {sizes} examples to data/prepared; the ledger is reports/prepare.md")
