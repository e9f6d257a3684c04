"""What an answer costs: its latency, measured prompt by prompt in turns, and the peak memory of fresh processes."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.config import Config, Environment, EvaluateConfig
from finetune.console import progress
from finetune.errors import MachineError
from finetune.evaluate.generate import generate
from finetune.machine import synchronize
from finetune.records import Timing


def measure_latency(
    model: Any,
    prompts: Sequence[tuple[str, list[int]]],
    settings: dict[str, Any],
    warmup: int,
    environment: Environment,
) -> list[Timing]:
    """Seconds and new tokens of base and candidate for each prompt (example id, token ids), one at a time.

    The two take turns prompt by prompt, and in turns who goes first, so that a busy machine burdens both alike. The
    first `warmup` answers warm caches up and are not counted.
    """
    rounds = [prompts[at % len(prompts)] for at in range(warmup)] + list(prompts)
    measured = []
    for at, (name, prompt) in enumerate(progress(rounds, "latency")):
        found = {}
        for side in ("baseline", "candidate") if at % 2 else ("candidate", "baseline"):
            found[side] = time_answer(model, prompt, settings, side, environment)
        measured.append(Timing(name, *found["baseline"], *found["candidate"]))
    return measured[warmup:]


def time_answer(
    model: Any, prompt: list[int], settings: dict[str, Any], side: str, environment: Environment
) -> tuple[float, int]:
    """Seconds and new tokens of one answer; the device is waited for before and after."""
    synchronize(environment)
    started = time.perf_counter()
    if side == "baseline":
        with model.disable_adapter():
            (answer,) = generate(model, [prompt], settings)
    else:
        (answer,) = generate(model, [prompt], settings)
    synchronize(environment)
    return time.perf_counter() - started, len(answer.tokens) + answer.finished


def measure_memory(asked: EvaluateConfig, root: Path) -> list[int]:
    """Peak bytes of each of `memory.processes` fresh processes that load the candidate and answer one batch."""
    peaks = []
    for _ in progress(range(asked.memory.processes), "memory"):
        command = [sys.executable, "-m", "finetune.evaluate.memory_probe"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise MachineError(
                f"the memory probe failed ({done.returncode}): {last}; {' '.join(command[1:])} repeats it"
            )
        peaks.append(int(json.loads(done.stdout.splitlines()[-1])["peak_memory_bytes"] or 0))  # 0: unmeasured
    return peaks


def summarize_cost(latency: list[Timing], memory: list[int], config: Config) -> dict[str, Any]:
    """The figures for `cost.json`: means, percentiles and tokens a second of both sides."""
    import numpy as np

    def side(name: str) -> dict[str, float]:
        seconds = np.array([getattr(row, f"{name}_seconds") for row in latency])
        tokens = sum(getattr(row, f"{name}_tokens") for row in latency)
        return {
            "mean_seconds": float(seconds.mean()),
            "p50_seconds": float(np.quantile(seconds, 0.5)),
            "p95_seconds": float(np.quantile(seconds, 0.95)),
            "mean_tokens": tokens / len(latency),
            "tokens_per_second": float(tokens / seconds.sum()),
        }

    return {
        "latency": {"prompts": len(latency), "baseline": side("baseline"), "candidate": side("candidate")},
        "memory": {"processes": len(memory), "largest_bytes": max(memory), "bytes": memory},
        "settings": config.evaluate.model_dump(mode="json"),
    }
