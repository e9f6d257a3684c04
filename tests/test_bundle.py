"""The bundle: the same run gives the same bytes, whatever was done to them is noticed, and nothing leaves with them."""

import gzip
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.__main__ import main
from finetune.errors import ConfigError, DataError, FinetuneError, MachineError
from finetune.sharing import archive, bundle, check_bundle, leaks, materials, members, signing
from tests.shared_run import ROOT, finished, lock, rewrite

Names = dict[str, bytes]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    root = finished(tmp_path_factory.mktemp("run") / "repository")
    lock(root)
    return root


@pytest.fixture(scope="module")
def made(run: Path) -> Path:
    """Its bundle."""
    bundle.run(run, None, None)
    return next((run / "out/bundle").glob("*.tar.gz"))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run to change."""
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("bundle")))


def check(path: Path, signers: Path | None = None, identity: str | None = None) -> None:
    """As the command does."""
    check_bundle.run(path, signers, identity)


def contents(path: Path) -> Names:
    """The members of a bundle and their bytes, in their order."""
    with tarfile.open(path) as tar:
        return {info.name.partition("/")[2]: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def pack(target: Path, write: Callable[[tarfile.TarFile], None]) -> Path:
    """A tar.gz of another hand, with the header that bundles have."""
    raw = BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        write(tar)
    return squeeze(target, raw.getvalue())


def squeeze(target: Path, content: bytes) -> Path:
    """Bytes as the bundle's gzip."""
    with target.open("wb") as file, gzip.GzipFile("", "wb", archive.LEVEL, file, 0) as packed:
        packed.write(content)
    return target


def member(name: str, content: bytes = b"", **others: Any) -> tuple[tarfile.TarInfo, BytesIO]:
    """A member of a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in others.items():
        setattr(info, key, value)
    return info, BytesIO(content)


def rebuilt(path: Path, target: Path, change: Callable[[Names], None]) -> Path:
    """The bundle with its members changed and a manifest that fits them: what a forger would write."""
    files = contents(path)
    manifest = json.loads(files.pop("manifest.json"))
    change(files)
    files = dict(sorted(files.items()))
    manifest["files"] = {name: bundle.entry_of(content) for name, content in files.items()}
    archive.write_archive(target, path.name.removesuffix(".tar.gz"), manifest, files)
    return target


# --------------------------------------------------------------------------------------------------------- the archive


def test_the_same_run_gives_the_same_bytes(run: Path, made: Path, tmp_path: Path) -> None:
    """Who bundles twice, or in another folder with files of another day, can compare two archives by their hash."""
    other = Path(shutil.copytree(run, tmp_path / "else/where", ignore=shutil.ignore_patterns("bundle")))
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    bundle.run(other, None, tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == made.read_bytes()


def test_it_holds_what_is_needed_and_nothing_of_this_machine(run: Path, made: Path) -> None:
    """Adapter, evidence, params, locks and manifests under one folder, with no time, owner or mode of anybody."""
    found = contents(made)
    manifest = json.loads(found["manifest.json"])
    assert {"out/adapter/adapter_model.safetensors", "out/adapter/manifest.json", "out/model_card.md"} <= set(found)
    assert {"reports/report.html", "reports/decision.json", "reports/curves.tsv", "dvc.lock"} <= set(found)
    assert {"requirements/cpu.lock", "requirements/torch-cpu.lock", "data/looks.json", "sbom.cdx.json"} <= set(found)
    assert not any("predictions" in name or "prepared" in name for name in found)
    assert list(found)[1:] == sorted(manifest["files"])
    assert manifest["verdict"] == "deploy"
    assert made.name == f"finetune-tiny-{manifest['adapter_sha256'][:12]}.tar.gz"
    with tarfile.open(made) as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.mode) == (0, 0, 0, "", 0o644)
            assert info.isreg()
    assert str(run).encode() not in b"".join(found.values())


def test_it_can_be_unpacked_by_tar(made: Path, tmp_path: Path) -> None:
    """Nobody needs this tool to use what is inside."""
    subprocess.run(["tar", "-xzf", str(made), "-C", str(tmp_path)], check=True)
    folder = tmp_path / made.name.removesuffix(".tar.gz")
    assert members.require_adapter(folder / "out/adapter")["tier"] == "bitwise"


def test_check_says_what_it_carries(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole, unsigned, and the verdict."""
    check(made)
    told = capsys.readouterr().out
    assert "whole; 26 files, all of one run" in told
    assert "not signed: it is whole, and who made it is not proven" in told
    assert "verdict deploy: All of it passes." in told


def test_check_works_outside_of_a_repository_and_without_torch(made: Path, tmp_path: Path) -> None:
    """The receiver has the archive and this tool, and no run."""
    code = (
        "import sys; from pathlib import Path; from finetune.sharing.check_bundle import run\n"
        "run(Path(sys.argv[1]), None)\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'dvc', 'scipy'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code, str(made)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_failure_leaves_the_old_bundle_and_nothing_half(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or a kill in the middle: what stood there stands there still."""
    target = tmp_path / "kept/it.tar.gz"
    bundle.run(copy, None, target)
    before = target.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "copy_member", full)
    with pytest.raises(OSError, match="No space"):
        bundle.run(copy, None, target)
    assert [path.name for path in target.parent.iterdir()] == ["it.tar.gz"]
    assert target.read_bytes() == before


def test_a_file_that_changes_meanwhile_is_noticed(copy: Path, tmp_path: Path) -> None:
    """The manifest must not vouch for other bytes than were packed."""
    with pytest.raises(DataError, match=r"a: was changed while it was bundled; wait for what writes it, then bundle"):
        archive.write_archive(tmp_path / "x", "t", {"files": {"a": bundle.entry_of(b"one")}}, {"a": b"two"})


def test_output_may_be_a_folder_but_no_output_of_dvc(copy: Path, tmp_path: Path) -> None:
    """Inside out/adapter it would make another adapter of it."""
    bundle.run(copy, None, tmp_path)
    assert list(tmp_path.glob("finetune-tiny-*.tar.gz"))
    with pytest.raises(ConfigError, match=r"lies in out/adapter, which is an output of DVC; choose another place"):
        bundle.run(copy, None, copy / "out/adapter/x.tar.gz")


# ------------------------------------------------------------------------------------------------------ what is refused


def test_no_verdict_no_bundle(copy: Path) -> None:
    """There is nothing to trust."""
    (copy / "reports/decision.json").unlink()
    with pytest.raises(DataError, match=r"decision\.json: no such file; run the stage that writes it \(dvc repro\)"):
        bundle.run(copy, None, None)


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        ("params.yaml", "confidence: 0.95", "confidence: 0.9", "was made with another section decide of params.yaml"),
        (
            "params.yaml",
            "learning_rate: 2.0e-3",
            "learning_rate: 1.0e-3",
            "params.yaml: train is not what dvc.lock names",
        ),
        (
            "reports/summary.md",
            "of the adapter",
            "of an adapter",
            "reports/summary.md: is not the file that dvc.lock names",
        ),
        ("requirements/cpu.lock", "made up", "changed", "requirements/cpu.lock: is not the file that dvc.lock names"),
        ("out/adapter/adapter_config.json", "tiny-base", "huge-base", "is not the file that was published"),
        ("data/prepared/test.jsonl", "test", "tests", "test.jsonl: is not the test set that was evaluated"),
        ("out/predictions.jsonl", "1", "2", "predictions.jsonl: is not the file that evaluate wrote"),
    ],
)
def test_what_is_not_of_one_run_is_not_bundled(copy: Path, name: str, before: str, after: str, told: str) -> None:
    """Adapter, test set, gate, reports, params and locks must be those of the verdict."""
    rewrite(copy / name, before, after)
    with pytest.raises(DataError) as error:
        bundle.run(copy, None, None)
    assert told in str(error.value)
    assert not (copy / "out/bundle").exists()


def test_a_stranger_in_the_adapter_is_not_bundled(copy: Path) -> None:
    """What train did not publish nobody has judged."""
    (copy / "out/adapter/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match=r"notes\.txt: was not published with the adapter"):
        bundle.run(copy, None, None)


def test_another_verdict_is_told_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter that should not ship may be handed on, but not by accident."""
    root = finished(tmp_path / "run", verdict="abort")
    lock(root)
    bundle.run(root, None, tmp_path / "x.tar.gz")
    assert "warning: the verdict is ABORT, NOT DEPLOY" in capsys.readouterr().out
    check(tmp_path / "x.tar.gz")
    assert "warning: NOT DEPLOY: verdict abort" in capsys.readouterr().out


def test_a_secret_of_the_environment_stays_here(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token in a tokenizer's config, or in any other member, is found before it is packed; it is never shown."""
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretindeed")
    rewrite(copy / "dvc.yaml", "echo prepare has run", "echo hf_verysecretindeed")
    with pytest.raises(DataError) as error:
        bundle.run(copy, None, None)
    assert str(error.value).startswith("dvc.yaml: holds the value of the environment variable HF_TOKEN")
    assert "verysecret" not in str(error.value)


def test_a_folder_of_this_machine_stays_here(copy: Path) -> None:
    """Nobody else has it, and it tells who made this."""
    rewrite(copy / "dvc.yaml", "echo prepare has run", f"echo {copy.resolve()}/data")
    with pytest.raises(DataError, match=r"dvc\.yaml: names this repository's folder .*; name files relative"):
        bundle.run(copy, None, None)


def test_leaks_are_found_at_every_place_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read in pieces; what lies across a border counts too, and what only looks alike does not."""
    monkeypatch.setattr(leaks, "CHUNK", 16)
    places = {b"/srv/work/run": "this repository's folder"}
    for at in range(40):
        path = tmp_path / "file"
        path.write_bytes(b" " * at + b"/srv/work/run/x")
        with pytest.raises(DataError):
            leaks.require_none("file", path, {}, places)
        path.write_bytes(b" " * at + b"/srv/work/running" + b" " * 9 + b"/mnt/srv/work/run")
        leaks.require_none("file", path, {}, places)


def test_which_variables_are_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, or because params name them; switches, numbers and paths to files are none."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name in (
        "WANDB_API_KEY",
        "MY_JUDGE",
        "MAX_TOKENS",
        "HF_TOKEN_PATH",
        "AWS_SECRET_ACCESS_KEY",
        "HOME",
        "A_TOKEN",
    ):
        monkeypatch.setenv(name, "123456789" if name == "MAX_TOKENS" else "x" if name == "A_TOKEN" else f"{name}-value")
    assert sorted(leaks.secrets_here(["MY_JUDGE"]).values()) == ["AWS_SECRET_ACCESS_KEY", "MY_JUDGE", "WANDB_API_KEY"]


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


def hostile(change: Callable[[tarfile.TarFile], None], place: Path, first: bytes | None = None) -> Path:
    """An archive that begins with a manifest and goes on with something else."""
    top = "finetune-x-0123456789ab"
    text = first or json.dumps({"files": {"a": {"bytes": 1, "sha256": "0" * 64}}}).encode()

    def write(tar: tarfile.TarFile) -> None:
        tar.addfile(*member(f"{top}/manifest.json", text))
        change(tar)

    return pack(place / "hostile.tar.gz", write)


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


def swap(name: str, before: bytes, after: bytes) -> Callable[[Names], None]:
    """A change of one member."""

    def change(files: Names) -> None:
        assert before in files[name]
        files[name] = files[name].replace(before, after)

    return change


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


# ------------------------------------------------------------------------------- names and nests that are no run's own


def refused(path: Path) -> str:
    """What is said of a hostile bundle: one line, and soon."""
    begun = time.monotonic()
    with pytest.raises(DataError) as error:
        check(path)
    assert time.monotonic() - begun < 5  # a fraction of a second, on a machine with nothing else to do
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


def bomb(levels: int = 10) -> str:
    """YAML of some hundred bytes that stands for 9 ** levels values."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    return "\n".join(lines + [f"a{at}: &a{at} [{','.join([f'*a{at - 1}'] * 9)}]" for at in range(1, levels)])


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


# ---------------------------------------------------------------------------------------------------------- signatures


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two keys without and one with a passphrase, and the signers that a receiver trusts: the first alone."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("OpenSSH is not installed")
    place = tmp_path_factory.mktemp("keys")
    for name, phrase in {"anna": "", "mallory": "", "guarded": "a long one"}.items():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-C", name, "-f", str(place / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    public = (place / "anna.pub").read_text(encoding="utf-8")
    (place / "signers").write_text(f'anna@example.org namespaces="finetune-bundle" {public}', encoding="utf-8")
    return {name: place / name for name in ("anna", "mallory", "guarded", "signers")}


def test_a_signature_proves_who_made_it(
    copy: Path, tmp_path: Path, keys: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Signed by a key that the receiver knows; the archive's bytes are the same with it or without."""
    target = tmp_path / "x.tar.gz"
    bundle.run(copy, keys["anna"], target)
    check(target, keys["signers"])
    assert "signed by anna@example.org" in capsys.readouterr().out
    check(target, keys["signers"], "anna@example.org")
    check(target)
    assert "it has a signature, which was not checked" in capsys.readouterr().out


def test_what_is_signed_otherwise_is_refused(copy: Path, made: Path, tmp_path: Path, keys: dict[str, Path]) -> None:
    """A stranger's key, other bytes, another purpose, another person, no signature at all."""
    target = Path(shutil.copy(made, tmp_path / "x.tar.gz"))
    with pytest.raises(DataError, match=r"x\.tar\.gz\.sig: is missing, so x\.tar\.gz can't be told from a forgery"):
        check(target, keys["signers"])
    signing.sign(target, keys["mallory"])
    with pytest.raises(DataError, match=r"is by nobody whom .* allows"):
        check(target, keys["signers"])
    signing.sign(target, keys["anna"])
    with pytest.raises(DataError, match=r"is not what bob@example\.org signed"):
        check(target, keys["signers"], "bob@example.org")
    target.write_bytes(target.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"is not what anna@example\.org signed, or not by a key of theirs"):
        check(target, keys["signers"])
    command = ["ssh-keygen", "-Y", "sign", "-n", "file", "-f", str(keys["anna"]), str(target)]
    signing.signature_of(target).unlink()
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(DataError):
        check(target, keys["signers"])
    signing.signature_of(target).write_text("nonsense", encoding="utf-8")
    with pytest.raises(DataError):
        check(target, keys["signers"])


def test_an_old_signature_does_not_outlive_its_bundle(copy: Path, tmp_path: Path, keys: dict[str, Path]) -> None:
    """Bundled again without a key, the old signature would call the new archive a forgery."""
    target = tmp_path / "x.tar.gz"
    bundle.run(copy, keys["anna"], target)
    bundle.run(copy, None, target)
    assert not signing.signature_of(target).exists()


def test_a_passphrase_is_not_waited_for_without_a_terminal(made: Path, tmp_path: Path, keys: dict[str, Path]) -> None:
    """In CI nobody could type it: it is an error at once."""
    target = Path(shutil.copy(made, tmp_path / "x.tar.gz"))
    code = (
        "import sys; from pathlib import Path; from finetune.sharing import signing\n"
        "try: signing.sign(Path(sys.argv[1]), Path(sys.argv[2]))\nexcept Exception as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    environment.pop("SSH_AUTH_SOCK", None)
    command = [sys.executable, "-c", code, str(target), str(keys["guarded"])]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True
    )
    assert "a key with a passphrase needs a terminal or ssh-agent" in done.stdout
    assert not signing.signature_of(target).exists()


def test_a_passphrase_can_be_typed_on_a_terminal(made: Path, tmp_path: Path, keys: dict[str, Path]) -> None:
    """ssh-keygen asks on the terminal itself; here a pseudo-terminal answers."""
    import pty
    import select

    target = Path(shutil.copy(made, tmp_path / "x.tar.gz"))
    pid, terminal = pty.fork()
    if pid == 0:
        code = (
            "import sys; from pathlib import Path; from finetune.sharing import signing\n"
            "signing.sign(Path(sys.argv[1]), Path(sys.argv[2]))"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        environment.pop("SSH_AUTH_SOCK", None)
        os.execvpe(sys.executable, [sys.executable, "-c", code, str(target), str(keys["guarded"])], environment)
    shown = b""
    while select.select([terminal], [], [], 30)[0]:
        try:
            read = os.read(terminal, 4096)
        except OSError:
            break
        if not read:
            break
        shown += read
        if b"passphrase" in shown and b"a long one" not in shown:
            os.write(terminal, b"a long one\n")
            shown += b"a long one"
    _, ended = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(ended) == 0, shown
    assert signing.signature_of(target).is_file()


def test_keys_and_tools_that_are_missing_are_told_first(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is packed."""
    with pytest.raises(ConfigError, match="nokey: no such key; name a private key of OpenSSH"):
        bundle.run(copy, tmp_path / "nokey", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"ssh-keygen is not on PATH; install OpenSSH"):
        bundle.run(copy, tmp_path / "nokey", None)
    assert not (copy / "out/bundle").exists()


# --------------------------------------------------------------------------------------------------- bill of materials


def test_the_bill_of_materials_names_what_it_was_made_of(made: Path) -> None:
    """Packages for the run's own Python and system, with versions, hashes and licences; base and data."""
    content = json.loads(contents(made)["sbom.cdx.json"])
    by_name = {item["name"]: item for item in content["components"]}
    assert {"packaging", "networkx", "torch", "tiny-base", "rows"} == set(by_name)  # pywin32 is for another system
    assert by_name["networkx"]["version"] == "3.6.1"  # the run had Python 3.11
    assert by_name["torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert {item["content"][0] for item in by_name["packaging"]["externalReferences"][0]["hashes"]} == {"0", "1"}
    assert by_name["packaging"]["licenses"]
    for item in by_name.values():  # no host: the files may come from any index or mirror
        assert {reference["url"] for reference in item.get("externalReferences", [])} <= {item.get("purl")}
    assert by_name["tiny-base"]["type"] == "machine-learning-model"
    assert by_name["rows"]["type"] == "data"
    assert "timestamp" not in content["metadata"]
    assert len(content["dependencies"]) == 6  # the adapter's, and an empty one of each


@pytest.mark.parametrize("environment", ["cpu", "cuda", "apple"])
def test_the_real_locks_give_a_valid_bill(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lock of the repository is understood, and what comes out meets the schema of CycloneDX 1.6."""
    from finetune.config import load_config

    config = load_config(ROOT / "params.yaml")
    system = "Darwin arm64" if environment == "apple" else "Linux x86_64"
    torch = "2.13.0+cpu" if environment == "cpu" else "2.13.0"
    base = {"name": "org/model", "revision": "0" * 40}
    versions = {"python": "3.12.3", "torch": torch}
    adapter = {"adapter_sha256": "a" * 64, "base": base, "versions": versions}
    source = {"sha256": "b" * 64, "revision": None, "kept": 1, "read": 1}
    reports = {"prepare": {"sources": {"x": source}}, "train_cost": {"machine": {"system": system}}}
    locks = [ROOT / name for name in members.locks_of(environment, adapter)]
    text = materials.bill_of_materials(config, adapter, reports, locks)
    assert check_bundle.schema_findings(text.decode()) == []
    assert text == materials.bill_of_materials(config, adapter, reports, locks)
    found = {item["name"]: item for item in json.loads(text)["components"]}
    assert len(found) > 100
    assert found["torch"]["version"] == torch
    assert found["org/model"]["purl"] == f"pkg:huggingface/org/model@{'0' * 40}"
    assert ("nvidia-cudnn-cu13" in found) == (environment == "cuda")


def test_a_version_that_the_lock_does_not_have_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who installed something else by hand has no hash to show for it."""
    packages = [materials.Package("torch", "2.0", ("0" * 64,)), materials.Package("regex", "1", ("0" * 64,))]
    used = materials.as_used(packages, {"versions": {"torch": "2.1"}})
    assert used == [materials.Package("torch", "2.1", ()), packages[1]]
    assert "warning: the run used torch 2.1, its lock has 2.0; no hash proves it" in capsys.readouterr().out


def test_errors_have_their_exit_codes() -> None:
    """3 for a bundle that is not as it should be, 2 for a wrong call, 4 for a machine without the tool."""
    assert [kind.exit_code for kind in (DataError, ConfigError, MachineError)] == [3, 2, 4]
    with pytest.raises(FinetuneError, match="nowhere: no such bundle; make bundle writes one to out/bundle"):
        check(Path("nowhere"))


def test_a_bundle_can_be_read_by_all(made: Path) -> None:
    """It is there to be handed on."""
    assert stat.S_IMODE(made.stat().st_mode) & 0o600 == 0o600
