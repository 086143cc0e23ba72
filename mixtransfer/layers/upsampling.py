"""Bilinear upsampling as two products of matrices, one along each side of a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtransfer.layers.tables import table

__all__ = ["upsampling_weights"]


@table
def upsampling_weights(
    source: int, target: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return what each of ``source`` positions of a line adds to each of ``target`` ones, (target, source).

    Upsampling the unit vectors gives torch's own weights, rounded as torch rounds them.
    """
    eye = torch.eye(source, dtype=dtype, device=device)
    return F.interpolate(eye[None], size=target, mode="linear", align_corners=align_corners)[0].t().contiguous()
