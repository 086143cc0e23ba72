"""A training that is stopped from outside, or by an error, saves where it stands first."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from mixtransfer.engine.hooks import CheckpointHook
from mixtransfer.engine.loops import Abandoned, ValidationLoop
from mixtransfer.engine.parts import model_of, optim_wrapper_of
from mixtransfer.engine.resume import UNVALIDATED
from mixtransfer.engine.sampling import SIGNALS
from mixtransfer.engine.work_dir import INTERRUPTED, REQUEUE

__all__ = ["InterruptHook", "Interrupted", "say"]

#: Steps between two questions to the other processes. On GPUs an answer waits for all steps that are queued.
STEPS_ON_GPU = 20


def say(text: str) -> None:
    """Print a line that no training may end with an error for: a terminal that closes takes its output with it."""
    try:
        print(text, flush=True)
    except RuntimeError:
        pass  # the signal came while another line was printed
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal and can go on from ``checkpoint``, the state after ``iteration``.

    ``status`` is the process's exit status: 130 after SIGINT and SIGTERM, ``REQUEUE`` after another signal.
    """

    def __init__(self, checkpoint: str | None, iteration: int, number: int):
        super().__init__(checkpoint, iteration)
        self.checkpoint, self.iteration = checkpoint, iteration
        self.status = 130 if number in (signal.SIGINT, signal.SIGTERM) else REQUEUE


class InterruptHook(Hook):
    """End training at a signal between two iterations, with an exactly resumable checkpoint; save it at errors too.

    The running iteration is finished, as is an accumulation of gradients; a running validation is abandoned. Outside
    the training loop, and at a second SIGINT, the program stops at once. Distributed processes stop together.
    """

    # Before any hook that changes its state for the coming iteration.
    priority = "HIGHEST"

    def __init__(self):
        #: The signal that came to this process, and that which all processes know of; 0 for none.
        self.requested = self.agreed = 0
        self.training = False
        self.every = 1
        #: Batches of a validation that every process has.
        self.common = 0
        #: Iterations that were done when training began, and the one whose step has begun, from 0.
        self.begun_at, self.stepped_at = 0, -1
        #: Whether the epoch's last hooks are done that change the state.
        self.between = True
        #: Whether a validation has begun and not ended.
        self.validating = False
        #: The buffers and the log before the iteration ``copied_at``, which hooks and a forward pass change that fails.
        self.buffers: dict[str, torch.Tensor] = {}
        self.logged: dict[str, HistoryBuffer] = {}
        self.copied_at = -1

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Catch the signals inside the block; outside the main thread, where Python cannot, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if not self.training:
            raise Interrupted(None, 0, number)
        if self.requested:
            # Launchers and schedulers pass one request on more than once.
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.requested = number
        if is_main_process():
            say("\nstopping after this iteration; Ctrl-C again to stop without saving")

    @contextlib.contextmanager
    def saving(self, runner: Runner) -> Iterator[None]:
        """Save the state of training when an error ends the block, if the state is that after whole iterations."""
        try:
            yield
        except Exception:
            with contextlib.suppress(Exception):
                path = self._rescue(runner)
                if path:
                    print(
                        f"saved {path}, the state after iteration {runner.iter}; go on with --resume", file=sys.stderr
                    )
            raise

    def _rescue(self, runner: Runner) -> str | None:
        whole = self.training and self.between and self.stepped_at < runner.iter
        if not whole or runner.iter == self.begun_at or not optim_wrapper_of(runner).should_update():
            return None
        if self.copied_at == runner.iter:
            own = dict(model_of(runner).named_buffers())
            for name, value in self.buffers.items():
                own[name].copy_(value)
            runner.message_hub.log_scalars.clear()
            runner.message_hub.log_scalars.update(self.logged)
        return self._save(runner, unvalidated=self.validating) if is_main_process() else None

    def before_train(self, runner: Runner) -> None:
        """From here on there is something to save."""
        self.training, self.begun_at = True, runner.iter
        self.every = STEPS_ON_GPU if torch.cuda.is_available() else 1

        def begins(*_: Any) -> None:
            self.stepped_at = runner.iter

        optim_wrapper_of(runner).optimizer.register_step_pre_hook(begins)

    def after_train(self, runner: Runner) -> None:
        """The last checkpoint is written."""
        self.training = False

    def before_train_epoch(self, runner: Runner) -> None:
        """The epoch before is counted."""
        self.between = True

    def after_train_epoch(self, runner: Runner) -> None:
        """Hooks of the end of an epoch change the state, and the epoch is not counted yet."""
        self.between = False

    def before_val(self, runner: Runner) -> None:
        """Ask how many batches all processes have."""
        self.between = self.validating = True
        if self.training and is_distributed():
            count = torch.tensor(len(runner.val_dataloader))
            all_reduce(count, "min")
            self.common = int(count)

    def after_val(self, runner: Runner) -> None:
        """The metrics are computed and logged."""
        self.validating = False

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Save and stop if a signal came; the state is that after ``runner.iter`` iterations."""
        if runner.iter % self.every == 0:
            self._agree()
        self._stop(runner)
        self.validating = False
        self.copied_at = runner.iter
        self.buffers = {name: value.detach().clone() for name, value in model_of(runner).named_buffers()}
        # Whatever is logged makes new arrays.
        self.logged = {name: copy.copy(value) for name, value in runner.message_hub.log_scalars.items()}

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Abandon a validation, unless gradients wait: training cannot stop here, and could not repeat it later."""
        if not self.training or not isinstance(runner.val_loop, ValidationLoop):
            return
        if not is_distributed() or (batch_idx < self.common and batch_idx % self.every == 0):
            self._agree()
        if self.agreed and optim_wrapper_of(runner).should_update():
            raise Abandoned(partial(self._stop, unvalidated=True))

    def _stop(self, runner: Runner, unvalidated: bool = False) -> None:
        """Save and stop if all processes know of a signal and no gradient waits for others."""
        if self.agreed and optim_wrapper_of(runner).should_update():
            path = self._save(runner, unvalidated)
            # A launcher ends all processes as soon as one has ended, and the first one is still writing.
            barrier()
            raise Interrupted(path, runner.iter, self.agreed)

    def _agree(self) -> None:
        self.agreed = self.requested
        if is_distributed():
            flag = torch.tensor(int(self.requested))
            all_reduce(flag, "max")
            self.agreed = int(flag)

    def _save(self, runner: Runner, unvalidated: bool = False) -> str:
        saver = next(hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
        return saver.write(runner, INTERRUPTED, {"epoch": runner.epoch, "iter": runner.iter, UNVALIDATED: unvalidated})
