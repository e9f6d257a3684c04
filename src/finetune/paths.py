"""Where the stages meet: every file and folder that crosses from one to another, as dvc.yaml names them too."""

from dataclasses import dataclass
from pathlib import Path

FINISHED = "finished"  # the mark of a run whose checkpoints nobody needs once DVC has stored its outputs


@dataclass(frozen=True)
class Paths:
    """Where the stages meet, relative to the working tree's root (dvc.yaml names the same places)."""

    root: Path = Path()

    @property
    def prepared(self) -> Path:
        """The three splits, one JSON line an example."""
        return self.root / "data/prepared"

    @property
    def spool(self) -> Path:
        """Where prepare keeps rows between reading and writing."""
        return self.root / "work/prepare"

    @property
    def validated(self) -> Path:
        """Token ids and labels, what train reads."""
        return self.root / "data/validated"

    @property
    def adapter(self) -> Path:
        """The published adapter with its tokenizer and manifest."""
        return self.root / "out/adapter"

    @property
    def merged(self) -> Path:
        """Base and adapter as one model, where `finetune merge` wrote it."""
        return self.root / "out/merged"

    @property
    def predictions(self) -> Path:
        """What base and candidate answered, one JSON line a test example."""
        return self.root / "out/predictions.jsonl"

    @property
    def latency(self) -> Path:
        """Seconds and tokens of both sides, one JSON line a prompt."""
        return self.root / "out/latency.jsonl"

    @property
    def model_card(self) -> Path:
        """The adapter's card, beside the adapter: DVC keeps the folder as train published it."""
        return self.root / "out/model_card.md"

    @property
    def reports(self) -> Path:
        """One JSON report a stage, the curves and the page."""
        return self.root / "reports"

    @property
    def looks(self) -> Path:
        """Which candidates were evaluated on which test set; in git."""
        return self.root / "data/looks.json"

    @property
    def work(self) -> Path:
        """Scratch that is neither in git nor in DVC: checkpoints and locks."""
        return self.root / "work"

    @property
    def checkpoints(self) -> Path:
        """One folder a run, named by its fingerprint; outside DVC's outs, which a new start deletes."""
        return self.work / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """What evaluate keeps of an interrupted run: answers by then, adapters fetched, a merged model."""
        return self.work / "evaluate"

    @property
    def seeds(self) -> Path:
        """What the runs of one recipe under several seeds came to; in git."""
        return self.root / "data/seeds.json"

    @property
    def status(self) -> Path:
        """How far the training is, for `finetune status`."""
        return self.work / "status.json"
