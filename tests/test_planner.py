"""`make plan` and `make pin`: what is known of a run before it, and the one line that fixes its base."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.__main__ import main
from finetune.artifacts import read_json
from finetune.config import Config, parse_config, read_yaml
from finetune.errors import ConfigError, DataError, MachineError
from finetune.model.architecture import find_architecture, measure_architecture
from finetune.paths import Paths
from finetune.plan import outlook as outlooks
from finetune.plan.time import ASSUMED_SHARE, Range, assumed_time, cost, flops_per_position, measured_time, run_flops
from finetune.planner import find_workload, look_ahead
from finetune.planner import run as show_plan
from finetune.recipes import pin, read_recipe, with_revision
from finetune.validate import machine_checks, plan_checks
from tests.small_run import ROOT, build_base, params, trainer_of, validated

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
COMMIT = "b2" * 20
# Of each layer of Mistral 7B: queries and output, keys and values, and three of the feed-forward part.
MISTRAL_WEIGHTS = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine for every test: a CPU with 32 GB, no accelerator; and the top of the repository."""
    monkeypatch.chdir(ROOT)
    absent = {"cuda": "no CUDA device answers", "apple": "torch finds no Apple GPU (MPS)"}
    for module in (machine_checks, plan_checks, outlooks):
        monkeypatch.setattr(module, "why_unavailable", absent.get)
    for module in (plan_checks, outlooks):
        monkeypatch.setattr(module, "memory_bytes", lambda environment: 32 * 10**9)
    monkeypatch.setattr(machine_checks, "has_fast_bfloat16", lambda: True)


def codes(findings: Any) -> list[str]:
    """The codes alone."""
    return [finding.code for finding in findings]


# ---- The shipped recipes


def test_the_embedded_default_has_no_finding_to_act_on(config: Config) -> None:
    """What everybody runs first; 1,000 examples are 63 steps an epoch, the last of them of 8."""
    preview = look_ahead(config, ROOT, examples=1000)
    assert codes(preview.findings) == ["last-batch-partial"]
    assert preview.source == "1,000 training examples, each taken as 256 tokens long"
    outlook = preview.outlook
    assert (outlook.schedule.steps, outlook.schedule.examples) == (126, 1000)
    assert outlook.architecture is not None and outlook.architecture.parameters == 1_969_088
    assert outlook.trainable == 217_088
    assert outlook.available == 32 * 10**9
    assert outlook.memory is not None and 0 < outlook.memory.peak < 4e9
    assert outlook.time() is None  # nobody publishes what this machine does a second
    assert outlook.lines()[0].startswith(
        "126 steps of 16 rows, 30 of them warmup, 2 evaluations, 2 saves; 256,000 tokens"
    )
    assert outlook.lines()[0].endswith("tokens an epoch at most")


def test_the_plan_of_the_h100_recipe_by_hand() -> None:
    """Nothing of the base is at hand but its shipped config.json: steps, parameters, work and time follow from it."""
    preview = look_ahead(read_recipe("h100", ROOT), ROOT, examples=15_000)
    assert codes(preview.findings) == ["base-unpinned", "quantization-needless", "last-batch-partial"]
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
def test_every_recipe_can_be_planned_and_has_no_error_but_its_pin(name: str) -> None:
    """A shipped recipe that validate would stop is a trap for whoever trusts it."""
    preview = look_ahead(read_recipe(name, ROOT), ROOT, examples=15_000)
    assert preview.config.recipe == name
    errors = [str(finding) for finding in preview.findings if finding.severity == "error"]
    assert [text for text in errors if "without a revision" not in text] == []
    assert preview.outlook.memory is not None and preview.outlook.flops
    assert preview.outlook.disk_bytes > 10**8


def test_an_accepted_finding_that_only_validate_could_make_is_no_news(change: Callable[..., Config]) -> None:
    """A plan does not look at the rows, so it can't say that nothing was found there."""
    accepted = {"split-near-overlap": "two forms of one manual", "warmup-too-long": "meant so"}
    config = change(**{"findings.accept": accepted, "train.warmup_steps": 10_000})
    preview = look_ahead(config, ROOT, examples=1600)
    (finding,) = preview.findings
    assert (finding.code, finding.accepted, finding.stops) == ("warmup-too-long", "meant so", False)


def test_a_base_that_is_nowhere_and_unknown_is_a_plan_without_memory(change: Callable[..., Config]) -> None:
    """No config.json: steps alone are known, and the finding is not hidden, for nothing else tells."""
    preview = look_ahead(change(**{"model.base": "org/nobody-knows", "model.revision": COMMIT}), ROOT, examples=1600)
    assert (preview.outlook.memory, preview.outlook.flops, preview.outlook.what_fits()) == (None, None, (0, 0))
    assert "base-missing" in codes(preview.findings)
    assert len(preview.outlook.lines()) == 1
    assert preview.outlook.schedule.steps == 200


# ---- The workload


def test_without_prepared_rows_the_way_out_is_told(config: Config, tmp_path: Path) -> None:
    """Either make them, or say how many."""
    with pytest.raises(DataError) as caught:
        look_ahead(config, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/data/prepared: no prepared rows to plan with; run dvc repro prepare, or say how many there will "
        "be: make plan EXAMPLES=15000"
    )


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, prepared and validated."""
    root, present = tmp_path_factory.mktemp("planned") / "run", Path.cwd()
    import os

    try:
        validated(root)
    finally:
        os.chdir(present)
    return root


def test_the_plan_of_prepared_rows_is_what_validate_counts(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the base's own tokenizer, the two agree to the token; other settings of the data are told."""
    monkeypatch.chdir(ready)
    config = parse_config(params(), "params.yaml")
    preview = look_ahead(config, Path())
    report = read_json(Paths().reports / "validation.json")
    assert preview.source == "36 prepared rows, in tokens of base"
    assert preview.outlook.schedule.to_json() == report["schedule"]
    assert preview.outlook.to_json() == report["plan"]
    assert "made with other settings" not in capsys.readouterr().out
    other = parse_config(params(data__on_bad_row="skip"), "params.yaml")
    find_workload(other, Path(), None)
    assert "note: data/prepared was made with other settings of the section data" in capsys.readouterr().out


def test_a_base_that_is_not_at_hand_is_planned_in_tokens_of_the_embedded_one(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About as many tokens, and said so."""
    monkeypatch.chdir(ready)
    shutil.copytree(ROOT / "models", "models", dirs_exist_ok=True)
    model = {
        "model__base": "mistralai/Mistral-7B-Instruct-v0.3",
        "model__revision": COMMIT,
        "model__pad_token": "<unk>",
    }
    config = parse_config(params(**model, model__chat_template="models/templates/mistral.jinja"), "params.yaml")
    preview = look_ahead(config, Path())
    assert preview.source == "36 prepared rows, in tokens of the embedded tokenizer, as the base's is not at hand"
    assert preview.outlook.workload.counted and 36 <= preview.outlook.workload.tokens <= 36 * 64
    assert "base-missing" not in codes(preview.findings)


def test_a_base_whose_tokenizer_does_not_serve_is_planned_all_the_same(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its finding tells why, beside all others."""
    monkeypatch.chdir(ready)
    changes = {"model__chat_template": "nowhere.jinja", "train__effective_batch_size": 9}
    preview = look_ahead(parse_config(params(**changes), "params.yaml"), Path())
    assert set(codes(preview.findings)) >= {"template-missing", "effective-batch-differs"}
    assert preview.source == "36 prepared rows, each taken as long as max_length, as no tokenizer serves"
    assert not preview.outlook.workload.counted


def test_rows_that_the_template_refuses_are_planned_at_their_most(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """validate will name them; the plan takes them for as long as they may be."""
    monkeypatch.chdir(ready)
    own = (ROOT / "models/tiny-base/chat_template.jinja").read_text(encoding="utf-8")
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    Path("strict.jinja").write_text(strict + own, encoding="utf-8")
    preview = look_ahead(parse_config(params(model__chat_template="strict.jinja"), "params.yaml"), Path())
    assert preview.source == "36 rows, which the template refuses"
    assert preview.outlook.workload.tokens == 36 * 64


# ---- Shown


def test_what_a_person_reads(capsys: pytest.CaptureFixture[str]) -> None:
    """The plan with its price, and the exit code of an error where validate would stop."""
    assert show_plan(ROOT, "h100", 15_000, None, 2.0, probe=False) == 2
    told = capsys.readouterr().out
    assert "plan of recipe h100: 15,000 training examples, each taken as 4,096 tokens long" in told
    assert "memory of one device, of NVIDIA H100 80 GB:" in told
    assert "peak by number of devices: 1: " in told
    time = look_ahead(read_recipe("h100", ROOT), ROOT, 15_000).outlook.time()
    assert time is not None
    assert f"time: {time.told()}" in told
    assert f"cost at 2 a device and hour: {time.least / 1800:.2f} to {time.most / 1800:.2f}" in told
    assert "base-unpinned" in told
    assert show_plan(ROOT, "tiny", 1600, None, None, probe=False) == 0
    told = capsys.readouterr().out
    assert "time: unknown for this machine until a probe measures it there (make plan PROBE=1)" in told
    assert "no findings" in told


def test_an_unknown_recipe_is_told_with_the_nearest() -> None:
    """As `make use` does."""
    with pytest.raises(ConfigError, match="did you mean h100"):
        read_recipe("h10", ROOT)


def test_probe_is_scaled_to_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two measured speeds make a range, whatever the data sheet says."""
    from finetune.plan import probe

    preview = look_ahead(read_recipe("h100", ROOT), ROOT, examples=15_000)
    assert preview.outlook.flops is not None
    per_hour = (preview.outlook.flops + preview.outlook.evaluation_flops) / 3600
    monkeypatch.setattr(probe, "measure_throughput", lambda config, root, length: (per_hour / 4, per_hour / 3))
    show_plan(ROOT, "h100", 15_000, None, 3.0, probe=True)
    told = capsys.readouterr().out
    assert "time: 3.0 to 4.0 hours" in told
    assert "from a probe of this machine" in told
    assert "cost at 3 a device and hour: 9.00 to 12.00" in told


# ---- Time


def test_time_and_cost_by_hand() -> None:
    """900 operations at 10 a second on two devices are 45 seconds at full speed, of which a share is reached."""
    time = assumed_time(900, 10, 2)
    low, high = ASSUMED_SHARE
    assert (time.least, time.most) == (pytest.approx(45 / high), pytest.approx(45 / low))
    assert 0 < low < high < 1
    assert measured_time(900, (3, 9), 1) == Range(100, 300)
    assert measured_time(900, (3, 9), 4) == Range(25, 75)
    paid = cost(Range(1800, 5400), 2.5)
    assert (paid.least, paid.most) == (1.25, 3.75)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ((3, 119), "3 to 119 seconds"),
        ((60, 120), "1.0 to 2.0 minutes"),
        ((3600, 7199), "60.0 to 120.0 minutes"),
        ((3600, 7200), "1.0 to 2.0 hours"),
        ((86400, 172800), "1.0 to 2.0 days"),
    ],
)
def test_a_range_is_told_in_a_unit_of_its_own_size(seconds: tuple[float, float], text: str) -> None:
    """`57866 seconds` tells nobody whether to wait."""
    assert Range(*seconds).told() == text


def test_operations_of_a_position_by_hand(change: Callable[..., Config]) -> None:
    """Two forward and two back for each weight of the layers, two more with checkpointing; attention beside them."""
    architecture: Any = SimpleNamespace(
        linears=[SimpleNamespace(name="q_proj", parameters=1000), SimpleNamespace(name="lm_head", parameters=7)],
        layers=3,
        heads=2,
        head_dim=5,
        hidden=10,
        vocabulary=50,
    )
    plain, again = change().train, change(**{"train.activation_checkpointing": True}).train
    attention = 2 * 3 * 8 * 2 * 5
    assert flops_per_position(architecture, plain, 8) == 4 * 1000 + 3 * attention
    assert flops_per_position(architecture, again, 8) == 6 * 1000 + 4 * attention
    whole = run_flops(architecture, plain, positions=100, length=8.4, supervised_share=0.25)
    assert whole == 100 * 2 * (4 * 1000 + 3 * attention + 6 * 10 * 50 * 0.25)


@pytest.mark.parametrize(("length", "checkpointing"), [(64, False), pytest.param(256, True, marks=pytest.mark.slow)])
def test_operations_are_those_that_torch_counts(
    change: Callable[..., Config], length: int, checkpointing: bool
) -> None:
    """A forward and backward pass of a small Llama with LoRA, as torch's own counter sees it: within four percent.

    Eager attention computes the masked half too, so here it counts twice; the adapter's own are left out of both, but
    for the little that rank 1 takes.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager"}
    config = LlamaConfig(**shape, **heads, bos_token_id=0, eos_token_id=1)
    model = LlamaForCausalLM(config)
    architecture = measure_architecture(config)
    train = change(**{"train.activation_checkpointing": checkpointing}).train
    lora = LoraConfig(r=1, target_modules=list(change().adapter.target_modules), task_type="CAUSAL_LM")
    peft = get_peft_model(model, lora).train()
    if checkpointing:
        peft.enable_input_require_grads()
        peft.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.arange(2 * length).reshape(2, length) % 64
    with FlopCounterMode(display=False) as counter:
        hidden = peft.base_model.model.model(input_ids=ids, use_cache=False).last_hidden_state
        hidden.sum().backward()
    attention = 2 * architecture.layers * length * 128 * (4 if checkpointing else 3)
    expected = flops_per_position(architecture, train, length) + attention
    assert counter.get_total_flops() / ids.numel() == pytest.approx(expected, rel=0.04)


@pytest.mark.slow
def test_operations_of_a_real_step_are_those_of_the_plan(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's own loss on a real micro-batch, its loss head included: within a tenth.

    The first of its two layers needs no gradient of its input, which in a real base is one of many.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from finetune.model.tokens import IGNORED

    monkeypatch.chdir(ready)
    config = parse_config(params(model__attention="eager", adapter__r=1), "params.yaml")
    trainer = trainer_of(config, Paths())
    batch = next(iter(trainer.get_train_dataloader()))
    rows, length = batch["input_ids"].shape
    share = float((batch["labels"] != IGNORED).sum()) / batch["labels"].numel()
    with FlopCounterMode(display=False) as counter:
        trainer.compute_loss(trainer.model.train(), batch).backward()
    architecture = measure_architecture(find_architecture(config.model, Path()))
    attention = 2 * architecture.layers * length * architecture.heads * architecture.head_dim * 3
    planned = run_flops(architecture, config.train, positions=1, length=length, supervised_share=share)
    expected = rows * length * (planned / config.train.num_train_epochs + attention)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.1)


# ---- Pinning


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the shipped recipes and params.yaml, as the present directory."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    """`hub(COMMIT)`: a Hub that answers so (or raises it); gives the names that it is asked for."""
    import huggingface_hub

    def answering(answer: Any) -> list[str]:
        asked: list[str] = []

        class Api:
            def model_info(self, name: str) -> Any:
                asked.append(name)
                if isinstance(answer, Exception):
                    raise answer
                return SimpleNamespace(sha=answer)

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        return asked

    return answering


def changed_lines(before: str, after: str) -> list[tuple[str, str]]:
    """The lines that differ."""
    return [pair for pair in zip(before.split("\n"), after.split("\n"), strict=True) if pair[0] != pair[1]]


def test_pin_writes_one_line_and_keeps_all_else(
    folder: Path, hub: Callable[[Any], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Comments, spaces and the other keys to the letter; params.yaml runs another recipe and stays as it is."""
    asked = hub(COMMIT)
    recipe, own = Path("recipes/h100.yaml"), Path("params.yaml")
    before, mine = recipe.read_text(encoding="utf-8"), own.read_text(encoding="utf-8")
    pin(Path("recipes"), "h100", own)
    assert asked == ["mistralai/Mistral-7B-Instruct-v0.3"]
    assert changed_lines(before, recipe.read_text(encoding="utf-8")) == [
        (
            "  revision: null           # pinned by: make pin RECIPE=h100",
            f"  revision: {COMMIT}           # pinned by: make pin RECIPE=h100",
        )
    ]
    assert own.read_text(encoding="utf-8") == mine
    told = f"mistralai/Mistral-7B-Instruct-v0.3 is pinned at {COMMIT} in recipes/h100.yaml"
    assert told in " ".join(capsys.readouterr().out.split())
    assert read_recipe("h100", folder).model.revision == COMMIT


def test_pin_moves_a_pin(folder: Path, hub: Callable[[Any], list[str]]) -> None:
    """Pinned before, the base has moved on; the person who pins again wants it."""
    for commit in ("c" * 40, COMMIT):
        hub(commit)
        pin(Path("recipes"), "cpu", Path("params.yaml"))
        assert read_yaml(Path("recipes/cpu.yaml"))["model"]["revision"] == commit


def test_pin_pins_params_too_where_that_recipe_is_in_use(folder: Path, hub: Callable[[Any], list[str]]) -> None:
    """Else the next run would stop for want of the pin that was just made."""
    hub(COMMIT)
    main(["use", "laptop"])
    before = Path("params.yaml").read_text(encoding="utf-8")
    assert main(["pin", "laptop"]) == 0
    (line,) = changed_lines(before, Path("params.yaml").read_text(encoding="utf-8"))
    assert line[1].startswith(f"  revision: {COMMIT}")


def test_pin_leaves_params_that_name_another_base(folder: Path, hub: Callable[[Any], list[str]]) -> None:
    """The recipe's commit is none of a base that was written there since."""
    hub(COMMIT)
    main(["use", "laptop"])
    own = Path("params.yaml")
    text = own.read_text(encoding="utf-8").replace("HuggingFaceTB/SmolLM2-135M-Instruct", "org/another", 1)
    own.write_text(text, encoding="utf-8")
    pin(Path("recipes"), "laptop", own)
    assert own.read_text(encoding="utf-8") == text


def test_a_local_base_needs_no_pin(folder: Path, hub: Callable[[Any], list[str]]) -> None:
    """Its hash is its identity; the Hub is not asked."""
    asked = hub(COMMIT)
    build_base(Path("models/tiny-base"))
    with pytest.raises(ConfigError, match="is a local folder, which is pinned by its hash; nothing to do"):
        pin(Path("recipes"), "tiny", Path("params.yaml"))
    assert asked == []


def answer_of(status: int) -> Any:
    """The Hub's refusal with this status."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    kind = RepositoryNotFoundError if status == 404 else HfHubHTTPError
    response: Any = SimpleNamespace(headers={}, status_code=status, request=None)
    return kind("refused", response=response)


@pytest.mark.parametrize(
    ("answer", "kind", "code", "text"),
    [
        (answer_of(404), ConfigError, 2, "the Hub does not give Qwen/Qwen2.5-Coder-7B-Instruct (404); check the name"),
        (answer_of(403), ConfigError, 2, "(403); check the name, accept its licence, set HF_TOKEN"),
        (answer_of(429), MachineError, 4, "the Hub gives no answer for Qwen/Qwen2.5-Coder-7B-Instruct now (429)"),
        (answer_of(503), MachineError, 4, "now (503); run make pin again later"),
        (ConnectionError("no route"), MachineError, 4, "(ConnectionError); run make pin where a network is"),
        (OSError("no name service"), MachineError, 4, "can't be asked for Qwen/Qwen2.5-Coder-7B-Instruct (OSError)"),
    ],
)
def test_a_hub_that_does_not_answer_changes_nothing(
    folder: Path,
    hub: Callable[[Any], list[str]],
    capsys: pytest.CaptureFixture[str],
    answer: Any,
    kind: type[Exception],
    code: int,
    text: str,
) -> None:
    """A wrong name is the user's mistake (2), no network the machine's (4); neither leaves half a pin."""
    hub(answer)
    before = Path("recipes/cpu.yaml").read_bytes()
    with pytest.raises(kind):
        pin(Path("recipes"), "cpu", Path("params.yaml"))
    assert main(["pin", "cpu"]) == code
    assert text in capsys.readouterr().err
    assert Path("recipes/cpu.yaml").read_bytes() == before


def test_a_name_that_is_none_is_the_users_mistake(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The library refuses it before it asks anybody; offline, a right name is the machine's."""
    recipe = Path("recipes/cpu.yaml")
    right = recipe.read_text(encoding="utf-8")
    assert main(["pin", "cpu"]) == 4  # HF_HUB_OFFLINE is set for all tests
    recipe.write_text(right.replace("Qwen/Qwen2.5-Coder-7B-Instruct", "a/b/c", 1), encoding="utf-8")
    assert main(["pin", "cpu"]) == 2
    assert "a/b/c is neither a local folder nor a name on the Hub, like org/name" in capsys.readouterr().err


def test_a_revision_without_a_line_of_its_own_is_told() -> None:
    """A section in one line has no place for it, and saying `pinned` would be a lie."""
    assert with_revision("model:\n  revision:   null # why\n", COMMIT) == f"model:\n  revision: {COMMIT} # why\n"
    assert with_revision("model:\n  revision: 'a'\nother:\n  revision: 1\n", "b") == (
        "model:\n  revision: b\nother:\n  revision: 1\n"
    )
    with pytest.raises(ConfigError, match="has no line of its own"):
        with_revision("model: {revision: null}\n", COMMIT)


@pytest.mark.slow
def test_the_table_of_recipes_is_what_the_plan_predicts() -> None:
    """A figure in a README that nobody works out again is wrong after the next change."""
    from finetune.planner import recipe_table

    text = (ROOT / "recipes/README.md").read_text(encoding="utf-8")
    for line in recipe_table(ROOT):
        assert line in text.splitlines(), "python -m finetune recipes --table prints the new table"
