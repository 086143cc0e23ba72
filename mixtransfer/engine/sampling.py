"""Loading samples so that each draws from generators that follow from its place in the training.

A sample (augmentation) is seeded with (seed, rank, epoch, batch, place in the batch), whichever worker loads it. The
batch sampler attaches that place to the index, and can start in the middle of an epoch. An image that cannot be read
is replaced by the next one, drawn with the same generators, as long as few are.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mixtransfer.datasets.stored import Unusable, image_size, read_mask
from mixtransfer.errors import UserError

__all__ = [
    "SIGNALS",
    "UNREADABLE",
    "GuardedLoader",
    "ResumableBatchSampler",
    "SeededDataset",
    "guarded",
    "init_worker",
    "last_line",
    "seed_everything",
]

#: What stops a training, where the system has it; see :class:`~mixtransfer.engine.interrupt.InterruptHook`.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
#: Linux's ``prctl`` option: the signal that a process gets when its parent ends.
PARENT_DEATH_SIGNAL = 1

#: What loading an image raises; mmcv asserts that a file could be decoded.
UNREADABLE = (OSError, AssertionError, cv2.error)


def seed_everything(*place: int) -> None:
    """Seed Python, NumPy and torch with a place such as (seed, rank, iteration)."""
    state = [int(word) for word in np.random.SeedSequence(place).generate_state(3)]
    random.seed(state[0])
    np.random.seed(state[1])
    # torch.manual_seed would queue a call for a GPU that a data worker never opens.
    torch.default_generator.manual_seed(state[2])
    if get_worker_info() is None and torch.cuda.is_available():
        torch.cuda.manual_seed(state[2])


def unreadable_file(info: Mapping[str, Any]) -> tuple[str, Unusable] | None:
    """Return the file of a sample that ``data check`` refuses, and why; None if its image and mask are sound."""
    for key, read in (("img_path", image_size), ("seg_map_path", read_mask)):
        path = info.get(key)
        if path is None or "://" in str(path):
            continue
        try:
            read(Path(path))
        except Unusable as problem:
            return str(path), problem
    return None


def last_line(error: Exception) -> str:
    """Return the last line of what an error says, or its kind if it says nothing."""
    if isinstance(error, cv2.error):
        return "empty, or no image that OpenCV reads"  # which quotes its own code
    return (str(error).strip().splitlines()[-1:] or [type(error).__name__])[0]


class SeededDataset(Dataset):
    """A dataset whose samples are seeded by their place, if the index comes as (index, place).

    An image that cannot be read raises a :class:`UserError` that names it, unless :meth:`replace_unreadable` was
    called. Everything else is the wrapped dataset's.
    """

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed
        self.share: float = 0
        self.unreadable: torch.Tensor | None = None

    def replace_unreadable(self, share: float) -> None:
        """Put the next sample in the place of one whose image cannot be read, up to this share of the dataset."""
        self.share = share
        # Of all data workers.
        self.unreadable = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def __getitem__(self, draw: int | tuple[int, Sequence[int]]) -> Any:
        index, place = draw if isinstance(draw, tuple) else (draw, None)
        for following in range(len(self)):
            number = (index + following) % len(self)
            if place is not None:
                seed_everything(self.seed, *place)
            try:
                return self.dataset[number]
            except UNREADABLE as error:
                self._pass_over(number, error)
        raise UserError("no image of the dataset can be loaded; see mixtransfer data check")

    def _pass_over(self, number: int, error: Exception) -> None:
        """Note that a sample cannot be read; raise a UserError if it may not be replaced, ``error`` if it is a bug."""
        info = self.dataset.get_data_info(number)
        found = unreadable_file(info)
        if found is None:
            raise error
        message = f"{found[0]}: cannot be loaded: {found[1]}; see mixtransfer data check"
        if self.unreadable is None or self.share == 0:
            raise UserError(message) from error
        self.unreadable[number] = True
        bad = int(self.unreadable.sum())
        if bad > self.share * len(self):
            raise UserError(
                f"{message}; {bad} of {len(self)} images cannot be, more than --bad-images {self.share:g}"
            ) from error

    def unreadable_files(self) -> list[str]:
        """Return the images that were replaced, by any data worker."""
        found = [] if self.unreadable is None else self.unreadable.nonzero().flatten().tolist()
        return [str(self.dataset.get_data_info(number).get("img_path", f"sample {number}")) for number in found]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # looked up by copying and unpickling, before it is there
            raise AttributeError(name)
        return getattr(self.dataset, name)


class ResumableBatchSampler:
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


class GuardedLoader(DataLoader):
    """A loader whose workers outlive neither a signal to all of a training's processes nor their parent."""

    batch_sampler: Any

    def _get_iterator(self) -> Any:
        iterator = super()._get_iterator()
        for worker in getattr(iterator, "_workers", ()):
            # They ignore the signal that torch and Python end those with which hang.
            worker._popen.terminate = worker._popen.kill
        return iterator


def guarded(loader: DataLoader, resumable: bool) -> GuardedLoader:
    """Return ``loader``, which loads :class:`SeededDataset`, with guarded workers.

    A resumable one has a :class:`ResumableBatchSampler`.
    """
    return GuardedLoader(
        loader.dataset,
        batch_sampler=ResumableBatchSampler(loader.batch_sampler) if resumable else loader.batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def init_worker(worker: int, then: Any) -> None:
    """Start a data worker: it leaves signals to the main process and ends with it; ``then`` is the loader's own."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    if then is not None:
        then(worker)


def end_with_parent() -> None:
    """Let this process end when the one that started it does, in whatever state either is."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux" and parent.pid == os.getppid():
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() == parent.pid:
            return
        os._exit(1)  # it ended in between

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
