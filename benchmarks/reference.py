"""TL-Align the way its authors' code traces labels, to compare with: plain, and not meant for use.

Xiao et al., "Token-Label Alignment for Vision Transformers", ICCV 2023, arXiv 2210.06455, section 3.2. Every block
makes its attention map, averages it over the heads, and multiplies the labels of all tokens and classes, (B, 1+N, K),
by it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mixtransfer.backbones import deit
from mixtransfer.mixing.draws import Draw
from mixtransfer.pretrain.classifier import MixingClassifier, smooth_one_hot, soft_cross_entropy

__all__ = ["PublishedTracing"]


class MaterializedAttention(deit.Attention):
    """Multi-head self-attention whose map (B, h, 1+N, 1+N) is kept, and labels of K classes behind it."""

    def forward(self, x: Tensor, labels: Tensor, bias: None = None) -> tuple[Tensor, Tensor]:
        """Return new tokens (B, 1+N, C) and the labels each of them attended to (B, 1+N, K); there is no ``bias``."""
        batch, tokens, channels = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) * q.size(-1) ** -0.5).softmax(dim=-1)
        x = self.proj((attention @ v).transpose(1, 2).reshape(batch, tokens, channels))
        return x, (attention.detach().clone().mean(dim=1) @ labels).float()


class PublishedTracing(MixingClassifier):
    """A DeiT classifier trained with TL-Align as published; the weights are those of :class:`MixingClassifier`."""

    def __init__(self, arch: str, num_classes: int = 1000, *, seed: int = 0, **kwargs):
        super().__init__(arch, num_classes, mixing={"type": "TLAlign", "seed": seed}, **kwargs)
        spec = self.backbone.archs[arch]
        for block in self.backbone.blocks:
            block.attn = MaterializedAttention(spec.channels, spec.heads)

    def loss(self, images: Tensor, labels: Tensor, fields: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the loss of a step on images (B, 3, H, W) with class labels (B,), and count it."""
        targets = smooth_one_hot(labels, self.num_classes, self.label_smoothing)
        draw = self.draw(images).resolve({})
        self.count_step()
        x, _, _ = self.backbone.tokens(self.mixing.apply(images, draw), None)
        rows = _class_rows(targets, draw)
        for block in self.backbone.blocks:
            x, rows = block(x, rows)
        return {"loss": soft_cross_entropy(self.head(self.backbone.norm(x[:, 0])), rows[:, 0])}


def _class_rows(targets: Tensor, draw: Draw) -> Tensor:
    """Return the labels (B, 1+N, K) of class token and patches: the mixed label, and each patch's own image's."""
    partner = targets[draw.partner.to(targets.device)]
    mask = draw.mask.flatten(1).to(targets.device)
    ratio = draw.ratio.to(targets)[:, None]
    whole = ratio * targets + (1 - ratio) * partner
    patches = torch.where(mask[..., None], partner[:, None], targets[:, None])
    return torch.cat([whole[:, None], patches], dim=1)
