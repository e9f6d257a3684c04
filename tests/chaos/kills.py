"""Process faults: signals to a stage, to DVC or to the process group, and several starts at once."""

import time
from collections.abc import Callable

from tests.chaos.scene import STAGES, Running, Scene

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")


def signal_the_stage(scene: Scene) -> None:
    """Send a signal to the stage's process at a certain moment; DVC or the test has started it."""
    by_dvc = scene.random.random() < 0.5
    stage = scene.next_stage()
    running = scene.start("dvc", "repro") if by_dvc else scene.start(stage)
    if by_dvc:
        stage = STAGES[scene.random.randrange(scene.state, len(STAGES))]
    strike(scene, running, stage, lambda name, process: scene.send(name, process))
    scene.finish(running)


def signal_dvc(scene: Scene) -> None:
    """Send a signal to DVC only: the stage continues as an orphan, which the next start finds."""
    running = scene.start("dvc", "repro")
    stage = STAGES[scene.random.randrange(scene.state, len(STAGES))]
    strike(scene, running, stage, lambda name, process: scene.send(name, running.number))
    if "SIGKILL" in scene.notes["fault"] or scene.random.random() < 0.7:
        scene.run("dvc", "repro")  # the orphan may still run
    scene.finish(running)


def signal_the_group(scene: Scene) -> None:
    """Send a signal to the process group once or twice, as a terminal or a scheduler does."""
    running = scene.start("dvc", "repro")
    stage = STAGES[scene.random.randrange(scene.state, len(STAGES))]

    def send(name: str, process: int) -> None:
        for _ in range(scene.random.choice((1, 1, 2))):
            scene.send(name, running.process.pid, group=True)
            time.sleep(0.01)

    strike(scene, running, stage, send)
    scene.finish(running)


def strike(scene: Scene, running: Running, stage: str, send: Callable[[str, int], None]) -> None:
    """Draw a moment of a stage and a signal, and send it at that moment."""
    moment, name = scene.draw_moment(stage), scene.random.choice(SIGNALS)
    scene.notes |= {"fault": name, "place": stage, "moment": str(moment)}
    if scene.wait_for(moment, running) and (held := scene.holder()):
        send(name, held[1])
    else:
        scene.notes["moment"] += " (it was over before)"


def run_two_at_once(scene: Scene) -> None:
    """Start two processes in one folder: DVC twice, a stage and DVC, or two stages."""
    stage = scene.next_stage()
    dvc, alone = ("dvc", "repro"), (stage,)
    first, second = scene.random.choice(((dvc, dvc), (dvc, alone), (alone, dvc), (alone, alone)))
    pause = scene.random.choice((0.0, scene.random.random() * 2, scene.random.random() * 10))
    running = [scene.start(*first)]
    time.sleep(pause)
    running += [scene.start(*second) for _ in range(scene.random.choice((1, 1, 3)))]
    fault = f"{' '.join(first)} and {len(running) - 1} x {' '.join(second)}"
    scene.notes |= {"fault": fault, "place": stage, "moment": f"{pause:.1f} s apart"}
    for one in running:
        scene.finish(one)
