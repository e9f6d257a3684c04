"""How long a run takes: its floating-point operations, over what a device does a second.

The operations follow from the architecture. What a device does a second is measured by a probe, or assumed as a share
of its data sheet; a range either way.
"""

from dataclasses import dataclass

from finetune.config.train import TrainConfig
from finetune.model.architecture import HEAD, Architecture

# What LoRA runs reach of the data sheet dense 16-bit throughput; wide on purpose, until a probe has measured it. The
# lower end is that of 4-bit weights with checkpointing and short rows, the upper one of long 16-bit rows.
ASSUMED_SHARE = (0.15, 0.45)


@dataclass(frozen=True)
class Range:
    """Seconds, at least and at most."""

    least: float
    most: float

    def to_text(self) -> str:
        """In the unit that a person would use."""
        for unit, seconds in (("days", 86400), ("hours", 3600), ("minutes", 60)):
            if self.most >= 2 * seconds:
                return f"{self.least / seconds:.1f} to {self.most / seconds:.1f} {unit}"
        return f"{self.least:.0f} to {self.most:.0f} seconds"


def forward_flops(architecture: Architecture, length: float) -> tuple[float, float]:
    """Operations of one position on its way forward: of the layers' weights (two each), and of causal attention."""
    weights = sum(linear.parameters for linear in architecture.linears if linear.name != HEAD)
    return 2 * weights, 2 * architecture.layers * length * architecture.heads * architecture.head_dim


def flops_per_position(architecture: Architecture, train: TrainConfig, length: int) -> float:
    """Floating-point operations for one position of a training row of `length`, the loss head left out.

    Two for each weight forward, two backward (the frozen weights need no gradient of their own), two more where
    activations are computed again; attention adds 4 x length x width a layer forward (half of it causal), twice that
    backward. After Kaplan et al., arXiv 2001.08361, table 1.
    """
    weights, attention = forward_flops(architecture, length)
    again = 1 if train.activation_checkpointing else 0
    return weights * (2 + again) + attention * (3 + again)


def run_flops(
    architecture: Architecture, train: TrainConfig, *, positions: int, length: float, supervised_share: float
) -> float:
    """Operations of the whole run over `positions` an epoch: the layers, and the loss head where a loss is taken.

    Six for each weight of the head, frozen as it is: TRL's loss computes its tiles a second time on the way back.
    """
    head = 6 * architecture.hidden * architecture.vocabulary * supervised_share
    a_position = flops_per_position(architecture, train, round(length)) + head
    return positions * train.num_train_epochs * a_position


def evaluation_flops(architecture: Architecture, *, positions: int, length: float, supervised_share: float) -> float:
    """Operations of one pass over `positions` of the validation split: forward alone."""
    head = 2 * architecture.hidden * architecture.vocabulary * supervised_share
    return positions * (sum(forward_flops(architecture, length)) + head)


def assumed_time(flops: float, peak_flops: float, devices: int) -> Range:
    """Seconds on devices of this data sheet, by the share of it that such runs reach."""
    low, high = ASSUMED_SHARE
    return Range(flops / (peak_flops * devices * high), flops / (peak_flops * devices * low))


def measured_time(flops: float, flops_per_second: tuple[float, float], devices: int) -> Range:
    """Seconds where slowest and fastest measurement on this device are known."""
    slow, fast = flops_per_second
    return Range(flops / (fast * devices), flops / (slow * devices))


def cost(time: Range, price_per_hour: float) -> Range:
    """What that costs, in the price's currency."""
    return Range(time.least / 3600 * price_per_hour, time.most / 3600 * price_per_hour)
