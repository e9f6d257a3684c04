"""Every finding of validate: its code, its severity, the cost of ignoring it, and its meaning.

`docs/findings.md` shows this table (`finetune findings` prints it). The meaning of a code never changes, because
params.yaml lists codes in `findings.accept`.
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
    "verdict": "reliability of the verdict",
    "time": "time or money",
    "quality": "quality",
    "nothing": "nothing",
}


@dataclass(frozen=True, slots=True)
class Code:
    """The meaning of one code; `binding` ones cannot be accepted, because the run would fail."""

    severity: Severity
    cost: Cost
    meaning: str
    binding: bool = False
    in_params: bool = True  # a key of params.yaml is at fault; otherwise the rows or the disk


CODES: dict[str, Code] = {  # of problems that several modules find; each module in `checks` adds its own
    "tf32-unsupported": Code(
        "error", "run", "tf32 requires a CUDA device of the Ampere generation or newer.", binding=True
    ),
    "base-missing": Code("error", "run", "The base is neither a local folder nor in the cache.", binding=True),
    "base-gated": Code("error", "run", "The Hub does not give the base to this machine.", binding=True),
    "base-unpinned": Code(
        "error", "run", "Without a revision, the same name may refer to a different model later.", binding=True
    ),
    "base-class-unknown": Code("error", "run", "No model can be built from the config of the base.", binding=True),
    "base-incomplete": Code("error", "run", "A file of the base is missing, cut off or damaged.", binding=True),
    "template-missing": Code("error", "run", "Without a chat template, messages can't be tokenized.", binding=True),
    "template-broken": Code("error", "run", "The template does not render these messages.", binding=True),
    "template-unmarked": Code(
        "error", "run", "The template does not mark which tokens the assistant wrote.", binding=True
    ),
    "pad-missing": Code("error", "run", "Without a padding token, rows of a batch can't be padded.", binding=True),
    "device-missing": Code("warning", "time", "This machine can't run the recipe."),
    "devices-missing": Code("warning", "time", "This machine has fewer devices than the run needs."),
    "attention-missing": Code("warning", "time", "The attention's kernels are not on this machine."),
    "liger-missing": Code("error", "run", "The package liger-kernel is not installed.", binding=True),
    "tracker-missing": Code("warning", "run", "A tracker in report_to is not installed."),
    "adapter-impossible": Code("error", "run", "This adapter type can't be trained on this base.", binding=True),
    "strategy-missing": Code("warning", "run", "The package that this strategy needs is not installed."),
    "accepted-unknown": Code("error", "nothing", "findings.accept names an unknown or binding code.", binding=True),
    "accepted-unused": Code("note", "nothing", "findings.accept names a finding that did not occur."),
}


def all_codes() -> dict[str, Code]:
    """Return every code, including those of all modules in `checks`."""
    from finetune.validate import checks

    for module in pkgutil.iter_modules(checks.__path__):
        import_module(f"{checks.__name__}.{module.name}")
    return CODES


def to_reference() -> str:
    """Return the reference page of all codes as Markdown."""
    lines = [
        "# Findings of validate",
        "",
        "With this page you can look up a finding by its code. Each has a place, numbers and a setting to change. An",
        "error stops the run; warnings and notes do not. To continue despite a finding, list its code and your",
        "reason:",
        "",
        "```yaml",
        "findings:",
        "  accept:",
        "    warmup-too-long: the learning rate is meant to rise all the way",
        "```",
        "",
        "The report then lists it as accepted, with the reason. Codes marked *binding* can't be accepted, "
        "because no run could",
        "continue. Findings are ordered by severity, then by what they put at risk.",
    ]
    every = all_codes()
    for severity in SEVERITIES:
        chosen = [(list(COSTS).index(code.cost), name) for name, code in every.items() if code.severity == severity]
        codes = [(name, every[name]) for _, name in sorted(chosen)]
        marks = {True: " *Binding.*", False: ""}
        rows = [[f"`{name}`", COSTS[code.cost], code.meaning + marks[code.binding]] for name, code in codes]
        lines += ["", f"## {severity.capitalize()}s", ""]
        lines += markdown_table(["code", "at risk", "meaning"], rows)
    return "\n".join(lines) + "\n"
