"""`make gate` and `make report`: the verdict that stands, told again and as an exit code."""

from finetune.artifacts import read_json, read_manifest, sha256_json
from finetune.config import Config
from finetune.console import say
from finetune.errors import DataError
from finetune.paths import Paths

EXIT_CODES = {"deploy": 0, "deploy-unproven": 10, "iterate": 10, "abort": 20}


def show_decision(paths: Paths, config: Config | None) -> int:
    """Print the verdict and where to read more; gives its exit code. DataError where there is no decision.

    With the run's config, as the gate has it, the decision must be on what lies here: on this adapter, this test set
    and these criteria. A verdict of yesterday ships nothing.
    """
    decision = read_json(paths.reports / "decision.json")
    if config is not None:
        require_current(decision, paths, config)
    say(f"{decision['verdict']}: {decision['sentence']}")
    for reason in decision["reasons"]:
        say(f"  {reason}")
    say(f"open {paths.reports / 'report.html'}")
    return EXIT_CODES[decision["verdict"]]


def require_current(decision: dict[str, object], paths: Paths, config: Config) -> None:
    """DataError where adapter, test set or gate are others than those that were decided on."""
    now = {
        "adapter_sha256": read_manifest(paths.adapter)["adapter_sha256"],
        "test_sha256": read_json(paths.reports / "prepare.json")["prepared_sha256"]["test"],
        "gate_sha256": sha256_json(config.decide.model_dump(mode="json")),
    }
    names = {"adapter_sha256": "adapter", "test_sha256": "test set", "gate_sha256": "section decide of params.yaml"}
    changed = [names[key] for key, value in now.items() if decision.get(key) != value]
    if changed:
        raise DataError(
            f"{paths.reports / 'decision.json'}: was made with another {' and another '.join(changed)}; run make repro"
        )
