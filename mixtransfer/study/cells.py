"""A cell on disk: its identity, its folder, and the commands that fill it.

A cell's folder is named after the cell and its identity, and holds everything that there is to know about its state,
so that any process on any machine that sees the folder can go on with the study.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mixtransfer.engine.config import differences, load_config
from mixtransfer.engine.work_dir import checkpoints
from mixtransfer.errors import UserError
from mixtransfer.evaluation.identity import Fingerprints, content_hash, resolved, versions
from mixtransfer.evaluation.records import write_record
from mixtransfer.study.plan import NONE, Cell, Study

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["DONE", "FAILED", "RUNNING", "STOPPED", "WAITING", "CellFolder", "Step", "Taken", "folders"]

#: What a cell can be.
WAITING, NEW, RUNNING, STOPPED, FAILED, DONE = "waiting", "not started", "running", "stopped", "failed", "done"
#: Seconds between two signs of life, and after how many without one a process on another machine counts as gone.
BEAT, GONE = 5, 120
#: Files of a cell's folder: how it began, its sign of life, its lock, its failure, its result.
BEGUN, ALIVE, LOCK, FAILURE, RECORD = "cell.json", "alive.json", "lock", "failed.json", "record.json"
MEASURED = "measured.json"
WEIGHTS = "weights.safetensors"


class Taken(Exception):
    """Another process has the cell."""


@dataclass(frozen=True)
class Step:
    """One command of a cell: its name, its arguments, and whether several processes may run it."""

    name: str
    argv: tuple[str, ...]
    distributed: bool = False


def folders(study: Study) -> list[CellFolder]:
    """Return the folders of a study's cells, in the order of the cells; nothing is written."""
    fingerprints = Fingerprints(study.work_dir / "fingerprints.json")
    made: dict[str, CellFolder] = {}
    configs: dict[tuple, Config] = {}
    for cell in study.cells:
        source = made[cell.source.name] if cell.source else None
        made[cell.name] = CellFolder(study, cell, source, fingerprints, configs)
    return list(made.values())


class CellFolder:
    """The folder of one cell.

    Args:
        study, cell: which.
        source: the folder of the cell that makes the weights.
        fingerprints: of datasets.
        configs: those that were loaded for other cells.
    """

    def __init__(
        self,
        study: Study,
        cell: Cell,
        source: CellFolder | None,
        fingerprints: Fingerprints,
        configs: dict[tuple, Config],
    ):
        self.study, self.cell, self.source = study, cell, source
        self.fingerprints, self.configs = fingerprints, configs

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that can change the cell's numbers.

        Raises:
            UserError: the config, an option, the data or the weights are not as they should be.
        """
        cell = self.cell
        cfg = self._load(cell.config, ("train", "test") if cell.metrics else ("train",), cell.data)
        weights = f"cell:{self.source.hash}" if self.source else cell.weights
        config = resolved(cfg, {WEIGHTS: weights} if self.source and weights else {})
        identity = {
            "kind": cell.kind,
            "config": config,
            "data": {name: self.fingerprints.of(cfg, split) for name, split in (("train", "train"), ("test", "test"))},
            "seed": cell.seed,
            "processes": self.study.processes,
        }
        if cell.factors["fraction"] not in (NONE, "1"):
            identity |= {"fraction": cell.factors["fraction"], "fraction_seed": self.fraction_seed}
        if cell.kind == "probe":
            from mixtransfer.evaluation.probe import Recipe

            recipe = asdict(Recipe(seeds=(cell.seed,), **cell.recipe))
            # As JSON has it, which an identity is read back from.
            identity["recipe"] = {
                key: list(value) if isinstance(value, tuple) else value for key, value in recipe.items()
            }
        return identity

    def _load(self, config: str, splits: tuple[str, ...], data: str | None) -> Config:
        """Return the cell's config; seeds share it."""
        options = self.options(Path(WEIGHTS))
        key = config, splits, data, tuple(options)
        if key not in self.configs:
            work = self.study.work_dir
            self.configs[key] = load_config(config, splits, options=options, data=data, work_dir=work)
        return self.configs[key]

    @cached_property
    def hash(self) -> str:
        """The hash of the identity."""
        return content_hash(self.identity)

    @cached_property
    def path(self) -> Path:
        """The folder, which need not be there yet."""
        return self.study.work_dir / "cells" / f"{self.cell.name}-{self.hash[:8]}"

    @property
    def fraction_seed(self) -> int:
        """The seed that the labeled images are chosen with: the study's, or the cell's own."""
        return self.cell.seed if self.study.fraction_seed is None else self.study.fraction_seed

    @property
    def weights(self) -> Path | None:
        """The file that the backbone starts from, or the teacher of a pretraining."""
        if self.source and self.cell.kind == "pretrain":
            trained = self.source.path / "train"
            return next(iter(checkpoints(trained)), trained / "CHECKPOINT")
        if self.source:
            return self.source.path / WEIGHTS
        return Path(self.cell.weights) if self.cell.weights else None

    def options(self, weights: Path | None = None) -> list[str]:
        """Return the options of the cell's config; ``weights`` stands for a file that another cell makes."""
        cell = self.cell
        file = weights if self.source and weights else self.weights
        if cell.kind == "pretrain":
            taught = [f"model.teacher=dict(arch={cell.arch!r},checkpoint={str(file)!r})"] if file else []
            return [f"model.arch={cell.arch}", *cell.options, *taught]
        start = "None" if file is None else f"dict(type='mixtransfer.Pretrained',checkpoint={str(file)!r})"
        return [f"model.backbone.arch={cell.arch}", *cell.options, f"model.backbone.init_cfg={start}"]

    def steps(self) -> list[Step]:
        """Return the commands that fill the folder; a checkpoint that is not there yet is named after its kind."""
        cell = self.cell
        data = ("--data", cell.data) if cell.data else ()
        options = ("--cfg-options", *self.options())
        if cell.kind == "probe":
            start = str(self.weights) if self.weights else "random"
            numbers = [word for name, value in cell.recipe.items() for word in (f"--{name}", str(value))]
            common = (*data, "--work-dir", str(self.path / "probe"), "--seeds", str(cell.seed), *numbers)
            kept = ("--cache", str(self.study.work_dir / "maps"), "--out", str(self.path / MEASURED))
            return [Step("probe", ("probe", cell.config, start, *common, *kept, *options))]
        trained = self.path / "train"
        checkpoint = str(next(iter(checkpoints(trained)), trained / "CHECKPOINT"))
        part = ()
        if "fraction" in self.identity:
            part = ("--fraction", cell.factors["fraction"], "--fraction-seed", str(self.fraction_seed))
        train = ("train", cell.config, *data, "--work-dir", str(trained), "--resume", "--seed", str(cell.seed), *part)
        steps = [Step("train", (*train, *options), distributed=True)]
        if cell.metrics:
            out = ("--work-dir", str(self.path / "test"), "--out", str(self.path / MEASURED))
            images = ("--per-image",) if self.study.per_image else ()
            steps.append(Step("test", ("test", cell.config, checkpoint, *data, *out, *images, *options)))
        if cell.kind == "pretrain":
            made = str(self.path / WEIGHTS)
            steps.append(Step("convert", ("convert", checkpoint, made, "--arch", cell.arch, "--force")))
        return steps

    def state(self) -> tuple[str, str]:
        """Return what the cell is, and more about it in one line."""
        if self.read(RECORD) is not None:
            return DONE, ""
        alive = self.alive()
        if alive is not None:
            return RUNNING, f"{alive.get('progress', '')} ({alive['host']}, process {alive['pid']})".strip()
        failure = self.read(FAILURE)
        if failure is not None:
            return FAILED, failure["error"]
        if self.source and self.source.read(RECORD) is None:
            return WAITING, f"for {self.source.cell.name}"
        return (NEW, "") if self.read(BEGUN) is None else (STOPPED, "")

    def read(self, name: str) -> Any:
        """Return what a file of the folder holds; None where there is none."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{self.path / name}: is damaged ({error}); delete it") from error

    def alive(self) -> dict[str, Any] | None:
        """Return the last sign of life of a process that runs the cell; None where none does."""
        sign = self.read(ALIVE)
        if sign is None or time.time() - sign["at"] > GONE:
            return None
        return sign if sign["host"] != platform.node() or _lives(sign["pid"]) else None

    def require_same(self, redo: bool) -> None:
        """Make sure that what was begun in the folder, or under the cell's name, is what the study says now.

        Args:
            redo: put what is otherwise aside, to ``former``, and start again.

        Raises:
            UserError: naming what changed.
        """
        present = sorted(path for path in self.path.parent.glob(f"{self.cell.name}-????????") if path.is_dir())
        for path in present:
            try:
                begun = json.loads((path / BEGUN).read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):
                continue
            # A package that the cell does not name was not there, or not looked at by an earlier version.
            now = {name: version for name, version in versions().items() if name in begun["versions"]}
            changes = differences(begun["identity"], self.identity) + [
                f"package {line}" for line in differences(begun["versions"], now)
            ]
            if not changes:
                continue
            if not redo:
                more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
                raise UserError(
                    f"{path}: was begun with {changes[0]}{more}; restore it, or put the cell aside and run it again"
                    " with --redo"
                )
            former = self.study.work_dir / "former"
            former.mkdir(parents=True, exist_ok=True)
            number = len(list(former.iterdir()))
            shutil.move(path, former / f"{path.name}.{number}")

    @contextmanager
    def claimed(self) -> Iterator[Callable[[str], None]]:
        """Keep all other processes off the cell; yields what is to be told where the cell stands.

        Raises:
            Taken: another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise Taken from error
        try:
            # Locks of some network file systems do not reach other machines; signs of life do.
            sign = self.alive()
            if sign is not None and sign["host"] != platform.node():
                raise Taken
            with _beating(self.path / ALIVE) as tell:
                yield tell
        finally:
            lock.release()

    def begin(self) -> None:
        """Write down with what the cell is run, and forget that it failed before."""
        (self.path / FAILURE).unlink(missing_ok=True)
        if self.read(BEGUN) is None:
            begun = {"name": self.cell.name, "factors": dict(self.cell.factors), "hash": self.hash}
            write_record(self.path / BEGUN, begun | {"identity": self.identity, "versions": versions()})


@contextmanager
def _beating(path: Path) -> Iterator[Callable[[str], None]]:
    sign: dict[str, Any] = {"pid": os.getpid(), "host": platform.node(), "progress": ""}
    over = threading.Event()

    def write() -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(sign | {"at": time.time()}), encoding="utf-8")
        os.replace(partial, path)

    def beat() -> None:
        while not over.wait(BEAT):
            write()

    def tell(progress: str) -> None:
        sign["progress"] = progress

    write()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        over.set()
        thread.join()
        path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    if os.name == "nt":  # where the call would be a Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
