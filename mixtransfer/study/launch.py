"""Places for a study's cells to run: as processes here, as jobs of a cluster, or by hand."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtransfer.errors import UserError
from mixtransfer.study.plan import read_study
from mixtransfer.study.run import Runner

__all__ = ["Worker", "gpu_slots", "submit"]

#: The variable by which submitit is told its log level.
LOG_LEVEL = "SUBMITIT_LOG_LEVEL"


def gpu_slots(jobs: int | None, processes: int) -> list[str | None]:
    """Return the slots of :meth:`~mixtransfer.study.run.Runner.run` on this machine.

    One cell a GPU, or one for as many GPUs as it has processes; without GPUs one cell, unless ``jobs`` says more.

    Raises:
        UserError: more cells at a time than GPUs.
    """
    import torch

    count = torch.cuda.device_count()
    if not count:
        return [None] * (jobs or 1)
    groups = [",".join(map(str, range(i, i + processes))) for i in range(0, count - processes + 1, processes)]
    if not groups or (jobs or 1) > len(groups):
        raise UserError(f"--jobs {jobs or 1}: {count} GPUs are enough for {len(groups)} cells of {processes} processes")
    return list(groups[:jobs] if jobs else groups)


@dataclass
class Worker:
    """A job that runs cells of a study one after another until none is left; submitit repeats it when preempted."""

    file: Path
    threads: int
    retry: bool
    redo: bool
    only: Sequence[str]

    def __call__(self) -> bool:
        """Run; return whether the study is done."""
        self.runner = Runner(read_study(self.file), self.threads, self.retry, self.redo, self.only, _say)
        # A job sees the GPUs that it was given.
        return self.runner.run([None], signals=False)

    def checkpoint(self) -> Any:
        """Let the cell save, and return what is to be submitted again; submitit calls it before time is over."""
        from submitit.helpers import DelayedSubmission

        self.runner.stop(signal.SIGUSR2)
        self.runner.settle()
        return DelayedSubmission(Worker(self.file, self.threads, False, False, self.only))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "runner"}


def _say(text: str) -> None:
    print(text, flush=True)


def submit(worker: Worker, jobs: int, cluster: str = "slurm") -> list[Any]:
    """Submit as many jobs as are to run at a time, and return them.

    Args:
        worker: what each does.
        jobs: how many.
        cluster: "slurm", or "local" for processes of this machine that outlive this one.

    Raises:
        UserError: submitit is not installed, the cluster is not there, or an entry of ``slurm`` is unknown to it.
    """
    # On its import submitit configures logging, which closes the log files of everything else in this process.
    chosen = os.environ.get(LOG_LEVEL)
    os.environ.setdefault(LOG_LEVEL, "NOCONFIG")
    try:
        import submitit
    except ImportError:
        raise UserError("--launcher slurm needs submitit: pip install 'mixtransfer[cluster]'") from None
    finally:
        if chosen is None:
            del os.environ[LOG_LEVEL]
    study = read_study(worker.file)
    folder = study.work_dir / "jobs"
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(name=worker.file.stem, **({"timeout_min": 24 * 60} | dict(study.slurm)))
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise UserError(f"{worker.file}: slurm: {str(error).strip().splitlines()[0]}") from error
    return [executor.submit(worker) for _ in range(jobs)]
