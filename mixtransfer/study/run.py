"""Running a study: cells that are not done are taken one after another, by as many processes as there are.

There is no state beside the cells' folders. Whoever runs takes a cell by its lock, so processes on one machine or on
many share a study without knowing of each other, and each can be killed at any moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from mixtransfer.checkpoints.whole_files import file_hash
from mixtransfer.engine.work_dir import REQUEUE
from mixtransfer.errors import UserError, visible
from mixtransfer.evaluation.records import SCHEMA, write_record
from mixtransfer.study.cells import (
    DONE,
    FAILED,
    FAILURE,
    MEASURED,
    NEW,
    RECORD,
    RUNNING,
    STOPPED,
    CellFolder,
    Step,
    Taken,
    folders,
)
from mixtransfer.study.plan import Study

__all__ = ["Runner", "command_of", "record_of"]

#: Seconds between two looks at cells that other processes run.
LOOK = 2.0
#: A line of a training's log that says where it stands.
PLACE = re.compile(r"(?:Iter|Epoch)\((train|val|test)\) *(\[.*?\](?:\[.*?\])?)(?:.*?\beta: *(\S+(?: days?, \S+)?))?")
#: Entries of a test's output that say where files lie, or that the cell's identity says of the whole cell.
LEFT_OUT = ("checkpoint", "config", "config_hash", "resolved_config")
#: Entries of a conversion's report that a record keeps.
CONVERSION = ("arch", "formats", "parameters", "counts", "dropped", "new")


def command_of(step: Step, processes: int = 1) -> list[str]:
    """Return the command line of a step."""
    module = ["-m", "mixtransfer", *step.argv]
    if processes > 1 and step.distributed:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return [sys.executable, *torchrun, *module, "--launcher", "pytorch"]
    return [sys.executable, *module]


class Stopped(Exception):
    """A cell was stopped, and can go on."""


@dataclass
class Runner:
    """Runs what is not done of a study.

    Args:
        study: what.
        threads: of each cell.
        retry: run cells again that failed.
        redo: put cells aside that were begun with something else, and run them again.
        only: parts of the names of the cells to run; all, if empty.
        say: is told in one line what happens.
    """

    study: Study
    threads: int = 1
    retry: bool = False
    redo: bool = False
    only: Sequence[str] = ()
    say: Callable[[str], None] = print
    stopping: int = 0
    _children: set[subprocess.Popen] = field(default_factory=set)
    _tried: set[str] = field(default_factory=set)
    _choosing: Any = field(default_factory=threading.Lock)

    def __post_init__(self):
        self.cells = [
            folder
            for folder in folders(self.study)
            if not self.only or any(part in folder.cell.name for part in self.only)
        ]
        if not self.cells:
            raise UserError(f"--only {' '.join(self.only)}: no cell has this in its name; 'status' lists them")

    def run(self, slots: Sequence[str | None], signals: bool = True) -> bool:
        """Run cells until nothing is left that can be run; return whether all are done.

        Args:
            slots: one entry for each cell that runs at a time: the GPU that it sees, None for all or none.
            signals: catch signals, and stop the cells at them; else whoever catches them calls :meth:`stop`.

        Raises:
            UserError: the study's file or data are not as they should be, or cells were begun with something else.
        """
        for folder in self.cells:
            folder.require_same(self.redo)
        with self._signals() if signals else contextlib.nullcontext(), ThreadPoolExecutor(len(slots)) as pool:
            for done in [pool.submit(self._serve, slot) for slot in slots]:
                done.result()
        return not self.stopping and all(folder.state()[0] == DONE for folder in self.cells)

    def _serve(self, slot: str | None) -> None:
        waited = False
        while not self.stopping:
            folder = self._next()
            if folder is not None:
                self._run_cell(folder, slot)
                waited = False
                continue
            states = [folder.state()[0] for folder in self.cells]
            if RUNNING not in states:
                return
            if not waited:
                self.say(f"waiting for {states.count(RUNNING)} cells that run")
                waited = True
            time.sleep(LOOK)

    def _next(self) -> CellFolder | None:
        runnable = {NEW, STOPPED, *([FAILED] if self.retry else [])}
        with self._choosing:
            for folder in self.cells:
                if folder.cell.name not in self._tried and folder.state()[0] in runnable:
                    self._tried.add(folder.cell.name)
                    return folder
        return None

    def _run_cell(self, folder: CellFolder, slot: str | None) -> None:
        name = folder.cell.name
        try:
            with folder.claimed() as tell:
                if folder.state()[0] == DONE:
                    return
                folder.begin()
                self.say(f"{name}: starts")
                begun = time.monotonic()
                self._fill(folder, tell, slot)
                self.say(f"{name}: done in {time.monotonic() - begun:.0f} s")
        except Taken:
            # Another process has it, and may be killed.
            self._tried.discard(name)
            time.sleep(LOOK)
        except Stopped as stopped:
            self.say(f"{name}: stopped ({stopped}); the next run goes on with it")
        except UserError as error:
            write_record(folder.path / FAILURE, {"error": str(error)})
            self.say(f"{name}: failed: {error}")

    def _fill(self, folder: CellFolder, tell: Callable[[str], None], slot: str | None) -> None:
        if folder.source and folder.weights and not folder.weights.is_file():
            raise UserError(f"{folder.weights}: is gone; run the study with --redo, or restore it")
        # Later steps name what earlier ones have made.
        for number in range(len(folder.steps())):
            step = folder.steps()[number]
            if not (folder.path / f"{step.name}.done").exists():
                self._run_step(folder, step, tell, slot)
        write_record(folder.path / RECORD, record_of(folder))

    def _run_step(self, folder: CellFolder, step: Step, tell: Callable[[str], None], slot: str | None) -> None:
        command = command_of(step, self.study.processes)
        tether = [sys.executable, "-m", "mixtransfer.study.tether", str(os.getpid())]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        if slot is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot
        tail: deque[str] = deque(maxlen=12)
        begun = time.time()
        with open(folder.path / f"{step.name}.log", "a", encoding="utf-8", buffering=1) as log:
            log.write(f"$ {shlex.join(command[1:])}\n")
            if self.stopping:
                raise Stopped("before its first step")
            process = subprocess.Popen(
                [*tether, *command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._children.add(process)
            try:
                for line in process.stdout or ():
                    log.write(line)
                    tail.append(line)
                    if match := PLACE.search(line):
                        left = f", {match[3]} left" if match[3] else ""
                        tell(f"{step.name} {match[1]} {re.sub(' +', '', match[2])}{left}")
                status, memory, seconds = _wait(process)
            finally:
                self._children.discard(process)
        attempt = {"step": step.name, "begun": begun, "seconds": time.time() - begun, "cpu_seconds": seconds}
        with open(folder.path / "attempts.jsonl", "a", encoding="utf-8") as attempts:
            attempt |= {"status": status, "peak_memory_mb": memory, "slot": slot}
            attempts.write(json.dumps(attempt, sort_keys=True) + "\n")
        if status < 0 or status in (130, REQUEUE):
            raise Stopped(f"by {signal.Signals(-status).name}" if status < 0 else f"status {status}")
        if status:
            said = [line.strip() for line in tail if line.strip()]
            errors = [line for line in said if ": error: " in line] or said[-1:] or [f"exit status {status}"]
            raise UserError(f"{visible(errors[-1])} ({folder.path / step.name}.log)")
        (folder.path / f"{step.name}.done").touch()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass signals on to the cells, which save and stop, and take no new cell."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before = {number: signal.signal(number, self.stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self, number: int, frame: Any = None) -> None:
        """Let the running cells save and stop."""
        self.stopping = number
        for child in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                # Popen's own way would take its exit status away from the one who waits.
                os.kill(child.pid, signal.SIGTERM if number == signal.SIGINT else number)

    def settle(self) -> None:
        """Wait until the cells have stopped."""
        while self._children:
            time.sleep(0.1)


def _wait(process: subprocess.Popen) -> tuple[int, float | None, float | None]:
    """Wait for a process; return its status, the most memory that it held in MB, and its CPU seconds."""
    if not hasattr(os, "wait4"):
        return process.wait(), None, None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, round(usage.ru_maxrss / 1024, 1), round(usage.ru_utime + usage.ru_stime, 2)


def record_of(folder: CellFolder) -> dict[str, Any]:
    """Return the record of a cell whose commands are done.

    Raises:
        UserError: a metric of the task was not measured.
    """
    cell, weights = folder.cell, folder.weights
    measured = folder.read(MEASURED) or {}
    metrics = measured.get("metrics") or {}
    for name in cell.metrics:
        if metrics.get(name) is None:
            raise UserError(
                f"{cell.name}: the metric {name} was not measured; there are {', '.join(sorted(metrics)) or 'none'};"
                " give others as 'metrics' of the task"
            )
    start: dict[str, Any] | None = None
    if folder.source:
        made = folder.source.read(RECORD) or {}
        start = {"cell": folder.source.cell.name, "hash": folder.source.hash} | {
            "sha256": made.get("weights", {}).get("sha256")
        }
    elif weights is not None:
        start = {"sha256": file_hash(weights)}
        report = weights.with_suffix(".json")
        if report.is_file():
            converted = json.loads(report.read_text(encoding="utf-8"))
            start["conversion"] = {key: converted.get(key) for key in CONVERSION}
    return {
        **{key: value for key, value in measured.items() if key not in LEFT_OUT},
        "schema": SCHEMA,
        "name": cell.name,
        "kind": cell.kind,
        "factors": dict(cell.factors),
        "hash": folder.hash,
        "identity": folder.identity,
        "teacher" if cell.kind == "pretrain" else "starts_from": start,
    }
