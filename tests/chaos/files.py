"""File faults: inputs, outputs, checkpoints, DVC's cache and DVC's own files are damaged or removed."""

import shutil
import time
from collections.abc import Sequence

from tests.chaos.damage import DAMAGES, kept, rot
from tests.chaos.scene import STAGES, Moment, Scene

BASE = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# What each stage checks against a hash itself, independently of DVC.
HELD = {
    "validate": ("data/prepared/train.jsonl", "data/prepared/validation.jsonl", "data/prepared/test.jsonl"),
    "train": ("data/validated/train.arrow", "data/validated/validation.arrow", "models/small/model.safetensors"),
    "evaluate": ("data/prepared/test.jsonl", "out/adapter/adapter_model.safetensors", "out/adapter/tokenizer.json"),
    "decide": ("data/prepared/test.jsonl", "out/predictions.jsonl", "out/latency.jsonl", "out/adapter/manifest.json"),
}
READ = {  # outputs of earlier stages that a stage reads, and whose damage it detects
    "validate": ("data/prepared/train.jsonl", "reports/prepare.json"),
    "train": ("data/validated/train.arrow", "data/validated/manifest.json"),
    "evaluate": ("data/prepared/test.jsonl", "reports/prepare.json", "reports/train.json", "out/adapter/manifest.json"),
    "decide": ("out/predictions.jsonl", "reports/evaluation.json", "reports/cost.json", "reports/curves.tsv"),
}
OUTPUTS = ("data/prepared", "data/validated", "out", "reports")
DVC_FILES = ("dvc.lock", "params.yaml", "dvc.yaml", "data/looks.json", "data/seeds.json")
PRODUCER = {
    "data/prepared": "prepare",
    "reports/prepare": "prepare",
    "data/validated": "validate",
    "out/adapter": "train",
    "reports/train": "train",
    "out/predictions": "evaluate",
    "out/latency": "evaluate",
}


def damage_an_input(scene: Scene) -> None:
    """Damage the rows or a file of the base; the run reports it, or is visibly another run, until the repair."""
    name = scene.random.choice(("data/raw/rows.jsonl", *(f"models/small/{file}" for file in BASE)))
    scene.repairs.append(kept(scene.folder / name, scene.folder.parent / "aside"))
    damage(scene, name)
    scene.others_inputs = True
    scene.run("dvc", "repro", "train")


def damage_an_output(scene: Scene) -> None:
    """Damage a stage's output; the next stage, or DVC, must notice."""
    stage = STAGES[scene.state - 1] if scene.state == len(STAGES) else scene.next_stage()
    if scene.random.random() < 0.5:
        damage(scene, scene.random.choice(READ[stage]), but_not=("a bit flipped", "garbage inside"))
        scene.run(stage)
    else:
        damage(scene, scene.random.choice(files_in(scene, OUTPUTS)))
    if scene.random.random() < 0.5:
        scene.run("dvc", "checkout")


def files_in(scene: Scene, folders: Sequence[str]) -> list[str]:
    """Return all files in these folders."""
    files = [path for name in folders for path in (scene.folder / name).rglob("*") if path.is_file()]
    return sorted(path.relative_to(scene.folder).as_posix() for path in files)


def damage_a_checkpoint(scene: Scene) -> None:
    """Kill train or evaluate, and damage the files it would resume from."""
    stage = scene.next_stage()
    sights = [f"work/checkpoints/*/checkpoint-{step}" for step in (6, 9, 12)]
    sight = scene.random.choice(sights if stage == "train" else ["work/evaluate/*.jsonl"])
    moment = Moment(stage, sight, 0.0)
    running = scene.start(stage)
    if scene.wait_for(moment, running) and (held := scene.holder()):
        if stage == "evaluate":
            time.sleep(scene.random.random() * 0.4)
        scene.send("SIGKILL", held[1])
    scene.finish(running)
    where = "work/checkpoints/*/checkpoint-*/*" if stage == "train" else "work/evaluate/*.jsonl"
    files = sorted(path.relative_to(scene.folder).as_posix() for path in scene.folder.glob(where))
    scene.notes |= {"fault": "nothing was there", "place": stage, "moment": f"killed when {moment}"}
    for name in scene.random.sample(files, min(len(files), scene.random.choice((1, 1, 2)))):
        damage(scene, name)
    scene.run(stage)


def rot_a_file(scene: Scene) -> None:
    """Flip a bit without changing size or time: DVC cannot notice it, so the stage that reads the file must."""
    if scene.state == len(STAGES):
        name = scene.random.choice((*HELD["decide"], *HELD["train"][:2], *HELD["validate"]))
        words: tuple[str, ...] = ("gate",)
    else:
        stage = scene.next_stage()
        name = scene.random.choice(HELD[stage])
        words = (stage,) if scene.random.random() < 0.5 else ("dvc", "repro")
    path = scene.folder / name
    if name.startswith("models"):
        scene.repairs.append(kept(path, scene.folder.parent / "aside"))
    else:
        producer = next(stage for place, stage in PRODUCER.items() if name.startswith(place))
        scene.remedies.append(("dvc", "repro", "--force", "--single-item", producer))
    scene.ask("dvc", "status")  # so that DVC has hashed the file and does not hash it again
    rot(path, scene.random)
    scene.harmed.append(name)
    scene.notes |= {"fault": "a bit flipped, size and times kept", "place": name, "moment": f"before {' '.join(words)}"}
    scene.must_tell = True
    scene.run(*words)


def damage_the_cache(scene: Scene) -> None:
    """Damage objects of DVC's cache, delete outputs, restore them with DVC, then run the gate."""
    objects = sorted(path for path in (scene.folder / ".dvc/cache/files").rglob("*") if path.is_file())
    chosen = scene.random.sample(objects, scene.random.choice((1, 2, 4, len(objects))))
    how = scene.random.choice(("a bit flipped", "truncated", "emptied", "removed"))
    for path in chosen:
        mode = path.stat().st_mode
        path.chmod(0o644)
        DAMAGES[how](path, scene.random)
        if path.exists():
            path.chmod(mode)
    gone = scene.random.choice((("data/prepared",), ("data/validated",), ("out/adapter",), ("out", "reports")))
    scene.notes |= {"fault": f"{len(chosen)} objects: {how}", "place": "DVC's cache", "moment": f"without {gone[0]}"}
    scene.harmed += OUTPUTS  # DVC trusts the names of objects and the files in its lists, and checks them out
    for name in gone:
        shutil.rmtree(scene.folder / name)
    scene.run("dvc", *scene.random.choice((("checkout",), ("repro",))))
    scene.run("gate")
    scene.repairs.append(lambda: [path.unlink(missing_ok=True) for path in chosen] and None)
    scene.repairs.append(lambda: [shutil.rmtree(scene.folder / name, ignore_errors=True) for name in gone] and None)


def damage_a_file_of_dvc(scene: Scene) -> None:
    """Damage dvc.lock, dvc.yaml, params.yaml or a counter of test-set uses; then run the gate and DVC."""
    there = [name for name in DVC_FILES if (scene.folder / name).exists()]
    name = scene.random.choice(there)
    scene.repairs.append(kept(scene.folder / name, scene.folder.parent / "aside"))
    damage(scene, name)
    scene.others_inputs = name == "params.yaml"
    if scene.state == len(STAGES):
        scene.run("gate")
    scene.run("dvc", "repro", "train" if name == "params.yaml" else "decide")


def vanish(scene: Scene) -> None:
    """Remove a file or folder while a stage runs."""
    stage = scene.next_stage()
    places = {
        "prepare": ("data/raw/rows.jsonl", "data/.prepared.partial", "work/prepare", "params.yaml"),
        "validate": ("data/prepared", "reports/prepare.json", "data/.validated.partial", "models/small"),
        "train": ("data/validated", "models/small", "work/checkpoints", "work", "out", "reports"),
        "evaluate": ("out/adapter", "data/prepared/test.jsonl", "models/small/model.safetensors", "work", "scorers"),
        "decide": ("out/predictions.jsonl", "reports/train.json", "out/adapter", "data/looks.json", "reports"),
    }
    name = scene.random.choice(places[stage])
    moment = Moment(stage, None, scene.random.random() ** 3)  # early, when most files are read
    running = scene.start(*(("dvc", "repro") if scene.random.random() < 0.3 else (stage,)))
    there = scene.wait_for(moment, running)
    path = scene.folder / name
    if path.exists():
        if name.split("/")[0] in ("models", "params.yaml", "scorers") or name in (
            "data/raw/rows.jsonl",
            "data/looks.json",
        ):
            scene.repairs.append(kept(path, scene.folder.parent / "aside"))
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    scene.notes |= {
        "fault": "removed",
        "place": name,
        "moment": str(moment) + ("" if there else " (it was over before)"),
    }
    scene.finish(running)


def damage(scene: Scene, name: str, but_not: Sequence[str] = ()) -> None:
    """Draw a kind of damage for a file and apply it."""
    how = scene.random.choice([known for known in DAMAGES if known not in but_not])
    scene.harmed.append(name)
    DAMAGES[how](scene.folder / name, scene.random)
    scene.notes["fault"] = (
        how if scene.notes.get("fault", "nothing was there")[0] == "n" else f"{scene.notes['fault']}, {how}"
    )
    place = scene.notes.get("place")
    scene.notes["place"] = name if place is None or place in STAGES else f"{place}, {name}"
    scene.notes.setdefault("moment", "between two commands")
