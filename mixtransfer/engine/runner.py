"""mmengine's runner, with a training that can be stopped anywhere and resumed exactly.

Nothing random is saved and restored: all of it is a function of the seed and of the place in the training.

* A step (dropout, stochastic depth, sampling of proposals) draws from generators seeded with (seed, rank, iteration).
* A sample (augmentation) draws from generators seeded with (seed, rank, epoch, batch, place in the batch), whichever
  worker loads it. The batch sampler attaches that place to the index.
* The order of samples follows from the sampler's seed; a resumed run skips the batches that were used.

Hence a resumed run draws what an uninterrupted one would, in the middle of an epoch too, and losses do not depend on
the number of workers. Weights are read without running code from the file, and must fit the model.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, Runner, ValLoop
from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import override

from mixtransfer.checkpoints.fit import shorten
from mixtransfer.checkpoints.load import fitting_weights, load_strictly
from mixtransfer.checkpoints.read import find_weights, read_checkpoint
from mixtransfer.datasets.learnable import build_dataset, require_steps
from mixtransfer.engine.console import ConsoleFilter, ProgressHook, quiet_libraries
from mixtransfer.engine.guarded_loading import GuardedLoading
from mixtransfer.engine.launchers import check_launcher, meet_without_gpu
from mixtransfer.engine.loops import EpochLoop, IterLoop, ValidateFirst, ValidationLoop
from mixtransfer.engine.parts import model_of, optim_wrapper_of
from mixtransfer.engine.resume import (
    UNVALIDATED,
    average_state,
    hub_state,
    meta_of,
    optimizer_state,
    place_in,
    scheduler_states,
)
from mixtransfer.engine.sampling import SeededDataset, guarded, init_worker, last_line
from mixtransfer.engine.schedule import fit_warm_up
from mixtransfer.errors import UserError, visible
from mixtransfer.progress import notice

__all__ = ["BAD_IMAGES", "TransferRunner", "TrustingRunner"]

#: The share of a dataset's images that training replaces by others where they cannot be read.
BAD_IMAGES = 0.001


@contextmanager
def config_errors(entry: str) -> Iterator[None]:
    """Say in one line which value in an entry of the config a library refuses; an error of our own code is a bug."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        if _where(error).startswith("mixtransfer"):
            raise
        raise UserError(f"{entry}: {last_line(error)}") from error


def _where(error: BaseException) -> str:
    """Return the name of the module that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")


class _FormattedOnce(Config):
    """A config that keeps its text until it changes: formatting takes a second."""

    @classmethod
    def of(cls, cfg: Config) -> _FormattedOnce:
        formatted = cls.__new__(cls)
        vars(formatted).update(vars(cfg))
        return formatted

    @property
    def pretty_text(self) -> str:
        content = repr(self._cfg_dict)
        known, text = vars(self).get("_formatted", (None, ""))
        if content != known:
            text = super().pretty_text
            vars(self)["_formatted"] = content, text
        return text


def _shown(record: logging.LogRecord) -> bool:
    """Let a record show what a terminal would act on: names and paths in it may come from anywhere."""
    record.msg, record.args = visible(record.getMessage(), keep="\n\t"), None
    return True


class TransferRunner(Runner):
    """The runner behind ``tools/train.py`` and ``tools/test.py``.

    While it is built, only warnings reach the console, and never those of libraries that a reader cannot act on; the
    log file has everything.
    """

    #: Whether checkpoints may run code.
    trust = False
    #: What checkpoints tell of this training's settings, see :func:`~mixtransfer.engine.settings.describe`.
    settings: str | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        with GuardedLoading(self.trust), quiet_libraries(self._log):
            super().__init__(*args, **kwargs)
        self._console.setLevel(self._console_level)

    @property
    def cfg(self) -> Config:
        """The config; its text, which every checkpoint holds, is formatted when it is new and not each time."""
        return self._cfg

    @cfg.setter
    def cfg(self, cfg: Config) -> None:
        self._cfg = _FormattedOnce.of(cfg)

    @override
    def build_logger(self, *args: Any, **kwargs: Any):
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            handler.addFilter(_shown)
        self._console = next(h for h in logger.handlers if not isinstance(h, logging.FileHandler))
        self._console_filter = ConsoleFilter()
        self._console.addFilter(self._console_filter)
        self._console_level = self._console.level
        self._console.setLevel(max(self._console_level, logging.WARNING))
        return logger

    def _log(self) -> logging.Logger | None:
        return getattr(self, "logger", None)

    def setup_env(self, env_cfg: dict) -> None:
        """Set up what processes share; without a GPU they meet through gloo, whatever backend the config names."""
        check_launcher(self.launcher)
        if self.launcher != "none" and not torch.cuda.is_available() and not torch.distributed.is_initialized():
            meet_without_gpu(self.launcher)
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap for distributed training; mmengine's own way needs a GPU, and so does synchronized BatchNorm."""
        if not self.distributed or torch.cuda.is_available() or model_wrapper_cfg or is_model_wrapper(model):
            return super().wrap_model(model_wrapper_cfg, model)
        return MMDistributedDataParallel(
            module=revert_sync_batchnorm(model),
            broadcast_buffers=False,
            find_unused_parameters=self.cfg.get("find_unused_parameters", False),
        )

    def set_randomness(self, seed: int | None, diff_rank_seed: bool = False, deterministic: bool = False) -> None:
        """Seed everything; ``deterministic`` warns about an operation without a deterministic kernel and goes on."""
        super().set_randomness(seed, diff_rank_seed, deterministic)
        if deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False, resumable: bool = False
    ) -> DataLoader:
        """Build a :class:`GuardedLoader` of :class:`SeededDataset`, for training a ``resumable`` one."""
        if isinstance(dataloader, DataLoader):
            return dataloader
        dataset = build_dataset(dataloader["dataset"])
        settings = {**dataloader, "dataset": SeededDataset(dataset, seed or 0)}
        if isinstance(settings.get("collate_fn"), Mapping):
            # mmengine gives the function all entries but the type, also the scope that it notes for a library's config.
            settings["collate_fn"] = {key: value for key, value in settings["collate_fn"].items() if key != "_scope_"}
        with config_errors("dataloader"):
            loader = Runner.build_dataloader(settings, seed, diff_rank_seed)
        loader.worker_init_fn = partial(init_worker, then=loader.worker_init_fn)
        if resumable:
            require_steps(loader)
        return guarded(loader, resumable)

    @override
    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        with config_errors("optim_wrapper"):
            wrapper = super().build_optim_wrapper(optim_wrapper)
        if isinstance(wrapper, OptimWrapperDict):
            # Its parts may accumulate and step at different times, so no iteration would leave a state to resume from.
            raise UserError(
                f"optim_wrapper: has {len(wrapper)} optimizers ({', '.join(wrapper.keys())}), training works with one;"
                " give one optimizer, with paramwise_cfg where parameters need other rates"
            )
        return wrapper

    @override
    def register_hooks(self, default_hooks: Any = None, custom_hooks: Any = None) -> None:
        with config_errors("default_hooks or custom_hooks"):
            super().register_hooks(default_hooks, custom_hooks)
        self.register_hook(ProgressHook(self._console_filter))

    @override
    def build_param_scheduler(self, scheduler: Any) -> Any:
        if isinstance(self._train_loop, EpochLoop):
            # Only the loader knows how many iterations an epoch has.
            scheduler, said = fit_warm_up(scheduler, self.max_iters)
            if said:
                notice(said)
        with config_errors("param_scheduler"):
            return super().build_param_scheduler(scheduler)

    def build_train_loop(self, loop: dict) -> EpochLoop | IterLoop:
        """Build our counterpart of mmengine's loop."""
        loop = {key: value for key, value in loop.items() if key != "_scope_"}
        kind = loop.pop("type", None) or ("EpochBasedTrainLoop" if loop.pop("by_epoch") else "IterBasedTrainLoop")
        kind = getattr(kind, "__name__", kind)
        classes = {"EpochBasedTrainLoop": EpochLoop, "IterBasedTrainLoop": IterLoop}
        if kind not in classes:
            raise UserError(f"train_cfg.type={kind!r}: give {' or '.join(classes)}")
        loader = self.build_dataloader(cast(dict, self._train_dataloader), seed=self.seed, resumable=True)
        cast(SeededDataset, loader.dataset).replace_unreadable(self.cfg.get("bad_images", BAD_IMAGES))
        with config_errors("train_cfg"):
            for key in ("max_iters", "max_epochs", "val_interval"):
                if loop.get(key, 1) < 1:
                    raise UserError(f"train_cfg.{key}={loop[key]}: give a number from 1")
            return classes[kind](self, loader, **loop)

    def build_val_loop(self, loop: Any) -> BaseLoop:
        """Build our counterpart of mmengine's loop; libraries' loops are left as they are."""
        if isinstance(loop, dict) and loop.get("type", "ValLoop") in ("ValLoop", ValLoop):
            settings = {key: value for key, value in loop.items() if key not in ("type", "_scope_")}
            loader, evaluator = cast(dict, self._val_dataloader), cast(dict, self._val_evaluator)
            loop = ValidationLoop(self, loader, evaluator, **settings)
        return super().build_val_loop(loop)

    def train(self) -> nn.Module:
        """Train; afterwards no data worker is left."""
        try:
            with GuardedLoading(self.trust), quiet_libraries(self._log):
                return super().train()
        finally:
            self._stop_workers()
            self._list_unreadable()

    def _list_unreadable(self) -> None:
        """Say which images this process has replaced."""
        dataset = getattr(self._train_dataloader, "dataset", None)
        if isinstance(dataset, SeededDataset) and (replaced := dataset.unreadable_files()):
            print(
                f"{len(replaced)} of {len(dataset)} images cannot be loaded, others took their place:",
                *replaced,
                sep="\n  ",
                file=sys.stderr,
            )

    def test(self) -> dict:
        """Return the metrics on the test set; afterwards no data worker is left."""
        try:
            with GuardedLoading(self.trust), quiet_libraries(self._log):
                return super().test()
        finally:
            self._stop_workers()

    def initialize(self) -> None:
        """Draw the model's weights, or load those that its config names, completely.

        Raises:
            UserError: the file of such weights is missing or damaged, wants to run code, or does not fit.
        """
        model = model_of(self)
        with GuardedLoading(self.trust) as loading, loading.completely(model):
            super()._init_model_weights()

    def _init_model_weights(self) -> None:
        self.initialize()

    def _maybe_compile(self, target: str) -> None:
        """Compile the backbone, or a classifier as a whole; mmengine's own way compiles the whole step, ``target``.

        torch's compiler cannot follow the optimizer's part of it, and heads of detectors work on ground truth of new
        sizes in every step.
        """
        options = self.cfg.get("compile")
        if options is None or options is False:
            return
        model = model_of(self)
        part = model if self.cfg.get("default_scope") == "mmpretrain" else model.get_submodule("backbone")
        part.compile(**(options if isinstance(options, Mapping) else {}))

    def _stop_workers(self) -> None:
        # Those still there at the process's exit would be killed, which torch reports as an error.
        loops: list[Any] = [self._train_loop, self._val_loop, self._test_loop]
        loaders = [loop.dataloader for loop in loops if hasattr(loop, "dataloader")]
        batches = getattr(loops[0], "dataloader_iterator", None)
        for iterator in [*(loader._iterator for loader in loaders), getattr(batches, "batches", None)]:
            if hasattr(iterator, "_shutdown_workers"):
                iterator._shutdown_workers()
                for worker in iterator._workers:  # one that took too long has been killed, and may not be gone yet
                    worker.join()
        for loader in loaders:
            loader._iterator = None

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", strict: bool = True, **_: Any) -> dict:
        """Read a checkpoint of a whole model into host memory and load it completely, or raise a UserError."""
        name = str(filename)
        content = read_checkpoint(filename, self.trust)
        model = model_of(self)
        weights = fitting_weights(model, find_weights(content, name), name)
        content["state_dict"] = weights
        if self._resume:
            content["meta"] = meta_of(content, name)
            for hook in self.hooks:
                if isinstance(hook, EMAHook):
                    average = content.get("ema_state_dict")
                    content["ema_state_dict"] = average_state(model, hook.ema_model.state_dict(), average, name)
        self.call_hook("after_load_checkpoint", checkpoint=content)
        load_strictly(model, content["state_dict"], name)
        self._has_loaded = True
        self.logger.info(f"loaded {filename}")
        return content

    def resume(self, filename: str, *_: Any, **__: Any) -> None:
        """Go on from a checkpoint of this training, with everything that it holds; mmengine's own way runs code in it.

        Raises:
            UserError: a part of the state is missing or does not fit this training.
        """
        name = str(filename)
        content = self.load_checkpoint(filename)
        place = place_in(content, name)
        seed = self._randomness_cfg["seed"]
        if place.seed != seed:
            raise UserError(f"{name} was trained with the seed {place.seed}; resume it with the same, not {seed}")
        cast(EpochLoop | IterLoop, self.train_loop).go_to(place.epoch, place.iteration, name)
        self.message_hub.load_state_dict(hub_state(content["message_hub"], name))
        classes = getattr(self.train_dataloader.dataset, "metainfo", {}).get("classes")
        if place.classes is not None and classes is not None and place.classes != tuple(classes):
            self.logger.warning(f"{name} was trained on other classes than those of this dataset")
        self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        for scheduler, state in scheduler_states(self.param_schedulers, content["param_schedulers"], name):
            scheduler.load_state_dict(state)
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        state, absent = optimizer_state(
            optim_wrapper_of(self), model_of(self), content.pop("optimizer"), place.stateless, name
        )
        if absent and place.stateless is None:
            self.logger.warning(f"{name} has no optimizer state of {len(absent)} parameters: {shorten(absent)}")
        optim_wrapper_of(self).load_state_dict(state)
        if content["meta"].get(UNVALIDATED) is True and self._val_loop is not None:
            self.register_hook(ValidateFirst())
        self._has_loaded = True
        self.logger.info(f"resumed epoch: {self.epoch}, iter: {self.iter}")


class TrustingRunner(TransferRunner):
    """The runner of ``--trust``: the checkpoints that it reads may run code."""

    trust = True
