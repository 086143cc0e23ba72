"""Training loops that resume in the middle of an epoch, and whose steps draw from generators of their own.

A step (dropout, stochastic depth, sampling of proposals) is seeded with (seed, rank, iteration); models that draw for
themselves get the iteration as their ``step``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_rank
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from mixtransfer.engine.sampling import ResumableLoader, seed_everything
from mixtransfer.errors import UserError
from mixtransfer.mixing.steps import StepCounter

__all__ = ["EndlessBatches", "EpochLoop", "IterLoop"]


class _SeededSteps:
    """A loop whose step draws from generators seeded with its iteration."""

    runner: Any
    _iter: int

    def run_iter(self, *args: Any) -> None:
        seed_everything(self.runner.seed, get_rank(), self._iter)
        model = self.runner.model.module if is_model_wrapper(self.runner.model) else self.runner.model
        if isinstance(model, StepCounter):
            model.step = self._iter
        super().run_iter(*args)

    def go_to(self, epoch: int, iteration: int, name: str) -> None:
        """Let training begin after this many epochs and iterations, as the checkpoint ``name`` says.

        Raises:
            UserError: the iterations do not lie in the epoch, since the epochs were of another length.
        """
        self._epoch, self._iter = epoch, iteration


class EpochLoop(_SeededSteps, EpochBasedTrainLoop):
    """Training by epochs that resumes in the middle of one."""

    dataloader: ResumableLoader

    def go_to(self, epoch: int, iteration: int, name: str) -> None:
        """Let training begin there; see the base class."""
        length = len(self.dataloader)
        if not 0 <= iteration - epoch * length <= length:
            raise UserError(
                f"{name} stands at iteration {iteration} in epoch {epoch}, so its epochs had not {length} iterations;"
                " resume with the dataset, batch size and number of processes it was started with"
            )
        super().go_to(epoch, iteration, name)

    def run_epoch(self) -> None:
        """Train on what is left of the epoch."""
        first = self._iter - self._epoch * len(self.dataloader)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        self.dataloader.batch_sampler.start(self._epoch, first)
        for number, batch in enumerate(self.dataloader, start=first):
            self.run_iter(number, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1


class IterLoop(_SeededSteps, IterBasedTrainLoop):
    """Training by iterations, over epoch after epoch of a finite sampler or one endless one."""

    dataloader: ResumableLoader

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = EndlessBatches(self.dataloader)


class EndlessBatches:
    """Iterate over a loader again and again; ``skip_iter`` is how mmengine's loop resumes."""

    def __init__(self, loader: ResumableLoader):
        self.loader = loader
        self.batches: Iterator | None = None
        self.epoch, self.first = 0, 0

    def skip_iter(self, count: int) -> None:
        """Start after ``count`` batches."""
        # An endless sampler never ends its first epoch, whatever length it declares.
        endless = not hasattr(self.loader.batch_sampler.sampler, "epoch")
        self.epoch, self.first = (0, count) if endless else divmod(count, len(self.loader))

    def __next__(self) -> Any:
        if self.batches is None:
            self.loader.batch_sampler.start(self.epoch, self.first)
            self.batches = iter(self.loader)
        try:
            return next(self.batches)
        except StopIteration:
            self.batches, self.epoch, self.first = None, self.epoch + 1, 0
            return next(self)
