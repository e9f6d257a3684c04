"""Run all benchmarks one after another: `make bench`, or with --quick `make bench-quick`.

    python benchmarks/run.py [--only train evaluate] [--peers work/peers]  # hours; then the tables of the page
    python benchmarks/run.py --quick      # minutes; the scripts on their smallest sizes

Benchmarks of a finished run need one in this folder (`make repro`). A quick run only shows that the scripts work; its
results are meaningless and are discarded.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measure import results_file
from tables import make_tables, write_page

HERE = Path(__file__).parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Benchmark:
    """A script, and the options of its small form; None if there is none."""

    script: str
    quick: tuple[str, ...] | None


# By the first part of the result's name.
BENCHMARKS = {
    "start": Benchmark(
        "bench_start.py", ("--rounds", "1", "--only", "Python alone", "`make`", "`dvc repro`, nothing to do")
    ),
    "evaluate": Benchmark("bench_evaluate.py", ("--rounds", "1", "--examples", "32")),
    "lm-eval": Benchmark("bench_lm_eval.py", ("--rounds", "1", "--examples", "32")),
    "prepare": Benchmark("bench_prepare.py", ("--rows", "2000", "--brute-force", "2000")),
    "prepare-engines": Benchmark("engines_prepare.py", ("--rows", "2000", "--repeat", "1")),
    "train": Benchmark("bench_train.py", ("--rows", "96", "--rounds", "1")),
    "overhead": Benchmark("bench_overhead.py", None),  # the unmodified embedded run
    "memory": Benchmark("bench_memory.py", ("--only", "two targets")),
    "gate": Benchmark("bench_gate.py", ("--studies", "40")),
    "real": Benchmark("bench_real.py", None),  # `make test-real` runs the same stages on fewer rows
    "containers": Benchmark("bench_containers.py", None),  # `make test-images` builds the same images
}


def main() -> None:
    """Run the requested benchmarks; exit with 1 if one fails, after the others have run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=[*BENCHMARKS], default=[*BENCHMARKS])
    parser.add_argument("--quick", action="store_true", help="use the smallest sizes and save no results")
    parser.add_argument("--peers", type=Path, default=ROOT / "work/peers", help="folder filled by peers.sh")
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) if options.quick else HERE / "results"
        for benchmark in options.only:
            if not run(benchmark, folder, options.peers, quick=options.quick):
                failed.append(benchmark)
        make_tables(folder) if options.quick else write_page()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def run(name: str, folder: Path, peers: Path, *, quick: bool) -> bool:
    """Run one script from the top of the repository; return whether it succeeded."""
    benchmark = BENCHMARKS[name]
    if quick and benchmark.quick is None:
        print(f"{name}: skipped: it has no quick version", file=sys.stderr)
        return True
    command = [sys.executable, str(HERE / benchmark.script), "--out", str(folder / results_file(name).name)]
    command += benchmark.quick or () if quick else ()
    if name == "train" and not quick:
        command += ["--peers", str(peers)]
    print(f"{name}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    output = subprocess.DEVNULL if quick else None
    code = subprocess.run(command, cwd=ROOT, env=environment, stdout=output).returncode
    print(
        f"{name}: {'done' if code == 0 else f'exit code {code}'}, {time.perf_counter() - started:.0f} s",
        file=sys.stderr,
    )
    return code == 0


if __name__ == "__main__":
    main()
