"""Every finding that validate can make: its code, how severe it is, what it costs when nobody acts, what it means.

`docs/findings.md` is this table as a page (`finetune findings` prints it). A code never changes its meaning:
params.yaml names codes in `findings.accept`.
"""

import pkgutil
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from finetune.console import markdown_table

Severity = Literal["error", "warning", "note"]
Cost = Literal["run", "verdict", "time", "quality", "nothing"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
COSTS: dict[Cost, str] = {
    "run": "the whole run",
    "verdict": "what the verdict is worth",
    "time": "time or money",
    "quality": "some of the quality",
    "nothing": "nothing",
}


@dataclass(frozen=True, slots=True)
class Code:
    """What one code stands for; `binding` ones can't be accepted, for no run could follow."""

    severity: Severity
    cost: Cost
    meaning: str
    binding: bool = False
    in_params: bool = True  # a key of params.yaml is at fault; else the rows, or the disk


CODES: dict[str, Code] = {  # of problems that several modules find; each module in `checks` adds those of its own
    "tf32-unsupported": Code("error", "run", "tf32 exists on CUDA devices from Ampere on.", binding=True),
    "base-missing": Code("error", "run", "Neither a local folder nor the cache holds the base.", binding=True),
    "base-unpinned": Code("error", "run", "The same name may be another model tomorrow.", binding=True),
    "base-class-unknown": Code("error", "run", "The base's config describes no model that can be built.", binding=True),
    "base-incomplete": Code("error", "run", "A file of the base is missing, cut off or damaged.", binding=True),
    "template-missing": Code("error", "run", "Without a chat template, messages can't become tokens.", binding=True),
    "template-broken": Code("error", "run", "The template does not render these messages.", binding=True),
    "template-unmarked": Code("error", "run", "Nothing says which tokens the assistant wrote.", binding=True),
    "pad-missing": Code("error", "run", "Rows of a batch can't be made equally long.", binding=True),
    "device-missing": Code("warning", "time", "This machine can't run the recipe; another one can."),
    "devices-missing": Code("warning", "time", "This machine has fewer devices than the run is spread over."),
    "attention-missing": Code("warning", "time", "No flash-attention is installed here."),
    "liger-missing": Code("error", "run", "The package liger-kernel is not installed here.", binding=True),
    "tracker-missing": Code("warning", "run", "A tracker that is asked for is not installed here."),
    "adapter-impossible": Code("error", "run", "This kind of adapter can't be trained on this base.", binding=True),
    "strategy-missing": Code("warning", "run", "The package that this strategy needs is not installed here."),
    "accepted-unknown": Code("error", "nothing", "findings.accept names no code, or a binding one.", binding=True),
    "accepted-unused": Code("note", "nothing", "findings.accept names what was not found."),
}


def all_codes() -> dict[str, Code]:
    """Every code, those of all modules in `checks` included."""
    from finetune.validate import checks

    for module in pkgutil.iter_modules(checks.__path__):
        import_module(f"{checks.__name__}.{module.name}")
    return CODES


def to_reference() -> str:
    """The reference page of all codes, as Markdown."""
    lines = [
        "# Findings of validate",
        "",
        "Each finding has a code that never changes its meaning, the place, the numbers, and the line to change. An",
        "error stops the run, a warning and a note do not. To continue despite a finding, name its code and your",
        "reason:",
        "",
        "```yaml",
        "findings:",
        "  accept:",
        "    warmup-too-long: the learning rate is meant to rise all the way",
        "```",
        "",
        "The report then lists it as accepted, with the reason. Codes marked *binding* can't be accepted: no run could",
        "follow. Findings are listed in the order of severity, then of what they cost.",
    ]
    every = all_codes()
    for severity in SEVERITIES:
        chosen = [(list(COSTS).index(code.cost), name) for name, code in every.items() if code.severity == severity]
        codes = [(name, every[name]) for _, name in sorted(chosen)]
        marks = {True: " *Binding.*", False: ""}
        rows = [[f"`{name}`", COSTS[code.cost], code.meaning + marks[code.binding]] for name, code in codes]
        lines += ["", f"## {severity.capitalize()}s", ""]
        lines += markdown_table(["code", "what it costs", "what it means"], rows)
    return "\n".join(lines) + "\n"
