"""`.ci/run` reports the time of each part at its end, also if a part fails."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.builders.small_run import ROOT

# A stand-in for make: all targets pass except one.
MAKE = """#!/bin/sh
[ "$1" != "$FAILING" ] || exit 3
printf '#!/bin/sh\\nexit 10\\n' > finetune  # whose gate says iterate
chmod +x finetune
"""
TOOLS = ("chromium", "buildah", "podman", "runc", "mmdebstrap")


def run_ci(folder: Path, failing: str) -> subprocess.CompletedProcess[str]:
    """Run the script in its own repository, with stand-ins for make and for everything that it would install."""
    (folder / "repository/.ci").mkdir(parents=True)
    (folder / "repository/.ci/run").write_text((ROOT / ".ci/run").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "repository/dvc.lock").write_text("", encoding="utf-8")
    (folder / "bin").mkdir()
    for name in ("make", *TOOLS):
        (folder / "bin" / name).write_text(MAKE, encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        subprocess.run(["git", *words], cwd=folder / "repository", check=True)
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FAILING": failing,
        "TMPDIR": str(folder),
    }
    return subprocess.run(
        ["bash", folder / "repository/.ci/run"], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("failing", "code", "last"), [("none", 0, "repro-again"), ("test", 3, "test"), ("repro", 3, "repro")]
)
def test_each_part_is_listed_with_its_time(tmp_path: Path, failing: str, code: int, last: str) -> None:
    """The list shows which part failed or took too long."""
    done = run_ci(tmp_path, failing)
    assert done.returncode == code, done.stderr
    table = done.stdout[done.stdout.rindex("\npart ") :]
    rows = re.findall(r"^(\S+) +\d+ min \d\d s(?:  (.*))?$", table, flags=re.MULTILINE)
    assert [name for name, _ in rows][:3] == ["tools", "setup", "lint"]
    assert rows[-1] == ("all", "")
    assert rows[-2] == (last, "passed" if code == 0 else "failed with exit code 3")
    assert {result for _, result in rows[:-2]} == {"passed"}
    assert {path.name for path in tmp_path.iterdir()} == {"repository", "bin"}, "the clone is left behind"
