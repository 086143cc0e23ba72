"""DeiT, CaiT, PVT, TNT, PyramidTNT, SReT and FAN the way their published codes compute them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.originals.common import Summed, attend, convolve, join_heads, split_heads
from mixtransfer.backbones import cait, deit, fan, pvt, pyramid_tnt, sret, tnt
from mixtransfer.layers.channel_processing import ChannelProcessing
from mixtransfer.layers.positions import FourierCode, fourier_code

__all__ = ["WAYS", "FanChannelProcessing"]


class DeitAttention(deit.Attention):
    """A map (B, h, N, N), scaled, then softmax."""

    def forward(self, x, labels, bias=None):
        return self.proj(join_heads(attend(*split_heads(self.qkv(x), 3, self.heads)))), None


class DeitBlock(Summed, deit.Block):
    """Both branches for all samples."""

    def forward(self, x, labels, bias=None):
        x = self.add(x, self.attn(self.norm1(x), None)[0])
        return self.add(x, self.mlp(self.norm2(x))), None


class CaitHeads(cait.TalkingHeads):
    """A linear layer over the last axis, between two permutations of the maps."""

    def forward(self, maps):
        return F.linear(maps.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class CaitBlock(Summed, cait.Block):
    """Both branches for all samples."""

    def forward(self, x, labels):
        x = self.add(x, self.gamma_1 * self.attn(self.norm1(x), None)[0])
        return self.add(x, self.gamma_2 * self.mlp(self.norm2(x))), None


class PvtAttention(pvt.Attention):
    """A map (B, h, N, M)."""

    def forward(self, x, size, labels):
        source, _ = self.reduce(x, size, None)
        (q,) = split_heads(self.q(x), 1, self.heads)
        return self.proj(join_heads(attend(q, *split_heads(self.kv(source), 2, self.heads)))), None


class PvtFeedForward(pvt.FeedForward):
    """All tokens at once."""

    def forward(self, x, size):
        x = self.fc1(x)
        if self.dwconv is not None:
            x = self.dwconv(F.relu(x) if self.relu else x, size)
        return self.fc2(F.gelu(x))


class PvtBlock(Summed, pvt.Block):
    """Both branches for all samples."""

    def forward(self, x, size, labels):
        x = self.add(x, self.attn(self.norm1(x), size, None)[0])
        return self.add(x, self.mlp(self.norm2(x), size)), None


class PvtStageEmbed(pvt.StageEmbed):
    """The map of the stage before is copied to (B, C, H, W)."""

    def forward(self, x):
        x = convolve(self.proj, x.permute(0, 3, 1, 2).contiguous())
        return self.norm(x.flatten(2).transpose(1, 2)).unflatten(1, x.shape[2:])


class Pvt(pvt.PVT):
    """The tables of stages 2 to 4 are interpolated at every call, also to their own size."""

    def prepare(self, index, x, size, class_token):
        table = getattr(self, f"pos_embed{index + 1}")
        if index == 0 and size == self.grids[0]:
            return x + table
        prefix = int(index == pvt.LAST)
        grid = table[:, prefix:].reshape(1, *self.grids[index], -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=size, mode="bilinear").reshape(1, -1, size[0] * size[1]).permute(0, 2, 1)
        if prefix and class_token:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
            grid = torch.cat([table[:, :1], grid], dim=1)
        return x + grid


class TntAttention(tnt.Attention):
    """A map of words, or of patches."""

    def forward(self, x, labels):
        q, k = split_heads(self.qk(x), 2, self.heads)
        (v,) = split_heads(self.v(x), 1, self.heads)
        return self.proj(join_heads(attend(q, k, v))), None


class TntBlock(Summed, tnt.Block):
    """All branches for all samples; what the words add is written into the tokens that came in."""

    def forward(self, words, x, labels):
        words = self.add(words, self.inner_attn(self.inner_norm1(words), None)[0])
        words = self.add(words, self.inner_mlp(self.inner_norm2(words)))
        joined = self.proj_norm2(self.proj(self.proj_norm1(words.reshape(len(x), x.size(1) - 1, -1))))
        x[:, 1:] = x[:, 1:] + joined
        x = self.add(x, self.outer_attn(self.outer_norm1(x), None)[0])
        return words, self.add(x, self.outer_mlp(self.outer_norm2(x))), None


class TntWordEmbed(tnt.WordEmbed):
    """Patches by unfolding the image."""

    def forward(self, images):
        grid = images.size(2) // tnt.PATCH, images.size(3) // tnt.PATCH
        x = F.unfold(images, tnt.PATCH, stride=tnt.PATCH).transpose(1, 2)
        x = self.proj(x.reshape(-1, images.size(1), tnt.PATCH, tnt.PATCH))
        return x.reshape(len(x), x.size(1), -1).transpose(1, 2), grid


class Tnt(tnt.TNT):
    """Maps are copied out, as the next block writes into its input."""

    def dense(self, images, labels):
        words, x, _, grid = self.tokens(images, None)
        maps = []
        for index, block in enumerate(self.blocks[: max(self.out_indices, default=-1) + 1]):
            words, x, _ = block(words, x, None)
            if index in self.out_indices:
                maps.append(x[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous())
        return tuple(maps), ()


class PyramidAttention(pyramid_tnt.Attention):
    """A map (B, h, N, M), to which the bias is added."""

    def project(self, x, source):
        (q,) = split_heads(self.q(x), 1, self.heads)
        return q, *split_heads(self.kv(source), 2, self.heads)

    def words(self, x):
        return self.proj(join_heads(attend(*self.project(x, x))))

    def forward(self, x, size, bias, labels):
        source = x
        if self.reduction > 1:
            grid = x.permute(0, 2, 1).reshape(len(x), -1, *size)
            grid = F.avg_pool2d(grid, self.reduction).reshape(len(x), x.size(2), -1)
            source = self.norm(self.linear(grid.permute(0, 2, 1)))
        q, k, v = self.project(x, source)
        scores = (q @ k.transpose(-2, -1)) * q.size(-1) ** -0.5
        scores += bias
        return self.proj(join_heads(scores.softmax(dim=-1) @ v)), None


class PyramidBlock(Summed, pyramid_tnt.Block):
    """All branches for all samples."""

    def forward(self, words, x, size, bias, labels):
        if self.inner:
            patches = x.shape[:2]
            normed = self.inner_norm1(words.reshape(*patches, -1)).reshape(words.shape)
            words = self.add(words, self.inner_attn.words(normed))
            normed = self.inner_norm2(words.reshape(*patches, -1)).reshape(words.shape)
            words = self.add(words, self.inner_mlp(normed))
            x = x + self.proj_norm2(self.proj(self.proj_norm1(words.reshape(*patches, -1))))
        x = self.add(x, self.outer_attn(self.outer_norm1(x), size, bias, None)[0])
        return words, self.add(x, self.outer_mlp(self.outer_norm2(x))), None


class PyramidStem(pyramid_tnt.Stem):
    """Words by unfolding a map."""

    def forward(self, images):
        x = self.common_conv(images)
        words, patches = self.inner_convs(x), self.outer_convs(x)
        size = (patches.size(2), patches.size(3))
        channels = words.size(1)
        words = F.unfold(words, 4, stride=4).transpose(1, 2).reshape(-1, channels, pyramid_tnt.WORDS).transpose(1, 2)
        return words, patches.permute(0, 2, 3, 1).reshape(len(images), size[0] * size[1], -1), size


class PyramidWordAggregation(pyramid_tnt.WordAggregation):
    """Four strided slices, concatenated along rows and then along columns."""

    def forward(self, words, size):
        x = self.norm(words).reshape(-1, *size, 4, 4, words.size(-1))
        if size[0] % 2 or size[1] % 2:
            x = F.pad(x.permute(0, 3, 4, 5, 1, 2), (0, size[1] % 2, 0, size[0] % 2)).permute(0, 4, 5, 1, 2, 3)
        left = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2]], dim=3)
        right = torch.cat([x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=3)
        x = self.conv(torch.cat([left, right], dim=4).reshape(-1, 8, 8, words.size(-1)).permute(0, 3, 1, 2))
        return x.reshape(len(x), x.size(1), -1).transpose(1, 2)


class SretMlp(sret.Mlp):
    """The scalar multiplies the output."""

    def forward(self, x, scale):
        return self.fc2(F.gelu(self.fc1(x))) * scale


class SretAttention(sret.Attention):
    """Tokens are put in order before they are projected, and the map of each slice is made."""

    def forward(self, x, scale, slices, order, labels):
        batch, tokens, channels = x.shape
        if order is not None:
            x = x[:, order[0]]
        qkv = self.qkv(x).reshape(batch, slices, tokens // slices, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        x = attend(*qkv.unbind(0)).transpose(2, 3).reshape(batch, slices, -1, channels)
        x = x.permute(0, 3, 1, 2).reshape(batch, channels, tokens).transpose(1, 2)
        if order is not None:
            x = x[:, order[1]]
        return self.proj(x) * scale, None


class SretBlock(Summed, sret.Block):
    """Both branches masked."""


class FanAttention(fan.Attention):
    """A map (B, h, N, N); its product with the values is made twice, once to be handed on and never read."""

    def forward(self, x, labels):
        (q,) = split_heads(self.q(x), 1, self.heads)
        k, v = split_heads(self.kv(x), 2, self.heads)
        scores = ((q @ k.transpose(-2, -1)) * q.size(-1) ** -0.5).softmax(dim=-1)
        out = self.proj(join_heads(scores @ v))
        _ = scores @ v
        return out, None


class FanChannelProcessing(ChannelProcessing):
    """Queries, keys and values by head; the weighted values are made twice, the second time to be handed on."""

    def forward(self, x, size):
        """Return new tokens (B, N, D)."""
        (q,), (k,) = split_heads(self.q(x), 1, self.heads), split_heads(x, 1, self.heads)
        q = q.softmax(dim=2).transpose(2, 3)
        k = F.adaptive_avg_pool2d(k.softmax(dim=2), (k.size(2), 1))
        gate = (q @ k).sigmoid() * self.temperature  # (B, h, c, 1)
        (v,) = split_heads(self.norm_v(self.mlp_v(x, size)), 1, self.heads)
        out = (gate * v.transpose(2, 3)).permute(0, 3, 1, 2).reshape(x.shape)
        _ = gate * v.transpose(2, 3)
        return out


class FanBlock(Summed, fan.Block):
    """Both branches masked."""

    def forward(self, x, size, labels):
        x = self.add(x, self.gamma1 * self.attn(self.norm1(x), None)[0])
        return self.add(x, self.gamma2 * self.mlp(self.norm2(x), size)), None


class FanPositionCode(FourierCode):
    """The code of each token of each image, through a 1 × 1 convolution, at every call."""

    batch = 1

    def forward(self, size, paired):
        weight = self.token_projection.weight
        rows, columns = (fourier_code(count, paired, weight.device) for count in size)
        code = torch.cat([rows[:, None].expand(*size, -1), columns.expand(*size, -1)], dim=-1).permute(2, 0, 1)
        code = code.expand(self.batch, -1, -1, -1).to(weight.dtype)
        return convolve(self.token_projection, code).permute(0, 2, 3, 1)


class FanUnbiasedNorm(fan.UnbiasedNorm):
    """Mean and unbiased variance, then one operation after the other."""

    def forward(self, x):
        variance, mean = torch.var_mean(x, dim=-1, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class FanStemBlock(fan.StemBlock):
    """The MLP by 1 × 1 convolutions."""

    def forward(self, x):
        hidden = self.norm(self.conv_dw(x)).permute(0, 3, 1, 2)
        hidden = convolve(self.mlp["fc2"], F.gelu(convolve(self.mlp["fc1"], hidden)))
        return x + (hidden * self.gamma.view(-1, 1, 1)).permute(0, 2, 3, 1)


class Fan(fan.FAN):
    """Position codes are made for the whole batch."""

    def tokens(self, images, labels, paired):
        self.pos_embed.batch = len(images)
        return super().tokens(images, None, paired)


#: family -> our class -> the published way.
WAYS = {
    "deit": {deit.Attention: DeitAttention, deit.Block: DeitBlock},
    "cait": {cait.TalkingHeads: CaitHeads, cait.Block: CaitBlock},
    "pvt": {
        pvt.PVT: Pvt,
        pvt.Attention: PvtAttention,
        pvt.FeedForward: PvtFeedForward,
        pvt.Block: PvtBlock,
        pvt.StageEmbed: PvtStageEmbed,
    },
    "pvt_v2": {
        pvt.Attention: PvtAttention,
        pvt.FeedForward: PvtFeedForward,
        pvt.Block: PvtBlock,
        pvt.StageEmbed: PvtStageEmbed,
    },
    "tnt": {
        tnt.TNT: Tnt,
        tnt.Attention: TntAttention,
        tnt.Block: TntBlock,
        tnt.WordEmbed: TntWordEmbed,
    },
    "pyramid_tnt": {
        pyramid_tnt.Attention: PyramidAttention,
        pyramid_tnt.Block: PyramidBlock,
        pyramid_tnt.Stem: PyramidStem,
        pyramid_tnt.WordAggregation: PyramidWordAggregation,
    },
    "sret": {sret.Attention: SretAttention, sret.Mlp: SretMlp, sret.Block: SretBlock},
    "fan": {
        fan.FAN: Fan,
        fan.Attention: FanAttention,
        ChannelProcessing: FanChannelProcessing,
        fan.Block: FanBlock,
        FourierCode: FanPositionCode,
        fan.UnbiasedNorm: FanUnbiasedNorm,
        fan.StemBlock: FanStemBlock,
    },
}
