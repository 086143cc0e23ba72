"""Swin, FAN-Swin, MixMIM, Swin-MLP, MSG-Transformer, RegionViT and PosMLP as their published codes compute them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.originals.common import (
    Summed,
    from_windows,
    gather_bias,
    join_heads,
    split_heads,
    to_windows,
)
from benchmarks.originals.tokens import FanChannelProcessing
from mixtransfer.backbones import fan_swin, msg_transformer, posmlp, regionvit, swin, swin_mlp
from mixtransfer.layers.channel_processing import ChannelProcessing
from mixtransfer.layers.token_maps import offset_features
from mixtransfer.layers.windows import WindowGrid

__all__ = ["WAYS"]


@dataclass(frozen=True, eq=False)
class MaskedWindows(WindowGrid):
    """Windows with the mask that was made for them at this call, (W, N, N) 0 or −100; None without a shift."""

    made: Tensor | None

    @property
    def mask(self) -> Tensor | None:
        """As in :class:`~mixtransfer.layers.windows.WindowGrid`, without the axis of the heads."""
        return self.made


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Number the nine parts of a shifted map, cut it, and compare all pairs of a window: (W, N, N)."""
    parts = torch.zeros(1, -(-height // window) * window, -(-width // window) * window, 1, device=device)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate(product(cuts, cuts)):
        parts[:, rows, columns] = number
    parts = to_windows(parts, window).squeeze(2)
    differ = parts.unsqueeze(1) - parts.unsqueeze(2)
    return differ.masked_fill(differ != 0, -100.0).masked_fill(differ == 0, 0.0)


class SwinStage(swin.Stage):
    """Makes its mask at every call."""

    def grids(self, size, device, shift):
        step = self.window // 2 if shift else 0
        mask = shift_mask(*size, self.window, step, device) if step else None
        plain = MaskedWindows(*size, self.window, 0, device, None)
        return plain, MaskedWindows(*size, self.window, step, device, mask)


class SwinAttention(swin.WindowAttention):
    """Attention of windows (B·W, N, C): the bias is gathered at every call and added to the map, then the mask."""

    def windows(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return new windows."""
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        scores = q * q.size(-1) ** -0.5 @ k.transpose(-2, -1)
        scores = scores + gather_bias(self.relative_position_bias_table, self.index).unsqueeze(0)
        if mask is not None:
            scores = scores.view(-1, len(mask), *scores.shape[1:]) + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.flatten(0, 1)
        return self.proj(join_heads(scores.softmax(dim=-1) @ v))


def shifted(block: swin.Block, x: Tensor, grid: WindowGrid) -> Tensor:
    """Pad, roll, cut, attend, put back, roll back, crop: each a copy of the map (B, L, C)."""
    window, shift = grid.window, grid.shift
    y = block.norm1(x).view(-1, grid.height, grid.width, x.size(2))
    y = F.pad(y, (0, 0, 0, -grid.width % window, 0, -grid.height % window))
    padded = (y.size(1), y.size(2))
    if shift:
        y = y.roll((-shift, -shift), (1, 2))
    y = from_windows(block.attn.windows(to_windows(y, window), grid.mask), window, padded)
    if shift:
        y = y.roll((shift, shift), (1, 2))
    if padded != (grid.height, grid.width):
        y = y[:, : grid.height, : grid.width].contiguous()
    return y.view(x.shape)


class SwinBlock(Summed, swin.Block):
    """Windows by copies of the map."""

    def forward(self, x, grid, labels):
        x = self.add(x, shifted(self, x, grid))
        return self.add(x, self.mlp(self.norm2(x))), None


class FanSwinBlock(Summed, fan_swin.Block):
    """Windows by copies of the map."""

    def forward(self, x, grid, labels):
        x = self.add(x, shifted(self, x, grid))
        return self.add(x, self.mlp(self.norm2(x), (grid.height, grid.width))), None


class Swin(swin.SwinTransformer):
    """Maps are copied to (B, C, H, W)."""

    def dense(self, images, labels):
        maps, _ = super().dense(images, None)
        return tuple(x.contiguous() for x in maps), ()


class MixmimBlock(Summed, swin.Block):
    """Cut, attend, put back; sizes that windows do not divide are not published."""

    def forward(self, x, grid, labels):
        size = (grid.height, grid.width)
        y = to_windows(self.norm1(x).view(-1, *size, x.size(2)), grid.window)
        y = from_windows(self.attn.windows(y, None), grid.window, size)
        x = self.add(x, y.view(x.shape))
        return self.add(x, self.mlp(self.norm2(x))), None


class SwinMlpMixer(swin_mlp.SpatialMLP):
    """Windows are cut and their heads turned by copies; the matrices are a grouped convolution of kernel 1."""

    def forward(self, x, shift):
        batch, height, width, channels = x.shape
        window, heads, tokens = self.window, self.heads, self.window**2
        before, after = (window - shift, shift) if shift else (0, 0)
        if shift:
            x = F.pad(x, (0, 0, before, after, before, after))
        size = (x.size(1), x.size(2))
        x = to_windows(x, window).view(-1, tokens, heads, channels // heads).transpose(1, 2)
        x = F.conv1d(x.reshape(len(x), heads * tokens, -1), self.weight, self.bias, groups=heads)
        x = x.view(len(x), heads, tokens, -1).transpose(1, 2).reshape(-1, tokens, channels)
        x = from_windows(x, window, size)
        if shift:
            x = x[:, before:-after, before:-after].contiguous()
        return x.view(batch, height, width, channels)


class SwinMlpBlock(Summed, swin_mlp.Block):
    """Both branches for all samples."""

    def forward(self, x, shift):
        x = self.add(x, self.spatial_mlp(self.norm1(x), shift))
        return self.add(x, self.mlp(self.norm2(x)))


class MsgAttention(msg_transformer.WindowAttention):
    """The bias is put together at every call, with the row of the messenger, and added to a map of six axes."""

    def forward(self, x, labels):
        regions, windows, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(regions, windows, tokens, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        q, k, v = qkv.unbind(0)
        scores = q * q.size(-1) ** -0.5 @ k.transpose(-2, -1)
        to_messenger = self.rel_pos_msg[:, 0].expand(-1, tokens - 1, -1)
        of_messenger = self.rel_pos_msg[:, 1].expand(-1, -1, tokens)
        bias = torch.cat([to_messenger, gather_bias(self.relative_position_bias_table, self.index)], dim=-1)
        scores += torch.cat([of_messenger, bias], dim=-2).unsqueeze(0)
        out = (scores.softmax(dim=-1) @ v).transpose(2, 3).reshape(regions, windows, tokens, channels)
        return self.proj(out), None


class MsgBlock(Summed, msg_transformer.Block):
    """All tokens are copied to swap the channels of the messengers."""

    def forward(self, x, labels):
        x = self.add(x, self.attn(self.norm1(x), None)[0])
        regions, windows, _, channels = x.shape
        if windows > 1:
            messengers = x[:, :, 0].view(-1, windows, windows, channels // windows).transpose(1, 2)
            x = torch.cat([messengers.reshape(regions, windows, 1, channels), x[:, :, 1:]], dim=2)
        return self.add(x, self.mlp(self.norm2(x))), None


class MsgStage(msg_transformer.Stage):
    """Windows go back to maps (B, C, H, W), which the strided convolution reads."""

    def join(self, x, size):
        def back(part: Tensor, size: tuple[int, int], side: int) -> Tensor:
            rows, columns = size[0] // (self.shuffle * side), size[1] // (self.shuffle * side)
            part = part.reshape(-1, rows, columns, self.shuffle, self.shuffle, side, side, x.size(-1))
            part = part.permute(0, 7, 1, 3, 5, 2, 4, 6).contiguous()
            return part.view(len(part), -1, *size).permute(0, 2, 3, 1)

        slots = size[0] // self.window, size[1] // self.window
        return back(x[:, :, 1:], tuple(size), self.window), back(x[:, :, :1], slots, 1)


class RegionNorm(regionvit.MapNorm):
    """Over the channels of maps (B, C, H, W), one operation after the other."""

    def forward(self, x):
        deviation = torch.sqrt(x.var(1, unbiased=False, keepdim=True) + regionvit.MAP_NORM_EPS)
        return (x - x.mean(1, keepdim=True)) / deviation * self.weight + self.bias


class RegionConv(regionvit.Conv):
    """On maps (B, C, H, W)."""

    def forward(self, x):
        return self._conv_forward(x, self.weight, self.bias)


class RegionLocalStem(regionvit.Stem):
    """On maps (B, C, H, W)."""

    def forward(self, x):
        return self.proj(x)


class RegionStem(regionvit.RegionStem):
    """On maps (B, C, H, W)."""

    def forward(self, x):
        side = self.region
        if x.size(2) % side or x.size(3) % side:
            missing = [side - extent % side for extent in x.shape[2:]]
            top, left = missing[0] // 2, missing[1] // 2
            x = F.pad(x, (left, missing[1] - left, top, missing[0] - top))
        return self.proj(x)


class RegionAttention(regionvit.Attention):
    """The positions are written into a slice of the map; pairs of padding are filled with the smallest number."""

    def windows(self, x: Tensor, local: bool, mask: Tensor | None) -> Tensor:
        """Return new tokens (B, N, C): regions, or ``local`` windows with a mask (B, N, N) of pairs or None."""
        q, k, v = self.project(x)
        scores = (q @ k.transpose(-2, -1)) * q.size(-1) ** -0.5
        if local:
            positions = self.rel_pos[:, self.index.view(-1)].reshape(self.heads, *self.index.shape)
            scores[:, :, 1:, 1:] = scores[:, :, 1:, 1:] + positions
        if mask is not None:
            mask = mask.unsqueeze(1).expand(-1, self.heads, -1, -1)
            scores = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)
        return self.proj(join_heads(scores.softmax(dim=-1) @ v))


class RegionBlock(Summed, regionvit.Block):
    """All branches for all regions and windows."""

    def forward(self, x, regions, labels):
        batch, mask = regions
        first = x[:, :1].reshape(batch, -1, x.size(2))
        first = self.add(first, self.attn.windows(self.norm0(first), False, None)).reshape(-1, 1, x.size(2))
        x = torch.cat([first, x[:, 1:]], dim=1)
        x = self.add(x, self.attn.windows(self.norm1(x), True, mask))
        return self.add(x, self.mlp(self.norm2(x))), None


class Region(regionvit.RegionViT):
    """Maps (B, C, H, W), unfolded to windows and folded back; the mask is made for every stage and image."""

    def run(self, images, labels, stages, norm):
        local, regional = self.patch_embed(images), self.cls_token(images)
        for index, stage in enumerate(self.layers[:stages]):
            if index:
                local, regional = stage.block[0](local, regional)
            x, mask = self.unfold(local, regional)
            for number, block in enumerate(stage.block[1:]):
                x, _ = block(x, (len(images), mask), None)
                if number == 0 and stage.peg is not None:
                    local, regional = self.fold(x, local, regional)
                    local, regional = local + stage.peg(local), regional + stage.peg(regional)
                    x, mask = self.unfold(local, regional)
            local, regional = self.fold(x, local, regional)
            if norm:
                local = getattr(self, f"norm{index}")(local)
            yield local.permute(0, 2, 3, 1), regional.permute(0, 2, 3, 1), None, None

    def unfold(self, local: Tensor, regional: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return windows with their regions in front, (B·R, 1+w², C), and their mask (B·R, 1+w², 1+w²) or None."""
        side, (h, w) = self.window, regional.shape[2:]
        bottom, right = h * side - local.size(2), w * side - local.size(3)
        mask = None
        if bottom or right:
            local = F.pad(local, (0, right, 0, bottom))
            mask = pair_mask(h, w, side, bottom, right, local.device).repeat(len(local), 1, 1)
        x = F.unfold(local, side, stride=side).transpose(1, 2).reshape(-1, local.size(1), side**2).transpose(1, 2)
        first = regional.flatten(2).transpose(1, 2).reshape(-1, 1, regional.size(1))
        return torch.cat([first, x], dim=1), mask

    def fold(self, x: Tensor, local: Tensor, regional: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps, of the sizes of ``local`` and ``regional``."""
        side, (h, w) = self.window, regional.shape[2:]
        first = x[:, :1].reshape(len(local), -1, x.size(2)).transpose(1, 2).reshape(regional.shape)
        x = x[:, 1:].transpose(1, 2).reshape(len(local), -1, side**2 * x.size(2)).transpose(1, 2)
        x = F.fold(x, (h * side, w * side), side, stride=side)
        return x[:, :, : local.size(2), : local.size(3)], first


def pair_mask(h: int, w: int, side: int, bottom: int, right: int, device: torch.device) -> Tensor:
    """Return which pairs of a window may attend, (R, 1+w², 1+w²) 1 or 0, from rows that are listed and repeated."""
    tokens = 1 + side * side
    mask = torch.ones(h * w, tokens, tokens, device=device)
    row = torch.tensor([1.0] * (side - right) + [0.0] * right).to(device)
    columns = torch.zeros(tokens, tokens, device=device)
    columns[1:, 1:] = torch.outer(row, row).repeat(side, side)
    columns[0, 0] = 1
    columns[0, 1:] = columns[1:, 0] = row.repeat(side)
    kept = 1 + side * (side - bottom)
    rows = torch.zeros_like(columns)
    rows[:kept, :kept] = 1
    corner = columns.clone()
    corner[:kept, :kept] = 1
    mask[w - 1 : (h - 1) * w : w] = columns
    mask[(h - 1) * w :] = rows
    mask[-1] = corner
    return mask


# A compiled graph takes them as a constant; it cannot trace a cache.
@torch.compiler.assume_constant_result
@lru_cache(maxsize=16)
@torch.inference_mode(False)
def offsets(window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the features of each offset, (N, N, 5); the published code keeps them as a buffer."""
    tokens = window * window
    return offset_features(window, device, dtype).t().reshape(tokens, tokens, 5)


class PosQuadraticMap(posmlp.QuadraticMap):
    """The matrices are made at every call, with the groups last: (1, N, N, g)."""

    def forward(self):
        spreads, centers = self.attention_spreads, self.attention_centers
        if self.generalized:
            precision = torch.einsum("hij,hkj->hik", spreads, spreads)
            a, b, c, d = precision[:, 0, 0], precision[:, 0, 1], precision[:, 1, 1], precision[:, 1, 0]
            x, y = a * centers[:, 0] + b * centers[:, 1], c * centers[:, 1] + d * centers[:, 0]
            form = torch.stack([x, y, -a / 2, -c / 2, -(b + d) / 2], dim=-1)
        else:
            a = spreads**2
            half = -torch.ones_like(a) / 2
            form = torch.stack([a * centers[:, 0], a * centers[:, 1], half, half, torch.zeros_like(a)], dim=-1)
        scores = torch.einsum("mnd,bd->bmn", offsets(self.window, form.device, form.dtype), form)
        return scores.permute(1, 2, 0).unsqueeze(0).softmax(dim=-2)


class PosLearnedMap(posmlp.LearnedMap):
    """The matrices with the groups last: (1, N, N, g)."""

    def forward(self):
        return gather_bias(self.window_relative_position_bias_table, self.index).permute(1, 2, 0).unsqueeze(0)


class PosBlock(Summed, posmlp.Block):
    """The gate is an einsum over channels whose groups lie innermost."""

    def forward(self, x, valid):
        gate, tokens = self.gate_unit, self.gate_unit.pos.token_proj_n_bias.size(1)
        u, v = F.gelu(self.proj_c_e(self.norm(x.unflatten(1, (-1, tokens))))).chunk(2, dim=-1)
        matrices = gate.pos()
        if gate.token_proj_n_weight is not None:
            matrices = matrices + gate.token_proj_n_weight.unsqueeze(-1)
        mixed = torch.einsum("wmns,bwnvs->bwmvs", matrices, u.unflatten(-1, (-1, self.groups)))
        mixed = (mixed + gate.pos.token_proj_n_bias.unsqueeze(0).unsqueeze(-1)).flatten(-2)
        branch = self.proj_c_s(mixed * v)
        return self.add(x, branch.flatten(1, 2))


class Pos(posmlp.PosMLP):
    """Windows by copies; sizes that windows do not divide are not published."""

    def trunk(self, images, labels, count):
        x = self.patch_embed(images)
        for level in self.levels[:count]:
            x = x if level.pool is None else level.pool(x)
            batch, size = len(x), (x.size(1), x.size(2))
            x = to_windows(x, level.window).view(batch, -1, x.size(3))
            for block in level.encoder:
                x = block(x, None)
            x = from_windows(x, level.window, size)
            yield x, None


_SWIN = {swin.WindowAttention: SwinAttention}
_SHIFTED = {swin.SwinTransformer: Swin, swin.Stage: SwinStage, swin.Block: SwinBlock, **_SWIN}
#: family -> our class -> the published way.
WAYS = {
    "swin": _SHIFTED,
    "fan_swin": {**_SHIFTED, fan_swin.Block: FanSwinBlock, ChannelProcessing: FanChannelProcessing},
    "mixmim": {swin.Block: MixmimBlock, **_SWIN},
    "swin_mlp": {swin_mlp.SpatialMLP: SwinMlpMixer, swin_mlp.Block: SwinMlpBlock},
    "msg_transformer": {
        msg_transformer.WindowAttention: MsgAttention,
        msg_transformer.Block: MsgBlock,
        msg_transformer.Stage: MsgStage,
    },
    "regionvit": {
        regionvit.RegionViT: Region,
        regionvit.MapNorm: RegionNorm,
        regionvit.Conv: RegionConv,
        regionvit.Stem: RegionLocalStem,
        regionvit.RegionStem: RegionStem,
        regionvit.Attention: RegionAttention,
        regionvit.Block: RegionBlock,
    },
    "posmlp": {
        posmlp.PosMLP: Pos,
        posmlp.QuadraticMap: PosQuadraticMap,
        posmlp.LearnedMap: PosLearnedMap,
        posmlp.Block: PosBlock,
    },
}
