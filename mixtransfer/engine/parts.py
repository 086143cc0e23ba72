"""Parts of a runner as they are once training, validation or a test has begun; mmengine builds them late."""

from __future__ import annotations

from typing import cast

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

__all__ = ["model_of", "optim_wrapper_of"]


def model_of(runner: Runner) -> nn.Module:
    """Return the model itself, without what wraps it on several processes."""
    model = runner.model
    return cast(nn.Module, model.module if is_model_wrapper(model) else model)


def optim_wrapper_of(runner: Runner) -> OptimWrapper:
    """Return the built optimizer wrapper."""
    return cast(OptimWrapper, runner.optim_wrapper)
