"""A run that is killed and restarted equals an uninterrupted run, bit for bit."""

import random
from pathlib import Path

import pytest

from finetune.files.strict_json import read_json
from tests.builders.resumed import Workshop, newest_step, order, outcome
from tests.builders.resumed import workshop as workshop

pytestmark = pytest.mark.end_to_end

KILLED = -9
ANYWHERE = random.Random(11).sample(range(1, 15), 3)  # a few steps chosen at random
DEATHS = [
    *(("dropout", [f"step {step}"]) for step in ANYWHERE),
    ("dropout", ["micro 7 1", "write 12"]),  # killed twice
    ("dropout", ["write 6"]),
    ("dropout", ["rename 9"]),
    ("dropout", ["evaluation 6"]),
    ("dropout", ["epoch 10"]),
    ("dropout", ["epoch 5", "saved 15"]),
    ("dropout", ["publish", "publish"]),
    ("packed", ["micro 4 1"]),
    ("packed", ["step 8"]),
    ("nf4", ["step 7", "rename 12"]),
    ("spoilt", ["step 10"]),
    ("spoilt", ["saved 12"]),  # early stopping has ended the run at this step
    ("spoilt", ["publish"]),
    ("rare saves", ["step 13"]),
    ("no best", ["step 5"]),
]


def check_order(workshop: Workshop, folder: Path, uninterrupted: Path, number: int, resumed: int) -> None:
    """Check that a start computes the micro-batches of the uninterrupted run from its checkpoint on, and no others."""
    expected = [batch for batch in order(uninterrupted, 1) if batch["step"] >= resumed]
    found = order(folder, number)
    assert found == expected[: len(found)]
    if number == workshop.start.counts[folder]:
        assert len(found) == len(expected)


@pytest.mark.parametrize(("setting", "deaths"), DEATHS, ids=lambda value: str(value))
def test_a_resumed_run_equals_an_uninterrupted_one(workshop: Workshop, setting: str, deaths: list[str]) -> None:
    """A resumed run has the weights, optimizer, logged numbers and order of examples of an uninterrupted one."""
    uninterrupted, folder = workshop.uninterrupted(setting), workshop.ready(setting)
    resumed = [0]
    for death in deaths:
        assert workshop.start(folder, death) == KILLED, workshop.start.output(folder)
        assert not (folder / "out/adapter").exists()
        resumed.append(newest_step(folder))
    assert workshop.start(folder) == 0, workshop.start.output(folder)
    for number, step in enumerate(resumed, start=1):
        check_order(workshop, folder, uninterrupted, number, step)
    assert outcome(folder) == outcome(uninterrupted)
    assert read_json(folder / "reports/train_cost.json")["resumed_from_step"] == resumed[-1]
    assert len(list(folder.glob("work/checkpoints/*/finished"))) == 1


def test_each_setting_exercises_its_feature(workshop: Workshop) -> None:
    """Each setting exercises what its name says; otherwise the comparisons above would prove nothing."""
    batches = order(workshop.uninterrupted("dropout"), 1)
    assert [sum(batch["step"] == step for batch in batches) for step in range(15)] == [2, 2, 2, 2, 1] * 3
    epoch = sorted(name for batch in batches[:9] for ids in batch["ids"] for name in ids)
    assert len(set(epoch)) == 36
    assert all(
        sorted(name for batch in batches[at : at + 9] for ids in batch["ids"] for name in ids) == epoch
        for at in (9, 18)
    )
    packed = order(workshop.uninterrupted("packed"), 1)
    assert max(len(ids) for batch in packed for ids in batch["ids"]) > 1
    spoilt = outcome(workshop.uninterrupted("spoilt")).report
    assert spoilt["kept_step"] < spoilt["steps"] < spoilt["planned_steps"]
    assert outcome(workshop.uninterrupted("rare saves")).report["kept_step"] == spoilt["kept_step"]
    assert spoilt["kept_step"] % 6  # no multiple of 6, so "rare saves" does not save at this step
    assert outcome(workshop.uninterrupted("nf4")).adapter != outcome(workshop.uninterrupted("dropout")).adapter
