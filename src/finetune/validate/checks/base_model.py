"""Check that the base model is present, complete, safe and pinned, and that its parts are consistent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.config.model import ModelConfig
from finetune.config.validate import ValidateParams
from finetune.errors import BaseModelError
from finetune.model.architecture import Architecture, measure_architecture
from finetune.model.base import base_folder, end_tokens, fetch_config, hub_answers, identify_base
from finetune.model.base_config import find_base_config, in_a_line
from finetune.model.cache import INDEX, SINGLE, is_whole, weight_files
from finetune.model.language import find_language_model
from finetune.model.quantization import find_method
from finetune.model.tokens import COPY, TEMPLATES, load_tokenizer, template_marks, tokenize
from finetune.validate.checks.mask import ASKED, check_template
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

WHERE = "params.yaml: model.base"
UNTRAINED = 0.05  # of the median row's norm; trained embeddings are within a small factor of each other

CODES |= {
    "base-unsafe": Code(
        "error", "run", "Only pickled weights exist; this project loads safetensors only.", binding=True
    ),
    "template-foreign": Code("error", "quality", "Special tokens of the template are missing from this tokenizer."),
    "pad-is-end": Code(
        "note", "nothing", "Harmless here, because labels come from the template and not from token ids."
    ),
    "tokens-without-embeddings": Code(
        "error", "run", "A token id has no row in the embeddings of the base.", binding=True
    ),
    "token-known": Code("error", "run", "A token of `model.add_tokens` is in the vocabulary already.", binding=True),
    "tokens-untrained": Code("warning", "quality", "A special token of the template has an untrained embedding."),
    "packing-mixes": Code("error", "quality", "Examples in a packed row are not separate in this architecture."),
    "length-beyond-base": Code("error", "quality", "Positions beyond those the base was trained on."),
}


@dataclass
class Base:
    """What is known about the base model; unknown values are None, with a finding that gives the reason."""

    identity: dict[str, str] | None = None
    config: Any = None  # of the checkpoint, from transformers
    architecture: Architecture | None = None
    tokenizer: Any = None
    findings: list[Finding] = field(default_factory=list)


def examine_base(params: ValidateParams, root: Path, *, fetch: bool = True) -> Base:
    """Collect what later checks and the tokenization need of the base model, and all findings about it.

    Without `fetch`, as in a plan, no network requests are made. With it, config and tokenizer of a pinned base are
    fetched if the Hub responds; otherwise the weights, which train would fetch, must be in the cache.
    """
    base = Base()
    model = params.model
    base.identity = _attempt(base, lambda: identify_base(model))
    local = Path(model.base).is_dir()
    online = fetch and not local and base.identity is not None and hub_answers()
    if online:
        _attempt(base, lambda: fetch_config(model))
    base.config = _attempt(base, lambda: find_base_config(model, root))
    if base.config is not None:
        base.architecture = _attempt(base, lambda: measure_architecture(base.config))
    base.tokenizer = _attempt(base, lambda: load_tokenizer(model, fetch=online))
    folder = base_folder(model)
    if folder is not None:
        damaged = check_weights(folder, complete=local or (fetch and not online))
        base.findings += damaged or (check_names(model, base.config, folder) if fetch and base.architecture else [])
    if base.architecture is not None:
        base.findings += check_length(params, base.architecture)
        if params.train.packing and base.tokenizer is not None:
            base.findings += check_isolation(base)
    if base.tokenizer is not None:
        _attempt(base, lambda: base.findings.extend(check_tokenizer(params.model, base.tokenizer, base.architecture)))
        if folder is not None:
            _attempt(base, lambda: base.findings.extend(check_embeddings(folder, base.tokenizer, model.add_tokens)))
    return base


def _attempt(base: Base, step: Callable[[], Any]) -> Any:
    """Run a step; if the base is unusable, add its finding (once, even if several steps fail) and return None."""
    try:
        return step()
    except BaseModelError as error:
        finding = Finding.of(error.problem)
        several = finding.code == "base-incomplete"  # report each file
        if not any(known == finding if several else known.code == finding.code for known in base.findings):
            base.findings.append(finding)
        return None


def check_weights(folder: Path, *, complete: bool) -> list[Finding]:
    """Check that the weight files are intact safetensors and, with `complete` (no more can be fetched), all present."""
    if not (folder / INDEX).is_file() and not (folder / SINGLE).exists():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        if pickled:
            what = f"{folder} has only pickled weights ({pickled[0]})"
            return [Finding("base-unsafe", WHERE, what, "use a revision with safetensors, or convert it once")]
        return [_incomplete(folder, "no weights")] if complete else []
    names = weight_files(folder)
    if not names:
        return [_incomplete(folder / INDEX, "an index that lists no shards")]
    missing = [name for name in names if not (folder / name).exists()]
    if missing and complete:
        shown = ", ".join(missing[:3])
        return [_incomplete(folder, f"{len(missing)} of {len(names)} weight files missing ({shown})")]
    damaged = [name for name in names if name not in missing and not is_whole(folder / name)]
    return [_incomplete(folder / name, "a file that is truncated or damaged") for name in damaged]


def check_names(model: ModelConfig, config: Any, folder: Path) -> list[Finding]:
    """Check that the weights, once they are here, have the names and shapes that config.json says; without memory."""
    from finetune.model.weights import load_weights

    language = find_language_model(config)
    here = all((folder / name).exists() for name in weight_files(folder) or [SINGLE])
    if not here or find_method(language.config):  # names of quantized weights are those of the method
        return []
    try:
        _, difference = load_weights(language, model, "meta")
    except Exception:  # of another file, which has its own finding, or a reason to stop that train reports
        return []
    return [_incomplete(Path(model.base), difference)] if difference else []


def _incomplete(path: Path, what: str) -> Finding:
    return Finding("base-incomplete", WHERE, f"{path}: {what}", COPY)


def check_isolation(base: Base) -> list[Finding]:
    """Check that packed examples stay separate in this architecture, by computing a small base of it."""
    from finetune.model.packing import isolates_packed_rows

    assert base.architecture is not None
    attention = "sdpa" if "sdpa" in base.architecture.attention else "eager"
    where, fix = "params.yaml: train.packing", "use packing: false, with group_by_length"
    try:
        if isolates_packed_rows(base.config, base.tokenizer, attention):
            return []
        what = f"{base.architecture.class_name} with {attention} mixes examples that are packed into one row"
    except Exception as error:  # a class that can't be cut, or computes only with kernels that are not here
        what = f"{base.architecture.class_name} can't be proven to separate packed examples: {in_a_line(error)}"
    return [Finding("packing-mixes", where, what, fix)]


def check_length(params: ValidateParams, architecture: Architecture) -> list[Finding]:
    """Check that rows are no longer than the base model supports."""
    length, limit = params.train.max_length, architecture.max_positions
    if length <= limit:
        return []
    what = f"{length} is more than the {limit} positions of the base"
    return [Finding("length-beyond-base", "params.yaml: train.max_length", what, f"use {limit} or less")]


def check_tokenizer(model: ModelConfig, tokenizer: Any, architecture: Architecture | None) -> list[Finding]:
    """Check that tokenizer, template and embeddings are consistent."""
    findings = check_template(tokenizer, end_tokens(model, tokenizer))
    rows, tokens = architecture.vocabulary if architecture else None, len(tokenizer) - len(model.add_tokens)
    if rows is not None and tokens > rows:
        what = f"the tokenizer has {tokens} tokens, but the embeddings of the base have {rows} rows"
        fix = "use the tokenizer of the base, or set model.pad_token to one of its tokens"
        findings.append(Finding("tokens-without-embeddings", WHERE, what, fix))
    foreign = [mark for mark in template_marks(tokenizer) if mark not in tokenizer.get_vocab()]
    if foreign:
        what = f"{', '.join(foreign[:4])} in the template are not single tokens of the base"
        fix = (
            f"use the template of the base (null, or one of {TEMPLATES}); if the base was trained with these marks as "
            "plain text, list them in the template (models/templates/README.md)"
        )
        findings.append(Finding("template-foreign", "params.yaml: model.chat_template", what, fix))
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        what = (
            f"padding and end of sequence share a token ({tokenizer.eos_token}); end tokens of answers are "
            "still trained on"
        )
        findings.append(Finding("pad-is-end", "params.yaml: model.pad_token", what, "nothing to do"))
    return findings


def check_embeddings(folder: Path, tokenizer: Any, new: Sequence[str] = ()) -> list[Finding]:
    """Check that the control tokens of the template have trained embeddings: neither zero nor copies of each other.

    Those of `new` tokens will be trained.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    known = set(tokenizer.added_tokens_decoder) - set(tokenizer.convert_tokens_to_ids(list(new)))
    used = sorted(set(tokenize(tokenizer, ASKED).input_ids) & known)
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.endswith(("embed_tokens.weight", "wte.weight"))]  # noqa: SIM118
                if not names:
                    continue
                rows = file.get_slice(names[0])
                count = rows.get_shape()[0]
                usual = rows[: min(count, 2000)].float().norm(dim=1).median()
                marks = [token for token in used if token < count]
                embeddings = torch.stack([rows[token : token + 1][0].float() for token in marks]) if marks else None
        except (SafetensorError, OSError):
            continue
        return [] if embeddings is None else _untrained(tokenizer, marks, embeddings, float(usual))
    return []


def _untrained(tokenizer: Any, marks: list[int], embeddings: Any, usual: float) -> list[Finding]:
    rows = [tuple(row.tolist()) for row in embeddings]
    norms = embeddings.norm(dim=1).tolist()
    poor = [
        tokenizer.decode([token])
        for token, row, norm in zip(marks, rows, norms, strict=True)
        if norm < UNTRAINED * usual or rows.count(row) > 1
    ]
    if not poor:
        return []
    what = f"{', '.join(poor)}: zero or copied embeddings, so the base was not trained on them"
    return [
        Finding(
            "tokens-untrained",
            WHERE,
            what,
            "use an instruct model, or a template with special tokens that the base was trained on",
        )
    ]
