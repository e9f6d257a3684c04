"""The files and folders that the stages exchange, which dvc.yaml lists as well."""

from dataclasses import dataclass
from pathlib import Path

FINISHED = "finished"  # marks a run whose checkpoints are obsolete once DVC has stored its outputs


@dataclass(frozen=True)
class Paths:
    """The paths of the stages' files, relative to the root of the working tree (as in dvc.yaml)."""

    root: Path = Path()

    @property
    def prepared(self) -> Path:
        """The three splits, one JSON line per example."""
        return self.root / "data/prepared"

    @property
    def spool(self) -> Path:
        """Temporary storage for rows between reading and writing in prepare."""
        return self.root / "work/prepare"

    @property
    def validated(self) -> Path:
        """Token ids and labels, the input of train."""
        return self.root / "data/validated"

    @property
    def adapter(self) -> Path:
        """The published adapter with its tokenizer and manifest."""
        return self.root / "out/adapter"

    @property
    def merged(self) -> Path:
        """Base and adapter as one model, written by `finetune merge`."""
        return self.root / "out/merged"

    @property
    def predictions(self) -> Path:
        """The answers of base and candidate, one JSON line per test example."""
        return self.root / "out/predictions.jsonl"

    @property
    def latency(self) -> Path:
        """Seconds and tokens of both sides, one JSON line per prompt."""
        return self.root / "out/latency.jsonl"

    @property
    def model_card(self) -> Path:
        """The adapter's card, outside the adapter's folder, which DVC stores as published by train."""
        return self.root / "out/model_card.md"

    @property
    def reports(self) -> Path:
        """One JSON report per stage, the curves and the page."""
        return self.root / "reports"

    @property
    def looks(self) -> Path:
        """The candidates evaluated on each test set; in git."""
        return self.root / "data/looks.json"

    @property
    def work(self) -> Path:
        """Temporary files that are neither in git nor in DVC: checkpoints and locks."""
        return self.root / "work"

    @property
    def checkpoints(self) -> Path:
        """One folder per run, named by its fingerprint; outside DVC's outs, which a new run deletes."""
        return self.work / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """Partial results of evaluate: answers so far, fetched adapters, a merged model."""
        return self.work / "evaluate"

    @property
    def seeds(self) -> Path:
        """The results of one recipe's runs with several seeds; in git."""
        return self.root / "data/seeds.json"

    @property
    def status(self) -> Path:
        """The progress of the training, for `finetune status`."""
        return self.work / "status.json"
