"""The report's drawings as inline SVG, without style attributes, so that a strict content policy allows them.

Positions are percentages of the width, so a drawing fits a phone and a wide screen while its letters keep their size.
Colours are set by the page's classes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from finetune.decide.report.formatting import Kind, format_short
from finetune.decide.report.readings import NO_INTERVAL, Reading

LOG_FROM = 5.0  # a larger ratio of values uses a logarithmic scale; otherwise the smaller ones would be one dot
FEW = 13  # curves with fewer points mark each of them
EDGE = 2.0  # percent of the width left free at both ends, for marks at the edge
Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Maps a value to its position, in percent of the width."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the position of a value; one outside the scale is placed at its end."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(EDGE + (100 - 2 * EDGE) * (value - low) / ((high - low) or 1.0), 2)

    def ticks(self, count: int = 4) -> list[float]:
        """Return round values on the scale."""
        if not self.log:
            return round_ticks(self.low, self.high, count)
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high / self.low < 60 else (1, 3) if self.high / self.low < 2000 else (1,)
        return [value for e in exponents for step in steps if self.low <= (value := step * 10.0**e) <= self.high]


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten, from low to high."""
    raw = (high - low) / max(count, 1) or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(at * step, 12) for at in range(first, last + 1)]


def scale_of(reading: Reading, values: Sequence[float]) -> Scale:
    """Choose a scale: 0 to 1 for proportions, around 0 for differences, positive values for seconds and bytes."""
    low, high = min(values), max(values)
    if reading.kind == "share" or (reading.kind == "number" and low >= 0 and high <= 1):
        return Scale(0.0, 1.0)
    if reading.kind in ("seconds", "bytes", "number") and low > 0 and high / low > LOG_FROM:
        return Scale(low / 1.6, high * 1.6, log=True)
    if reading.kind in ("seconds", "bytes"):
        return Scale(0.0, 1.2 * high)
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.12 * ((high - low) or 1.0)
    return Scale(low - room, high + room)


def draw_criterion(reading: Reading) -> Markup | None:
    """Draw interval, estimate, target with its good side, and baseline; None if nothing was measured."""
    item = reading.outcome
    if item.estimate is None or not math.isfinite(item.estimate):
        return None
    figures = (item.estimate, item.lower, item.upper, item.target)
    own = [value for value in figures if value is not None and math.isfinite(value)]
    base = reading.base if reading.kind in ("share", "number") else None
    scale = scale_of(reading, [*own, *([base] if base is not None else [])])
    lower = scale.low if item.lower is None else item.lower
    upper = scale.high if item.upper is None else item.upper
    left, right, target = scale.at(lower), scale.at(upper), scale.at(item.target)
    good = (target, 100 - target) if item.higher_is_better else (0.0, target)
    width = max(round(right - left, 2), 0.6)
    interval = f'<rect class="interval" x="{left}%" y="26" width="{width}%" height="10" rx="5"/>'
    parts = [
        f'<rect class="zone" x="{good[0]}%" y="20" width="{round(good[1], 2)}%" height="22" rx="3"/>',
        '<line class="axis" x1="0" x2="100%" y1="31" y2="31"/>',
        *([interval] if reading.bounds != NO_INTERVAL else []),
        f'<line class="target" x1="{target}%" x2="{target}%" y1="16" y2="45"/>',
        _text(target, 11, f"required: {format_short(item.target, reading.kind)}", "asked"),
        *_ticks(scale, reading.kind, 62),
    ]
    if base is not None:
        parts.append(f'<circle class="base" cx="{scale.at(base)}%" cy="31" r="5"/>')
    parts.append(f'<circle class="estimate" cx="{scale.at(item.estimate)}%" cy="31" r="6.5"/>')
    about = f"estimate {reading.estimate}, {reading.bounds}, required {reading.asked}"
    if base is not None:
        about += f", baseline {format_short(base, reading.kind)}"
    return _svg(f"interval {item.status}", 68, about + (", logarithmic scale" if scale.log else ""), parts)


def _ticks(scale: Scale, kind: Kind, y: int) -> Iterable[str]:
    unit = " points" if kind == "points" else " (log)" if scale.log else ""
    places = scale.ticks()
    for at, value in enumerate(places):
        label = format_short(value, kind) + (unit if at == len(places) - 1 else "")
        yield f'<line class="tick" x1="{scale.at(value)}%" x2="{scale.at(value)}%" y1="{y - 18}" y2="{y - 13}"/>'
        yield _text(scale.at(value), y, label, "label")


def _text(at: float, y: float, text: str, name: str) -> str:
    anchor = "start" if at < 9 else "end" if at > 88 else "middle"
    place = 0 if at < 9 and at <= EDGE + 1 else 100 if at > 100 - EDGE - 1 else at
    return f'<text class="{name}" x="{place}%" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(name: str, height: int, about: str, parts: Iterable[str]) -> Markup:
    label = f'role="img" aria-label="{escape(about)}"'
    head = f'<svg class="drawing {escape(name)}" width="100%" height="{height}" {label}>'
    return Markup(head + "".join(parts) + "</svg>")  # noqa: S704 - numbers, and text escaped above


def draw_pair(
    baseline: tuple[float, float, float], candidate: tuple[float, float, float], scale: Scale, about: str
) -> Markup:
    """Draw two intervals on one scale, each as (value, lower, upper), with the baseline's above."""
    parts = ['<line class="axis" x1="0" x2="100%" y1="16" y2="16"/>']
    for name, y, (value, lower, upper) in (("old", 8, baseline), ("new", 24, candidate)):
        left, right = scale.at(lower), scale.at(upper)
        parts.append(
            f'<line class="{name}" x1="{left}%" x2="{max(right, left + 0.5)}%" y1="{y}" y2="{y}"/>'
            f'<circle class="{name}" cx="{scale.at(value)}%" cy="{y}" r="4.5"/>'
        )
    return _svg("pair", 32, about, parts)


def draw_dots(rows: Sequence[tuple[str, Sequence[float]]], about: str) -> Markup:
    """Draw every measured time as a dot, one row per side, with a line at the mean, on one scale from 0."""
    scale = Scale(0.0, 1.05 * max(value for _, values in rows for value in values))
    parts: list[str] = []
    for at, (name, values) in enumerate(rows):
        y, side = 34 + 54 * at, int(name == "candidate")
        parts.append(f'<text class="asked" x="0" y="{y - 20}">{escape(name)}</text>')
        parts.append(f'<line class="axis" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        # Dots at the same position would hide each other, so they alternate up and down, always in the same way.
        parts += [
            f'<circle class="dot side{side}" cx="{scale.at(value)}%" cy="{y + (7 * turn % 11 - 5) * 2}" r="3.2"/>'
            for turn, value in enumerate(values)
        ]
        mean = scale.at(sum(values) / len(values))
        parts.append(f'<line class="mean" x1="{mean}%" x2="{mean}%" y1="{y - 15}" y2="{y + 15}"/>')
    bottom = 34 + 54 * len(rows) - 8
    parts += [_text(scale.at(value), bottom, format_short(value, "seconds"), "label") for value in scale.ticks()]
    return _svg("dots", bottom + 8, about, parts)


@dataclass(frozen=True)
class Frame:
    """The range of a chart: steps from `first` to `last`, values from `low` to `high`, and values with a grid line."""

    first: float
    last: float
    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, point: Point) -> Point:
        """Return the position of a point in a field of 1000 by 1000 with its origin at the top left."""
        x = (point[0] - self.first) / ((self.last - self.first) or 1.0)
        y = (point[1] - self.low) / ((self.high - self.low) or 1.0)
        return round(1000 * x, 1), round(1000 * (1 - y), 1)


def frame_of(points: Sequence[Point]) -> Frame:
    """Return the frame that holds all points, with 0 and with a line above the highest."""
    steps, values = [x for x, _ in points], [y for _, y in points]
    low, top = min(0.0, *values), max(values) or 1.0
    ticks = round_ticks(low, top, 3)
    if len(ticks) > 1 and ticks[-1] < top:
        ticks.append(2 * ticks[-1] - ticks[-2])
    return Frame(min(0.0, *steps), max(steps), low, max(ticks[-1], top), tuple(ticks))


def draw_lines(
    series: Sequence[tuple[str, Sequence[Point]]], about: str, tell: Callable[[float], str]
) -> Markup | None:
    """Draw curves over optimizer steps; None without points. A curve of few points marks them, as a line hides them."""
    known = [[point for point in points if all(map(math.isfinite, point))] for _, points in series]
    drawn = [point for points in known for point in points]
    if not drawn:
        return None
    frame = frame_of(drawn)
    parts = list(_grid(frame, tell))
    parts.append('<svg x="15%" y="5%" width="84%" height="78%" viewBox="0 0 1000 1000" preserveAspectRatio="none">')
    for at, points in enumerate(known):
        path = " ".join(f"{x},{y}" for x, y in map(frame.place, points))
        parts.append(f'<polyline class="line side{1 - at}" points="{path}"/>')
    parts.append("</svg>")
    parts += [mark for at, points in enumerate(known) if len(points) < FEW for mark in _marks(points, frame, 1 - at)]
    return _svg("curve", 200, about, parts)


def _grid(frame: Frame, tell: Callable[[float], str]) -> Iterable[str]:
    for value in frame.ticks:
        y = 5 + 0.078 * frame.place((frame.first, value))[1]
        yield f'<line class="grid" x1="15%" x2="99%" y1="{y:.2f}%" y2="{y:.2f}%"/>'
        yield f'<text class="label" x="13.5%" y="{y:.2f}%" dy="4" text-anchor="end">{escape(tell(value))}</text>'
    for value in round_ticks(frame.first, frame.last, 4):
        x = 15 + 0.084 * frame.place((value, frame.low))[0]
        anchor = "end" if x > 95 else "middle"
        yield f'<text class="label" x="{x:.2f}%" y="95%" text-anchor="{anchor}">{value:,.4g}</text>'


def _marks(points: Sequence[Point], frame: Frame, side: int) -> Iterable[str]:
    for x, y in map(frame.place, points):
        yield f'<circle class="spot side{side}" cx="{15 + 0.084 * x:.2f}%" cy="{5 + 0.078 * y:.2f}%" r="3.4"/>'
