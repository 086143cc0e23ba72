"""Parameters and multiply-accumulates of an architecture's published classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mixtransfer.backbones import backbone_class
from mixtransfer.zoo import build_classifier

__all__ = ["Complexity", "complexity", "counted", "table"]

#: Side in pixels that networks without a table of fixed size are published for.
DEFAULT_SIZE = 224
#: Parameters of a network above which it is counted without memory for them.
LARGE = 100e6


@dataclass(frozen=True)
class Complexity:
    """The cost of one image in evaluation.

    Attributes:
        arch: architecture name.
        size: (H, W) of the image in pixels.
        parameters: number of parameters, the 1000-class head included.
        macs: multiply-accumulates of convolutions and matrix products, the products of attention included; papers
            print these as FLOPs. Element-wise work and Fourier transforms are not counted.
    """

    arch: str
    size: tuple[int, int]
    parameters: int
    macs: int


def complexity(arch: str, size: tuple[int, int] | None = None) -> Complexity:
    """Measure ``arch`` at ``size`` (H, W), by default the published one.

    Raises:
        UserError: ``arch`` is unknown.
    """
    build = partial(build_classifier, arch, backbone={} if size is None else backbone_class(arch).at_size(size))
    with torch.device("meta"):
        net = build()
    parameters = sum(parameter.numel() for parameter in net.parameters())
    # Tensors of the meta device have a shape and no memory. The largest networks run on it at their published size;
    # others ask it for the places of padding or for autocast, which it does not have.
    device = "meta" if size is None and parameters > LARGE else "cpu"
    if device == "cpu":
        net = build()
    # The counter cannot follow parameters that are handed from module to module, such as class tokens.
    net.eval().requires_grad_(False)
    if size is None:
        size = (getattr(net.backbone.archs[arch], "img_size", DEFAULT_SIZE),) * 2
    with torch.no_grad():
        _, operations = counted(lambda: net(torch.zeros(1, 3, *size, device=device)))
    return Complexity(arch, tuple(size), parameters, operations // 2)


def counted(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call returns, and its operations: two of each multiply-accumulate."""
    # Only the plain form of attention is made of products that the counter sees on every device.
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with sdpa_kernel(SDPBackend.MATH), counter:
        answer = call()
    return answer, counter.get_total_flops()


def _recurrence(tokens, inward, recurrent, *args, out_shape=None, **kwargs) -> int:
    """Return the operations of a direction of an LSTM layer from the shapes of its tokens (T, B, C) and weights."""
    return 2 * tokens[0] * tokens[1] * (prod(inward) + prod(recurrent))


#: What the counter does not know: the LSTMs of the CPU.
FORMULAS = {torch.ops.aten.mkldnn_rnn_layer: _recurrence}


def table(rows: Iterable[Complexity]) -> str:
    """Return a Markdown table."""
    lines = ["| architecture | size | parameters, M | multiply-accumulates, G |", "|---|---|---:|---:|"]
    lines += [
        f"| {row.arch} | {row.size[0]} × {row.size[1]} | {row.parameters / 1e6:.2f} | {row.macs / 1e9:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)
