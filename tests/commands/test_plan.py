"""`finetune plan` reports what is known of a run before it starts."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.plan import run as show_plan
from finetune.config.params import Config, parse_config
from finetune.config.recipes import read_recipe
from finetune.errors import ConfigError, DataError
from finetune.files.strict_json import read_json
from finetune.paths import Paths
from finetune.plan.time import ASSUMED_SHARE, Range
from finetune.validate.preview import find_workload, look_ahead
from tests.builders.planned_run import COMMIT, make_here
from tests.builders.planned_run import ready as ready
from tests.builders.small_run import ROOT, params

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


# For each layer of Mistral 7B: queries and output, keys and values, and three matrices of the feed-forward part.
MISTRAL_WEIGHTS = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate the same machine for every test: a CPU with 32 GB, no accelerator; and change to the root folder."""
    make_here(monkeypatch)


def codes(findings: Any) -> list[str]:
    """Return the codes of findings."""
    return [finding.code for finding in findings]


# ---- The shipped recipes


def test_the_default_recipe_has_no_finding_to_fix(config: Config) -> None:
    """The default recipe has no finding to fix; 1,000 examples are 63 steps per epoch, the last with 8 examples."""
    preview = look_ahead(config, ROOT, examples=1000)
    assert codes(preview.findings) == ["last-batch-partial"]
    assert preview.source == "1,000 training examples, assumed to be 256 tokens long"
    outlook = preview.outlook
    assert (outlook.schedule.steps, outlook.schedule.examples) == (126, 1000)
    assert outlook.architecture is not None and outlook.architecture.parameters == 1_969_088
    assert outlook.trainable == 217_088
    assert outlook.available == 32 * 10**9
    assert outlook.memory is not None and 0 < outlook.memory.peak < 4e9
    assert outlook.time() is None  # there are no published speeds for this machine
    assert outlook.lines()[0].startswith(
        "126 steps of 16 rows, 30 of them warmup, 2 evaluations, 2 saves; 256,000 tokens"
    )
    assert outlook.lines()[0].endswith("tokens per epoch at most")


def test_the_plan_of_the_h100_recipe_equals_that_by_hand() -> None:
    """Only the shipped config.json of the base is available: it determines steps, parameters, operations and time."""
    preview = look_ahead(read_recipe("h100", ROOT), ROOT, examples=15_000)
    assert codes(preview.findings) == ["quantization-needless", "last-batch-partial"]
    outlook = preview.outlook
    assert (outlook.schedule.steps, outlook.schedule.warmup_steps) == (3 * 938, 85)
    assert outlook.architecture is not None and outlook.architecture.parameters == 7_248_023_552
    sizes = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert outlook.trainable == 32 * 16 * sizes == 41_943_040
    assert outlook.memory is not None and outlook.memory.peak == outlook.by_ranks[1]
    assert 7e9 < outlook.memory.peak < 40e9
    assert (outlook.available, outlook.workload.longest_row) == (81_559 * 2**20, 4096)
    attention, head = 2 * 32 * 4096 * 4096, 6 * 4096 * 32768 * 0.5
    flops = 3 * 15_000 * 4096 * (2 * MISTRAL_WEIGHTS * 3 + attention * 4 + head)
    assert outlook.flops == pytest.approx(flops)
    passes = 13 * round(15_000 * 0.07 / 0.8) * 4096
    evaluations = passes * (2 * MISTRAL_WEIGHTS + attention + head / 3)
    assert outlook.evaluation_flops == pytest.approx(evaluations)
    flops += evaluations
    time = outlook.time()
    low, high = ASSUMED_SHARE
    assert time == Range(pytest.approx(flops / 989e12 / high), pytest.approx(flops / 989e12 / low))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_planned_without_errors(name: str) -> None:
    """validate would refuse no shipped recipe."""
    preview = look_ahead(read_recipe(name, ROOT), ROOT, examples=15_000)
    assert preview.config.recipe == name
    assert [str(finding) for finding in preview.findings if finding.severity == "error"] == []
    assert preview.outlook.memory is not None and preview.outlook.flops
    assert preview.outlook.disk_bytes > 10**8


def test_accepted_findings_of_validate_are_not_reported_as_unused(change: Callable[..., Config]) -> None:
    """A plan does not read the rows, so it does not know that an accepted finding no longer applies."""
    accepted = {"split-near-overlap": "two forms of one manual", "warmup-too-long": "meant so"}
    config = change(**{"findings.accept": accepted, "train.warmup_steps": 10_000})
    preview = look_ahead(config, ROOT, examples=1600)
    (finding,) = preview.findings
    assert (finding.code, finding.accepted, finding.stops) == ("warmup-too-long", "meant so", False)


def test_an_unknown_base_gives_a_plan_without_memory(change: Callable[..., Config]) -> None:
    """Without config.json only the steps are known, and the finding that explains it is shown."""
    preview = look_ahead(change(**{"model.base": "org/nobody-knows", "model.revision": COMMIT}), ROOT, examples=1600)
    assert (preview.outlook.memory, preview.outlook.flops, preview.outlook.what_fits()) == (None, None, (0, 0))
    assert "base-missing" in codes(preview.findings)
    assert len(preview.outlook.lines()) == 1
    assert preview.outlook.schedule.steps == 200


# ---- The workload


def test_missing_prepared_rows_are_reported_with_a_remedy(config: Config, tmp_path: Path) -> None:
    """The message suggests to prepare rows or to give their number."""
    with pytest.raises(DataError) as caught:
        look_ahead(config, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/data/prepared: no prepared rows; run dvc repro prepare, or give the number of "
        "rows: ./finetune plan --examples 15000"
    )


def test_the_plan_of_prepared_rows_equals_the_count_of_validate(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the base's own tokenizer plan and validate agree to the token; other data settings are reported."""
    monkeypatch.chdir(ready)
    config = parse_config(params(), "params.yaml")
    preview = look_ahead(config, Path())
    report = read_json(Paths().reports / "validation.json")
    assert preview.source == "36 prepared rows, in tokens of base"
    assert preview.outlook.schedule.to_json() == report["schedule"]
    assert preview.outlook.report().to_json() == report["plan"]
    assert "made with different settings" not in capsys.readouterr().out
    other = parse_config(params(data__on_bad_row="skip"), "params.yaml")
    find_workload(other, Path(), None)
    assert "note: data/prepared was made with different settings in the section data" in capsys.readouterr().out


def test_a_base_not_downloaded_is_planned_with_the_embedded_tokenizer(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token count is then approximate, and marked as such."""
    monkeypatch.chdir(ready)
    shutil.copytree(ROOT / "models", "models", dirs_exist_ok=True)
    model = {
        "model__base": "mistralai/Mistral-7B-Instruct-v0.3",
        "model__revision": COMMIT,
        "model__pad_token": "<unk>",
    }
    config = parse_config(params(**model, model__chat_template="models/templates/mistral.jinja"), "params.yaml")
    preview = look_ahead(config, Path())
    assert (
        preview.source
        == "36 prepared rows, in tokens of the embedded tokenizer, because the tokenizer of the base is not available"
    )
    assert preview.outlook.workload.counted and 36 <= preview.outlook.workload.tokens <= 36 * 64
    assert "base-missing" not in codes(preview.findings)


def test_a_base_with_an_unusable_tokenizer_is_planned(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finding with the reason is reported among all others."""
    monkeypatch.chdir(ready)
    changes = {"model__chat_template": "nowhere.jinja", "train__effective_batch_size": 9}
    preview = look_ahead(parse_config(params(**changes), "params.yaml"), Path())
    assert set(codes(preview.findings)) >= {"template-missing", "effective-batch-differs"}
    assert preview.source == "36 prepared rows, assumed to be max_length tokens long because no tokenizer is available"
    assert not preview.outlook.workload.counted


def test_rows_refused_by_the_template_count_as_maximal(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """validate will report these rows; the plan assumes their maximum length."""
    monkeypatch.chdir(ready)
    own = (ROOT / "models/tiny-base/chat_template.jinja").read_text(encoding="utf-8")
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    Path("strict.jinja").write_text(strict + own, encoding="utf-8")
    preview = look_ahead(parse_config(params(model__chat_template="strict.jinja"), "params.yaml"), Path())
    assert preview.source == "36 rows that the template rejects"
    assert preview.outlook.workload.tokens == 36 * 64


# ---- Shown


def test_the_text_report_shows_price_and_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The text shows the price of the plan, and the exit code is that of an error that validate would raise."""
    for name in ("recipes", "models"):
        (tmp_path / name).mkdir()
    recipe = (ROOT / "recipes/h100.yaml").read_text(encoding="utf-8")
    unpinned = re.sub(r"revision: \w{40}", "revision: null", recipe)
    (tmp_path / "recipes/h100.yaml").write_text(unpinned, encoding="utf-8")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "models/architectures", tmp_path / "models/architectures")
    assert show_plan(tmp_path, "h100", 15_000, None, 2.0, probe=False) == 2
    output = capsys.readouterr().out
    assert "plan of recipe h100: 15,000 training examples, assumed to be 4,096 tokens long" in output
    assert "memory per device (NVIDIA H100 80 GB):" in output
    assert "peak by number of devices: 1: " in output
    time = look_ahead(read_recipe("h100", ROOT), ROOT, 15_000).outlook.time()
    assert time is not None
    assert f"time: {time.to_text()}" in output
    assert f"cost at 2 per device and hour: {time.least / 1800:.2f} to {time.most / 1800:.2f}" in output
    assert "base-unpinned" in output
    assert show_plan(ROOT, "tiny", 1600, None, None, probe=False) == 0
    output = capsys.readouterr().out
    assert "time: unknown for this machine; run ./finetune plan --probe there to measure it" in output
    assert "no findings" in output


def test_an_unknown_recipe_gets_a_suggestion() -> None:
    """The error suggests the nearest name, as in `finetune use`."""
    with pytest.raises(ConfigError, match="did you mean h100"):
        read_recipe("h10", ROOT)


def test_probe_is_scaled_to_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two measured speeds give a range, regardless of the data sheet."""
    from finetune.plan import probe

    preview = look_ahead(read_recipe("h100", ROOT), ROOT, examples=15_000)
    assert preview.outlook.flops is not None
    per_hour = (preview.outlook.flops + preview.outlook.evaluation_flops) / 3600
    monkeypatch.setattr(probe, "measure_throughput", lambda config, root, length: (per_hour / 4, per_hour / 3))
    show_plan(ROOT, "h100", 15_000, None, 3.0, probe=True)
    output = capsys.readouterr().out
    assert "time: 3.0 to 4.0 hours" in output
    assert "measured by a probe on this machine" in output
    assert "cost at 3 per device and hour: 9.00 to 12.00" in output


@pytest.mark.slow
def test_the_recipes_table_equals_the_plans() -> None:
    """The figures in the README equal those computed now."""
    from finetune.commands.plan import recipe_table

    text = (ROOT / "recipes/README.md").read_text(encoding="utf-8")
    for line in recipe_table(ROOT):
        assert line in text.splitlines(), "python -m finetune recipes --table prints the new table"
