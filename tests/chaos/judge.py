"""Compares a folder with the undisturbed run, and checks how the commands ended."""

import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.commands.sharing.stored import require_manifests
from finetune.errors import FinetuneError
from finetune.paths import Paths
from tests.chaos.scene import Ran, Scene

FOLDERS = ("data/prepared", "data/validated", "out/adapter")
FILES = (
    *(f"reports/{name}" for name in ("prepare.json", "prepare.md", "validation.json", "validation.md")),
    *(f"reports/{name}" for name in ("train.json", "train_cost.json", "curves.tsv", "validation_curve.tsv")),
    *(f"reports/{name}" for name in ("evaluation.json", "cost.json")),
    *(f"reports/{name}" for name in ("decision.json", "report.html", "summary.md")),
    *(f"out/{name}" for name in ("predictions.jsonl", "latency.jsonl", "model_card.md")),
    "data/looks.json",
)
GROWING = ("reports/curves.tsv", "reports/validation_curve.tsv")  # they grow while train runs
CODES = {0: "done", 2: "bad use", 3: "bad data", 4: "the machine", 5: "interrupted"}
VERDICTS = {"deploy": 0, "deploy-unproven": 10, "iterate": 10, "abort": 20}  # the gate's exit codes
DVC_FAILED = (255, 1)
DVC_YAML_ERROR = re.compile(r"'[^']+' (is invalid|validation failed)")  # dvc/utils/strictyaml.py
MEASURED_KINDS = ("latency", "memory")  # kinds of criteria
MEASURED = re.compile(r"[\d.,]+ (GB|MB|ms|s)\b|0\.\d+ s\b")


class Reference:
    """The result of the undisturbed run, in comparable form."""

    def __init__(self, folder: Path) -> None:
        self.content = {name: comparable(name, (folder / name).read_bytes()) for name in names_in(folder)}
        self.verdict = json.loads((folder / "reports/decision.json").read_bytes())["verdict"]


def names_in(folder: Path) -> list[str]:
    """Return all files with a final name."""
    inside = [path for name in FOLDERS for path in (folder / name).rglob("*") if path.is_file()]
    return sorted(
        [path.relative_to(folder).as_posix() for path in inside] + [n for n in FILES if (folder / n).exists()]
    )


def comparable(name: str, content: bytes) -> Any:
    """Return a file's content without measurements; raise ValueError if it is incomplete."""
    text = content.decode("utf-8") if name in FILES else ""
    if name == "reports/decision.json":
        decision = json.loads(text)
        return {**decision, "criteria": [without_measured(item) for item in decision["criteria"]]}
    if name == "reports/cost.json":
        cost = json.loads(text)
        return {key: cost[key] for key in ("adapter_sha256", "settings", "versions")}
    if name == "reports/train_cost.json":
        return sorted(json.loads(text))
    if name == "out/latency.jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
        return [(row["id"], row["baseline_tokens"], row["candidate_tokens"]) for row in rows]
    if name in GROWING:
        return [line.split("\t")[:5] for line in text.splitlines()]
    if name == "reports/report.html":
        whole = text.startswith("<!") and text.rstrip().endswith("</html>")
        return whole, re.findall(r"<h1[^>]*>.*?</h1>", text), re.findall(r">([^<>\d]{30,})<", text)
    if name in ("reports/summary.md", "out/model_card.md"):
        return MEASURED.sub("#", text)
    return json.loads(text) if name.endswith(".json") and name in FILES else content


def without_measured(criterion: dict[str, Any]) -> dict[str, Any]:
    """Return a criterion of the decision without figures of measured seconds or bytes."""
    kept = ("criterion", "about", "status", "target", "method")
    return {key: criterion[key] for key in kept} if criterion["about"] in MEASURED_KINDS else criterion


def wrong_in(folder: Path, reference: Reference, exempt: Sequence[str] = (), *, finished: bool = False) -> list[str]:
    """Return files with a final name that differ from the reference: partial, damaged, or of another run.

    Temporary files of DVC begin with a dot. Until the run is finished curves may be shorter."""
    found = []
    for name in names_in(folder):
        if (
            name in exempt
            or name.startswith(tuple(f"{other}/" for other in exempt))
            or name.split("/")[-1].startswith(".")
        ):
            continue
        try:
            content = comparable(name, (folder / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            continue  # replaced at this moment
        except (ValueError, KeyError, TypeError, IsADirectoryError) as error:
            found.append(f"{name}: {type(error).__name__}: {str(error)[:80]}")
            continue
        expected = reference.content.get(name)
        if name.startswith("reports/validation.") and refused(folder):
            continue  # a complete report of why the run stops
        if name == "data/looks.json" and content == {}:
            continue  # nothing has been evaluated yet
        beginning = name in GROWING and not finished and content == (expected or [])[: len(content)]
        if content != expected and not beginning:
            found.append(f"{name}: differs from the reference")
    return found


def refused(folder: Path) -> bool:
    """Return whether validate's report stops the run."""
    try:
        return bool(json.loads((folder / "reports/validation.json").read_bytes())["errors"])
    except (OSError, ValueError, KeyError):
        return False


def different(folder: Path, reference: Reference, planted: Sequence[str] = ()) -> list[str]:
    """Return how the finished run differs from the reference."""
    missing = sorted(set(reference.content) - set(names_in(folder)))
    found = [f"{name}: is missing" for name in missing] + wrong_in(folder, reference, finished=True)
    try:
        require_manifests(Paths(folder))
    except (FinetuneError, OSError) as error:
        found.append(str(error))
    for left in (*folder.glob("*/.*.partial"), *folder.glob("*/.*.replaced")):
        if not any(name.startswith(left.relative_to(folder).as_posix()) for name in planted):
            found.append(f"{left.relative_to(folder)}: was left behind")
    return found


def bad_endings(scene: Scene) -> list[str]:
    """Return the commands with an invalid ending: an internal error, a hang, a traceback, or no clear error line."""
    return [f"{ran.shown}: {why}" for ran in scene.ran for why in [why_bad(ran, scene.signals)] if why]


def wrong_verdicts(ran: Sequence[Ran], verdict: str) -> list[str]:
    """Return wrong verdicts of the gate, and errors of the last two commands."""
    expected = VERDICTS[verdict]
    gates = [one.code for one in ran if one.words == ("gate",)]
    found = [
        f"gate: exit code {code}, and the verdict is {verdict}"
        for code in gates
        if code in VERDICTS.values() and code != expected
    ]
    repro = next((one.code for one in reversed(ran) if one.words == ("dvc", "repro")), None)
    if repro != 0:
        found.append(f"the last dvc repro ended with {repro}, not 0")
    if not ran or ran[-1].words != ("gate",) or ran[-1].code != expected:
        found.append(f"the round does not end with a gate of exit code {expected}")
    return found


def why_bad(ran: Ran, signals: set[int]) -> str | None:
    """Return why a command's ending is invalid; None if it is documented."""
    if ran.hung:
        return "hung"
    if "Traceback (most recent call last)" in ran.said:
        return "a traceback: " + last_line(ran.said)
    if ran.code < 0:
        return None if -ran.code in signals else f"killed by {signal.Signals(-ran.code).name}, not sent by the test"
    if ran.words[0] == "gate" and ran.code in VERDICTS.values():
        return None
    if ran.words[0] == "dvc":
        if ran.code in DVC_FAILED or ran.code - 128 in signals:
            return None if error_line(ran) or ran.code - 128 in signals or signals else "no error line"
        return None if ran.code == 0 else f"exit code {ran.code}"
    if ran.code not in CODES:
        return f"exit code {ran.code}: {last_line(ran.said)}"
    return None if ran.code == 0 or error_line(ran) else f"exit code {ran.code} without an error line"


def error_line(ran: Ran) -> str | None:
    """Return the first error line, of a stage or of DVC, which has another form for its YAML files."""
    lines = ran.said.splitlines()
    ours = [line for line in lines if line.startswith("error: ")]
    dvcs = [line for line in lines if line.startswith("ERROR: ") or DVC_YAML_ERROR.match(line)]
    return next(iter([*ours, *dvcs]), None)


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
