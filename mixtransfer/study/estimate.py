"""Time that a study takes, estimated from a few timed steps of each kind of training."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mmengine.hooks import Hook

from mixtransfer.engine.build import build_runner, one_line_errors, prepare
from mixtransfer.engine.config import load_config
from mixtransfer.engine.parts import model_of
from mixtransfer.study.cells import CellFolder

__all__ = ["Timing", "time_cell"]

#: Steps that are timed, and those before that warm up.
TIMED, WARM = 3, 1


class _Enough(Exception):
    """As many steps as were wanted are timed."""


class _Clock(Hook):
    """Notes when steps end."""

    priority = "VERY_LOW"

    def __init__(self):
        self.ends: list[float] = []

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        self.ends.append(time.perf_counter())
        if len(self.ends) > TIMED + WARM:
            raise _Enough


@dataclass(frozen=True)
class Timing:
    """Seconds of a start, of a training step and of an image of validation, and how many there are of each."""

    start: float
    step: float
    image: float
    steps: int
    images: int
    validations: int
    by_epoch: bool

    def seconds(self, fraction: float) -> float:
        """Return the seconds of a whole cell that trains on a fraction of the data, its test included."""
        steps = self.steps * (fraction if self.by_epoch else 1)
        return 2 * self.start + steps * self.step + (self.validations + 1) * self.images * self.image


def time_cell(folder: CellFolder) -> Timing:
    """Time a few steps of a cell's training, from random weights, on all of its data, and in a folder of its own.

    Raises:
        UserError: its config, options or data are not as they should be.
    """
    cell = folder.cell
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        cfg = load_config(
            cell.config, ("train", "val"), options=folder.options(), data=cell.data, work_dir=Path(scratch)
        )
        if cell.kind != "pretrain":
            cfg.model.backbone.init_cfg = None
        cfg.experiment_name = f"estimate_{cell.name}"
        with one_line_errors(cell.config):
            prepare(cfg, "train")
            runner = build_runner(cfg)
            clock = _Clock()
            runner.register_hook(clock)
            start = time.perf_counter() - begun
            try:
                runner.train()
            except _Enough:
                pass
        pairs = zip(clock.ends[WARM:], clock.ends[WARM + 1 :], strict=False)
        loop, loader = runner.train_loop, runner.val_dataloader if runner.val_loop else None
        by_epoch = hasattr(cfg.train_cfg, "max_epochs")
        images, validations, image = 0, 0, 0.0
        if loader is not None:
            images = len(loader.dataset)
            units = loop.max_epochs if by_epoch else loop.max_iters
            validations = units // loop.val_interval
            image = _time_images(runner, loader)
        return Timing(
            start,
            median([after - before for before, after in pairs]),
            image,
            loop.max_iters,
            images,
            validations,
            by_epoch,
        )


def _time_images(runner: Any, loader: Any) -> float:
    model = model_of(runner).eval()
    seconds = []
    for number, batch in enumerate(loader):
        begun = time.perf_counter()
        count = len(model.val_step(batch))
        seconds.append((time.perf_counter() - begun) / max(count, 1))
        if number == TIMED:
            break
    return median(seconds[1:] or seconds)
