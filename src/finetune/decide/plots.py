"""The training curves as inline SVG, in the page's own colours."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import DataError

INK = "#0a0b0c"  # stands for the page's text colour, which a browser sets in light and in dark
FEW_POINTS = 12  # so few are marked, since a line alone would hide where they are
SERIES = ("#3b82f6", "#f97316")


Curves = dict[str, list[tuple[float, float]]]


def read_curves(reports: Path) -> Curves:
    """The curves that train wrote, as (step, value) pairs by column; DataError where they can't be read."""
    return {**_read_table(reports / "curves.tsv"), **_read_table(reports / "validation_curve.tsv")}


def _read_table(path: Path) -> Curves:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        names = [name for name in (rows[0] if rows else {}) if name != "step"]
        return {name: [(float(row["step"]), float(row[name])) for row in rows] for name in names}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run train again (dvc repro -f train)") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is no table of curves ({error}); run train again (dvc repro -f train)") from None


def draw(curves: Curves, names: Sequence[str], title: str) -> str:
    """One panel as an `<svg>` element: the named curves over the optimizer steps."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "finetune"  # the same ids, so the same bytes, every time
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axes = figure.add_subplot()
    for name, color in zip(names, SERIES, strict=False):
        points = curves.get(name, [])
        steps, values = zip(*points, strict=True) if points else ((), ())
        marker = "." if len(points) < FEW_POINTS else None
        axes.plot(steps, values, color=color, linewidth=1.6, marker=marker, label=name.replace("_", " "))
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.set_xlabel("step", color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(alpha=0.18, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    if len(names) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
