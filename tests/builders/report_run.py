"""The reports of runs created in memory: one that deploys, and one that is inconclusive."""

import math
import random
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from finetune.decide.outcomes import About, Outcome, unmeasured
from finetune.decide.verdict import Suggestion, Verdict
from finetune.records.examples import Prediction, Timing
from tests.builders.kinds import Change
from tests.builders.report_answers import AGENT, CRITERIA, HOSTILE, PROBLEM, SCORERS, MadeUp, answer, make_predictions
from tests.builders.stage_reports import (
    MACHINE,
    make_cost,
    make_evaluation,
    make_prepare,
    make_seeds,
    make_train,
    make_validation,
)

ABOUT: tuple[About, ...] = ("quality", "quality", "quality", "latency", "memory")


def make_outcomes(decide: Any, groups: dict[str, Any]) -> list[Outcome]:
    """Return outcomes in which all five criteria pass; the latency has two."""
    share = groups[AGENT]["candidate"]["exact_match"]
    gain = groups["all"]["candidate"]["exact_match"] - groups["all"]["baseline"]["exact_match"]
    f1 = groups[AGENT]["candidate"]["exceptions.macro_f1"]

    def passed(at: int, target: float, estimate: float, lower: float, upper: float, *words: str) -> Outcome:
        unit, method, reason = words
        start = unmeasured(decide.criteria[at], ABOUT[at], target, reason, unit)
        return replace(start, status="pass", estimate=estimate, lower=lower, upper=upper, method=method)

    return [
        passed(0, 0.55, share, share - 0.07, share + 0.06, "", "Clopper-Pearson", "so many right"),
        passed(1, 0.0, gain, gain - 0.05, gain + 0.05, "", "Tango score", "McNemar p = 1e-72"),
        passed(2, 0.2, f1, f1 - 0.06, f1 + 0.08, "", "BCa bootstrap", "6 classes"),
        passed(3, 1.0, 0.0472, 0.0426, 0.0546, "s", "BCa bootstrap", "60 prompts"),
        replace(
            passed(3, 0.2, 0.558, 0.49, 0.61, "", "BCa bootstrap", "1 - mean / mean, paired"),
            criterion=decide.criteria[3].describe_improvement(),
            higher_is_better=True,
        ),
        passed(4, 2e9, 564797440, 554045440, 564797440, "bytes", "largest observed", "of 3"),
    ]


def make_reports(decide: Any, predictions: list[Prediction]) -> dict[str, Any]:
    """Return the reports of all stages."""
    return {
        "recipe": "tiny",
        "seed": 42,
        "look": 2,
        "confidence": 0.99,
        "decide": decide,
        "timings": make_timings(),
        "changes": [
            "It would fall to iterate if 8 more of the 247 answers of exception-namer were wrong.",
            "function-namer is right least often; 90 more test examples would tell whether it reaches 45%.",
        ],
        "seeds": make_seeds(),
        "prepare": make_prepare(),
        "validation": make_validation(),
        "train": make_train(),
        "train_cost": {"wall_seconds": 233.1, "peak_memory_bytes": 1200857088, "machine": MACHINE},
        "evaluation": make_evaluation(predictions),
        "cost": make_cost(),
    }


def make_curves() -> dict[str, list[tuple[float, float]]]:
    """Return the curves of a successful training."""
    steps = range(10, 350, 10)
    return {
        "loss": [(step, 0.6 + 4.4 * math.exp(-step / 35) + 0.04 * math.sin(step)) for step in steps],
        "validation_loss": [(0, 5.09), (85, 1.08), (170, 0.91), (255, 0.83), (340, 0.77)],
        "learning_rate": [(step, 2e-3 * min(step / 30, 0.5 + 0.5 * math.cos(step / 345 * math.pi))) for step in steps],
        "gradient_norm": [(step, 1.1 + 3 * math.exp(-step / 40) + 0.3 * math.sin(step)) for step in steps],
        "tokens_per_second": [(step, 1500 + 400 * math.sin(step / 17)) for step in steps],
        "memory_gigabytes": [(step, 1.02 + 0.18 * (step > 160)) for step in steps],
    }


def make_timings(count: int = 60) -> list[Timing]:
    """Return realistic latencies."""
    dice = random.Random(3)
    return [
        Timing(f"{at}", dice.gauss(0.107, 0.03) + 0.02, 0.01, 14, 0.03 + dice.expovariate(60), 0.01, 3)
        for at in range(count)
    ]


def make_run(change: Change) -> MadeUp:
    """Return a complete run that ends in deploy."""
    decide = change(**{"evaluate.scorers": SCORERS, "decide.criteria": CRITERIA}).decide
    predictions = make_predictions()
    reports = make_reports(decide, predictions)
    outcomes = make_outcomes(decide, reports["evaluation"]["groups"])
    verdict = Verdict("deploy", "All 6 outcomes pass: deploy this adapter.", (), ())
    return MadeUp(verdict, outcomes, predictions, reports, make_curves())


def make_undecided(change: Change) -> MadeUp:
    """Return a run that ends in iterate, with hostile texts in every text of the data and of the models."""
    made = make_run(change)
    first = made.outcomes[0]
    made.outcomes[0] = replace(first, status="inconclusive", estimate=0.59, lower=0.482, upper=0.69, reason=HOSTILE)
    made.outcomes[5] = replace(
        made.outcomes[5], status="unmeasured", estimate=None, lower=None, upper=None, method="none"
    )
    made.outcomes[3] = replace(made.outcomes[3], status="fail", estimate=1.4, lower=1.3, upper=1.52)
    suggestions = (
        Suggestion("more-test-examples", "At this rate 1,204 test examples with at most 493 failures would prove it."),
        Suggestion("more-data", f"Add training examples of {HOSTILE}, the group with the most failures."),
    )
    made.verdict = Verdict("iterate", "3 of 6 outcomes do not pass yet.", ("inconclusive: the first",), suggestions)
    evil = answer(HOSTILE + "x" * 2_000_000, "ValueError", tokens=900, cut=True)
    made.predictions[0] = replace(
        made.predictions[0], prompt=HOSTILE, reference=HOSTILE + "\u05d0\u05d1", candidate=evil
    )
    made.predictions[1] = replace(made.predictions[1], id=HOSTILE, candidate=answer("\ud800lone\tab", "ValueError"))
    evaluation = made.reports["evaluation"]
    evaluation["generation"]["do_sample"] = True
    evaluation["baseline"] = {"form": "recorded", "name": HOSTILE, "recorded": True}
    evaluation["baseline_generation"] = None
    evaluation["problems"] = [{**PROBLEM, "scorer": HOSTILE, "reason": HOSTILE}]
    evaluation["judges"] = {HOSTILE: {"url": "http://gpu-7.intern", "model": HOSTILE, "agreement": 0.5, "failed": 1}}
    made.reports["train"]["warnings"] = [HOSTILE]
    made.reports["recipe"] = "tiny: # no\n---"
    made.reports["prepare"]["sources"][HOSTILE] = {"read": 1, "dropped": {"bad_row": 1}, "kept": 0}
    return made


@pytest.fixture
def run(change: Change) -> MadeUp:
    """Return a run that ends in deploy."""
    return make_run(change)


class Page(HTMLParser):
    """A page's tags and attributes, its ids and links, and its text outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            del self.open[len(self.open) - 1 - self.open[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data

    def values(self, name: str) -> list[str]:
        """Return the values of all attributes with this name."""
        return [value for key, value in self.attributes if key == name]


# ---- The model card


def load_card(text: str) -> Any:
    """Return the card as the Hub's own library parses it offline."""
    from huggingface_hub import ModelCard

    return ModelCard(text)


@pytest.fixture
def undecided(change: Change) -> MadeUp:
    """Return a run that ends in iterate, full of hostile texts."""
    return make_undecided(change)
