"""The report page, for a run created in memory."""

import re
from dataclasses import replace
from typing import Any

from finetune.decide.report.confusion import heat, worst_classes
from finetune.decide.report.examples import SHOWN, choose_rows, kind_of, show_examples, tag_predictions
from finetune.decide.report.readings import known_metrics, read_outcomes
from finetune.decide.report.sections import show_groups, show_seeds
from finetune.reports.evaluation import ClassFigures
from tests.builders.kinds import Change
from tests.builders.report_answers import AGENT, CRITERIA, OTHER, SCORERS, SHA, MadeUp, answer
from tests.builders.report_run import Page
from tests.builders.report_run import run as run
from tests.builders.report_run import undecided as undecided

# ---- The page


def test_the_page_is_self_contained_and_reproducible(run: MadeUp) -> None:
    """The page is one file: it loads nothing, inline code obeys the policy, and the same run gives the same bytes."""
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
    """Sections are in the order in which readers need them."""
    page = Page(run.html())
    sections = [value for value in page.values("id") if f"{value}-title" in page.values("id")]
    order = "criteria groups classes training examples cost ledger plan findings forgetting seeds provenance"
    assert sections == order.split()
    found = ("e-mail address", "so is the world", "hellaswag", "Seed 43", SHA["fingerprint"], "0.118 s", "\u22120.1%")
    assert [text for text in found if text not in page.text] == []


def test_the_page_contains_no_path_or_host(run: MadeUp) -> None:
    """A report may be passed on, so it contains neither paths nor host names."""
    evaluation, url, failure = run.reports["evaluation"], "https://judge.corp/v1", "no answer of /home/me"
    evaluation["base"]["name"] = "/home/me/models/tiny-base/"
    evaluation["candidate"]["name"] = "/home/me/out/adapter"
    evaluation["scorers"] = {**SCORERS, "taste": {"scorer": "judge", "of": None, "url": url, "instructions": "x"}}
    evaluation["judges"] = {"taste": {"url": url, "model": "/home/me/m", "agreement": 0.5, "first_failure": failure}}
    for text in (run.html(), run.summary(), run.card()):
        assert "/home" not in text and "secret-host" not in text and "judge.corp" not in text
        assert "tiny-base" in text and SHA["base"] in text


def test_shares_of_clustered_examples_have_no_wilson_interval(run: MadeUp) -> None:
    """Wilson's interval assumes independent examples and would be too narrow; page and card explain its absence."""
    why = "no interval here: examples come in clusters, which the intervals of the criteria take into account"
    groups = run.reports["evaluation"]["groups"]
    groups[AGENT]["clusters"], groups[OTHER]["clusters"] = groups[AGENT]["examples"] - 1, groups[OTHER]["examples"]
    for predictions in (run.predictions, []):
        shown = show_groups(run.run.reports.evaluation, predictions)
        rows = {row["group"]: row for row in next(item for item in shown if item["metric"] == "exact_match")["rows"]}
        assert [rows[group]["candidate_bounds"] is None for group in ("all", AGENT, OTHER)] == [True, True, False]
    assert why in Page(run.html()).text and why in run.card()
    for group in groups.values():
        group["clusters"] = group["examples"]
    assert why not in Page(run.html()).text and why not in run.card()


def test_hostile_texts_stay_text(undecided: MadeUp) -> None:
    """Texts of the data and of models add no tag, no script and no hidden character."""
    html = undecided.html()
    page = Page(html)
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert "</script><script>document" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\ud800-\udfff]", html)
    assert "⟨U+202E⟩" in page.text and "⟨U+001B⟩[31m" in page.text and "⟨U+D800⟩" in page.text
    assert "more characters]" in page.text and len(html) < 900_000
    assert "gpu-7.intern" not in html


def test_a_minimal_run_is_shown(run: MadeUp) -> None:
    """The page can be drawn without any optional part: classes, forgetting, seeds, drawings, plan."""
    evaluation, cost = run.reports["evaluation"], run.reports["cost"]
    evaluation |= {"classes": {}, "forgetting": None, "problems": [], "judges": {}}
    run.reports |= {"seeds": None, "changes": []}
    cost["latency"] = dict.fromkeys(cost["latency"]) | {"prompts": 0, "left_out": 0, "unanswered": {}}
    cost["memory"] = {"processes": 0, "largest_bytes": None, "bytes": []}
    run.reports["validation"]["plan"] |= {"memory_bytes": None, "flops": None, "evaluation_flops": None}
    run.reports["validation"]["findings"] = []
    run.reports["train"]["first_validation_loss"] = None
    for group in evaluation["groups"].values():
        group["baseline"] = dict.fromkeys(group["baseline"])
    run.curves, run.reports["timings"] = {}, []
    html = run.html()
    assert "n/a" in html and 'id="seeds"' not in html and 'id="classes"' not in html
    assert run.card() and run.summary()


def test_the_point_policy_is_marked_as_unproven(run: MadeUp, change: Change) -> None:
    """The intervals are drawn, but the page says that the verdict does not rest on them."""
    keys = {"evaluate.scorers": SCORERS, "decide.criteria": CRITERIA, "decide.policy": "point"}
    run.reports["decide"] = change(**keys).decide
    run.verdict = replace(run.verdict, name="deploy-unproven")
    text = Page(run.html()).text
    assert "Deploy, but unproven" in text and "an estimate without proof" in text


# ---- The examples


def kind_of_each(run: MadeUp) -> dict[str, str]:
    """Return the kind of each prediction by its id."""
    return {row.prediction.id: row.kind for row in tag_predictions(run.predictions, known_metrics(SCORERS))}


def test_regressions_and_fixes_are_distinguished(run: MadeUp) -> None:
    """The first scorer that scored the example decides; a failed answer is worse than any other."""
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
    bare = replace(right, scores={})
    assert kind_of(replace(one, baseline=bare, candidate=bare), scored) == "unscored"


def test_shown_rows_are_selected_by_rule(run: MadeUp) -> None:
    """The number of rows is limited and none is repeated; every kind and agent is included, failures first."""
    rows = choose_rows(tag_predictions(run.predictions, known_metrics(SCORERS)))
    ids = [row.prediction.id for row in rows]
    assert len(ids) == len(set(ids)) == SHOWN
    shown = {tag for row in rows for tag in row.tags}
    assert shown == {"failed", "regression", "both-wrong", "cut", "fix", "longest", "both-right"}
    lost = [item for item, kind in kind_of_each(run).items() if kind == "regression"]
    assert 0 < len(lost) <= 60 and set(lost) <= set(ids)
    assert {row.prediction.agent for row in rows} == {AGENT, OTHER}


def test_few_examples_are_all_shown(run: MadeUp) -> None:
    """If all examples fit, all are shown."""
    shown = show_examples(run.predictions[:20], known_metrics(SCORERS))
    assert len(shown["rows"]) == shown["total"] == 20
    kind_of_each = ("regression", "fix", "both-wrong", "both-right")
    assert sum(item["total"] for item in shown["filters"] if item["tag"] in kind_of_each) == 20


# ---- Classes


def test_many_classes_collapse_to_the_worst() -> None:
    """A matrix of a hundred rows is unreadable; answers outside the shown classes are still counted."""
    labels = [f"c{at:03}" for at in range(100)]
    half = {"precision": 0.5, "recall": 0.5, "examples": 5}
    per_class = {label: ClassFigures(f1=at / 100, **half) for at, label in enumerate(labels)}
    shown = worst_classes(labels, per_class)
    assert shown == labels[:20]
    confusion = [[1] * 101 for _ in labels]
    found = heat(labels, shown, confusion)
    assert found["columns"][-2:] == ["(other classes)", "(none)"]
    assert [cell["count"] for cell in found["rows"][0]["cells"]][-2:] == [80, 1]
    assert {row["total"] for row in found["rows"]} == {101}


# ---- Seeds


def test_the_spread_of_seeds_is_in_the_unit_of_the_criterion(run: MadeUp) -> None:
    """The runs are those in data/seeds.json."""
    readings = read_outcomes(run.outcomes, run.run.reports.evaluation)
    names = [item.criterion for item in run.outcomes]
    seeds: dict[str, Any] = {
        "1": {"verdict": "deploy", "criteria": {names[0]: {"estimate": 0.7}, names[5]: {"estimate": 1e9}}},
        "2": {"verdict": "iterate", "criteria": {names[0]: {"status": "fail", "estimate": 0.5}}},
    }
    shown = show_seeds(seeds, readings)
    assert shown is not None and [row["spread"] for row in shown["rows"]] == ["50.0% to 70.0%", "1.00 GB to 1.00 GB"]
    assert shown["rows"][1]["values"] == ["1.00 GB", "n/a"]
    assert show_seeds({}, readings) is None
