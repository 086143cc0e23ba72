"""RoIAlign as a sparse matrix gives what torchvision's kernel gives, forward and backward, through mmcv's function."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from mixtransfer.compat import mmcv_ops
from mixtransfer.compat.ops import regions
from mixtransfer.compat.ops.sparse_roi_align import BinMatrix

mmcv_ops.install()

from mmcv.ops import RoIAlign, roi_align  # noqa: E402

SIZE, SCALE, BINS, CHANNELS = (21, 34), 0.25, (7, 5), 32
#: In pixels of an image of 84 × 136, to the image of the batch: empty, turned over, outside, beyond, thin.
ODD = [
    [0, 10, 10, 10, 10],
    [1, 20, 20, 10, 10],
    [0, -50, -50, -10, -10],
    [1, 500, 500, 600, 600],
    [0, 0, 0, 136, 84],
    [1, -4, -4, 140, 90],
    [0, 12, 0, 12, 40],
    [0, -8, 8, 20, 20],
    [1, 100, 3, 135.5, 3.5],
]
EXACT = {torch.float32: 2e-5, torch.float64: 1e-12}


def boxes(dtype, count=40):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * torch.tensor([150.0, 100.0], dtype=dtype) - 10
    sides = torch.rand(count, 2, generator=generator, dtype=dtype) * 60
    images = torch.randint(2, (count, 1), generator=generator).to(dtype)
    return torch.cat([torch.cat([images, corner, corner + sides], dim=1), torch.tensor(ODD, dtype=dtype)])


@pytest.fixture
def matrices(monkeypatch):
    """The matrices that were made."""
    made, of = [], BinMatrix.of
    monkeypatch.setattr(BinMatrix, "of", classmethod(lambda cls, *args: made.append(of(*args)) or made[-1]))
    return made


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_means_and_gradients_are_torchvisions(aligned, sampling_ratio, dtype, matrices):
    torch.manual_seed(1)
    maps = torch.randn(2, CHANNELS, *SIZE, dtype=dtype, requires_grad=True)
    rois = boxes(dtype)
    got = roi_align(maps, rois, BINS, SCALE, sampling_ratio, "avg", aligned)
    upstream = torch.randn_like(got)
    (gradient,) = torch.autograd.grad(got, maps, upstream)
    settings = (SCALE, *BINS, sampling_ratio, aligned)
    expected = torch.ops.torchvision.roi_align(maps.detach(), rois, *settings)
    wanted = torch.ops.torchvision._roi_align_backward(
        upstream, rois, *settings[:3], *maps.shape, sampling_ratio, aligned
    )
    assert [matrix is not None for matrix in matrices] == [True, True]
    assert expected.abs().sum(dim=(1, 2, 3)).count_nonzero() > 40
    torch.testing.assert_close(got, expected, rtol=0, atol=EXACT[dtype])
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=EXACT[dtype])


def test_gradients_are_those_of_differences(monkeypatch):
    monkeypatch.setattr(regions, "FEW_CHANNELS", 1)
    maps = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1, 2, 14, 11], [0, 5, 0, 30, 9]], dtype=torch.float64)
    assert gradcheck(lambda x: roi_align(x, rois, (2, 3), SCALE, 0, "avg", True), maps)


def test_channels_last_maps_and_no_region_at_all(matrices):
    layer = RoIAlign(BINS, SCALE)
    maps = torch.randn(2, CHANNELS, *SIZE).to(memory_format=torch.channels_last).requires_grad_()
    expected = torch.ops.torchvision.roi_align(maps.detach().contiguous(), boxes(torch.float32), SCALE, *BINS, 0, True)
    torch.testing.assert_close(layer(maps, boxes(torch.float32)), expected, rtol=0, atol=2e-5)
    nothing = layer(maps, torch.zeros(0, 5))
    assert nothing.shape == (0, CHANNELS, *BINS)
    (gradient,) = torch.autograd.grad(nothing.sum(), maps)
    assert not gradient.any()


@pytest.mark.parametrize("far", [1e9, float("nan")])
def test_a_box_that_needs_too_many_samples_is_the_kernels(far):
    rois = torch.tensor([[0, 0, 0, far, 40.0]])
    assert BinMatrix.of(rois, SIZE, BINS, SCALE, 0, True) is None


def test_half_precision_is_computed_in_float32():
    maps, rois = torch.randn(1, CHANNELS, *SIZE).bfloat16(), torch.tensor([[0, 3, 5, 90.0, 70.0]])
    got = roi_align(maps, rois.bfloat16(), BINS, SCALE, 0, "avg", True)
    expected = torch.ops.torchvision.roi_align(maps.float(), rois.bfloat16().float(), SCALE, *BINS, 0, True)
    assert torch.equal(got, expected.bfloat16())
