"""A finished run without training: every shared file exists, is small, and is consistent with the others."""

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.config.loading import read_yaml
from finetune.config.params import load_config
from finetune.files.atomic import write_json
from finetune.files.hashing import sha256_file, sha256_json, sha256_tensors
from finetune.files.manifests import write_manifest
from tests.builders.whole_reports import whole

ROOT = Path(__file__).resolve().parents[2]
SHARED = "0" * 64


def finished(root: Path, verdict: str = "deploy") -> Path:
    """Return a folder with a finished run; `lock` writes its dvc.lock."""
    for name in ("data/raw", "data/prepared", "data/validated", "out/adapter", "reports", "requirements"):
        (root / name).mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", root)
    (root / "dvc.yaml").write_text(json.dumps({"stages": pipeline()}), encoding="utf-8")
    for name, text in {"data/raw/rows.jsonl": "{}\n", "data/looks.json": "{}\n", "data/seeds.json": "{}\n"}.items():
        (root / name).write_text(text, encoding="utf-8")
    for split in ("train", "validation", "test"):
        (root / f"data/prepared/{split}.jsonl").write_text(f'{{"id": "{split}"}}\n' * 9, encoding="utf-8")
    prepared = {split: sha256_file(root / f"data/prepared/{split}.jsonl") for split in ("train", "validation", "test")}
    (root / "data/validated/train.arrow").write_bytes(bytes(range(256)) * 20)
    write_manifest(root / "data/validated", {"prepared_sha256": prepared})
    adapter = write_adapter(root / "out/adapter", prepared)
    write_locks(root / "requirements")
    write_reports(root, adapter, prepared, verdict)
    return root


def pipeline() -> dict[str, Any]:
    """Return the stages of the real dvc.yaml with their outputs and params, and few dependencies."""
    deps = {
        "prepare": ["data/raw"],
        "validate": ["data/prepared"],
        "train": ["data/validated", "requirements/cpu.lock"],
        "evaluate": ["out/adapter"],
        "decide": ["out/predictions.jsonl", "data/looks.json", "data/seeds.json"],
    }
    real = read_yaml(ROOT / "dvc.yaml")["stages"]
    kept = {name: {key: real[name][key] for key in ("params", "outs", "metrics") if key in real[name]} for name in real}
    return {name: {"cmd": f"echo {name} has run", "deps": deps[name], **stage} for name, stage in kept.items()}


def write_adapter(folder: Path, prepared: dict[str, str]) -> dict[str, Any]:
    """Write an adapter of three tensors and return the head of its manifest."""
    import numpy as np
    from safetensors.numpy import save_file

    tensors = {f"lora.{name}": np.random.default_rng(at).random((8, 8), np.float32) for at, name in enumerate("abc")}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "models/tiny-base"}\n', encoding="utf-8")
    head = {
        "adapter_sha256": sha256_tensors(folder / "adapter_model.safetensors"),
        "fingerprint": SHARED,
        "tier": "bitwise",
        "base": {"name": "models/tiny-base", "revision": f"sha256:{SHARED}"},
        "prepared_sha256": prepared,
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu"},
    }
    write_manifest(folder, head)
    return head


def write_locks(folder: Path) -> None:
    """Write locks of a few packages, one for another system and one that is installed."""
    hashed = f" \\\n    --hash=sha256:{SHARED} \\\n    --hash=sha256:{'1' * 64}\n"
    pins = [f"packaging=={version('packaging')}", "networkx==3.6.1 ; python_full_version < '3.12'"]
    pins += ["networkx==3.7 ; python_full_version >= '3.12'", "pywin32==312 ; sys_platform == 'win32'"]
    (folder / "cpu.lock").write_text("# made up\n" + "".join(pin + hashed for pin in pins), encoding="utf-8")
    (folder / "torch-cpu.lock").write_text(f"torch==2.13.0+cpu{hashed}", encoding="utf-8")


def write_reports(root: Path, adapter: dict[str, Any], prepared: dict[str, str], verdict: str) -> None:
    """Write the reports of all stages, the pages, and the answers."""
    sha256 = adapter["adapter_sha256"]
    for name in ("predictions", "latency"):
        (root / f"out/{name}.jsonl").write_text(f'{{"{name}": 1}}\n' * 50, encoding="utf-8")
    source = {"sha256": SHARED, "revision": None, "kept": 27, "read": 30}
    machine = {"system": "Linux x86_64"}
    gate = sha256_json(load_config(root / "params.yaml").decide.model_dump(mode="json"))
    reports: dict[str, dict[str, Any]] = {
        "prepare": {"prepared_sha256": prepared, "sources": {"rows": source}},
        "validation": {"prepared_sha256": prepared, "errors": 0},
        "train": {"adapter_sha256": sha256},
        "train_cost": {"machine": machine},
        "evaluation": {
            "adapter_sha256": sha256,
            "test_sha256": prepared["test"],
            "predictions_sha256": sha256_file(root / "out/predictions.jsonl"),
        },
        "cost": {"adapter_sha256": sha256, "latency_sha256": sha256_file(root / "out/latency.jsonl")},
        "decision": {
            "verdict": verdict,
            "sentence": "All of it passes.",
            "adapter_sha256": sha256,
            "test_sha256": prepared["test"],
            "gate_sha256": gate,
        },
    }
    for name, content in reports.items():
        write_json(root / f"reports/{name}.json", whole(name, content))
    for name in ("reports/report.html", "reports/summary.md", "out/model_card.md"):
        (root / name).write_text(f"of the adapter {sha256}\n", encoding="utf-8")
    for name in ("curves.tsv", "validation_curve.tsv", "prepare.md", "validation.md"):
        (root / f"reports/{name}").write_text(f"{name}\n", encoding="utf-8")


def lock(root: Path) -> None:
    """Write dvc.lock for the current files, as `dvc commit` would."""
    from finetune.files.nested import dig
    from finetune.pipeline.outputs import md5, md5_of_folder

    params, stages = read_yaml(root / "params.yaml"), {}
    for name, stage in read_yaml(root / "dvc.yaml")["stages"].items():
        outs = [*stage.get("outs", []), *stage.get("metrics", [])]
        hashes = {}
        for path in [*outs, *stage["deps"]]:
            files = {file.relative_to(root).as_posix(): file for file in (root / path).rglob("*") if file.is_file()}
            hashes[path] = md5_of_folder(path, files) if files else md5(root / path)
        stages[name] = {
            "cmd": stage["cmd"],
            "deps": [{"path": path, "hash": "md5", "md5": hashes[path]} for path in stage["deps"]],
            "params": {"params.yaml": {key: dig(params, key.split(".")) for key in stage["params"]}},
            "outs": [{"path": path, "hash": "md5", "md5": hashes[path]} for path in outs],
        }
    (root / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}), encoding="utf-8")


def rewrite(path: Path, before: str, after: str) -> None:
    """Change a text file; the text must exist."""
    text = path.read_text(encoding="utf-8")
    assert re.search(re.escape(before), text), before
    path.write_text(text.replace(before, after), encoding="utf-8")
