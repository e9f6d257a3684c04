"""The base: whole or not, its parts made for each other or not. Whatever is wrong is a finding, never a traceback."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.__main__ import main
from finetune.config import parse_config
from finetune.validate.base_checks import Base, examine_base
from tests.small_run import build_base, params, workspace

INDEX = "model.safetensors.index.json"
COMMIT = "a1" * 20
TURNS = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{% else %}{{ message.content }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with nothing wrong."""
    folder = tmp_path_factory.mktemp("whole") / "base"
    build_base(folder)
    return folder


@pytest.fixture
def base(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to break, in the present directory under the name `base`."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(whole, tmp_path / "base"))


def examine(**changes: Any) -> Base:
    """What is found out about the base of the small run, with keys changed."""
    return examine_base(parse_config(params(**changes), "params.yaml"), Path())


def found(**changes: Any) -> list[str]:
    """The codes of the findings."""
    return [finding.code for finding in examine(**changes).findings]


def edit(path: Path, **keys: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    content = json.loads(path.read_text(encoding="utf-8")) | keys
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def template(base: Path, text: str) -> None:
    """Give the base another chat template."""
    (base / "chat_template.jinja").write_text(text, encoding="utf-8")


def test_a_whole_base_has_no_finding(base: Path) -> None:
    """The counterpart of all tests below; and everything that the later checks need is known."""
    known = examine()
    assert known.findings == []
    assert known.identity is not None and known.identity["revision"].startswith("sha256:")
    assert known.architecture is not None and known.architecture.class_name == "Qwen2ForCausalLM"
    assert known.tokenizer is not None


# ---- Weights


def split_in_two(base: Path) -> None:
    """The weights under the names of two shards, as the index tells."""
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    shutil.copy(base / "model.safetensors", base / names[1])
    (base / "model.safetensors").rename(base / names[0])
    (base / INDEX).write_text(json.dumps({"weight_map": dict(zip("abc", [*names, names[0]], strict=True))}))


def test_a_missing_shard_is_told_by_name(base: Path) -> None:
    """A download that ended early; transformers would tell after the first shard was loaded."""
    split_in_two(base)
    assert found() == []
    (base / "model-00002-of-00002.safetensors").unlink()
    (finding,) = examine().findings
    assert str(finding) == (
        "params.yaml: model.base: base: 1 of 2 weight files missing (model-00002-of-00002.safetensors); "
        "fetch the base again (hf download), or copy it whole"
    )
    assert (finding.code, finding.severity) == ("base-incomplete", "error")


@pytest.mark.parametrize("size", [-100, 0, 5])
def test_weights_that_are_cut_off_are_told_by_name(base: Path, size: int) -> None:
    """The commonest broken download: the header speaks of more bytes than there are, or is not there itself."""
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    (finding,) = examine().findings
    assert finding.code == "base-incomplete"
    assert finding.what == "base/model.safetensors: a file that is cut off or damaged"


def test_every_damaged_shard_is_told(base: Path) -> None:
    """Fetching one again and failing at the next would take a night each."""
    split_in_two(base)
    for path in base.glob("*.safetensors"):
        path.write_bytes(b"no tensors")
    assert found() == ["base-incomplete"] * 2


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_names_no_shard_is_told(base: Path, index: str) -> None:
    """Broken JSON in any form is a finding about that file."""
    (base / "model.safetensors").unlink()
    (base / INDEX).write_text(index, encoding="utf-8")
    (finding,) = examine().findings
    assert finding.what == f"base/{INDEX}: an index that names no shard"


def test_the_one_file_goes_before_an_index(base: Path) -> None:
    """transformers looks for it first, so an index left from another conversion is no matter."""
    (base / INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}), encoding="utf-8")
    assert found() == []


def test_pickled_weights_alone_are_refused(base: Path) -> None:
    """A pickle runs code when it is loaded; beside safetensors it is left alone."""
    shutil.copy(base / "model.safetensors", base / "pytorch_model.bin")
    assert found() == []
    (base / "model.safetensors").unlink()
    (finding,) = examine().findings
    assert str(finding) == (
        "params.yaml: model.base: base holds only pickled weights (pytorch_model.bin); "
        "use a revision with safetensors, or convert it once"
    )
    assert finding.code == "base-unsafe"
    (base / "pytorch_model.bin").unlink()
    (finding,) = examine().findings
    assert finding.what == "base: no weights"


def test_a_link_into_nowhere_and_a_folder_of_that_name_are_no_weights(base: Path) -> None:
    """A copy of the Hub's cache holds links; both were a traceback when the files were hashed."""
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
        ({"architectures": ["Qwen2ForNothing"]}, "names the class Qwen2ForNothing, but qwen2 has Qwen2ForCausalLM"),
        ({"architectures": "Qwen2Model"}, "names the class Qwen2Model, but qwen2 has Qwen2ForCausalLM"),
        ({"model_type": "qwen99"}, "names the model_type 'qwen99', which no causal language model has"),
        ({"model_type": "t5"}, "names the model_type 't5', which no causal language model has"),
        ({"model_type": None}, "names the model_type None, which no causal language model has"),
        ({"model_type": ["qwen2"]}, "names the model_type ['qwen2'], which no causal language model has"),
        ({"num_attention_heads": "two"}, "is not one of qwen2: Validation error for field 'num_attention_heads'"),
        ({"num_hidden_layers": 3}, "is not one of qwen2: Class validation error"),
    ],
)
def test_a_config_that_names_no_model_is_a_finding(base: Path, keys: dict[str, Any], what: str) -> None:
    """The rest of the base is examined all the same."""
    edit(base / "config.json", **keys)
    known = examine()
    (finding, *others) = known.findings
    assert finding.code == "base-class-unknown"
    assert finding.what.startswith(f"base: its config.json {what}")
    assert finding.fix == "use a base that transformers knows, or mend that file"
    assert "\n" not in finding.what
    assert known.architecture is None
    assert {other.code for other in others} <= {"base-incomplete"}  # of some such configs no tokenizer is made either


@pytest.mark.parametrize(
    "keys",
    [
        {"num_attention_heads": 0},
        {"vocab_size": -3},
        {"hidden_act": "nothing_known"},
        {
            "model_type": "mamba",
            "architectures": ["MambaForCausalLM"],
            "layer_types": None,
            "num_attention_heads": None,
        },
    ],
)
def test_a_config_that_makes_no_decoder_is_a_finding(base: Path, keys: dict[str, Any]) -> None:
    """Each breaks in another line of transformers."""
    edit(base / "config.json", **keys)
    (finding,) = examine().findings
    assert finding.code == "base-class-unknown"
    assert finding.what.startswith("no decoder is made of its ")


def test_a_base_without_a_bound_on_positions_is_no_mistake(base: Path) -> None:
    """BLOOM's ALiBi knows none, so no length is beyond it."""
    bloom = {"model_type": "bloom", "hidden_size": 64, "n_head": 4, "n_layer": 2, "vocab_size": 5000}
    (base / "config.json").write_text(json.dumps(bloom), encoding="utf-8")
    assert found(train__max_length=100_000) == []


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_broken_config_is_a_finding(base: Path, content: str) -> None:
    """Cut off, no object, no UTF-8."""
    (base / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    known = examine()
    assert {finding.code for finding in known.findings} == {"base-incomplete"}
    assert "base/config.json" in known.findings[0].what
    assert known.findings[0].fix == "mend it or fetch it again"


def test_a_missing_config_is_a_finding(base: Path) -> None:
    """With the three places where one was looked for."""
    (base / "config.json").unlink()
    (finding,) = examine().findings
    assert str(finding) == (
        "params.yaml: model.base: base: no config.json in the folder base, in the Hugging Face cache at this revision, "
        "or in models/architectures/base; download the base, or put its config.json there"
    )
    assert finding.code == "base-missing"


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_generation_config_is_a_finding(base: Path, content: str) -> None:
    """It says where generation stops, which the template is compared with."""
    (base / "generation_config.json").write_text(content, encoding="utf-8")
    (finding,) = examine().findings
    assert finding.code == "base-incomplete"
    assert finding.what.startswith("base/generation_config.json can't be read (")


def test_rows_longer_than_the_base_was_made_for(base: Path) -> None:
    """At the limit nothing is wrong; past it the base has never seen such positions."""
    edit(base / "config.json", max_position_embeddings=64)
    assert found(train__max_length=64) == []
    (finding,) = examine(train__max_length=65).findings
    assert str(finding) == ("params.yaml: train.max_length: 65 is more than the 64 positions of base; use 64 or less")
    assert finding.code == "length-beyond-base"


# ---- Tokenizer and embeddings


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"version": "1.0", "model": {"type": "Nope"}}'])
def test_a_broken_tokenizer_is_a_finding(base: Path, content: str) -> None:
    """Each of the libraries below has its own kind of error for it."""
    (base / "tokenizer.json").write_text(content, encoding="utf-8")
    (finding,) = examine().findings
    assert finding.code == "base-incomplete"
    assert finding.what.startswith("no tokenizer loads from base: ")


def test_a_missing_tokenizer_is_a_finding(base: Path) -> None:
    """Of a folder without one, transformers makes a tokenizer without a vocabulary and says nothing."""
    for path in base.glob("tokenizer*"):
        path.unlink()
    (finding,) = examine().findings
    assert (finding.code, finding.what) == ("base-incomplete", "no tokenizer loads from base: it holds no vocabulary")


def test_a_token_without_an_embedding_is_a_finding(base: Path) -> None:
    """An index out of range, on a GPU with no word of where; more rows than tokens are usual and harmless."""
    rows = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    edit(base / "config.json", vocab_size=rows + 8)
    assert found() == []
    edit(base / "config.json", vocab_size=rows - 1)
    (finding,) = examine().findings
    assert str(finding) == (
        f"params.yaml: model.base: the tokenizer has {rows} tokens, the embeddings of base {rows - 1} rows; "
        "use the tokenizer that belongs to the base, or a token that it has for model.pad_token"
    )
    assert finding.code == "tokens-without-embeddings"


@pytest.mark.parametrize("poor", ["zero", "copied"])
def test_a_mark_that_was_never_trained_is_a_finding(base: Path, poor: str) -> None:
    """Zero rows, and rows copied from each other, are how tokens are added to a finished base."""
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
        assert set(finding.what.split(": ")[0].split(", ")) == set(told.split(", "))
    else:
        assert finding.what == f"{told}: zero or copied embeddings, so the base has not seen them in training"
    assert (finding.code, finding.severity) == ("tokens-untrained", "warning")


# ---- Padding


def test_padding_with_the_end_token_is_a_note(base: Path) -> None:
    """Elsewhere a famous trap; here the labels come from the template."""
    (finding,) = examine(model__pad_token="<|im_end|>").findings
    assert str(finding) == (
        "params.yaml: model.pad_token: padding and end are one token (<|im_end|>); "
        "end tokens of answers are trained on all the same; nothing to do"
    )
    assert (finding.code, finding.severity) == ("pad-is-end", "note")


def test_a_base_without_a_padding_token_is_told_what_to_write(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's and Mistral's have none; with the advice taken, the finding is gone."""
    from transformers import AutoTokenizer

    load = AutoTokenizer.from_pretrained

    def without_padding(*args: Any, **options: Any) -> Any:
        tokenizer = load(*args, **options)
        tokenizer.pad_token = None
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", without_padding)
    (finding,) = examine().findings
    assert str(finding) == "params.yaml: model.pad_token: base has no padding token; write '<|endoftext|>'"
    assert finding.code == "pad-missing"
    assert found(model__pad_token="<|endoftext|>") == []


def test_a_padding_token_that_is_none_is_told(base: Path) -> None:
    """Added to the vocabulary it would have no embedding."""
    (finding,) = examine(model__pad_token="[PAD]").findings
    assert str(finding) == ("params.yaml: model.pad_token: [PAD] is no token of base; use one it has, like <|im_end|>")
    assert finding.code == "pad-missing"


# ---- The template


def test_our_own_template_is_right(base: Path) -> None:
    """The counterpart of the next tests: each changes one thing in it."""
    template(base, TURNS)
    assert found() == []


@pytest.mark.parametrize("text", [None, ""])
def test_a_base_without_a_template_is_a_finding(base: Path, text: str | None) -> None:
    """A base model that was never tuned to talk."""
    if text is None:
        (base / "chat_template.jinja").unlink()
    else:
        template(base, text)
    (finding,) = examine().findings
    assert str(finding) == (
        "params.yaml: model.chat_template: base has no chat template; "
        "use an instruct model, or one of models/templates/*.jinja"
    )
    assert finding.code == "template-missing"


@pytest.mark.parametrize("name", ["nowhere.jinja", "base"])
def test_a_template_file_that_is_none_is_a_finding(base: Path, name: str) -> None:
    """A name mistyped, or a folder."""
    (finding,) = examine(model__chat_template=name).findings
    assert (finding.code, finding.what) == ("template-missing", f"{name}: no such file")


def test_a_template_that_is_not_utf_8_is_a_finding(base: Path) -> None:
    """Whoever's file it is: the user's or the base's."""
    Path("own.jinja").write_bytes(b"\xff\xfe")
    (finding,) = examine(model__chat_template="own.jinja").findings
    assert str(finding) == "params.yaml: model.chat_template: own.jinja is not UTF-8; save it as UTF-8"
    (base / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert found() == ["base-incomplete"]


def test_a_template_without_marks_is_a_finding(base: Path) -> None:
    """Every token would be masked; TRL has marked versions of the stock templates alone."""
    template(base, TURNS.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
    (finding,) = examine().findings
    assert finding.code == "template-unmarked"
    assert finding.what.startswith("the chat template of base does not mark the assistant's turns")


@pytest.mark.parametrize("text", ["{% generation %}{% endgeneration %}", "{# {% generation %} #}\n"])
def test_a_template_that_renders_nothing_is_a_finding(base: Path, text: str) -> None:
    """transformers fails at an empty text with a negative number, or not at all."""
    template(base, text)
    (finding,) = examine().findings
    assert finding.code == "template-broken"
    assert finding.what == "the chat template renders nothing of a conversation"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{% generation %}{% for %}", "Expected an expression, got 'end of statement block'"),
        ("{% generation %}{{ raise_exception('no!') }}", "Encountered unknown tag"),
        ("{{ raise_exception('no!') }}{% generation %}{% endgeneration %}", "no!"),
        ("{% generation %}{{ nobody.knows.it }}{% endgeneration %}", "'nobody' is undefined"),
        ("{% generation %}{{ 1 / 0 }}{% endgeneration %}", "division by zero"),
        (
            "{% macro a() %}{{ a() }}{% endmacro %}{% generation %}{{ a() }}{% endgeneration %}",
            "maximum recursion depth",
        ),
        ("{% generation %}{{ messages[9].content }}{% endgeneration %}", "list object has no element 9"),
    ],
)
def test_a_template_that_fails_is_a_finding_in_its_own_words(base: Path, text: str, why: str) -> None:
    """Jinja runs a small program, which may fail like any other."""
    template(base, text)
    (finding,) = examine().findings
    assert finding.code == "template-broken"
    start = "the chat template does not render these turns (user, assistant, user, assistant): "
    if why != "Encountered unknown tag":
        assert finding.what.startswith(start + why)


def test_marks_that_are_no_tokens_are_a_finding(base: Path) -> None:
    """Another model's template: its marks fall to pieces, which the base has never seen and never stops at."""
    template(base, TURNS.replace("<|im_start|>", "<|begin|>"))
    (finding,) = examine().findings
    assert str(finding) == (
        "params.yaml: model.chat_template: <|begin|> of the template are no single tokens of base; "
        "use the template that belongs to the base (null, or one of models/templates/*.jinja)"
    )
    assert (finding.code, finding.severity) == ("template-foreign", "error")


def test_an_answer_without_an_end_token_is_a_finding(base: Path) -> None:
    """A model that was never taught to stop writes on to the limit."""
    template(base, TURNS.replace("{{ message.content }}<|im_end|>{% endg", "{{ message.content }}{% endg", 1))
    (finding,) = examine().findings
    assert finding.code == "end-token-unsupervised"
    assert finding.what.startswith("an answer's last supervised token is ")


def test_an_end_at_which_generation_does_not_stop_is_a_finding(base: Path) -> None:
    """The answer would be right and then go on; the base's generation config may name the end as well."""
    template(base, TURNS.replace("<|im_end|>{% endg", "<|endoftext|>{% endg"))
    (finding,) = [finding for finding in examine().findings if finding.code != "tokens-untrained"]  # a row of padding
    assert str(finding) == (
        "params.yaml: model.chat_template: an answer ends with '<|endoftext|>', but generation stops at '<|im_end|>'; "
        "use a template that ends answers with one of these"
    )
    assert finding.code == "end-token-unknown"
    ends = json.loads((base / "generation_config.json").read_text(encoding="utf-8"))
    edit(base / "generation_config.json", eos_token_id=[ends["eos_token_id"], ends["pad_token_id"]])
    assert "end-token-unknown" not in found()


def test_a_mask_that_loses_an_answer_is_a_finding(base: Path) -> None:
    """Marks around the first answer alone, as in templates that keep the rest for the reasoning."""
    template(base, TURNS.replace("message.role == 'assistant'", "loop.index == 2"))
    (finding,) = examine().findings
    assert (finding.code, finding.where) == ("mask-wrong", "params.yaml: model.chat_template")
    assert finding.what == "of a conversation with two answers, not both are supervised, each in a stretch of its own"


# ---- A base of the Hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`cache("config.json")`: a Hugging Face cache that holds these files of `org/name` at COMMIT, and no other."""
    import huggingface_hub.constants
    from transformers.utils import hub

    monkeypatch.chdir(tmp_path)
    home = tmp_path / "hub"
    home.mkdir()
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if hasattr(huggingface_hub.constants, name):
            monkeypatch.setattr(huggingface_hub.constants, name, str(home))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for module in (huggingface_hub._snapshot_download, huggingface_hub.file_download, hub):
        for name in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def filled(whole: Path, *names: str) -> Path:
        snapshot = home / "models--org--name/snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        for name in names:
            shutil.copy(whole / name, snapshot / name)
        return snapshot

    return filled


def files_of(whole: Path) -> set[str]:
    """All files of the base."""
    return {path.name for path in whole.iterdir()}


def test_a_base_in_the_cache_is_as_good_as_a_folder(whole: Path, cache: Callable[..., Path]) -> None:
    """The counterpart of the next; its identity is the commit."""
    cache(whole, *files_of(whole))
    known = examine(model__base="org/name", model__revision=COMMIT)
    assert known.findings == []
    assert known.identity == {"name": "org/name", "revision": COMMIT}
    assert known.architecture is not None and known.tokenizer is not None


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
        ("config.json", "no config.json in the folder org/name"),
        ("chat_template.jinja", "org/name has no chat template"),
    ],
)
def test_half_a_cache_is_a_finding(whole: Path, cache: Callable[..., Path], missing: str, what: str) -> None:
    """A download that was stopped; offline nothing can come any more."""
    cache(whole, *(files_of(whole) - {missing}))
    known = examine(model__base="org/name", model__revision=COMMIT)
    assert any(what in finding.what for finding in known.findings), known.findings
    assert {finding.code for finding in known.findings} <= {"base-missing", "base-incomplete", "template-missing"}


def test_weights_that_can_still_come_are_no_finding(
    whole: Path, cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan is made before the base is fetched; online, train fetches what is missing."""
    cache(whole, *(files_of(whole) - {"model.safetensors"}))
    config = parse_config(params(model__base="org/name", model__revision=COMMIT), "params.yaml")
    assert examine_base(config, Path(), fetch=False).findings == []
    assert [finding.code for finding in examine_base(config, Path()).findings] == ["base-incomplete"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert examine_base(config, Path(), fetch=False).findings == []


@pytest.mark.parametrize("name", ["org/name", "name", "base.safetensors"])
def test_a_base_that_is_nowhere_is_one_finding(cache: Callable[..., Path], name: str) -> None:
    """No folder, no cache, no network: whatever is written there, and however many steps need it."""
    (finding,) = examine(model__base=name, model__revision=COMMIT).findings
    assert finding.code == "base-missing"
    assert finding.what.startswith(f"{name}: no config.json in the folder {name}")


@pytest.mark.parametrize("name", ["models/org/name", "../x y", "/nowhere/base"])
def test_a_path_that_is_no_folder_is_told_as_one(cache: Callable[..., Path], name: str) -> None:
    """A mistyped path is not mended by a pin."""
    (finding,) = examine(model__base=name).findings
    assert str(finding) == (
        f"params.yaml: model.base: {name}: no such folder, and no name on the Hub, like org/name; correct the path"
    )


def test_a_base_of_the_hub_must_be_pinned(whole: Path, cache: Callable[..., Path]) -> None:
    """The cache holds it, but tomorrow's download of the same name may be another model."""
    cache(whole, *files_of(whole))
    first, second = examine(model__base="org/name").findings
    assert str(first) == (
        "params.yaml: model.revision: org/name is no local folder, and without a revision the same name may be another "
        "model tomorrow; write the 40 hex digits of a commit (make pin)"
    )
    assert (first.code, second.code) == ("base-unpinned", "base-missing")


# ---- Through the stage


@pytest.mark.slow
def test_validate_runs_every_check_and_then_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mistakes of the base, the settings, the steps and the rows in one go, so that they are mended in one go."""
    from finetune.prepare import stage as prepare

    monkeypatch.chdir(tmp_path)
    config, paths = workspace(
        tmp_path / "run",
        train__warmup_steps=500,
        train__effective_batch_size=9,
        train__max_length=30,
        train__fp16=True,
        adapter__target_modules=["q_proj", "nothing"],
        findings__accept={"effective-batch-differs": "a trial"},
    )
    prepare.run(config, paths)
    weights = Path("base/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["validate"]) == 2
    told = capsys.readouterr().err
    report = json.loads((paths.reports / "validation.json").read_text(encoding="utf-8"))
    errors = [finding for finding in report["findings"] if finding["severity"] == "error" and not finding["accepted"]]
    assert {finding["code"] for finding in errors} >= {
        "base-incomplete",
        "fp16-needs-cuda",
        "target-modules-missing",
        "truncated-over-budget",
        "warmup-too-long",
    }
    assert report["errors"] == len(errors)
    for finding in errors:
        assert f"{finding['where']}: {finding['what']}; {finding['fix']}" in told
    assert "effective-batch-differs" not in [finding["code"] for finding in errors]
    assert "accepted: a trial" in (paths.reports / "validation.md").read_text(encoding="utf-8")
    assert not paths.validated.exists()


@pytest.mark.slow
def test_a_base_that_serves_nothing_stops_validate_with_its_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither config nor tokenizer: the other checks are made all the same."""
    from finetune.prepare import stage as prepare

    monkeypatch.chdir(tmp_path)
    config, paths = workspace(tmp_path / "run", train__warmup_steps=500)
    prepare.run(config, paths)
    shutil.rmtree("base")
    assert main(["validate"]) == 2
    told = capsys.readouterr().err
    assert "model.base: base: no config.json" in told
    assert "train.warmup_steps: 500 is more than" in told
    assert "Traceback" not in told


def test_where_the_hub_answers_config_and_tokenizer_are_fetched(
    cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first validate of a base that is not in the cache, on a machine with a network; the weights are train's."""
    from finetune.validate import base_checks

    asked: list[Any] = []
    monkeypatch.setattr(base_checks, "hub_answers", lambda: True)
    monkeypatch.setattr(base_checks, "fetch_config", lambda model: asked.append(("config", model.base)))
    monkeypatch.setattr(base_checks, "load_tokenizer", lambda model, fetch: asked.append(("tokenizer", fetch)))
    examine(model__base="org/name", model__revision=COMMIT)
    assert asked == [("config", "org/name"), ("tokenizer", True)]
    asked.clear()
    examine(model__base="org/name")  # unpinned: nothing to ask for
    assert asked == [("tokenizer", False)]


def test_a_network_that_is_not_there_is_found_out_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's library tries six times, for most of a minute, before it says the same."""
    from huggingface_hub import constants

    from finetune.model.base import hub_answers

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the port of discard, where nobody listens
    started = time.monotonic()
    assert not hub_answers()
    assert time.monotonic() - started < 20
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_answers()
