"""The prepare stage on small files: what stops it, what it skips, and what it writes."""

import json

import pytest

from finetune.config.types import SPLITS
from finetune.files.hashing import sha256_file
from tests.builders.prepare_runs import NEAR, Run, row, rows, split_of
from tests.builders.prepare_runs import prepare as prepare

BAD = [
    (b'{"agent": "a", ', "broken JSON: Expecting property name enclosed in double quotes at character 15"),
    (b'{"agent": "\xff"}', "not UTF-8 at byte 11"),
    (b'{"agent": NaN}', "broken JSON: NaN is not JSON"),
    (b"[1]", "expected a JSON object, found list"),
    (b'{"agent": "a", "task": "t", "success": true}', "has no output or response"),
    (b'{"agent": "a", "task": " ", "output": "o", "success": true}', "task is empty"),
    (b'{"agent": "a", "task": 5, "output": "o", "success": true}', "task must be a string, not int"),
    (b'{"agent": "a", "task": "t", "output": "o", "success": "yes"}', "success must be true or false"),
]


@pytest.mark.parametrize(("line", "why"), BAD)
def test_a_bad_row_stops_with_file_and_line(prepare: Run, line: bytes, why: str) -> None:
    """By default one bad row stops the stage, as the export may be wrong. Editors can open `file:line`."""
    text = prepare.error([*rows(8), line, *rows(1)])
    assert text == f"RAW/0.jsonl:9: {why}; fix the row, or set data.on_bad_row: skip"
    assert not prepare.paths.prepared.exists()


@pytest.mark.parametrize(("line", "why"), BAD)
def test_a_bad_row_is_skipped_counted_and_named(prepare: Run, line: bytes, why: str) -> None:
    """The ledger has the number, location and reason of each skipped row."""
    account = prepare([*rows(8), line, row("last")], on_bad_row="skip")["sources"]["s0"]
    assert (account["read"], account["dropped"], account["kept"]) == (10, {"bad_row": 1}, 9)
    (named,) = account["bad_rows"]
    assert named.endswith(f"raw/0.jsonl:9: {why}")


@pytest.mark.parametrize("field", ["agent", "task", "output"])
def test_an_unpaired_surrogate_is_a_bad_row(prepare: Run, field: str) -> None:
    r"""JSON allows "\ud83d" alone, a text cut within an emoji, but UTF-8 does not, so it is a bad row."""
    fields = {"agent": "a", "task": "t", "output": "o", "success": True} | {field: "cut \ud83d"}
    text = prepare.error([*rows(8), json.dumps(fields).encode()])
    assert text.startswith("RAW/0.jsonl:9: ")
    assert text.endswith("; fix the row, or set data.on_bad_row: skip")


def test_only_the_first_few_bad_rows_are_named(prepare: Run) -> None:
    """A report does not list a million bad rows, but the count is complete."""
    account = prepare([*rows(8), *[b"[]"] * 27], on_bad_row="skip")["sources"]["s0"]
    assert account["dropped"] == {"bad_row": 27}
    assert [named.rsplit(":", 2)[1] for named in account["bad_rows"]] == [str(line) for line in range(9, 29)]
    dropped = [json.loads(line) for line in (prepare.paths.prepared / "dropped.jsonl").read_text().splitlines()]
    assert dropped == [{"source": "s0", "line": line, "reason": "bad_row"} for line in range(9, 36)]


def test_too_many_bad_rows_stop_the_stage(prepare: Run) -> None:
    """Skipping is meant for occasional bad rows; a larger share puts the source in doubt."""
    lines = [*rows(8), b"{", b"["]
    prepare(lines, on_bad_row="skip", max_bad_fraction=0.2)
    text = prepare.error(lines, on_bad_row="skip", max_bad_fraction=0.19)
    first = "RAW/0.jsonl:9: broken JSON: Expecting property name enclosed in double quotes at character 1"
    assert (
        text == f"RAW/0.jsonl: 2 of 10 rows are bad, which exceeds data.max_bad_fraction: 0.19; the first one: {first}"
    )


def test_the_share_of_bad_rows_is_per_source(prepare: Run) -> None:
    """A large good source must not hide a small broken one."""
    text = prepare.error(rows(96), [b"{"] * 4, on_bad_row="skip", max_bad_fraction=0.05)
    assert text.startswith("RAW/1.jsonl: 4 of 4 rows are bad")


def test_a_missing_source_stops_before_anything_is_written(prepare: Run) -> None:
    """One of two sources alone would be another mixture than configured."""
    missing = {"name": "gone", "path": "gone.jsonl", "format": "interactions"}
    there = {"name": "s0", "path": "0.jsonl", "format": "interactions"}
    text = prepare.error(rows(8), sources=[there, missing])
    assert text == "RAW/gone.jsonl: no such file; data.sources names it as 'gone'"
    assert not prepare.paths.prepared.exists()


def test_a_byte_order_mark_and_crlf_change_nothing(prepare: Run) -> None:
    """The same rows saved on Windows give identical examples."""
    prepare(rows(8))
    there = prepare.examples()
    prepare([b"\xef\xbb\xbf" + rows(8)[0] + b"\r", *[line + b"\r" for line in rows(8)[1:]]])
    assert prepare.examples() == there


def test_only_successful_rows_are_trained_on(prepare: Run) -> None:
    """Failed answers are not trained on; the ledger has their number."""
    lines = [*rows(8), row("failed one", success=False), row("failed two", success=False)]
    account = prepare(lines)["sources"]["s0"]
    assert (account["dropped"], account["kept"]) == ({"not_successful": 2}, 8)
    assert not any("failed" in one.prompt[-1].content for one in prepare.examples())
    account = prepare(lines, **{"filters.only_successful": False})["sources"]["s0"]
    assert (account["dropped"], account["kept"]) == ({}, 10)


def test_exact_duplicates_are_dropped_up_to_white_space(prepare: Run) -> None:
    """The first copy survives unchanged, also across sources; another answer is not a duplicate."""
    first = [row("task  0"), *rows(8)[1:], row("task 0 "), row("task 1", "KeyError")]
    second = [row("task 2"), row("task\n3"), row("new")]
    sources = prepare(first, second)["sources"]
    assert (sources["s0"]["dropped"], sources["s0"]["kept"]) == ({"exact_duplicate": 1}, 9)
    assert (sources["s1"]["dropped"], sources["s1"]["kept"]) == ({"exact_duplicate": 2}, 1)
    kept = [(one.source, one.line, one.prompt[-1].content) for one in prepare.examples()]
    assert kept[0] == ("s0", 1, "task  0")
    assert kept[-1] == ("s1", 3, "new")


def test_a_failed_row_does_not_replace_a_good_one(prepare: Run) -> None:
    """If a failed and a successful row have the same answer, the successful one stays."""
    account = prepare([row("again", success=False), row("again"), *rows(8)])["sources"]["s0"]
    assert (account["dropped"], account["kept"]) == ({"not_successful": 1}, 9)


def test_duplicates_are_kept_if_configured(prepare: Run) -> None:
    """`exact: keep` keeps both copies of a row, in the same split."""
    ledger = prepare([*rows(8), rows(8)[0], rows(8)[0]], **{"duplicates.exact": "keep"})
    assert ledger["sources"]["s0"]["kept"] == 10
    holding = [split for split in SPLITS if any("task 0" in str(one) for one in split_of(prepare, split))]
    assert len(holding) == 1
    assert sum("task 0" in str(one) for one in split_of(prepare, holding[0])) == 3


@pytest.mark.parametrize(
    ("lines", "split", "left", "dropped"),
    [
        ([row("failed", success=False)], "train", "0 examples remain, in 0 independent", "1 not_successful"),
        (
            [b"{", row("one"), row("one ")],
            "train",
            "1 examples remain, in 1 independent",
            "1 bad_row, 1 exact_duplicate",
        ),
        ([row("one"), row("two")], "validation", "2 examples remain, in 2 independent", "none"),
        ([row("one"), row("one", "other")], "validation", "2 examples remain, in 1 independent", "none"),
    ],
)
def test_an_empty_split_is_reported(prepare: Run, lines: list[bytes], split: str, left: str, dropped: str) -> None:
    """A run without test examples cannot reach a verdict; the drop counts show which filter caused it."""
    text = prepare.error(lines, on_bad_row="skip")
    advice = f"groups (dropped: {dropped}); loosen the filters, add rows or change data.split"
    assert text == f"params.yaml: data: the {split} split is empty: {left} {advice}"


def test_a_source_without_a_row_is_refused(prepare: Run) -> None:
    """Training on the other sources alone would hide that one is empty."""
    text = prepare.error(rows(8), [b"  "])
    assert text == "RAW/1.jsonl: has no rows; add rows to it or remove it from data.sources"


def test_a_failed_prepare_leaves_the_old_data(prepare: Run) -> None:
    """The old splits and their ledger belong together; a mixture would be detected only by later stages."""
    prepare(rows(20))
    before = {path: path.read_bytes() for path in (prepare.paths.root).rglob("*") if path.suffix in (".jsonl", ".json")}
    del before[prepare.paths.root / "raw/0.jsonl"]
    prepare.error([*rows(30), b"{"])
    assert {path: path.read_bytes() for path in before} == before


def test_the_ledger_has_the_hashes_of_inputs_and_outputs(prepare: Run) -> None:
    """evaluate and decide refuse a test set with another hash."""
    ledger, paths = prepare(rows(20)), prepare.paths
    assert ledger["prepared_sha256"] == {name: sha256_file(paths.prepared / f"{name}.jsonl") for name in SPLITS}
    source = paths.root / "raw/0.jsonl"
    account = ledger["sources"]["s0"]
    assert (account["sha256"], account["bytes"]) == (sha256_file(source), source.stat().st_size)


def test_a_repetition_writes_the_same_bytes(prepare: Run) -> None:
    """DVC compares hashes: the output contains no date, host or set order."""
    prepare(rows(20), on_bad_row="skip")
    files = [*prepare.paths.prepared.iterdir(), prepare.paths.reports / "prepare.json"]
    first = {path: path.read_bytes() for path in files}
    prepare(rows(20), on_bad_row="skip")
    assert {path: path.read_bytes() for path in files} == first


def test_several_processes_write_the_same_bytes(prepare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process pool for large inputs gives the same splits on any number of cores."""
    from finetune.prepare import workers

    lines = [row(f"task {at} " + "word " * (at % 9)) for at in range(3000)]
    ledger = prepare(lines, duplicates=NEAR)
    first = {path.name: path.read_bytes() for path in prepare.paths.prepared.iterdir()}
    monkeypatch.setattr(workers, "WORTH_A_POOL", 0)
    assert prepare(lines, duplicates=NEAR) == ledger
    assert {path.name: path.read_bytes() for path in prepare.paths.prepared.iterdir()} == first
    assert not prepare.paths.spool.exists()


def test_a_failed_prepare_leaves_no_temporary_files(prepare: Run) -> None:
    """The spool is as large as the data, so it is removed from a possibly full disk."""
    prepare.error([*rows(8), b"{"])
    assert not prepare.paths.spool.exists()
    assert not list(prepare.paths.prepared.parent.glob(".*"))
