"""The base is complete and its parts fit together; every defect is a finding, never a traceback."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.builders.checked_base import base as base
from tests.builders.checked_base import edit, examine, found
from tests.builders.checked_base import whole as whole
from tests.builders.checked_settings import finding_text

INDEX = "model.safetensors.index.json"
NO_MODEL = '{"version": "1.0", "model": {"type": "Nope"}}'


def test_a_complete_base_has_no_finding(base: Path) -> None:
    """A complete base passes all checks below, and provides everything that later checks need."""
    known = examine()
    assert known.findings == []
    assert known.identity is not None and known.identity["revision"].startswith("sha256:")
    assert known.architecture is not None and known.architecture.class_name == "Qwen2ForCausalLM"
    assert known.tokenizer is not None


# ---- Weights


def split_in_two(base: Path) -> None:
    """Move the weights to two shards, as listed in the index."""
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    shutil.copy(base / "model.safetensors", base / names[1])
    (base / "model.safetensors").rename(base / names[0])
    (base / INDEX).write_text(json.dumps({"weight_map": dict(zip("abc", [*names, names[0]], strict=True))}))


def test_a_missing_shard_is_reported_by_name(base: Path) -> None:
    """A download was interrupted; transformers would fail only after loading the first shard."""
    split_in_two(base)
    assert found() == []
    (base / "model-00002-of-00002.safetensors").unlink()
    (finding,) = examine().findings
    assert finding_text(finding, "base-incomplete") == (
        "params.yaml: model.base: base: 1 of 2 weight files missing (model-00002-of-00002.safetensors); "
        "download the base again (hf download), or copy it completely"
    )


@pytest.mark.parametrize("size", [-100, 0, 5])
def test_truncated_weights_are_reported_by_name(base: Path, size: int) -> None:
    """The usual broken download: the header announces more bytes than exist, or is itself truncated."""
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    (finding,) = examine().findings
    assert finding.code == "base-incomplete"
    assert finding.message == "base/model.safetensors: a file that is truncated or damaged"


def test_every_damaged_shard_is_reported(base: Path) -> None:
    """All damaged shards are reported at once, so that one download fixes them."""
    split_in_two(base)
    for path in base.glob("*.safetensors"):
        path.write_bytes(b"no tensors")
    assert found() == ["base-incomplete"] * 2


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_without_shards_is_reported(base: Path, index: str) -> None:
    """An invalid index is a finding about that file."""
    (base / "model.safetensors").unlink()
    (base / INDEX).write_text(index, encoding="utf-8")
    (finding,) = examine().findings
    assert finding.message == f"base/{INDEX}: an index that lists no shards"


def test_a_single_file_takes_precedence_over_an_index(base: Path) -> None:
    """transformers prefers the single file, so a leftover index has no effect."""
    (base / INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}), encoding="utf-8")
    assert found() == []


def test_pickled_weights_are_refused(base: Path) -> None:
    """Loading a pickle can run code; a pickle beside safetensors is ignored."""
    shutil.copy(base / "model.safetensors", base / "pytorch_model.bin")
    assert found() == []
    (base / "model.safetensors").unlink()
    (finding,) = examine().findings
    assert finding_text(finding, "base-unsafe") == (
        "params.yaml: model.base: base has only pickled weights (pytorch_model.bin); use a "
        "revision with safetensors, or convert it once"
    )
    (base / "pytorch_model.bin").unlink()
    (finding,) = examine().findings
    assert finding.message == "base: no weights"


def test_a_broken_link_or_a_folder_is_not_a_weights_file(base: Path) -> None:
    """The Hub's cache contains links, so a broken link is a finding and not a traceback."""
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to("../blobs/nothing")
    assert found() == ["base-incomplete"]
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").mkdir()
    assert found() == ["base-incomplete"]


# ---- config.json and generation_config.json


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"architectures": ["Qwen2ForNothing"]}, "has the class Qwen2ForNothing, but qwen2 has Qwen2ForCausalLM"),
        ({"architectures": "Qwen2Model"}, "has the class Qwen2Model, but qwen2 has Qwen2ForCausalLM"),
        ({"model_type": "qwen99"}, "has the model_type 'qwen99', which is not a causal language model"),
        ({"model_type": "t5"}, "has the model_type 't5', which is not a causal language model"),
        ({"model_type": None}, "has the model_type None, which is not a causal language model"),
        ({"model_type": ["qwen2"]}, "has the model_type ['qwen2'], which is not a causal language model"),
        ({"num_attention_heads": "two"}, "is not one of qwen2: Validation error for field 'num_attention_heads'"),
        ({"num_hidden_layers": 3}, "is not one of qwen2: Class validation error"),
    ],
)
def test_a_config_without_a_known_model_is_a_finding(base: Path, keys: dict[str, Any], what: str) -> None:
    """The rest of the base is still checked."""
    edit(base / "config.json", **keys)
    known = examine()
    (finding, *others) = known.findings
    assert finding.code == "base-class-unknown"
    assert finding.message.startswith(f"base: its config.json {what}")
    assert finding.remedy == "use a base that transformers supports, or fix that file"
    assert "\n" not in finding.message
    assert known.architecture is None
    assert {other.code for other in others} <= {"base-incomplete"}  # some prevent the tokenizer, too


@pytest.mark.parametrize(
    "keys",
    [
        {"num_attention_heads": 0},
        {"vocab_size": -3},
        {"hidden_act": "nothing_known"},
    ],
)
def test_a_config_without_a_decoder_is_a_finding(base: Path, keys: dict[str, Any]) -> None:
    """Each of these configs fails in a different place of transformers."""
    edit(base / "config.json", **keys)
    (finding,) = examine().findings
    assert finding.code == "base-class-unknown"
    assert finding.message.startswith("no decoder can be built from its ")


def test_a_base_without_a_position_limit_is_accepted(base: Path) -> None:
    """BLOOM's ALiBi has no limit of positions, so every length is allowed."""
    bloom = {"model_type": "bloom", "hidden_size": 64, "n_head": 4, "n_layer": 2, "vocab_size": 5000}
    (base / "config.json").write_text(json.dumps(bloom), encoding="utf-8")
    (finding,) = examine().findings  # these weights are not BLOOM's
    assert finding.message.startswith(
        "base: no weights for lm_head.weight (30 such); its files have model.embed_tokens"
    )
    assert found(train__max_length=100_000) == [finding.code]


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_broken_config_is_a_finding(base: Path, content: str) -> None:
    """Cases: truncated, not an object, not UTF-8."""
    (base / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    known = examine()
    assert {finding.code for finding in known.findings} == {"base-incomplete"}
    assert "base/config.json" in known.findings[0].message
    assert known.findings[0].remedy == "fix it or download it again"


def test_a_missing_config_is_a_finding(base: Path) -> None:
    """The finding names the three places that were searched."""
    (base / "config.json").unlink()
    (finding,) = examine().findings
    assert finding_text(finding, "base-missing") == (
        "params.yaml: model.base: base: no config.json in the folder base, in the Hugging Face cache at this revision, "
        "or in models/architectures/base; download the base, or put its config.json there"
    )


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        *(("generation_config.json", text, "base/generation_config.json can't be read (") for text in ("{", "[]")),
        *(("tokenizer.json", text, "the tokenizer of base does not load: ") for text in ("{", "{}", "[]", NO_MODEL)),
    ],
)
def test_another_broken_file_is_a_finding(base: Path, name: str, content: str, what: str) -> None:
    """One file defines where generation stops; for the other, each library raises its own kind of error."""
    (base / name).write_text(content, encoding="utf-8")
    (finding,) = examine().findings
    assert finding.code == "base-incomplete"
    assert finding.message.startswith(what)


def test_rows_beyond_the_position_limit_are_a_finding(base: Path) -> None:
    """At the limit there is no finding; beyond it are positions that the base was not trained on."""
    edit(base / "config.json", max_position_embeddings=64)
    assert found(train__max_length=64) == []
    (finding,) = examine(train__max_length=65).findings
    assert finding_text(finding, "length-beyond-base") == (
        "params.yaml: train.max_length: 65 is more than the 64 positions of the base; use 64 or less"
    )


# ---- Tokenizer and embeddings


def test_a_missing_tokenizer_is_a_finding(base: Path) -> None:
    """From a folder without one, transformers silently makes a tokenizer without a vocabulary."""
    for path in base.glob("tokenizer*"):
        path.unlink()
    (finding,) = examine().findings
    assert finding.code == "base-incomplete"
    assert finding.message == "the tokenizer of base does not load: it has no vocabulary"


def resize(base: Path, rows: int) -> None:
    """Give the embeddings of a base another number of rows."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(rows)
    model.save_pretrained(base)


def test_a_token_without_an_embedding_is_a_finding(base: Path) -> None:
    """On a GPU, the index error would not name the cause; more embedding rows than tokens are usual and harmless."""
    rows = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    resize(base, rows + 8)
    assert found() == []
    resize(base, rows - 1)
    (finding,) = examine().findings
    assert finding_text(finding, "tokens-without-embeddings") == (
        f"params.yaml: model.base: the tokenizer has {rows} tokens, but the embeddings of the base have "
        f"{rows - 1} rows; "
        "use the tokenizer of the base, or set model.pad_token to one of its tokens"
    )


@pytest.mark.parametrize("poor", ["zero", "copied"])
def test_an_untrained_control_token_is_a_finding(base: Path, poor: str) -> None:
    """Rows of zeros and copied rows are typical of tokens that were added to a trained base."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    start, end = AutoTokenizer.from_pretrained(base).convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    weights = load_file(base / "model.safetensors")
    rows = weights["model.embed_tokens.weight"]
    if poor == "zero":
        rows[end] = 0
    else:
        rows[end] = rows[start]
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    (finding,) = examine().findings
    told = {"zero": "<|im_end|>", "copied": "<|im_start|>, <|im_end|>"}[poor]
    if poor == "copied":
        assert set(finding.message.split(": ")[0].split(", ")) == set(told.split(", "))
    else:
        assert finding.message == f"{told}: zero or copied embeddings, so the base was not trained on them"
    assert (finding.code, finding.severity) == ("tokens-untrained", "warning")


# ---- Padding


def test_padding_with_the_end_token_is_a_note(base: Path) -> None:
    """Padding with the end token is harmless here, because the labels come from the template."""
    (finding,) = examine(model__pad_token="<|im_end|>").findings
    assert finding_text(finding, "pad-is-end") == (
        "params.yaml: model.pad_token: padding and end of sequence share a token (<|im_end|>); "
        "end tokens of answers are still trained on; nothing to do"
    )


def test_a_missing_padding_token_is_reported_with_a_remedy(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bases of Llama and Mistral have none; the advised setting removes the finding."""
    from transformers import AutoTokenizer

    load = AutoTokenizer.from_pretrained

    def without_padding(*args: Any, **options: Any) -> Any:
        tokenizer = load(*args, **options)
        tokenizer.pad_token = None
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", without_padding)
    (finding,) = examine().findings
    assert (
        finding_text(finding, "pad-missing")
        == "params.yaml: model.pad_token: base has no padding token; write '<|endoftext|>'"
    )
    assert found(model__pad_token="<|endoftext|>") == []


def test_an_invalid_padding_token_is_reported(base: Path) -> None:
    """Adding the token to the vocabulary would give it no embedding."""
    (finding,) = examine(model__pad_token="[PAD]").findings
    assert finding_text(finding, "pad-missing") == (
        "params.yaml: model.pad_token: [PAD] is not a token of base; use one of its tokens, like <|im_end|>"
    )
