"""`finetune merge`: merge the published adapter into its base model as one 16-bit model, and compare before publishing.

Reads `out/adapter`, the base model and some rows of `data/validated`; writes `out/merged`, which transformers and
inference servers load without PEFT. The effect of merging is measured on the files as read back from disk, and printed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.model import ModelConfig
from finetune.config.params import Config
from finetune.console import progress, say, table
from finetune.errors import DataError
from finetune.files.atomic import publish_directory
from finetune.files.manifests import read_manifest, write_manifest
from finetune.hardware.devices import require_device, set_device_environment
from finetune.hardware.versions import versions
from finetune.model.adapter import load_adapter
from finetune.model.base import load_base
from finetune.model.merging import as_folder, merge, save_model, sixteen_bit, untie
from finetune.model.published import check_adapter
from finetune.model.tokens import IGNORED, load_tokenizer
from finetune.paths import Paths

COMPARED = 32  # rows of the validation split, evenly spaced

# The mean difference between two forms of one model that is allowed, in roundings of a logit: each form rounds its
# logits once, and the values that lead to them layer by layer. Measured: 0.05 to 0.15 on the two-layer base model of
# the tests, 0.08 on the four layers of models/tiny-base. If roundings add up at random, a base of 32 layers has three
# times that.
ROUNDINGS = 2

Row = tuple[list[int], list[int]]  # input_ids and labels of one example


@dataclass(frozen=True)
class Measured:
    """The outputs of one form of the model on the supervised tokens of the compared rows."""

    likeliest: Any  # (tokens,): the most likely token in each position
    nats: Any  # (tokens,): minus the log-probability of the supervised token
    size: float  # mean over positions of the largest logit

    @property
    def loss(self) -> float:
        """The mean over the tokens, in nats."""
        return float(self.nats.mean())


def run(config: Config, paths: Paths) -> dict[str, Any]:
    """Merge, compare and publish; return the comparison.

    Raises DataError, and publishes nothing, if the merged model is not equivalent to base and adapter.
    """
    set_device_environment(config.environment, 1, deterministic=False)
    device = require_device(config.environment)
    manifest = check_adapter(config, paths)
    rows = read_rows(paths, manifest)
    whole = sixteen_bit(config.model)
    forms: dict[str, Measured] = {}
    if (whole.dtype, whole.quantization) != (config.model.dtype, config.model.quantization):
        forms["evaluated"] = measure(load_adapter(load_base(config.model, device), paths.adapter), rows, "evaluated")
    model = load_adapter(untie(load_base(whole, device), paths.adapter), paths.adapter)
    forms["adapted"] = measure(model, rows, "base and adapter")
    with model.disable_adapter():
        forms["base"] = measure(model, rows, "base")
    with publish_directory(paths.merged) as folder:
        save_model(merge(model), folder)
        del model
        load_tokenizer(config.model, paths.adapter).save_pretrained(folder)
        again = whole.model_copy(update=as_folder(folder))
        forms["merged"] = measure(load_base(again, device).eval(), rows, "merged")
        compared = compare_forms(forms, whole.dtype)
        stop_unless_the_same(compared, paths.merged)
        held = {key: manifest["params"]["model"][key] for key in ("dtype", "quantization")}
        content = {"adapter_sha256": manifest["adapter_sha256"], "base": manifest["base"], "dtype": whole.dtype}
        write_manifest(folder, {**content, "evaluated": held, "compared": compared, "versions": versions()})
    show(compared, config.model, whole.dtype)
    return compared


def read_rows(paths: Paths, manifest: dict[str, Any], count: int = COMPARED) -> list[Row]:
    """Return evenly spaced rows of the validation split, packed ones cut into examples, none without labels."""
    validated = read_manifest(paths.validated)
    if {name: file["sha256"] for name, file in validated["files"].items()} != manifest["data_sha256"]:
        raise DataError(
            paths.validated, f"is not the data that {paths.adapter} was trained on", "train again (dvc repro)"
        )
    from datasets import Dataset

    rows = Dataset.from_file(str(paths.validated / "validation.arrow"))
    taken = rows.select([at * len(rows) // count for at in range(count)] if len(rows) > count else range(len(rows)))
    examples = [example for row in taken for example in cut_packed(row)]
    found = [(ids, labels) for ids, labels in examples if any(label != IGNORED for label in labels[1:])]
    if not found:
        raise DataError(f"{paths.validated}/validation.arrow", "has no supervised tokens to compare", "run validate")
    return found


def cut_packed(row: dict[str, Any]) -> Iterable[Row]:
    """Yield the examples of a row; a row that is not packed has one."""
    start = 0
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        yield row["input_ids"][start : start + length], row["labels"][start : start + length]
        start += length


def measure(model: Any, rows: Sequence[Row], what: str) -> Measured:
    """Run a model on the rows one at a time, so that only the logits of one row are in memory."""
    import torch

    likeliest, nats, sizes = [], [], []
    for ids, labels in progress(rows, f"comparing: {what}"):
        first = next(at for at, label in enumerate(labels) if at and label != IGNORED)
        targets = torch.tensor(labels[first:], device=model.device)
        with torch.inference_mode():
            tokens = torch.tensor([ids], device=model.device)
            logits = model(input_ids=tokens, logits_to_keep=len(ids) - first + 1, use_cache=False).logits[0, :-1]
            logits, targets = logits[targets != IGNORED].float(), targets[targets != IGNORED]
            nats.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none").cpu())
            best = logits.max(dim=-1)
            likeliest.append(best.indices.cpu())
            sizes.append(best.values.abs().cpu())
    return Measured(torch.cat(likeliest), torch.cat(nats), float(torch.cat(sizes).mean()))


def compare_forms(forms: dict[str, Measured], dtype: str) -> dict[str, Any]:
    """Return the loss of each form, its distance from the merged model, and the distance allowed for rounding."""
    merged = forms["merged"]
    found: dict[str, Any] = {"supervised_tokens": len(merged.nats), "loss": {}, "against_merged": {}}
    for name, form in forms.items():
        found["loss"][name] = form.loss
        if name != "merged":
            apart = (form.nats - merged.nats).abs()
            found["against_merged"][name] = {
                "same_likeliest": float((form.likeliest == merged.likeliest).double().mean()),
                "mean_difference": float(apart.mean()),
                "largest_difference": float(apart.max()),
            }
    found["allowed_mean_difference"] = allowed_difference(forms["adapted"], forms["base"], dtype)
    return found


def allowed_difference(adapted: Measured, base: Measured, dtype: str) -> float:
    """Return the mean difference of a log-probability, in nats, that rounding to this number format can explain.

    It is a few roundings of a logit of the measured size, but at most half of the adapter's effect: a merge that lost
    the adapter or applied it twice differs by the full effect. One rounding is always allowed.
    """
    import torch

    rounding = torch.finfo(getattr(torch, dtype)).eps / 2 * max(adapted.size, 1.0)
    moved = float((adapted.nats - base.nats).abs().mean())
    return float(max(rounding, min(ROUNDINGS * rounding, moved / 2)))


def stop_unless_the_same(compared: dict[str, Any], target: Path) -> None:
    """Raise DataError if the merged model differs from base and adapter by more than rounding explains, or by NaN."""
    found, allowed = compared["against_merged"]["adapted"]["mean_difference"], compared["allowed_mean_difference"]
    if not found <= allowed:
        raise DataError(
            target,
            "not published: the log-probabilities of the merged model differ from those of base and "
            f"adapter by {found:.3g} nats on average; rounding explains {allowed:.3g}",
            "ship the adapter with its base",
        )


def show(compared: dict[str, Any], model: ModelConfig, dtype: str) -> None:
    """Print the comparison as a table, with an interpretation and its limits."""
    kept = model.number_format
    names = {
        "merged": f"merged, {dtype}",
        "adapted": f"base in {dtype} + adapter",
        "evaluated": f"base in {kept} + adapter (evaluated)",
        "base": f"base in {dtype} alone",
    }
    lines = []
    for name, text in names.items():
        if name in compared["loss"]:
            apart = compared["against_merged"].get(name)
            figures = ["", "", ""]
            if apart:
                figures = [f"{apart['same_likeliest']:.2%}", f"{apart['mean_difference']:.4f}"]
                figures.append(f"{apart['largest_difference']:.3f}")
            lines.append([text, f"{compared['loss'][name]:.4f}", *figures])
    columns = ["form", "loss", "same top token as merged", "mean difference, nats", "largest"]
    table(f"merge: {compared['supervised_tokens']} supervised tokens of the validation split", columns, lines)
    apart = compared["against_merged"]["adapted"]["mean_difference"]
    allowed = f"rounding to {dtype} explains up to {compared['allowed_mean_difference']:.3g}"
    say(f"merged and base + adapter differ by {apart:.3g} nats on average; {allowed}")
    if "evaluated" in compared["loss"]:
        say(what_changed(kept, dtype))
    say("the verdict covers base + adapter, not this merged model: evaluate it before you ship it")
    say(f"{Paths().merged}: loads without PEFT; the comparison is in {Paths().merged}/manifest.json")


def what_changed(kept: str, dtype: str) -> str:
    """Explain in one line why the merged model differs slightly from the evaluated one."""
    if kept == "NF4":
        return (
            "the adapter was trained and evaluated on base weights rounded to NF4; "
            f"the merged model has {dtype} weights, and quantizing it again would round the adapter too"
        )
    size = 256 if dtype == "bfloat16" else 2048
    return f"evaluated in {kept}; {dtype} rounds each merged weight to a relative precision of 1/{size}"
