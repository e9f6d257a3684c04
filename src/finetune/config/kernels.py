"""Attention kernels of the Hub: `kernels-community/flash-attn2@COMMIT`, compiled code that needs no compiler here."""

import re
from dataclasses import dataclass

# Transformers loads kernels of this organization without further consent; a commit makes the code the same every time.
ORGANIZATION = "kernels-community"
KERNEL = rf"^{ORGANIZATION}/[\w.-]+(@[0-9a-f]{{40}})?$"


@dataclass(frozen=True)
class Kernel:
    """A kernel's repository on the Hub and its commit; without one, it is not pinned."""

    name: str
    revision: str | None


def find_kernel(attention: str) -> Kernel | None:
    """Return the kernel that `model.attention` names; None if it names an implementation of transformers."""
    if not re.match(KERNEL, attention):
        return None
    name, _, revision = attention.partition("@")
    return Kernel(name, revision or None)


def is_flash(attention: str) -> bool:
    """Return whether an attention needs no mask of all positions, and 16 bits."""
    return "flash" in attention
