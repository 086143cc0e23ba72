"""HorNet, CMT, FCViT, the MLPs, ConvMixer and Sequencer2D the way their published codes compute them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.originals.common import Summed, attend, convolve, drop_path, join_heads, split_heads
from mixtransfer.backbones import cmt, convmixer, fcvit, hire_mlp, hornet, mlp_mixer, raft_mlp, sequencer
from mixtransfer.layers.channels_last import Conv, Pointwise

__all__ = ["WAYS"]


def channel_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Normalize the channels of a map (B, C, H, W), one operation after the other."""
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    x = (x - mean) / torch.sqrt(variance + norm.eps)
    return norm.weight[:, None, None] * x + norm.bias[:, None, None]


class HornetLocal(hornet.LocalFilter):
    """On maps (B, D, H, W)."""

    def forward(self, x):
        return convolve(self, x)


class HornetGlobal(hornet.GlobalLocalFilter):
    """On maps (B, D, H, W); the filter is resampled at every call, the halves are joined by a copy."""

    def forward(self, x):
        local, spread = channel_norm(self.pre_norm, x).chunk(2, dim=1)
        local = convolve(self.dw, local)
        size = spread.shape[2:]
        waves = torch.fft.rfft2(spread.to(torch.float32), dim=(2, 3), norm="ortho")
        weight = self.complex_weight
        if weight.shape[1:3] != waves.shape[2:]:
            weight = F.interpolate(weight.permute(3, 0, 1, 2), waves.shape[2:], mode="bilinear", align_corners=True)
            weight = weight.permute(1, 2, 3, 0)
        waves = waves * torch.view_as_complex(weight.contiguous())
        spread = torch.fft.irfft2(waves, s=size, dim=(2, 3), norm="ortho")
        x = torch.cat([local.unsqueeze(2), spread.unsqueeze(2)], dim=2).reshape(x.shape)
        return channel_norm(self.post_norm, x)


class HornetGnConv(hornet.GnConv):
    """On maps (B, C, H, W); one convolution makes gates and values, the gates are scaled behind their filter."""

    def forward(self, x):
        x, gates = convolve(self.proj_in, x).split([self.parts[0], sum(self.parts)], dim=1)
        gates = (self.dwconv(gates) * hornet.SCALE).split(self.parts, dim=1)
        x = x * gates[0]
        for pointwise, gate in zip(self.pws, gates[1:], strict=True):
            x = convolve(pointwise, x) * gate
        return convolve(self.proj_out, x)


class HornetBlock(Summed, hornet.Block):
    """On maps (B, C, H, W), permuted for the MLP."""

    def forward(self, x):
        x = self.add(x, self.gamma1.view(-1, 1, 1) * self.gnconv(channel_norm(self.norm1, x)))
        branch = self.gamma2 * self.mlp(self.norm2(x.permute(0, 2, 3, 1)))
        return self.add(x, branch.permute(0, 3, 1, 2))

    def mlp(self, x):
        return self.pwconv2(F.gelu(self.pwconv1(x)))


class Hornet(hornet.HorNet):
    """Maps (B, C, H, W) throughout."""

    def dense(self, images, labels):
        x, maps = images, []
        for index in range(max(self.out_indices, default=-1) + 1):
            first, second = self.downsample_layers[index]
            x = channel_norm(second, convolve(first, x)) if index == 0 else convolve(second, channel_norm(first, x))
            for block in self.stages[index]:
                x = block(x)
            if index in self.out_indices:
                maps.append(channel_norm(getattr(self, f"norm{index}"), x))
        return tuple(maps), None


class CmtAttention(cmt.Attention):
    """A map (B, h, N, M), to which the bias is added."""

    def forward(self, x, bias, labels):
        size, tokens = (x.size(1), x.size(2)), x.flatten(1, 2)
        source = tokens
        if self.reduction > 1:
            source = self.sr(x.permute(0, 3, 1, 2)).reshape(len(x), x.size(3), -1).permute(0, 2, 1)
        (q,) = split_heads(self.q(tokens), 1, self.heads)
        (k,), (v,) = split_heads(self.k(source), 1, self.heads), split_heads(self.v(source), 1, self.heads)
        return self.proj(join_heads(attend(q, k, v, bias))).unflatten(1, size), None


class CmtConvMlp(cmt.ConvMlp):
    """1 × 1 convolutions, and a sum around the depthwise one."""

    def forward(self, x):
        x = self.conv1(x.permute(0, 3, 1, 2))
        x = self.proj_bn(F.gelu(convolve(self.proj, x) + x))
        return self.conv2(x).permute(0, 2, 3, 1)


class CmtBlock(Summed, cmt.Block):
    """Layer after layer."""

    def forward(self, x, bias, labels):
        grid = x.permute(0, 3, 1, 2)
        x = (convolve(self.proj, grid) + grid).permute(0, 2, 3, 1)
        x = self.add(x, self.attn(self.norm1(x), bias, None)[0])
        return self.add(x, self.mlp(self.norm2(x))), None


class CmtStageEmbed(cmt.StageEmbed):
    """The map of the stage before is copied to (B, C, H, W)."""

    def forward(self, x):
        x = convolve(self.proj, x.permute(0, 3, 1, 2).contiguous())
        return self.norm(x.flatten(2).transpose(1, 2)).unflatten(1, x.shape[2:])


class FcvitContext(fcvit.GlobalContext):
    """Similarities by an einsum, standardized step by step; the context of each position is a map that is added."""

    def forward(self, x):
        batch, channels, height, width = x.shape
        tokens = x.flatten(2)
        mean = tokens.mean(dim=-1, keepdim=True)
        q, g = tokens.unflatten(1, (fcvit.HEADS, -1)), mean.unflatten(1, (fcvit.HEADS, -1))
        similarity = torch.einsum("bhdi,bhjd->bhij", q, g.transpose(-1, -2)).squeeze(-1) * q.size(2) ** -0.5
        std, center = torch.std_mean(similarity, dim=[1, 2], keepdim=True)
        similarity = (similarity - center) / (std + fcvit.STD_EPS)
        similarity = similarity * self.rescale_weight[None, :, None] + self.rescale_bias[None, :, None]
        context = self.fc2(self.fc1(mean.squeeze(-1)).reshape(batch, 2, -1).max(dim=1)[0])
        context = context.reshape(batch, fcvit.HEADS, -1, 1, 1)
        similarity = similarity.reshape(batch, fcvit.HEADS, 1, height, width)
        return x + (similarity * context).reshape(batch, channels, height, width)


def network_maps(net: fcvit.FCViT | hire_mlp.HireMLP, images: Tensor) -> tuple[Tensor, ...]:
    """Return the normalized maps of stages and what lies between them in one list, on maps (B, C, H, W)."""
    x, maps = net.patch_embed(images), []
    for position, part in enumerate(net.network[: 2 * max(net.out_indices, default=-1) + 1]):
        x = part(x)
        if position % 2 == 0 and position // 2 in net.out_indices:
            maps.append(getattr(net, f"norm{position}")(x))
    return tuple(maps)


class MapConv(Conv):
    """On maps (B, C, H, W)."""

    def forward(self, x):
        return convolve(self, x)


class MapPointwise(Pointwise):
    """A convolution of maps (B, C, H, W)."""

    def forward(self, x):
        return convolve(self, x)


class FcvitNorm(fcvit.MapNorm):
    """On maps (B, C, H, W)."""

    def forward(self, x):
        return F.group_norm(x, 1, self.weight, self.bias, self.eps)


class FcvitChannelMixer(fcvit.ChannelMixer):
    """The whole map at once."""

    def forward(self, x):
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class FcvitBlock(Summed, fcvit.Block):
    """Both branches for all samples."""

    def forward(self, x):
        x = self.add(x, self.layer_scale_1[:, None, None] * self.token_mixer(self.norm1(x)))
        return self.add(x, self.layer_scale_2[:, None, None] * self.channel_mixer(self.norm2(x)))


class FcvitPatchEmbed(fcvit.PatchEmbed):
    """On maps (B, C, H, W)."""

    def forward(self, x):
        return self.norm(self.proj(x))


class Fcvit(fcvit.FCViT):
    """Maps (B, C, H, W) throughout."""

    def dense(self, images, labels):
        return network_maps(self, images), None


class HireMixer(hire_mlp.HireMixer):
    """Two copies of the map are rolled, padded, regrouped, and regrouped and rolled back."""

    def forward(self, x):
        batch, channels, height, width = x.shape
        p, step = self.pixel, self.step
        bottom, right = -height % p, -width % p
        h, w = x.clone(), x.clone()
        if step:
            h, w = h.roll(step, 2), w.roll(step, 3)
        h = F.pad(h, (0, 0, 0, bottom), mode="circular")
        w = F.pad(w, (0, right, 0, 0), mode="circular")
        rows, columns = (height + bottom) // p, (width + right) // p
        h = h.reshape(batch, channels, rows, p, width).permute(0, 1, 3, 2, 4).reshape(batch, -1, rows, width)
        w = w.reshape(batch, channels, height, columns, p).permute(0, 1, 4, 2, 3).reshape(batch, -1, height, columns)
        h = self.mlp_h2(F.relu(self.mlp_h1_norm(self.mlp_h1(h))))
        w = self.mlp_w2(F.relu(self.mlp_w1_norm(self.mlp_w1(w))))
        h = h.reshape(batch, channels, p, rows, width).permute(0, 1, 3, 2, 4).reshape(batch, channels, -1, width)
        w = w.reshape(batch, channels, p, height, columns).permute(0, 1, 3, 4, 2).reshape(batch, channels, height, -1)
        h, w = h.narrow(2, 0, height), w.narrow(3, 0, width)
        if step:
            h, w = h.roll(-step, 2), w.roll(-step, 3)
        c = self.mlp_c(x)
        shares = self.reweight((h + w + c).flatten(2).mean(2)[:, :, None, None])
        shares = shares.reshape(batch, channels, 3).permute(2, 0, 1).softmax(dim=0)[..., None, None]
        return self.proj(h * shares[0] + w * shares[1] + c * shares[2])


class HireBlock(Summed, hire_mlp.Block):
    """On maps (B, C, H, W); both branches masked."""

    def forward(self, x):
        x = self.add(x, self.attn(self.norm1(x)))
        return self.add(x, self.mlp(self.norm2(x)))


class HireMlp(hire_mlp.PointwiseMlp):
    """On maps (B, C, H, W)."""

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class HireEmbed(hire_mlp.ConvEmbed):
    """On maps (B, C, H, W)."""

    def forward(self, x):
        return F.relu(self.norm(self.proj(x)))


class Hire(hire_mlp.HireMLP):
    """Maps (B, C, H, W) throughout."""

    def dense(self, images, labels):
        return network_maps(self, images), None


class RaftTokenMixer(raft_mlp.TokenMixer):
    """A residual on (B, K·other, r·side); the norm is reached and left through a copy of the map."""

    def mix(self, x: Tensor, other: int, drop: float) -> Tensor:
        """Return the map of the same shape."""
        rafts, side = raft_mlp.RAFTS, self.fc1.in_features // raft_mlp.RAFTS
        shape = (len(x), -1, other, rafts, side)  # (B, K, other, r, side)
        y = x.view(shape).permute(0, 2, 4, 1, 3).reshape(len(x), other * side, -1)
        weight, bias = (p.view(rafts, -1).t().reshape(-1) for p in (self.norm.weight, self.norm.bias))
        y = F.layer_norm(y, y.shape[-1:], weight, bias, self.norm.eps)
        y = y.view(len(x), other, side, -1, rafts).permute(0, 3, 1, 4, 2).reshape(x.shape)
        return x + drop_path(self.fc2(F.gelu(self.fc1(y))), drop, self.training)


class RaftBlock(Summed, raft_mlp.Block):
    """Tokens (B, N, C), rearranged before, between and behind the token mixers; bicubic resampling of maps."""

    def forward(self, x):
        size, (p, q), rafts = x.shape[1:3], self.grid, raft_mlp.RAFTS
        batch, channels = len(x), x.size(3)
        resized = tuple(size) != self.grid
        if resized:
            x = F.interpolate(x.permute(0, 3, 1, 2).contiguous(), self.grid, mode="bicubic", align_corners=False)
            x = x.view(batch, rafts, -1, p, q).permute(0, 2, 4, 1, 3)
        else:
            x = x.view(batch, p, q, rafts, -1).permute(0, 4, 2, 3, 1)
        x = self.vertical.mix(x.reshape(batch, -1, rafts * p), q, self.drop_path)
        x = x.view(batch, -1, q, rafts, p).permute(0, 1, 4, 3, 2).reshape(batch, -1, rafts * q)
        x = self.horizontal.mix(x, p, self.drop_path).view(batch, -1, p, rafts, q)
        if resized:
            x = x.permute(0, 3, 1, 2, 4).reshape(batch, channels, p, q)
            x = F.interpolate(x, tuple(size), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
        else:
            x = x.permute(0, 2, 4, 3, 1)
        x = x.reshape(batch, *size, channels)
        return self.add(x, self.channel(x))


class RaftChannelMixer(raft_mlp.ChannelMixer):
    """All tokens at once."""

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(self.norm_in(x))))


class RaftPatchEmbed(raft_mlp.PatchEmbed):
    """Each kernel's patches are unfolded, all of them joined, and mapped by one linear layer."""

    def forward(self, x):
        x = x.permute(0, 3, 1, 2).contiguous()
        whole = tuple(-(-side // self.patch) * self.patch for side in x.shape[2:])
        if whole != tuple(x.shape[2:]):
            x = F.interpolate(x, whole, mode="bicubic", align_corners=False)
        patches = [
            F.unfold(x, kernel, stride=self.patch, padding=(kernel - self.patch) // 2).transpose(1, 2)
            for kernel in self.kernels
        ]
        return self.fc(torch.cat(patches, dim=2)).unflatten(1, tuple(side // self.patch for side in whole))


class SequencerMixer(sequencer.BiLSTM2D):
    """Columns and rows are copied so that the images come first, and turned again for the recurrence and behind it."""

    def forward(self, x):
        batch, height, width, channels = x.shape
        columns = x.permute(0, 2, 1, 3).reshape(-1, height, channels)
        columns = self.along(self.rnn_v, columns).reshape(batch, width, height, -1).permute(0, 2, 1, 3)
        rows = self.along(self.rnn_h, x.reshape(-1, width, channels)).reshape(batch, height, width, -1)
        return self.fc(torch.cat([columns, rows], dim=-1))

    def along(self, lstm: nn.LSTM, x: Tensor) -> Tensor:
        """Run a bidirectional LSTM over sequences (S, T, C) as ``batch_first`` does."""
        return lstm(x.transpose(0, 1))[0].transpose(0, 1)


class SequencerBlock(Summed, sequencer.Block):
    """Both branches for all samples."""

    def forward(self, x):
        x = self.add(x, self.rnn_tokens(self.norm1(x)))
        return self.add(x, self.mlp_channels(self.norm2(x)))


class MixerTokenMixer(mlp_mixer.TokenMixer):
    """Linear layers on tokens that are transposed, and back."""

    def forward(self, x, grid, gate=None):
        return self.fc2(F.gelu(self.fc1(x.transpose(1, 2)))).transpose(1, 2)


class MixerBlock(Summed, mlp_mixer.Block):
    """Both branches for all samples."""

    def forward(self, x, grid, gate=None):
        x = self.add(x, self.mlp_tokens(self.norm1(x), grid))
        return self.add(x, self.mlp_channels(self.norm2(x)))


class ConvMixerFilter(convmixer.Mixer):
    """A kernel that all channels share filters B·C maps of one channel."""

    def forward(self, x, gate=None):
        if not self.shared:
            return self.conv(x)
        return self.conv(x.reshape(-1, 1, *x.shape[2:])).reshape(x.shape)


class ConvMixerResidual(Summed, convmixer.Residual):
    """Layer after layer."""

    def forward(self, x, gate):
        mix, activation, norm = self.fn
        return self.add(x, norm(activation(mix(x))))


class ConvMixerBlock(convmixer.Block):
    """Layer after layer."""

    def forward(self, x, gate=None):
        residual, project, activation, norm = self.block
        return norm(activation(project(residual(x, None))))


class ConvMixer(convmixer.ConvMixer):
    """Maps (B, C, H, W) throughout."""

    def dense(self, images, labels):
        x, maps = self.stem(images), []
        for index, block in enumerate(self.blocks[: max(self.out_indices, default=-1) + 1]):
            x = block(x)
            if index in self.out_indices:
                maps.append(x)
        return tuple(maps), None


#: family -> our class -> the published way.
WAYS = {
    "hornet": {
        hornet.HorNet: Hornet,
        hornet.LocalFilter: HornetLocal,
        hornet.GlobalLocalFilter: HornetGlobal,
        hornet.GnConv: HornetGnConv,
        hornet.Block: HornetBlock,
    },
    "cmt": {
        cmt.Attention: CmtAttention,
        cmt.ConvMlp: CmtConvMlp,
        cmt.Block: CmtBlock,
        cmt.StageEmbed: CmtStageEmbed,
    },
    "fcvit": {
        fcvit.FCViT: Fcvit,
        fcvit.PatchEmbed: FcvitPatchEmbed,
        fcvit.MapNorm: FcvitNorm,
        fcvit.GlobalContext: FcvitContext,
        fcvit.ChannelMixer: FcvitChannelMixer,
        fcvit.Block: FcvitBlock,
        Conv: MapConv,
        Pointwise: MapPointwise,
    },
    "hire_mlp": {
        hire_mlp.HireMLP: Hire,
        hire_mlp.ConvEmbed: HireEmbed,
        hire_mlp.HireMixer: HireMixer,
        hire_mlp.PointwiseMlp: HireMlp,
        hire_mlp.Block: HireBlock,
        Conv: MapConv,
        Pointwise: MapPointwise,
    },
    "raft_mlp": {
        raft_mlp.TokenMixer: RaftTokenMixer,
        raft_mlp.ChannelMixer: RaftChannelMixer,
        raft_mlp.Block: RaftBlock,
        raft_mlp.PatchEmbed: RaftPatchEmbed,
    },
    "sequencer2d": {sequencer.BiLSTM2D: SequencerMixer, sequencer.Block: SequencerBlock},
    "mlp_mixer": {mlp_mixer.TokenMixer: MixerTokenMixer, mlp_mixer.Block: MixerBlock},
    "convmixer": {
        convmixer.ConvMixer: ConvMixer,
        convmixer.Mixer: ConvMixerFilter,
        convmixer.Residual: ConvMixerResidual,
        convmixer.Block: ConvMixerBlock,
    },
}
