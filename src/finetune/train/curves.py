"""What the user watches: a progress bar, and `reports/curves.tsv` written while the run goes on."""

from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from finetune.artifacts import write_lines
from finetune.console import say

COLUMNS = {
    "epoch": "epoch",
    "loss": "loss",
    "eval_loss": "validation_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "gradient_norm",
}


def curve_rows(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """One row a logged step, in order: step and whichever of the columns were logged at it.

    `log_history` is the Trainer's own and survives a resume, so the curve of a resumed run has no gap and no copy.
    """
    rows: dict[int, dict[str, float]] = {}
    for entry in log_history:
        found = {name: float(entry[key]) for key, name in COLUMNS.items() if key in entry}
        if found.keys() - {"epoch"}:
            rows.setdefault(int(entry["step"]), {}).update(found)
    return [{"step": step, **rows[step]} for step in sorted(rows)]


def to_tsv(rows: list[dict[str, float]]) -> list[str]:
    """The curve as lines of a table with tabs; an empty cell where nothing was logged."""
    columns = ["step", *COLUMNS.values()]
    lines = ["\t".join(columns) + "\n"]
    return lines + ["\t".join(f"{row[name]:.6g}" if name in row else "" for name in columns) + "\n" for row in rows]


class CurvesCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Writes the curves whenever something is logged, and shows step, loss and time left."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
        """Write the curve up to now."""
        rows = curve_rows(state.log_history)
        write_lines(self.path, to_tsv(rows))
        if rows and self.bar.disable and "validation_loss" in rows[-1]:  # no terminal: a line for the log
            told = ", ".join(
                f"{name.replace('_', ' ')} {value:.4g}" for name, value in rows[-1].items() if name != "step"
            )
            say(f"step {state.global_step} of {state.max_steps}: {told}")
        if rows:
            latest = {name: value for row in rows for name, value in row.items() if name.endswith("loss")}
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in latest.items()}, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Close the bar."""
        self.bar.close()
