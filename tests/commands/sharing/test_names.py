"""Names and nests that a bundle must not bring to a disk or to a parser."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.cli.main import main
from finetune.commands.sharing import archive, bundle, check_bundle
from finetune.errors import DataError, MachineError
from tests.builders.changed_bundle import Names, bomb, check, contents, hostile, rebuilt, swap
from tests.builders.changed_bundle import copy as copy
from tests.builders.changed_bundle import made as made
from tests.builders.changed_bundle import run as run
from tests.builders.shared_run import rewrite

# ------------------------------------------------------------------------------- names and nests that are no run's own


def refused(path: Path) -> str:
    """What is said of a hostile bundle: one line, and soon."""
    begun = time.process_time()
    with pytest.raises(DataError) as error:
        check(path)
    assert time.process_time() - begun < 5  # a fraction of a second is usual
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value)


def listing(place: Path, *names: str) -> Path:
    """A whole bundle of these members, each with a byte of content."""
    files = dict.fromkeys(sorted(names), b"x")
    manifest = {"format": 1, "files": {name: bundle.entry_of(content) for name, content in files.items()}}
    archive.write_archive(place / "listing.tar.gz", "finetune-x-0123456789ab", manifest, files)
    return place / "listing.tar.gz"


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a/b"),
        ("A", "a/b"),
        ("a/B", "a/b"),
        ("a/b/c", "A/b/d"),
        ("\u00e9", "e\u0301"),
        ("\u00c9/a", "e\u0301"),
        ("\u00c9/a", "e\u0301/b"),
        ("MANIFEST.json",),
        ("manifest.json/a",),
    ],
)
def test_members_that_share_a_place_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    """A file in a file; on a Mac also what differs in case or in how a letter is composed."""
    assert "which can't lie side by side; do not use it" in refused(listing(tmp_path, *names))


@pytest.mark.parametrize("name", ["a" * 256, "\u00e9" * 128, "/".join(["d" * 200] * 25), "/".join("d" * 17)])
def test_names_that_no_disk_takes_are_refused(tmp_path: Path, name: str) -> None:
    """Before anything is unpacked; the longest that are taken are unpacked, and found to be no run."""
    assert "which is too long to be stored; do not use it" in refused(listing(tmp_path, name))
    assert "dvc.lock: is missing" in refused(listing(tmp_path, "a" * 255, "d/" * 15 + "d", f"{'b' * 255}/{'c' * 255}"))


def test_what_the_disk_says_of_a_name_is_the_bundles_fault_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that this file system alone does not take is an error of the bundle; a full disk is the machine's."""
    path = listing(tmp_path, "a", "a/b")
    monkeypatch.setattr(archive, "require_distinct", lambda members, name: None)
    assert "a member's name can't be stored here (" in refused(path)

    def full(*arguments: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "copy_exactly", full)
    with pytest.raises(OSError, match="No space"):
        check(path)
    assert main(["check-bundle", str(path)]) == MachineError.exit_code
    assert "No space left on device" in capsys.readouterr().err


def test_a_disk_that_fails_while_contents_are_read_is_the_machines(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told not to use a bundle must not be told so by a broken disk."""

    def broken(*arguments: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(check_bundle, "require_recorded", broken)
    with pytest.raises(OSError, match="Input/output error"):
        check(made)


def test_a_manifest_of_monstrous_sizes_is_refused(tmp_path: Path) -> None:
    """The sum of two such numbers has more digits than Python shows."""
    entry = {"bytes": 9 * 10**4299, "sha256": "0" * 64}
    text = json.dumps({"files": {"a": entry, "b": entry}})
    assert "has no size and hash of 'a'" in refused(hostile(lambda tar: None, tmp_path, text.encode()))


def test_what_the_manifest_says_must_be_words(made: Path, tmp_path: Path) -> None:
    """It is shown to a person."""
    files = contents(made)
    manifest = json.loads(files.pop("manifest.json"))
    for key in ("recipe", "verdict", "sentence"):
        archive.write_archive(tmp_path / "x", made.name.removesuffix(".tar.gz"), {**manifest, key: [1]}, files)
        assert f"manifest.json: has no {key} in words" in refused(tmp_path / "x")


def put(name: str, content: bytes) -> Callable[[Names], None]:
    """One member with another content."""

    def change(files: Names) -> None:
        assert name in files
        files[name] = content

    return change


def bombs(files: Names) -> None:
    """Both sides of the comparison, alike to the last value."""
    files["params.yaml"] = bomb().encode()
    inside = "\n".join(f"        {line}" for line in bomb().splitlines())
    files["dvc.lock"] = f"stages:\n  a:\n    params:\n      params.yaml:\n{inside}\n    outs: []\n".encode()


DEEP = "[" * 100_000 + "]" * 100_000
ANCHOR = "has an anchor or an alias, which no bundle may have"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (bombs, f"dvc.lock: line 5: {ANCHOR}"),
        (put("params.yaml", bomb().encode()), f"params.yaml: line 1: {ANCHOR}"),
        (put("params.yaml", b"a: &a [*a]"), f"params.yaml: line 1: {ANCHOR}"),
        (put("params.yaml", b"a: *b"), f"params.yaml: line 1: {ANCHOR}"),
        (put("params.yaml", b"a: &b c"), f"params.yaml: line 1: {ANCHOR}"),
        (put("params.yaml", f"a: {DEEP}".encode()), "params.yaml: line 1: is nested too deeply"),
        (put("params.yaml", b"- " * 60), "params.yaml: line 1: is nested too deeply"),
        (put("dvc.lock", DEEP.encode()), "dvc.lock: line 1: is nested too deeply"),
        (put("dvc.lock", b"? " * 60), "dvc.lock: line 1: is nested too deeply"),
        (put("params.yaml", b"a: [" + b"x," * 26_000 + b"]"), "params.yaml: line 1: has more than 25000 parts"),
        (put("params.yaml", b"#" * (600 << 10)), "params.yaml: is larger than 524288 bytes"),
        (put("params.yaml", b"%YAML 1.1\n---\na: " + b"1:" * 99_999 + b"1"), "asks for another YAML than 1.2"),
        (put("params.yaml", b'"\\UFFFFFFFF"'), "params.yaml: is no YAML that can be read"),
        (put("params.yaml", b"\xff"), "params.yaml: is not UTF-8"),
        (put("out/adapter/manifest.json", DEEP.encode()), "manifest.json: broken JSON (nested too deeply)"),
        (put("reports/prepare.json", DEEP.encode()), "prepare.json: broken JSON (nested too deeply)"),
        (put("sbom.cdx.json", DEEP.encode()), "sbom.cdx.json: broken JSON (nested too deeply)"),
        (
            swap(
                "sbom.cdx.json", b'"components": [', b'"components": [' + b'{"components": [' * 300 + b"]}" * 300 + b","
            ),
            "a file in it is nested too deeply",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_nests_and_bombs_are_refused(made: Path, tmp_path: Path, change: Callable[[Names], None], told: str) -> None:
    """What expands or ends the stack is told in a line, whichever member it is in."""
    assert told in refused(rebuilt(made, tmp_path / "x", change))


def test_anchors_are_told_to_who_bundles(copy: Path) -> None:
    """Before anything is packed: the receiver would refuse it."""
    rewrite(copy / "params.yaml", "confidence: 0.95", "confidence: &c 0.95")
    with pytest.raises(DataError, match=rf"^params\.yaml: line \d+: {ANCHOR}; where the run is, write the value out"):
        bundle.run(copy, None, None)


@pytest.mark.parametrize("outside", ["absolute", "../../../../mine", "a/../../mine"])
def test_the_adapters_manifest_may_name_nothing_outside(made: Path, tmp_path: Path, outside: str) -> None:
    """Else files of the reader's own would be hashed, or a device read without end."""
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")

    def change(files: Names) -> None:
        content = json.loads(files["out/adapter/manifest.json"])
        content["files"][str(mine) if outside == "absolute" else outside] = bundle.entry_of(mine)
        files["out/adapter/manifest.json"] = json.dumps(content).encode()

    said = refused(rebuilt(made, tmp_path / "x", change))
    assert "out/adapter: names a member" in said
    assert "which could lead out of its folder" in said
