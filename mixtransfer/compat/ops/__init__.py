"""The ops that mmdet and mmseg call of mmcv, in torch's and torchvision's operations, on every device.

Each module holds functions under the names and with the calling conventions of mmcv's compiled extension: results are
written into tensors that the caller made. What an op computes is written once, as a differentiable function; the
``_backward`` functions take its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["at_least_float32", "write_gradients"]


def at_least_float32(*tensors: Tensor) -> torch.dtype:
    """Return the type in which an op computes on tensors: kernels lack 16 bits on CPU, and coordinates need more."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def write_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor, targets: Sequence[Tensor]
) -> None:
    """Write the gradient of ``function(*inputs)`` for ``grad_output`` into ``targets``, one for each input."""
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in inputs]
        out = function(*leaves)
        grads = torch.autograd.grad(out, leaves, grad_output.to(out.dtype))
    for target, grad in zip(targets, grads, strict=True):
        target.copy_(grad)
