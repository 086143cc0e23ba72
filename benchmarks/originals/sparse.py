"""DynamicViT on DeiT, LV-ViT, Swin and ConvNeXt the way the published code computes it.

The decisions of training are sampled with our draws, so that both ways decide alike. Two things the published code
lacks: its Swin takes a batch of two for the two streams of training and stops, ours and this one do not; and a dropped
token of DeiT or LV-ViT is put back into the map as ours is, since no dense code is published for them.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.originals.common import (
    Summed,
    convolve,
    from_windows,
    join_heads,
    split_heads,
    to_windows,
)
from benchmarks.originals.convolutions import MapConv, MapPointwise, channel_norm
from benchmarks.originals.windows import MaskedWindows, SwinAttention, shift_mask
from mixtransfer.backbones import dynamicvit, dynamicvit_convnext, dynamicvit_swin, swin
from mixtransfer.layers.channels_last import Conv, Pointwise

__all__ = ["WAYS"]

POLICY_EPS = 1e-6


def select(x: Tensor, places: Tensor) -> Tensor:
    """Return the tokens at ``places`` (B, n) of (B, N, C), by an index into those of all images."""
    offset = torch.arange(len(x), device=x.device).view(-1, 1) * x.size(1)
    return x.reshape(-1, x.size(2))[(places + offset).reshape(-1)].reshape(len(x), -1, x.size(2))


def fill(like: Tensor, slow: Tensor, fast: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """Write the tokens of both paths into zeros like (B, N, C), one path after the other."""
    offset = torch.arange(len(like), device=like.device).view(-1, 1) * like.size(1)
    out = torch.zeros_like(like).reshape(-1, like.size(2))
    for part, where in zip((slow, fast), places, strict=True):
        out[(where + offset).reshape(-1)] = part.reshape(-1, like.size(2))
    return out.view(like.shape)


def sample(score: Tensor, dim: int) -> Tensor:
    """Sample which tokens are kept, 0 or 1, from their two log-probabilities along ``dim``, as Gumbel softmax does."""
    noise = dynamicvit.logistic_noise((len(score), score[0].numel() // 2)).to(score.device, score.dtype)
    noise = noise.view_as(score.narrow(dim, 0, 1))
    soft = (score + torch.cat([noise, torch.zeros_like(noise)], dim=dim)).softmax(dim)
    hard = torch.zeros_like(soft).scatter_(dim, soft.max(dim, keepdim=True)[1], 1.0)
    return (hard - soft.detach() + soft).narrow(dim, 0, 1)


def split_places(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sort all positions by their score (B, N); return the places of the best ``count`` and of the others."""
    order = torch.argsort(score, dim=1, descending=True)
    return order[:, :count], order[:, count:]


class TokenPredictor(dynamicvit.Predictor):
    """Log-probabilities of keeping and of dropping each token, (B, n, 2)."""

    def forward(self, x, keep=None):
        x = self.in_conv(x)
        half = x.size(2) // 2
        local, shared = x[:, :, :half], x[:, :, half:]
        if keep is None:
            mean = shared.mean(dim=1, keepdim=True)
        else:
            mean = (shared * keep).sum(dim=1, keepdim=True) / keep.sum(dim=1, keepdim=True)
        return self.out_conv(torch.cat([local, mean.expand_as(shared)], dim=-1)).log_softmax(dim=-1)


class TokenAttention(dynamicvit.Attention):
    """A map (B, h, N, N); in training, kept tokens are a factor of its exponentials, in float32."""

    def forward(self, x, labels, keep=None):
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        scores = (q @ k.transpose(-2, -1)) * q.size(-1) ** -0.5
        scores = scores.softmax(dim=-1) if keep is None else self.masked(scores, keep)
        return self.proj(join_heads(scores @ v)), None

    def masked(self, scores: Tensor, keep: Tensor) -> Tensor:
        """Return the map in which a token sees itself and those that are kept (B, N, 1)."""
        tokens = scores.size(-1)
        policy = keep.reshape(len(keep), 1, 1, tokens)
        policy = policy + (1 - policy) * torch.eye(tokens, dtype=policy.dtype, device=policy.device)
        shifted = scores - scores.max(dim=-1, keepdim=True)[0]
        weights = shifted.to(torch.float32).exp_() * policy.to(torch.float32)
        weights = (weights + POLICY_EPS / tokens) / (weights.sum(dim=-1, keepdim=True) + POLICY_EPS)
        return weights.to(scores.dtype)


class TokenBlock(Summed, dynamicvit.Block):
    """Both branches for all samples."""

    def forward(self, x, labels, keep=None):
        x = self.add(x, self.scaled(self.attn(self.norm1(x), None, keep)[0]))
        return self.add(x, self.scaled(self.mlp(self.norm2(x)))), None


class DynamicViT(dynamicvit.DynamicViT):
    """Tokens are sorted by a full sort and indexed; in training, all blocks mask their attention."""

    def dense(self, images, labels):
        x, _, grid = self.tokens(images, None)
        count = grid[0] * grid[1]
        keep = x.new_ones(len(x), count, 1)
        policy = x.new_ones(len(x), 1 + count, 1) if self.training else None
        whole, places, score, maps = x, None, None, []
        for index, block in enumerate(self.blocks[: max(self.out_indices, default=-1) + 1]):
            if index in self.locations:
                number = self.locations.index(index)
                score = self.score_predictor[number](x[:, 1:], keep)
                if self.training:
                    keep = sample(score, dim=2) * keep
                    policy = torch.cat([keep.new_ones(len(x), 1, 1), keep], dim=1)
                else:
                    best, _ = split_places(score[:, :, 0], int(count * self.keep_ratios[number]))
                    chosen = torch.cat([best.new_zeros(len(x), 1), best + 1], dim=1)
                    whole = put(whole, places, x)
                    places = chosen if places is None else places.gather(1, chosen)
                    x, keep = select(x, chosen), select(keep, best)
            new = block(x, None, policy)[0]
            x = new if score is None or not self.training else x + policy * (new - x)
            if index in self.out_indices:
                maps.append(put(whole, places, x)[:, 1:].transpose(1, 2).unflatten(2, grid))
        return tuple(maps), ()


def put(whole: Tensor, places: Tensor | None, x: Tensor) -> Tensor:
    """Return all tokens (B, N, C), ``x`` at ``places``; None are all places."""
    return x if places is None else whole.scatter(1, places.unsqueeze(2).expand_as(x), x)


# A compiled graph takes the masks as constants, which the published network keeps as buffers.
@torch.compiler.assume_constant_result
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def kept_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Return :func:`~benchmarks.originals.windows.shift_mask`, made once."""
    return shift_mask(height, width, window, shift, device)


class SwinStage(dynamicvit_swin.Stage):
    """Masks are kept."""

    def grids(self, size, device, shift):
        step = self.window // 2 if shift else 0
        mask = kept_mask(*size, self.window, step, device) if step else None
        plain = MaskedWindows(*size, self.window, 0, device, None)
        return plain, MaskedWindows(*size, self.window, step, device, mask)


class SwinBlock(Summed, swin.Block):
    """Roll, cut, attend, put back, roll back; sizes that windows do not divide are not published."""

    def forward(self, x, grid, labels):
        x = self.look(x, grid)
        return self.add(x, self.mlp(self.norm2(x))), None

    def look(self, x: Tensor, grid: MaskedWindows) -> Tensor:
        """Return tokens (B, L, C) with the attention added."""
        size, window, shift = (grid.height, grid.width), grid.window, grid.shift
        y = self.norm1(x).view(-1, *size, x.size(2))
        if shift:
            y = y.roll((-shift, -shift), (1, 2))
        y = from_windows(self.attn.windows(to_windows(y, window), grid.mask), window, size)
        if shift:
            y = y.roll((shift, shift), (1, 2))
        return self.add(x, y.view(x.shape))


class SwinAdaBlock(SwinBlock, dynamicvit_swin.AdaBlock):
    """In evaluation both paths are indexed and written into zeros; in training both run on all tokens."""

    def forward(self, x, grid, labels, choice):
        if not isinstance(x, list):
            x = self.look(x, grid)
            slow = self.mlp(self.norm2(select(x, choice[0])))
            return x + fill(x, slow, self.fastmlp(select(x, choice[1])), choice), None
        slow, fast = x
        x = self.look(merge(x, choice), grid)
        slow = x * choice + slow * (1 - choice)
        fast = x * (1 - choice) + fast * choice
        return [self.add(x, self.mlp(self.norm2(slow))), self.add(x, self.fastmlp(fast))], None


def merge(streams: list[Tensor], mask: Tensor) -> Tensor:
    """Return the slow stream where the mask is one and the fast one where it is zero."""
    return streams[0] * mask + streams[1] * (1 - mask)


class Swin(dynamicvit_swin.DynamicSwin):
    """Every predictor chooses anew, by a full sort in evaluation."""

    def trunk(self, images, labels, count):
        x, size = self.patch_embed(images)
        for index, stage in enumerate(self.layers[:count]):
            grids, choice = stage.grids(size, x.device, shift=min(size) > stage.window), None
            for number, block in enumerate(stage.blocks):
                if number in stage.locations:
                    which = stage.locations.index(number)
                    score = stage.score_predictor[which](merge(x, choice) if isinstance(x, list) else x)
                    if self.training:
                        x, choice = x if isinstance(x, list) else [x, x], sample(score, dim=2)
                    else:
                        choice = split_places(score[:, :, 0], int(score.size(1) * self.keep_ratios[which]))
                x, _ = block(x, grids[number % 2], None, *(() if choice is None else (choice,)))
            if isinstance(x, list):
                x = merge(x, choice)
            yield x.unflatten(1, size), None
            if index < count - 1:
                x, size = stage.downsample(x, size)


class MapPredictor(dynamicvit.Predictor):
    """Log-probabilities of the slow and of the fast path, (B, 2, H, W), of maps (B, C, H, W)."""

    def forward(self, x, keep=None):
        norm, *rest = self.in_conv
        x = channel_norm(norm, x)
        for layer in rest:
            x = layer(x)
        half = x.size(1) // 2
        local, shared = x[:, :half], x[:, half:]
        mean = shared.mean(dim=(2, 3), keepdim=True)
        return self.out_conv(torch.cat([local, mean.expand_as(shared)], dim=1)).log_softmax(dim=1)


class ConvNeXtBlock(Summed, dynamicvit_convnext.Block):
    """On maps (B, C, H, W), permuted for the MLP and back."""

    def forward(self, x):
        return self.add(x, self.slow(self.dwconv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    def slow(self, x):
        return self.gamma * self.pwconv2(F.gelu(self.pwconv1(self.norm(x))))


class ConvNeXtAdaBlock(ConvNeXtBlock, dynamicvit_convnext.AdaBlock):
    """In evaluation both paths are indexed and written into zeros; in training both run on all positions."""

    def forward(self, x, choice):
        if not isinstance(x, list):
            batch, channels, height, width = x.shape
            tokens = self.dwconv(x).permute(0, 2, 3, 1).reshape(batch, -1, channels)
            slow = self.slow(select(tokens, choice[0]))
            tokens = fill(tokens, slow, self.fast(select(tokens, choice[1])), choice)
            return x + tokens.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        slow, fast = x
        y = self.dwconv(merge(x, choice))
        branches = (
            self.slow((y * choice + slow * (1 - choice)).permute(0, 2, 3, 1)),
            self.fast((y * (1 - choice) + fast * choice).permute(0, 2, 3, 1)),
        )
        return [self.add(old, new.permute(0, 3, 1, 2)) for old, new in zip(x, branches, strict=True)]

    def fast(self, x):
        return self.fast_path_gamma * self.fast_path(x)


class ConvNeXt(dynamicvit_convnext.DynamicConvNeXt):
    """Maps (B, C, H, W) throughout; every predictor chooses anew, by a full sort in evaluation."""

    def dense(self, images, labels):
        x, maps = images, []
        for index in range(max(self.out_indices, default=-1) + 1):
            first, second = self.downsample_layers[index]
            x = channel_norm(second, convolve(first, x)) if index == 0 else convolve(second, channel_norm(first, x))
            choice = None
            for number, block in enumerate(self.stages[index]):
                if index == dynamicvit_swin.SPARSE_STAGE and number in self.locations:
                    which = self.locations.index(number)
                    score = self.score_predictor[which](merge(x, choice) if isinstance(x, list) else x)
                    if self.training:
                        x, choice = x if isinstance(x, list) else [x, x], sample(score, dim=1)
                    else:
                        score = score[:, 0].flatten(1)
                        choice = split_places(score, int(score.size(1) * self.keep_ratios[which]))
                x = block(x, *(() if choice is None else (choice,)))
            if isinstance(x, list):
                x = merge(x, choice)
            if index in self.out_indices:
                maps.append(x)
        return tuple(maps), None


#: family -> our class -> the published way.
WAYS = {
    "dynamicvit": {
        dynamicvit.DynamicViT: DynamicViT,
        dynamicvit.Predictor: TokenPredictor,
        dynamicvit.Attention: TokenAttention,
        dynamicvit.Block: TokenBlock,
    },
    "dynamicvit_swin": {
        dynamicvit_swin.DynamicSwin: Swin,
        dynamicvit_swin.Stage: SwinStage,
        dynamicvit_swin.AdaBlock: SwinAdaBlock,
        swin.Block: SwinBlock,
        swin.WindowAttention: SwinAttention,
        dynamicvit.Predictor: TokenPredictor,
    },
    "dynamicvit_convnext": {
        dynamicvit_convnext.DynamicConvNeXt: ConvNeXt,
        dynamicvit_convnext.Block: ConvNeXtBlock,
        dynamicvit_convnext.AdaBlock: ConvNeXtAdaBlock,
        dynamicvit.Predictor: MapPredictor,
        Conv: MapConv,
        Pointwise: MapPointwise,
    },
}
