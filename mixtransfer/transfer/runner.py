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
import os
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.model import MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import DATASETS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mixtransfer.checkpoints import read_checkpoint
from mixtransfer.checkpoints.read import find_weights
from mixtransfer.errors import UserError

__all__ = [
    "UNREADABLE",
    "EpochLoop",
    "IterLoop",
    "Samples",
    "TransferRunner",
    "is_resumable",
    "last_line",
    "load_strictly",
]

#: What loading an image raises; mmcv asserts that a file could be decoded.
UNREADABLE = (OSError, AssertionError, cv2.error)

#: Entries of a segmentor's or detector's state that training adds and testing does not need.
OPTIONAL = "backbone.token_classifier."
SHOWN = 12


def seed_everything(*place: int) -> None:
    """Seed Python, NumPy and torch with a place such as (seed, rank, iteration)."""
    state = [int(word) for word in np.random.SeedSequence(place).generate_state(3)]
    random.seed(state[0])
    np.random.seed(state[1])
    # torch.manual_seed would queue a call for a GPU that a data worker never opens.
    torch.default_generator.manual_seed(state[2])
    if get_worker_info() is None and torch.cuda.is_available():
        torch.cuda.manual_seed(state[2])


def last_line(error: Exception) -> str:
    """Return the last line of what an error says, or its kind if it says nothing."""
    return (str(error).strip().splitlines()[-1:] or [type(error).__name__])[0]


@contextmanager
def _values_of(entry: str) -> Iterator[None]:
    """Say in one line which value in an entry of the config is refused by what is built from it."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        raise UserError(f"{entry}: {last_line(error)}") from error


class Samples(Dataset):
    """A dataset whose samples are seeded by their place, if the index comes as (index, place).

    A sample that cannot be loaded raises a :class:`UserError` that names its file. Everything else is the wrapped
    dataset's.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, draw: int | tuple[int, Sequence[int]]) -> Any:
        index, place = draw if isinstance(draw, tuple) else (draw, None)
        if place is not None:
            seed_everything(self.seed, *place)
        try:
            return self.dataset[index]
        except UNREADABLE as error:
            path = self.dataset.get_data_info(index).get("img_path", f"sample {index}")
            raise UserError(f"{path}: cannot be loaded ({last_line(error)}); see tools/data.py check") from error

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # asked for by copying and unpickling, before it is there
            raise AttributeError(name)
        return getattr(self.dataset, name)


class PlacedBatches:
    """A batch sampler whose indices carry their place in the training, and that can start in the middle."""

    def __init__(self, batches: Any):
        self.batches, self.sampler = batches, batches.sampler
        self.epoch, self.first = 0, 0

    def start(self, epoch: int, first: int) -> None:
        """Let the next iteration be over ``epoch``, without its first batches."""
        self.epoch, self.first = epoch, first
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        epoch, first, rank = self.epoch, self.first, get_rank()
        for number, batch in enumerate(self.batches):
            if number >= first:
                yield [(index, (rank, epoch, number, slot)) for slot, index in enumerate(batch)]

    def __len__(self) -> int:
        return len(self.batches)


def place_batches(loader: DataLoader) -> DataLoader:
    """Return ``loader``, which loads :class:`Samples`, with :class:`PlacedBatches`."""
    return DataLoader(
        loader.dataset,
        batch_sampler=PlacedBatches(loader.batch_sampler),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


class _SeededSteps:
    """A loop whose step draws from generators seeded with its iteration."""

    def run_iter(self, *args: Any) -> None:
        seed_everything(self.runner.seed, get_rank(), self._iter)
        super().run_iter(*args)


class EpochLoop(_SeededSteps, EpochBasedTrainLoop):
    """Training by epochs that resumes in the middle of one."""

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

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = EndlessBatches(self.dataloader)


class EndlessBatches:
    """Iterate over a loader again and again; ``skip_iter`` is how mmengine's loop resumes."""

    def __init__(self, loader: DataLoader):
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


class TransferRunner(Runner):
    """The runner behind ``tools/train.py`` and ``tools/test.py``.

    While it is built, only warnings reach the console; the log file has everything.
    """

    #: Whether checkpoints may run code.
    trust = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._console.setLevel(self._console_level)

    def build_logger(self, *args: Any, **kwargs: Any):  # noqa: D102
        logger = super().build_logger(*args, **kwargs)
        self._console = next(h for h in logger.handlers if not isinstance(h, logging.FileHandler))
        self._console_level = self._console.level
        self._console.setLevel(max(self._console_level, logging.WARNING))
        return logger

    def setup_env(self, env_cfg: dict) -> None:
        """Set up what processes share; without a GPU they meet through gloo, whatever backend the config names."""
        if self.launcher == "pytorch":
            if "RANK" not in os.environ:
                raise UserError("--launcher pytorch: no RANK in the environment; start it with torchrun")
            if not torch.cuda.is_available() and not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo")
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
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader of :class:`Samples` whose workers leave Ctrl-C to the main process."""
        if isinstance(dataloader, DataLoader):
            return dataloader
        dataset = DATASETS.build(dataloader["dataset"])
        if hasattr(dataset, "full_init"):
            dataset.full_init()
        if len(dataset) == 0:
            raise UserError(f"{dataset.data_root}: no image is left after filtering; see tools/data.py check")
        settings = {**dataloader, "dataset": Samples(dataset, seed)}
        if isinstance(settings.get("collate_fn"), Mapping):
            # mmengine gives the function all entries but the type, also the scope that it notes for a library's config.
            settings["collate_fn"] = {key: value for key, value in settings["collate_fn"].items() if key != "_scope_"}
        with _values_of("dataloader"):
            loader = Runner.build_dataloader(settings, seed, diff_rank_seed)
        loader.worker_init_fn = partial(_init_worker, then=loader.worker_init_fn)
        return loader

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:  # noqa: D102
        with _values_of("optim_wrapper"):
            return super().build_optim_wrapper(optim_wrapper)

    def register_hooks(self, default_hooks: Any = None, custom_hooks: Any = None) -> None:  # noqa: D102
        with _values_of("default_hooks or custom_hooks"):
            super().register_hooks(default_hooks, custom_hooks)

    def build_param_scheduler(self, scheduler: Any) -> Any:  # noqa: D102
        with _values_of("param_scheduler"):
            return super().build_param_scheduler(scheduler)

    def build_train_loop(self, loop: dict) -> EpochLoop | IterLoop:
        """Build our counterpart of mmengine's loop."""
        loop = {key: value for key, value in loop.items() if key != "_scope_"}
        kind = loop.pop("type", None) or ("EpochBasedTrainLoop" if loop.pop("by_epoch") else "IterBasedTrainLoop")
        classes = {"EpochBasedTrainLoop": EpochLoop, "IterBasedTrainLoop": IterLoop}
        if kind not in classes:
            raise UserError(f"train_cfg.type={kind!r}: give {' or '.join(classes)}")
        loader = self.build_dataloader(self._train_dataloader, seed=self.seed)
        with _values_of("train_cfg"):
            for key in ("max_iters", "max_epochs", "val_interval"):
                if loop.get(key, 1) < 1:
                    raise UserError(f"train_cfg.{key}={loop[key]}: give a number from 1")
            return classes[kind](self, place_batches(loader), **loop)

    def train(self) -> nn.Module:
        """Train; afterwards no data worker is left."""
        try:
            return super().train()
        finally:
            self._stop_workers()

    def test(self) -> dict:
        """Return the metrics on the test set; afterwards no data worker is left."""
        try:
            return super().test()
        finally:
            self._stop_workers()

    def _maybe_compile(self, target: str) -> None:
        """Compile the backbone, or a classifier as a whole; mmengine's own way compiles the whole step, ``target``.

        torch's compiler cannot follow the optimizer's part of it, and heads of detectors work on ground truth of new
        sizes in every step.
        """
        options = self.cfg.get("compile")
        if options is None or options is False:
            return
        model = self.model.module if is_model_wrapper(self.model) else self.model
        part = model if self.cfg.get("default_scope") == "mmpretrain" else model.backbone
        part.compile(**(options if isinstance(options, Mapping) else {}))

    def _stop_workers(self) -> None:
        # Those still there at the process's exit would be killed, which torch reports as an error.
        loops = [self._train_loop, self._val_loop, self._test_loop]
        loaders = [loop.dataloader for loop in loops if hasattr(loop, "dataloader")]
        batches = getattr(loops[0], "dataloader_iterator", None)
        for iterator in [*(loader._iterator for loader in loaders), getattr(batches, "batches", None)]:
            if hasattr(iterator, "_shutdown_workers"):
                iterator._shutdown_workers()
        for loader in loaders:
            loader._iterator = None

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", strict: bool = True, **_: Any) -> dict:
        """Read a checkpoint of a whole model into host memory and load it completely, or raise a UserError."""
        content = read_checkpoint(filename, self.trust)
        self.call_hook("after_load_checkpoint", checkpoint=content)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        load_strictly(model, find_weights(content, str(filename)), str(filename))
        self._has_loaded = True
        self.logger.info(f"loaded {filename}")
        return content


def load_strictly(model: nn.Module, weights: dict[str, torch.Tensor], name: str) -> None:
    """Load the weights of a whole model, every entry; only those of the token classifier may be absent or extra.

    Raises:
        UserError: naming the missing, unexpected and misshapen entries.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in weights and not key.startswith(OPTIONAL)]
    unexpected = [key for key in weights if key not in own and not key.startswith(OPTIONAL)]
    misshapen = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in weights.items()
        if key in own and value.shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:SHOWN])}{', …' if len(keys) > SHOWN else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise UserError(
            f"{name} does not fit the model: {', '.join(problems)}; use the config, --data and --cfg-options that it"
            " was trained with"
        )
    model.load_state_dict({key: value for key, value in weights.items() if key in own}, strict=False)


def is_resumable(content: dict) -> bool:
    """Tell whether a checkpoint holds the state of a training, not only weights."""
    return {"meta", "optimizer", "message_hub", "param_schedulers"} <= content.keys() and "iter" in content["meta"]


def _init_worker(worker: int, then: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if then is not None:
        then(worker)
