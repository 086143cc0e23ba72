"""Figures that authors print about their variants, kept beside the size tables that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Reported"]


@dataclass(frozen=True)
class Reported:
    """The numbers of one variant as its authors print them; None where they print none that we could read.

    A whole number is one that is printed without decimals: 28 stands for anything from 27.5 to 28.5.

    Attributes:
        params: parameters of the classifier, in millions.
        flops: multiply-accumulates of one image, in units of 10⁹; papers call them FLOPs.
        top1: top-1 accuracy on ImageNet-1k, percent.
        box_ap: AP of boxes on COCO val2017.
        mask_ap: AP of masks on COCO val2017.
        miou: mean IoU on ADE20K's validation set at a single scale, percent.
        sources: where they are printed, and by which method and schedule the dense ones were reached.
        reason: why our own count of parameters or multiply-accumulates is another one, where it is by more than 1 %.
    """

    params: float | None = None
    flops: float | None = None
    top1: float | None = None
    box_ap: float | None = None
    mask_ap: float | None = None
    miou: float | None = None
    sources: tuple[str, ...] = ()
    reason: str = ""
