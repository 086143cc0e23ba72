"""Parameters and multiply-accumulates of an architecture's published classifier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mixtransfer.zoo import build_classifier

__all__ = ["Complexity", "complexity", "table"]

#: Side in pixels that networks without a table of fixed size are published for.
DEFAULT_SIZE = 224


@dataclass(frozen=True)
class Complexity:
    """The cost of one image.

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
    backbone = {} if size is None else {"img_size": size}
    # The counter cannot follow parameters that are handed from module to module, such as class tokens.
    net = build_classifier(arch, backbone=backbone).eval().requires_grad_(False)
    if size is None:
        size = (getattr(net.backbone.archs[arch], "img_size", DEFAULT_SIZE),) * 2
    # Only the plain form of attention is made of products that the counter sees on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, *size))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return Complexity(arch, tuple(size), parameters, counter.get_total_flops() // 2)


def table(rows: Iterable[Complexity]) -> str:
    """Return a Markdown table."""
    lines = ["| architecture | size | parameters, M | multiply-accumulates, G |", "|---|---|---:|---:|"]
    lines += [
        f"| {row.arch} | {row.size[0]} × {row.size[1]} | {row.parameters / 1e6:.2f} | {row.macs / 1e9:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)
