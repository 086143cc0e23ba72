"""The steps of the demonstration, each a command that a user could type, and a runner for them.

A step is skipped if its files were made by the same commands, so that an interrupted demo continues where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from mixtransfer.demo.screen import Screen

__all__ = ["FROM", "ITERATIONS", "NAMES", "SCENES", "SEGMENT", "WORK", "Step", "plan", "run_chain"]

WORK = Path("work_dirs/demo")
SCENES = "data/scenes"
#: How a step starts a command of this installation.
COMMAND = ("-m", "mixtransfer")
PRETRAIN, SEGMENT = "swin_micro_scenes", "upernet_swin_micro_demo"
WEIGHTS = WORK / "swin_micro_tlalign.safetensors"
ITERATIONS = 450
#: Options of a training; the config itself starts from the converted weights.
FROM = {"transferred": (), "scratch": ("--cfg-options", "model.backbone.init_cfg=None")}
NAMES = {"transferred": "transferred", "scratch": "from scratch"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One command: the key of its files, its title, its arguments, and the file that it makes."""

    key: str
    title: str
    argv: tuple[str, ...]
    makes: Path

    @property
    def command(self) -> str:
        """The line that a user would type."""
        return shlex.join(self.argv[1:] if self.argv[:1] == ("-m",) else ("python", *self.argv))


def plan() -> list[Step]:
    """Return all steps in order."""
    pretrained = WORK / "pretrain"
    train = (*COMMAND, "train", SEGMENT, "--data", "scenes", "--overwrite")
    test = (*COMMAND, "test", SEGMENT)
    steps = [
        Step("scenes", "Draw the scenes", (*COMMAND, "data", "scenes", SCENES), Path(SCENES)),
        Step(
            "pretrain",
            "Pretrain a small Swin as a classifier, with TL-Align",
            (*COMMAND, "train", PRETRAIN, "--data", "scenes", "--work-dir", str(pretrained), "--overwrite"),
            pretrained / "last_checkpoint",
        ),
        Step(
            "convert",
            "Convert the checkpoint",
            (*COMMAND, "convert", "PRETRAINED", str(WEIGHTS), "--arch", "swin_micro", "--force"),
            WEIGHTS,
        ),
    ]
    for key, name in NAMES.items():
        work = ("--work-dir", str(WORK / key))
        steps.append(
            Step(
                key,
                f"Train UPerNet with token mixing, {name}",
                (*train, *work, *FROM[key]),
                WORK / key / f"iter_{ITERATIONS}.pth",
            )
        )
    for key, name in NAMES.items():
        checkpoint, work = str(WORK / key / f"iter_{ITERATIONS}.pth"), ("--work-dir", str(WORK / f"test_{key}"))
        steps.append(
            Step(
                f"test_{key}",
                f"Test on held-out scenes, {name}",
                (*test, checkpoint, "--data", "scenes", *work),
                WORK / f"test_{key}" / "metrics.json",
            )
        )
    return steps


def run_chain(steps: list[Step], before: list[str], took: dict[str, tuple[Step, float]], screen: Screen) -> int:
    """Run steps after the commands ``before``, noting each with its seconds in ``took``; return a bad status."""
    for step in steps:
        if step.key == "convert":
            newest = str(newest_checkpoint(WORK / "pretrain"))
            step = dataclasses.replace(step, argv=tuple(newest if x == "PRETRAINED" else x for x in step.argv))
        before.append(step.command)
        screen.say(step.title)
        seconds, status = run_step(step, before, screen)
        took[step.key] = step, seconds
        if status:
            return status
    return 0


def run_step(step: Step, before: list[str], screen: Screen) -> tuple[float, int]:
    """Run a step unless its file was made by the same commands before; return seconds and exit status."""
    stamp = WORK / "steps" / f"{step.key}.json"
    if stamp.is_file() and step.makes.exists():
        done = json.loads(stamp.read_text(encoding="utf-8"))
        if done["commands"] == before:
            screen.say(f"kept from before: {step.makes}")
            return done["seconds"], 0
    if step.makes.parent.parent == WORK:
        shutil.rmtree(step.makes.parent, ignore_errors=True)
    log = WORK / "logs" / f"{step.key}.log"
    for folder in (stamp.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    tail: deque[str] = deque(maxlen=15)
    command = [sys.executable, "-W", "ignore", *step.argv]
    with (
        open(log, "w", encoding="utf-8", buffering=1) as file,
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        for line in process.stdout:
            file.write(line)
            tail.append(line)
            screen.show(step.key, line)
    seconds = time.monotonic() - start
    screen.end(step.key)
    if process.returncode:
        print(
            f"{''.join(tail)}\nmixtransfer.demo: error: this step failed: {step.command}\n(log: {log})", file=sys.stderr
        )
        return seconds, process.returncode
    stamp.write_text(json.dumps({"commands": list(before), "seconds": seconds}, indent=1) + "\n", encoding="utf-8")
    return seconds, 0


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a training in ``folder``, or None."""
    from mixtransfer.engine.work_dir import checkpoints

    return next(iter(checkpoints(folder)), None)
