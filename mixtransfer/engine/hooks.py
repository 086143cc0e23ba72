"""Guards of a training run: checkpoints that are whole or absent, and a stop at losses that cannot be trained with.

A checkpoint is written beside its name and renamed, so that a kill or a full disk leaves the files that were there
before. It holds tensors and plain values only, so that it can be read without running code from it, and never falls
between the steps of one accumulation of gradients, which it could not hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine import hooks
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.runner import Runner

from mixtransfer.checkpoints.whole_files import replace_whole
from mixtransfer.datasets.learnable import ZeroLosses
from mixtransfer.engine.parts import optim_wrapper_of
from mixtransfer.engine.resume import SETTINGS, UNVALIDATED, WITHOUT_STATE, stateless
from mixtransfer.engine.work_dir import INTERRUPTED, LATEST, checkpoints
from mixtransfer.errors import UserError
from mixtransfer.mixing.draws import double
from mixtransfer.registry import HOOKS

__all__ = ["AtomicBackend", "CheckpointHook", "LossGuardHook"]


class AtomicBackend(LocalBackend):
    """Files that appear whole or not at all: written beside the final name, flushed to disk, renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes; raise a :class:`UserError` when the disk does not take them."""
        path = Path(filepath)
        last = next(iter(checkpoints(path.parent)), None)
        kept = f"; the last good checkpoint is {last}" if last else ""
        with replace_whole(path, f"free some space and --resume{kept}") as partial:
            partial.write_bytes(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Write text."""
        self.put(obj.encode(encoding), filepath)


register_backend("atomic", AtomicBackend, force=True)


@HOOKS.register_module()
class CheckpointHook(hooks.CheckpointHook):
    """mmengine's hook, made safe against a kill at any moment.

    It writes through :class:`AtomicBackend`, deletes an old checkpoint, the best one too, only when the new one and
    ``last_checkpoint`` are in place, and refuses weights that are not finite. A checkpoint that is due while gradients
    accumulate is written after the iteration that uses them.
    """

    def __init__(self, *args: Any, backend_args: dict | None = None, **kwargs: Any):
        super().__init__(*args, backend_args=backend_args or {"backend": "atomic"}, **kwargs)
        #: The step of a checkpoint that waits for an accumulation of gradients to end.
        self.due: int | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights, and make everything else plain."""
        bad = [key for key, value in checkpoint["state_dict"].items() if not torch.isfinite(value).all()]
        if bad:
            raise UserError(
                f"weights are not finite after iteration {checkpoint['meta']['iter']} ({bad[0]}, {len(bad)} in all);"
                f" nothing saved{_last_good(runner)}"
            )
        settings = getattr(runner, "settings", None)
        if settings is not None:
            checkpoint["meta"][SETTINGS] = settings
        if "optimizer" in checkpoint:
            checkpoint["meta"][WITHOUT_STATE] = stateless(checkpoint["optimizer"])
        hub = checkpoint["message_hub"]
        hub["log_scalars"] = {key: buffer.data for key, buffer in hub["log_scalars"].items()}
        for key in [key for key in checkpoint if key not in ("state_dict", "optimizer")]:
            checkpoint[key] = _plain(checkpoint[key])

    def before_train(self, runner: Runner) -> None:
        """Look for the best checkpoint so far in the folder of this training, whatever path a checkpoint names.

        It is deleted when a better one is written, so no other file may stand in its place.
        """
        super().before_train(runner)

        def here(path: str | None) -> str | None:
            name = Path(path or "").name
            return str(self.file_backend.join_path(self.out_dir, name)) if name.startswith("best_") else None

        self.best_ckpt_path = here(getattr(self, "best_ckpt_path", None))
        if hasattr(self, "best_ckpt_path_dict"):
            self.best_ckpt_path_dict = {key: here(path) for key, path in self.best_ckpt_path_dict.items()}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Save where the interval says so, or as soon as the accumulation is over that a checkpoint waited for."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.due is not None and optim_wrapper_of(runner).should_update():
            iteration = runner.iter + 1
            meta = {"epoch": runner.epoch, "iter": iteration}
            self._save_checkpoint_with_step(runner, self.due if self.by_epoch else iteration, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        # Of the paths that mmengine knows it deletes the file before it writes the new one.
        many = getattr(self, "best_ckpt_path_dict", None)
        before = {"": getattr(self, "best_ckpt_path", None)} if many is None else dict(many)
        if many is None:
            self.best_ckpt_path = None
        else:
            self.best_ckpt_path_dict = dict.fromkeys(many)
        super()._save_best_checkpoint(runner, metrics)
        after = {"": self.best_ckpt_path} if many is None else self.best_ckpt_path_dict
        for key, path in before.items():
            if after[key] is None:
                after[key] = path
            elif path not in (None, after[key]) and is_main_process():
                Path(path).unlink(missing_ok=True)
        if many is None:
            self.best_ckpt_path = after[""]

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        self.due = None if optim_wrapper_of(runner).should_update() else step
        if self.due is not None:
            return
        name = self.filename_tmpl.format(step)
        expired = []
        if self.max_keep_ckpts > 0:
            kept = [kept for kept in self.keep_ckpt_ids if kept != step] + [step]
            expired, kept = kept[: -self.max_keep_ckpts], kept[-self.max_keep_ckpts :]
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        self.last_ckpt = str(self.file_backend.join_path(self.out_dir, name))
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        due = cast(Any, runner.train_loop).validates_after(meta["epoch"], meta["iter"])
        self.write(runner, name, {**meta, UNVALIDATED: due})
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
        path = str(self.file_backend.join_path(self.out_dir, name))
        if is_main_process():
            self.file_backend.put_text(path, Path(runner.work_dir) / LATEST)
        return path


@HOOKS.register_module()
class LossGuardHook(hooks.Hook):
    """Stop at the first loss that is NaN or infinite, before a checkpoint can be written, and at one that stays 0."""

    priority = "ABOVE_NORMAL"

    def __init__(self):
        self.first = ZeroLosses()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Look at every value that the model logs."""
        losses = {key: torch.as_tensor(value).detach() for key, value in (outputs or {}).items() if "loss" in key}
        # All are read at once: a device is waited for at each reading.
        values = {}
        if losses:
            read = torch.stack([double(x).reshape(()) for x in losses.values()]).tolist()
            values = dict(zip(losses, read, strict=True))
        bad = [key for key, value in values.items() if not np.isfinite(value)]
        if bad:
            # The sum comes first in the log; a term says more.
            name = next((key for key in bad if key != "loss"), bad[0])
            raise UserError(
                f"iteration {runner.iter + 1}: {name} is {values[name]}; lower the learning rate"
                f" (--cfg-options optim_wrapper.optimizer.lr=...) or leave out --amp{_last_good(runner)}"
            )
        self.first.look(values)


def _last_good(runner: Runner) -> str:
    last = next(iter(checkpoints(runner.work_dir)), None)
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
