"""Open, describe and close the sides of an evaluation, as `evaluate.baseline` and `evaluate.candidate` name them.

A side's `described` is its entry in the report, and identifies its stored answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config.evaluate import (
    AdapterSpec,
    BaseSpec,
    EarlierAdapterSpec,
    EvaluateParams,
    MergedSpec,
    ModelSpec,
    RecordedSpec,
    ServerSpec,
)
from finetune.config.model import ModelConfig
from finetune.errors import DataError
from finetune.evaluate.local import CANDIDATE, EARLIER, LocalSide, open_local
from finetune.evaluate.recorded import RecordedSide, open_recorded
from finetune.evaluate.remote import RemoteSide, open_remote
from finetune.files.atomic import publish_directory
from finetune.files.manifests import read_manifest, write_manifest
from finetune.model.adapter import load_adapter, load_second_adapter
from finetune.model.base import identify_base, load_base
from finetune.model.merging import as_folder, merge, save_model, sixteen_bit, untie
from finetune.model.tokens import load_tokenizer
from finetune.paths import Paths
from finetune.pipeline.revisions import fetch_directory
from finetune.records.examples import Example

AnsweringModel = LocalSide | RemoteSide | RecordedSide


@dataclass
class Sides:
    """Baseline and candidate; on the same base they share a model."""

    baseline: AnsweringModel
    candidate: LocalSide | RemoteSide


def open_sides(params: EvaluateParams, paths: Paths, device: str, examples: Sequence[Example]) -> Sides:
    """Load both sides; errors that are cheap to detect are raised before a model is loaded."""
    spec = params.evaluate.baseline
    if isinstance(spec, RecordedSpec):
        recorded = open_recorded(spec, paths.root, examples)
        return Sides(recorded, open_candidate(params, paths, device))
    earlier = fetch_earlier(spec, params, paths) if isinstance(spec, EarlierAdapterSpec) else None
    candidate = open_candidate(params, paths, device)
    if isinstance(spec, ServerSpec):
        return Sides(open_remote(spec, params, "evaluate.baseline"), candidate)
    if isinstance(spec, ModelSpec):
        return Sides(open_model(spec.model, params, device), candidate)
    return Sides(open_on_base(earlier, spec, params, paths, device, candidate), candidate)


def open_candidate(params: EvaluateParams, paths: Paths, device: str) -> LocalSide | RemoteSide:
    """Open the side to be deployed, in the form in which it is deployed."""
    spec, adapter = params.evaluate.candidate, read_manifest(paths.adapter)["adapter_sha256"]
    if isinstance(spec, ServerSpec):
        return open_remote(spec, params, "evaluate.candidate")
    name = f"{short_name(params.model.base)} + adapter {adapter[:8]}"
    described = {"form": spec.form, "name": name, "recorded": False, "adapter_sha256": adapter}
    tokenizer = load_tokenizer(params.model, paths.adapter)
    if isinstance(spec, MergedSpec):
        model = load_base(merged_model(params, paths, device, spec), device).eval()
        described |= {"name": f"{name}, merged", "quantization": spec.quantization}
        return open_local(described, model, tokenizer, params)
    assert isinstance(spec, AdapterSpec)
    model = load_adapter(load_base(params.model, device), paths.adapter)
    return open_local(described, model, tokenizer, params, CANDIDATE)


def open_on_base(
    earlier: Path | None,
    spec: BaseSpec | EarlierAdapterSpec,
    params: EvaluateParams,
    paths: Paths,
    device: str,
    candidate: LocalSide | RemoteSide,
) -> LocalSide:
    """Open the base model or an earlier adapter on it, sharing the candidate's base if that is as in training."""
    base = {"name": short_name(params.model.base), "revision": identify_base(params.model)["revision"]}
    described = {"form": spec.form, "name": base["name"], "recorded": False, "base": base}
    shared = isinstance(candidate, LocalSide) and candidate.adapter is not None
    model = candidate.model if shared and isinstance(candidate, LocalSide) else load_base(params.model, device).eval()
    if earlier is None or isinstance(spec, BaseSpec):
        return open_local(described, model, load_tokenizer(params.model, paths.adapter), params)
    tokenizer = load_tokenizer(params.model, earlier)  # its own: it may have been trained with another template
    adapter = read_manifest(earlier)["adapter_sha256"]
    described |= {"name": f"adapter {adapter[:8]} of {spec.revision}", "adapter_sha256": adapter}
    if shared:
        load_second_adapter(model, earlier, EARLIER)
        return open_local(described, model, tokenizer, params, EARLIER)
    return open_local(described, load_adapter(model, earlier), tokenizer, params, CANDIDATE)


def fetch_earlier(spec: EarlierAdapterSpec, params: EvaluateParams, paths: Paths) -> Path:
    """Return the folder of an earlier run's adapter. Raise DataError unless it was trained on this base."""
    folder = paths.evaluation / "earlier"
    fetch_directory(paths.root, spec.revision, Path("out/adapter"), folder)
    manifest = read_manifest(folder)
    if manifest["base"]["revision"] != identify_base(params.model)["revision"]:
        raise DataError(
            "params.yaml: evaluate.baseline.revision",
            f"the adapter of {spec.revision} was trained on a different base ({manifest['base']['name']})",
            "compare the two experiments (./finetune compare), or set evaluate.baseline to a model",
        )
    return folder


def open_model(model: ModelConfig, params: EvaluateParams, device: str) -> LocalSide:
    """Open another model with its own tokenizer."""
    identity = identify_base(model)
    described = {"form": "model", "name": short_name(model.base), "recorded": False, "base": identity}
    described["base"] = {**identity, "name": short_name(model.base)}
    return open_local(described, load_base(model, device).eval(), load_tokenizer(model), params, held=model)


def merged_model(params: EvaluateParams, paths: Paths, device: str, spec: MergedSpec) -> ModelConfig:
    """Return a model section for the merged model of `finetune merge`, if it belongs to this adapter."""
    adapter = read_manifest(paths.adapter)["adapter_sha256"]
    whole = sixteen_bit(params.model)
    for folder in (paths.merged, paths.evaluation / "merged"):
        if folder.is_dir() and read_manifest(folder).get("adapter_sha256") == adapter:
            break
    else:
        folder = paths.evaluation / "merged"
        model = load_adapter(untie(load_base(whole, device), paths.adapter), paths.adapter)
        with publish_directory(folder) as partial:
            save_model(merge(model), partial)
            write_manifest(partial, {"adapter_sha256": adapter})
        del model
    return whole.model_copy(update=as_folder(folder) | {"quantization": spec.quantization})


def short_name(base: str) -> str:
    """Return the base's name; of a local folder, without the path to it."""
    return Path(base).name if Path(base).is_dir() else base
