"""A received bundle: every manipulation is detected, and nothing is written."""

import gzip
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.cli.main import main
from finetune.commands.sharing import archive, bundle, check_bundle
from finetune.errors import DataError, MachineError
from tests.builders.changed_bundle import Names, bomb, check, contents, hostile, member, rebuilt, squeeze, swap
from tests.builders.changed_bundle import copy as copy
from tests.builders.changed_bundle import made as made
from tests.builders.changed_bundle import run as run
from tests.builders.shared_run import rewrite

TOP = "finetune-x-0123456789ab"
ENTRY = {"bytes": 1, "sha256": "0" * 64}
DEEP = "[" * 100_000 + "]" * 100_000


def refused(path: Path) -> str:
    """Return the error for an invalid bundle, after checking that it is one short line and came quickly."""
    begun = time.process_time()
    with pytest.raises(DataError) as error:
        check(path)
    assert time.process_time() - begun < 5  # usually a fraction of a second
    told = str(error.value)
    assert told.startswith(f"{path}: ") and len(told) < 900
    assert "\n" not in told and "\x1b" not in told and "finetune-bundle-" not in told  # no temporary folder is named
    return told


# --------------------------------------------------------------------------------------------------------- the archive


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f", b"PK\x03\x04" * 99, b"\x1f\x8b" + b"x" * 99])
def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    """Any file that is not an archive yields a one-line error."""
    (tmp_path / "x.tar.gz").write_bytes(content)
    assert "is not a bundle, or was repacked or damaged; ask for the file again" in refused(tmp_path / "x.tar.gz")


def test_every_truncation_is_detected(made: Path, tmp_path: Path) -> None:
    """A truncated download is detected at any length."""
    whole = made.read_bytes()
    for size in [*range(10, len(whole), 97), len(whole) - 1]:
        (tmp_path / "x").write_bytes(whole[:size])
        assert "is cut off; fetch it again" in refused(tmp_path / "x")


@given(data=st.data())
@settings(max_examples=150)
def test_every_flipped_bit_is_detected_or_harmless(
    made: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The gzip header, checksums, every header, content and padding are covered. Undetected flips are a few fill bits
    of the last deflate byte and equivalent encodings of the same bytes: the unpacked content is then the same."""
    whole = bytearray(made.read_bytes())
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    path = tmp_path_factory.mktemp("flipped") / "x"
    path.write_bytes(whole)
    try:
        check(path)
    except DataError:
        return
    assert gzip.decompress(bytes(whole)) == gzip.decompress(made.read_bytes())
    assert 10 <= bit // 8 < len(whole) - 8  # inside the compressed stream, never in header or trailer


@given(data=st.data())
@settings(max_examples=60)
def test_every_changed_byte_is_detected(
    made: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The archive is packed again with correct checksums, so only the manifest can reveal the change."""
    inner = bytearray(gzip.decompress(made.read_bytes()))
    at = data.draw(st.integers(0, len(inner) - 1))
    inner[at] ^= data.draw(st.integers(1, 255))
    try:
        check(squeeze(tmp_path_factory.mktemp("changed") / "x", bytes(inner)))
    except DataError:
        return
    manifest_end = 512 + len(contents(made)["manifest.json"])
    assert 512 <= at < manifest_end  # text of the manifest may change: only a signature protects it


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("../../outside", {}),
        ("/etc/passwd", {}),
        (f"{TOP}/a", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        (f"{TOP}/a", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
        *((f"{TOP}/a", {"type": kind}) for kind in (tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)),
        (f"{TOP}/a", {"mode": 0o4755}),
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, name: str, others: dict[str, Any]) -> None:
    """Links, devices and paths outside the target are refused before anything is written."""
    path = hostile(lambda tar: tar.addfile(*member(name, b"" if others else b"x", **others)), tmp_path)
    assert "another member is in the place of a; do not use it" in refused(path)
    assert [item.name for item in tmp_path.iterdir()] == ["hostile.tar.gz"]


def test_extra_or_missing_members_are_detected(made: Path, tmp_path: Path) -> None:
    """The manifest is the complete and ordered list of members."""
    inner, path = gzip.decompress(made.read_bytes()), tmp_path / "x"
    extra = archive.header(f"{made.name.removesuffix('.tar.gz')}/zzz", 0)
    assert "there is data after the last member" in refused(squeeze(path, inner[:-1024] + extra + inner[-1024:]))
    assert "has extra data after its end" in refused(squeeze(path, inner + bytes(512)))
    for more in (b"x", b"\0", gzip.compress(b""), gzip.compress(b"x")):
        path.write_bytes(made.read_bytes() + more)
        assert "has extra data after its end" in refused(path)
    assert "not those of a run" in refused(rebuilt(made, path, lambda files: files.pop("reports/summary.md") and None))


# -------------------------------------------------------------------------------------------------------- the manifest


@pytest.mark.parametrize(
    "name",
    [
        *("../a", "/a", "a/../b", "a//b", "./a", "a\\b", "C:a", "a\x1b[2J", "", "a/", "\ud800", "\u00e9", ".a"),
        *("a" * 256, "/".join(["d" * 200] * 25), "/".join("d" * 17)),
    ],
)
def test_unsafe_names_in_the_manifest_are_refused(tmp_path: Path, name: str) -> None:
    """Paths outside and names that some disks cannot store are refused: the receiver may unpack with plain tar."""
    text = json.dumps({"files": {name: ENTRY}}).encode()
    told = refused(hostile(lambda tar: None, tmp_path, text))
    assert "which could escape its folder or is not a portable name; do not use it" in told


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"b": ENTRY, "a": ENTRY}, "its manifest.json lists no files, or lists them out of order"),
        ({}, "its manifest.json lists no files, or lists them out of order"),
        ([], "its manifest.json lists no files, or lists them out of order"),
        ({"A": ENTRY, "a": ENTRY}, "its manifest.json lists a file twice"),
        ({"manifest.json": ENTRY}, "its manifest.json lists a file twice"),
        ({"a": ENTRY | {"bytes": -1}}, "its manifest.json has no size or hash for 'a'"),
        ({"a": ENTRY | {"bytes": True}}, "its manifest.json has no size or hash for 'a'"),
        ({"a": ENTRY | {"sha256": "0"}}, "its manifest.json has no size or hash for 'a'"),
        ({"a": None}, "its manifest.json has no size or hash for 'a'"),
        ({"a": ENTRY | {"bytes": 10**12}}, "claims to exceed 16777216 bytes"),  # a hundred times its size
        (dict.fromkeys("ab", ENTRY | {"bytes": 9 * 10**4299}), "claims to exceed"),  # a sum too long to print
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path: Path, files: Any, told: str) -> None:
    """Wrong order, names that differ only in case, and invalid or huge sizes are refused."""
    assert told in refused(hostile(lambda tar: None, tmp_path, json.dumps({"files": files}).encode()))


def test_an_archive_without_a_manifest_is_refused_early(tmp_path: Path) -> None:
    """An archive without a manifest is refused before its members are read."""
    assert "is not a bundle" in refused(squeeze(tmp_path / "bomb.tar.gz", bytes(200 << 20)))


def test_errors_of_bundle_and_disk_are_distinguished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file inside a file is an error of the bundle; a broken disk must not be reported as one."""
    files = {"a": b"x", "a/b": b"x"}
    manifest = {"format": 1, "files": {name: bundle.entry_of(content) for name, content in files.items()}}
    archive.write_archive(tmp_path / "x", TOP, manifest, files)
    assert "a member's name can't be stored here (" in refused(tmp_path / "x")

    def full(*arguments: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "copy_bytes", full)
    assert main(["check-bundle", str(tmp_path / "x")]) == MachineError.exit_code
    assert "No space left on device" in capsys.readouterr().err


def test_a_failing_disk_is_not_an_error_of_the_bundle(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for errors when the unpacked contents are read."""

    def broken(*arguments: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(check_bundle, "require_recorded", broken)
    with pytest.raises(OSError, match="Input/output error"):
        check(made)


def test_manifest_text_must_be_printable(made: Path, tmp_path: Path) -> None:
    """Text of the manifest is shown to users, so control characters are refused."""
    files = contents(made)
    manifest = json.loads(files.pop("manifest.json"))
    for key in ("recipe", "verdict", "sentence"):
        archive.write_archive(tmp_path / "x", made.name.removesuffix(".tar.gz"), {**manifest, key: [1]}, files)
        assert f"manifest.json: has no text in {key}" in refused(tmp_path / "x")


# -------------------------------------------------------------------------------------------------------- the contents


def put(name: str, content: bytes) -> Callable[[Names], None]:
    """Return a change of one member's content."""

    def change(files: Names) -> None:
        assert name in files
        files[name] = content

    return change


def bombs(files: Names) -> None:
    """Put deeply nested values on both sides of the comparison."""
    files["params.yaml"] = bomb().encode()
    inside = "\n".join(f"        {line}" for line in bomb().splitlines())
    files["dvc.lock"] = f"stages:\n  a:\n    params:\n      params.yaml:\n{inside}\n    outs: []\n".encode()


def name_outside(name: str) -> Callable[[Names], None]:
    """Let the adapter's manifest name a file of the reader."""

    def change(files: Names) -> None:
        content = json.loads(files["out/adapter/manifest.json"])
        content["files"][name] = bundle.entry_of(b"mine")
        files["out/adapter/manifest.json"] = json.dumps(content).encode()

    return change


ANCHOR = "has an anchor or an alias, which is not allowed in a bundle"
CHANGES = [
    # members that do not belong together
    (swap("reports/decision.json", b'"deploy"', b'"abort"'), "manifest.json: its verdict is not the one in the bundle"),
    (swap("out/model_card.md", b"adapter ", b"adapter 0"), "out/model_card.md: differs from dvc.lock"),
    (swap("reports/train.json", b'sha256": "', b'sha256": "0'), "reports/train.json: names a different adapter"),
    (swap("reports/summary.md", b"adapter", b"bdapter"), "reports/summary.md: differs from dvc.lock"),
    (swap("out/adapter/adapter_config.json", b"tiny", b"huge"), "adapter_config.json: differs from the published"),
    (swap("params.yaml", b"seed: 42 ", b"seed: 43 "), "params.yaml: data differs from dvc.lock"),
    (swap("sbom.cdx.json", b'"CycloneDX"', b'"Cyclone"'), "sbom.cdx.json: is not a bill of materials of this adapter"),
    (swap("sbom.cdx.json", b'"library"', b'"libary"'), "sbom.cdx.json: lacks packages, base model or data"),
    (swap("sbom.cdx.json", b'"alg": "SHA-256"', b'"alg": "SHA-0"'), "sbom.cdx.json: is not CycloneDX: "),
    (swap("dvc.lock", b"{", b"["), "dvc.lock: is missing, broken or lists no outputs"),
    # content that expands or exhausts the stack
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
    (put("params.yaml", b"%YAML 1.1\n---\na: " + b"1:" * 99_999 + b"1"), "requires a YAML version other than 1.2"),
    (put("params.yaml", b'"\\UFFFFFFFF"'), "params.yaml: is not readable YAML"),
    (put("params.yaml", b"\xff"), "params.yaml: is not UTF-8"),
    (put("out/adapter/manifest.json", DEEP.encode()), "manifest.json: broken JSON (nested too deeply)"),
    (put("reports/prepare.json", DEEP.encode()), "prepare.json: broken JSON (nested too deeply)"),
    (put("sbom.cdx.json", DEEP.encode()), "sbom.cdx.json: broken JSON (nested too deeply)"),
    (
        swap("sbom.cdx.json", b'"components": [', b'"components": [' + b'{"components": [' * 300 + b"]}" * 300 + b","),
        "a file in it is nested too deeply",
    ),
    # files of the reader, which would be hashed, or a device that is read without end
    (name_outside("/dev/zero"), "out/adapter: contains a member '/dev/zero', which could escape"),
    (name_outside("../../../../mine"), "out/adapter: contains a member '../../../../mine', which could escape"),
    (name_outside("a/../../mine"), "out/adapter: contains a member 'a/../../mine', which could escape"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES, ids=[told[:60] for _, told in CHANGES])
def test_contents_of_different_runs_are_refused(
    made: Path, tmp_path: Path, change: Callable[[Names], None], told: str
) -> None:
    """Besides the manifest, adapter, decision, card, report, params and lock must belong to one run."""
    assert told in refused(rebuilt(made, tmp_path / "x", change))


def test_anchors_are_refused_when_bundling(copy: Path) -> None:
    """Anchors are reported before packing: the receiver would refuse them."""
    rewrite(copy / "params.yaml", "confidence: 0.95", "confidence: &c 0.95")
    with pytest.raises(
        DataError, match=rf"^params\.yaml: line \d+: {ANCHOR}; on the machine that has the run, write the value out"
    ):
        bundle.run(copy, None, None)
