"""The headline with the verdict, for a run created in memory."""

import math
import re
from dataclasses import replace

import pytest

from finetune.decide.outcomes import Outcome
from finetune.decide.report.headline import headline, provisos
from finetune.decide.verdict import Verdict
from tests.builders.kinds import Change
from tests.builders.report_answers import MadeUp
from tests.builders.report_run import Page, load_card
from tests.builders.report_run import run as run
from tests.builders.report_run import undecided as undecided

# ---- The sentence


def test_the_headline_has_model_verdict_and_confidence(run: MadeUp) -> None:
    """The headline suffices for a reader who reads nothing else."""
    text = ": ".join(headline(run.verdict, run.outcomes, run.run))
    assert re.fullmatch(
        (
            r"Deploy: the fine-tuned model answers \d\d\.\d% of 249 held-out examples of "
            r"exception-namer exactly right \(at least \d\d\.\d% with 99% confidence; required: "
            r"55%\); the base model \d\.\d%; all 6 criteria pass\."
        ),
        text,
    ), text


def test_a_verdict_other_than_deploy_names_the_obstacle(undecided: MadeUp) -> None:
    """The headline names the criterion that did not pass, not the one that passed best."""
    text = ": ".join(headline(undecided.verdict, undecided.outcomes, undecided.run))
    assert text.startswith("Iterate: the fine-tuned model answers 59.0% of 249 held-out examples")
    assert "(between 48.2% and 69.0% with 99% confidence; required: 55%)" in text
    assert text.endswith("3 of 6 criteria pass.")


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (1, "points more (at least"),
        (2, "reaches exceptions.macro_f1 0."),
        (3, "answers in 0.047 s on average (at most 0.055 s with 99% confidence; required: 1 s)"),
        (4, "answers in 55.8% less time than the base model (at least 49.0%"),
        (5, "peaks at 0.56 GB of memory (required: 2 GB)"),
    ],
)
def test_every_kind_of_criterion_is_described(run: MadeUp, at: int, told: str) -> None:
    """A criterion that is the only one appears in the headline."""
    text = ": ".join(headline(run.verdict, [run.outcomes[at]], run.run))
    assert told.replace("points more", "a difference of +" if at == 1 else told).split(" (")[0][:20] in text


def test_figures_without_an_interval_are_shown_without_one(run: MadeUp) -> None:
    """A bootstrap may give no interval, and a count of seeds has none: no interval is invented."""
    refused = replace(run.outcomes[1], status="inconclusive", lower=-math.inf, upper=math.inf)
    seeds = Outcome(
        "all of 3 seeds pass", "seeds", "seeds", "inconclusive", 3, 2, None, None, "", "none", "2 of 3 seeds pass"
    )
    undefined = replace(seeds, criterion="x", status="unmeasured", target=math.nan, estimate=None)
    one_sided = replace(run.outcomes[3], lower=None)
    run.outcomes = [refused, seeds, undefined, one_sided]
    run.verdict = replace(run.verdict, name="iterate")
    html = run.html()
    assert html.count('class="interval"') == 1 + 1 and "open to 0.055 s" in html and "estimate 2, no interval" in html
    assert "+51.2 points (required: more than 0 points); 1 of 4 criteria pass." in html


def test_harm_is_reported_first(run: MadeUp) -> None:
    """Lost answers come first in the headline, whichever criteria passed."""
    harm = "worse than the baseline: 60 answers lost, 0 gained (p = 1e-9)"
    verdict = Verdict("abort", "Do not go on.", (harm,), (), harm)
    text = ": ".join(headline(verdict, run.outcomes, run.run))
    assert text == "Abort: the fine-tuned model is worse than the baseline: 60 answers lost, 0 gained (p = 1e-9)."


def test_used_up_test_set_uses_are_in_the_headline(run: MadeUp) -> None:
    """Every criterion passes but the verdict is not deploy, so the headline gives the reason."""
    run.reports["look"] = 6
    text = ": ".join(headline(Verdict("iterate", "Spent.", (), ()), run.outcomes, run.run))
    assert text.endswith("all 6 criteria pass, but this is look 6 at a test set with 5 declared looks.")


def test_caveats_list_every_weakness_of_the_verdict(undecided: MadeUp, change: Change) -> None:
    """Cases: recorded baseline, sampling, clusters, failures, accepted findings, scorers, warnings of the training."""
    told = "\n".join(provisos(undecided.run))
    for part in ("recorded earlier", "Look 2 of 5", "sampled", "cluster", "failed", "cut off", "accepted by the user"):
        assert part in told, part
    assert "could not be scored" in told and "Training:" in told and "agreed with itself in only 50.0%" in told
    undecided.reports["decide"] = change(**{"decide.policy": "point"}).decide
    undecided.reports["look"] = 9
    told = "\n".join(provisos(undecided.run))
    assert "“point”" in told and "look 9 at a test set with 5 declared looks" in told


def test_a_served_candidate_is_not_presented_as_the_adapter(run: MadeUp) -> None:
    """A server may serve another model: all three texts start with this, and none recommends to deploy the adapter."""
    evaluation = run.reports["evaluation"]
    evaluation["candidate"] = {"form": "server", "name": "qwen2", "url": "http://gpu-7.intern:8000/v1"}
    warning = "The results are those of the served model qwen2. Whether it serves this adapter was not checked."
    assert provisos(run.run)[0] == warning
    for text in (run.html(), run.summary(), run.card()):
        assert warning in text and "deploy this adapter" not in text and "gpu-7" not in text
        assert "he served model qwen2 answers" in text
    card = load_card(run.card())
    assert "```" not in card.text and "Whether it serves this adapter was not checked" in card.text
    assert card.data.eval_results is None
    alone = ": ".join(headline(run.verdict, [], run.run))
    assert alone == "Deploy: all 6 outcomes pass: deploy what the server serves."


def test_prompts_without_a_time_are_counted(run: MadeUp) -> None:
    """Prompts without a time may be the slowest, so their number is stated; if there are none, nothing is."""
    assert "could not be timed" not in run.html() + run.card()
    run.reports["cost"]["latency"] |= {"left_out": 4, "baseline": None}
    run.reports["timings"] = [replace(row, baseline_seconds=None) for row in run.reports["timings"]]
    html = Page(run.html())
    assert html.text.count("4 of 64 sampled prompts could not be timed") == 2
    assert "On 98.3% of the 60 timed prompts, the candidate gave the same answer" in html.text
    for text in (run.summary(), run.card()):
        assert "4 of 64 sampled prompts could not be timed" in text
