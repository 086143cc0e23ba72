"""The console of a run: progress with the time left, and nothing of libraries that a reader cannot act on.

The log file has everything.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mixtransfer.errors import visible
from mixtransfer.progress import is_first_process

__all__ = ["ConsoleFilter", "ProgressHook", "quiet_libraries"]

#: Records of libraries about their own defaults and future, which nothing in a config or command changes.
USELESS = re.compile(
    r'The prefix is not set in metric class|"FileClient" will be deprecated|"\w+" is the alias of "LocalBackend"'
    r"|The `\w+` (?:runner|model|data) is already built|init_weights of \w+ has been called more than once"
)
#: Seconds without a line after which progress is shown: in the first ``SOON`` seconds of a phase, and later.
EARLY, LATER, SOON = 3.0, 30.0, 30.0
#: Folders of installed packages and of Python itself.
INSTALLED = tuple(str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib", "stdlib"))


class ConsoleFilter:
    """Lets a record reach the console if a reader can act on it, and shows what a terminal would act on.

    Attributes:
        last: when the last record passed, as :func:`time.monotonic` counts.
    """

    def __init__(self) -> None:
        self.last = time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is shown."""
        if USELESS.match(record.getMessage()):
            return False
        self.last = time.monotonic()
        return True


@contextlib.contextmanager
def quiet_libraries(log: Callable[[], logging.Logger | None] = lambda: None) -> Iterator[None]:
    """Keep warnings of installed packages from the console while a run lasts; its log file has them.

    Args:
        log: returns the run's logger, or None before there is one.
    """
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def keep(message: Any, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
            if not str(Path(filename).resolve()).startswith(INSTALLED):
                shown(message, category, filename, lineno, *rest)
            elif (logger := log()) is not None:
                text = f"{category.__name__}: {visible(message)}"
                record = logger.makeRecord(logger.name, logging.WARNING, filename, lineno, text, (), None)
                for handler in logger.handlers:
                    if isinstance(handler, logging.FileHandler):
                        handler.handle(record)

        warnings.showwarning = keep
        # It prints what it is about to do; its answers are silent.
        coco = sys.modules.get("pycocotools.coco")
        if coco is not None:
            vars(coco)["print"] = lambda *_, **__: None
        try:
            yield
        finally:
            if coco is not None:
                vars(coco).pop("print", None)


class ProgressHook(Hook):
    """Lines on stderr, with the time left, where the log says nothing for seconds.

    Args:
        console: what notes the log's last line on the console.
    """

    priority = "VERY_LOW"

    def __init__(self, console: ConsoleFilter):
        self.console = console
        self.phase, self.begun, self.mark = "", 0.0, 0.0
        #: Phase -> seconds and number of steps that followed another step of it, so without what lies between phases.
        self.spent: dict[str, tuple[float, int]] = {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Show how far training is."""
        self._step("training", runner.iter + 1, runner.max_iters)

    def before_val_epoch(self, runner: Runner) -> None:
        """Begin to count."""
        self._begin("validation")

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Show how far the validation is."""
        self._step("validation", batch_idx + 1, len(runner.val_dataloader))

    def before_test_epoch(self, runner: Runner) -> None:
        """Begin to count."""
        self._begin("test")

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Show how far the test is."""
        self._step("test", batch_idx + 1, len(runner.test_dataloader))

    def _begin(self, phase: str) -> None:
        self.phase, self.begun, self.mark = phase, time.monotonic(), 0.0
        self.spent.pop(phase, None)

    def _step(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if phase != self.phase:
            # Training goes on after a validation at the speed that it had.
            self.phase, self.mark, self.begun = phase, 0.0, self.begun if phase in self.spent else now
        if self.mark:
            seconds, steps = self.spent.get(phase, (0.0, 0))
            self.spent[phase] = seconds + now - self.mark, steps + 1
        self.mark = now
        silent = now - max(self.console.last, self.begun)
        if done < total and silent > (EARLY if now - self.begun < SOON else LATER) and is_first_process():
            self.console.last = now
            left = ""
            if phase in self.spent:
                seconds, steps = self.spent[phase]
                left = f", {timedelta(seconds=round(seconds / steps * (total - done)))} left"
            print(f"{phase} {done}/{total}{left}", file=sys.stderr, flush=True)
