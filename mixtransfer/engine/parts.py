"""Parts of a runner that mmengine declares as more than they are: a wrapped model, settings that are built late."""

from __future__ import annotations

from typing import cast

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

__all__ = ["model_of", "optim_wrapper_of", "seed_of", "unwrapped"]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model itself, without the wrapper of distributed training."""
    return cast(nn.Module, model.module if is_model_wrapper(model) else model)


def model_of(runner: Runner) -> nn.Module:
    """Return a runner's model itself, without the wrapper of distributed training."""
    return unwrapped(cast(nn.Module, runner.model))


def optim_wrapper_of(runner: Runner) -> OptimWrapper:
    """Return the optimizer wrapper, which is built once training begins."""
    return cast(OptimWrapper, runner.optim_wrapper)


def seed_of(runner: Runner) -> int:
    """Return the seed of a training, 0 under a loop of one's own that has none."""
    return getattr(runner, "seed", None) or 0
