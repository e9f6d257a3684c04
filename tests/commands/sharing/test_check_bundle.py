"""A bundle that is received: whatever was done to it is noticed, and nothing is written."""

import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.commands.sharing import archive
from finetune.errors import DataError
from tests.builders.changed_bundle import Names, check, contents, hostile, member, rebuilt, squeeze, swap
from tests.builders.changed_bundle import made as made
from tests.builders.changed_bundle import run as run

# ----------------------------------------------------------------------------------------- what a receiver may be given


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f", b"PK\x03\x04" * 99, b"\x1f\x8b" + b"x" * 99])
def test_no_archive_is_no_bundle(tmp_path: Path, content: bytes) -> None:
    """Whatever it is, it is told in a line."""
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(DataError):
        check(tmp_path / "x.tar.gz")


def test_every_cut_is_noticed(made: Path, tmp_path: Path) -> None:
    """A download that broke off."""
    whole = made.read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        (tmp_path / "x").write_bytes(whole[:size])
        with pytest.raises(DataError):
            check(tmp_path / "x")
    with pytest.raises(DataError, match="is cut off; fetch it again"):
        check(tmp_path / "x")


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_flipped_bit_is_noticed_or_changes_nothing(made: Path, tmp_path: Path, data: st.DataObject) -> None:
    """The gzip header, the check sums, every header, content and padding; what may flip unseen are the few bits that
    fill up the last byte of deflate's stream, and another way to write the same bytes: then all that comes out is the
    same."""
    whole = bytearray(made.read_bytes())
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    path = tmp_path / "flipped"
    path.write_bytes(whole)
    try:
        check(path)
    except DataError:
        return
    assert gzip.decompress(bytes(whole)) == gzip.decompress(made.read_bytes())
    assert 10 <= bit // 8 < len(whole) - 8  # inside the compressed stream, never in header or trailer


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_changed_byte_inside_is_noticed(made: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Packed again with right check sums, so that nothing but the manifest can tell, and its own bytes the contents."""
    inner = bytearray(gzip.decompress(made.read_bytes()))
    at = data.draw(st.integers(0, len(inner) - 1))
    inner[at] ^= data.draw(st.integers(1, 255))
    manifest_end = 512 + len(contents(made)["manifest.json"])
    try:
        check(squeeze(tmp_path / "changed", bytes(inner)))
    except DataError:
        return
    assert 512 <= at < manifest_end  # a sentence of the manifest may read otherwise: that is what a signature is for


@pytest.mark.parametrize(
    ("name", "others", "told"),
    [
        ("../../outside", {}, "a member '../../outside' stands in the place of finetune-x-0123456789ab/a"),
        ("/etc/passwd", {}, "a member '/etc/passwd' stands"),
        ("finetune-x-0123456789ab/a", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a symbolic link"),
        ("finetune-x-0123456789ab/a", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, "a hard link"),
        ("finetune-x-0123456789ab/a", {"type": tarfile.CHRTYPE}, "a device"),
        ("finetune-x-0123456789ab/a", {"type": tarfile.FIFOTYPE}, "a pipe"),
        ("finetune-x-0123456789ab/a", {"type": tarfile.DIRTYPE}, "a folder"),
        ("finetune-x-0123456789ab/a", {"mode": 0o4755}, "a member 'finetune-x-0123456789ab/a' stands"),
    ],
)
def test_hostile_members_are_named_and_nothing_is_written(
    tmp_path: Path, name: str, others: dict[str, Any], told: str
) -> None:
    """Links, devices and paths that lead out are told by their name; they are never made."""
    path = hostile(lambda tar: tar.addfile(*member(name, b"x" if not others else b"", **others)), tmp_path)
    with pytest.raises(DataError) as error:
        check(path)
    assert told in str(error.value)
    assert [item.name for item in tmp_path.iterdir()] == ["hostile.tar.gz"]


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/../b", "a//b", "./a", "a\\b", "C:a", "a\x1b[2J", "", "a/", "manifest.json", "\ud800"]
)
def test_a_manifest_may_name_no_way_out(tmp_path: Path, name: str) -> None:
    """The receiver will unpack it with tar, which believes every name."""
    text = json.dumps({"files": {name: {"bytes": 1, "sha256": "0" * 64}}}).encode()
    with pytest.raises(DataError) as error:
        check(hostile(lambda tar: None, tmp_path, text))
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    "files",
    [
        {"b": {"bytes": 1, "sha256": "0" * 64}, "a": {"bytes": 1, "sha256": "0" * 64}},
        {"A": {"bytes": 1, "sha256": "0" * 64}, "a": {"bytes": 1, "sha256": "0" * 64}},
        {"a": {"bytes": -1, "sha256": "0" * 64}},
        {"a": {"bytes": True, "sha256": "0" * 64}},
        {"a": {"bytes": 1, "sha256": "0"}},
        {"a": None},
        {},
        [],
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, files: Any) -> None:
    """Disorder, a name twice where case is one, sizes that are none."""
    with pytest.raises(DataError):
        check(hostile(lambda tar: None, tmp_path, json.dumps({"files": files}).encode()))


def test_an_archive_bomb_is_refused_before_it_expands(tmp_path: Path) -> None:
    """What a manifest claims is believed up to a hundred times the archive's size."""
    text = json.dumps({"files": {"a": {"bytes": 10**12, "sha256": "0" * 64}}}).encode()
    with pytest.raises(DataError, match="claims to hold 1000000000000 bytes, 16777216 at most are believed of it"):
        check(hostile(lambda tar: None, tmp_path, text))
    bomb = squeeze(tmp_path / "bomb.tar.gz", bytes(200 << 20))
    with pytest.raises(DataError, match="is no bundle"):
        check(bomb)


def test_more_or_fewer_or_other_members_are_noticed(made: Path, tmp_path: Path) -> None:
    """The manifest is the whole list, in its order."""
    inner = gzip.decompress(made.read_bytes())
    top = made.name.removesuffix(".tar.gz")
    extra = archive.header(f"{top}/zzz", 0)
    with pytest.raises(DataError, match=r"a member 'finetune-tiny-.*/zzz' stands after the last member"):
        check(squeeze(tmp_path / "x", inner[:-1024] + extra + inner[-1024:]))
    with pytest.raises(DataError, match="more follows after its end"):
        check(squeeze(tmp_path / "x", inner + bytes(512)))
    for more in (b"\0", b"x", gzip.compress(b"", mtime=0)):
        (tmp_path / "x").write_bytes(made.read_bytes() + more)
        with pytest.raises(DataError, match="more follows after its end"):
            check(tmp_path / "x")
    with pytest.raises(DataError, match=r"reports/summary.md: is missing|No such file|not those of a run"):
        check(rebuilt(made, tmp_path / "x", lambda files: files.pop("reports/summary.md") and None))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            swap("reports/decision.json", b'"deploy"', b'"abort"'),
            "manifest.json: its verdict is not the one in the bundle",
        ),
        (
            swap("out/model_card.md", b"adapter ", b"adapter 0"),
            "out/model_card.md: is not the file that dvc.lock names",
        ),
        (swap("reports/train.json", b'sha256": "', b'sha256": "0'), "reports/train.json: speaks of another adapter"),
        (swap("reports/summary.md", b"adapter", b"bdapter"), "reports/summary.md: is not the file that dvc.lock names"),
        (
            swap("out/adapter/adapter_config.json", b"tiny", b"huge"),
            "adapter_config.json: is not the file that was publ",
        ),
        (swap("params.yaml", b"seed: 42 ", b"seed: 43 "), "params.yaml: data is not what dvc.lock names"),
        (swap("sbom.cdx.json", b'"CycloneDX"', b'"Cyclone"'), "sbom.cdx.json: is no bill of materials of this adapter"),
        (swap("sbom.cdx.json", b'"library"', b'"libary"'), "sbom.cdx.json: lacks packages, base model or data"),
        (swap("sbom.cdx.json", b'"alg": "SHA-256"', b'"alg": "SHA-0"'), "sbom.cdx.json: is not CycloneDX: "),
        (swap("dvc.lock", b"{", b"["), "dvc.lock: is missing, broken or names no outputs"),
    ],
)
def test_members_that_do_not_belong_together_are_noticed(
    made: Path, tmp_path: Path, change: Callable[[Names], None], told: str
) -> None:
    """A manifest that fits is not enough: adapter, decision, card, report, params and lock must be of one run."""
    with pytest.raises(DataError) as error:
        check(rebuilt(made, tmp_path / "x", change))
    assert told in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'x'}: ")
    assert "finetune-bundle-" not in str(error.value)  # no name of a temporary folder
