"""train: the same seed gives the same adapter, a kill loses nothing, and no wrong result is published."""

import json
import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config.params import params_of
from finetune.errors import ConfigError, DataError, MachineError
from finetune.files.hashing import sha256_tensors
from finetune.files.manifests import read_manifest
from finetune.files.strict_json import read_json
from finetune.model.adapter import WEIGHTS, load_adapter
from finetune.model.base import load_base
from finetune.plan.schedule import plan_schedule
from finetune.train import run, setup, stage
from finetune.train.curves import TRAINING, VALIDATION, curve_rows, to_tsv
from finetune.train.fingerprint import fingerprint
from finetune.train.sft_config import sft_config
from tests.builders.killed_run import Starts
from tests.builders.small_run import copy_of, trainer_of, validated

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace in which train can start."""
    root = tmp_path_factory.mktemp("ready") / "work"
    validated(root)
    return root


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Train with one thread, as `Starts` does: another number of threads may round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(root: Path, **changes: Any) -> str:
    """Train in a workspace and return the adapter's hash."""
    config, paths = enter(root, **changes)
    stage.run(params_of("train", config), paths)
    return str(read_manifest(paths.adapter)["adapter_sha256"])


def enter(root: Path, **changes: Any) -> tuple[Any, Any]:
    """Make a workspace the working directory and return its config and paths."""
    from finetune.config.params import parse_config
    from finetune.paths import Paths
    from tests.builders.small_run import params

    os.chdir(root)
    content = params(**changes)
    (root / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    return parse_config(content, "params.yaml"), Paths()


def test_the_seed_determines_the_adapter(ready: Path, tmp_path: Path) -> None:
    """Training is repeatable, and the hash distinguishes two adapters."""
    first = train(copy_of(ready, tmp_path / "a"))
    assert train(copy_of(ready, tmp_path / "b")) == first
    assert train(copy_of(ready, tmp_path / "c"), seed=7) != first


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.usefixtures("one_thread")
def test_killed_run_resumes_to_the_same_adapter(ready: Path, tmp_path: Path, quantization: str) -> None:
    """After a SIGKILL between two checkpoints, the resumed run equals the uninterrupted one, bit for bit."""
    undisturbed = train(copy_of(ready, tmp_path / "whole"), model__quantization=quantization)
    root = copy_of(ready, tmp_path / "killed")
    enter(root, model__quantization=quantization)
    assert Starts()(root, "step 5") == -signal.SIGKILL
    assert not (root / "out/adapter").exists()
    assert train(root, model__quantization=quantization) == undisturbed
    assert read_json(root / "reports/train_cost.json")["resumed_from_step"] == 3
    assert list(root.glob("work/checkpoints/*/finished"))  # kept until evaluate begins


def test_published_adapter_is_plain_peft(ready: Path, tmp_path: Path) -> None:
    """The published adapter loads with plain PEFT; it has the pinned base name, a sorted config and changed weights."""
    root = copy_of(ready, tmp_path / "run")
    train(root)
    config, paths = enter(root)
    content = json.loads((paths.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert content["base_model_name_or_path"] == "base"
    assert content["target_modules"] == sorted(content["target_modules"])
    assert {path.suffix for path in paths.adapter.iterdir()} <= {".json", ".safetensors", ".jinja"}
    model = load_adapter(load_base(config.model, "cpu"), paths.adapter)
    moved = [bool(tensor.abs().sum()) for name, tensor in model.named_parameters() if "lora_B" in name]
    assert moved
    assert all(moved)
    manifest = read_manifest(paths.adapter)
    assert manifest["adapter_sha256"] == sha256_tensors(paths.adapter / WEIGHTS)
    assert manifest["params"]["train"]["learning_rate"] == config.train.learning_rate
    assert manifest["versions"]["torch"] == torch.__version__


def test_best_checkpoint_is_published(ready: Path, tmp_path: Path) -> None:
    """With a rate that soon degrades the model, the published adapter has the lowest validation loss of the curve."""
    root = copy_of(ready, tmp_path / "run")
    train(root, train__learning_rate=0.5, train__lr_scheduler_type="constant", train__num_train_epochs=4)
    report = read_json(root / "reports/train.json")
    lines = (root / "reports/validation_curve.tsv").read_text(encoding="utf-8").splitlines()[1:]
    losses = {int(line.split("\t")[0]): float(line.split("\t")[2]) for line in lines}
    assert report["kept_step"] == min(losses, key=lambda step: losses[step])
    assert report["validation_loss"] == pytest.approx(min(losses.values()), rel=1e-4)


def test_non_finite_loss_stops_before_the_step(ready: Path, tmp_path: Path) -> None:
    """NaN is neither averaged away nor published; the error names the examples and the remedy."""
    trainer = trainer_of(*enter(copy_of(ready, tmp_path / "run")))
    rows = trainer.batches().batches(0)[0]
    trainer.evaluate = lambda *args: None  # it would meet the NaN first
    next(tensor for name, tensor in trainer.model.named_parameters() if "lora_A" in name).data.fill_(float("nan"))
    with pytest.raises(ConfigError) as raised:
        trainer.train()
    assert "learning_rate: the loss after step 0 is nan on the examples" in str(raised.value)
    assert all(name in str(raised.value) for row in rows for name in trainer.train_dataset[row]["ids"])
    assert not Path("out/adapter").exists()


def test_non_finite_gradient_stops_before_the_step(ready: Path, tmp_path: Path) -> None:
    """A finite loss can have an infinite gradient: clipping would turn all of it into NaN."""
    trainer = trainer_of(*enter(copy_of(ready, tmp_path / "run")))
    name, tensor = next((name, tensor) for name, tensor in trainer.model.named_parameters() if "lora_B" in name)
    before = tensor.detach().clone()
    tensor.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(ConfigError, match=r"the gradient norm after step 0 is (nan|inf) on the examples"):
        trainer.train()
    assert torch.equal(tensor, before), name


def test_checkpoints_are_never_resumed_by_another_run(ready: Path) -> None:
    """The fingerprint of checkpoints covers everything that determines the adapter."""
    base, data = {"name": "base", "revision": "x"}, {"train.arrow": "1"}

    def params_with(**changes: Any) -> Any:
        return params_of("train", enter(ready, **changes)[0])

    one = fingerprint(params_with(), data, base, "sdpa")
    assert fingerprint(params_with(train__learning_rate=0.1), data, base, "sdpa") != one
    assert fingerprint(params_with(seed=1), data, base, "sdpa") != one
    assert fingerprint(params_with(), {"train.arrow": "2"}, base, "sdpa") != one
    assert fingerprint(params_with(), data, {**base, "revision": "y"}, "sdpa") != one
    assert fingerprint(params_with(), data, base, "flash_attention_2") != one
    assert fingerprint(params_with(evaluate__batch_size=2), data, base, "sdpa") == one


def test_changed_validated_data_is_refused(ready: Path, tmp_path: Path) -> None:
    """Training refuses data other than the data that validate counted."""
    root = copy_of(ready, tmp_path / "run")
    config, paths = enter(root)
    path = paths.validated / "train.arrow"
    path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(DataError, match=r"train.arrow: differs from the published file"):
        stage.run(params_of("train", config), paths)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_nf4_in_bfloat16(ready: Path, tmp_path: Path) -> None:
    """QLoRA on a CUDA device trains, gives the same bits twice, and publishes float32 weights."""
    changes = {
        "environment": "cuda",
        "model__quantization": "nf4",
        "model__dtype": "bfloat16",
        "train__bf16": True,
        "train__optim": "adamw_torch_fused",
    }
    first = train(copy_of(ready, tmp_path / "a"), **changes)
    assert train(copy_of(ready, tmp_path / "b"), **changes) == first


def test_missing_cuda_device_stops_at_once(ready: Path) -> None:
    """`environment: cuda` without CUDA exits with code 4 and a remedy before anything is loaded."""
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    config, paths = enter(ready, environment="cuda")
    with pytest.raises(MachineError, match=r"environment: cuda: .*use a recipe for this machine"):
        stage.run(params_of("train", config), paths)


def test_target_module_without_a_match_is_refused(ready: Path) -> None:
    """A target module without a match is an error; PEFT would silently ignore it."""
    config, paths = enter(ready, adapter__target_modules=["q_proj", "query"])
    with pytest.raises(ConfigError, match=r"adapter.target_modules: query match nothing in Qwen2ForCausalLM"):
        setup.build_model(config, "cpu", paths)


@pytest.mark.parametrize(("examples", "batch", "accumulation", "epochs"), [(36, 4, 2, 3), (238, 2, 8, 3), (7, 4, 4, 1)])
def test_planned_steps_equal_the_trainers(
    ready: Path, examples: int, batch: int, accumulation: int, epochs: int, tmp_path: Path
) -> None:
    """The plan uses the library's own arithmetic: its steps and warmup equal the Trainer's."""
    from transformers import Trainer as Plain

    config, _ = enter(
        ready,
        train__per_device_train_batch_size=batch,
        train__gradient_accumulation_steps=accumulation,
        train__num_train_epochs=epochs,
        train__warmup_steps=0.1,
    )
    arguments = sft_config(config, tmp_path)
    planned = plan_schedule(config.train, examples)
    loader = torch.utils.data.DataLoader(list(range(examples)), batch_size=batch)  # type: ignore[arg-type]
    trainer = Plain(model=torch.nn.Linear(1, 1), args=arguments, eval_dataset=torch.utils.data.Dataset())  # type: ignore[var-annotated]
    steps = trainer.set_initial_training_values(arguments, loader)[-1]
    assert (planned.steps, planned.warmup_steps) == (steps, arguments.get_warmup_steps(steps))


def test_every_training_parameter_reaches_a_library(ready: Path, tmp_path: Path) -> None:
    """Every training key of params.yaml reaches an object of a library."""
    config, _ = enter(ready)
    arguments = sft_config(config, tmp_path)
    elsewhere = {"max_length", "budget", "effective_batch_size"}  # used by validate
    elsewhere |= {"distributed", "tf32"}  # used by the launcher, and by CUDA
    elsewhere |= {"early_stopping_patience", "early_stopping_threshold", "deterministic"}  # a callback's, set_seed's
    for key, value in config.train.model_dump().items():
        if key == "activation_checkpointing":
            assert arguments.gradient_checkpointing == value
        elif key not in elsewhere:
            assert getattr(arguments, key) == (list(value) if isinstance(value, tuple) else value), key
    trainer = trainer_of(*enter(ready, train__early_stopping_patience=2))
    sampler = trainer.batches()
    assert (sampler.strategy, sampler.seed, sampler.grouped) == ("group_by_length", config.seed, 8)
    assert sampler.lengths == [len(row) for row in trainer.train_dataset["input_ids"]]
    assert trainer.early_stopping.early_stopping_patience == 2


def test_data_cut_at_another_length_is_refused(ready: Path, tmp_path: Path) -> None:
    """The manifest would otherwise claim a length that the data does not have."""
    config, paths = enter(copy_of(ready, tmp_path / "run"), train__max_length=20)
    with pytest.raises(DataError, match=r"was truncated at a different train.max_length; run validate again"):
        stage.run(params_of("train", config), paths)


def test_unrelated_files_do_not_change_the_bases_identity(ready: Path, tmp_path: Path) -> None:
    """Only the files that transformers loads identify a base."""
    from finetune.model.base import identify_base

    config, _ = enter(copy_of(ready, tmp_path / "run"))
    before = identify_base(config.model)
    Path("base/README.md").write_text("a note", encoding="utf-8")
    Path("base/.DS_Store").write_bytes(b"x")
    assert identify_base(config.model) == before
    Path("base/generation_config.json").write_text("{}", encoding="utf-8")
    assert identify_base(config.model) != before


def test_curves_have_one_row_per_step_and_no_gap() -> None:
    """DVC's plots draw an empty cell as a gap; training and validation are logged at different steps."""
    pace = {"tokens_per_second": 9.5, "memory_gigabytes": 0.25}
    log = [
        {"step": 1, "epoch": 0.5, "loss": 2.0, "grad_norm": 1.5, "learning_rate": 1e-3, "entropy": 9.0, **pace},
        {"step": 2, "epoch": 1.0, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 5e-4, **pace},
        {"step": 2, "epoch": 1.0, "eval_loss": 1.25, "eval_runtime": 3.0},
        {"step": 3, "epoch": 1.5, "eval_loss": 1.125},
        {"step": 3, "epoch": 1.5, "train_runtime": 3.0},
    ]
    assert to_tsv(curve_rows(log, TRAINING), TRAINING) == [
        "step\tepoch\tloss\tlearning_rate\tgradient_norm\ttokens_per_second\tmemory_gigabytes\n",
        "1\t0.5\t2\t0.001\t1.5\t9.5\t0.25\n",
        "2\t1\t1\t0.0005\t1\t9.5\t0.25\n",
    ]
    assert to_tsv(curve_rows(log, VALIDATION), VALIDATION) == [
        "step\tepoch\tvalidation_loss\n",
        "2\t1\t1.25\n",
        "3\t1.5\t1.125\n",
    ]


def test_only_a_configured_tracker_gets_the_curves(ready: Path, tmp_path: Path) -> None:
    """Tracking is off by default and contacts nothing; if set, the Trainer's own integration writes the curves."""
    from tensorboardX.proto.event_pb2 import Event
    from transformers.integrations import get_available_reporting_integrations

    assert "tensorboard" in get_available_reporting_integrations()
    quiet = trainer_of(*enter(copy_of(ready, tmp_path / "quiet")))
    assert not [call for call in quiet.callback_handler.callbacks if "integrations" in type(call).__module__]
    root = copy_of(ready, tmp_path / "run")
    train(root, train__report_to=["tensorboard"], train__num_train_epochs=1)
    (events,) = root.glob("work/tensorboard/*/events*")
    content, tags, at = events.read_bytes(), set(), 0
    while at < len(content):  # length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(content[at : at + 8], "little")
        event = Event.FromString(content[at + 12 : at + 12 + length])
        tags |= {value.tag for value in event.summary.value}
        at += length + 16
    assert {"train/loss", "eval/loss", "train/tokens_per_second"} <= tags


def test_a_tracker_that_is_not_installed_stops_the_run_at_once(ready: Path, tmp_path: Path) -> None:
    """The run stops before anything is loaded; the library would fail at its import."""
    config, paths = enter(copy_of(ready, tmp_path / "run"), train__report_to=["mlflow"])
    with pytest.raises(ConfigError, match=r"train.report_to: mlflow is not installed; pip install mlflow, or"):
        stage.run(params_of("train", config), paths)


def test_resuming_on_another_processor_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """On another processor a run resumes with a warning that it is not bit for bit the same run."""
    from finetune.hardware.devices import arithmetic

    here = arithmetic("cpu")
    run.warn_of_other_arithmetic({"arithmetic": here}, "cpu")
    assert capsys.readouterr().out == ""
    run.warn_of_other_arithmetic({"arithmetic": here | {"threads": 96}}, "cpu")
    assert (
        f"rounds differently (threads was 96, is {here['threads']}); results will differ in the last bits"
        in capsys.readouterr().out
    )


def test_an_infinite_gradient_is_allowed_with_a_loss_scaler(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss scaler meets infinite gradients in its first steps and skips them; without one they are errors."""
    from trl import SFTTrainer

    trainer = trainer_of(*enter(ready))
    monkeypatch.setattr(SFTTrainer, "_get_grad_norm", lambda *args, **kwargs: float("inf"))
    monkeypatch.setattr(trainer.accelerator, "scaler", object())
    assert trainer._get_grad_norm(trainer.model) == float("inf")
    monkeypatch.setattr(trainer.accelerator, "scaler", None)
    with pytest.raises(ConfigError, match="gradient norm"):
        trainer._get_grad_norm(trainer.model)


def test_settings_without_effect_on_the_adapter_keep_the_fingerprint(ready: Path) -> None:
    """A run resumes after a change of tracker or of the number of kept checkpoints."""
    base, data = {"name": "base", "revision": "x"}, {"train.arrow": "1"}
    one = fingerprint(enter(ready)[0], data, base, "sdpa")
    budget = {"truncated_examples": 0.5, "lost_end_tokens": 0.5, "lost_supervised_tokens": 0.5, "padding": 0.9}
    free = {"report_to": ["wandb"], "save_total_limit": 7, "dataloader_num_workers": 3, "budget": budget}
    for key, value in free.items():
        assert fingerprint(enter(ready, **{f"train__{key}": value})[0], data, base, "sdpa") == one, key


def test_a_run_that_logs_nothing_is_published(ready: Path, tmp_path: Path) -> None:
    """A run with fewer steps than logging_steps is published with an empty training loss."""
    root = copy_of(ready, tmp_path / "run")
    train(root, train__logging_steps=500, train__num_train_epochs=1)
    assert read_json(root / "reports/train.json")["train_loss"] is None


def test_restarting_a_finished_run_only_publishes_it_again(ready: Path, tmp_path: Path) -> None:
    """DVC may stop or find the disk full while it stores the outputs: the next start does not train again."""
    root = copy_of(ready, tmp_path / "run")
    first = train(root, train__early_stopping_patience=1)
    report = read_json(root / "reports/train.json")
    for name in ("out", "reports/curves.tsv", "reports/validation_curve.tsv", "reports/train.json"):  # as DVC does
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert train(root, train__early_stopping_patience=1) == first
    assert read_json(root / "reports/train.json") == report
    assert read_json(root / "reports/train_cost.json")["resumed_from_step"] == report["steps"]


def test_the_memory_probe_has_no_lasting_effects(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe runs before the first step on GPUs: it changes neither the random state nor gradients."""
    from finetune.train.memory_check import MemoryShortageError, largest_micro_batch, require_memory

    trainer = trainer_of(*enter(ready))
    before = torch.get_rng_state()
    require_memory(trainer)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    sizes = [max(trainer.lengths[row] for row in rows) * len(rows) for rows in trainer.batches().batches(0)]
    rows = largest_micro_batch(trainer)
    assert max(trainer.lengths[row] for row in rows) * len(rows) >= max(sizes)

    def short(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")

    monkeypatch.setattr(trainer.model, "forward", short)
    with pytest.raises(MemoryShortageError):
        require_memory(trainer)


def test_an_unwritable_status_does_not_stop_a_run(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Curves and status are informative only; checkpoints have their own, fatal errors."""
    from finetune.train import curves

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device", "work/status.json")

    root = copy_of(ready, tmp_path / "run")
    monkeypatch.setattr(curves, "write_json", full)
    train(root, train__num_train_epochs=1)
    output = capsys.readouterr().out
    assert output.count("work/status.json: No space left on device; curves and status are not updated") == 1


def test_a_lack_of_learning_is_reported_early(ready: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A learning rate that is too low to learn is reported during training, not only at its end."""
    root = copy_of(ready, tmp_path / "run")
    train(root, train__learning_rate=1.0e-7)
    output = capsys.readouterr().out
    assert "warning: no progress so far: the validation loss is" in output.split("adapter ")[0]


def test_only_one_process_writes_a_checkpoints_weights(ready: Path, tmp_path: Path) -> None:
    """Two processes that write the same file would corrupt it."""
    trainer = trainer_of(*enter(ready))
    trainer.args = namedtuple("arguments", "should_save")(False)
    trainer._save(str(tmp_path / "weights"))
    assert not (tmp_path / "weights").exists()


def test_a_substituted_attention_implementation_is_refused(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the report and the fingerprint would name an attention implementation that was not used."""
    from transformers import AutoModelForCausalLM

    config, _ = enter(ready)
    base = load_base(config.model, "cpu")
    base.config._attn_implementation = "kernels-community/flash-attn2"
    loaded = (base, {name: set() for name in ("missing_keys", "unexpected_keys", "mismatched_keys")})
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: loaded)
    with pytest.raises(ConfigError, match=r"model.attention: sdpa was requested, but transformers used kernels-commun"):
        load_base(config.model, "cpu")
