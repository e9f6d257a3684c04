"""Settings against the plan: memory, steps, evaluations, and the recipe they are based on."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.config.params import Config
from finetune.model.architecture import Architecture
from finetune.plan.memory import MemoryPlan
from finetune.plan.outlook import RunPlan, Workload, make_plan
from finetune.plan.schedule import plan_schedule
from finetune.validate.checks import plan
from finetune.validate.checks.config import check_reference
from finetune.validate.checks.plan import check_evaluations, check_fit, check_plan, check_room, check_this_machine
from finetune.validate.checks.schedule import check_run
from tests.builders.checked_settings import CUDA, GB, LLAMA, NF4, codes, finding_text
from tests.builders.kinds import Change
from tests.builders.small_run import ROOT

# ---- The plan


def outlook_of(config: Config, peak: int, available: int | None, fits: tuple[int, int] = (2, 128)) -> Any:
    """Return an outlook with this peak on a machine with this memory."""
    schedule, workload = plan_schedule(config.train, 100), Workload.at_most(config.train, 100)
    plan: Any = SimpleNamespace(peak=peak)
    outlook = RunPlan(config, workload, schedule, LLAMA, memory=plan, available=available)
    object.__setattr__(outlook, "what_fits", lambda: fits)
    return outlook


def test_a_peak_beyond_the_memory_is_an_error_and_near_it_a_warning(config: Config) -> None:
    """The prediction is good to a tenth: no finding up to 90% of the memory, a warning up to 100%, then an error."""
    assert check_fit(outlook_of(config, 90 * GB, 100 * GB)) == []
    assert check_fit(outlook_of(config, 90 * GB, None)) == []
    (tight,) = check_fit(outlook_of(config, 100 * GB, 100 * GB))
    assert finding_text(tight, "memory-tight") == (
        "params.yaml: train: predicted peak 100.0 GB, available 100.0 GB; "
        "use per_device_train_batch_size 2 or max_length 128"
    )
    (short,) = check_fit(outlook_of(config, 101 * GB, 100 * GB, fits=(0, 0)))
    assert (short.code, short.severity) == ("memory-short", "error")
    assert short.remedy.startswith("use a smaller micro-batch (with more accumulation), a smaller max_length or nf4")


@pytest.mark.parametrize(("fits", "fix"), [((2, 0), "batch_size 2"), ((0, 64), "max_length 64")])
def test_only_fitting_settings_are_advised(config: Config, fits: tuple[int, int], fix: str) -> None:
    """`use per_device_train_batch_size 0` would be an invalid setting."""
    (finding,) = check_fit(outlook_of(config, 2 * GB, GB, fits))
    assert finding.remedy.endswith(fix)
    assert " 0" not in finding.remedy


def test_a_smaller_machine_than_the_recipes_is_a_warning(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop with a GPU runs the rehearsal; the run itself needs the machine of the recipe."""
    monkeypatch.setattr(plan, "find_missing_device", lambda environment: None)
    monkeypatch.setattr(plan, "memory_bytes", lambda environment: 8 * GB)
    config = change(**CUDA)
    assert check_this_machine(config, outlook_of(config, 8 * GB, 80 * GB)) == []
    (finding,) = check_this_machine(config, outlook_of(config, 9 * GB, 80 * GB))
    assert finding_text(finding, "this-machine-short") == (
        "params.yaml: machine: predicted peak 9.00 GB, but this machine has 8.00 GB; train on "
        "NVIDIA H100 80 GB; on this machine, use ./finetune rehearse and ./finetune plan"
    )
    here = change()
    assert check_this_machine(here, outlook_of(here, 9 * GB, 8 * GB)) == []  # check_fit reports that
    monkeypatch.setattr(plan, "find_missing_device", lambda environment: "no CUDA device found")
    assert check_this_machine(config, outlook_of(config, 9 * GB, 80 * GB)) == []


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """`peaks(60, 50)`: set the peaks in GB that the plan predicts without checkpointing and without quantization."""

    def predicted(unchecked: int, unquantized: int) -> None:
        def peak(config: Config, architecture: Architecture, workload: Workload, ranks: int) -> MemoryPlan:
            size = unchecked if config.model.quantization == "nf4" else unquantized
            plan: Any = SimpleNamespace(peak=size * GB)
            return plan  # type: ignore[no-any-return]

        monkeypatch.setattr(plan, "peak_memory", peak)

    return predicted


def test_unnecessary_memory_savings_are_reported(change: Change, peaks: Callable[[int, int], None]) -> None:
    """Up to 70% of the memory, checkpointing is unnecessary and costs a third more work."""
    config = change(**CUDA | NF4 | {"train.activation_checkpointing": True})
    peaks(71, 71)
    assert check_room(config, outlook_of(config, 30 * GB, 100 * GB)) == []
    assert check_room(config, outlook_of(config, 30 * GB, None)) == []
    peaks(70, 60)
    checkpointing, quantization = check_room(config, outlook_of(config, 30 * GB, 100 * GB))
    assert str(checkpointing) == (
        "params.yaml: train.activation_checkpointing: without it the peak would be 70.0 GB of 100.0 GB; "
        "set it to false: checkpointing adds a third to the compute"
    )
    assert str(quantization) == (
        "params.yaml: model.quantization: with bfloat16 weights the peak would be 60.0 GB of 100.0 GB; "
        "use none: without dequantizing weights in each pass, training is faster and exact"
    )
    assert (checkpointing.code, checkpointing.severity) == ("checkpointing-needless", "warning")
    assert (quantization.code, quantization.severity) == ("quantization-needless", "note")
    plain = change(**CUDA)
    assert check_room(plain, outlook_of(plain, 30 * GB, 100 * GB)) == []


def test_an_unknown_architecture_has_no_plan(config: Config) -> None:
    """The finding of the base gives the reason."""
    outlook = make_plan(config, None, Workload.at_most(config.train, 100))
    assert check_plan(config, outlook) == []


def test_the_advised_micro_batch_resolves_the_finding(change: Change) -> None:
    """With real predictions, the error for a too large micro-batch names one that fits."""
    keys = {"machine": "gpu-24gb", "environment": "cuda", "train.max_length": 512}
    config = change(**keys | {"train.per_device_train_batch_size": 65536})
    (finding,) = check_fit(make_plan(config, LLAMA, Workload.at_most(config.train, 100_000)))
    assert finding.code == "memory-short"
    advised = int(finding.remedy.split()[2])
    config = change(**keys | {"train.per_device_train_batch_size": advised})
    assert check_fit(make_plan(config, LLAMA, Workload.at_most(config.train, 100_000))) == []


# ---- The run on several devices, and packed


def test_a_distributed_run_is_judged_by_its_own_steps(change: Change) -> None:
    """Four devices need a fourth of the steps, so a warmup suitable for one is too long."""
    keys = {"train.warmup_steps": 10, "train.eval_steps": 5, "train.save_steps": 5, "train.logging_steps": 1}
    train = change(**keys).train
    assert check_run(train, plan_schedule(train, 640, devices=1)) == []
    (finding,) = check_run(train, plan_schedule(train, 640, devices=4))
    assert finding.message == "10 of the run's 20 steps are warmup"
    *_, partial = check_run(train.model_copy(update={"warmup_steps": 0}), plan_schedule(train, 650, devices=4))
    assert partial.message == "the last step of each epoch takes 10 instead of 64 examples"


def test_a_packed_run_is_judged_by_its_rows(change: Change) -> None:
    """1,600 examples in 160 rows are 10 steps per epoch, not 100: the unpacked run's intervals are too long."""
    keys = {"train.warmup_steps": 0, "train.eval_steps": 50, "train.save_steps": 50, "train.packing": True}
    train = change(**keys).train
    assert check_run(train, plan_schedule(train, 1600)) == []
    assert codes(check_run(train, plan_schedule(train, 160))) == ["eval-never", "save-never"]


# ---- The recipe


def test_a_batch_size_other_than_the_recipes_is_reported(change: Change, tmp_path: Path) -> None:
    """Learning rates depend on the batch size, and params.yaml alone does not show that it was changed."""
    assert check_reference(change(), ROOT / "recipes") == []
    keys = {"train.effective_batch_size": 32, "train.gradient_accumulation_steps": 2}
    (finding,) = check_reference(change(**keys), ROOT / "recipes")
    assert str(finding) == (
        "params.yaml: train.effective_batch_size: 32 here, but 16 in recipes/tiny.yaml, and the "
        "learning rate was chosen for that; use 16 (adjust gradient_accumulation_steps), or "
        "adjust learning_rate"
    )
    assert finding.severity == "warning"
    assert check_reference(change(**keys), tmp_path) == []  # a run without a recipe


# ---- Cost of evaluations


def test_costly_evaluations_are_a_warning(change: Change) -> None:
    """188 evaluations on a validation split of a tenth of the rows would double the run time."""
    config = change(**{"train.eval_steps": 15, "train.save_steps": 15})
    outlook = make_plan(config, LLAMA, Workload.at_most(config.train, 15_000, validation=1_300))
    (finding,) = check_evaluations(outlook)
    assert (finding.code, finding.severity) == ("evaluations-costly", "warning")
    assert finding.place == "params.yaml: train.eval_steps"
    interval = int(finding.remedy.split()[1])
    rarer = change(**{"train.eval_steps": interval, "train.save_steps": interval})
    assert check_evaluations(make_plan(rarer, LLAMA, Workload.at_most(rarer.train, 15_000, validation=1_300))) == []
