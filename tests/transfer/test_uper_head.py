"""UPerHead computes what mmseg's head computes, from the same parameters, whatever the sizes of the maps."""

from __future__ import annotations

import subprocess
import sys

import mmseg.registry
import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from mixtransfer.transfer.fused_upsampling import PyramidConv2d, _kept_matrices, products_pay

CHANNELS = [8, 12, 16, 24]
HEAD = dict(in_channels=CHANNELS, in_index=[0, 1, 2, 3], channels=16, num_classes=5, norm_cfg=dict(type="BN"))
THEIRS = "mmseg.UPerHead"
#: Sizes of the four maps, and how many of them are convolved at their own resolution.
PYRAMIDS = {
    "64x64": ([(16, 16), (8, 8), (4, 4), (2, 2)], 3),
    "75x101, odd": ([(19, 26), (10, 13), (5, 7), (3, 4)], 3),
    "33x160, flat": ([(9, 40), (5, 20), (3, 10), (2, 5)], 3),
    "unrelated sizes": ([(13, 7), (15, 9), (13, 7), (1, 1)], 1),
    "one pixel each": ([(1, 1)] * 4, 0),
}
EXACT = {torch.float32: (1e-6, 1e-5), torch.float64: (1e-11, 1e-9)}


def pair(dtype=torch.float32, **options):
    """Return our head and mmseg's with the same weights, in evaluation; no norm has the statistics it starts with."""
    torch.manual_seed(0)
    ours, theirs = (
        mmseg.registry.MODELS.build({**HEAD, **options, "type": x}) for x in ("mixtransfer.UPerHead", THEIRS)
    )
    for name, value in theirs.state_dict().items():
        if name.endswith("conv_seg.weight"):
            nn.init.normal_(value)
        elif value.is_floating_point() and value.dim() == 1:
            nn.init.uniform_(value, 0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    return ours.to(dtype).eval(), theirs.to(dtype).eval()


def pyramid(sizes, dtype=torch.float32, batch=2):
    torch.manual_seed(1)
    maps = (torch.randn(batch, c, *size, dtype=dtype) for c, size in zip(CHANNELS, sizes, strict=True))
    return [x.requires_grad_() for x in maps]


def evaluate(head, sizes, dtype):
    """Return the logits and the gradients of parameters and maps."""
    maps = pyramid(sizes, dtype)
    logits = head(maps)
    logits.backward(torch.linspace(-1, 1, logits.numel(), dtype=dtype).view_as(logits))
    return logits, {
        **{k: p.grad for k, p in head.named_parameters()},
        **{f"map {i}": x.grad for i, x in enumerate(maps)},
    }


def assert_close(got, want, tolerance, name):
    assert got.shape == want.shape, name
    assert (got - want).abs().max() <= tolerance * want.abs().max(), name


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("sizes", "coarse"), PYRAMIDS.values(), ids=PYRAMIDS)
def test_outputs_and_gradients_equal(sizes, coarse, align_corners, dtype):
    ours, theirs = pair(dtype, align_corners=align_corners)
    assert sum(products_pay(torch.empty(1, 16, *size), sizes[0]) for size in sizes) == coarse
    (got, gradients), (want, expected) = evaluate(ours, sizes, dtype), evaluate(theirs, sizes, dtype)
    assert_close(got, want, EXACT[dtype][0], "logits")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], EXACT[dtype][1], name)


def test_training_with_batch_statistics_is_equal():
    ours, theirs = (head.train() for head in pair(torch.float64, dropout_ratio=0))
    (got, gradients), (want, expected) = (
        evaluate(head, PYRAMIDS["75x101, odd"][0], torch.float64) for head in (ours, theirs)
    )
    assert_close(got, want, 1e-11, "logits")
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], 1e-9, name)


def test_checkpoints_interchange_and_seeds_give_the_same_weights():
    states = []
    for name in ("mixtransfer.UPerHead", THEIRS):
        torch.manual_seed(3)
        head = mmseg.registry.MODELS.build({**HEAD, "type": name})
        head.init_weights()
        states.append((head, head.state_dict()))
    (ours, mine), (theirs, other) = states
    assert list(mine) == list(other)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    fresh = {name: torch.rand_like(value.float()).to(value.dtype) for name, value in mine.items()}
    ours.load_state_dict(fresh, strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert all(torch.equal(value, fresh[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    "options", [dict(conv_cfg=dict(type="ConvWS")), dict(conv_cfg=dict(type="Conv2dAdaptivePadding"))]
)
def test_other_convolutions_run_as_in_mmseg(options):
    ours, theirs = pair(**options)
    assert not any(isinstance(module, PyramidConv2d) for module in ours.modules())
    maps = pyramid(PYRAMIDS["64x64"][0])
    assert torch.equal(ours(maps), theirs(maps))


@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=1, padding=1),
        dict(kernel_size=5, padding=2),
        dict(padding=2, dilation=2),
        dict(padding=1, groups=2),
        dict(padding=1, stride=2),
        dict(padding=0),
        dict(padding=1, padding_mode="reflect"),
        dict(padding="same"),
    ],
    ids=str,
)
def test_only_plain_convolutions_are_replaced(options):
    assert PyramidConv2d.can_replace(nn.Conv2d(4, 4, 3, padding=1))
    assert not PyramidConv2d.can_replace(nn.Conv2d(4, 4, **{"kernel_size": 3, **options}))


def test_a_replaced_fusion_and_a_folded_norm_run_as_in_mmseg():
    ours, theirs = pair()
    maps = pyramid(PYRAMIDS["64x64"][0])
    for head in (ours, theirs):
        for module in head.modules():
            if isinstance(module, ConvModule):
                module.turn_on_efficient_conv_bn_eval()
    assert_close(ours(maps), theirs(maps), 1e-6, "norms folded into the convolutions")
    ours.fpn_bottleneck = theirs.fpn_bottleneck = ConvModule(64, 16, 3, padding=2, dilation=2)
    assert_close(ours(maps), theirs(maps), 1e-6, "dilated fusion")


@pytest.mark.long
def test_compiles_at_two_sizes():
    ours, theirs = pair()
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, backend=graphs)
    for name in ("64x64", "75x101, odd"):
        maps = pyramid(PYRAMIDS[name][0])
        got, want = compiled(maps), theirs(maps)
        assert_close(got, want, 1e-6, name)
        gradients = [torch.autograd.grad(x.square().sum(), maps) for x in (got, want)]
        for a, b in zip(*gradients, strict=True):
            assert_close(a, b, 1e-5, name)
    assert graphs.frame_count == 2
    compiled(pyramid([(24, 30), (12, 15), (6, 8), (3, 4)]))
    assert graphs.frame_count == 2


def test_autocast_runs_close_to_float32():
    ours, theirs = pair()
    maps = pyramid(PYRAMIDS["64x64"][0])
    want = theirs(maps)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(head(maps).float() - want).abs().mean() / want.std() for head in (ours, theirs)]
    assert errors[0] < 0.02
    assert errors[0] < 1.5 * errors[1]


def test_half_precision_weights():
    ours, theirs = pair(torch.bfloat16)
    maps = pyramid(PYRAMIDS["64x64"][0], torch.bfloat16)
    got, want = ours(maps), theirs(maps)
    assert got.dtype == torch.bfloat16
    assert (got - want).float().abs().mean() < 0.02 * want.float().std()


def test_matrices_of_few_sizes_are_kept():
    conv = PyramidConv2d(nn.Conv2d(64, 1, 3, padding=1), align_corners=False)
    for side in range(2, 42):
        with torch.inference_mode():
            conv([torch.randn(1, 32, side, side), torch.randn(1, 32, -(-side // 2), -(-side // 2))])
    assert 0 < _kept_matrices.cache_info().currsize <= 16
    # What inference left behind serves training.
    level = torch.randn(1, 32, 21, 21, requires_grad=True)
    conv([torch.randn(1, 32, 41, 41), level]).sum().backward()
    assert level.grad.isfinite().all()


def test_heads_are_imported_when_a_name_is_looked_up():
    code = """
import sys
from mixtransfer.registry import MODELS
from mmengine.registry import MODELS as root
import mixtransfer.transfer
root.get("mixtransfer.SwinTransformer")
libraries = {"mmseg.models", "mmdet.models"}
assert not libraries & set(sys.modules)
print(root.get("mixtransfer.UPerHead"), root.get("mixtransfer.HorFPN"))
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    head = "<class 'mixtransfer.transfer.uper_head.UPerHead'>"
    neck = "<class 'mixtransfer.transfer.hornet_heads.HorFPN'>"
    assert run.stdout.splitlines()[-1] == f"{head} {neck}"
