"""Loading samples so that each draws from generators that follow from its place in the training.

A sample (augmentation) is seeded with (seed, rank, epoch, batch, place in the batch), whichever worker loads it. The
batch sampler attaches that place to the index, and can start in the middle of an epoch.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mixtransfer.errors import UserError

__all__ = [
    "UNREADABLE",
    "ResumableBatchSampler",
    "ResumableLoader",
    "SeededDataset",
    "init_worker",
    "last_line",
    "resumable",
    "seed_everything",
]

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


def last_line(error: Exception) -> str:
    """Return the last line of what an error says, or its kind if it says nothing."""
    return (str(error).strip().splitlines()[-1:] or [type(error).__name__])[0]


class SeededDataset(Dataset):
    """A dataset whose samples are seeded by their place, if the index comes as (index, place).

    A sample that cannot be loaded raises a :class:`UserError` that names its file. Everything else is the wrapped
    dataset's.
    """

    def __init__(self, dataset: Any, seed: int):
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


class ResumableLoader(DataLoader):
    """A loader with a :class:`ResumableBatchSampler`."""

    batch_sampler: ResumableBatchSampler


def resumable(loader: DataLoader) -> ResumableLoader:
    """Return ``loader``, which loads :class:`SeededDataset`, with :class:`ResumableBatchSampler`."""
    return ResumableLoader(
        loader.dataset,
        batch_sampler=ResumableBatchSampler(loader.batch_sampler),
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
    """Start a data worker: it leaves Ctrl-C to the main process; ``then`` is the loader's own function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if then is not None:
        then(worker)
