"""Heads that read levels compute what mmseg's compute, from the same parameters, whatever the sizes of the maps."""

from __future__ import annotations

import mmseg.registry
import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from mixtransfer.transfer.fused_upsampling import PyramidConv2d

COMMON = dict(channels=16, num_classes=5, norm_cfg=dict(type="BN"), dropout_ratio=0)
WIDTHS = [8, 12, 16, 24]
FOUR = dict(in_channels=WIDTHS, in_index=[0, 1, 2, 3])
#: Our head, mmseg's, their options, and how many of their convolutions read levels.
HEADS = {
    "PSP": ("PSPHead", "PSPHead", dict(in_channels=24, pool_scales=(1, 2, 3, 6)), 1),
    "FPN": ("FPNHead", "FPNHead", dict(feature_strides=[4, 8, 16, 32], **FOUR), 3),
    "SegFormer": ("LevelwiseSegformerHead", "SegformerHead", FOUR, 1),
}
PYRAMIDS = {
    "64x64": [(16, 16), (8, 8), (4, 4), (2, 2)],
    "75x101, odd": [(19, 26), (10, 13), (5, 7), (3, 4)],
    "33x160, flat": [(9, 40), (5, 20), (3, 10), (2, 5)],
}
EXACT = {torch.float32: (2e-6, 2e-5), torch.float64: (1e-11, 1e-9)}


def pair(kind, dtype=torch.float32, **options):
    """Return our head and mmseg's with the same weights; no norm has the statistics that it starts with."""
    ours, theirs, own, _ = HEADS[kind]
    torch.manual_seed(0)
    heads = [
        mmseg.registry.MODELS.build({**COMMON, **own, **options, "type": name})
        for name in (f"mixtransfer.{ours}", f"mmseg.{theirs}")
    ]
    for name, value in heads[1].state_dict().items():
        if name.endswith("conv_seg.weight"):
            nn.init.normal_(value)
        elif value.is_floating_point() and value.dim() == 1:
            nn.init.uniform_(value, 0.5, 1.5)
    heads[0].load_state_dict(heads[1].state_dict(), strict=True)
    heads[1].load_state_dict(heads[0].state_dict(), strict=True)
    return [head.to(dtype) for head in heads]


def run(head, sizes, dtype):
    """Return the logits and the gradients of parameters and maps."""
    torch.manual_seed(1)
    maps = [
        torch.randn(2, width, *size, dtype=dtype, requires_grad=True) for width, size in zip(WIDTHS, sizes, strict=True)
    ]
    logits = head(maps)
    logits.backward(torch.linspace(-1, 1, logits.numel(), dtype=dtype).view_as(logits))
    gradients = {name: parameter.grad for name, parameter in head.named_parameters()}
    return logits, gradients | {f"map {i}": x.grad for i, x in enumerate(maps) if x.grad is not None}


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", PYRAMIDS.values(), ids=PYRAMIDS)
@pytest.mark.parametrize("kind", HEADS)
def test_outputs_and_gradients_equal(kind, sizes, align_corners, dtype):
    ours, theirs = (head.eval() for head in pair(kind, dtype, align_corners=align_corners))
    assert sum(isinstance(module, PyramidConv2d) for module in ours.modules()) == HEADS[kind][3]
    (got, gradients), (want, expected) = run(ours, sizes, dtype), run(theirs, sizes, dtype)
    assert (got - want).abs().max() <= EXACT[dtype][0] * want.abs().max()
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        error = (gradient - expected[name]).abs().max()
        assert error <= EXACT[dtype][1] * expected[name].abs().max(), name


@pytest.mark.parametrize("kind", HEADS)
def test_training_with_batch_statistics_and_folded_norms_are_mmsegs(kind):
    heads = [head.train() for head in pair(kind, torch.float64)]
    (got, gradients), (want, expected) = (run(head, PYRAMIDS["64x64"], torch.float64) for head in heads)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)
    for head in heads:
        for module in head.eval().modules():
            if isinstance(module, ConvModule):
                module.turn_on_efficient_conv_bn_eval()
    got, want = (run(head, PYRAMIDS["64x64"], torch.float64)[0] for head in heads)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_levels_that_are_resampled_otherwise_run_as_in_mmseg():
    ours, theirs = (head.eval() for head in pair("SegFormer", interpolate_mode="bicubic"))
    assert not any(isinstance(module, PyramidConv2d) for module in ours.modules())
    assert torch.equal(*(run(head, PYRAMIDS["64x64"], torch.float32)[0] for head in (ours, theirs)))
