"""``make demo``: a Swin is pretrained with TL-Align, converted, and transferred to UPerNet, all on the built-in scenes.

Every step is a command that a user could type; all of them are listed in the report with the time they took. Steps
that were done before with the same commands are kept, so that an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WORK = Path("work_dirs/demo")
SCENES = "data/scenes"
PRETRAIN, SEGMENT = "configs/pretrain/swin_micro_scenes.py", "configs/seg/upernet_swin_tlalign.py"
WEIGHTS = WORK / "swin_micro_tlalign.safetensors"
ITERATIONS = 450
VALIDATE = 75
#: Weights of the six classes of stuff and the six of things.
THINGS_COUNT_MORE = "[1,1,1,1,1,1,2.5,2.5,2.5,2.5,2.5,2.5]"
#: UPerNet's published recipe, made small: swin_micro, 32 channels, 128 × 128 pixels, a short schedule.
SMALL = (
    "model.backbone.arch=swin_micro",
    "model.backbone.drop_path_rate=0.0",
    "model.decode_head.channels=32",
    "model.auxiliary_head.channels=32",
    "model.data_preprocessor.size=(128,128)",
    "test_dataloader.dataset.pipeline.1.scale=(512,128)",
    "test_dataloader.num_workers=0",
)
SHORT = (
    *SMALL,
    "train_dataloader.batch_size=8",
    "train_dataloader.num_workers=1",
    "train_dataloader.dataset.pipeline.2.scale=(512,128)",
    "train_dataloader.dataset.pipeline.2.ratio_range=(0.9,1.3)",
    "train_dataloader.dataset.pipeline.3.crop_size=(128,128)",
    # Milder than for photographs: a long schedule learns to see past changed colors, a short one does not.
    "train_dataloader.dataset.pipeline.5.brightness_delta=16",
    "train_dataloader.dataset.pipeline.5.contrast_range=(0.8,1.2)",
    "train_dataloader.dataset.pipeline.5.saturation_range=(0.8,1.2)",
    "train_dataloader.dataset.pipeline.5.hue_delta=5",
    "val_dataloader.dataset.pipeline.1.scale=(512,128)",
    "val_dataloader.dataset.indices=40",
    "val_dataloader.num_workers=0",
    "custom_hooks.0.token=16",
    # Things cover few pixels: without weights a run this short learns stuff alone.
    f"model.decode_head.loss_decode.class_weight={THINGS_COUNT_MORE}",
    f"model.auxiliary_head.loss_decode.class_weight={THINGS_COUNT_MORE}",
    "optim_wrapper.optimizer.lr=2e-3",
    "param_scheduler.0.end=30",
    "param_scheduler.1.begin=30",
    f"param_scheduler.1.end={ITERATIONS}",
    f"train_cfg.max_iters={ITERATIONS}",
    f"train_cfg.val_interval={VALIDATE}",
    f"default_hooks.checkpoint.interval={ITERATIONS}",
    "default_hooks.logger.interval=10",
)
FROM = {
    "transferred": f"model.backbone.init_cfg.checkpoint={WEIGHTS}",
    "scratch": "model.backbone.init_cfg=None",
}
NAMES = {"transferred": "transferred", "scratch": "from scratch"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One command: a key for its files, what it does, its arguments, and what it makes."""

    key: str
    title: str
    argv: tuple[str, ...]
    makes: Path

    @property
    def command(self) -> str:
        """The line that a user would type."""
        return f"python {shlex.join(self.argv)}"


def plan() -> list[Step]:
    """Return all steps in order."""
    pretrained = WORK / "pretrain"
    train = ("tools/train.py", SEGMENT, "--data", "scenes")
    test = ("tools/test.py", SEGMENT)
    steps = [
        Step("scenes", "Draw the scenes", ("tools/data.py", "scenes", SCENES), Path(SCENES)),
        Step(
            "pretrain",
            "Pretrain a small Swin as a classifier, with TL-Align",
            ("tools/train.py", PRETRAIN, "--data", "scenes", "--work-dir", str(pretrained)),
            pretrained / "last_checkpoint",
        ),
        Step(
            "convert",
            "Convert the checkpoint",
            ("tools/convert.py", "PRETRAINED", str(WEIGHTS), "--arch", "swin_micro", "--force"),
            WEIGHTS,
        ),
    ]
    for key, name in NAMES.items():
        work = ("--work-dir", str(WORK / key))
        steps.append(
            Step(
                key,
                f"Train UPerNet with token mixing, {name}",
                (*train, *work, "--cfg-options", FROM[key], *SHORT),
                WORK / key / f"iter_{ITERATIONS}.pth",
            )
        )
    for key, name in NAMES.items():
        checkpoint, work = str(WORK / key / f"iter_{ITERATIONS}.pth"), ("--work-dir", str(WORK / f"test_{key}"))
        steps.append(
            Step(
                f"test_{key}",
                f"Test on held-out scenes, {name}",
                (*test, checkpoint, "--data", "scenes", *work, "--cfg-options", *SMALL),
                WORK / f"test_{key}" / "metrics.json",
            )
        )
    return steps


def parser() -> argparse.ArgumentParser:
    """Return the options: there is one."""
    options = argparse.ArgumentParser(prog="python -m mixtransfer.demo", description=__doc__.partition("\n")[0])
    options.add_argument("--fresh", action="store_true", help="repeat steps that were done before")
    return options


def main() -> int:
    """Run all steps, write the report, print the two mIoU."""
    args = parser().parse_args()
    if not Path(SEGMENT).is_file():
        print(f"mixtransfer.demo: error: no {SEGMENT} here; run it in the repository's folder", file=sys.stderr)
        return 2
    if args.fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    steps = {step.key: step for step in plan()}
    screen, took = Screen(), {}

    def run(chain: list[str]) -> int:
        first = [] if "scenes" in chain else [steps["scenes"].command]
        return _run_chain([steps[key] for key in chain], first, took, screen)

    for chains in ([["scenes"]], [["pretrain", "convert", *_ends("transferred")], _ends("scratch")]):
        # Networks this small leave a second core idle, so what does not wait for pretraining runs beside it.
        with ThreadPoolExecutor(len(chains)) as pool:
            statuses = list(pool.map(run, chains))
        # A step that a signal killed has a negative status.
        failed = [status for status in statuses if status]
        if failed:
            return failed[0]
    screen.say("Draw the report")
    from mixtransfer.visualization.demo_report import write_report

    report, scores = write_report([took[key] for key in steps])
    screen.say("Done\n")
    for key, name in NAMES.items():
        print(f"mIoU {name:<13} {scores[key]:5.1f}")
    print(f"report            {report}")
    return 0


def _ends(key: str) -> list[str]:
    return [key, f"test_{key}"]


def _run_chain(steps: list[Step], before: list[str], took: dict[str, tuple[Step, float]], screen: Screen) -> int:
    """Run steps after the commands ``before``, note each as run with its seconds, and return the first status but 0."""
    for step in steps:
        if step.key == "convert":
            step = dataclasses.replace(step, argv=(step.argv[0], str(_newest(WORK / "pretrain")), *step.argv[2:]))
        before.append(step.command)
        screen.say(step.title)
        seconds, status = _run(step, before, screen)
        took[step.key] = step, seconds
        if status:
            return status
    return 0


class Screen:
    """What the user sees while steps run beside each other: a line a step and validation, and where trainings stand."""

    def __init__(self):
        self.start, self.lock = time.monotonic(), threading.Lock()
        self.running: dict[str, str] = {}

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        seconds = int(time.monotonic() - self.start)
        with self.lock:
            self._print(f"[{seconds // 60}:{seconds % 60:02d}] {text}")

    def show(self, step: Step, line: str) -> None:
        """Show what a line of a training's log says: on a terminal where it stands, elsewhere its validations."""
        match = re.search(r"(Iter|Epoch)\((train|val)\) *(\[.*?\](?:\[.*?\])?)", line)
        if not match:
            return
        values = re.findall(r"\b(eta|loss|mIoU|accuracy/top1): *([\d:.]+)", line)
        place = f"{step.key} {match[1].lower()} {re.sub(' +', '', match[3])}"
        text = " ".join([place, *(f"{key} {value}" for key, value in values)])
        with self.lock:
            if "mIoU" in line or "accuracy" in line:
                self._print(f"        {text}")
            elif sys.stdout.isatty():
                self.running[step.key] = text
                print(f"\r\033[K        {'  |  '.join(self.running.values())}", end="", flush=True)

    def end(self, step: Step) -> None:
        """Show the step no more."""
        with self.lock:
            self.running.pop(step.key, None)

    def _print(self, text: str) -> None:
        print(f"\r\033[K{text}" if sys.stdout.isatty() else text, flush=True)


def _run(step: Step, before: list[str], screen: Screen) -> tuple[float, int]:
    """Run a step unless the same commands have led to it before; return seconds and exit status."""
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
            screen.show(step, line)
    seconds = time.monotonic() - start
    screen.end(step)
    if process.returncode:
        print(
            f"{''.join(tail)}\nmixtransfer.demo: error: this step failed: {step.command}\n(log: {log})", file=sys.stderr
        )
        return seconds, process.returncode
    stamp.write_text(json.dumps({"commands": list(before), "seconds": seconds}, indent=1) + "\n", encoding="utf-8")
    return seconds, 0


def _newest(folder: Path) -> Path:
    from mixtransfer.transfer.guards import latest_checkpoint

    return latest_checkpoint(folder)


if __name__ == "__main__":
    sys.exit(main())
