"""What the user watches: a progress bar, and the curves in `reports/`, written while the run goes on."""

from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from finetune.artifacts import write_lines
from finetune.console import say

# The Trainer's names, ours, and the file; a file holds only rows without a gap, which DVC's plots would draw as breaks.
TRAINING = {"epoch": "epoch", "loss": "loss", "learning_rate": "learning_rate", "grad_norm": "gradient_norm"}
VALIDATION = {"epoch": "epoch", "eval_loss": "validation_loss"}


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


class CurvesCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Writes the curves whenever something is logged, and shows step, loss and time left."""

    def __init__(self, reports: Path) -> None:
        self.reports = reports
        self.bar: Any = None
        self.done = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Open the bar, at the step where a resumed run goes on."""
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="train", unit="step", mininterval=0.5, disable=None
        )
        self.done = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Move the bar."""
        self.bar.update(state.global_step - self.done)
        self.done = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Write the curves up to now."""
        training, validation = (curve_rows(state.log_history, columns) for columns in (TRAINING, VALIDATION))
        write_lines(self.reports / "curves.tsv", to_tsv(training, TRAINING))
        write_lines(self.reports / "validation_curve.tsv", to_tsv(validation, VALIDATION))
        latest = {name: rows[-1][name] for rows, name in ((training, "loss"), (validation, "validation_loss")) if rows}
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in latest.items()}, refresh=False)
        if self.bar.disable and "eval_loss" in state.log_history[-1]:  # no terminal: a line for the log
            told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in latest.items())
            say(f"step {state.global_step} of {state.max_steps}: {told}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Close the bar."""
        self.bar.close()
