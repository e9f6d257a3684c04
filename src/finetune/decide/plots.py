"""The training curves as inline SVG, in the page's own colours."""

import io
from collections.abc import Sequence

INK = "#0a0b0c"  # stands for the page's text colour, which a browser sets in light and in dark
SERIES = ("#3b82f6", "#f97316")


def read_curves(lines: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """`curves.tsv` as (step, value) pairs by column; empty cells are left out."""
    header, *rows = [line.rstrip("\n").split("\t") for line in lines]
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in header[1:]}
    for cells in rows:
        for name, cell in zip(header[1:], cells[1:], strict=True):
            if cell:
                curves[name].append((float(cells[0]), float(cell)))
    return curves


def draw(curves: dict[str, list[tuple[float, float]]], names: Sequence[str], title: str) -> str:
    """One panel as an `<svg>` element: the named curves over the optimizer steps."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "finetune"  # the same ids, so the same bytes, every time
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axes = figure.add_subplot()
    for name, color in zip(names, SERIES, strict=False):
        points = curves.get(name, [])
        axes.plot(
            *zip(*points, strict=True) if points else ([], []), color=color, linewidth=1.6, label=name.replace("_", " ")
        )
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
