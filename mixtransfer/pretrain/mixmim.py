"""MixMIM (MixMAE): an encoder sees images mixed of two, a decoder restores both.

Paper: Liu et al., "MixMAE: Mixed and Masked Autoencoder for Efficient Pretraining of Hierarchical Vision Transformers",
CVPR 2023, arXiv 2205.13137, section 3. Code: Sense-X/MixMIM (its files refer to a license that the repository does not
hold); nothing here is taken from it. mmpretrain's ``MixMIM`` has the same encoder, and another eps in the decoder.

Shapes: B batch, h × w cells of 32 × 32 pixels, N = h·w, D decoder channels.

Kept from the published code: one mask for all images of a process, of the cells with the smallest noise; image i is
mixed with image B − 1 − i; the decoder sees the two images of a mixed one each for itself, with a learned token where
the other is; each cell of each image is restored once, from the visible rest of its image; the target is normalized in
each cell by its mean and unbiased variance.
Different: the last norm and the prediction run on the cells that count alone, which are half of them; the mask of an
iteration is the same on every resume; images need not be square.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from mixtransfer.backbones import backbone_class
from mixtransfer.backbones.deit import Block
from mixtransfer.backbones.mixmim import MixMIMEncoder, sinusoid, xavier_linear
from mixtransfer.errors import UserError
from mixtransfer.layers.init import trunc_normal_
from mixtransfer.layers.linear import Linear
from mixtransfer.layers.positions import resize_position_table
from mixtransfer.mixing.draws import size_of
from mixtransfer.mixing.steps import StepCounter, outside_graphs
from mixtransfer.registry import MODELS

__all__ = ["CELL", "MixMIM", "cells", "image_of"]

#: Side in pixels of what is masked and restored as a whole: a token of the encoder's last stage.
CELL = 32
NORM_EPS = 1e-5


@MODELS.register_module()
class MixMIM(StepCounter, BaseModel):
    """The encoder and its decoder, in pretraining.

    Args:
        arch: one of the encoder's architectures, ``mixmim_*``.
        backbone: keyword arguments of the encoder.
        mask_ratio: share of the cells that come from the partner, above 0 and below 1.
        decoder_channels: D.
        decoder_depth: blocks of the decoder.
        decoder_heads: heads of each.
        norm_pixels: restore cells of mean 0 and variance 1 in place of the pixels.
        seed: start of the random stream of the masks.
        data_preprocessor: config of the preprocessor, normally ``mmpretrain.ClsDataPreprocessor``.
        init_cfg: OpenMMLab initialization.

    Raises:
        UserError: an architecture of another family, or a ratio that leaves one of the images out.
    """

    def __init__(
        self,
        arch: str = "mixmim_base",
        *,
        backbone: dict | None = None,
        mask_ratio: float = 0.5,
        decoder_channels: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pixels: bool = True,
        seed: int = 0,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor, init_cfg)
        if not issubclass(backbone_class(arch), MixMIMEncoder):
            raise UserError(f"MixMIM of {arch}: only its own encoder keeps mixed images apart; give a mixmim_*")
        if not 0 < mask_ratio < 1:
            raise UserError(f"mask_ratio={mask_ratio}: give a share between 0 and 1, e.g. 0.5")
        self.backbone = MixMIMEncoder(arch, out_indices=(), with_embedding=True, **(backbone or {}))
        self.mask_ratio, self.norm_pixels, self.seed = mask_ratio, norm_pixels, seed
        # The encoder's grid is that of its first stage.
        height, width = self.backbone.grid
        self.grid = -(-height // 8), -(-width // 8)

        self.decoder_embed = Linear(self.backbone.embed_channels, decoder_channels)
        self.mask_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, decoder_channels), std=0.02))
        self.decoder_pos_embed = nn.Parameter(sinusoid(decoder_channels, self.grid), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_channels, decoder_heads, drop_path=0.0, eps=NORM_EPS) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_channels, eps=NORM_EPS)
        self.decoder_pred = Linear(decoder_channels, CELL**2 * self.backbone.in_channels)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            part.apply(xavier_linear)
        self._register_load_state_dict_pre_hook(_accept_published_names)

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"):
        """Run the model on images of a batch, which are mixed with each other; ``mode="loss"`` counts the step.

        Args:
            inputs: (B, 3, H, W).
            data_samples: mmpretrain ``DataSample`` per image; read by ``mode="predict"`` alone.
            mode: ``"tensor"`` returns the restored cells (B, N, 32·32·3), ``"loss"`` a dict with the loss,
                ``"predict"`` the samples with the mixed image as ``mixed``, and ``restored``, both (3, H, W), in the
                units of the network's input.

        Raises:
            UserError: sides that are no multiples of 32.
        """
        mask = self.draw(inputs)
        restored = self.restore(inputs, mask)
        if mode == "tensor":
            return restored
        target = cells(inputs)
        mean, scale = _normalization(target)
        if mode == "loss":
            self.count_step()
            if self.norm_pixels:
                target = (target - mean) / scale
            return {"loss": F.mse_loss(restored.to(target.dtype), target)}
        if mode == "predict":
            grid = size_of(mask)
            restored = image_of(restored * scale + mean if self.norm_pixels else restored, grid)
            foreign = mask.bool().flatten().view(1, -1, 1)
            mixed = image_of(torch.where(foreign, target.flip(0), target), grid)
            for sample, *fields in zip(data_samples, mixed, restored, strict=True):
                sample.set_field(fields[0], "mixed")
                sample.set_field(fields[1], "restored")
            return data_samples
        raise ValueError(f"mode={mode!r}: give 'tensor', 'loss' or 'predict'")

    @outside_graphs
    def draw(self, images: Tensor) -> Tensor:
        """Draw the mask (h, w) float32 of this step, 1 where a cell comes from the partner.

        Raises:
            UserError: sides that are no multiples of 32.
        """
        height, width = images.shape[-2:]
        if height % CELL or width % CELL:
            raise UserError(f"MixMIM: images of {height}×{width}; give sides that are multiples of {CELL}")
        grid = (height // CELL, width // CELL)
        noise = torch.rand(grid[0] * grid[1], generator=self.generator(self.seed))
        return self.mask_of(noise, grid).to(images.device)

    def mask_of(self, noise: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the mask (h, w) with 1 where the noise (N,) is smallest."""
        mask = torch.zeros(len(noise))
        mask[noise.argsort(stable=True)[: int(len(noise) * self.mask_ratio)]] = 1
        return mask.view(grid)

    def restore(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return all cells (B, N, 32·32·3) of images (B, 3, H, W) that were mixed by ``mask`` (h, w)."""
        tokens = self.decode(self.backbone.encode_mixed(images, mask), mask)
        first, second = tokens.chunk(2)
        foreign = mask.bool().flatten().view(1, -1, 1)
        # A covered cell is restored from the rest of its image; the other cells are restored in the reversed batch.
        return self.decoder_pred(self.decoder_norm(torch.where(foreign, first, second.flip(0))))

    def decode(self, latent: Tensor, mask: Tensor) -> Tensor:
        """Return decoded tokens (2·B, N, D) of the encoder's (B, N, C).

        The first half sees the cells of image i where ``mask`` (h, w) is 0; the second half those of its partner.
        """
        x, foreign = self.decoder_embed(latent), mask.bool().flatten().view(1, -1, 1)
        hidden = self.mask_token.to(x.dtype)
        x = torch.cat([torch.where(foreign, hidden, x), torch.where(foreign, x, hidden)])
        x = x + resize_position_table(self.decoder_pos_embed, self.grid, size_of(mask))
        for block in self.decoder_blocks:
            x, _ = block(x, None)
        return x


def cells(images: Tensor) -> Tensor:
    """Cut images (B, C, 32·h, 32·w) into cells (B, N, 32·32·C), pixel by pixel."""
    rows = images.unflatten(3, (-1, CELL)).unflatten(2, (-1, CELL))
    return rows.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def image_of(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put cells (B, N, 32·32·C) back into images (B, C, 32·h, 32·w)."""
    pixels = rows.unflatten(2, (CELL, CELL, -1)).unflatten(1, grid)
    return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def _normalization(target: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and scale (B, N, 1) of cells (B, N, P)."""
    variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def _accept_published_names(state: dict[str, Tensor], prefix: str, *_) -> None:
    """Accept the published names, under which encoder and decoder are told apart by their words alone."""
    keys = [key for key in state if key.startswith(prefix)]
    if any(key.startswith(f"{prefix}backbone.") for key in keys):
        return
    derived = MixMIMEncoder.formats()["official"].derived
    for key in keys:
        name = key[len(prefix) :]
        if any(re.fullmatch(pattern, name) for pattern in derived):
            del state[key]
        elif not name.startswith(("decoder_", "mask_token", "data_preprocessor.")):
            state[f"{prefix}backbone.{name}"] = state.pop(key)
