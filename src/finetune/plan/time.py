"""Predict the duration of a run: its floating-point operations, divided by the throughput of the device.

The operations follow from the architecture. The throughput is measured by a probe, or assumed as a fraction of the data
sheet's value; both give a range.
"""

from dataclasses import dataclass

from finetune.config.train import TrainConfig
from finetune.model.architecture import Architecture

# The fraction of the data sheet dense 16-bit throughput that LoRA runs reach; a wide range until a probe has measured
# it. The lower end is for 4-bit weights with checkpointing and short rows, the upper one for long 16-bit rows.
ASSUMED_SHARE = (0.15, 0.45)


@dataclass(frozen=True)
class Range:
    """Minimum and maximum seconds."""

    least: float
    most: float

    def to_text(self) -> str:
        """Format the range in a suitable unit."""
        for unit, seconds in (("days", 86400), ("hours", 3600), ("minutes", 60)):
            if self.most >= 2 * seconds:
                return f"{self.least / seconds:.1f} to {self.most / seconds:.1f} {unit}"
        return f"{self.least:.0f} to {self.most:.0f} seconds"


def forward_flops(architecture: Architecture, length: float) -> tuple[float, float]:
    """Return the forward operations of one position: for the layers' weights (two each) and for causal attention."""
    weights = sum(linear.parameters for linear in architecture.linears)
    weights += sum(x.parameters // x.experts for x in architecture.experts) * architecture.active_experts
    return 2 * weights, 2 * architecture.layers * length * architecture.heads * architecture.head_dim


def flops_per_position(architecture: Architecture, train: TrainConfig, length: int) -> float:
    """Return the floating-point operations for one position of a training row of `length`, without the loss head.

    Two for each weight forward, two backward (frozen weights need no gradient), two more if activations are recomputed;
    attention adds 4 x length x width per layer forward (half of it causal), twice that backward. After Kaplan et al.,
    arXiv 2001.08361, table 1.
    """
    weights, attention = forward_flops(architecture, length)
    again = 1 if train.activation_checkpointing else 0
    return weights * (2 + again) + attention * (3 + again)


def run_flops(
    architecture: Architecture, train: TrainConfig, *, positions: int, length: float, supervised_share: float
) -> float:
    """Return the operations of the run over `positions` per epoch: the layers, and the loss head on supervised tokens.

    Six for each weight of the head, although it is frozen: TRL's loss recomputes its tiles in the backward pass.
    """
    head = 6 * architecture.hidden * architecture.vocabulary * supervised_share
    a_position = flops_per_position(architecture, train, round(length)) + head
    return positions * train.num_train_epochs * a_position


def evaluation_flops(architecture: Architecture, *, positions: int, length: float, supervised_share: float) -> float:
    """Return the operations of one forward pass over `positions` of the validation split."""
    head = 2 * architecture.hidden * architecture.vocabulary * supervised_share
    return positions * (sum(forward_flops(architecture, length)) + head)


def assumed_time(flops: float, peak_flops: float, devices: int) -> Range:
    """Return the seconds on devices with this data sheet, by the fraction of it that such runs reach."""
    low, high = ASSUMED_SHARE
    return Range(flops / (peak_flops * devices * high), flops / (peak_flops * devices * low))


def measured_time(flops: float, flops_per_second: tuple[float, float], devices: int) -> Range:
    """Return the seconds for the slowest and the fastest measured throughput."""
    slow, fast = flops_per_second
    return Range(flops / (fast * devices), flops / (slow * devices))


def cost(time: Range, price_per_hour: float) -> Range:
    """Return the cost in the price's currency."""
    return Range(time.least / 3600 * price_per_hour, time.most / 3600 * price_per_hour)
