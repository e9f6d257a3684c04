"""Format numbers, names and untrusted text for the report, the summary and the model card.

Text from data and models may contain anything: control characters, characters that change the writing direction,
megabytes of text. None of it may affect a page, a terminal or a table; invisible characters are shown by their code.

All three documents are published, so they contain no local paths: of a base model's folder only the last part, of a
server only the model.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from markupsafe import Markup

Kind = Literal["share", "points", "gain", "number", "difference", "seconds", "bytes", "count"]

MINUS = "\u2212"  # as wide as a plus, unlike a hyphen

# Control characters, line separators, direction marks, invisible letters and lone surrogates. Tab and line feed are
# kept, and so are the joiners used by emoji, Persian and Indic scripts.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff"
    "\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)
_PATH = re.compile(r"^(?:[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\])")
_MARKS = re.compile(r"([\\|\[\]`*~$!]|(?<![^\W_])_|_(?![^\W_]))")


def visible(text: str) -> str:
    """Replace all invisible characters by their codes."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def shortened(text: str, limit: int) -> str:
    """Return at most `limit` characters, followed by the number of omitted ones."""
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit:,} more characters]"


def name(text: object, limit: int = 80) -> str:
    """Format a name from a file so that it fits on one line."""
    plain = " ".join(visible(str(text)).split())
    return plain if len(plain) <= limit else f"{plain[:limit]}…"


def plain_name(text: str, revision: str | None = None) -> str:
    """Return the name of a model; of a local folder (pinned by its hash), only the last part of its path."""
    if _PATH.match(text) or (revision or "").startswith("sha256:"):
        return name(re.split(r"[/\\]", text.rstrip("/\\"))[-1] or "base")
    return name(text)


def plain_markdown(value: Any) -> Any:
    """Escape text so that it cannot leave its table cell, add HTML, a link or an image, or mention a person by @."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = " ".join(visible(value).split())
    text = _MARKS.sub(r"\\\1", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A word joiner keeps GitHub from recognizing a mention, a reference to an issue or a bare address.
    return re.sub(r"(@|#|://|www\.)(?=\w)", "\\1\u2060", text)


def code_markdown(value: object) -> Markup:
    """Format a hash, revision or name as a code span that its content cannot close."""
    return Markup(f"`{name(value, 200).replace('`', chr(0x2CB)).replace('|', chr(0xA6))}`")  # noqa: S704 - no mark is left


def printable(value: Any) -> Any:
    """Make a template value safe for HTML: show invisible characters of text, keep safe HTML and other values."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def amount(value: float | None, unit: str = "") -> str:
    """Format a number for readers: bytes as GB, seconds as s, proportions with three digits, n/a for None."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB"
    return f"{value:.3f}{' ' + unit if unit else ''}"


def percent(value: float | None) -> str:
    """Format a proportion with one decimal; only exact 0 and 1 are shown as 0.0% and 100.0%."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if 0 < value < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= value < 1 else f"{100 * value:.1f}%"


def figure(value: float | None) -> str:
    """Format a number with about four significant digits and three decimals."""
    if value is None or not math.isfinite(value):
        return "n/a"
    return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3g}"


def format_value(value: float | None, kind: Kind) -> str:
    """Format a value by its kind: `66.9%`, `+53.7 points`, `0.305`, `0.047 s`, `0.56 GB`."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if kind in ("share", "gain"):
        return percent(value) if value >= 0 else f"{MINUS}{percent(-value)}"
    sign = MINUS if value < 0 else "+"
    if kind == "points":
        return f"{sign}{abs(100 * value):.1f} points"
    if kind == "difference":
        return f"{sign}{figure(abs(value))}"
    if kind == "count":
        return f"{value:,.4g}"
    return figure(value) if kind == "number" else amount(value, "s" if kind == "seconds" else "bytes")


def format_short(value: float, kind: Kind) -> str:
    """Format a value without trailing zeros, for scales and targets: `55%`, `1 s`, `2 GB`."""
    if kind in ("share", "gain", "points"):
        shown = f"{100 * value:.4g}".replace("-", MINUS)
        return shown if kind == "points" else f"{shown}%"
    if kind == "seconds":
        return f"{value:.4g} s"
    return f"{value / 1e9:.4g} GB" if kind == "bytes" else f"{value:.4g}".replace("-", MINUS)


def format_count(value: float | None) -> str:
    """Format a mean count, such as tokens per answer: `14.3`."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:,.1f}"


def duration(seconds: float | None) -> str:
    """Format a duration for readers."""
    if seconds is None or not math.isfinite(seconds):
        return "n/a"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def counted(count: int, what: str) -> str:
    """`1 example`, `1,200 examples`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def spaced(key: str) -> str:
    """Return a key as words."""
    return key.replace("_", " ")


def listed(values: Mapping[str, Any]) -> str:
    """`do sample: no, max new tokens: 16`: settings in one line."""
    return ", ".join(f"{spaced(key)}: {_setting(value)}" for key, value in values.items())


def _setting(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return name(", ".join(map(str, value)) if isinstance(value, list | tuple) else value, 200)
