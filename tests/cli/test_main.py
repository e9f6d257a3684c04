"""The command line prints one line per error, exits with the right code, and shows a traceback only on request."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click import Context

from finetune import VERSION
from finetune.cli.command import Command
from finetune.cli.main import all_commands, main, split_words
from finetune.cli.reference import to_markdown
from tests.builders.small_run import ROOT, params

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with params.yaml and rows, and make it the working directory."""
    from tests.builders.small_run import rows

    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(60)), encoding="utf-8")
    Path("params.yaml").write_text(json.dumps(params()), encoding="utf-8")
    return tmp_path


def test_success_exits_with_0(folder: Path) -> None:
    """A stage that succeeds exits with 0 and leaves its outputs."""
    assert main(["prepare"]) == 0
    assert Path("data/prepared/train.jsonl").is_file()
    assert Path("reports/prepare.json").is_file()


def test_invalid_config_exits_with_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid config lists all mistakes at once, without a traceback, and writes nothing."""
    content = params() | {"sed": 1}
    content["train"]["learning_rate"] = "2e-4"
    Path("params.yaml").write_text(json.dumps(content), encoding="utf-8")
    assert main(["prepare"]) == 2
    told = capsys.readouterr().err
    assert told.splitlines() == [
        "error: params.yaml: train.learning_rate: must be a valid number; found '2e-4'",
        "params.yaml: sed: unknown key; did you mean seed?",
    ]
    assert not Path("data/prepared").exists()


def test_invalid_data_exits_with_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Invalid data yield one line with file, line number, problem and remedy."""
    with Path("data/raw/rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"agent": "last", "task"\n')
    assert main(["prepare"]) == 3
    told = capsys.readouterr().err
    assert told.startswith("error: data/raw/rows.jsonl:62: broken JSON: ")
    assert told.endswith("; fix the row, or set data.on_bad_row: skip\n")
    assert not Path("data/prepared").exists()


def test_an_unwritable_folder_exits_with_4(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not writable is reported in one line, and its content is kept."""
    Path("reports").write_text("a file where a folder must be", encoding="utf-8")
    assert main(["prepare"]) == 4
    told = capsys.readouterr().err
    assert told.startswith("error: prepare: reports: ")
    assert told.count("\n") == 1


def test_a_stage_out_of_order_names_its_missing_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing input names the stage to run, without a traceback."""
    assert main(["decide"]) == 3
    assert capsys.readouterr().err == (
        "error: reports/prepare.json: no such file; run the stage that writes it (dvc repro)\n"
    )


def test_two_pipelines_at_once_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An orphan of a killed DVC must not write at the same time as the next run."""
    code = (
        "import time\nfrom pathlib import Path\nfrom finetune.files.run_lock import pipeline_lock\n"
        "with pipeline_lock(Path('work/pipeline.lock'), 'train'):\n    print('held', flush=True)\n    time.sleep(3600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        assert main(["prepare"]) == 2
        told = capsys.readouterr().err
        assert told.startswith(
            f"error: work/pipeline.lock: stage train (process {holder.pid}) is running in this folder"
        )
    finally:
        holder.kill()
        holder.wait()
    assert main(["prepare"]) == 0


def test_debug_shows_the_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--debug` shows the traceback for developers; by default a user sees one line."""
    Path("params.yaml").unlink()
    assert main(["--debug", "prepare"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["prepare"]) == 2
    assert capsys.readouterr().err == "error: params.yaml: no such file; run from the root of the repository\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "finetune: no such command: trian; did you mean train? See finetune --help"),
        (["xyz"], "finetune: no such command: xyz; see finetune --help"),
        (["--debg", "train"], "finetune: no such option: --debg; did you mean --debug? See finetune --help"),
        (
            ["plan", "--exampels", "3"],
            "finetune plan: no such option: --exampels; did you mean --examples? See finetune plan --help",
        ),
        (
            ["plan", "--examples", "0"],
            "finetune plan: invalid value for '--examples': '0' is not a positive integer; see finetune plan --help",
        ),
        (
            ["seeds", "--seeds", "1,x"],
            "finetune seeds: invalid value for '--seeds': '1,x' is not a list of seeds, like 1,2,3; "
            "see finetune seeds --help",
        ),
        (["use"], "finetune use: missing argument 'RECIPE'; see finetune use --help"),
    ],
)
def test_usage_errors_exit_with_2(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A usage error exits with 2 and prints one line with the nearest valid name."""
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


def test_help_and_version_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    """The help lists every command under its heading; without arguments it is shown too, as a usage error."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"finetune {VERSION}\n"
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    headings = [heading for heading, _ in all_commands()]
    assert re.findall(r"^(.*):$", shown, flags=re.MULTILINE) == ["Options", *headings, "Example", "Exit codes"]
    assert main([]) == 2
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("one", [one for _, commands in all_commands() for one in commands], ids=lambda one: one.name)
def test_every_command_has_help(one: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has one line in the list, a description of every option, and an example."""
    assert one.help and len(one.get_short_help_str(200)) <= 64
    assert all(parameter.get_help_record(Context(one))[1] for parameter in one.params)  # type: ignore[index]
    words = shlex.split(one.example)
    assert words[0] == one.name
    if one.name != "dvc":
        assert main([words[0], "--help"]) == 0
        assert f"Example: finetune {one.example}" in " ".join(capsys.readouterr().out.split())
        one.make_context(words[0], words[1:]).close()


def test_options_before_the_command_are_recognised() -> None:
    """The value of an option before the command is not taken for a command."""
    assert split_words(["--debug", "--runtime", "podman", "train", "--json"]) == (["--debug", "--runtime"], "train")
    assert split_words(["--runtime=podman", "gate"]) == (["--runtime=podman"], "gate")
    assert split_words(["--version"]) == (["--version"], "finetune")


def test_an_alias_is_the_same_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`try` is the former name of `chat` and still works."""
    assert main(["try", "--help"]) == 0
    assert "Also called: try" in capsys.readouterr().out


def test_the_commands_page_is_up_to_date() -> None:
    """docs/cli.md equals the output of `./finetune help --markdown`."""
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == to_markdown()


def test_commands_in_messages_exist() -> None:
    """Every command that a message recommends exists."""
    names = {str(one.name): one for _, commands in all_commands() for one in commands}
    found = 0
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.j2"), *(ROOT / "recipes").glob("*.yaml")]:
        text = path.read_text(encoding="utf-8")
        for name, rest in re.findall(r"\./finetune(?: --runtime \w+)? ([a-z][a-z-]*)([^;,\n\"`]*)", text):
            assert name in names, f"{path}: {name}"
            options = {option for parameter in names[name].params for option in parameter.opts}
            assert set(re.findall(r"(?<= )--[a-z-]+", rest)) <= options | {"--help"}, f"{path}: {name}{rest}"
            found += 1
    assert found > 40


def test_errors_are_printed_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With JSON output, errors are JSON as well."""
    assert main(["report", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    (problem,) = found["problems"]
    assert (found["exit_code"], problem["place"], problem["message"]) == (3, "reports/decision.json", "no such file")


@pytest.mark.parametrize("words", [["recipes"], ["findings"], ["plan", "tiny", "--examples", "1600"], ["status"]])
def test_reports_are_printed_as_json(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report in JSON is the only output."""
    monkeypatch.chdir(ROOT)
    assert main([*words, "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_check_results_are_printed_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without `--json`, a check that passes prints nothing."""
    assert main(["check"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ready": True}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_recipes(shell: str) -> None:
    """Completion follows click's protocol: words in, candidates out."""
    source = {**ENVIRONMENT, "_FINETUNE_COMPLETE": f"{shell}_source"}
    command = [sys.executable, "-m", "finetune"]
    script = subprocess.run(command, env=source, capture_output=True, text=True, check=True).stdout
    assert "_FINETUNE_COMPLETE" in script
    for line, last, expected in (("finetune pl", "1", "plan"), ("finetune use h1", "2", "h100")):
        variables = {**ENVIRONMENT, "_FINETUNE_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": last}
        if shell == "fish":
            variables["COMP_CWORD"] = line.split()[-1]
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
        assert expected in done.stdout


def test_dvc_arguments_are_passed_through(tmp_path: Path) -> None:
    """Arguments and exit code are passed through unchanged, and the stages' command is on DVC's PATH."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    bare = {**ENVIRONMENT, "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "finetune", "dvc"]
    for words in (
        ["init", "-q"],
        ["stage", "add", "-q", "-n", "help", "-o", "shown.txt", "finetune --help > shown.txt"],
    ):
        subprocess.run([*command, *words], cwd=tmp_path, env=bare, check=True)
    subprocess.run([*command, "repro", "-q"], cwd=tmp_path, env=bare, check=True)
    assert "Usage: finetune" in (tmp_path / "shown.txt").read_text(encoding="utf-8")
    assert subprocess.run([*command, "no-such"], cwd=tmp_path, env=bare, capture_output=True).returncode == 254


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_second_signal_does_not_break_the_exit(tmp_path: Path, name: str) -> None:
    """A signal after the work is done must not interrupt torch's exit handlers with a traceback."""
    code = (
        "import atexit, os, signal, sys; from finetune.cli.main import run_and_exit\n"
        f"atexit.register(lambda: os.kill(os.getpid(), signal.{name}))\n"
        "sys.argv = ['finetune', 'gate']; run_and_exit()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "error: params.yaml: no such file; run from the root of the repository\n",
    )
