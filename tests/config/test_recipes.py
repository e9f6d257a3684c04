"""Recipes replace exactly their own sections and leave the rest of params.yaml unchanged."""

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
    """Create a folder with params.yaml and two recipes, one of them called other."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/tiny.yaml").write_text(RECIPE, encoding="utf-8")
    other = RECIPE.replace("recipe: tiny", "recipe: other").replace("learning_rate: 2.0e-3", "learning_rate: 1.5e-3")
    (tmp_path / "recipes/other.yaml").write_text(other, encoding="utf-8")
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    return tmp_path


def apply(folder: Path, name: str) -> str:
    """Use a recipe and return the resulting params.yaml."""
    use(folder / "recipes", name, folder / "params.yaml")
    return (folder / "params.yaml").read_text(encoding="utf-8")


def error_of(folder: Path, name: str) -> str:
    """Return the ConfigError of using a recipe; params.yaml must be unchanged."""
    before = (folder / "params.yaml").read_bytes()
    with pytest.raises(ConfigError) as caught:
        apply(folder, name)
    assert (folder / "params.yaml").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["params.yaml", "recipes"]
    return str(caught.value)


# ---- Changes and unchanged parts


def test_the_recipes_sections_replace_the_old_ones(folder: Path) -> None:
    """Sections are not merged: no key of the old model, adapter or train remains."""
    apply(folder, "tiny")
    found, recipe = read_yaml(folder / "params.yaml"), read_yaml(folder / "recipes/tiny.yaml")
    assert {key: found[key] for key in RECIPE_SECTIONS} == recipe
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    assert "models/old" not in text and "an old comment" not in text


def test_the_users_sections_stay_unchanged(folder: Path) -> None:
    """Quotes, spacing, empty lines and comments stay, so that `git diff` shows only the recipe."""
    after = split_sections(apply(folder, "tiny"))
    before = split_sections(PARAMS)
    assert {key: after[key] for key in OWN} == {key: before[key] for key in OWN}
    assert after[""] == before[""] == "# The current run.\n# `finetune use` changes it.\n\n"
    assert before["seed"] == "# my lucky number\nseed: 7   # odd\n\n"
    assert before["decide"].endswith("# the end\n")


def test_the_gaps_between_sections_stay(folder: Path) -> None:
    """The empty lines after a section belong to the layout of params.yaml, not to the recipe."""

    def gaps(text: str) -> dict[str, int]:
        return {key: len(part) - len(part.rstrip("\n")) for key, part in split_sections(text).items()}

    assert gaps(apply(folder, "tiny")) == gaps(PARAMS)
    assert gaps(PARAMS)["train"] == 3 and gaps(RECIPE)["adapter"] == 2 != gaps(PARAMS)["adapter"]


def test_comments_of_the_recipe_are_copied(folder: Path) -> None:
    """Comments explain the consequences of a value, so they must stay next to it."""
    after = apply(folder, "tiny")
    for comment in ("# cpu | cuda | apple", "# of the frozen weights", "# fractions that may be lost"):
        assert comment in RECIPE
        assert comment in after


def test_the_order_of_the_keys_is_that_of_params(folder: Path) -> None:
    """A recipe may order its keys differently; a diff that moves everything would be unreadable."""
    sections = split_sections(RECIPE)
    turned = "".join(sections[key].rstrip("\n") + "\n" for key in reversed(sections))
    (folder / "recipes/turned.yaml").write_text(turned, encoding="utf-8")
    straight = list(split_sections(apply(folder, "tiny")))
    assert list(split_sections(apply(folder, "turned"))) == straight == list(split_sections(PARAMS))


def test_using_a_recipe_twice_changes_nothing_more(folder: Path) -> None:
    """Using a recipe again, also after another one, adds no blank lines and no comments."""
    once = apply(folder, "tiny")
    assert apply(folder, "tiny") == once
    assert apply(folder, "other") != once
    assert apply(folder, "tiny") == once


def test_split_sections_loses_nothing() -> None:
    """The parts from split_sections always form the complete file."""
    for text in (PARAMS, RECIPE, (ROOT / "params.yaml").read_text(encoding="utf-8"), "", "# alone\n", "a: 1"):
        assert "".join(split_sections(text).values()) == text


# ---- Refusals


def test_an_unknown_recipe_gets_a_suggestion(folder: Path) -> None:
    """Users type the name in `finetune use ...`."""
    recipes = folder / "recipes"
    assert error_of(folder, "tinny") == f"recipe 'tinny': no such file {recipes}/tinny.yaml; did you mean tiny?"
    assert error_of(folder, "h100") == f"recipe 'h100': no such file {recipes}/h100.yaml; known recipes: other, tiny"


def test_a_path_is_not_a_recipe(folder: Path) -> None:
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
def test_a_recipe_with_other_sections_is_refused(folder: Path, recipe: str, wrong: str) -> None:
    """A missing section would keep another recipe's half; a section `data` would replace the user's."""
    (folder / "recipes/wrong.yaml").write_text(recipe, encoding="utf-8")
    assert error_of(folder, "wrong") == f"{folder}/recipes/wrong.yaml: {HOLDS}; unexpected: {wrong}"


def test_an_invalid_result_changes_nothing(folder: Path) -> None:
    """The result is checked before anything is written; both files are named, as either may have the mistake."""
    wrong = RECIPE.replace("bf16: false", "bf16: true").replace("fp16: false", "fp16: true")
    (folder / "recipes/wrong.yaml").write_text(wrong, encoding="utf-8")
    where = f"{folder}/params.yaml with {folder}/recipes/wrong.yaml"
    assert error_of(folder, "wrong") == f"{where}: train: bf16 and fp16 are both true; choose one"


def test_a_missing_section_of_params_is_reported(folder: Path) -> None:
    """A section is placed where its key is in params.yaml."""
    params = folder / "params.yaml"
    params.write_text(PARAMS.replace("adapter:\n  r: 8\n", ""), encoding="utf-8")
    text = "adapter: is missing, so the recipe's section can't be inserted; add the key"
    assert error_of(folder, "tiny") == f"params.yaml: {text}"


def test_missing_params_are_reported(folder: Path) -> None:
    """The usual cause is a wrong working directory."""
    (folder / "params.yaml").unlink()
    with pytest.raises(ConfigError) as caught:
        apply(folder, "tiny")
    assert str(caught.value) == f"{folder}/params.yaml: no such file; run from the root of the repository"


@pytest.mark.parametrize("broken", ["data: [1\n", "seed: 8\nseed: 9\n", "data: a: b\n"])
def test_broken_yaml_in_params_is_a_config_error(folder: Path, broken: str) -> None:
    """A user's own section may be broken; the error is not a traceback of the YAML library."""
    (folder / "params.yaml").write_text(PARAMS + broken, encoding="utf-8")
    assert "not valid YAML" in error_of(folder, "tiny")


def test_params_that_are_not_utf_8_are_a_config_error(folder: Path) -> None:
    """An example is a comment with an umlaut in another encoding."""
    (folder / "params.yaml").write_bytes(PARAMS.encode() + "# größe\n".encode("latin-1"))
    assert "is not UTF-8" in error_of(folder, "tiny")


# ---- The shipped recipes


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_with_the_shipped_params(path: Path) -> None:
    """Each shipped recipe loads with the shipped params."""
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    composed = compose(params, path.read_text(encoding="utf-8"), path.name)
    config = parse_config(YAML(typ="safe", pure=True).load(composed), path.name)
    found = config.model_dump(mode="json", exclude_unset=True)
    assert {key: found[key] for key in RECIPE_SECTIONS} == read_yaml(path)
    assert {key: found[key] for key in OWN} == {key: read_yaml(ROOT / "params.yaml")[key] for key in OWN}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_has_its_files_name_and_a_purpose(path: Path) -> None:
    """`recipe:` appears in reports and in `finetune recipes`; the first line is its row in the table."""
    assert read_yaml(path)["recipe"] == path.stem
    assert len(summary_of(path)) > 20


def test_the_embedded_default_is_shipped() -> None:
    """The two tests above would pass without any recipe, so at least the default must exist."""
    assert "tiny" in [path.stem for path in SHIPPED]


def test_every_section_belongs_to_recipe_or_user() -> None:
    """A new section of the config must be assigned to one side, or `finetune use` would handle it by accident."""
    assert {*RECIPE_SECTIONS, *OWN} == set(Config.model_fields)


# ---- Output


def test_differences_list_keys_with_both_values() -> None:
    """`finetune recipes` shows the changes of a recipe in params.yaml, but not the user's own sections."""
    recipe: dict[str, Any] = {"recipe": "a", "train": {"optim": "sgd", "bf16": True}, "adapter": {"r": 8}}
    assert differences(recipe, recipe | {"seed": 5, "data": {}}) == []
    changed = {"recipe": "a", "train": {"optim": "sgd", "bf16": False, "fp16": True}, "adapter": {"r": 16}}
    assert differences(recipe, changed) == [
        "adapter.r: 8 -> 16",
        "train.bf16: True -> False",
        "train.fp16: None -> True",
    ]


def test_show_lists_recipes_and_changed_keys(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has every recipe, marks the current one, and shows the keys that differ from its file."""
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
def test_every_example_gate_loads(path: Path) -> None:
    """Each example has both sections complete, and its metrics come from its own scorers."""
    sections = read_yaml(path)
    assert set(sections) == {"evaluate", "decide"}
    config = parse_config(read_yaml(ROOT / "params.yaml") | sections, str(path))
    assert config.decide.criteria


def test_the_agents_gate_equals_the_requirement() -> None:
    """The limits are 12 s and 40% below the baseline, 98% right, 10 GB, as in the requirement."""
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
