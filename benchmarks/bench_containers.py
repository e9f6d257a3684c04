"""Measure the cost of containers: building the CPU image, rebuilding it after a source change, and starting a stage.

    PYTHONPATH=src python benchmarks/bench_containers.py [--rounds 5] [--engine podman] [--no-builds]

A short stage (decide, on the finished run in this folder) runs natively and in its container in turns. The image is
built by `make image-cpu`, with the engine's settings and variables of docs/containers.md. Writes
`results/containers-DATE.json`, or the file given by --out.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from measure import results_file, what_ran

from finetune.console import gigabytes, say, table
from finetune.containers.images import find_image, image_name
from finetune.files.atomic import write_json

CONTEXT = ("Dockerfile.cpu", ".dockerignore", "LICENSE", "requirements", "src", "pyproject.toml")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", choices=("podman", "docker"), default="podman")
    parser.add_argument("--no-builds", action="store_true", help="skip the builds and use the existing image")
    parser.add_argument("--out", type=Path, default=results_file("containers"))
    asked = parser.parse_args()
    engine: str = asked.engine
    version_text = subprocess.run([engine, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    result: dict[str, Any] = {"engine": version_text, **what_ran(("torch",))}
    result["base_image"] = os.environ.get("BASE_IMAGE", "the one in Dockerfile.cpu")
    if not asked.no_builds:
        result["builds"] = builds(engine)
    image = find_image(engine, image_name("cpu", Path()))
    if image is None:
        sys.exit("no image; leave --no-builds out, or run make image-cpu")
    result["image_bytes"] = image.bytes
    pairs = [{runtime: decide(runtime) for runtime in ("native", engine)} for _ in range(asked.rounds)]
    result["decide_seconds"] = pairs
    overhead = [pair[engine] - pair["native"] for pair in pairs]
    rows = [(name, *spread([pair[name] for pair in pairs])) for name in ("native", engine)]
    table("decide, seconds", ["where", "median", "least", "most"], [*rows, ("overhead", *spread(overhead))])
    say(f"image: {gigabytes(image.bytes)}; builds: {result.get('builds', 'not measured')}")
    write_json(asked.out, result)


def builds(engine: str) -> dict[str, float]:
    """Return the seconds of a build from scratch, and of one after a change of one source file."""
    with TemporaryDirectory() as folder:
        for name in CONTEXT:
            copy = shutil.copytree if Path(name).is_dir() else shutil.copy
            copy(name, Path(folder, name))
        cold = build(engine, folder, f"{os.environ.get('BUILD_OPTIONS', '')} --no-cache")
        with Path(folder, "src/finetune/paths.py").open("a", encoding="utf-8") as source:
            source.write("# changed\n")
        return {
            "cold_seconds": cold,
            "after_a_change_seconds": build(engine, folder, os.environ.get("BUILD_OPTIONS", "")),
        }


def build(engine: str, folder: str, options: str) -> float:
    """Return the seconds of `make image-cpu` in a folder."""
    code = (
        "import sys; from pathlib import Path; from finetune.containers.images import run\n"
        "run(Path(), 'cpu', sys.argv[1])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path("src").resolve()), "BUILD_OPTIONS": options}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, engine], cwd=folder, env=environment, check=True)
    return time.perf_counter() - began


def decide(runtime: str) -> float:
    """Return the seconds of the stage decide, natively or in its container."""
    began = time.perf_counter()
    environment = {**os.environ, "FINETUNE_RUNTIME": runtime, "PYTHONPATH": "src"}
    subprocess.run([sys.executable, "-m", "finetune", "decide"], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def spread(values: list[float]) -> tuple[str, str, str]:
    """Return median, minimum and maximum."""
    return f"{median(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}"


if __name__ == "__main__":
    main()
