"""evaluate: batched answers equal single ones, losses equal the model's own, and evidence is checked."""

import json
import os
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from finetune.config.evaluate import SamplingConfig
from finetune.config.params import Config, params_of
from finetune.errors import DataError
from finetune.evaluate import stage
from finetune.evaluate.answers import Timed, UnansweredError, batches_by_length
from finetune.evaluate.cost import at_same_length, measure_latency, summarize_latency
from finetune.evaluate.generate import (
    PLAIN,
    cut_at_end,
    generate,
    generate_or_halve,
    generation_settings,
    reference_nll,
)
from finetune.evaluate.local import open_local
from finetune.evaluate.pairing import clusters_of
from finetune.evaluate.sides import Sides, open_sides
from finetune.files.atomic import write_json
from finetune.files.strict_json import read_json
from finetune.model.base import load_base
from finetune.model.tokens import IGNORED, load_tokenizer, tokenize, tokenize_prompt
from finetune.paths import FINISHED
from finetune.records.examples import Example, Message, Timing
from finetune.records.io import read_examples, read_predictions, read_timings
from finetune.train import stage as train_stage
from tests.builders.small_run import ROOT, copy_of, validated

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return a workspace with an adapter, and its config."""
    root = tmp_path_factory.mktemp("trained") / "work"
    config, paths = validated(root)
    train_stage.run(params_of("train", config), paths)
    return root, config


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any, list[Any]]:
    """Return the embedded base, its tokenizer, and conversations of many lengths."""
    from finetune.config.params import load_config

    os.chdir(ROOT)
    model = load_config(ROOT / "params.yaml").model
    prompts = ["def read(self)", "class Queue", "Return the item." * 5, "x = 1", "raise ValueError", "import os\n" * 9]
    talks = [(Message("user", prompt), Message("assistant", prompt[::-1])) for prompt in prompts]
    return load_base(model, "cpu").eval(), load_tokenizer(model), talks


def test_batched_answers_equal_those_one_by_one(embedded: tuple[Any, Any, list[Any]]) -> None:
    """Padding and batching affect only the speed, not the answers."""
    model, tokenizer, talks = embedded
    settings = generation_settings(model, tokenizer, 12)
    prompts = [tokenize_prompt(tokenizer, talk[:-1]) for talk in talks]
    batches = list(batches_by_length([len(prompt) for prompt in prompts], 4))
    found = [generate(model, [prompts[at] for at in batch], settings) for batch in batches]
    together = dict(zip(chain(*batches), chain(*found), strict=True))
    alone = [generate(model, [prompt], settings)[0] for prompt in prompts]
    assert [together[at] for at in range(len(prompts))] == alone
    assert len({tuple(answer.tokens) for answer in alone}) > 1


HOSTILE: dict[str, Any] = {
    "do_sample": True,
    "temperature": 5.0,
    "num_beams": 3,
    "repetition_penalty": 9.0,
    "encoder_repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(4, 400)),
    "bad_words_ids": [[number] for number in range(4, 400)],
    "min_new_tokens": 11,
    "forced_eos_token_id": 2,
    "exponential_decay_length_penalty": (1, 3.0),
    "prompt_lookup_num_tokens": 3,
    "return_dict_in_generate": True,
    "max_time": 1e-9,
    "max_length": 1,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_decoding_settings_of_a_base_are_ignored(
    embedded: tuple[Any, Any, list[Any]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Some bases ship a repetition penalty, which would penalise labels that appear in the prompt."""
    model, tokenizer, talks = embedded
    prompts = [tokenize_prompt(tokenizer, talk[:-1]) for talk in talks]
    plain = generate(model, prompts, generation_settings(model, tokenizer, 12))
    monkeypatch.setattr(model.generation_config, name, HOSTILE[name])
    assert generate(model, prompts, generation_settings(model, tokenizer, 12)) == plain


def test_every_decoding_setting_is_known(embedded: tuple[Any, Any, list[Any]]) -> None:
    """A new setting of transformers must not reach the answers from a base's file unnoticed."""
    model, tokenizer, _ = embedded
    sampled = generation_settings(model, tokenizer, 12, SamplingConfig(temperature=1.0, top_p=1.0))
    harmless = {
        *("max_length", "early_stopping", "length_penalty", "bos_token_id", "decoder_start_token_id"),  # overridden, or
        *(
            "use_cache",
            "cache_implementation",
            "cache_config",
            "max_cache_len",
            "prefill_chunk_size",
        ),  # for beams; speed
        *("compile_config", "disable_compile", "continuous_batching_config", "low_memory", "remove_invalid_values"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "transformers_version"),
        *("num_beam_groups", "diversity_penalty", "constraints", "force_words_ids"),  # for beams, or now on the Hub
        *("penalty_alpha", "dola_layers"),
    }
    helpers = {name for name in vars(GenerationConfig()) if name.startswith(("assistant", "num_assistant", "_"))}
    helpers |= {"is_assistant", "max_matching_ngram_size", "target_lookbehind", "speculation_type"}  # assisted decoding
    assert {*vars(GenerationConfig())} - {*PLAIN, *sampled} - harmless - helpers == set()


def test_sampled_answers_are_reproducible_from_their_seed(embedded: tuple[Any, Any, list[Any]]) -> None:
    """Earlier samples have no effect: an interrupted evaluation gives the result of a complete one."""
    model, tokenizer, talks = embedded
    sampling = SamplingConfig(temperature=1.5, top_p=0.9)
    settings = generation_settings(model, tokenizer, 12, sampling)
    assert (settings["do_sample"], settings["temperature"], settings["top_p"]) == (True, 1.5, 0.9)
    prompts = [tokenize_prompt(tokenizer, talk[:-1]) for talk in talks]
    first = generate_or_halve(model, prompts, settings, 7)
    other = generate_or_halve(model, prompts, settings, 8)
    assert generate_or_halve(model, prompts, settings, 7) == first != other


def test_a_batch_without_memory_is_halved(embedded: tuple[Any, Any, list[Any]], monkeypatch: Any) -> None:
    """Halving continues down to one prompt, which then gets the reason; other errors are not treated this way."""
    model, tokenizer, talks = embedded
    settings = generation_settings(model, tokenizer, 4)
    prompts = [tokenize_prompt(tokenizer, talk[:-1]) for talk in talks]
    longest = max(map(len, prompts))
    real, sizes = generate, []

    def limited(model: Any, batch: Any, settings: Any, streamer: Any = None) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2 or longest in map(len, batch):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return real(model, batch, settings)

    monkeypatch.setattr("finetune.evaluate.generate.generate", limited)
    found = generate_or_halve(model, prompts, settings, 1)
    failed = [at for at, answer in enumerate(found) if isinstance(answer, str)]
    assert failed == [at for at, prompt in enumerate(prompts) if len(prompt) == longest]
    assert found[failed[0]] == f"out of memory for a prompt of {longest} tokens"
    assert max(sizes) == len(prompts) and 1 in sizes
    monkeypatch.setattr("finetune.evaluate.generate.generate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate_or_halve(model, prompts, settings, 1)


def test_reference_loss_equals_the_models(embedded: tuple[Any, Any, list[Any]]) -> None:
    """The sum over the supervised tokens equals that of one plain forward pass, whatever the batch and padding."""
    model, tokenizer, talks = embedded
    references = [tokenize(tokenizer, talk) for talk in talks]
    found = reference_nll(model, references, tokenizer.pad_token_id, 4)
    for row, nats in zip(references, found, strict=True):
        with torch.inference_mode():
            loss = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
        assert nats == pytest.approx(float(loss) * sum(label != IGNORED for label in row.labels), rel=1e-4)


def test_the_likeliest_label_has_the_least_loss(embedded: tuple[Any, Any, list[Any]], config: Config) -> None:
    """Each label is scored as the complete answer with its end token; a prompt that is too long is not scored."""
    model, tokenizer, talks = embedded
    side = open_local({"name": "base"}, model, tokenizer, config)
    labels = ["ValueError", "x", "import os"]
    for number, talk in enumerate(talks[:2]):
        example = Example(f"{number}", "s", 1, "a", talk)
        whole = [tokenize(tokenizer, (*talk[:-1], Message("assistant", label))) for label in labels]
        nats = reference_nll(model, whole, tokenizer.pad_token_id, 1)
        assert side.likeliest(example, labels, 2) == labels[nats.index(min(nats))]
    unread = Example("unread", "s", 1, "a", (Message("user", "a"), Message("assistant", "word " * 9000)))
    (answer,) = side.answer([unread], 1)  # a reference that does not fit costs its likelihood, not the run
    assert answer.failed is None and answer.reference_nll is None
    long = Example("long", "s", 1, "a", (Message("user", "word " * 9000), Message("assistant", "x")))
    assert side.likeliest(long, labels, 2) is None
    (answer,) = side.answer([long], 1)
    assert answer.failed is not None and "positions" in answer.failed


def test_a_timed_answer_has_the_time_of_its_first_token(embedded: tuple[Any, Any, list[Any]], config: Config) -> None:
    """The first token comes before the last, and its time is part of the total."""
    model, tokenizer, talks = embedded
    side = open_local({"name": "base"}, model, tokenizer, config)
    timed = side.time(Example("1", "s", 1, "a", talks[0]))
    assert timed.first is not None and timed.tokens is not None
    assert 0 < timed.first < timed.seconds
    assert 1 <= timed.tokens <= config.evaluate.max_new_tokens + 1


def test_answer_ends_at_the_first_end_token() -> None:
    """Padding after the end token is not part of the answer; an answer without end token is cut off."""
    assert cut_at_end([5, 6, 2, 0, 0], [2, 9]).tokens == [5, 6]
    assert cut_at_end([5, 6, 2], [2, 9]).finished
    assert not cut_at_end([5, 6, 7], [2, 9]).finished
    assert cut_at_end([2], [2]).tokens == []


def test_batches_cover_every_prompt_once_longest_first() -> None:
    """The longest batch comes first, so that a lack of memory shows at once."""
    lengths = [3, 9, 1, 9, 4]
    assert list(batches_by_length(lengths, 2)) == [[1, 3], [4, 0], [2]]


def test_latency_alternates_sides_and_excludes_the_warmup(trained: tuple[Path, Any]) -> None:
    """Every prompt is timed once with each side; warm-up prompts are not timed."""
    root, config = trained
    os.chdir(root)
    paths = stage.Paths()
    examples = read_examples(paths.prepared / "test.jsonl")[:3]
    sides = open_sides(config, paths, "cpu", examples)
    measured = measure_latency(sides, examples, 2)
    found = measured.timings
    assert [row.id for row in found] == [example.id for example in examples]
    assert all(row.baseline_seconds > 0 and row.candidate_seconds > 0 for row in found)
    assert all(1 <= row.candidate_tokens <= 5 for row in found)
    assert set(measured.answers) == {example.id for example in examples}
    assert not measured.unanswered
    assert measure_latency(sides, [], 2).timings == []


class Failing:
    """A side that answers only some prompts."""

    def __init__(self, seconds: float | None, bad: str) -> None:
        self.seconds, self.bad = seconds, bad

    def time(self, example: Example) -> Timed | None:
        if example.id == self.bad:
            raise UnansweredError("too slow")
        return None if self.seconds is None else Timed(self.seconds, None, 3, "text")


def test_prompts_without_an_answer_are_counted(example: Any) -> None:
    """Failed prompts are counted without a time; a baseline without recorded times removes none."""
    examples = [example(f"task {at}") for at in range(4)]
    sides = Sides(Failing(1.0, examples[1].id), Failing(0.5, examples[2].id))  # type: ignore[arg-type]
    found = measure_latency(sides, examples, 0)
    assert [row.id for row in found.timings] == [examples[0].id, examples[3].id]
    assert found.unanswered == {"baseline": 1, "candidate": 1}
    assert found.left_out == 2
    assert len(found.answers) == 3
    found = measure_latency(Sides(Failing(None, ""), Failing(0.5, "")), examples, 0)  # type: ignore[arg-type]
    assert [(row.baseline_seconds, row.candidate_seconds) for row in found.timings] == [(None, 0.5)] * 4
    assert summarize_latency(found.timings)["baseline"] is None


def test_groups_and_prompts_form_clusters(example: Any) -> None:
    """Rows of one user, rows of one prompt, and rows linked through both form one cluster."""
    rows = [
        replace(example("one"), group="g"),
        replace(example("two"), group="g"),
        replace(example("two", line=2), group="h"),
        example("three"),
        replace(example("one", line=3), group=None),
    ]
    found = clusters_of(rows)
    assert found[0] == found[1] == found[2] == found[4] != found[3]


def timing(name: str, baseline: tuple[float, int | None], candidate: tuple[float, int | None]) -> Timing:
    """Return seconds and tokens of both sides."""
    return Timing(name, baseline[0], None, baseline[1], candidate[0], None, candidate[1])


def test_short_answers_do_not_count_as_speed() -> None:
    """Both need 0.1 s per token and 0.05 s to start: the candidate is faster only because its answers are short."""
    rows = [
        timing(f"{at}", (0.05 + 0.1 * (10 + at), 10 + at), (0.05 + 0.1 * (2 + at % 3), 2 + at % 3)) for at in range(9)
    ]
    found = at_same_length(rows)
    assert found is not None
    assert (
        found["baseline_seconds"]
        == pytest.approx(found["candidate_seconds"])
        == pytest.approx(0.05 + 0.1 * found["tokens"])
    )
    faster = [
        timing(
            row.id, (row.baseline_seconds, row.baseline_tokens), (row.candidate_seconds - 0.04, row.candidate_tokens)
        )
        for row in rows
    ]
    found = at_same_length(faster)
    assert found is not None
    assert found["baseline_seconds"] - found["candidate_seconds"] == pytest.approx(0.04)


def test_constant_or_unknown_lengths_are_not_controlled_for() -> None:
    """No regression line exists for a single length; lengths that a server does not count are unknown."""
    assert at_same_length([]) is None
    assert at_same_length([timing("a", (1.0, 5), (0.5, 5)), timing("b", (1.1, 5), (0.6, 5))]) is None
    assert at_same_length([timing("a", (1.0, 5), (0.5, None)), timing("b", (1.1, 6), (0.6, 5))]) is None


def test_stage_writes_reproducible_figures(trained: tuple[Path, Any], tmp_path: Path, monkeypatch: Any) -> None:
    """Answers and evaluation.json are equal for every repetition; only cost.json contains measurements."""
    root, config = trained
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    kept = []
    for name in ("a", "b"):
        os.chdir(copy_of(root, tmp_path / name))
        paths = stage.Paths()
        stage.run(params_of("evaluate", config), paths)
        monkeypatch.setattr("finetune.evaluate.cost.measure_memory", lambda *_: [2 * 10**8] * 3)  # once suffices
        kept.append([path.read_bytes() for path in (paths.predictions, paths.reports / "evaluation.json")])
        cost = read_json(paths.reports / "cost.json")
        assert len(cost["memory"]["bytes"]) == 3
        assert min(cost["memory"]["bytes"]) > 10**8
        assert len(read_timings(paths.latency)) == 12  # the test split is smaller than the requested 20
        assert len(read_predictions(paths.predictions)) == len(read_examples(paths.prepared / "test.jsonl"))
    assert kept[0] == kept[1]


@pytest.mark.parametrize("changed", ["adapter", "manifest", "test", "base", "splits"])
def test_changed_evidence_is_refused(trained: tuple[Path, Any], tmp_path: Path, changed: str) -> None:
    """A score on another test set, adapter or base is not evidence, so nothing is evaluated."""
    root, config = trained
    os.chdir(copy_of(root, tmp_path / "run"))
    paths = stage.Paths()
    if changed == "adapter":
        path = paths.adapter / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    elif changed == "manifest":
        report = read_json(paths.reports / "train.json")
        write_json(paths.reports / "train.json", {**report, "adapter_sha256": "0" * 64})
    elif changed == "test":
        test = paths.prepared / "test.jsonl"
        test.write_text("".join(test.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    elif changed == "splits":
        ledger = read_json(paths.reports / "prepare.json")
        ledger["prepared_sha256"]["train"] = "0" * 64
        write_json(paths.reports / "prepare.json", ledger)
    else:
        content = json.loads(Path("base/config.json").read_text(encoding="utf-8"))
        Path("base/config.json").write_text(json.dumps({**content, "rope_theta": 1.0}), encoding="utf-8")
    with pytest.raises(DataError):
        stage.run(params_of("evaluate", config), paths)
    assert not paths.predictions.exists()


def test_checkpoints_of_finished_runs_are_removed(tmp_path: Path) -> None:
    """Only checkpoints that train marked as finished are removed; unfinished runs keep theirs."""
    for name in ("finished-run/checkpoint-3", "other-run/checkpoint-6"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "finished-run" / FINISHED).touch()
    stage.remove_finished(tmp_path)
    stage.remove_finished(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other-run"]


def test_failed_memory_probe_is_reported(trained: tuple[Path, Any], tmp_path: Path, monkeypatch: Any) -> None:
    """A probe that dies is not a measurement of zero bytes."""
    from finetune.errors import MachineError
    from finetune.evaluate.cost import measure_memory

    root, config = trained
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    folder = copy_of(root, tmp_path / "run")
    shutil.rmtree(folder / "out/adapter")
    with pytest.raises(MachineError, match="the memory probe failed"):
        measure_memory(config.evaluate, folder)
