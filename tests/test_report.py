"""What people read at the end: the page, the summary and the model card, of a run made up in memory."""

import json
import math
import random
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import Config
from finetune.decide.classes import heat, worst_classes
from finetune.decide.drawing import Scale, round_ticks
from finetune.decide.examples import SHOWN, choose_rows, kind_of, show_examples, tag_predictions
from finetune.decide.headline import headline, provisos
from finetune.decide.outcomes import Outcome
from finetune.decide.page import show_groups, show_seeds
from finetune.decide.readings import examples_counted, known_metrics, read_outcomes
from finetune.decide.report import render_card, render_report, render_summary
from finetune.decide.verdict import Suggestion, Verdict
from finetune.decide.words import discreet, percent, plain_markdown, plain_name, shortened, told, visible
from finetune.records import Answer, Prediction, Timing

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
HOSTILE += "\x1b[31m\u202e txt.exe\u2028"
HOSTILE += "| a [link](http://evil.example) `code` @someone #1 $x$\x00"
PROBLEM = {"scorer": "closeness", "side": "baseline", "count": 2, "example": "0007", "reason": "no text to compare"}
OBJECTS = ("decide", "timings")
LABELS = ["AttributeError", "KeyError", "OSError", "RuntimeError", "TypeError", "ValueError"]
AGENT, OTHER = "exception-namer", "function-namer"
SHA = {name: name[0] * 64 for name in ("adapter", "base", "test", "day", "fingerprint", "cost")}
SCORERS: dict[str, dict[str, Any]] = {
    "exact_match": {"scorer": "exact_match", "of": None},
    "exceptions": {"scorer": "classification", "of": [AGENT], "by": "generation", "labels": None},
    "closeness": {"scorer": "chrf", "of": None},
}
CRITERIA: list[dict[str, Any]] = [
    {"rule": "at_least", "metric": "exact_match", "group": AGENT, "threshold": 0.55},
    {"rule": "better_than_baseline", "metric": "exact_match", "group": "all"},
    {"rule": "at_least", "metric": "exceptions.macro_f1", "group": AGENT, "threshold": 0.2},
    {"rule": "latency_at_most", "seconds": 1.0, "improvement": 0.2},
    {"rule": "memory_at_most", "limit": "2 GB"},
]


@dataclass
class MadeUp:
    """All that decide hands to the templates."""

    verdict: Verdict
    outcomes: list[Outcome]
    predictions: list[Prediction]
    reports: dict[str, Any]
    curves: dict[str, list[tuple[float, float]]]

    def html(self) -> str:
        """The page."""
        return render_report(self.verdict, self.outcomes, self.predictions, self.reports, self.curves)

    def summary(self) -> str:
        """The summary."""
        return render_summary(self.verdict, self.outcomes, self.reports)

    def card(self) -> str:
        """The model card."""
        return render_card(self.verdict, self.outcomes, self.reports)


def answer(text: str, reference: str, *, tokens: int = 3, cut: bool = False, failed: str | None = None) -> Answer:
    """An answer with its scores, as evaluate writes it."""
    right = None if failed else float(text == reference)
    scores = {"exact_match": right, "closeness": None if failed else 0.4 + 0.6 * float(text == reference)}
    labels: dict[str, str | None] = {}
    if reference in LABELS:
        scores["exceptions.accuracy"] = right
        labels["exceptions"] = text if text in LABELS else None
    return Answer(text, tokens, not cut, 1.5 if right else 4.0, failed, scores, labels)


def make_predictions(count: int = 445) -> list[Prediction]:
    """Two agents; of the first about 65% are right, of the second 40%; a few are lost, cut off or failed."""
    dice = random.Random(7)
    found = []
    for at in range(count):
        first = at % 9 < 5
        reference = (
            dice.choice([*LABELS, "ValueError", "ValueError"]) if first else dice.choice(["close", "get", "read"])
        )
        right = dice.random() < (0.65 if first else 0.4)
        new = reference if right else dice.choice(LABELS if first else ["open", "write"])
        old = reference if dice.random() < 0.06 else "message: {cmd}: {cmd}: it is not possible to say"
        failed = "the server answered 503" if at % 97 == 50 else None
        cut = at % 61 == 7
        prompt = (
            f"function: check_{at}\nmessage: unsupported command: {{cmd!r}} of {dice.choice(['path', 'stream', 'row'])}"
        )
        found.append(
            Prediction(
                f"{at:016x}",
                AGENT if first else OTHER,
                "cpython",
                f"cluster {at // 2 if at < 40 else at}",
                prompt,
                reference,
                3,
                answer(old, reference, tokens=14, cut=at % 3 > 0),
                answer("" if failed else new, reference, tokens=3 + at % 5, cut=cut, failed=failed),
            )
        )
    return found


def make_groups(predictions: list[Prediction]) -> dict[str, Any]:
    """The groups of the evaluation report."""
    groups: dict[str, Any] = {}
    for group in ("all", AGENT, OTHER):
        members = [item for item in predictions if item.is_of(group)]
        references = [item.reference for item in members]
        sides = {}
        for side in ("baseline", "candidate"):
            answers = [getattr(item, side) for item in members]
            right = [item.scores["exact_match"] or 0.0 for item in answers]
            classed = [
                item.scores["exceptions.accuracy"] or 0.0 for item in answers if "exceptions.accuracy" in item.scores
            ]
            share = sum(right) / len(right)
            sides[side] = {
                "exact_match": share,
                "exceptions.accuracy": sum(classed) / len(classed) if classed else None,
                "exceptions.macro_f1": 0.61 * sum(classed) / len(classed) if classed else None,
                "exceptions.weighted_f1": 0.72 * sum(classed) / len(classed) if classed else None,
                "closeness": 0.4 + 0.6 * share,
                "loss": 5.1 - 4.4 * share,
                "perplexity": math.exp(5.1 - 4.4 * share),
                "mean_tokens": sum(item.tokens or 0 for item in answers) / len(answers),
                "cut_off": sum(item.finished is False for item in answers) / len(answers),
                "failed": sum(item.failed is not None for item in answers),
            }
        groups[group] = {
            "examples": len(members),
            "clusters": len({item.cluster for item in members}),
            "majority_share": max(map(references.count, references)) / len(references),
            **sides,
        }
    return groups


def make_classes(predictions: list[Prediction]) -> dict[str, Any]:
    """The classification block of the evaluation report."""
    found: dict[str, Any] = {"labels": LABELS}
    members = [item for item in predictions if item.agent == AGENT]
    for side in ("baseline", "candidate"):
        confusion = [[0] * (len(LABELS) + 1) for _ in LABELS]
        for item in members:
            given = getattr(item, side).labels["exceptions"]
            column = len(LABELS) if given is None else LABELS.index(given)
            confusion[LABELS.index(item.reference)][column] += 1
        per_class = {}
        for at, label in enumerate(LABELS):
            due, named, hit = sum(confusion[at]), sum(row[at] for row in confusion), confusion[at][at]
            precision, recall = (hit / named if named else 0.0), (hit / due if due else 0.0)
            f1 = 2 * hit / (due + named) if due + named else 0.0
            per_class[label] = {"precision": precision, "recall": recall, "f1": f1, "examples": due}
        found[side] = {"per_class": per_class, "confusion": confusion}
    return {"exceptions": found}


def make_outcomes(decide: Any, groups: dict[str, Any]) -> list[Outcome]:
    """All five criteria pass; the latency has two outcomes."""
    told = [criterion.describe() for criterion in decide.criteria]
    share = groups[AGENT]["candidate"]["exact_match"]
    gain = groups["all"]["candidate"]["exact_match"] - groups["all"]["baseline"]["exact_match"]
    f1 = groups[AGENT]["candidate"]["exceptions.macro_f1"]
    return [
        Outcome(
            told[0], "quality", "pass", 0.55, share, share - 0.07, share + 0.06, "", "Clopper-Pearson", "so many right"
        ),
        Outcome(
            told[1], "quality", "pass", 0.0, gain, gain - 0.05, gain + 0.05, "", "Tango score", "McNemar p = 1e-72"
        ),
        Outcome(told[2], "quality", "pass", 0.2, f1, f1 - 0.06, f1 + 0.08, "", "BCa bootstrap", "6 classes"),
        Outcome(told[3], "latency", "pass", 1.0, 0.0472, 0.0426, 0.0546, "s", "BCa bootstrap", "60 prompts"),
        Outcome(told[3], "latency", "pass", 0.2, 0.558, 0.49, 0.61, "", "BCa bootstrap", "1 - mean / mean, paired"),
        Outcome(told[4], "memory", "pass", 2e9, 564797440, 554045440, 564797440, "bytes", "largest observed", "of 3"),
    ]


def make_reports(decide: Any, predictions: list[Prediction]) -> dict[str, Any]:
    """The reports of all stages."""
    machine = {
        "system": "Linux x86_64",
        "processor": "AMD EPYC",
        "cores": 2,
        "memory_bytes": 25276510208,
        "device": "cpu",
        "arithmetic": {"instructions": "AVX2", "threads": 2},
        "host": "secret-host",
    }
    side = {"p50_seconds": 0.09, "p95_seconds": 0.19, "mean_first_seconds": 0.011}
    tokens = {
        "tokens": 149271,
        "supervised_tokens": 9362,
        "lost_tokens": 0,
        "lost_supervised_tokens": 0,
        "truncated_examples": 0,
    }
    prepared = {"train": "1" * 64, "validation": "2" * 64, "test": SHA["test"]}
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
        "seeds": {
            "runs": [
                {
                    "seed": seed,
                    "adapter_sha256": f"{seed}" * 32,
                    "verdict": "deploy",
                    "estimates": {"exact_match of exception-namer at least 0.55": value},
                }
                for seed, value in ((42, 0.669), (43, 0.652), (44, 0.681))
            ]
        },
        "prepare": {
            "settings": {"sources": [{"name": "cpython", "path": "/home/me/data.jsonl"}]},
            "sources": {
                "cpython": {
                    "place": "/home/me/data.jsonl",
                    "read": 3756,
                    "dropped": {"exact_duplicate": 132, "near_duplicate": 11, "not_successful": 199},
                    "kept": 3414,
                    "splits": {"train": 2731, "validation": 238, "test": 445},
                    "risks": {
                        "e-mail address": {"rows": 12, "first_lines": [3, 8]},
                        "secret": {"rows": 1, "first_lines": [5]},
                    },
                }
            },
            "splits": {
                name: {"examples": size} for name, size in (("train", 2731), ("validation", 238), ("test", 445))
            },
            "prepared_sha256": prepared,
        },
        "validation": {
            "errors": 0,
            "schedule": {"steps": 342},
            "plan": {"memory_bytes": {"peak": 1202381824}, "flops": 2.06e12, "evaluation_flops": 3.8e11},
            "tokens": {"train": tokens, "validation": tokens},
            "findings": [
                {
                    "code": "last-batch-partial",
                    "severity": "note",
                    "cost": "nothing",
                    "where": "params.yaml: train",
                    "what": "the last step takes 11 of 16 examples",
                    "fix": "nothing to do",
                    "accepted": None,
                },
                {
                    "code": "class-imbalance",
                    "severity": "warning",
                    "cost": "quality",
                    "where": "data/prepared",
                    "what": "one class has 52%",
                    "fix": "add others",
                    "accepted": "so is the world",
                },
            ],
        },
        "train": {
            "fingerprint": SHA["fingerprint"],
            "adapter_sha256": SHA["adapter"],
            "tier": "bitwise",
            "attention": "sdpa",
            "micro_batch": 16,
            "accumulation": 1,
            "steps": 342,
            "kept_step": 342,
            "first_validation_loss": 5.0868,
            "validation_loss": 0.7669,
            "last_validation_loss": 0.7669,
            "parameters": {"trainable": 217088, "total": 2186176},
            "warnings": [],
        },
        "train_cost": {"wall_seconds": 233.1, "peak_memory_bytes": 1200857088, "machine": machine},
        "evaluation": {
            "adapter_sha256": SHA["adapter"],
            "test_sha256": SHA["test"],
            "predictions_sha256": SHA["day"],
            "base": {"name": "models/tiny-base", "revision": f"sha256:{SHA['base']}"},
            "candidate": {"form": "adapter", "name": "tiny", "recorded": False},
            "baseline": {"form": "base", "name": "models/tiny-base", "recorded": False},
            "generation": {"do_sample": False, "num_beams": 1, "max_new_tokens": 16, "eos_token_id": [2]},
            "baseline_generation": {"do_sample": False, "num_beams": 1, "max_new_tokens": 16, "eos_token_id": [2]},
            "scorers": SCORERS,
            "problems": [PROBLEM],
            "groups": make_groups(predictions),
            "classes": make_classes(predictions),
            "judges": {},
            "forgetting": {
                "tasks": {
                    "hellaswag": {
                        "examples": 200,
                        "metric": "acc",
                        "baseline": 0.271,
                        "candidate": 0.262,
                        "lower": -0.04,
                        "upper": 0.02,
                    }
                }
            },
        },
        "cost": {
            "adapter_sha256": SHA["adapter"],
            "latency_sha256": SHA["cost"],
            "latency": {
                "prompts": 60,
                "baseline": {"mean_seconds": 0.107, "mean_tokens": 14.3, "tokens_per_second": 133.7, **side},
                "candidate": {"mean_seconds": 0.047, "mean_tokens": 3.15, "tokens_per_second": 66.8, **side},
                "same_length": {"tokens": 16, "baseline_seconds": 0.11, "candidate_seconds": 0.118},
                "identical_answers": 0.983,
                "left_out": 0,
            },
            "memory": {"processes": 3, "largest_bytes": 564797440, "bytes": [554045440, 564797440, 560443392]},
            "settings": {},
            "machine": machine,
            "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0", "peft": "0.21.2"},
        },
    }


def make_curves() -> dict[str, list[tuple[float, float]]]:
    """A training that goes well."""
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
    """Latencies as a clock shows them."""
    dice = random.Random(3)
    return [
        Timing(f"{at}", dice.gauss(0.107, 0.03) + 0.02, 0.01, 14, 0.03 + dice.expovariate(60), 0.01, 3)
        for at in range(count)
    ]


def make_run(change: Callable[..., Config]) -> MadeUp:
    """A complete run that ends in deploy."""
    decide = change(**{"evaluate.scorers": SCORERS, "decide.criteria": CRITERIA}).decide
    predictions = make_predictions()
    reports = make_reports(decide, predictions)
    outcomes = make_outcomes(decide, reports["evaluation"]["groups"])
    verdict = Verdict("deploy", "All 6 outcomes pass: deploy this adapter.", (), ())
    return MadeUp(verdict, outcomes, predictions, reports, make_curves())


def make_undecided(change: Callable[..., Config]) -> MadeUp:
    """A run that ends in iterate, with hostile texts wherever a text of the data or of a model can stand."""
    made = make_run(change)
    first = made.outcomes[0]
    made.outcomes[0] = replace(first, status="inconclusive", estimate=0.59, lower=0.482, upper=0.69, reason=HOSTILE)
    made.outcomes[5] = replace(
        made.outcomes[5], status="unmeasured", estimate=None, lower=None, upper=None, method="none"
    )
    made.outcomes[3] = replace(made.outcomes[3], status="fail", estimate=1.4, lower=1.3, upper=1.52)
    suggestions = (
        Suggestion("more-test-examples", "At this rate 1,204 test examples with at most 493 failures would show it."),
        Suggestion("more-data", f"Add training examples of {HOSTILE}, the group that fails most."),
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
def run(change: Callable[..., Config]) -> MadeUp:
    """A run that ends in deploy."""
    return make_run(change)


@pytest.fixture
def undecided(change: Callable[..., Config]) -> MadeUp:
    """A run that ends in iterate, full of hostile texts."""
    return make_undecided(change)


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
        """What stands in an attribute of this name, anywhere."""
        return [value for key, value in self.attributes if key == name]


# ---- The sentence


def test_the_verdict_is_one_sentence_with_who_what_and_how_sure(run: MadeUp) -> None:
    """A manager reads this and nothing else."""
    text = headline(run.verdict, run.outcomes, run.reports)
    assert re.fullmatch(
        r"Deploy: the fine-tuned model answers \d\d\.\d% of 249 held-out examples of exception-namer exactly right "
        r"\(at least \d\d\.\d% with 99% confidence, 55% was asked\); the base model \d\.\d%; all 6 criteria pass\.",
        text,
    ), text


def test_a_verdict_short_of_deploy_says_what_stands_in_its_way(undecided: MadeUp) -> None:
    """Not the criterion that passed best, but the one that did not."""
    text = headline(undecided.verdict, undecided.outcomes, undecided.reports)
    assert text.startswith("Iterate: the fine-tuned model answers 59.0% of 249 held-out examples")
    assert "(between 48.2% and 69.0% with 99% confidence, 55% was asked)" in text
    assert text.endswith("3 of 6 criteria pass.")


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (1, "points more (at least"),
        (2, "reaches exceptions.macro_f1 0."),
        (3, "answers in 0.047 s on average (at most 0.055 s with 99% confidence, 1 s was asked)"),
        (4, "answers in 55.8% less time than the base model (at least 49.0%"),
        (5, "needs 0.56 GB of memory at its peak (2 GB was asked)"),
    ],
)
def test_every_kind_of_criterion_can_be_told(run: MadeUp, at: int, told: str) -> None:
    """Whatever is judged alone leads the sentence."""
    text = headline(run.verdict, [run.outcomes[at]], run.reports)
    assert told.replace("points more", "a difference of +" if at == 1 else told).split(" (")[0][:20] in text


def test_what_has_no_interval_is_told_and_drawn_without(run: MadeUp) -> None:
    """A bootstrap may refuse, and a count of seeds has none: nothing is made up in its place."""
    refused = replace(run.outcomes[1], status="inconclusive", lower=-math.inf, upper=math.inf)
    seeds = Outcome("all of 3 seeds pass", "seeds", "inconclusive", 3, 2, None, None, "", "none", "2 of 3 seeds pass")
    undefined = replace(seeds, criterion="x", status="unmeasured", target=math.nan, estimate=None)
    one_sided = replace(run.outcomes[3], lower=None)
    run.outcomes = [refused, seeds, undefined, one_sided]
    run.verdict = replace(run.verdict, name="iterate")
    html = run.html()
    assert html.count('class="interval"') == 1 + 1 and "open to 0.055 s" in html and "estimate 2, no interval" in html
    assert "+51.2 points (more than 0 points was asked); 1 of 4 criteria pass." in html


def test_harm_is_said_first(run: MadeUp) -> None:
    """Whatever passed, answers were lost."""
    verdict = Verdict("abort", "Do not go on.", ("worse than the baseline: 60 answers lost, 0 gained (p = 1e-9)",), ())
    text = headline(verdict, run.outcomes, run.reports)
    assert text == "Abort: the fine-tuned model is worse than the baseline: 60 answers lost, 0 gained (p = 1e-9)."


def test_spent_looks_stand_in_the_sentence(run: MadeUp) -> None:
    """Every criterion passes and yet it is no deploy: the reader must learn why."""
    run.reports["look"] = 6
    text = headline(Verdict("iterate", "Spent.", (), ()), run.outcomes, run.reports)
    assert text.endswith("all 6 criteria pass, but this test set has been looked at 6 times where 5 were declared.")


def test_provisos_name_all_that_weakens_the_verdict(undecided: MadeUp, change: Callable[..., Config]) -> None:
    """Recorded baseline, sampling, clusters, failures, accepted findings, scorers, warnings of the training."""
    told = "\n".join(provisos(undecided.reports))
    for part in ("recorded elsewhere", "Look 2 of 5", "sampled", "cluster", "failed", "cut off", "accepted by hand"):
        assert part in told, part
    assert "could not be scored" in told and "Training:" in told and "agreed with itself in only 50.0%" in told
    undecided.reports["decide"] = change(**{"decide.policy": "point"}).decide
    undecided.reports["look"] = 9
    told = "\n".join(provisos(undecided.reports))
    assert "“point”" in told and "look 9 at a test set for which 5 were declared" in told


def test_a_served_candidate_is_not_taken_for_the_adapter(run: MadeUp) -> None:
    """What a server serves may be another model: said first in all three, and nowhere is it this adapter to deploy."""
    evaluation = run.reports["evaluation"]
    evaluation["candidate"] = {"form": "server", "name": "qwen2 at http://gpu-7.intern:8000/v1", "recorded": False}
    warning = "The figures are of the served model qwen2: nobody checked that it is this adapter."
    assert provisos(run.reports)[0] == warning
    for text in (run.html(), run.summary(), run.card()):
        assert warning in text and "deploy this adapter" not in text and "gpu-7" not in text
        assert "he served model qwen2 answers" in text
    card = load_card(run.card())
    assert "```" not in card.text and "Nobody checked that it serves this adapter" in card.text
    assert card.data.eval_results is None
    alone = headline(run.verdict, [], run.reports)
    assert alone == "Deploy: all 6 outcomes pass: deploy what the server serves."


def test_prompts_without_a_time_are_counted(run: MadeUp) -> None:
    """They may be the slowest, so the mean may be better than it is; of all timed none is said."""
    assert "could not be timed" not in run.html() + run.card()
    run.reports["cost"]["latency"] |= {"left_out": 4, "baseline": None}
    run.reports["timings"] = [replace(row, baseline_seconds=None) for row in run.reports["timings"]]
    html = Page(run.html())
    assert html.text.count("4 of 64 sampled prompts could not be timed") == 2
    assert "Of the 60 timed prompts the candidate answered 98.3%" in html.text
    for text in (run.summary(), run.card()):
        assert "4 of 64 sampled prompts could not be timed" in text


# ---- The page


def test_the_page_stands_alone_and_is_the_same_every_time(run: MadeUp) -> None:
    """One file: nothing is fetched, nothing inline escapes the policy, and the same run gives the same bytes."""
    html = run.html()
    page = Page(html)
    assert html == run.html()
    assert html.startswith("<!doctype html>")
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert not {"style", "src", "onclick", "onload"} & {name for name, _ in page.attributes}
    assert page.tags.count("script") == 1 and page.tags.count("style") == 1
    assert all(value.startswith("#") for value in page.values("href"))
    assert {value[1:] for value in page.values("href")} <= set(page.values("id"))
    assert "unsafe" not in page.values("content")[0]
    assert len(html) < 900_000


def test_the_page_has_every_section(run: MadeUp) -> None:
    """In the order in which a reader asks."""
    page = Page(run.html())
    sections = [value for value in page.values("id") if f"{value}-title" in page.values("id")]
    order = "criteria groups classes training examples cost ledger plan findings forgetting seeds provenance"
    assert sections == order.split()
    for text in (
        "e-mail address",
        "so is the world",
        "hellaswag",
        "Seed 43",
        SHA["fingerprint"],
        "0.118 s",
        "\u22120.1%",
    ):
        assert text in page.text, text


def test_no_place_and_no_host_is_told(run: MadeUp) -> None:
    """A report is passed on: whose folder and machine it was is nobody's business."""
    run.reports["evaluation"]["base"]["name"] = "/home/me/models/tiny-base/"
    run.reports["evaluation"]["candidate"]["name"] = "/home/me/out/adapter"
    for text in (run.html(), run.summary(), run.card()):
        assert "/home" not in text and "secret-host" not in text
        assert "tiny-base" in text and SHA["base"] in text


def test_no_text_tells_an_address_a_secret_or_a_folder(run: MadeUp) -> None:
    """Reasons, warnings and settings come from servers, scorers and libraries, which name where they are."""
    failed = "params.yaml: evaluate.candidate: the server http://gpu7.corp.local:8000/v1/chat/completions answered 500 "
    failed += "(x); its log may say more"
    missing = "FileNotFoundError: [Errno 2] No such file or directory: '/home/alice/words.txt'"
    url, base = "https://judge.corp/v1?api_key=SECRET", "/data/models/secret-base"
    evaluation, first = run.reports["evaluation"], run.predictions[0]
    run.predictions[0] = replace(first, candidate=answer("", first.reference, failed=failed))
    evaluation["problems"] = [{**PROBLEM, "scorer": "closeness", "reason": missing}]
    evaluation["scorers"] = {**SCORERS, "taste": {"scorer": "judge", "of": None, "url": url, "instructions": url}}
    evaluation["judges"] = {"taste": {"url": url, "model": base, "agreement": 0.5, "first_failure": failed}}
    evaluation["base"]["name"] = evaluation["baseline"]["name"] = base
    run.outcomes[0] = replace(run.outcomes[0], reason=f"{failed} {missing}", estimate=None, status="unmeasured")
    run.verdict = Verdict("iterate", failed, (missing,), (Suggestion("measure", f"{missing} alice@gpu7.corp"),))
    run.reports["changes"] = [missing]
    run.reports["train"]["warnings"] = [r"C:\Users\alice\cache.bin: slow", failed]
    run.reports["validation"]["findings"][0] |= {"where": base, "what": failed, "fix": f"see {url}"}
    run.reports["validation"]["findings"][1] |= {"accepted": missing}
    html, summary, card = run.html(), run.summary(), run.card()
    for text in (html, summary, card):
        assert not re.search(r"gpu7|corp|8000|/home|alice|SECRET|api_key=|/data/models|Users|://(?=\w)", text)
        assert "the server answered 500" in text and "words.txt" in text and "secret-base" in text
    assert "No answer: params.yaml: evaluate.candidate: the server answered 500 (x)" in Page(html).text


def test_the_data_itself_is_shown_as_it_stands(run: MadeUp) -> None:
    """An address in a prompt is what the model was asked about."""
    text = "fetch http://example.org:80/a?b=c into /home/alice/x.py"
    run.predictions[0] = replace(run.predictions[0], prompt=text, reference=text, candidate=answer(text, "x"))
    assert Page(run.html()).text.count(text) >= 3


def test_shares_of_clustered_examples_have_no_wilson_interval(run: MadeUp) -> None:
    """It takes every example as independent, so it would be too narrow; page and card say why it is missing."""
    why = "no interval: examples come in clusters; the criteria's intervals take that into account"
    groups = run.reports["evaluation"]["groups"]
    groups[AGENT]["clusters"], groups[OTHER]["clusters"] = groups[AGENT]["examples"] - 1, groups[OTHER]["examples"]
    for predictions in (run.predictions, []):
        shown = show_groups(run.reports["evaluation"], predictions)
        rows = {row["group"]: row for row in next(item for item in shown if item["metric"] == "exact_match")["rows"]}
        assert [rows[group]["candidate_bounds"] is None for group in ("all", AGENT, OTHER)] == [True, True, False]
    assert why in Page(run.html()).text and why in run.card()
    for group in groups.values():
        group["clusters"] = group["examples"]
    assert why not in Page(run.html()).text and why not in run.card()


def test_hostile_texts_stay_text(undecided: MadeUp) -> None:
    """They come from the data and from models: no tag, no script, no hidden letter of them may act."""
    html = undecided.html()
    page = Page(html)
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert "</script><script>document" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\ud800-\udfff]", html)
    assert "⟨U+202E⟩" in page.text and "⟨U+001B⟩[31m" in page.text and "⟨U+D800⟩" in page.text
    assert "more characters]" in page.text and len(html) < 900_000
    assert "gpu-7.intern" not in html


def test_a_run_with_the_least_in_it_is_shown(run: MadeUp) -> None:
    """No classes, no forgetting, one seed, nothing drawn, no plan: every part that may be absent is."""
    evaluation, cost = run.reports["evaluation"], run.reports["cost"]
    evaluation |= {"classes": {}, "forgetting": None, "problems": [], "judges": {}}
    run.reports |= {"seeds": None, "changes": []}
    cost["latency"] = dict.fromkeys(cost["latency"]) | {"prompts": 0}
    cost["memory"] = {"processes": 0, "largest_bytes": None, "bytes": []}
    evaluation["generation"] = None
    run.reports["validation"]["plan"] |= {"memory_bytes": None, "flops": None, "evaluation_flops": None}
    run.reports["validation"]["findings"] = []
    run.reports["train"]["first_validation_loss"] = None
    for group in evaluation["groups"].values():
        group["baseline"] = dict.fromkeys(group["baseline"])
    run.curves, run.reports["timings"] = {}, []
    html = run.html()
    assert "n/a" in html and 'id="seeds"' not in html and 'id="classes"' not in html
    assert run.card() and run.summary()


def test_point_policy_is_told_as_unproven(run: MadeUp, change: Callable[..., Config]) -> None:
    """Its intervals are drawn, and nobody may take them for proof."""
    run.reports["decide"] = change(
        **{"evaluate.scorers": SCORERS, "decide.criteria": CRITERIA, "decide.policy": "point"}
    ).decide
    run.verdict = replace(run.verdict, name="deploy-unproven")
    text = Page(run.html()).text
    assert "Deploy, but unproven" in text and "an estimate without proof" in text


# ---- The examples


def kinds(run: MadeUp) -> dict[str, str]:
    """The kind of each prediction by its id."""
    return {row.prediction.id: row.kind for row in tag_predictions(run.predictions, known_metrics(SCORERS))}


def test_regressions_and_fixes_are_told_apart(run: MadeUp) -> None:
    """By the first scorer that scored the example; a failed answer is worse than any other."""
    scored = {"exact_match": (0.0, 1.0)}
    one = run.predictions[0]
    right, wrong = answer(one.reference, one.reference), answer("no", one.reference)
    assert kind_of(replace(one, baseline=right, candidate=wrong), scored) == "regression"
    assert kind_of(replace(one, baseline=wrong, candidate=right), scored) == "fix"
    assert kind_of(replace(one, baseline=wrong, candidate=wrong), scored) == "both-wrong"
    assert kind_of(replace(one, baseline=right, candidate=right), scored) == "both-right"
    failed = answer("", one.reference, failed="503")
    assert kind_of(replace(one, baseline=right, candidate=failed), scored) == "regression"
    assert kind_of(replace(one, baseline=wrong, candidate=failed), scored) == "both-wrong"
    assert (
        kind_of(replace(one, baseline=replace(right, scores={}), candidate=replace(right, scores={})), scored)
        == "unscored"
    )


def test_rows_are_chosen_by_rule(run: MadeUp) -> None:
    """At most so many, none twice, every kind and every agent among them, failures and regressions before all."""
    rows = choose_rows(tag_predictions(run.predictions, known_metrics(SCORERS)))
    ids = [row.prediction.id for row in rows]
    assert len(ids) == len(set(ids)) == SHOWN
    shown = {tag for row in rows for tag in row.tags}
    assert shown == {"failed", "regression", "both-wrong", "cut", "fix", "longest", "both-right"}
    lost = [item for item, kind in kinds(run).items() if kind == "regression"]
    assert 0 < len(lost) <= 60 and set(lost) <= set(ids)
    assert {row.prediction.agent for row in rows} == {AGENT, OTHER}


def test_few_examples_are_all_shown(run: MadeUp) -> None:
    """No rule is needed where everything fits."""
    shown = show_examples(run.predictions[:20], known_metrics(SCORERS))
    assert len(shown["rows"]) == shown["total"] == 20
    assert (
        sum(
            item["total"]
            for item in shown["filters"]
            if item["tag"] in ("regression", "fix", "both-wrong", "both-right")
        )
        == 20
    )


# ---- Classes


def test_many_classes_collapse_to_the_worst() -> None:
    """A matrix of a hundred rows is read by nobody; the answers outside the shown classes are counted all the same."""
    labels = [f"c{at:03}" for at in range(100)]
    per_class = {label: {"f1": at / 100, "examples": 5} for at, label in enumerate(labels)}
    shown = worst_classes(labels, per_class)
    assert shown == labels[:20]
    confusion = [[1] * 101 for _ in labels]
    found = heat(labels, shown, confusion)
    assert found["columns"][-2:] == ["(other classes)", "(none)"]
    assert [cell["count"] for cell in found["rows"][0]["cells"]][-2:] == [80, 1]
    assert {row["total"] for row in found["rows"]} == {101}


# ---- Seeds


def test_the_spread_of_seeds_is_in_the_unit_of_the_criterion(run: MadeUp) -> None:
    """As data/seeds.json holds the runs, or with bare estimates."""
    readings = read_outcomes(run.outcomes, run.reports)
    names = [item.criterion for item in run.outcomes]
    runs: list[dict[str, Any]] = [
        {"seed": 1, "verdict": "deploy", "estimates": {names[0]: 0.7, names[5]: 1e9}},
        {"seed": 2, "verdict": "iterate", "criteria": {names[0]: {"status": "fail", "estimate": 0.5}}},
    ]
    shown = show_seeds({"runs": runs}, readings)
    assert shown is not None and [row["spread"] for row in shown["rows"]] == ["50.0% to 70.0%", "1.00 GB to 1.00 GB"]
    assert shown["rows"][1]["values"] == ["1.00 GB", "n/a"]
    assert show_seeds({"runs": []}, readings) is None


# ---- Drawings and words


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_on_the_scale_and_are_round(low: float, span: float) -> None:
    """Two to seven, evenly apart, none beyond the ends."""
    ticks = round_ticks(low, low + span, 4)
    assert len(ticks) <= 7
    assert all(low - 1e-6 * span - 1e-9 <= tick <= low + span + 1e-6 * span + 1e-9 for tick in ticks)


def test_a_logarithmic_scale_has_room_for_both_ends() -> None:
    """47 ms against 1 s: on a linear scale the interval would be a dot at the left end."""
    scale = Scale(0.03, 1.6, log=True)
    assert scale.at(0.03) == 2 and scale.at(1.6) == 98 and scale.at(99) == 98
    assert scale.ticks() == [0.05, 0.1, 0.2, 0.5, 1.0]


def test_figures_read_as_people_write_them() -> None:
    """Nothing that is not all reads as all."""
    assert [percent(value) for value in (0.0, 0.0001, 0.5, 0.9999, 1.0, None)] == [
        "0.0%",
        "<0.1%",
        "50.0%",
        ">99.9%",
        "100.0%",
        "n/a",
    ]
    assert told(-0.03, "points") == "\u22123.0 points" and told(0.31, "difference") == "+0.310"
    assert shortened("x" * 12, 10) == "xxxxxxxxxx… [2 more characters]"


@given(st.text())
def test_what_is_shown_has_nothing_hidden_in_it(text: str) -> None:
    """And can be written as UTF-8, whatever a model wrote."""
    shown = visible(text)
    shown.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown)


@given(st.text())
def test_markdown_is_not_broken_by_what_it_tells(text: str) -> None:
    """No column, no line, no tag, no link, no mention of its own."""
    shown = plain_markdown(text)
    assert not re.search(r"[\n<>]|(?<!\\)(?:\\\\)*[|\[\]`*]|@\w|://\w", shown)
    assert plain_markdown(3) == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the server http://gpu7:8000/v1 answered", "the server answered"),
        ("see (https://a.corp/v1?api_key=K).", "see (a server)."),
        ("at file:///home/alice/x.py", "at a file"),
        ("'/home/alice/My Files/x.py'", "'x.py'"),
        ("in /home/alice/x.py:12, or ~/a/y.py", "in x.py:12, or y.py"),
        (r"C:\Users\Al Ice\x.py is gone; \\nas\share\y", "x.py is gone; y"),
        ("cwd=/home/alice/", "cwd=a folder"),
        ("alice@gpu7:/mnt/nas/w.bin", "an account:w.bin"),
        ("host gpu7:8000, 10.0.0.7:80, localhost:8000", "a server, a server, a server"),
        ("api_key=abc Bearer abcdef hf_abcdefghijklmnopq", "api_key=… Bearer … …"),
    ],
)
def test_places_and_addresses_are_left_out(text: str, shown: str) -> None:
    """Of an address nothing stays, of an absolute path its last part, unless that is somebody's home."""
    assert discreet(text) == discreet(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "1/2 and/or a 3/4 majority, n/a, TFLOP/s, 11/22/2026, 1 / 2",
        "exceptions.macro_f1 of org/name or org/name@main, pass@1, hit@k",
        "reports/x.json, data/prepared/risks.jsonl, ../x/y, words.py:120, params.yaml: data.sources.0",
        "torch 2.13.0+cpu, /no_think, </think>, key: value, a/b/c",
    ],
)
def test_ordinary_texts_are_left_as_they_are(text: str) -> None:
    """Fractions, names of the Hub, metrics, versions and the repository's own files."""
    assert discreet(text) == text


@given(st.text())
def test_an_address_is_found_among_any_text(text: str) -> None:
    """Whatever stands around it, and however often the text passes by."""
    shown = discreet(f"{text} http://gpu7:1/x?key=K /home/alice/x.py {text}")
    assert "gpu7" not in shown and "K " not in shown.replace(text, "") and "alice" not in discreet(shown)


def test_names_of_models_tell_no_place() -> None:
    """A local folder by its last part, a model of the Hub by its whole name."""
    local = "sha256:" + "a" * 64
    assert plain_name("/home/me/models/tiny-base/") == plain_name("models/tiny-base", local) == "tiny-base"
    assert plain_name("C:\\Users\\me\\base") == plain_name("~/base") == plain_name("../x/base") == "base"
    assert plain_name("Qwen/Qwen2-7B", "a" * 40) == "Qwen/Qwen2-7B"
    assert plain_name("qwen2 at http://gpu-7.intern:8000/v1") == "qwen2"


def test_examples_are_counted_as_the_scorer_was_asked(run: MadeUp) -> None:
    """A scorer of one agent counts that agent's examples alone, also among all."""
    evaluation = run.reports["evaluation"]
    assert examples_counted("exact_match", "all", evaluation) == 445
    assert examples_counted("exceptions.macro_f1", "all", evaluation) == 249
    assert examples_counted("exceptions.macro_f1", OTHER, evaluation) is None
    assert [item.examples for item in read_outcomes(run.outcomes, run.reports)][:3] == [249, 445, 249]


# ---- The summary


def test_the_summary_fits_a_pull_request(run: MadeUp, undecided: MadeUp) -> None:
    """Sixty lines, the sentence first, the hashes last, and nothing in it that acts."""
    for made in (run, undecided):
        text = made.summary()
        assert len(text.splitlines()) <= 60, len(text.splitlines())
        assert text.startswith(f"# {plain_markdown(headline(made.verdict, made.outcomes, made.reports))[:30]}")
        assert all(digest in text.splitlines()[-1] for digest in (SHA["adapter"], SHA["test"], SHA["base"]))
        assert not re.search(r"<(?!!)|(?<!\\)\[|@someone|\n\n\n", text)
    assert "1,204 test examples" in undecided.summary()
    tables = [line for line in run.summary().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {6}


# ---- The model card


def load_card(text: str) -> Any:
    """The card as the Hub's own library reads it, offline."""
    from huggingface_hub import ModelCard

    return ModelCard(text)


def test_the_card_is_metadata_that_the_hub_reads(run: MadeUp) -> None:
    """base_model, library and results, each with the examples it rests on; no licence, as none is known."""
    data = load_card(run.card()).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("tiny-base", "peft", "text-generation")
    assert data.license is None and data.datasets is None and data.model_name == "tiny"
    found = {(item.metric_name, item.dataset_config): item for item in data.eval_results}
    one = found["exact_match", AGENT]
    assert one.metric_value == pytest.approx(
        run.reports["evaluation"]["groups"][AGENT]["candidate"]["exact_match"], abs=1e-6
    )
    assert (one.metric_args["examples"], one.dataset_split, one.dataset_type) == (249, "test", "cpython")
    assert found["exceptions.macro_f1", AGENT].metric_type == "f1"
    assert not [key for key, _ in found if key in ("mean_tokens", "cut_off", "failed")]


def test_the_card_names_datasets_of_the_hub_alone(run: MadeUp) -> None:
    """A reader can open those; a path of the author's is of no use to anybody."""
    run.reports["prepare"]["settings"]["sources"].append({"name": "squad", "hub": "org/squad"})
    run.reports["evaluation"]["base"] = {"name": "Qwen/Qwen2-7B", "revision": "c" * 40}
    text = run.card()
    data = load_card(text).data
    assert data.datasets == ["org/squad"] and data.base_model == "Qwen/Qwen2-7B"
    assert f'from_pretrained("Qwen/Qwen2-7B", revision="{"c" * 40}")' in text


def test_the_card_tells_the_verdict_its_limits_and_its_hashes(run: MadeUp) -> None:
    """What the adapter is good for, and how that is known."""
    text = load_card(run.card()).text
    for part in (
        "**Deploy: the fine-tuned model",
        "## Limits",
        "licences",
        "look 2 of 5",
        "Clopper-Pearson",
        "Decoding: greedy",
    ):
        assert part in text, part
    assert all(digest in text for digest in SHA.values() if digest != SHA["cost"])
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code and compile(code[1], "card", "exec")
    tables = re.findall(r"^\|.*\|$", text, re.M)
    assert {line.count("|") for line in tables} == {8, 7}


def test_the_card_tells_of_decoding_what_is_known(run: MadeUp) -> None:
    """Of recorded answers nobody knows how they were decoded."""
    evaluation = run.reports["evaluation"]
    assert "Decoding: greedy, at most 16 new tokens, the same for both sides." in run.card()
    evaluation["baseline_generation"] = {**evaluation["generation"], "max_new_tokens": 32}
    assert "the baseline's was another (max new tokens: 32)" in run.card()
    evaluation["baseline_generation"] = None
    text = run.card()
    assert "of the baseline's nothing is known" in text and "the same for both" not in text
    evaluation["generation"] = None
    assert "Decoding: not known." in run.card()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_merged_candidate_is_loaded_as_it_was_evaluated(run: MadeUp, quantization: str) -> None:
    """Without PEFT, and in 4 bit where that was asked."""
    run.reports["evaluation"]["candidate"] |= {"form": "merged", "quantization": quantization}
    text = run.card()
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code and compile(code[1], "card", "exec") and "peft" not in code[1] and "make merge" in text
    assert ("load_in_4bit=True" in code[1]) == ("BitsAndBytesConfig" in code[1]) == (quantization == "nf4")
    assert "import AutoModelForCausalLM, AutoTokenizer\n" in code[1] or quantization == "nf4"


def test_figures_without_an_interval_say_where_it_is(run: MadeUp) -> None:
    """An empty cell would read as forgotten."""
    rows = [
        line for line in run.card().splitlines() if line.startswith(("| loss", "| closeness", "| exceptions.macro"))
    ]
    assert len(rows) == 7 and all(row.endswith("| \u2014 |") for row in rows)
    assert "intervals of these are in the criteria" in run.card()


def test_what_is_told_of_changes_fits_the_verdict(run: MadeUp) -> None:
    """A deploy is not said to need something that would change it."""
    for text in (run.html(), run.summary()):
        assert "How far the verdict is from changing" in text and "What would change" not in text
    run.verdict = replace(run.verdict, name="iterate")
    for text in (run.html(), run.summary()):
        assert "What would change the verdict" in text and "How far" not in text


def test_the_card_is_not_broken_by_what_it_tells(undecided: MadeUp) -> None:
    """Names go through a YAML library; texts can't leave their cell, and the code can't be ended."""
    undecided.reports["evaluation"]["base"] = {"name": 'x"); import os  # ```\n<b>', "revision": "c" * 40}
    text = undecided.card()
    data = load_card(text).data
    assert data.model_name == "tiny: # no ---"
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code and compile(code[1], "card", "exec") and "import os" not in code[1].replace("_import_os", "")
    body = text.split("\n---\n", 1)[1]
    spans = re.compile(r"`[^`\n]*`")
    assert not re.search(r"<[a-z/]|@someone|[\x00\x1b\u202e\u2028]", spans.sub("", body))


def test_reports_are_left_as_they_were(run: MadeUp) -> None:
    """What is written to decision.json afterwards must not depend on what was drawn."""
    before = deepcopy({key: value for key, value in run.reports.items() if key not in OBJECTS})
    run.html(), run.summary(), run.card()
    assert json.dumps(before, sort_keys=True) == json.dumps(
        {k: v for k, v in run.reports.items() if k not in OBJECTS}, sort_keys=True
    )
