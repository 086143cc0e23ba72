"""Distillation: a classifier learns from labels, mixed or not, and from what a frozen teacher of any family answers.

DeiT (arXiv 2012.12877, section 4; code facebookresearch/deit, losses.py, Apache-2.0): 1 − α of the labels' loss, and
α of a hard loss, the cross-entropy with the teacher's best class, or a soft one, τ² · KL(teacher ‖ student) of logits
divided by τ. SReT (arXiv 2111.05297; code szq0214/SReT, kd_loss.py) has the soft one alone, α = 1, τ = 1. DynamicViT
(arXiv 2106.02034, section 3.3) adds the soft one to the loss of the labels and takes the squared distance of the last
tokens besides; its own networks have it in :mod:`mixtransfer.pretrain.dynamic`.

Shapes: B batch, K classes, D channels, h × w grid of tokens.

Kept: the teacher sees the mixed images, in evaluation mode. Different: one head learns from both, there is no
distillation token; a teacher's tokens are averaged or repeated onto the student's grid, and read by a linear map of the
student's tokens where the channels differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from mixtransfer.errors import UserError, unknown_name
from mixtransfer.mixing.draws import size_of
from mixtransfer.mixing.losses import kl
from mixtransfer.pretrain.classifier import MixingClassifier
from mixtransfer.pretrain.teachers import Teacher
from mixtransfer.registry import MODELS

__all__ = ["DistilledClassifier", "hard_loss", "soft_loss"]


def hard_loss(logits: Tensor, expected: Tensor) -> Tensor:
    """Return the cross-entropy of logits (B, K) with the best class of the teacher's logits (B, K)."""
    return F.cross_entropy(logits, expected.argmax(dim=1))


def soft_loss(logits: Tensor, expected: Tensor, temperature: float, per_class: bool) -> Tensor:
    """Return τ² times the mean over the batch of KL(softmax(expected / τ) ‖ softmax(logits / τ)), both (B, K).

    Args:
        logits: the student's.
        expected: the teacher's.
        temperature: τ.
        per_class: divide by the classes as well.
    """
    loss = temperature**2 * kl(logits / temperature, expected / temperature).mean()
    return loss / logits.shape[1] if per_class else loss


@MODELS.register_module()
class DistilledClassifier(MixingClassifier):
    """A classifier with a teacher of any family, and any mixing method.

    The losses are those of the method times ``label_weight``, ``loss_distill`` and, with a ``token_weight``,
    ``loss_distill_tokens``.

    Args:
        arch: the student's architecture.
        num_classes: rows of the head, the teacher's too.
        distill: ``dict(arch=..., checkpoint=..., source="auto", trust=False)``, the teacher; :meth:`init_weights` loads
            it, completely. (``teacher`` is TokenMix's.)
        kind: ``"hard"`` or ``"soft"``.
        weight: of the loss of the teacher's logits, 0.5 in DeiT and DynamicViT; 0 leaves it out.
        label_weight: of the losses of the labels; default 1 − ``weight`` as in DeiT. SReT has 0, DynamicViT 1.
        temperature: τ of the soft loss.
        per_class: divide the soft loss by the number of classes, as DeiT's code does.
        token_weight: of the mean squared distance of the last tokens, 0.5 in DynamicViT.
        options: those of :class:`~mixtransfer.pretrain.classifier.MixingClassifier`.

    Raises:
        UserError: an unknown kind, a number out of range, or an incomplete teacher.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int = 1000,
        *,
        distill: dict,
        kind: str = "soft",
        weight: float = 0.5,
        label_weight: float | None = None,
        temperature: float = 1.0,
        per_class: bool = False,
        token_weight: float = 0.0,
        **options: Any,
    ):
        super().__init__(arch, num_classes, **options)
        if kind not in ("hard", "soft"):
            raise unknown_name("kind of distillation", kind, ("hard", "soft"))
        self.label_weight = 1 - weight if label_weight is None else label_weight
        if min(weight, self.label_weight, token_weight) < 0 or temperature <= 0:
            raise UserError(
                f"distillation: weight={weight}, label_weight={self.label_weight}, token_weight={token_weight}, "
                f"temperature={temperature}; give weights from 0 and a temperature above 0"
            )
        self.kind, self.weight, self.token_weight = kind, weight, token_weight
        self.temperature, self.per_class = temperature, per_class
        self.distill = Teacher(distill, lambda name: MixingClassifier(name, num_classes))
        own, theirs = (net.backbone.embed_channels for net in (self, self.distill.net))
        self.token_map = nn.Linear(own, theirs) if token_weight and own != theirs else None
        self.wanted = ("tokens",) if token_weight else ()

    @override
    def loss(self, images: Tensor, labels: Tensor, fields: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        if self.mixing is None:
            evidence = self.collect(images, None)
            targets = self.smoothed(labels, images)
            extra: dict[str, Tensor] = {}
        else:
            images, draw, evidence = self.mixed(images, labels, fields)
            targets = self.mixing.relabel(evidence["targets"], draw, evidence)
            extra = self.mixing.losses(evidence["targets"], draw, evidence)
        self.count_step()
        net = self.distill.net
        with torch.no_grad():
            (expected, _), seen = net.backbone.watched(lambda: net.classify(images), self.wanted)
        losses = {"loss_class": self.label_weight * self.criterion(evidence["logits"], targets)}
        losses |= {name: self.label_weight * value for name, value in extra.items()}
        losses["loss_distill"] = self.weight * self.logit_loss(evidence["logits"], expected)
        if self.token_weight:
            losses["loss_distill_tokens"] = self.token_weight * self.token_loss(evidence["tokens"], seen["tokens"])
        return losses

    def logit_loss(self, logits: Tensor, expected: Tensor) -> Tensor:
        """Return the loss of logits (B, K) against the teacher's."""
        if self.kind == "hard":
            return hard_loss(logits, expected)
        return soft_loss(logits, expected, self.temperature, self.per_class)

    def token_loss(self, tokens: Tensor, expected: Tensor) -> Tensor:
        """Return the mean squared distance of tokens (B, D, h, w) from the teacher's, of any grid and channels."""
        if self.token_map is not None:
            tokens = self.token_map(tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (tokens - F.adaptive_avg_pool2d(expected, size_of(tokens))).square().mean()

    @override
    def init_weights(self) -> None:
        super().init_weights()
        self.distill.load()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistilledClassifier:
        self.distill.apply(fn, recurse)
        super()._apply(fn, recurse)
        return self
