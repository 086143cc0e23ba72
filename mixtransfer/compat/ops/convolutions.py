"""Convolutions whose samples or kernels depend on the input: deformable, masked, CARAFE, PSANet's attention.

Shapes: B batch, C channels, H × W map, k kernel side, s scale factor, g groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtransfer.compat.ops import at_least_float32, write_gradients

__all__ = [
    "carafe_backward",
    "carafe_forward",
    "carafe_naive_backward",
    "carafe_naive_forward",
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "masked_col2im_forward",
    "masked_im2col_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
    "psamask_backward",
    "psamask_forward",
]


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **settings: int
) -> None:
    """Write the deformable convolution of ``input`` into ``output`` (arXiv 1703.06211, section 2.1)."""
    output.copy_(_deform_conv(input, offset, weight, **_plain(settings)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **settings: int,
) -> None:
    """Write the gradients of :func:`deform_conv_forward` for map and offsets."""
    plain = _plain(settings)
    write_gradients(
        lambda x, o: _deform_conv(x, o, weight, **plain), [input, offset], grad_output, [grad_input, grad_offset]
    )


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **settings: int,
) -> None:
    """Write ``scale`` times the gradient of :func:`deform_conv_forward` for the weight."""
    plain = _plain(settings)
    # A convolution is linear in its weight, so that any weight will do to differentiate by.
    write_gradients(
        lambda w: scale * _deform_conv(input, offset, w, **plain),
        [torch.zeros_like(grad_weight)],
        grad_output,
        [grad_weight],
    )


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **settings: int,
) -> None:
    """Write the deformable convolution with weights of the samples into ``output`` (arXiv 1811.11168, section 3.2).

    Offsets and weights may be those of a larger map, see :func:`_laid_out`.
    """
    output.copy_(_deform_conv(input, offset, weight, mask, bias if with_bias else None, **_named(settings)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **settings: int,
) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward`."""
    named = _named(settings)
    inputs = [input, offset, weight, mask] + [bias] * with_bias
    targets = [grad_input, grad_offset, grad_weight, grad_mask] + [grad_bias] * with_bias
    write_gradients(lambda *parts: _deform_conv(*parts, **named), inputs, grad_output, targets)


def _plain(settings: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Return the settings of the first version's op, which are named by width and height, as pairs."""
    names = {"stride": "d", "padding": "pad", "dilation": "dilation"}
    return {ours: (settings[f"{theirs}H"], settings[f"{theirs}W"]) for ours, theirs in names.items()}


def _named(settings: dict[str, int]) -> dict[str, tuple[int, int]]:
    names = {"stride": "stride", "padding": "pad", "dilation": "dilation"}
    return {ours: (settings[f"{theirs}_h"], settings[f"{theirs}_w"]) for ours, theirs in names.items()}


def _deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    from torchvision.ops import deform_conv2d

    dtype = at_least_float32(input, offset)
    if mask is not None:
        sides = zip(input.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        size = [(side + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for side, kernel, step, pad, gap in sides]
        offset, mask = _laid_out(offset, size), _laid_out(mask, size)
    parts = [None if part is None else part.to(dtype) for part in (input, offset, weight, bias, mask)]
    return deform_conv2d(parts[0], parts[1], parts[2], parts[3], stride, padding, dilation, parts[4])


def _laid_out(x: Tensor, size: list[int]) -> Tensor:
    """Return a map (B, C, H, W) of at least ``size`` as mmcv's kernel reads it: its memory, as if it had that size.

    DyHead (arXiv 2106.08322) moves the samples of a coarser level by the offsets of a finer one.
    """
    if list(x.shape[2:]) == size:
        return x
    return x.flatten(1)[:, : x.size(1) * size[0] * size[1]].unflatten(1, (x.size(1), *size))


def masked_im2col_forward(
    features: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    data_col: Tensor,
    *,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the patches of ``features`` (1, C, H, W) at n places into ``data_col`` (C·k·k, n); the stride is 1."""
    padded = F.pad(features, (pad_w, pad_w, pad_h, pad_h))[0]
    rows = mask_h_idx[:, None] + torch.arange(kernel_h, device=features.device)
    columns = mask_w_idx[:, None] + torch.arange(kernel_w, device=features.device)
    patches = padded[:, rows[:, :, None], columns[:, None, :]]  # (C, n, k, k)
    data_col.copy_(patches.permute(0, 2, 3, 1).flatten(0, 2))


def masked_col2im_forward(
    masked_output: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    output: Tensor,
    *,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Write columns (C, n) to their places in ``output`` (1, C, H, W)."""
    output[0][:, mask_h_idx, mask_w_idx] = masked_output


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, *, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Write the upsampled map (B, C, s·H, s·W): each output pixel has a kernel of its own (CARAFE, arXiv 1905.02188).

    ``masks`` is (B, g·k·k, s·H, s·W).
    """
    output.copy_(_carafe(features, masks, kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    *,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of :func:`carafe_naive_forward`."""
    write_gradients(
        lambda x, m: _carafe(x, m, kernel_size, group_size, scale_factor),
        [features, masks],
        grad_output,
        [grad_input, grad_masks],
    )


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    **settings: int,
) -> None:
    """Write the upsampled map; ``rfeatures`` keeps the map for the backward pass, which does not get it again."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, **settings)


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    **settings: int,
) -> None:
    """Write the gradients of :func:`carafe_forward`."""
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, **settings)


def _carafe(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    batch, channels, height, width = features.shape
    patches = F.unfold(features, kernel, padding=kernel // 2)
    patches = patches.view(batch, groups, channels // groups, kernel**2, height, width)
    kernels = masks.view(batch, groups, kernel**2, height, scale, width, scale)
    return torch.einsum("bgckhw,bgkhswt->bgchswt", patches, kernels).reshape(
        batch, channels, height * scale, width * scale
    )


def psamask_forward(input: Tensor, output: Tensor, *, psa_type: int, **sizes: int) -> None:
    """Write point-wise spatial attention (PSANet, ECCV 2018, section 3.3) into ``output`` (B, H·W, H, W).

    ``input`` (B, h·w, H, W) holds at each pixel a mask over its surroundings. With ``psa_type`` 0 (collect) entry
    (j, i) is what pixel i's mask says of pixel j, with 1 (distribute) the two change places.
    """
    output.copy_(_psamask(input, psa_type, **sizes))


def psamask_backward(grad_output: Tensor, grad_input: Tensor, *, psa_type: int, **sizes: int) -> None:
    """Write the gradient of :func:`psamask_forward`."""
    write_gradients(lambda x: _psamask(x, psa_type, **sizes), [torch.zeros_like(grad_input)], grad_output, [grad_input])


def _psamask(
    masks: Tensor,
    psa_type: int,
    *,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> Tensor:
    row, column = (torch.arange(side, device=masks.device) for side in (h_feature, w_feature))
    # Position of the other pixel (rows) in the mask of a pixel (columns), along each axis.
    y, x = row[:, None] - row + half_h_mask, column[:, None] - column + half_w_mask
    inside = ((y >= 0) & (y < h_mask))[:, None, :, None] & ((x >= 0) & (x < w_mask))[None, :, None, :]
    index = (y.clamp(0, h_mask - 1)[:, None, :, None] * w_mask + x.clamp(0, w_mask - 1)[None, :, None, :]).flatten(0, 1)
    found = masks.gather(1, index.expand(num_, -1, -1, -1)) * inside.flatten(0, 1)
    return found if psa_type == 0 else found.flatten(2).transpose(1, 2).unflatten(2, (h_feature, w_feature))


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return multi-scale deformable attention (B, Q, heads·d) (Deformable DETR, arXiv 2010.04159, section 4.1).

    Args:
        value: (B, Σ H_l·W_l, heads, d).
        value_spatial_shapes: (L, 2), height and width of each level.
        value_level_start_index: (L,).
        sampling_locations: (B, Q, heads, L, points, 2), x and y from 0 to 1.
        attention_weights: (B, Q, heads, L, points).
        im2col_step: without effect.
    """
    return _ms_deform_attn(value, sampling_locations, attention_weights, value_spatial_shapes)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward`."""
    write_gradients(
        lambda v, s, a: _ms_deform_attn(v, s, a, value_spatial_shapes),
        [value, sampling_locations, attention_weights],
        grad_output,
        [grad_value, grad_sampling_loc, grad_attn_weight],
    )


def _ms_deform_attn(value: Tensor, locations: Tensor, weights: Tensor, shapes: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
