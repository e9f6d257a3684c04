"""Progress of a run for the user: a progress bar, the curves in `reports/`, and `work/status.json`."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from finetune.console import say
from finetune.files.atomic import write_json, write_lines
from finetune.paths import Paths
from finetune.train.health import LEAST_GAIN, WINDOW, find_spikes

# The Trainer's names, ours, and the file. A file holds only rows without missing values, which DVC's plots would draw
# as gaps.
TRAINING = {
    "epoch": "epoch",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "gradient_norm",
    "tokens_per_second": "tokens_per_second",
    "memory_gigabytes": "memory_gigabytes",
}
VALIDATION = {"epoch": "epoch", "eval_loss": "validation_loss"}
STATUS_SECONDS = 5.0  # between two writes of the status


def curve_rows(log_history: list[dict[str, Any]], columns: dict[str, str]) -> list[dict[str, float]]:
    """Return the logged steps that have all of the columns, in order, as one row per step.

    `log_history` belongs to the Trainer and survives a resume, so the curve of a resumed run has no gaps or duplicates.
    """
    rows = {
        int(entry["step"]): {name: float(entry[key]) for key, name in columns.items()}
        for entry in log_history
        if columns.keys() <= entry.keys()
    }
    return [{"step": step, **rows[step]} for step in sorted(rows)]


def to_tsv(rows: list[dict[str, float]], columns: dict[str, str]) -> list[str]:
    """Format the curve as lines of a tab-separated table."""
    names = ["step", *columns.values()]
    return ["\t".join(names) + "\n"] + ["\t".join(f"{row[name]:.6g}" for name in names) + "\n" for row in rows]


class Curve:
    """One table that grows by a line per logged step and is rewritten from the history when a run resumes or ends.

    If a line cannot be written, a warning is printed once and the run continues: the disk may have space again later.
    """

    def __init__(self, path: Path, columns: dict[str, str], history: list[dict[str, Any]]) -> None:
        self.path, self.columns = path, columns
        self.write_anew(history)
        rows = curve_rows(history, columns)
        self.latest: dict[str, float] = rows[-1] if rows else {}

    def write_anew(self, history: list[dict[str, Any]]) -> None:
        """Replace the file by the complete table."""
        write_lines(self.path, to_tsv(curve_rows(history, self.columns), self.columns))

    def add(self, entry: dict[str, Any]) -> bool:
        """Add a log entry if it belongs to this curve."""
        rows = curve_rows([entry], self.columns)
        if rows:
            self.latest = rows[0]
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(to_tsv(rows, self.columns)[1:])
        return bool(rows)


class CurvesCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Writes curves and status, and shows step, loss and time left."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.bar: Any = None
        self.curves: dict[str, Curve] = {}
        self.first_step, self.started, self.told = 0, 0.0, 0.0
        self.losses: list[tuple[int, float]] = []
        self.worried: set[str] = set()  # warnings printed so far

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Open bar and curves, at the current step if the run is resumed."""
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="train", unit="step", mininterval=0.5, disable=None
        )
        self.first_step, self.started = state.global_step, time.monotonic()
        for name, columns in (("curves", TRAINING), ("validation_curve", VALIDATION)):
            self.curves[name] = Curve(self.paths.reports / f"{name}.tsv", columns, state.log_history)
        self.losses = [(int(row["step"]), row["loss"]) for row in curve_rows(state.log_history, TRAINING)]
        self.tell(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Advance the bar."""
        self.bar.update(state.global_step - self.bar.n)
        if time.monotonic() - self.told > STATUS_SECONDS:
            self.tell(state)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Add a log entry to its curve."""
        entry = state.log_history[-1]
        with self.spared():
            added = [curve.add(entry) for curve in self.curves.values()]
            if not any(added):
                return
        self.worry(state, entry)
        training, validation = (self.curves[name].latest for name in ("curves", "validation_curve"))
        latest = {"loss": training.get("loss"), "validation_loss": validation.get("validation_loss")}
        shown = {name: f"{value:.3f}" for name, value in latest.items() if value is not None}
        if training:
            shown |= {"tokens/s": f"{training['tokens_per_second']:,.0f}", "GB": f"{training['memory_gigabytes']:.1f}"}
        self.bar.set_postfix(shown, refresh=False)
        if self.bar.disable and "eval_loss" in entry:  # not on a terminal: print a line for the log
            told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in latest.items() if value)
            say(f"step {state.global_step} of {state.max_steps}: {told}")
        if time.monotonic() - self.told > STATUS_SECONDS:
            self.tell(state)

    def seconds_left(self, state: Any) -> float | None:
        """Estimate from this process's pace, including evaluations and saves; None before its first step."""
        done = state.global_step - self.first_step
        if not done:
            return None
        return float((time.monotonic() - self.started) / done * (state.max_steps - state.global_step))

    def tell(self, state: Any, ended: str | None = None) -> None:
        """Write the status that `finetune status` shows."""
        with self.spared():
            self.write_status(state, ended)
        self.told = time.monotonic()

    def write_status(self, state: Any, ended: str | None) -> None:
        """Write step, losses, pace, memory and time left as one JSON object."""
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
            durable=False,
        )

    def close(self, state: Any, ended: str) -> None:
        """Close bar and curves, whether or not the run succeeded."""
        if self.bar is None:
            return
        self.bar.close()
        self.tell(state, ended)
        if ended == "finished":
            for curve in self.curves.values():
                curve.write_anew(state.log_history)

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Turn write errors into a warning printed once; checkpoints have separate, fatal errors."""
        try:
            yield
        except OSError as error:
            self.print_once(
                "disk",
                f"warning: {error.filename}: {error.strerror}; curves and status are not updated until this is fixed",
            )

    def print_once(self, what: str, text: str) -> None:
        """Print a warning the first time it occurs."""
        if what not in self.worried:
            self.worried.add(what)
            say(text)

    def worry(self, state: Any, entry: dict[str, Any]) -> None:
        """Warn when the loss jumps, and when nothing is learnt while there is still time to stop."""
        if "loss" in entry:
            self.losses.append((state.global_step, float(entry["loss"])))
            if spikes := find_spikes(self.losses[-2 * WINDOW :]):
                step, loss, usual = spikes[-1]
                self.print_once(
                    "spike", f"warning: the loss jumped to {loss:.3f} at step {step}, from {usual:.3f} before"
                )
        if "eval_loss" in entry and state.global_step > state.max_steps / 4:
            rows = curve_rows(state.log_history, VALIDATION)
            first, best = rows[0], min(row["validation_loss"] for row in rows[1:] or rows)
            if first["step"] == 0 and best > first["validation_loss"] * (1 - LEAST_GAIN):
                told = f"{best:.4f}, compared with {first['validation_loss']:.4f} before the first step"
                self.print_once(
                    "nothing",
                    f"warning: no progress so far: the validation loss is {told} (./finetune stop stops the run)",
                )
