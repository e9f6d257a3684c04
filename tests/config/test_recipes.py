"""Recipes: exactly the sections that they hold change, the rest of params.yaml stays to the letter."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from finetune.config.criteria import LatencyAtMost
from finetune.config.loading import read_yaml
from finetune.config.params import Config, load_config, parse_config
from finetune.config.recipes import RECIPE_SECTIONS, compose, differences, show, split_sections, summary_of, use
from finetune.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
OWN = ("seed", "data", "findings", "evaluate", "decide")

PARAMS = """\
# The current run.
# `finetune use` changes it.

recipe: mine
machine: this
environment: cpu   # of theirs
runtime: native
# my lucky number
seed: 7   # odd

# my rows
data:
  directory: data/raw   # not in git
  seed: 7
  sources:
    - {name: "rows", path: 'rows.jsonl', format: interactions}

  on_bad_row: stop
  max_bad_fraction: 0.010
  max_row_size: 10 MB
  unicode: none
  labels_in_prompt: false
  filters:
    only_successful: true
    characters: {min: null, max: null}
    tokens: {min: null, max: null}
    keep_matching: []
    drop_matching: []
    roles: [user, assistant]
  duplicates: {exact: drop, near: ignore, threshold: 0.8, shingle_words: 3, permutations: 64}
  risks: {control_tokens: note, control_characters: note, secrets: note, personal_data: note}
  system_prompts:
    namer: |
      # no comment: a text
      train: no key
  default_system_prompt: ~
  split: {method: exact, train: 0.8, validation: 0.1, test: 0.1, stratify_by: agent}

model:   # an old comment of the model
  base: models/old
adapter:
  r: 8
train:
  optim: sgd


findings:
  accept: {}

# the gate
evaluate:
  baseline: {form: base}
  candidate: {form: adapter}
  max_new_tokens: 16
  batch_size: 64
  sampling: null
  scorers:
    right: {scorer: exact_match, of: null}   # mine
  forgetting: null
  latency: {prompts: 60, warmup: 4}
  memory: {processes: 3, batch_size: 16}
decide:
  policy: interval
  confidence: 0.95
  looks: 5
  seeds: 1
  license: null
  criteria:
    - {rule: memory_at_most, limit: 2 GB}
# the end
"""

RECIPE = (ROOT / "recipes/tiny.yaml").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with params.yaml and two recipes, one of them called other."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/tiny.yaml").write_text(RECIPE, encoding="utf-8")
    other = RECIPE.replace("recipe: tiny", "recipe: other").replace("learning_rate: 2.0e-3", "learning_rate: 1.5e-3")
    (tmp_path / "recipes/other.yaml").write_text(other, encoding="utf-8")
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    return tmp_path


def apply(folder: Path, name: str) -> str:
    """Use a recipe; gives the text of params.yaml afterwards."""
    use(folder / "recipes", name, folder / "params.yaml")
    return (folder / "params.yaml").read_text(encoding="utf-8")


def error_of(folder: Path, name: str) -> str:
    """The text of the ConfigError that using a recipe raises; params.yaml must be as it was."""
    before = (folder / "params.yaml").read_bytes()
    with pytest.raises(ConfigError) as caught:
        apply(folder, name)
    assert (folder / "params.yaml").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["params.yaml", "recipes"]
    return str(caught.value)


# ---- What changes and what stays


def test_the_sections_of_the_recipe_are_those_of_the_result(folder: Path) -> None:
    """No merge inside a section: nothing of the old model, adapter or train is left to mix with the new one."""
    apply(folder, "tiny")
    found, recipe = read_yaml(folder / "params.yaml"), read_yaml(folder / "recipes/tiny.yaml")
    assert {key: found[key] for key in RECIPE_SECTIONS} == recipe
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    assert "models/old" not in text and "an old comment" not in text


def test_the_users_own_sections_stay_to_the_letter(folder: Path) -> None:
    """Quotes, spacing, empty lines and comments too: `git diff` must show the recipe and nothing else."""
    after = split_sections(apply(folder, "tiny"))
    before = split_sections(PARAMS)
    assert {key: after[key] for key in OWN} == {key: before[key] for key in OWN}
    assert after[""] == before[""] == "# The current run.\n# `finetune use` changes it.\n\n"
    assert before["seed"] == "# my lucky number\nseed: 7   # odd\n\n"
    assert before["decide"].endswith("# the end\n")


def test_the_gaps_between_sections_stay(folder: Path) -> None:
    """The empty lines after a section are the layout of params.yaml, not of the recipe."""

    def gaps(text: str) -> dict[str, int]:
        return {key: len(part) - len(part.rstrip("\n")) for key, part in split_sections(text).items()}

    assert gaps(apply(folder, "tiny")) == gaps(PARAMS)
    assert gaps(PARAMS)["train"] == 3 and gaps(RECIPE)["adapter"] == 2 != gaps(PARAMS)["adapter"]


def test_comments_of_the_recipe_come_along(folder: Path) -> None:
    """They tell the consequence of a value, so they must stand beside it where it is changed."""
    after = apply(folder, "tiny")
    for comment in ("# cpu | cuda | apple", "# of the frozen weights", "# shares that may be lost"):
        assert comment in RECIPE
        assert comment in after


def test_the_order_of_the_keys_is_that_of_params(folder: Path) -> None:
    """A recipe is free in its order; a diff that moves everything shows nothing."""
    sections = split_sections(RECIPE)
    turned = "".join(sections[key].rstrip("\n") + "\n" for key in reversed(sections))
    (folder / "recipes/turned.yaml").write_text(turned, encoding="utf-8")
    straight = list(split_sections(apply(folder, "tiny")))
    assert list(split_sections(apply(folder, "turned"))) == straight == list(split_sections(PARAMS))


def test_a_recipe_used_twice_is_a_recipe_used_once(folder: Path) -> None:
    """Also after another one in between: no blank line grows, no comment doubles."""
    once = apply(folder, "tiny")
    assert apply(folder, "tiny") == once
    assert apply(folder, "other") != once
    assert apply(folder, "tiny") == once


def test_what_is_cut_is_put_together_again() -> None:
    """split_sections loses no letter of any file that it cuts."""
    for text in (PARAMS, RECIPE, (ROOT / "params.yaml").read_text(encoding="utf-8"), "", "# alone\n", "a: 1"):
        assert "".join(split_sections(text).values()) == text


# ---- What is refused


def test_an_unknown_recipe_gets_a_suggestion(folder: Path) -> None:
    """The name is typed by hand, in `finetune use ...`."""
    recipes = folder / "recipes"
    assert error_of(folder, "tinny") == f"recipe 'tinny': no such file {recipes}/tinny.yaml; did you mean tiny?"
    assert error_of(folder, "h100") == f"recipe 'h100': no such file {recipes}/h100.yaml; known recipes: other, tiny"


def test_a_path_is_no_recipe(folder: Path) -> None:
    """`finetune use ../params` would replace params.yaml by parts of itself."""
    assert "no such file" in error_of(folder, "../params")


HOLDS = "a recipe has the sections adapter, environment, machine, model, recipe, runtime, train"


@pytest.mark.parametrize(
    ("recipe", "wrong"),
    [
        (RECIPE.replace("runtime: native", "# runtime: native"), "runtime"),
        (RECIPE + "seed: 1\n", "seed"),
        (RECIPE + "data:\n  directory: elsewhere\n", "data"),
        (RECIPE.replace("adapter:", "adaptor:"), "adapter, adaptor"),
    ],
)
def test_a_recipe_holds_exactly_its_sections(folder: Path, recipe: str, wrong: str) -> None:
    """One that lacks a section would leave another recipe's half in place; one with `data` would replace the user's."""
    (folder / "recipes/wrong.yaml").write_text(recipe, encoding="utf-8")
    assert error_of(folder, "wrong") == f"{folder}/recipes/wrong.yaml: {HOLDS}; unexpected: {wrong}"


def test_an_invalid_result_changes_nothing(folder: Path) -> None:
    """The whole is checked before a byte is written, and both files are named: either may hold the mistake."""
    wrong = RECIPE.replace("bf16: false", "bf16: true").replace("fp16: false", "fp16: true")
    (folder / "recipes/wrong.yaml").write_text(wrong, encoding="utf-8")
    where = f"{folder}/params.yaml with {folder}/recipes/wrong.yaml"
    assert error_of(folder, "wrong") == f"{where}: train: bf16 and fp16 are both true; choose one"


def test_a_section_without_a_place_is_told(folder: Path) -> None:
    """The place of a section in params.yaml is where its key stands."""
    params = folder / "params.yaml"
    params.write_text(PARAMS.replace("adapter:\n  r: 8\n", ""), encoding="utf-8")
    text = "adapter: is missing, so the recipe's section can't be inserted; add the key"
    assert error_of(folder, "tiny") == f"params.yaml: {text}"


def test_without_params_there_is_nothing_to_change(folder: Path) -> None:
    """The commonest reason is another working directory."""
    (folder / "params.yaml").unlink()
    with pytest.raises(ConfigError) as caught:
        apply(folder, "tiny")
    assert str(caught.value) == f"{folder}/params.yaml: no such file; run from the root of the repository"


@pytest.mark.parametrize("broken", ["data: [1\n", "seed: 8\nseed: 9\n", "data: a: b\n"])
def test_broken_yaml_in_params_is_a_config_error(folder: Path, broken: str) -> None:
    """A user's own section may be broken when a recipe is used: no traceback of the YAML library."""
    (folder / "params.yaml").write_text(PARAMS + broken, encoding="utf-8")
    assert "not valid YAML" in error_of(folder, "tiny")


def test_params_that_are_not_utf_8_are_a_config_error(folder: Path) -> None:
    """A comment with an umlaut, saved by an old editor."""
    (folder / "params.yaml").write_bytes(PARAMS.encode() + "# größe\n".encode("latin-1"))
    assert "is not UTF-8" in error_of(folder, "tiny")


# ---- The shipped recipes


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_with_the_shipped_params(path: Path) -> None:
    """A recipe that nobody loads is a recipe that no longer loads; what it says is what then runs."""
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    composed = compose(params, path.read_text(encoding="utf-8"), path.name)
    config = parse_config(YAML(typ="safe", pure=True).load(composed), path.name)
    found = config.model_dump(mode="json", exclude_unset=True)
    assert {key: found[key] for key in RECIPE_SECTIONS} == read_yaml(path)
    assert {key: found[key] for key in OWN} == {key: read_yaml(ROOT / "params.yaml")[key] for key in OWN}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_named_as_its_file_and_says_what_it_is_for(path: Path) -> None:
    """`recipe:` is what reports and `finetune recipes` show; the first line is its row in the table."""
    assert read_yaml(path)["recipe"] == path.stem
    assert len(summary_of(path)) > 20


def test_the_embedded_default_is_shipped() -> None:
    """Guards the two tests above: with no file found they would test nothing."""
    assert "tiny" in [path.stem for path in SHIPPED]


def test_sections_of_a_recipe_and_of_a_user_are_all_sections() -> None:
    """A new section of the config must be given to one side, or `finetune use` leaves it where it is by accident."""
    assert {*RECIPE_SECTIONS, *OWN} == set(Config.model_fields)


# ---- Showing


def test_differences_are_keys_with_both_values() -> None:
    """What `finetune recipes` shows of a recipe changed in params.yaml; the user's own sections are no change."""
    recipe: dict[str, Any] = {"recipe": "a", "train": {"optim": "sgd", "bf16": True}, "adapter": {"r": 8}}
    assert differences(recipe, recipe | {"seed": 5, "data": {}}) == []
    changed = {"recipe": "a", "train": {"optim": "sgd", "bf16": False, "fp16": True}, "adapter": {"r": 16}}
    assert differences(recipe, changed) == [
        "adapter.r: 8 -> 16",
        "train.bf16: True -> False",
        "train.fp16: None -> True",
    ]


def test_show_lists_recipes_and_what_was_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has every recipe, marks the one in use, and tells the keys that differ from its file."""
    apply(folder, "other")
    params = folder / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("1.5e-3", "2.5e-4"), encoding="utf-8")
    load_config(params)
    capsys.readouterr()
    show(folder / "recipes", params)
    lines = capsys.readouterr().out.splitlines()
    (other,) = [line for line in lines if "│ other" in line]
    (tiny,) = [line for line in lines if "│ tiny" in line]
    assert other.startswith("*") and not tiny.startswith("*")
    assert "models/tiny-base" in tiny
    assert "  changed: train.learning_rate: 0.0015 -> 0.00025" in lines


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/gates").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_gate_loads_in_place_of_the_users_own(path: Path) -> None:
    """An example to copy holds both sections whole, and judges by metrics that its own scorers give."""
    sections = read_yaml(path)
    assert set(sections) == {"evaluate", "decide"}
    config = parse_config(read_yaml(ROOT / "params.yaml") | sections, str(path))
    assert config.decide.criteria


def test_the_gate_of_agents_is_the_requirement() -> None:
    """12 s and 40% under the baseline, 98% right, 10 GB, as they were asked for."""
    config = parse_config(read_yaml(ROOT / "params.yaml") | read_yaml(ROOT / "recipes/gates/cpu-agents.yaml"), "gate")
    assert [criterion.describe() for criterion in config.decide.criteria] == [
        "success at least 0.98",
        "success not worse than the baseline by 0.02",
        "mean latency under 12 s",
        "peak memory at most 10 GB",
    ]
    assert config.evaluate.baseline.form == "recorded"
    latency = config.decide.criteria[2]
    assert isinstance(latency, LatencyAtMost)
    assert latency.describe_improvement() == "mean latency 40% under the baseline"
