"""A git and DVC repository whose pipeline fakes its results instantly, for the commands that compare runs."""

import json
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# The script of the stages in dvc.yaml. A higher rate gets more answers right; the seed shifts which, and 13 fails.
STAGES = """
import hashlib, json, os, sys
from pathlib import Path
from ruamel.yaml import YAML

params = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text())
seed, rate = params["seed"], params["train"]["learning_rate"]
CLASSES = ["KeyError", "TypeError", "ValueError"]


def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content)


def answer(number, right):
    agent, reference = ("namer", "other")[number % 2], CLASSES[number % 3]
    text = reference if right else CLASSES[(number + 1) % 3]
    scores, labels = {"exact_match": float(right), "chrf": 0.9 if right else 0.1 + number / 1000}, {}
    if agent == "namer":
        scores["exceptions.accuracy"], labels = float(right), {"exceptions": text}
    nats = 1.0 if right else 2.0 + number / 100
    return {"text": text, "tokens": 2, "finished": True, "reference_nll": nats, "failed": None, "scores": scores,
            "labels": labels}


def predictions():
    for number in range(60):
        draw = hashlib.sha256(f"{seed}/{number}".encode()).digest()[0] / 256
        yield {"id": f"row{number}", "agent": ("namer", "other")[number % 2], "source": "rows",
               "cluster": f"cluster{number // params['data']['split'].get('rows', 1)}",
               "prompt": f"task {number}", "reference": CLASSES[number % 3],
               "reference_tokens": 2, "baseline": answer(number, number % 5 == 0),
               "candidate": answer(number, number % 5 == 0 or draw < min(rate, 1) * 0.9)}


def train():
    if seed == 13:
        sys.exit("no memory")
    with open("trained.log", "a") as log:
        log.write(f"{seed}\\n")
    write("out/adapter/weights", f"{seed}/{rate}")
    write("out/adapter/manifest.json", json.dumps({"data_sha256": "d", "base": "b", "versions": "v"}))
    write("reports/train.json", json.dumps({"validation_loss": 1 / rate, "steps": 10}))


def evaluate():
    rows = list(predictions())
    text = "".join(json.dumps(row) + "\\n" for row in rows)
    write("out/predictions.jsonl", text)
    adapter = hashlib.sha256(Path("out/adapter/weights").read_bytes()).hexdigest()
    def right(side, rows):
        return {"exact_match": sum(row[side]["scores"]["exact_match"] for row in rows) / len(rows)}
    groups = {name: {side: right(side, [row for row in rows if name in ("all", row["agent"])])
                     for side in ("baseline", "candidate")} for name in ("all", "namer", "other")}
    write("reports/evaluation.json", json.dumps({
        "adapter_sha256": adapter, "test_sha256": str(params["data"]["split"]["test"]) * 4, "base": {"name": "b"},
        "predictions_sha256": hashlib.sha256(text.encode()).hexdigest(), "groups": groups,
        "generation": {"max_new_tokens": params["evaluate"]["max_new_tokens"]}}))
    write("reports/cost.json", json.dumps({"latency": {"candidate": {"mean_seconds": 0.5}},
                                           "memory": {"largest_bytes": 2e9}}))


def decide():
    found = json.loads(Path("reports/evaluation.json").read_text())
    share = found["groups"]["all"]["candidate"]["exact_match"]
    status = "pass" if share >= 0.5 else "fail"
    known = len(json.loads(Path("data/seeds.json").read_text()))
    write("reports/decision.json", json.dumps({
        "verdict": "deploy" if status == "pass" else "iterate", "adapter_sha256": found["adapter_sha256"],
        "policy": "interval", "confidence": 0.99,
        "criteria": [{"criterion": "exact_match at least 0.5", "status": status, "estimate": share}], "known": known}))


globals()[sys.argv[1]]()
"""

DVC = {
    "train": {
        "cmd": "python stages.py train",
        "deps": ["stages.py", "data/raw"],
        "params": ["seed", "train"],
        "outs": ["out/adapter"],
        "metrics": ["reports/train.json"],
    },
    "evaluate": {
        "cmd": "python stages.py evaluate",
        "deps": ["out/adapter"],
        "params": ["evaluate", "data"],
        "outs": ["out/predictions.jsonl"],
        "metrics": ["reports/evaluation.json", "reports/cost.json"],
    },
    "decide": {
        "cmd": "python stages.py decide",
        "deps": ["reports/evaluation.json", "data/seeds.json"],
        "params": ["seed", "decide"],
        "metrics": ["reports/decision.json"],
    },
}
SCORERS = {
    "exact_match": {"scorer": "exact_match", "of": None},
    "exceptions": {"scorer": "classification", "of": ["namer"], "by": "generation", "labels": None},
    "chrf": {"scorer": "chrf", "of": None},
}
CRITERIA = [
    {"rule": "at_least", "metric": "exact_match", "group": "all", "threshold": 0.5},
    {"rule": "better_than_baseline", "metric": "exceptions.macro_f1", "group": "namer"},
]


def build(root: Path, shipped: dict[str, Any]) -> Path:
    """Create the repository; its pipeline has run once and is committed on the branch main."""
    (root / "data/raw").mkdir(parents=True)
    content = deepcopy(shipped)
    content["train"]["learning_rate"] = 0.5
    content["evaluate"]["scorers"] = SCORERS
    content["decide"]["criteria"] = CRITERIA
    (root / "params.yaml").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (root / "stages.py").write_text(STAGES, encoding="utf-8")
    (root / "dvc.yaml").write_text(json.dumps({"stages": DVC}), encoding="utf-8")
    (root / "data/raw/rows.txt").write_text("rows\n", encoding="utf-8")
    for name in ("seeds", "looks"):
        (root / f"data/{name}.json").write_text("{}\n", encoding="utf-8")
    (root / ".gitignore").write_text("out/\nreports/\nwork/\ntrained.log\n.*.lock\n", encoding="utf-8")
    run(root, "git", "init", "-q", "-b", "main")
    run(root, "dvc", "init", "-q")
    run(root, "dvc", "repro", "-q")
    commit(root, "start")
    return root


def copy_of(repository: Path, target: Path) -> Path:
    """Return a copy with its cache that may be changed."""
    shutil.copytree(repository, target, symlinks=True)
    return target


def commit(root: Path, message: str) -> None:
    """Commit everything."""
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", message)


def experiment(root: Path, name: str, *settings: str) -> None:
    """Run an experiment of this name, and restore the working tree."""
    options = [part for setting in settings for part in ("-S", setting)]
    run(root, "dvc", "exp", "run", "-q", "--name", name, *options)
    run(root, "git", "checkout", "-q", ".")
    run(root, "dvc", "checkout", "-q", "--force")


def environment() -> dict[str, str]:
    """Return an environment with this interpreter's commands first, and a name for git."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    git = {f"GIT_{who}_{what}": "t@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**os.environ, **git, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT / "src")}


def run(root: Path, *command: str, code: int = 0) -> str:
    """Run a command in the folder and return its output. Exit codes other than `code` fail."""
    done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def finetune(root: Path, *arguments: str, code: int = 0) -> str:
    """Run `python -m finetune …` in the repository."""
    return run(root, sys.executable, "-m", "finetune", *arguments, code=code)


def outputs(root: Path) -> dict[str, bytes]:
    """Return the outputs of the stages."""
    folders = [root / name for name in ("data/prepared", "data/validated", "out", "reports")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
