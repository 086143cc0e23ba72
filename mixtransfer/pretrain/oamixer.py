"""OAMixer: patches of one object mix with each other, patches of different objects less.

Paper: Kang, Mo and Shin, "OAMixer: Object-aware Mixing Layer for Vision Transformers", CVPRW 2022, arXiv 2212.06595.
Code: alinlab/OAMixer (Apache-2.0).

Shapes: B batch, N patches of a grid, K channels of a patch label, d the (B, N, N) distance between patch labels.

Each block multiplies what patch i takes from patch j by a mask with one learned scale κ, exp(−κ d_ij) or 1 − κ d_ij. It
acts on attention before its rows are normalized (the class token is not masked), on the linear part of Mixer's token
MLP, and on ConvMixer's shared kernel. κ starts at 0, where the network is the one without masks. Patch labels are
needed for training and for evaluation alike; they come from

* ReLabel (arXiv 2101.05022): scores of the five best classes of every cell of a coarse map, or
* BigBiGAN (arXiv 2006.04988): the share of foreground in every pixel.

:mod:`mixtransfer.datasets.image_maps` reads both beside the images and keeps them in step with crops, flips and
RandAugment; ``mixtransfer data maps`` writes them.

Kept from the published code: κ is clamped at every forward and takes a gradient as if it were not; patch labels shrink
by halves, grow by repetition, and ReLabel's are a softmax over all classes on the grid; the label map is mixed with
the image, then resized; the token loss is on the mixed map.
Different: an additive bias −κd inside fused attention, which is the same as masking and normalizing again; distances
once a step instead of once a block; κ of all blocks in one entry; the mask 1 − κd stops just above 0; the cosine of a
label that is zero everywhere is 0, where the published code divides by zero; ReLabel's scores go to their
classes before the map is resampled, not after. ConViT attention is not built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.backbones.convmixer import ConvMixer
from mixtransfer.backbones.deit import VisionTransformer
from mixtransfer.backbones.mlp_mixer import MLPMixer
from mixtransfer.errors import UserError, unknown_name
from mixtransfer.mixing import Box
from mixtransfer.pretrain.classifier import MixingClassifier, smooth_one_hot, soft_cross_entropy
from mixtransfer.registry import MODELS

__all__ = ["OAMixer", "patch_distance", "patch_labels", "resize_label_map"]

#: Kinds of patch labels, and the distance that each is compared by.
KINDS = {"relabel": "cosine", "bigbigan": "l1"}
MASKS = ("exp", "minus")
#: Where the mask 1 − κd stops, so that its logarithm has a gradient.
SMALLEST = 1e-6


def resize_label_map(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resize a map (B, K, h, w) as the published code does: shrink by halves at most, grow by repeating cells."""
    height, width = x.shape[-2:]
    if height <= size[0] and width <= size[1]:
        return F.interpolate(x, size) if (height, width) != size else x
    while height > size[0] or width > size[1]:
        height, width = max(height // 2, size[0]), max(width // 2, size[1])
        x = F.interpolate(x, (height, width), mode=mode)
    return x


def patch_labels(maps: Tensor, size: tuple[int, int], softmax: bool) -> Tensor:
    """Return the labels of the patches of a grid (B, N, K) from label maps (B, K, h, w)."""
    rows = resize_label_map(maps, size).flatten(2).transpose(1, 2)
    return rows.softmax(dim=-1) if softmax else rows


def patch_distance(labels: Tensor, kind: str) -> Tensor:
    """Return the distance d (B, N, N) of patch labels (B, N, K): ``"l1"``, or 1 − ``"cosine"``."""
    if kind == "l1":
        return torch.cdist(labels, labels, p=1)
    labels = F.normalize(labels, dim=-1)
    return 1 - labels @ labels.transpose(1, 2)


class Mask(Protocol):
    """Masks by the number of a block."""

    def __call__(self, block: int, log: bool = False) -> Tensor | None:
        """Return the mask (B, N, N) of a block, or its logarithm; None where the block has none."""


def mix_vit(net: VisionTransformer, images: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Return the image embedding (B, D), as ``embed`` does, and the patch tokens (B, N, D) beside it."""
    x, _, _ = net.tokens(images, None)
    for index, block in enumerate(net.blocks):
        bias = mask(index, log=True)
        x, _ = net.checkpointed(block, x, None, None if bias is None else F.pad(bias, (1, 0, 1, 0)))
    x = net.norm(x)
    return x[:, 0], x[:, 1:]


def mix_mlp(net: MLPMixer, images: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Return what :func:`mix_vit` does, of MLP-Mixer."""
    x, grid = net.stem(images)
    for index, block in enumerate(net.blocks):
        x = net.checkpointed(block, x, grid, mask(index))
    x = net.norm(x)
    return x.mean(dim=1), x


def mix_conv(net: ConvMixer, images: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Return what :func:`mix_vit` does, of ConvMixer."""
    x = net.embed_patches(images)
    for index, block in enumerate(net.blocks):
        x = net.checkpointed(block, x, mask(index))
    return x.mean(dim=(2, 3)), x.flatten(2).transpose(1, 2)


RUNS = {VisionTransformer: mix_vit, MLPMixer: mix_mlp, ConvMixer: mix_conv}


@MODELS.register_module()
class OAMixer(MixingClassifier):
    """A classifier whose blocks mix patches by their labels; with a ``token_weight`` it has ``tok_head`` on tokens.

    A sample brings its label map (K, h, w) as ``patch_labels``: for ``"relabel"`` class scores on the patch grid, for
    ``"bigbigan"`` one channel, the share of foreground in every pixel. Without samples, ``mode="tensor"`` runs the
    network without masks.

    Args:
        arch: a DeiT, an MLP-Mixer or a ConvMixer with a shared kernel.
        num_classes: rows of the head.
        kind: what the patch labels are, ``"relabel"`` or ``"bigbigan"``.
        distance: ``"l1"`` or ``"cosine"``; default the published one of ``kind``.
        mask: ``"exp"`` for exp(−κd), ``"minus"`` for 1 − κd.
        masked_blocks: blocks that have a mask; default all.
        token_weight: weight of the loss of ``tok_head``, 0.5 in the published runs; 0 builds none.
        patch_classes: channels K of the map that ``tok_head`` learns.
        options: further arguments of :class:`~mixtransfer.pretrain.classifier.MixingClassifier`. ``cell_size`` should
            be the side of a patch, so that boxes lie on the grid of the label maps.

    Raises:
        UserError: an unknown name, a network that has no masks, or options that contradict each other.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int = 1000,
        *,
        kind: str = "relabel",
        distance: str | None = None,
        mask: str = "exp",
        masked_blocks: Sequence[int] | None = None,
        token_weight: float = 0.0,
        patch_classes: int = 1000,
        **options: Any,
    ):
        super().__init__(arch, num_classes, **options)
        if kind not in KINDS:
            raise unknown_name("kind of patch labels", kind, KINDS)
        if distance not in (None, *KINDS.values()):
            raise unknown_name("distance", distance, KINDS.values())
        if mask not in MASKS:
            raise unknown_name("mask", mask, MASKS)
        net = self.backbone
        self.run = next((run for family, run in RUNS.items() if isinstance(net, family)), None)
        if self.run is None or (isinstance(net, ConvMixer) and not net.archs[arch].shared):
            raise UserError(f"OAMixer has no masks for {arch}; give DeiT, MLP-Mixer or ConvMixer with a shared kernel")
        if kind == "bigbigan" and token_weight:
            raise UserError(f"token_weight={token_weight}: BigBiGAN's labels are no classes; give 0 or kind='relabel'")
        if self.mixing is not None and self.mixing.needs:
            raise UserError(f"OAMixer cannot collect {', '.join(self.mixing.needs)}; mix by area, e.g. CutMix")
        regions = getattr(self.mixing.region, "regions", [self.mixing.region]) if self.mixing is not None else []
        if kind == "relabel" and any(isinstance(region, Box) for region in regions):
            raise UserError("region Box draws pixels, which ReLabel's maps do not have; give TokenBox")
        self.masked_blocks = tuple(range(net.depth) if masked_blocks is None else masked_blocks)
        if any(not 0 <= index < net.depth for index in self.masked_blocks):
            raise UserError(f"masked_blocks={self.masked_blocks} of {arch}: give numbers from 0 to {net.depth - 1}")
        self.kind, self.distance, self.mask = kind, distance or KINDS[kind], mask
        self.token_weight = token_weight
        self.mask_scale = nn.Parameter(torch.zeros(len(self.masked_blocks)))
        self.tok_head = nn.Linear(net.embed_channels, patch_classes) if token_weight else None

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"):
        """Run the classifier as :meth:`MixingClassifier.forward` does, with masks from the samples' patch labels.

        Raises:
            UserError: a sample has no patch labels.
        """
        if mode == "loss" or data_samples is None:
            return super().forward(inputs, data_samples, mode)
        logits = self.head(self.embed(inputs, _label_maps(self.sample_fields(data_samples)))[0])
        if mode == "tensor":
            return logits
        for sample, score in zip(data_samples, logits.softmax(dim=1), strict=True):
            sample.set_pred_score(score).set_pred_label(score.argmax(dim=0, keepdim=True))
        return data_samples

    def embed(self, images: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image embedding (B, D) and the tokens (B, N, D) of images with label maps (B, K, h, w)."""
        net = self.backbone
        grid = net.blocks[0].mlp_tokens.grid if isinstance(net, MLPMixer) else self.patch_grid(images)
        with torch.autocast(images.device.type, enabled=False):
            distance = patch_distance(self.patches(maps, grid), self.distance)
        with net.drawing(images):
            return self.run(net, images, partial(self.block_mask, distance=distance))

    def patch_grid(self, images: Tensor) -> tuple[int, int]:
        """Return the grid (h, w) of the backbone's patches."""
        patch = self.backbone.archs[self.backbone.arch].patch
        return -(-images.size(2) // patch), -(-images.size(3) // patch)

    def patches(self, maps: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return patch labels (B, N, K) on a grid."""
        return patch_labels(maps, grid, softmax=self.kind == "relabel")

    def block_mask(self, block: int, distance: Tensor, log: bool = False) -> Tensor | None:
        """Return the mask (B, N, N) of a block for distances d, or its logarithm; None if the block has none."""
        if block not in self.masked_blocks:
            return None
        scale = self.mask_scale[self.masked_blocks.index(block)]
        scale = scale + (scale.clamp(min=0, max=1 if self.mask == "minus" else None) - scale).detach()
        if self.mask == "exp":
            exponent = -scale * distance
            return exponent if log else exponent.exp()
        mask = (1 - scale * distance).clamp(min=SMALLEST)
        return mask.log() if log else mask

    def sample_fields(self, samples: list) -> dict[str, Tensor]:
        """Return the label maps of the samples, ``patch_labels`` (B, K, h, w); none if a sample lacks its map."""
        if any("patch_labels" not in sample for sample in samples):
            return {}
        return {"patch_labels": torch.stack([sample.patch_labels for sample in samples])}

    def loss(self, images: Tensor, labels: Tensor, fields: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the losses of a training step, and count it.

        Args:
            images: (B, 3, H, W).
            labels: (B,), the classes of the images.
            fields: ``patch_labels`` (B, K, h, w), the label maps.

        Raises:
            UserError: there are no label maps.
        """
        maps = _label_maps(fields)
        with torch.no_grad():
            self.mask_scale.clamp_(min=0, max=1 if self.mask == "minus" else None)
        targets = smooth_one_hot(labels, self.num_classes, self.label_smoothing)
        if self.mixing is not None:
            draw = self.draw(images).resolve({})
            images, maps = self.mixing.apply(images, draw), self.mixing.apply(maps, draw)
            targets = self.mixing.relabel(targets, draw, {})
        self.count_step()
        vector, tokens = self.embed(images, maps)
        losses = {"loss_class": self.criterion(self.head(vector), targets)}
        if self.tok_head is not None:
            shares = self.patches(maps, self.patch_grid(images)).flatten(0, 1)
            losses["loss_tokens"] = self.token_weight * soft_cross_entropy(self.tok_head(tokens.flatten(0, 1)), shares)
        return losses


def _label_maps(fields: Mapping[str, Tensor] | None) -> Tensor:
    if not fields or "patch_labels" not in fields:
        raise UserError(
            "a sample has no patch_labels; LoadMap reads them, and PackInputs(algorithm_keys=['patch_labels']) passes"
            " them on"
        )
    return fields["patch_labels"]
