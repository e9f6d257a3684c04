"""The cost of an answer: its latency, measured with alternating prompts, and the peak memory of fresh processes."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.config.evaluate import EvaluateConfig, ServerSpec
from finetune.console import progress
from finetune.errors import MachineError
from finetune.evaluate.answers import Timed, UnansweredError
from finetune.evaluate.sides import Sides
from finetune.records.examples import Example, Timing


@dataclass
class LatencyPass:
    """The results of the latency pass: the times of prompts that both sides answered, the candidate's answers by
    example, and the number of prompts that a side did not answer, which rank as the slowest.
    """

    timings: list[Timing] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    unanswered: Counter[str] = field(default_factory=Counter)
    left_out: int = 0  # prompts that could not be timed on both sides


def measure_latency(sides: Sides, examples: Sequence[Example], warmup: int) -> LatencyPass:
    """Measure seconds and new tokens of both sides for each prompt, one at a time.

    The sides alternate prompt by prompt, and so does the one that goes first, so that other load on the machine affects
    both alike. The first `warmup` answers warm up caches and are not counted. Recorded times are used as they are.
    """
    rounds = [examples[at % len(examples)] for at in range(warmup if examples else 0)] + list(examples)
    measured = LatencyPass()
    for at, example in enumerate(progress(rounds, "latency")):
        found = time_both(sides, example, baseline_first=bool(at % 2))
        if at >= warmup:
            note_times(measured, example, found)
    return measured


def time_both(sides: Sides, example: Example, *, baseline_first: bool) -> dict[str, Timed | UnansweredError | None]:
    """Measure both sides' time for one prompt, or return why there is none."""
    found: dict[str, Timed | UnansweredError | None] = {}
    for name in ("baseline", "candidate") if baseline_first else ("candidate", "baseline"):
        try:
            found[name] = getattr(sides, name).time(example)
        except UnansweredError as error:
            found[name] = error
    return found


def note_times(measured: LatencyPass, example: Example, found: dict[str, Timed | UnansweredError | None]) -> None:
    """Record a prompt that both sides answered (a recorded baseline may lack times), or count an unanswered one."""
    baseline, candidate = found["baseline"], found["candidate"]
    failed = [name for name, timed in found.items() if isinstance(timed, UnansweredError)]
    measured.unanswered.update(failed)
    measured.left_out += bool(failed)
    if isinstance(candidate, Timed):
        measured.answers[example.id] = candidate.text
        if not isinstance(baseline, UnansweredError):
            measured.timings.append(
                Timing(
                    id=example.id,
                    baseline_seconds=baseline.seconds if baseline else None,
                    baseline_first=baseline.first if baseline else None,
                    baseline_tokens=baseline.tokens if baseline else None,
                    candidate_seconds=candidate.seconds,
                    candidate_first=candidate.first,
                    candidate_tokens=candidate.tokens,
                )
            )


def measure_memory(evaluation: EvaluateConfig, root: Path) -> list[int]:
    """Return the peak bytes of `memory.processes` fresh processes that load the candidate and answer one batch.

    Empty for a candidate behind a server, whose memory cannot be measured from here.
    """
    if isinstance(evaluation.candidate, ServerSpec):
        return []
    peaks = []
    for _ in progress(range(evaluation.memory.processes), "memory"):
        command = [sys.executable, "-m", "finetune.evaluate.memory_probe"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise MachineError(
                f"the memory probe failed ({done.returncode})",
                f"{last}",
                f"run {' '.join(command[1:])} to reproduce it",
            )
        peaks.append(int(json.loads(done.stdout.splitlines()[-1])["peak_memory_bytes"] or 0))  # 0: unmeasured
    return peaks


def summarize_latency(timings: Sequence[Timing]) -> dict[str, Any]:
    """Return means, percentiles, first tokens and tokens per second of both sides, and both at equal length."""
    sides = {name: _summarize_side(timings, name) for name in ("baseline", "candidate")}
    return {"prompts": len(timings), **sides, "same_length": at_same_length(timings)}


def _summarize_side(timings: Sequence[Timing], name: str) -> dict[str, float | None] | None:
    import numpy as np

    times = [getattr(row, f"{name}_seconds") for row in timings]
    if not times or None in times:
        return None
    seconds = np.array(times)
    first = [getattr(row, f"{name}_first") for row in timings]
    tokens = [getattr(row, f"{name}_tokens") for row in timings]
    counted = None not in tokens and seconds.sum() > 0
    return {
        "mean_seconds": float(seconds.mean()),
        "p50_seconds": float(np.quantile(seconds, 0.5)),
        "p95_seconds": float(np.quantile(seconds, 0.95)),
        "mean_first_seconds": None if None in first else float(np.mean(first)),
        "mean_tokens": sum(tokens) / len(tokens) if counted else None,
        "tokens_per_second": float(sum(tokens) / seconds.sum()) if counted else None,
    }


def at_same_length(timings: Sequence[Timing]) -> dict[str, float] | None:
    """Estimate the mean seconds of both sides if all answers had the same length; None if that is unknown.

    This distinguishes a faster candidate from one with shorter answers. Analysis of covariance: a common slope of
    seconds over new tokens within the sides, along which each side's mean is moved to the overall mean length (Cochran,
    Biometrics 13 (1957), 261-281). A line fits because decoding takes about the same time for each token.
    """
    import numpy as np

    known = [
        (row.baseline_seconds, row.candidate_seconds, row.baseline_tokens, row.candidate_tokens) for row in timings
    ]
    if not timings or any(None in values for values in known):
        return None
    seconds, tokens = np.split(np.array(known, dtype=np.float64), 2, axis=1)
    inside = tokens - tokens.mean(axis=0)
    spread = float((inside**2).sum())
    if spread == 0:
        return None
    slope = float((inside * (seconds - seconds.mean(axis=0))).sum()) / spread
    baseline, candidate = (seconds.mean(axis=0) + slope * (tokens.mean() - tokens.mean(axis=0))).tolist()
    return {"tokens": float(tokens.mean()), "baseline_seconds": baseline, "candidate_seconds": candidate}
