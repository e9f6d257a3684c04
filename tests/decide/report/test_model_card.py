"""The summary and the model card, for a run created in memory."""

import json
import re
from dataclasses import replace

import pytest

from finetune.decide.report.formatting import plain_markdown
from finetune.decide.report.headline import headline
from tests.builders.report_answers import AGENT, OBJECTS, SHA, MadeUp
from tests.builders.report_run import load_card
from tests.builders.report_run import run as run
from tests.builders.report_run import undecided as undecided

# ---- The summary


def test_the_summary_fits_a_pull_request(run: MadeUp, undecided: MadeUp) -> None:
    """The summary has at most 60 lines, the headline first, the hashes last, and no active content."""
    for made in (run, undecided):
        text = made.summary()
        assert len(text.splitlines()) <= 60, len(text.splitlines())
        sentence = ": ".join(headline(made.verdict, made.outcomes, made.run))
        assert text.startswith(f"# {plain_markdown(sentence)[:30]}")
        assert all(digest in text.splitlines()[-1] for digest in (SHA["adapter"], SHA["test"], SHA["base"]))
        assert not re.search(r"<(?!!)|(?<!\\)\[|@someone|\n\n\n", text)
    assert "1,204 test examples" in undecided.summary()
    tables = [line for line in run.summary().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {6}


def test_the_card_has_valid_hub_metadata(run: MadeUp) -> None:
    """It has base_model, library and results with their number of examples; no licence, as none is known."""
    data = load_card(run.card()).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("tiny-base", "peft", "text-generation")
    assert data.license is None and data.datasets is None and data.model_name == "tiny"
    found = {(item.metric_name, item.dataset_config): item for item in data.eval_results}
    one = found["exact_match", AGENT]
    measured = run.reports["evaluation"]["groups"][AGENT]["candidate"]["exact_match"]
    assert one.metric_value == pytest.approx(measured, abs=1e-6)
    assert (one.metric_args["examples"], one.dataset_split, one.dataset_type) == (249, "test", "cpython")
    assert found["exceptions.macro_f1", AGENT].metric_type == "f1"
    assert not [key for key, _ in found if key in ("mean_tokens", "cut_off", "failed")]


def test_the_card_lists_only_datasets_of_the_hub(run: MadeUp) -> None:
    """Readers can open datasets of the Hub; a local path of the author is of no use to them."""
    run.reports["prepare"]["settings"]["sources"].append({"name": "squad", "hub": "org/squad"})
    run.reports["evaluation"]["base"] = {"name": "Qwen/Qwen2-7B", "revision": "c" * 40}
    text = run.card()
    data = load_card(text).data
    assert data.datasets == ["org/squad"] and data.base_model == "Qwen/Qwen2-7B"
    assert f'from_pretrained("Qwen/Qwen2-7B", revision="{"c" * 40}")' in text


def test_the_card_has_verdict_limits_and_hashes(run: MadeUp) -> None:
    """The card states the verdict, its limits, and the hashes of the evidence."""
    text = load_card(run.card()).text
    parts = ("**Deploy: the fine-tuned model", "## Limits", "licences", "look 2 of 5", "Clopper-Pearson", "Decoding: g")
    assert [part for part in parts if part not in text] == []
    assert all(digest in text for digest in SHA.values() if digest != SHA["cost"])
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code and compile(code[1], "card", "exec")
    tables = re.findall(r"^\|.*\|$", text, re.M)
    assert {line.count("|") for line in tables} == {8, 7}


def test_the_card_describes_the_known_decoding(run: MadeUp) -> None:
    """The decoding of recorded answers is unknown, and stated as such."""
    evaluation = run.reports["evaluation"]
    assert "Decoding: greedy, at most 16 new tokens, the same for both sides." in run.card()
    evaluation["baseline_generation"] = {**evaluation["generation"], "max_new_tokens": 32}
    assert "the baseline used different settings (max new tokens: 32)" in run.card()
    evaluation["baseline_generation"] = None
    text = run.card()
    assert "the baseline's settings are not known" in text and "the same for both" not in text


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_card_loads_a_merged_candidate_as_evaluated(run: MadeUp, quantization: str) -> None:
    """The example loads the model without PEFT, and in 4 bit if it was evaluated so."""
    run.reports["evaluation"]["candidate"] |= {"form": "merged", "quantization": quantization}
    text = run.card()
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code and compile(code[1], "card", "exec") and "peft" not in code[1] and "./finetune merge" in text
    assert ("load_in_4bit=True" in code[1]) == ("BitsAndBytesConfig" in code[1]) == (quantization == "nf4")
    assert "import AutoModelForCausalLM, AutoTokenizer\n" in code[1] or quantization == "nf4"


def test_figures_without_an_interval_refer_to_it(run: MadeUp) -> None:
    """An empty cell would look like a mistake."""
    starts = ("| loss", "| closeness", "| exceptions.macro")
    rows = [line for line in run.card().splitlines() if line.startswith(starts)]
    assert len(rows) == 7 and all(row.endswith("| \u2014 |") for row in rows)
    assert "no interval here; the criteria show one" in run.card()


def test_suggested_changes_fit_the_verdict(run: MadeUp) -> None:
    """A deploy verdict does not list changes that would be needed."""
    for text in (run.html(), run.summary()):
        assert "How far the verdict is from changing" in text and "What would change" not in text
    run.verdict = replace(run.verdict, name="iterate")
    for text in (run.html(), run.summary()):
        assert "What would change the verdict" in text and "How far" not in text


def test_text_does_not_break_the_card(undecided: MadeUp) -> None:
    """Names are written by a YAML library; texts cannot leave their cell or end the code block."""
    undecided.reports["evaluation"]["base"] = {"name": 'x"); import os  # ```\n<b>', "revision": "c" * 40}
    text = undecided.card()
    data = load_card(text).data
    assert data.model_name == "tiny: # no ---"
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code and compile(code[1], "card", "exec") and "import os" not in code[1].replace("_import_os", "")
    body = text.split("\n---\n", 1)[1]
    spans = re.compile(r"`[^`\n]*`")
    assert not re.search(r"<[a-z/]|@someone|[\x00\x1b\u202e\u2028]", spans.sub("", body))


def test_reports_are_not_modified(run: MadeUp) -> None:
    """Drawing must not change the reports that are written to decision.json afterwards."""
    reports = {key: value for key, value in run.reports.items() if key not in OBJECTS}
    before = json.dumps(reports, sort_keys=True)
    run.html(), run.summary(), run.card()
    assert json.dumps(reports, sort_keys=True) == before
