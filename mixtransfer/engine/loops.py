"""Loops of training that resume in the middle of an epoch, and one of validation that can be abandoned.

A step (dropout, stochastic depth, sampling of proposals) is seeded with (seed, rank, iteration); models that draw for
themselves get the iteration as their ``step``.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator
from typing import Any

from mmengine.dist import broadcast, get_rank, is_distributed
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, ValLoop
from torch import nn

from mixtransfer.engine.parts import model_of, seed_of
from mixtransfer.engine.sampling import GuardedLoader, seed_everything
from mixtransfer.errors import UserError
from mixtransfer.mixing.steps import StepCounter

__all__ = ["Abandoned", "EndlessBatches", "EpochLoop", "IterLoop", "ValidateFirst", "ValidationLoop"]


class Abandoned(Exception):
    """A validation is not worth finishing; ``then`` is called with the runner once training has its weights back."""

    def __init__(self, then: Callable[[Any], None]):
        super().__init__(then)
        self.then = then


class ValidationLoop(ValLoop):
    """A validation after which training has its own weights, however it ends: ``EMAHook`` has put them back."""

    def run(self) -> dict:
        """Return the metrics; the ``then`` of an :class:`Abandoned` that a hook raises ends training."""
        averages = [hook for hook in self.runner.hooks if isinstance(hook, EMAHook)]
        swaps = [_Swaps(hook) for hook in averages]
        for model in (model_of(self.runner), *(hook.ema_model for hook in averages)):
            _take_buffers_of_first(model)
        try:
            return super().run()
        except Abandoned as abandoned:
            for swap in swaps:
                swap.undo()
            abandoned.then(self.runner)
            raise
        finally:
            for swap in swaps:
                swap.undo()


def _take_buffers_of_first(model: nn.Module) -> None:
    """Let all processes measure one model, that of checkpoints: running statistics are each process's own."""
    if is_distributed():
        kept = model.state_dict()
        for name, buffer in model.named_buffers():
            if name in kept:
                broadcast(buffer, 0)


class _Swaps:
    """Counts how often a hook exchanges weights and averages, and undoes an odd one."""

    def __init__(self, hook: EMAHook):
        self.hook, self.exchange, self.odd = hook, hook._swap_ema_parameters, False
        hook._swap_ema_parameters = self

    def __call__(self) -> None:
        self.exchange()
        self.odd = not self.odd

    def undo(self) -> None:
        """Exchange once more if they are exchanged; afterwards the hook does so itself again."""
        if self.odd:
            self()
        vars(self.hook).pop("_swap_ema_parameters", None)


class ValidateFirst(Hook):
    """Begin a resumed training with the validation that its checkpoint was written before or in."""

    priority = "LOWEST"

    def before_train(self, runner: Any) -> None:
        """Validate, once all other hooks are ready."""
        runner.val_loop.run()


class _SeededSteps:
    """A loop whose step draws from generators seeded with its iteration."""

    runner: Any
    _iter: int
    _max_iters: int
    _max_epochs: int
    val_begin: int
    dynamic_milestones: list[int]
    dynamic_intervals: list[int]

    def run_iter(self, *args: Any) -> None:
        seed_everything(self.runner.seed, get_rank(), self._iter)
        model = model_of(self.runner)
        if isinstance(model, StepCounter):
            model.step, model.run_seed = self._iter, seed_of(self.runner)
        super().run_iter(*args)  # pyright: ignore[reportAttributeAccessIssue] - the loop's behind it

    def go_to(self, epoch: int, iteration: int, name: str) -> None:
        """Let training begin after this many epochs and iterations, as the checkpoint ``name`` says.

        Raises:
            UserError: training ends before, or the iterations do not lie in the epoch, since the epochs were of
                another length.
        """
        for done, most, option in ((iteration, self._max_iters, "max_iters"), (epoch, self._max_epochs, "max_epochs")):
            if hasattr(self.runner.cfg.train_cfg, option) and done > most:
                raise UserError(f"{name} stands after {done}, train_cfg.{option}={most} is less; give {done} or more")
        self._epoch, self._iter = epoch, iteration

    def _validates_after(self, step: int, last: int) -> bool:
        interval = self.dynamic_intervals[bisect(self.dynamic_milestones, step + 1) - 1]
        wanted = self.runner.val_loop is not None and step >= self.val_begin
        return wanted and (step % interval == 0 or step == last)


class EpochLoop(_SeededSteps, EpochBasedTrainLoop):
    """Training by epochs that resumes in the middle of one."""

    dataloader: GuardedLoader

    def validates_after(self, epoch: int, iteration: int) -> bool:
        """Tell whether the next thing after so many whole epochs and iterations is a validation."""
        return iteration == epoch * len(self.dataloader) and self._validates_after(epoch, self._max_epochs)

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

    dataloader: GuardedLoader

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = EndlessBatches(self.dataloader)

    def validates_after(self, epoch: int, iteration: int) -> bool:
        """Tell whether the next thing after so many iterations is a validation."""
        return self._validates_after(iteration, self._max_iters)


class EndlessBatches:
    """Iterate over a loader again and again; ``skip_iter`` is how mmengine's loop resumes."""

    def __init__(self, loader: GuardedLoader):
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
