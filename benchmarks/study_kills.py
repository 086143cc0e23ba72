"""A study whose driver and cells are killed at random moments, compared byte by byte with one that is not.

    python -m benchmarks.study_kills --json benchmarks/results/study_kills_DATE.json

The study is ``studies/few_labels.py`` made small: UPerNet on our smallest Swin, scenes of 64×64, token mixing off and
on. It is run once in peace, and once with SIGKILL at random moments, in turn to the driver, with which its
cells end, and to the cell that it runs; the next ``run`` goes on. Records and tables must have the same bytes.
Trainings and tests are the ordinary commands in processes of their own; drivers are forked from this process, which
has imported the libraries.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mixtransfer.checkpoints.whole_files import write_json
from mixtransfer.datasets.scenes import write_scenes
from mixtransfer.evaluation.environment import environment
from mixtransfer.study.cells import DONE, folders
from mixtransfer.study.plan import read_study
from mixtransfer.study.report import write
from mixtransfer.study.run import Runner

__all__ = ["main"]

ROOT = Path(__file__).parents[1]
#: Files of a study's results in which no times stand.
COMPARED = ("records.jsonl", "records.csv", "images.jsonl", "table.md", "table.csv", "table.tex")
STUDY = """
title = "Kills"
work_dir = {work!r}
backbones = ["swin_micro"]
tasks = dict(
    scenes=dict(
        config={config!r},
        data={data!r},
        metrics=["mIoU", "aAcc"],
        options=[
            "model.data_preprocessor.size=(64,64)",
            "train_dataloader.batch_size=4",
            "train_dataloader.dataset.pipeline.2.scale=(256,64)",
            "train_dataloader.dataset.pipeline.3.crop_size=(64,64)",
            "test_dataloader.dataset.pipeline.1.scale=(256,64)",
            "val_dataloader.dataset.indices=2",
            "train_cfg.max_iters={iterations}",
            "train_cfg.val_interval={iterations}",
            "param_scheduler.0.end=2",
            "param_scheduler.1.begin=2",
            "param_scheduler.1.end={iterations}",
            "default_hooks.checkpoint.interval=2",
            "default_hooks.logger.interval=1",
        ],
    )
)
hooks = dict(off=["custom_hooks.0.prob=0"], token_box=[])
seeds = {seeds}
compare = dict(hooks="off")
"""


def write_study(folder: Path, data: Path, iterations: int, seeds: int) -> Path:
    """Write the study's file and return it."""
    folder.mkdir()
    config = ROOT / "configs/seg/upernet_swin_micro_scenes.py"
    text = STUDY.format(
        work=str(folder / "work"), config=str(config), data=str(data), iterations=iterations, seeds=seeds
    )
    (folder / "kills.py").write_text(text, encoding="utf-8")
    return folder / "kills.py"


def start(file: Path) -> multiprocessing.Process:
    """Start a driver, which runs the study or goes on with it, one cell at a time."""

    def drive() -> None:
        os.setsid()
        log = os.open(file.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        Runner(read_study(file)).run([None])

    driver: Any = multiprocessing.get_context("fork").Process(target=drive)
    driver.start()
    return driver


def cells_of(pid: int) -> list[int]:
    """Return the processes that a driver runs its cells in."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except FileNotFoundError:
        return []


def step_of(study: Path) -> str:
    """Return what the study was at: the last line of the newest log of a cell."""
    logs = sorted((study.parent / "work/cells").glob("*/*.log"), key=lambda path: path.stat().st_mtime_ns)
    return f"{logs[-1].parent.name.rpartition('-')[0]}, {logs[-1].stem}" if logs else "before the first cell"


def run_killed(file: Path, kills: int, longest: float, rng: random.Random) -> list[dict[str, Any]]:
    """Run a study to its end with kills at random moments; return what was killed, and at what.

    Args:
        file: the study's.
        kills: how many.
        longest: seconds between two kills, or between a start and a kill, at most.
        rng: draws the moments.
    """
    found: list[dict[str, Any]] = []
    driver = start(file)
    while len(found) < kills:
        time.sleep(rng.uniform(0, longest))
        victim = ("driver", "cell")[len(found) % 2]
        if driver.is_alive():
            targets = [driver.pid] if victim == "driver" else cells_of(driver.pid or 0)
            at = step_of(file)
            for pid in targets:
                os.kill(pid or 0, signal.SIGKILL)
            if targets:
                found.append({"victim": victim, "at": at})
                print(f"kill {len(found)}: {victim}, {at}", flush=True)
            if victim == "driver":
                driver.join()
        if not driver.is_alive():
            if all(folder.state()[0] == DONE for folder in folders(read_study(file))):
                break
            driver = start(file)
    driver.join()
    finish(file)
    return found


def finish(file: Path) -> float:
    """Run a study to its end without a kill; return the seconds.

    Raises:
        SystemExit: a cell is not done.
    """
    begun = time.monotonic()
    driver = start(file)
    driver.join()
    states = {folder.cell.name: folder.state() for folder in folders(read_study(file))}
    odd = {name: state for name, state in states.items() if state[0] != DONE}
    if odd:
        raise SystemExit(f"{file}: is not done: {odd}")
    return time.monotonic() - begun


def main(argv: list[str] | None = None) -> int:
    """Run both studies; return 1 where a file of their results differs."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.study_kills", description="Kills of a study.")
    options.add_argument("--kills", type=int, default=10, help="how many (default: %(default)s)")
    options.add_argument("--iterations", type=int, default=12, help="of each training (default: %(default)s)")
    options.add_argument("--seeds", type=int, default=2, help="of the study, two cells each (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    options.add_argument("--json", help="file to write")
    args = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = folder / "data"
        write_scenes(data, train=8, val=8, classify_train=12, classify_val=12, size=(64, 64))
        peace, killed = (write_study(folder / name, data, args.iterations, args.seeds) for name in ("peace", "killed"))
        # Forked drivers find the config read.
        folders(read_study(peace))[0].identity  # noqa: B018
        seconds = finish(peace)
        print(f"in peace: {seconds:.0f} s", flush=True)
        kills = run_killed(killed, args.kills, seconds / 6, random.Random(args.seed))
        for file in (peace, killed):
            write(read_study(file), file.parent / "out")
        pairs = {name: [(file.parent / "out" / name).read_bytes() for file in (peace, killed)] for name in COMPARED}
    different = [name for name, (one, other) in pairs.items() if one != other]
    print(f"{len(kills)} kills; different: {', '.join(different) or 'none'} of {', '.join(COMPARED)}")
    if args.json:
        content = {"environment": environment(torch.device("cpu")), "date": datetime.date.today().isoformat()}
        content |= {"seconds_in_peace": round(seconds, 1), "iterations": args.iterations, "cells": 2 * args.seeds}
        content |= {"kills": kills}
        content |= {"compared": {name: len(one) for name, (one, _) in pairs.items()}, "different": different}
        write_json(Path(args.json), content)
    return int(bool(different) or len(kills) < args.kills)


if __name__ == "__main__":
    sys.exit(main())
