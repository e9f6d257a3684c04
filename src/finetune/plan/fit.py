"""Whether this machine can run a recipe: its device, its packages and the predicted peak memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune.config.params import Config
from finetune.config.recipes import read_recipe
from finetune.console import gigabytes
from finetune.containers.runtime import runtime_of
from finetune.errors import ConfigError, FinetuneError
from finetune.hardware.accelerators import Accelerators
from finetune.hardware.devices import AMPERE
from finetune.hardware.host import usable_memory
from finetune.hardware.preflight import find_count_problem, find_package_problems, needs_bitsandbytes
from finetune.plan.machines import MACHINES

MEANT_SHARE = 0.9  # of the memory of the machine that a recipe names

QUICK = "not predicted with --quick"


@dataclass(frozen=True, slots=True)
class Fit:
    """The result for one recipe on this machine; peak and parameters are None if unknown."""

    recipe: str
    environment: str
    base: str
    can_run: bool
    why_not: tuple[str, ...] = ()
    parameters: int | None = None
    peak_bytes: int | None = None
    available_bytes: int | None = None
    unknown: str | None = None  # why no memory is predicted
    meant: bool = True  # whether this machine is about as large as the recipe's, or larger

    def sentence(self) -> str:
        """State whether the recipe can run here, and why not."""
        if not self.can_run:
            return f"recipe {self.recipe} can't run here: {'; '.join(self.why_not)}"
        if self.peak_bytes is None or self.available_bytes is None:
            return f"recipe {self.recipe} can probably run here; its memory is unknown ({self.unknown})"
        memory = f"{gigabytes(self.peak_bytes)} of {gigabytes(self.available_bytes)}"
        return f"recipe {self.recipe} can run here: predicted peak memory {memory}"


def judge_all(root: Path, accelerators: Accelerators, predictor: "Predictor") -> Iterator[Fit]:
    """Yield the result for every recipe of the folder; for one that cannot be read, it is unknown."""
    for path in sorted((root / "recipes").glob("*.yaml")):
        try:
            yield judge(read_recipe(path.stem, root), accelerators, predictor)
        except ConfigError as error:
            yield Fit(path.stem, "unknown", "unknown", False, (str(error).splitlines()[0],), unknown="not readable")


def judge(config: Config, accelerators: Accelerators, predictor: "Predictor | None") -> Fit:
    """Compare device, packages and memory of one run with this machine; the base need not be downloaded yet."""
    reasons = (*missing_devices(config, accelerators), *missing_packages(config))
    name, environment, base = config.recipe, config.environment, config.model.base
    if reasons:  # memory of another kind of device is irrelevant
        return Fit(name, environment, base, False, reasons, unknown="not predicted, because it can't run here")
    available = usable_memory()
    if environment == "cuda":
        available = min(gpu.memory_bytes for gpu in accelerators.gpus[: config.train.distributed.devices])
    parameters, peak, unknown = (None, None, QUICK) if predictor is None else predictor.predict(config)
    if peak is not None and peak > available:
        reasons = (f"predicted peak memory {gigabytes(peak)}, available {gigabytes(available)}",)
    meant = config.machine not in MACHINES or available >= MEANT_SHARE * MACHINES[config.machine].memory_bytes
    return Fit(name, environment, base, not reasons, reasons, parameters, peak, available, unknown, meant)


def missing_devices(config: Config, accelerators: Accelerators) -> Iterator[str]:
    """Yield what the run's device lacks."""
    if config.environment == "cuda" and not accelerators.gpus:
        yield "torch found no usable CUDA device"
    elif config.environment == "apple" and not accelerators.apple:
        yield "no Apple GPU"
    elif config.environment == "cuda":
        if few := find_count_problem(config.train, len(accelerators.gpus)):
            yield few.message
        in_bf16 = config.train.bf16 or config.model.dtype == "bfloat16"
        if in_bf16 and accelerators.gpus[0].capability < AMPERE:
            yield f"bfloat16 needs compute capability {'.'.join(map(str, AMPERE))}"


def missing_packages(config: Config) -> Iterator[str]:
    """Yield the packages that this run needs and that are not installed."""
    if runtime_of(config) != "native":
        return  # the image contains the locked packages
    needed = ["torch", "transformers", "peft", "trl"]
    needed += ["bitsandbytes"] if needs_bitsandbytes(config.model, config.train) else []
    missing = [name for name in needed if not find_spec(name)]
    if missing:
        yield f"not installed: {', '.join(missing)}"
    for problem in find_package_problems(config.environment, config.model, config.train):
        if problem.code != "tracker-missing":  # a warning: training works without it
            yield problem.message


def best_of(fits: list[Fit]) -> Fit | None:
    """Return the largest base whose predicted peak fits, among recipes for machines no larger; ties by name."""
    known = [
        fit for fit in fits if fit.can_run and fit.meant and fit.parameters is not None and fit.peak_bytes is not None
    ]
    return min(known, key=lambda fit: (-(fit.parameters or 0), fit.recipe), default=None)


class Predictor:
    """Predicts the peak memory of runs; each base is measured once, which takes seconds for billions of parameters."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[tuple[str, str | None], Any] = {}

    def predict(self, config: Config) -> tuple[int | None, int | None, str | None]:
        """Return (parameters, peak bytes, None), or (None, None, why not)."""
        try:
            from finetune.model.architecture import measure_architecture
            from finetune.model.base_config import find_base_config
            from finetune.plan.memory import plan_memory
            from finetune.plan.outlook import Workload
        except ImportError as error:
            return None, None, f"{error.name or 'a package'} is not installed"
        key = (config.model.base, config.model.revision)
        try:
            if key not in self._known:
                self._known[key] = measure_architecture(find_base_config(config.model, self.root))
            work = Workload.at_most(config.train, rows=1)
            plan = plan_memory(
                self._known[key],
                config.model,
                config.adapter,
                config.train,
                config.environment,
                length=work.longest_row,
                supervised=work.supervised,
                ranks=config.train.distributed.devices,
            )
        except FinetuneError as error:
            return None, None, str(error).splitlines()[0]
        return self._known[key].parameters, plan.peak, None
