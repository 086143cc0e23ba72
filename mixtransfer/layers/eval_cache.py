"""Tensors that follow from parameters: made once for an evaluation instead of at every step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor, nn

__all__ = ["EvalCache"]


class EvalCache(nn.Module):
    """The last tensor that a module derived from its parameters, kept as long as the module is evaluated.

    A child of that module, so that entering training clears it: biases for the windows of a large image would take
    memory from every step. Has no entry in the state dict.
    """

    def __init__(self):
        super().__init__()
        self.last: tuple[tuple, Tensor] | None = None

    def get(self, make: Callable[..., Tensor], *arguments: Hashable, of: Iterable[Tensor]) -> Tensor:
        """Return ``make(*arguments)``, kept from the last call if neither the arguments nor the parameters changed.

        Args:
            make: derives the tensor; nothing is kept where gradients are recorded or a graph is compiled or traced.
            arguments: what it depends on beside parameters.
            of: the parameters that it reads.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return make(*arguments)
        key = (*arguments, *((x.data_ptr(), x._version, x.dtype) for x in of))
        if self.last is None or self.last[0] != key:
            self.last = (key, make(*arguments))
        return self.last[1]

    def train(self, mode: bool = True) -> EvalCache:
        """Set the mode and let go of the tensor."""
        self.last = None
        return super().train(mode)
