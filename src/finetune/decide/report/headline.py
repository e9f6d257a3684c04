"""The verdict in one sentence that requires no knowledge of statistics, and its caveats."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.decide.report.formatting import counted, format_short, format_value, name, percent
from finetune.decide.report.readings import NO_INTERVAL, Reading, read_outcomes, side_names
from finetune.decide.run_reports import Decided
from finetune.decide.verdict import Verdict
from finetune.records.examples import ALL
from finetune.reports.cost import LatencyReport
from finetune.reports.evaluation import EvaluationReport

LEADS = {"deploy": "Deploy", "deploy-unproven": "Deploy, but unproven", "iterate": "Iterate", "abort": "Abort"}


def headline(verdict: Verdict, outcomes: Sequence[Any], run: Decided) -> tuple[str, str]:
    """Return the verdict's title, and a sentence on what was or was not achieved, by how much, on what evidence."""
    return LEADS.get(verdict.name, verdict.name), _sentence(verdict, outcomes, run)


def _sentence(verdict: Verdict, outcomes: Sequence[Any], run: Decided) -> str:
    readings = read_outcomes(outcomes, run.reports.evaluation)
    sides = side_names(run.reports.evaluation)
    if verdict.name == "abort" and verdict.harm:
        return f"{sides['candidate']} is {verdict.harm}."
    chosen = leading(readings, verdict)
    if chosen is None:
        sentence = verdict.sentence
        if is_served(run):
            sentence = sentence.replace("deploy this adapter", "deploy what the server serves")
        return f"{sentence[:1].lower()}{sentence[1:]}"
    passed = sum(item.outcome.status == "pass" for item in readings)
    text = clause(chosen, sides, run.confidence, run.decide.policy)
    if passed == len(readings):
        looks = run.decide.looks
        spent = f", but this is look {run.look} at a test set with {looks} declared looks"
        rest = "the only criterion passes" if passed == 1 else f"all {passed} criteria pass"
        return f"{text}; {rest}{spent if run.look > looks else ''}."
    return f"{text}; {passed} of {len(readings)} criteria pass."


def leading(readings: Sequence[Reading], verdict: Verdict) -> Reading | None:
    """Choose the outcome for the sentence: one that was reached, or one that was missed; quality first."""
    short = [item for item in readings if item.outcome.status != "pass"]
    wanted = short if short and not verdict.name.startswith("deploy") else list(readings)
    order = {"fail": 0, "inconclusive": 1, "unmeasured": 2, "pass": 3}

    def rank(item: Reading) -> tuple[bool, int, bool]:
        return item.outcome.about != "quality", order[item.outcome.status], item.outcome.rule != "at_least"

    return min(wanted, key=rank, default=None)


def clause(item: Reading, sides: Mapping[str, str], confidence: float, policy: str) -> str:
    """Phrase one outcome as a clause, e.g. `the base model answers …`."""
    if item.outcome.estimate is None:
        return f"{item.outcome.criterion} could not be measured ({item.outcome.reason})"
    proof = evidence(item, confidence, policy)
    new, old = sides["candidate"], sides["baseline"]
    if item.kind == "seconds" and item.outcome.rule == "latency_at_most":
        return f"{new} answers in {item.estimate} on average ({proof})"
    if item.kind == "gain":
        return f"{new} answers in {item.estimate} less time than {old} ({proof})"
    if item.kind == "bytes":
        return f"{new} peaks at {item.estimate} of memory ({proof})"
    if item.outcome.about != "quality" or item.outcome.metric is None:
        return f"{item.outcome.criterion}: {item.estimate} ({proof})"
    if item.kind in ("points", "difference"):
        both = [
            format_value(value, "share" if item.kind == "points" else "number") for value in (item.candidate, item.base)
        ]
        return f"{new} {achieves(item, both[0])}, {old} {both[1]}: a difference of {item.estimate} ({proof})"
    base = "" if item.base is None else f"; {old} {format_value(item.base, item.kind)}"
    return f"{new} {achieves(item, item.estimate)} ({proof}){base}"


def achieves(item: Reading, figure: str) -> str:
    """Return `answers 66.9% of 242 held-out examples exactly right`, or `reaches a loss of 0.7 on …`."""
    metric = name(item.outcome.metric)
    if item.kind not in ("share", "points"):
        return f"reaches {metric} {figure} on {item.where}"
    if item.outcome.metric == "exact_match":
        return f"answers {figure} of {item.where} exactly right"
    return f"is correct by {metric} on {figure} of {item.where}"


def evidence(item: Reading, confidence: float, policy: str) -> str:
    """State confidence and requirement: `at least 59.5% with 99% confidence; required: 55%`."""
    outcome, requirement = item.outcome, f"required: {item.limit}"
    if policy == "point":
        return f"an estimate without proof; {requirement}"
    if item.kind == "bytes" or item.bounds == NO_INTERVAL:
        return requirement
    bound = outcome.lower if outcome.higher_is_better else outcome.upper
    sure = f"with {100 * confidence:.4g}% confidence"
    if outcome.status == "pass" and bound is not None:
        return f"{item.direction} {format_value(bound, item.kind)} {sure}; {requirement}"
    return f"between {item.bounds.replace(' to ', ' and ')} {sure}; {requirement}"


def is_served(run: Decided) -> bool:
    """Return whether the candidate ran behind a server, which may serve any model."""
    return run.reports.evaluation.candidate.form == "server"


def left_out(latency: LatencyReport) -> str | None:
    """State how many sampled prompts were not timed (they may be the slowest); None if all were."""
    count = latency.left_out
    return f"{count} of {latency.prompts + count} sampled prompts could not be timed" if count else None


def provisos(run: Decided) -> list[str]:
    """List the caveats of the verdict, the most serious first."""
    evaluation, decide, notes = run.reports.evaluation, run.decide, []
    if is_served(run):
        served = side_names(evaluation)["candidate"]
        notes.append(f"The results are those of {served}. Whether it serves this adapter was not checked.")
    if evaluation.baseline.recorded:
        notes.append(
            "The baseline's answers and times were recorded earlier, not measured in the same session as the "
            "candidate's."
        )
    if decide.policy == "point":
        notes.append("The policy is “point”: only estimates were compared, so the result may be due to chance.")
    if run.look > decide.looks:
        due = "a fresh test set is required"
        notes.append(f"This is look {run.look} at a test set with {decide.looks} declared looks: {due}.")
    elif decide.looks > 1:
        notes.append(
            f"Look {run.look} of {decide.looks} at this test set. The overall confidence of "
            f"{100 * decide.confidence:.4g}% is "
            f"required over all looks together, so each bound has a confidence of {100 * run.confidence:.4g}%."
        )
    if evaluation.generation.get("do_sample"):
        notes.append("Answers were sampled: a different seed gives different answers and results.")
    if untimed := left_out(run.reports.cost.latency):
        notes.append(f"{untimed}; these may be the slowest.")
    return [*notes, *_doubts(evaluation), *_known_faults(run)]


def _doubts(evaluation: EvaluationReport) -> list[str]:
    """List examples that are not independent, missing answers, and baselines that a guess would match."""
    whole, notes = evaluation.groups[ALL], []
    if whole.clusters < whole.examples:
        notes.append(
            f"The {whole.examples:,} test examples form {counted(whole.clusters, 'cluster')} (one user, "
            "conversation or prompt each); examples of one cluster are not independent evidence."
        )
    for side, figures in (("candidate", whole.candidate), ("baseline", whole.baseline)):
        if count := figures.get("failed"):
            notes.append(f"The {side} failed to answer {counted(int(count), 'prompt')}.")
    if share := whole.candidate.get("cut_off"):
        notes.append(f"{percent(share)} of the candidate's answers were cut off by the limit of new tokens.")
    for group, measured in evaluation.groups.items():
        right = measured.candidate.get("exact_match")
        if group != ALL and right is not None and right <= measured.majority_share:
            guess = format_short(measured.majority_share, "share")
            notes.append(f"{name(group)}: a majority-class baseline scores {guess}, at least as high.")
    return notes


def _known_faults(run: Decided) -> list[str]:
    """List accepted findings, warnings of the training, and answers that a scorer could not score."""
    accepted = [name(item.code) for item in run.reports.validation.findings if item.accepted]
    notes = []
    if accepted:
        notes.append(f"{counted(len(accepted), 'validation finding')} accepted by the user: {', '.join(accepted)}.")
    for problem in run.reports.evaluation.problems:
        what = f"{counted(problem.count, 'answer')} of the {problem.side} could not be scored"
        notes.append(f"Scorer {name(problem.scorer)}: {what}; the first reason: {name(problem.reason, 160)}")
    for judge, kept in run.reports.evaluation.judges.items():
        agreement = kept.get("agreement")
        if agreement is not None and agreement < 0.8:
            share = percent(agreement)
            notes.append(f"Judge {name(judge)} agreed with itself in only {share} of cases when the order was swapped.")
    return [*notes, *(f"Training: {name(text, 300)}." for text in run.reports.train.warnings)]
