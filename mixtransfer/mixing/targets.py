"""Targets: the label of a mixed image. All are pure and linear in the labels.

Labels are dense (B, K) rows, smoothing included; evidence is a dict of tensors by the names in ``needs`` and
``needs_unmixed``. The targets of TransMix, TokenMix and SMMix have files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from mixtransfer.mixing.draws import Draw
from mixtransfer.registry import MODELS

__all__ = ["AlignedTokens", "Area", "Target", "blend"]


class Target:
    """Base of all targets.

    Attributes:
        needs: names of the evidence from the pass of the mixed images. ``"token_labels"``: the (B, 1) label that a
            backbone's ``embed(images, token_labels=draw.label_map(images))`` returns.
        needs_unmixed: names of the evidence about the unmixed images; there is none in steps that paste no region.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    needs_unmixed: ClassVar[tuple[str, ...]] = ()

    def relabel(self, targets: Tensor, draw: Draw, evidence: Mapping[str, Tensor]) -> Tensor:
        """Return the labels (B, K) of the mixed images from those of the unmixed ones.

        Called for draws that paste a region; all others weigh labels by area. Beside what is asked for, evidence holds
        the ``"logits"`` (B, K) of the mixed images and the ``"targets"`` (B, K) that the network learns, unmixed.
        """
        raise NotImplementedError

    def losses(self, targets: Tensor, draw: Draw, evidence: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses besides the label's, by name, always the same ones.

        Args:
            targets: labels (B, K) of the unmixed images.
            draw: how they were mixed.
            evidence: tensors by the names in ``needs`` and ``needs_unmixed``, and the ``"logits"`` (B, K) of the mixed
                images.
        """
        return {}


@MODELS.register_module()
class Area(Target):
    """The weight of an image's label is its share of the area (Mixup: λ)."""

    @override
    def relabel(self, targets, draw, evidence):
        return blend(targets, draw, 1 - draw.ratio)


@MODELS.register_module()
class AlignedTokens(Target):
    """The weight of an image's label is its share of the tokens that the image embedding attended to.

    TL-Align, arXiv 2210.06455, section 3.2: token labels travel through the network with its attention.
    """

    needs = ("token_labels",)

    @override
    def relabel(self, targets, draw, evidence):
        return blend(targets, draw, evidence["token_labels"][:, 0])


def blend(targets: Tensor, draw: Draw, share: Tensor) -> Tensor:
    """Return (1 − share)·Y1 + share·Y2, where Y2 is the partner's row and ``share`` (B,) the partner's weight."""
    share = share.detach().to(targets)[:, None]
    return (1 - share) * targets + share * targets[draw.partner.to(targets.device)]
