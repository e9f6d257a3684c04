"""Next steps, the most important first, and what would change the verdict, from outcomes, curves and costs."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from finetune.config.criteria import AtLeast, NotWorseThanBaseline, QualityCriterion
from finetune.config.decide import DecideConfig
from finetune.config.scorers import Metric
from finetune.decide.criteria import Evidence
from finetune.decide.outcomes import Outcome
from finetune.decide.quality import repeated
from finetune.decide.run_reports import RunReports
from finetune.decide.verdict import Suggestion
from finetune.reports.cost import CostReport, LatencyReport
from finetune.reports.train import TrainReport
from finetune.score.metrics import UnmeasuredError, counted, scores_of
from finetune.statistics.decision import Gate
from finetune.statistics.proportions import clopper_pearson, examples_needed, tango

LARGEST_SEARCH = 100_000  # test examples beyond which "more test examples" is not useful advice
ROSE = 1.02  # times the best validation loss: a final loss above that has risen by more than noise
STAYED_HIGH = 0.8  # of the initial training loss: an adapter that learns reduces it by more than a fifth
TENTH = 0.1  # of the run's logged losses, at the start and at the end
Curves = Mapping[str, Sequence[tuple[float, float]]]


def suggest(
    config: DecideConfig,
    outcomes: Sequence[Outcome],
    evidence: Evidence,
    gate: Gate,
    look: int,
    reports: RunReports,
    curves: Curves,
) -> tuple[Suggestion, ...]:
    """Suggest next steps if the verdict is not deploy."""
    advice = []
    if look > config.looks:
        advice.append(
            Suggestion("fresh-test-set", "collect a fresh test set: this one has been evaluated on too often")
        )
    needed = examples_wanted(config, outcomes, evidence, gate)
    advice += [Suggestion("more-test-examples", text) for text in needed]
    quality = [item for item in outcomes if item.about == "quality" and item.status in ("fail", "inconclusive")]
    if quality:
        advice += advise_training(reports.train, curves)
        advice.append(more_data(quality, evidence))
    advice += advise_cost(outcomes, reports.cost)
    missing = [item for item in outcomes if item.status == "unmeasured"]
    return *advice, *(Suggestion("measure", f"{item.criterion}: {item.reason}") for item in missing)


def advise_training(trained: TrainReport, curves: Curves) -> list[Suggestion]:
    """Interpret the curves with regard to epochs, learning rate and rank."""
    advice = []
    best, last = trained.validation_loss, trained.last_validation_loss
    if trained.kept_step == trained.steps:
        text = "the validation loss was still falling at the end: train for more epochs"
        advice.append(Suggestion("more-epochs", text))
    elif last > ROSE * best:
        text = f"the validation loss rose from {best:.3f} (step {trained.kept_step}) to {last:.3f}"
        advice.append(Suggestion("lower-learning-rate", f"{text}: lower the learning rate, or train for fewer epochs"))
    losses = [value for _, value in curves.get("loss", [])]
    part = max(math.ceil(TENTH * len(losses)), 1)
    if len(losses) > 2 and fmean(losses[-part:]) > STAYED_HIGH * fmean(losses[:part]):
        text = f"the training loss stayed high ({fmean(losses[:part]):.3f} to {fmean(losses[-part:]):.3f})"
        advice.append(Suggestion("higher-rank", f"{text}: raise adapter.r, or adapt more modules"))
    return advice


def more_data(missed: Sequence[Outcome], evidence: Evidence) -> Suggestion:
    """Name the group that needs more training examples: the one whose answers most often miss a target."""
    agents = sorted({item.agent for item in evidence.predictions})
    right = {agent: share_right(missed[0].metric, agent, evidence) for agent in agents}
    known = {agent: share for agent, share in right.items() if share is not None}
    worst = min(known, key=lambda agent: known[agent]) if known else missed[0].group
    return Suggestion("more-data", f"add training examples of {worst}, the group with the most failures")


def share_right(name: str | None, agent: str, evidence: Evidence) -> float | None:
    """Return the mean score of an agent's answers in a metric that is a mean, or None."""
    metric = evidence.metrics.get(name or "")
    if metric is None or metric.kind not in ("binary", "mean"):
        metric = next((item for item in evidence.metrics.values() if item.kind in ("binary", "mean")), None)
    members = counted(metric, evidence.predictions, agent) if metric else []
    try:
        return fmean(scores_of(metric, members, "candidate")) if metric and members else None
    except UnmeasuredError:
        return None


def advise_cost(outcomes: Sequence[Outcome], cost: CostReport) -> list[Suggestion]:
    """Suggest how to make answers faster or smaller, based on the measurements."""
    advice = []
    slow = [item for item in outcomes if item.about == "latency" and item.status in ("fail", "inconclusive")]
    if slow:
        advice.append(advise_latency(slow, cost.latency))
    if any(item.about == "memory" and item.status == "fail" for item in outcomes):
        text = (
            "use a smaller base, or a quantized one (evaluate.candidate: merged, nf4): LoRA does not "
            "reduce inference memory"
        )
        advice.append(Suggestion("less-memory", text))
    return advice


def advise_latency(slow: Sequence[Outcome], latency: LatencyReport) -> Suggestion:
    """Suggest shorter answers if their length explains the time, and more prompts if too few were timed."""
    if all(item.status == "inconclusive" for item in slow):
        return Suggestion("more-latency-prompts", "time more prompts (evaluate.latency.prompts), on an idle machine")
    same, candidate = latency.same_length, latency.candidate
    tokens = candidate.mean_tokens if candidate else None
    if same and candidate and tokens and tokens > same.tokens and same.candidate_seconds < candidate.mean_seconds:
        text = f"its answers have {tokens:.0f} tokens; at {same.tokens:.0f} tokens, it would take"
        return Suggestion("shorter-answers", f"train on shorter answers: {text} {same.candidate_seconds:.3g} s")
    return Suggestion("faster-base", "choose a smaller base or a faster server: LoRA does not speed up inference")


def examples_wanted(config: DecideConfig, outcomes: Sequence[Outcome], evidence: Evidence, gate: Gate) -> list[str]:
    """Return how many examples would decide each criterion left open, exactly if that can be computed."""
    exact = {item.describe(): text for item in config.criteria if (text := more_examples(item, evidence, gate))}
    rough = {item.criterion: text for item in outcomes if (text := about_so_many(item, evidence, gate))}
    return [{**rough, **exact}[name] for name in dict.fromkeys([*exact, *rough])]


def about_so_many(item: Outcome, evidence: Evidence, gate: Gate) -> str | None:
    """Estimate how many examples would confirm the estimate of an inconclusive outcome.

    The distance between bound and estimate shrinks with the square root of the number of examples (or clusters).
    """
    if item.status != "inconclusive" or item.metric is None or item.group is None or gate.policy == "point":
        return None
    metric = evidence.metrics[item.metric]
    n = len(counted(metric, evidence.predictions, item.group))
    bound = item.lower if item.higher_is_better else item.upper
    if item.estimate is None or bound is None or not math.isfinite(bound):
        return None
    gap = (item.estimate - item.target) * (1 if item.higher_is_better else -1)
    if gap <= 0:
        return None
    needed = math.ceil(n * ((item.estimate - bound) / gap) ** 2)
    if not n < needed < LARGEST_SEARCH:
        return None
    return f"{item.criterion}: {n:,} test examples are inconclusive; at the same rate, about {needed:,} would prove it"


def more_examples(criterion: object, evidence: Evidence, gate: Gate) -> str | None:
    """Compute how many test examples would confirm the current estimates if the rates stayed the same."""
    if not isinstance(criterion, AtLeast | NotWorseThanBaseline) or gate.policy == "point":
        return None
    metric = evidence.metrics[criterion.metric]
    members = counted(metric, evidence.predictions, criterion.group)
    if metric.kind != "binary" or not members or repeated(members):
        return None
    try:
        if isinstance(criterion, AtLeast):
            return _more_for_threshold(criterion, scores_of(metric, members, "candidate"), gate)
        candidate, baseline = scores_of(metric, members, "candidate"), scores_of(metric, members, "baseline")
        return _more_for_margin(criterion, candidate, baseline, gate)
    except UnmeasuredError:
        return None


def _more_for_threshold(criterion: AtLeast, scores: Sequence[float], gate: Gate) -> str | None:
    n, right = len(scores), int(sum(scores))
    if right / n <= criterion.threshold:
        return None
    if clopper_pearson(right, n, gate.confidence, "lower").lower >= criterion.threshold:
        return None
    needed = n
    while needed < LARGEST_SEARCH:
        failures = round(needed * (n - right) / n)
        wanted = examples_needed(criterion.threshold, failures, gate.confidence)
        if wanted <= needed:
            return (
                f"{criterion.describe()}: {right} of {n} is too little evidence; at the same rate, {needed:,} "
                "test examples "
                f"with at most {failures:,} failures would prove it"
            )
        needed = max(wanted, math.ceil(1.01 * needed))  # determined to within 1%
    return None


def _more_for_margin(
    criterion: NotWorseThanBaseline, candidate: Sequence[float], baseline: Sequence[float], gate: Gate
) -> str | None:
    n = len(candidate)
    gained = sum(mine > theirs for mine, theirs in zip(candidate, baseline, strict=True))
    lost = sum(mine < theirs for mine, theirs in zip(candidate, baseline, strict=True))
    if (gained - lost) / n <= -criterion.margin:
        return None
    needed = n
    while needed < LARGEST_SEARCH:
        rates = round(needed * gained / n), round(needed * lost / n)
        if tango(*rates, needed, gate.confidence, "lower").lower > -criterion.margin:
            break
        needed = math.ceil(1.01 * needed) + 1
    if needed in (n, LARGEST_SEARCH) or needed > LARGEST_SEARCH:
        return None
    return f"{criterion.describe()}: {n} test examples are too few; at the same rate, {needed:,} would prove it"


def what_would_change(config: DecideConfig, outcomes: Sequence[Outcome], evidence: Evidence, gate: Gate) -> list[str]:
    """State for each criterion on right answers the distance to another status, in answers.

    Also state how many examples would decide a criterion that is open.
    """
    advice = []
    for criterion in config.criteria:
        if isinstance(criterion, AtLeast) and evidence.metrics[criterion.metric].kind == "binary":
            text = _distance(criterion, evidence.metrics[criterion.metric], evidence, gate)
            advice += [text] if text else []
    return advice + examples_wanted(config, outcomes, evidence, gate)


def _distance(criterion: QualityCriterion, metric: Metric, evidence: Evidence, gate: Gate) -> str | None:
    """Return how many right answers fewer or more would change the status of a threshold."""
    assert isinstance(criterion, AtLeast)
    members = counted(metric, evidence.predictions, criterion.group)
    if not members or repeated(members) or gate.policy == "point":
        return None
    try:
        n, right = len(members), int(sum(scores_of(metric, members, "candidate")))
    except UnmeasuredError:
        return None
    enough = (k for k in range(n + 1) if clopper_pearson(k, n, gate.confidence, "lower").lower >= criterion.threshold)
    needed = next(enough, None)
    if needed is None:
        return f"{criterion.describe()}: even {n} correct of {n} would not prove it"
    if right >= needed:
        spare = f"{right - needed} fewer would still pass"
        return f"{criterion.describe()}: passes with {right} correct of {n}; {needed} are required, and {spare}"
    return f"{criterion.describe()}: {right} of {n} are correct; {needed} are required"
