"""What the user watches while the run goes on: a progress bar, the curves in `reports/`, and `work/status.json`."""

import os
import time
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm
from transformers import TrainerCallback

from finetune.artifacts import write_json
from finetune.console import say
from finetune.paths import Paths

# The Trainer's names, ours, and the file; a file holds only rows without a gap, which DVC's plots would draw as breaks.
TRAINING = {
    "epoch": "epoch",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "gradient_norm",
    "tokens_per_second": "tokens_per_second",
    "memory_gigabytes": "memory_gigabytes",
}
VALIDATION = {"epoch": "epoch", "eval_loss": "validation_loss"}
STATUS_SECONDS = 3.0  # between two writes of the status


def curve_rows(log_history: list[dict[str, Any]], columns: dict[str, str]) -> list[dict[str, float]]:
    """The logged steps that have all of the columns, in order, as one row a step.

    `log_history` is the Trainer's own and survives a resume, so the curve of a resumed run has no gap and no copy.
    """
    rows = {
        int(entry["step"]): {name: float(entry[key]) for key, name in columns.items()}
        for entry in log_history
        if columns.keys() <= entry.keys()
    }
    return [{"step": step, **rows[step]} for step in sorted(rows)]


def to_tsv(rows: list[dict[str, float]], columns: dict[str, str]) -> list[str]:
    """The curve as lines of a table with tabs."""
    names = ["step", *columns.values()]
    return ["\t".join(names) + "\n"] + ["\t".join(f"{row[name]:.6g}" for name in names) + "\n" for row in rows]


class Curve:
    """One table that grows by a line a logged step; written anew from the history when a run goes on."""

    def __init__(self, path: Path, columns: dict[str, str], history: list[dict[str, Any]]) -> None:
        self.columns = columns
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file: TextIO = path.open("w", encoding="utf-8", newline="\n")
        rows = curve_rows(history, columns)
        self.latest: dict[str, float] = rows[-1] if rows else {}
        self._write(to_tsv(rows, columns))

    def add(self, entry: dict[str, Any]) -> bool:
        """Add what was just logged, if it is this curve's."""
        rows = curve_rows([entry], self.columns)
        if rows:
            self.latest = rows[0]
            self._write(to_tsv(rows, self.columns)[1:])
        return bool(rows)

    def _write(self, lines: list[str]) -> None:
        self.file.writelines(lines)
        self.file.flush()


class CurvesCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Writes curves and status, and shows step, loss and time left."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.bar: Any = None
        self.curves: dict[str, Curve] = {}
        self.first_step, self.started, self.told = 0, 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Open bar and curves, at the step where a resumed run goes on."""
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="train", unit="step", mininterval=0.5, disable=None
        )
        self.first_step, self.started = state.global_step, time.monotonic()
        for name, columns in (("curves", TRAINING), ("validation_curve", VALIDATION)):
            self.curves[name] = Curve(self.paths.reports / f"{name}.tsv", columns, state.log_history)
        self.tell(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Move the bar."""
        self.bar.update(state.global_step - self.bar.n)
        if time.monotonic() - self.told > STATUS_SECONDS:
            self.tell(state)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Add what was logged to its curve."""
        entry = state.log_history[-1]
        added = [curve.add(entry) for curve in self.curves.values()]
        if not any(added):
            return
        training, validation = (self.curves[name].latest for name in ("curves", "validation_curve"))
        latest = {"loss": training.get("loss"), "validation_loss": validation.get("validation_loss")}
        shown = {name: f"{value:.3f}" for name, value in latest.items() if value is not None}
        if training:
            shown |= {"tokens/s": f"{training['tokens_per_second']:,.0f}", "GB": f"{training['memory_gigabytes']:.1f}"}
        self.bar.set_postfix(shown, refresh=False)
        if self.bar.disable and "eval_loss" in entry:  # no terminal: a line for the log
            told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in latest.items() if value)
            say(f"step {state.global_step} of {state.max_steps}: {told}")
        if time.monotonic() - self.told > STATUS_SECONDS:
            self.tell(state)

    def seconds_left(self, state: Any) -> float | None:
        """By the pace of this process, evaluations and saves included; None before its first step."""
        done = state.global_step - self.first_step
        if not done:
            return None
        return float((time.monotonic() - self.started) / done * (state.max_steps - state.global_step))

    def tell(self, state: Any, ended: str | None = None) -> None:
        """Write the status that `make status` shows."""
        training, validation = (self.curves[name].latest for name in ("curves", "validation_curve"))
        left = self.seconds_left(state)
        write_json(
            self.paths.status,
            {
                "stage": "train",
                "pid": os.getpid(),
                "step": state.global_step,
                "steps": state.max_steps,
                "loss": training.get("loss"),
                "validation_loss": validation.get("validation_loss"),
                "tokens_per_second": training.get("tokens_per_second"),
                "memory_bytes": int(training["memory_gigabytes"] * 1e9) if training else None,
                "seconds_left": round(left, 1) if left is not None else None,
                "updated": time.time(),
                "ended": ended,
            },
        )
        self.told = time.monotonic()

    def close(self, state: Any, ended: str) -> None:
        """Close bar and curves, however the run ended."""
        if self.bar is None:
            return
        self.bar.close()
        self.tell(state, ended)
        for curve in self.curves.values():
            curve.file.close()
