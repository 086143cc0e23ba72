"""Trainings that are killed at random moments and resumed, compared bit by bit with trainings that are not.

    python -m benchmarks.kills --json benchmarks/results/kills_DATE.json

A history is one training on the built-in scenes, run twice with the same command: once in peace, and once killed again
and again, each time by another signal, in another part of the work, after a random delay. Everything that a checkpoint
holds, at every step that has one, and every line of the log must be equal. The signal goes to the training's process,
to its whole process group, to ``torchrun`` or to one of its two processes. Trainings of one process are forked from
this one, which has imported the libraries; ``torchrun`` starts the others as ever.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.marks import MARKS
from mixtransfer.checkpoints.whole_files import write_json
from mixtransfer.cli import run_command
from mixtransfer.datasets.scenes import write_scenes
from mixtransfer.evaluation.environment import environment
from mixtransfer.registry import import_quietly

__all__ = ["HISTORIES", "History", "Kill", "differences", "main"]

ROOT = Path(__file__).parents[1]
#: Seconds after which a training that should end or move on counts as hung.
PATIENCE = 600
#: The longest random delay between a mark and the signal, in seconds: steps, batches and writes of files are shorter.
DELAY = 0.12
#: Iterations of a history, and how often it saves and validates.
ITERATIONS, SAVED, VALIDATED = 24, 3, 8
#: Entries of a checkpoint that say when and where it was written, or hold the config as text.
UNCOMPARED = ("time", "eta", "experiment_name", "cfg", "settings", "last_ckpt", "best_ckpt")
#: Columns of the log that measure time.
TIMES = ("time", "data_time", "eta", "memory")

SHARED = """
custom_imports = dict(imports=["benchmarks.marks"])
default_hooks = dict(
    logger=dict(interval=1, log_metric_by_epoch=False),
    checkpoint=dict(interval={saved}, by_epoch=False, max_keep_ckpts=-1),
)
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters={iterations}, val_interval={validated})
val_dataloader = dict(num_workers=0, persistent_workers=False)
optim_wrapper = dict(accumulative_counts={accumulate})
custom_hooks = [*{hooks}, dict(type="MarksHook")]
"""
MIX = 'dict(type="mixtransfer.TokenMixHook", region=dict(type="TokenBox", alpha=1.0), prob=0.7, cell_size=8)'
AVERAGE = 'dict(type="EMAHook", momentum=0.01, priority="ABOVE_NORMAL")'
#: Task -> the recipe that is made small, its own hooks, and what is changed.
RECIPES = {
    "seg": (
        "seg/upernet_swin_micro_camvid.py",
        MIX,
        """
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=(64, 64), ratio_range=(0.8, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(64, 64), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(init_cfg=None, drop_path_rate=0.2),
    decode_head=dict(channels=16),
    auxiliary_head=dict(channels=8),
)
train_dataloader = dict(batch_size=3, num_workers=2, dataset=dict(pipeline=train_pipeline))
param_scheduler = [dict(type="PolyLR", power=0.9, by_epoch=False, begin=0, end=24)]
""",
    ),
    "det": (
        "det/mask_rcnn_swin_micro_nuts.py",
        MIX,
        """
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=(64, 64), ratio_range=(0.8, 1.5), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
model = dict(
    backbone=dict(init_cfg=None, drop_path_rate=0.2),
    neck=dict(out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32),
        mask_head=dict(in_channels=16, conv_out_channels=16),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=50, max_per_img=20), rcnn=dict(sampler=dict(num=16))),
)
train_dataloader = dict(batch_size=2, num_workers=2, dataset=dict(pipeline=train_pipeline))
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=20)]
""",
    ),
    "cls": (
        "pretrain/swin_micro_scenes.py",
        "",
        """
model = dict(backbone=dict(drop_path_rate=0.2), mixing=dict(prob=0.7))
train_dataloader = dict(batch_size=8, num_workers=2)
val_dataloader["batch_size"] = 2
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=24)]
""",
    ),
}


@dataclass(frozen=True)
class History:
    """A training that is killed: its task, whether gradients accumulate and weights are averaged, and its processes."""

    task: str
    accumulate: int = 1
    average: bool = False
    ranks: int = 1

    def config(self) -> str:
        """Return the text of its config."""
        recipe, mix, changes = RECIPES[self.task]
        hooks = f"[{', '.join(hook for hook in (mix, AVERAGE * self.average) if hook)}]"
        numbers = {"iterations": ITERATIONS, "saved": SAVED, "validated": VALIDATED, "accumulate": self.accumulate}
        return f"_base_ = {str(ROOT / 'configs' / recipe)!r}\n{SHARED.format(hooks=hooks, **numbers)}{changes}"

    def start(self, folder: Path, marks: Path, log: int) -> subprocess.Popen | Forked:
        """Start it, or resume it, in the folder of its config; ``log`` is the file of what it prints."""
        options = ["config.py", "--data", "../../scenes", "--work-dir", "run", "--resume", "--deterministic"]
        if self.ranks == 1:
            return Forked(options, folder, marks, log)
        launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
        launch += ["--nproc-per-node", str(self.ranks), str(ROOT / "tools/train.py")]
        paths = os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path)
        return subprocess.Popen(
            [*launch, *options, "--launcher", "pytorch"],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, MARKS: str(marks), "PYTHONPATH": paths},
        )


class Forked:
    """``train`` in a process and a session of its own, without the seconds that importing takes."""

    def __init__(self, options: list[str], folder: Path, marks: Path, log: int):
        def train() -> None:
            os.setsid()
            os.chdir(folder)
            os.environ[MARKS] = str(marks)
            for stream in (1, 2):
                os.dup2(log, stream)
            sys.exit(run_command("train", options))

        self.process = multiprocessing.get_context("fork").Process(target=train)
        self.process.start()
        self.pid = self.process.pid or 0

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float) -> int:
        """Return the exit status once there is one."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("train", timeout)
        return self.process.exitcode


HISTORIES = {
    "seg": History("seg"),
    "seg, accumulation, EMA": History("seg", accumulate=2, average=True),
    "det": History("det"),
    "det, accumulation": History("det", accumulate=3),
    "cls, EMA": History("cls", average=True),
    "cls, accumulation, EMA": History("cls", accumulate=2, average=True),
    "seg, 2 processes, EMA": History("seg", average=True, ranks=2),
    "det, 2 processes, accumulation": History("det", accumulate=2, ranks=2),
    "cls, 2 processes, EMA": History("cls", average=True, ranks=2),
}
#: (part of the work that is hit, signal, who gets it), in the order in which a history of one process is hit.
ALONE = (
    ("save", "SIGKILL", "process"),
    ("validation", "SIGTERM", "group"),
    ("step", "SIGUSR1", "process"),
    ("validation", "SIGKILL", "process"),
    ("step", "SIGTERM", "group"),
    ("save", "SIGINT", "process"),
    ("step", "SIGKILL", "group"),
    ("save", "SIGUSR1", "group"),
    ("validation", "SIGINT", "group"),
    ("second", "SIGINT", "process"),
    ("start", "SIGKILL", "process"),
    ("validation", "SIGUSR1", "process"),
)
#: The same for two processes under torchrun.
TOGETHER = (
    ("step", "SIGTERM", "torchrun"),
    ("save", "SIGKILL", "all"),
    ("validation", "SIGUSR1", "both"),
    ("step", "SIGKILL", "second"),
    ("validation", "SIGINT", "torchrun"),
    ("save", "SIGTERM", "torchrun"),
    ("step", "SIGUSR1", "second"),
    ("validation", "SIGKILL", "first"),
    ("save", "SIGINT", "torchrun"),
)


@dataclass
class Kill:
    """One kill: what was hit, where it stood, how it ended, and what the next start found.

    ``delay`` is in ms from the first mark of ``part`` at ``iteration`` to the signal, ``seconds`` from the signal to
    the end of all processes.
    """

    part: str
    signal: str
    target: str
    iteration: int = -1
    delay: int = 0
    status: int | None = None
    seconds: float = 0.0
    left: str = "nothing"
    half_written: int = 0


class Training:
    """One start of a history's command: its process, and the marks that it leaves."""

    def __init__(self, history: History, folder: Path):
        self.marks = folder / "marks"
        self.marks.write_bytes(b"")
        self.folder, self.log = folder, open(folder / "log.txt", "ab")
        self.process = history.start(folder, self.marks, self.log.fileno())

    def lines(self) -> list[list[str]]:
        """Return the marks so far: rank, process, part, iteration."""
        return [line.split() for line in self.marks.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def at(self, part: str, iteration: int) -> int | None:
        """Wait for a mark of ``part`` at ``iteration`` or later and return its iteration; None if training ends."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for _, _, kind, number in self.lines():
                if kind == part and int(number) >= iteration:
                    return int(number)
            if self.process.poll() is not None:
                return None
            time.sleep(0.002)
        raise TimeoutError(f"{self.folder}: no {part} at iteration {iteration} in {PATIENCE} s, see log.txt")

    def ranks(self) -> dict[str, int]:
        """Return the processes that train, by rank."""
        return {rank: int(process) for rank, process, *_ in self.lines()}

    def alive(self) -> list[int]:
        """Return every process of this start that still runs, data workers too."""
        mark, found = f"{MARKS}={self.marks}".encode(), []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
                ours = int(session) == self.process.pid or mark in (path / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if ours and state != "Z":
                found.append(int(path.name))
        return found

    def send(self, name: str, target: str) -> None:
        """Send a signal."""
        number, ranks = signal.Signals[name], self.ranks()
        processes = {
            "process": [self.process.pid],
            "torchrun": [self.process.pid],
            "first": [ranks.get("0")],
            "second": [ranks.get("1")],
            "both": list(ranks.values()),
        }
        try:
            if target == "group":
                os.killpg(self.process.pid, number)
            for process in self.alive() if target == "all" else processes.get(target, []):
                if process is not None:
                    os.kill(process, number)
        except ProcessLookupError:
            pass

    def end(self) -> int:
        """Wait until no process of it is left, and return the exit status of the first."""
        status = self.process.wait(PATIENCE)
        until = time.monotonic() + 60
        while left := self.alive():
            if time.monotonic() > until:
                for process in left:
                    os.kill(process, signal.SIGKILL)
                raise TimeoutError(f"{self.folder}: processes {left} outlived the training")
            time.sleep(0.02)
        self.log.close()
        return status


def run_in_peace(history: History, folder: Path) -> None:
    """Run a history from start to end."""
    status = Training(history, folder).end()
    if status:
        raise RuntimeError(f"{folder}: exit status {status}, see log.txt")


def kill(history: History, folder: Path, planned: Kill, iteration: int, rng: random.Random) -> bool:
    """Start or resume a history and kill it at or after ``iteration``; return False if it came to its end."""
    training = Training(history, folder)
    part = "step" if planned.part == "second" else planned.part
    reached = training.at(part, 0 if part == "start" else iteration)
    if reached is None:
        training.end()
        return False
    delay = rng.uniform(0, DELAY * (8 if part == "start" else 1))
    time.sleep(delay)
    planned.iteration, planned.delay = reached, round(1000 * delay)
    began = time.monotonic()
    training.send(planned.signal, planned.target)
    if planned.part == "second":
        # Once the first signal is answered by saving, or training has gone on.
        saves = sum(kind == "save" for _, _, kind, _ in training.lines())
        until = time.monotonic() + 30
        while time.monotonic() < until and training.process.poll() is None:
            if sum(kind == "save" for _, _, kind, _ in training.lines()) > saves:
                time.sleep(rng.uniform(0, DELAY / 4))
                training.send(planned.signal, planned.target)
                break
            time.sleep(0.001)
    planned.status = training.end()
    if planned.status == 0:
        return False
    planned.seconds = round(time.monotonic() - began, 1)
    named = folder / "run" / "last_checkpoint"
    planned.left = Path(named.read_text().strip()).name if named.is_file() else "nothing"
    planned.half_written = len(list((folder / "run").glob(".*.partial")))
    return True


def plan(history: History, count: int, turn: int, rng: random.Random) -> list[tuple[int, Kill]]:
    """Return ``count`` kills, each with the earliest iteration it comes at; ``turn`` says with which kind to begin."""
    kinds = ALONE if history.ranks == 1 else TOGETHER
    chosen = [kinds[(turn + number) % len(kinds)] for number in range(count)]
    # In order, so that something may be done in between; two validations and some checkpoints stay ahead.
    places = sorted(rng.uniform(0, ITERATIONS - VALIDATED - 1) for _ in chosen)
    return [(round(place), Kill(*kind)) for place, kind in zip(places, chosen, strict=True)]


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested values with their names, without what two runs never share."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    if not isinstance(value, Mapping | list | tuple):
        yield name, value
    for key, item in items:
        if str(key) in UNCOMPARED or (".log_scalars" in name and str(key).rpartition("/")[2] in TIMES):
            continue
        yield from flat(item, f"{name}.{key}")


def equal(one: Any, other: Any) -> bool:
    """Tell whether two leaves are the same bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.numpy().tobytes() == other.numpy().tobytes()
    return type(one) is type(other) and (one == other or (one != one and other != other))


def checkpoint_differences(peace: Path, killed: Path) -> tuple[int, list[str]]:
    """Return how many leaves were compared in two folders' checkpoints, and the names of those that differ."""
    compared, odd = 0, []
    names = [sorted(path.name for path in folder.glob("iter_*.pth")) for folder in (peace, killed)]
    odd += [f"{name}: in one of both only" for name in set(names[0]) ^ set(names[1])]
    for name in set(names[0]) & set(names[1]):
        first, second = (dict(flat(torch.load(folder / name, weights_only=True))) for folder in (peace, killed))
        compared += len(first)
        odd += [f"{name}{key}" for key in first.keys() ^ second.keys()]
        odd += [f"{name}{key}" for key in first.keys() & second.keys() if not equal(first[key], second[key])]
    return compared, sorted(odd)


def logged(folder: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return the lines of every start's log by kind and step, without their times."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        # A kill may cut the last line.
        for text in path.read_text().splitlines(keepends=True):
            if text.endswith("\n"):
                line = {key: value for key, value in json.loads(text).items() if key not in TIMES}
                found.setdefault(("train" if "loss" in line else "val", line["step"]), []).append(line)
    return found


def differences(peace: Path, killed: Path) -> tuple[int, list[str]]:
    """Return how many values of two work directories were compared, and what differs."""
    compared, odd = checkpoint_differences(peace, killed)
    first, second = logged(peace), logged(killed)
    odd += [f"log: {kind} {step} is missing" for kind, step in first.keys() - second.keys()]
    for (kind, step), lines in second.items():
        for line in lines:
            expected = first.get((kind, step), [{}])[-1]
            compared += len(line)
            odd += [
                f"log: {kind} {step}: {key}"
                for key in line.keys() | expected.keys()
                if line.get(key) != expected.get(key)
            ]
    return compared, odd


def run_history(name: str, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Run a history in peace and killed ``count`` times, and return what became of it."""
    history, rng = HISTORIES[name], random.Random(f"{name} {seed}")
    for part in ("peace", "killed"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.py").write_text(history.config())
    run_in_peace(history, folder / "peace")
    kills = []
    turn = seed + 5 * list(HISTORIES).index(name)
    for iteration, planned in plan(history, count, turn, rng):
        if not kill(history, folder / "killed", planned, iteration, rng):
            print(f"{name}: came to its end before it was killed at {iteration}", flush=True)
            break
        kills.append(planned)
        print(f"{name}: {planned}", flush=True)
    run_in_peace(history, folder / "killed")
    compared, odd = differences(folder / "peace" / "run", folder / "killed" / "run")
    return {"kills": [asdict(done) for done in kills], "compared": compared, "differences": odd}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the kills as a Markdown table, one row a history."""
    rows = ["| training | kills | by | in | values compared | different |", "|---|---:|---|---|---:|---:|"]
    for name, result in results.items():
        kills = result["kills"]
        by, parts = (
            ", ".join(f"{sum(item == kind for item in items)} {kind}" for kind in dict.fromkeys(items))
            for items in ([f"{one['signal']} to {one['target']}" for one in kills], [one["part"] for one in kills])
        )
        rows.append(f"| {name} | {len(kills)} | {by} | {parts} | {result['compared']} | {len(result['differences'])} |")
    total = sum(len(result["kills"]) for result in results.values())
    same = sum(len(result["kills"]) for result in results.values() if not result["differences"])
    return "\n".join([*rows, "", f"{total} kills, {same} of them bit-equal"])


def main() -> int:
    """Run the histories that the command line names."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__.splitlines()[0])
    options.add_argument("--history", nargs="+", choices=HISTORIES, default=list(HISTORIES), metavar="NAME")
    options.add_argument("--kills", type=int, default=5, metavar="N", help="kills of each history (default 5)")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="of moments and delays (default 0)")
    options.add_argument("--folder", type=Path, help="where the trainings go (default: a temporary folder)")
    options.add_argument("--json", type=Path, help="file of results; histories in it that are not run are kept")
    args = options.parse_args()
    content = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {"histories": {}}
    for name in ("mmseg", "mmdet", "mmpretrain"):
        import_quietly(f"{name}.models")
        import_quietly(f"{name}.datasets")
    import_quietly("mixtransfer.engine.runner")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.folder or temporary).resolve()
        write_scenes(root / "scenes", train=16, val=6, classify_train=48, classify_val=12, size=(64, 64))
        for name in args.history:
            result = run_history(name, root / name.replace(", ", "_"), args.kills, args.seed)
            about = {"date": datetime.date.today().isoformat(), "seed": args.seed, **environment(torch.device("cpu"))}
            content["histories"][name] = {**result, "environment": about}
            if args.json:
                write_json(args.json, content)
    print(table(content["histories"]))
    return int(any(result["differences"] for result in content["histories"].values()))


if __name__ == "__main__":
    sys.exit(main())
