"""The prepare stage: `data.directory` -> `data/prepared/*.jsonl` and `reports/prepare.json`."""

from collections.abc import Mapping
from pathlib import Path

from finetune.artifacts import publish_directory, sha256_file, sha256_folder, write_json, write_lines
from finetune.config import SPLITS, Config, DataConfig, Source, Split
from finetune.console import say, table
from finetune.errors import DataError
from finetune.paths import Paths
from finetune.prepare.formats import parse_interaction, to_example
from finetune.prepare.ledger import BAD_ROW, DUPLICATE, FAILED, SourceAccount, account_splits, check_balance
from finetune.prepare.sources import BadRow, read_rows, source_path
from finetune.prepare.split import split_examples
from finetune.records import Example, text_key, to_json_lines

SHOWN_BAD_ROWS = 5


def run(config: Config, paths: Paths) -> None:
    """Read every source, keep what the config keeps, split it, and account for the rest."""
    seen: set[bytes] = set()
    accounts: dict[str, SourceAccount] = {}
    examples: list[Example] = []
    for source in config.data.sources:
        accounts[source.name], kept = read_source(source, config.data, paths.root, seen)
        examples += kept
    splits = split_examples(examples, config.data.split, config.seed)
    for name in SPLITS:
        if not splits[name]:
            raise DataError(
                f"params.yaml: data: the {name} split is empty: {len(examples)} examples were left "
                f"({_drops(accounts)}); loosen the filters, add rows or change data.split"
            )
    check_balance(accounts, splits)
    with publish_directory(paths.prepared) as folder:
        for name in SPLITS:
            write_lines(folder / f"{name}.jsonl", to_json_lines(splits[name]))
    report = {
        "settings": config.data.model_dump(mode="json"),
        "sources": {name: account.to_json() for name, account in accounts.items()},
        "splits": account_splits(splits),
        "prepared_sha256": {name: sha256_file(paths.prepared / f"{name}.jsonl") for name in SPLITS},
        "data_sha256": sha256_folder(paths.prepared),
    }
    write_json(paths.reports / "prepare.json", report)
    show(accounts, splits)


def read_source(source: Source, data: DataConfig, root: Path, seen: set[bytes]) -> tuple[SourceAccount, list[Example]]:
    """One source's account and the examples kept; `seen` holds the texts of all sources so far."""
    path = source_path(data, source, root)
    account = SourceAccount(path=source.path, sha256=sha256_file(path), bytes=path.stat().st_size)
    kept: list[Example] = []
    for row in read_rows(path):
        account.read += 1
        interaction = row if isinstance(row, BadRow) else parse_interaction(row)
        if isinstance(interaction, BadRow):
            note_bad_row(interaction, path, data, account)
            continue
        if data.only_successful and not interaction.success:
            account.dropped[FAILED] += 1
            continue
        example = to_example(interaction, source.name, data)
        key = text_key(example.messages)
        if data.deduplicate == "exact" and key in seen:
            account.dropped[DUPLICATE] += 1
            continue
        seen.add(key)
        kept.append(example)
    account.kept = len(kept)
    check_bad_fraction(path, data, account)
    return account, kept


def note_bad_row(bad: BadRow, path: Path, data: DataConfig, account: SourceAccount) -> None:
    """Count a bad row, or stop at it, as `data.on_bad_row` says."""
    text = f"{path}:{bad.line}: {bad.why}"
    if data.on_bad_row == "stop":
        raise DataError(f"{text}; mend the row, or set data.on_bad_row: skip")
    account.dropped[BAD_ROW] += 1
    if len(account.bad_rows) < SHOWN_BAD_ROWS:
        account.bad_rows.append(text)


def check_bad_fraction(path: Path, data: DataConfig, account: SourceAccount) -> None:
    """DataError where more of the source is bad than `data.max_bad_fraction` allows."""
    bad = account.dropped[BAD_ROW]
    if bad > data.max_bad_fraction * account.read:
        raise DataError(
            f"{path}: {bad} of {account.read} rows are bad, more than data.max_bad_fraction: "
            f"{data.max_bad_fraction:g}; the first: {account.bad_rows[0]}"
        )


def _drops(accounts: dict[str, SourceAccount]) -> str:
    counts = [
        f"{count} {reason}" for account in accounts.values() for reason, count in account.dropped.items() if count
    ]
    return "dropped: " + (", ".join(counts) or "none")


def show(accounts: Mapping[str, SourceAccount], splits: Mapping[Split, list[Example]]) -> None:
    """A few lines for the person who watches."""
    rows = []
    for name, account in accounts.items():
        drops = ", ".join(f"{count:,} {reason}" for reason, count in sorted(account.dropped.items()) if count)
        rows.append([name, f"{account.read:,}", drops or "none", f"{account.kept:,}"])
    table("prepare: every row accounted for", ["source", "read", "dropped", "kept"], rows)
    sizes = ", ".join(f"{len(examples):,} {name}" for name, examples in splits.items())
    say(f"wrote {sizes} examples to data/prepared; the ledger is reports/prepare.json")
