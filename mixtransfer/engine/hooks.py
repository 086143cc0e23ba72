"""What protects a training run: checkpoints that are whole or absent, a stop at NaN, a clean end at Ctrl-C.

A checkpoint is written beside its name and renamed, so that a kill or a full disk leaves the files that were there
before. It holds tensors and plain values only, so that it can be read without running code from it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import hooks
from mmengine.dist import all_reduce, is_distributed, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from mixtransfer.checkpoints.write import replace_whole
from mixtransfer.errors import UserError
from mixtransfer.registry import HOOKS

__all__ = ["AtomicBackend", "CheckpointHook", "InterruptHook", "Interrupted", "LossGuardHook", "latest_checkpoint"]

LATEST = "last_checkpoint"
INTERRUPTED = "interrupted.pth"


@register_backend("atomic", force=True)
class AtomicBackend(LocalBackend):
    """Files that appear whole or not at all: written beside the final name, flushed to disk, renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes; raise a :class:`UserError` when the disk does not take them."""
        path = Path(filepath)
        last = latest_checkpoint(path.parent)
        kept = f"; the last good checkpoint is {last}" if last else ""
        with replace_whole(path, f"free some space and --resume{kept}") as partial:
            partial.write_bytes(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Write text."""
        self.put(obj.encode(encoding), filepath)


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the checkpoint that ``last_checkpoint`` names, where it moved with its folder; None without one."""
    pointer = Path(work_dir) / LATEST
    if not pointer.is_file():
        return None
    path = Path(pointer.read_text(encoding="utf-8").strip())
    return next((p for p in (path, pointer.with_name(path.name)) if p.is_file()), None)


@HOOKS.register_module()
class CheckpointHook(hooks.CheckpointHook):
    """mmengine's hook, made safe against a kill at any moment.

    It writes through :class:`AtomicBackend`, deletes an old checkpoint only when the new one and ``last_checkpoint``
    are in place, and refuses weights that are not finite.
    """

    def __init__(self, *args: Any, backend_args: dict | None = None, **kwargs: Any):
        super().__init__(*args, backend_args=backend_args or {"backend": "atomic"}, **kwargs)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights, and make everything else plain."""
        bad = [key for key, value in checkpoint["state_dict"].items() if not torch.isfinite(value).all()]
        if bad:
            raise UserError(
                f"weights are not finite after iteration {checkpoint['meta']['iter']} ({bad[0]}, {len(bad)} in all);"
                f" nothing saved{_last_good(runner)}"
            )
        hub = checkpoint["message_hub"]
        hub["log_scalars"] = {key: buffer.data for key, buffer in hub["log_scalars"].items()}
        for key in [key for key in checkpoint if key not in ("state_dict", "optimizer")]:
            checkpoint[key] = _plain(checkpoint[key])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Turn the plain log of :meth:`before_save_checkpoint` back into mmengine's buffers."""
        scalars = checkpoint.get("message_hub", {}).get("log_scalars", {})
        for key, value in scalars.items():
            if not isinstance(value, HistoryBuffer):
                scalars[key] = HistoryBuffer(*(part.numpy() for part in value))

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        name = self.filename_tmpl.format(step)
        expired = []
        if self.max_keep_ckpts > 0:
            kept = [kept for kept in self.keep_ckpt_ids if kept != step] + [step]
            expired, kept = kept[: -self.max_keep_ckpts], kept[-self.max_keep_ckpts :]
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        self.write(runner, name, meta)
        if is_main_process():
            for old in [self.filename_tmpl.format(step) for step in expired] + [INTERRUPTED]:
                Path(self.out_dir, old).unlink(missing_ok=True)

    def write(self, runner: Runner, name: str, meta: dict) -> str:
        """Save the state of training under ``name``, point ``last_checkpoint`` to it, and return its path."""
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        path = self.file_backend.join_path(self.out_dir, name)
        if is_main_process():
            self.file_backend.put_text(path, Path(runner.work_dir) / LATEST)
        return path


@HOOKS.register_module()
class LossGuardHook(hooks.Hook):
    """Stop at the first loss that is NaN or infinite, before a checkpoint can be written."""

    priority = "ABOVE_NORMAL"

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Look at every value that the model logs."""
        values = {
            key: float(torch.as_tensor(value).detach()) for key, value in (outputs or {}).items() if "loss" in key
        }
        bad = [key for key, value in values.items() if not np.isfinite(value)]
        if bad:
            # The sum comes first in the log; a term says more.
            name = next((key for key in bad if key != "loss"), bad[0])
            raise UserError(
                f"iteration {runner.iter + 1}: {name} is {values[name]}; lower the learning rate"
                f" (--cfg-options optim_wrapper.optimizer.lr=...) or leave out --amp{_last_good(runner)}"
            )


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal and can go on from ``checkpoint``, the state after ``iteration``."""

    def __init__(self, checkpoint: str, iteration: int):
        super().__init__(checkpoint, iteration)
        self.checkpoint, self.iteration = checkpoint, iteration


class InterruptHook(hooks.Hook):
    """End training at SIGINT or SIGTERM between two iterations, with an exactly resumable checkpoint.

    The running iteration is finished, as is an accumulation of gradients; a running validation is abandoned. Outside
    the training loop, and at a second signal, the program stops at once. Distributed processes stop together.
    """

    # Before any hook that changes its state for the coming iteration.
    priority = "HIGHEST"

    def __init__(self):
        self.requested = False
        self.training = False

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Catch the signals inside the block; outside the main thread, where Python cannot, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.requested or not self.training:
            raise KeyboardInterrupt
        self.requested = True
        if is_main_process():
            print("\nstopping after this iteration; again to stop without saving", flush=True)

    def before_train(self, runner: Runner) -> None:
        """From here on there is something to save."""
        self.training = True

    def after_train(self, runner: Runner) -> None:
        """The last checkpoint is written."""
        self.training = False

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Save and stop if a signal came; the state is that after ``runner.iter`` iterations."""
        if self._all_agree() and runner.optim_wrapper.should_update():
            self._save_and_stop(runner)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """As before a training iteration, for a signal that comes during validation."""
        if self.training and self._all_agree():
            self._save_and_stop(runner)

    def _all_agree(self) -> bool:
        if not is_distributed():
            return self.requested
        flag = torch.tensor(int(self.requested))
        all_reduce(flag, "max")
        return bool(flag)

    def _save_and_stop(self, runner: Runner) -> None:
        saver = next(hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
        path = saver.write(runner, INTERRUPTED, {"epoch": runner.epoch, "iter": runner.iter})
        raise Interrupted(path, runner.iter)


def _last_good(runner: Runner) -> str:
    last = latest_checkpoint(runner.work_dir)
    return f"; the last good checkpoint is {last}" if last else "; no checkpoint was written yet"


def _plain(value: Any) -> Any:
    """Return ``value`` with arrays as tensors and numpy's scalars as Python's, all the way down."""
    if isinstance(value, Mapping):
        return (OrderedDict if isinstance(value, OrderedDict) else dict)((k, _plain(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    return value
