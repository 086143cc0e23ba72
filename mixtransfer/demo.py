"""``make demo``: a Swin is pretrained with TL-Align, converted, and transferred to UPerNet, all on the built-in scenes.

Every step is a command that a user could type; all of them are listed in the report with the time they took. Steps
that were done before with the same commands are kept, so that an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

WORK = Path("work_dirs/demo")
SCENES = "data/scenes"
PRETRAIN, SEGMENT = "configs/pretrain/swin_micro_scenes.py", "configs/seg/upernet_swin_tlalign.py"
WEIGHTS = WORK / "swin_micro_tlalign.safetensors"
ITERATIONS = 350
VALIDATE = 50
#: Weights of the six classes of stuff and the six of things.
THINGS_COUNT_MORE = "[1,1,1,1,1,1,4,4,4,4,4,4]"
#: UPerNet's published recipe, made small: swin_micro, 48 channels, 128 × 128 pixels, a short schedule.
SMALL = (
    "model.backbone.arch=swin_micro",
    "model.backbone.drop_path_rate=0.0",
    "model.decode_head.channels=48",
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
    "train_dataloader.dataset.pipeline.2.ratio_range=(1.0,1.5)",
    "train_dataloader.dataset.pipeline.3.crop_size=(128,128)",
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


@dataclass(frozen=True)
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
    start = time.monotonic()
    if not Path(SEGMENT).is_file():
        print(f"mixtransfer.demo: error: no {SEGMENT} here; run it in the repository's folder", file=sys.stderr)
        return 2
    if args.fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    took: list[tuple[Step, float]] = []
    before: list[str] = []
    for step in plan():
        if step.key == "convert":
            pretrained = _newest(WORK / "pretrain")
            step = Step(step.key, step.title, (step.argv[0], str(pretrained), *step.argv[2:]), step.makes)
        before.append(step.command)
        print(f"[{_clock(time.monotonic() - start)}] {step.title}", flush=True)
        seconds, status = _run(step, before)
        if status:
            return status
        took.append((step, seconds))
    print(f"[{_clock(time.monotonic() - start)}] Draw the report", flush=True)
    from mixtransfer.visualization.demo_report import write_report

    report, scores = write_report(took)
    print(f"[{_clock(time.monotonic() - start)}] Done\n")
    for key, name in NAMES.items():
        print(f"mIoU {name:<13} {scores[key]:5.1f}")
    print(f"report            {report}")
    return 0


def _run(step: Step, before: list[str]) -> tuple[float, int]:
    """Run a step unless the same commands have led to it before; return seconds and exit status."""
    stamp = WORK / "steps" / f"{step.key}.json"
    if stamp.is_file() and step.makes.exists():
        done = json.loads(stamp.read_text(encoding="utf-8"))
        if done["commands"] == before:
            print(f"        kept from before: {step.makes}", flush=True)
            return done["seconds"], 0
    if step.makes.parent.parent == WORK:
        shutil.rmtree(step.makes.parent, ignore_errors=True)
    log = WORK / "logs" / f"{step.key}.log"
    for folder in (stamp.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    # Threads that spin while they wait take the cores from each other when a machine is busy.
    env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONUNBUFFERED": "1"}
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
            _show(line)
    seconds = time.monotonic() - start
    if process.returncode:
        print(
            f"{''.join(tail)}\nmixtransfer.demo: error: this step failed: {step.command}\n(log: {log})", file=sys.stderr
        )
        return seconds, process.returncode
    stamp.write_text(json.dumps({"commands": before, "seconds": seconds}, indent=1) + "\n", encoding="utf-8")
    return seconds, 0


def _show(line: str) -> None:
    """Show where a training stands: one line that is rewritten on a terminal, a line per validation elsewhere."""
    match = re.search(r"(Iter|Epoch)\((train|val)\) *(\[.*?\](?:\[.*?\])?)", line)
    if not match:
        return
    values = re.findall(r"\b(eta|loss|mIoU|accuracy/top1): *([\d:.]+)", line)
    text = " ".join([match[1].lower(), re.sub(r" +", "", match[3]), *(f" {key} {value}" for key, value in values)])
    measured = "mIoU" in line or "accuracy" in line
    if sys.stdout.isatty():
        print(f"\r        {text:<66}", end="\n" if measured else "", flush=True)
    elif measured:
        print(f"        {text}", flush=True)


def _newest(folder: Path) -> Path:
    from mixtransfer.transfer.guards import latest_checkpoint

    return latest_checkpoint(folder)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


if __name__ == "__main__":
    sys.exit(main())
