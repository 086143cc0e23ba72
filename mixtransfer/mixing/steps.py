"""Models that draw at random in training: their draws are a function of (seed, rank, step, seed of the run).

A loop that knows the iteration and the run's seed sets :attr:`StepCounter.step` and :attr:`StepCounter.run_seed`; those
of :mod:`mixtransfer.engine.loops` do. Under any other loop, such as mmengine's own, the model counts its steps, its
state dict carries the count, and the seed of the run is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from mmengine.dist import get_rank
from torch import nn

from mixtransfer.mixing.draws import step_generator

__all__ = ["StepCounter", "outside_graphs"]

F = TypeVar("F", bound=Callable)

#: Name of the count in the metadata of a state dict, which torch keeps beside the entries.
KEY = "step"


def outside_graphs(function: F) -> F:
    """Keep a function out of compiled graphs, which would take its numbers for constants.

    ``torch.compiler.disable`` as a decorator would import the compiler for every command, 0.1 GB and half a second.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return cast(F, call)


class StepCounter(nn.Module):
    """Mixin of models with random draws in training.

    The count is metadata of the state dict and not an entry of it: weights have the same names with and without it, and
    a state dict without metadata leaves the count alone.

    Attributes:
        step: number of the next training step, from 0.
        run_seed: the seed of the training.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.step = self.run_seed = 0
        self._register_state_dict_hook(_save_step)
        self._register_load_state_dict_pre_hook(_load_step, with_module=True)

    @outside_graphs
    def generator(self, seed: int, device: torch.device | None = None) -> torch.Generator:
        """Return the generator of this step and process on a device, for draws whose stream starts at ``seed``."""
        generator = step_generator(seed, get_rank(), self.step, self.run_seed)
        return generator if device is None else torch.Generator(device).manual_seed(generator.initial_seed())

    @outside_graphs
    def count_step(self) -> None:
        """End this training step; later draws belong to the next one."""
        self.step += 1


def _save_step(model: StepCounter, state: Any, prefix: str, metadata: dict[str, Any]) -> None:
    metadata[KEY] = model.step


def _load_step(
    model: StepCounter, state: Any, prefix: str, metadata: Mapping[str, Any], strict: bool, *problems: list[str]
) -> None:
    model.step = metadata.get(KEY, model.step)
