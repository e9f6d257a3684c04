"""`python -m tests.chaos`: run rounds of fault injection over a tiny pipeline, and print and save the results."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tests.chaos.disks import can_mount
from tests.chaos.faults import KINDS
from tests.chaos.preloaded import Preloaded
from tests.chaos.rounds import FAILED, Drawn, Ground, Result, draw, run_round, to_lines
from tests.chaos.tables import table_of, what_ran


def main() -> int:
    """Run the selected rounds; return 1 if one of them failed."""
    options = arguments().parse_args()
    if options.table:
        print("\n".join(table_of(json.loads(options.table.read_text(encoding="utf-8")))))
        return 0
    kinds = possible([kind for kind in KINDS if options.only in (None, kind)])
    rounds = draw(options.seed, options.rounds, kinds)
    kept, again = results_of(options.again) if options.again else ([], [])
    chosen = [drawn for drawn in rounds if options.round in (None, drawn.number)]
    chosen = [drawn for drawn in chosen if not options.again or drawn.number in again]
    head = {"seed": options.seed, "again": again}
    with own_folder() as folder:
        failed = [item for item in run_all(chosen, folder, head, kept, options.out) if item.outcome == FAILED]
        tell(f"{len(chosen) - len(failed)} of {len(chosen)} rounds survived")
    return 1 if failed else 0


@contextmanager
def own_folder() -> Iterator[Path]:
    """Yield a temporary folder and delete it afterwards, also after a signal; failed rounds are kept and reported."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), leave)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    stays = True
    try:
        yield folder
        stays = False
    except (KeyboardInterrupt, SystemExit):
        stays = False
        raise
    finally:
        if not stays and not any(folder.glob("round-*")):  # surviving rounds are deleted
            shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            tell(f"the state of failed rounds is in {folder}")


def leave(number: int, frame: FrameType | None) -> None:
    """Turn the first signal into an exception, so that mounts, processes and folders are cleaned up."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    tell(f"interrupted by {signal.Signals(number).name}")
    sys.exit(128 + number)


def results_of(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the surviving rounds of earlier results, and the numbers of the failed ones."""
    rounds = json.loads(path.read_text(encoding="utf-8"))["rounds"]
    survived = [item for item in rounds if item["outcome"] != FAILED]
    return survived, [item["number"] for item in rounds if item["outcome"] == FAILED]


def possible(kinds: list[str]) -> list[str]:
    """Return the kinds that can run on this machine; the others are printed."""
    skipped = [kind for kind in kinds if KINDS[kind].mounts]
    if not skipped or can_mount():
        return kinds
    tell(f"skipped, because this process can't mount file systems: {', '.join(skipped)}")
    return [kind for kind in kinds if kind not in skipped]


def run_all(
    chosen: list[Drawn], folder: Path, head: dict[str, Any], kept: list[dict[str, Any]], out: Path | None
) -> list[Result]:
    """Run the rounds one after the other; raw results are saved after each, together with the kept ones."""
    results: list[Result] = []
    ran = what_ran()
    with Preloaded(folder / "processes") as processes:
        ground = Ground(folder, processes)
        tell(f"the undisturbed run took {sum(ground.seconds.values()):.0f} s; {len(chosen)} rounds follow")
        for drawn in chosen:
            results.append(run_round(drawn, ground))
            show(results[-1])
            lines = sorted([*kept, *to_lines(results)], key=lambda item: item["number"])
            content = {**ran, **head, "seconds": round(sum(item["seconds"] for item in lines)), "rounds": lines}
            if out:
                out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return results


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="number of rounds, divided evenly among the kinds")
    parser.add_argument("--seed", type=int, default=1, help="random seed of all rounds")
    parser.add_argument("--only", choices=sorted(KINDS), help="run only this kind of fault")
    parser.add_argument("--round", type=int, help="run only the round with this number")
    parser.add_argument("--again", type=Path, help="raw results whose failed rounds to repeat, after a fix")
    parser.add_argument("--out", type=Path, help="file to write the raw results to")
    parser.add_argument("--table", type=Path, help="only print the table of these raw results")
    return parser


def show(result: Result) -> None:
    """Print one line for the round, and the reasons if it failed."""
    head = f"{result.number:3d} {result.outcome:22s} {result.seconds:5.1f} s  {result.kind}: {result.fault}"
    tell(f"{head}; {result.place}; {result.moment}; codes {[item['code'] for item in result.commands]}")
    if result.said:
        tell(f"      {result.said[:160]}")
    for why in result.why:
        tell(f"      FAILED: {why[:400]}")


def tell(text: str) -> None:
    """Print one line at once."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
