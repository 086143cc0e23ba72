"""The hook by which a training tells :mod:`benchmarks.kills` where it stands."""

from __future__ import annotations

import os
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

__all__ = ["MARKS", "MarksHook"]

#: Environment variable: the file that a training's processes write to where they stand.
MARKS = "MIXTRANSFER_KILL_MARKS"


@HOOKS.register_module()
class MarksHook(Hook):
    """Write where a training stands to the file that :data:`MARKS` names: one line ``RANK PID PART ITERATION``."""

    def _mark(self, runner: Any, part: str) -> None:
        line = f"{runner.rank} {os.getpid()} {part} {runner.iter}\n"
        with open(os.environ[MARKS], "ab", buffering=0) as file:
            file.write(line.encode())

    def before_run(self, runner: Any) -> None:
        """The model is built."""
        self._mark(runner, "start")

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """A batch is there."""
        self._mark(runner, "step")

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """A batch of validation is there."""
        self._mark(runner, "validation")

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """A checkpoint is about to be written."""
        self._mark(runner, "save")
