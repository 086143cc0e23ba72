"""``mixtransfer.compat.mmcv_ops`` against plain loops, through the functions of mmcv that detectors call."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from mixtransfer.compat import mmcv_ops as ops
from mixtransfer.compat.ops import suppression
from mixtransfer.errors import UserError

ops.install()

import mmcv  # noqa: E402
from mmcv.ops import RoIAlign, batched_nms, box_iou_rotated, nms  # noqa: E402

# (batch index, x1, y1, x2, y2) in pixels of an image of 96 x 56 pixels
ROIS = [
    (0, 3.3, 4.1, 50.7, 41.9),
    (1, 20.2, 8.5, 23.1, 50.4),
    (1, 61.5, 30.2, 61.9, 30.5),  # within one pixel of the map
    (0, 40.0, 20.0, 40.0, 20.0),  # no area
    (1, -30.5, -22.3, 18.4, 12.6),  # leaves the image at the top left
    (0, 80.1, 40.3, 170.9, 99.2),  # leaves it at the bottom right
    (0, 200.0, 150.0, 260.0, 190.0),  # outside
    (1, 0.0, 0.0, 96.0, 56.0),
]


def plain_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float, offset: int = 0) -> list[int]:
    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1 + offset, 0) * max(y2 - y1 + offset, 0)

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for j in kept:
            a, b = boxes[i], boxes[j]
            shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
            if shared / (area(*a) + area(*b) - shared) > threshold:
                break
        else:
            kept.append(i)
    return kept


def pooling_weights(
    roi: tuple[float, ...], size: tuple[int, int], bins: tuple[int, int], scale: float, sampling: int, aligned: bool
) -> np.ndarray:
    """Return (bin rows, bin columns, H, W): the share of each pixel of the map in each bin of ``roi``."""
    weights = np.zeros((*bins, *size))
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (c * scale - shift for c in roi[1:])
    extent = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
    step = [e / b for e, b in zip(extent, bins, strict=True)]
    samples = [sampling or math.ceil(s) for s in step]
    for row, column in np.ndindex(*bins):
        for i, j in np.ndindex(*samples):
            y = y1 + (row + (i + 0.5) / samples[0]) * step[0]
            x = x1 + (column + (j + 0.5) / samples[1]) * step[1]
            if not (-1 <= y <= size[0] and -1 <= x <= size[1]):
                continue
            y, x = min(max(y, 0), size[0] - 1), min(max(x, 0), size[1] - 1)
            for v in {math.floor(y), math.ceil(y)}:
                for u in {math.floor(x), math.ceil(x)}:
                    share = (1 - abs(y - v)) * (1 - abs(x - u))
                    weights[row, column, v, u] += share / (samples[0] * samples[1])
    return weights


@pytest.fixture
def boxes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """80 crowded boxes with their scores and classes."""
    rng = np.random.default_rng(3)
    corner, extent = rng.uniform(0, 60, (80, 2)), rng.uniform(5, 40, (80, 2))
    values = np.concatenate([corner, corner + extent], 1), rng.permutation(80) / 80
    return *(torch.tensor(x, dtype=torch.float32) for x in values), torch.tensor(rng.integers(0, 3, 80))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
def test_nms_keeps_what_a_plain_loop_keeps(boxes, threshold, offset):
    corners, scores, _ = boxes
    expected = plain_nms(corners.numpy(), scores.numpy(), threshold, offset)
    assert 1 < len(expected) < 80
    dets, kept = nms(corners, scores, threshold, offset=offset)
    assert kept.tolist() == expected
    assert torch.equal(dets, torch.cat([corners, scores[:, None]], 1)[expected])


def test_nms_offset_counts_the_last_pixel():
    # 4 x 9 of 9 x 9 is 0.44 as lengths, 5 x 10 of 10 x 10 is 0.5 as pixels
    corners, scores = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 4]]), torch.tensor([0.9, 0.8])
    assert nms(corners, scores, 0.47, offset=0)[1].tolist() == [0, 1]
    assert nms(corners, scores, 0.47, offset=1)[1].tolist() == [0]


def test_nms_options(boxes):
    corners, scores = (x.numpy() for x in boxes[:2])
    above = np.flatnonzero(scores > 0.4)
    expected = above[plain_nms(corners[above], scores[above], 0.3)][:4]
    dets, kept = nms(corners, scores, 0.3, score_threshold=0.4, max_num=4)
    assert isinstance(dets, np.ndarray)
    assert kept.tolist() == expected.tolist()
    dets, kept = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5) and kept.tolist() == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nms_of_16_bit_boxes(boxes, dtype):
    corners, scores = boxes[0].to(dtype), boxes[1]
    expected = plain_nms(corners.double().numpy(), scores.numpy(), 0.5)
    assert nms(corners, scores, 0.5)[1].tolist() == expected


@pytest.mark.parametrize("split_thr", [10000, 10], ids=["at once", "class by class"])
def test_batched_nms_suppresses_within_a_class(boxes, split_thr):
    corners, scores, classes = boxes
    expected: list[int] = []
    for k in range(3):
        members = torch.nonzero(classes == k)[:, 0]
        kept = plain_nms(corners[members].numpy(), scores[members].numpy(), 0.4)
        expected += members[kept].tolist()
    expected.sort(key=lambda i: -scores[i])
    assert expected != plain_nms(corners.numpy(), scores.numpy(), 0.4)

    config = dict(type="nms", iou_threshold=0.4, split_thr=split_thr)
    dets, kept = batched_nms(corners, scores, classes, config)
    assert kept.tolist() == expected
    assert torch.equal(dets, torch.cat([corners, scores[:, None]], 1)[expected])
    assert batched_nms(corners, scores, classes, dict(config, max_num=7))[1].tolist() == expected[:7]


def test_class_agnostic_nms_suppresses_across_classes(boxes):
    corners, scores, classes = boxes
    kept = batched_nms(corners, scores, classes, dict(type="nms", iou_threshold=0.4), class_agnostic=True)[1]
    assert kept.tolist() == plain_nms(corners.numpy(), scores.numpy(), 0.4)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("stride", [1, 4, 8])
def test_roi_align_and_its_gradient(aligned, sampling, stride):
    size, bins = (56 // stride, 96 // stride), (3, 5)
    rng = np.random.default_rng(stride)
    images, pulled = rng.standard_normal((2, 2, *size)), rng.standard_normal((len(ROIS), 2, *bins))
    expected, gradient = np.zeros_like(pulled), np.zeros_like(images)
    for r, roi in enumerate(ROIS):
        weights = pooling_weights(roi, size, bins, 1 / stride, sampling, aligned)
        expected[r] = np.einsum("ijhw,chw->cij", weights, images[roi[0]])
        gradient[roi[0]] += np.einsum("ijhw,cij->chw", weights, pulled[r])

    # features of a transformer are channels last
    features = torch.tensor(images).contiguous(memory_format=torch.channels_last).requires_grad_()
    layer = RoIAlign(bins, spatial_scale=1 / stride, sampling_ratio=sampling, aligned=aligned)
    pooled = layer(features, torch.tensor(ROIS, dtype=torch.float64))
    pooled.backward(torch.tensor(pulled))
    np.testing.assert_allclose(pooled.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(features.grad.numpy(), gradient, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_of_16_bit_features_keeps_the_boxes_exact(dtype, autocast):
    # in bfloat16 the box would begin at 600 or 604, and the ramp shows where it begins
    ramp = (torch.arange(1024.0) % 64).expand(1, 1, 8, 1024).to(dtype).requires_grad_()
    roi = (0, 602.3, 2.2, 606.9, 5.7)
    weights = pooling_weights(roi, (8, 1024), (2, 2), 1.0, 2, True)
    with torch.autocast("cpu", dtype, enabled=autocast):
        pooled = RoIAlign((2, 2), 1.0, 2)(ramp, torch.tensor([roi]))
    pooled.sum().backward()
    assert pooled.dtype == ramp.grad.dtype == dtype
    expected = torch.tensor(np.einsum("ijhw,hw->ij", weights, ramp[0, 0].detach().double().numpy()))
    torch.testing.assert_close(pooled[0, 0].double(), expected, rtol=torch.finfo(dtype).eps, atol=0)
    gradient = torch.tensor(weights.sum((0, 1)))
    torch.testing.assert_close(ramp.grad[0, 0].double(), gradient, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_roi_align_without_regions():
    features = torch.randn(2, 3, 8, 8, requires_grad=True)
    pooled = RoIAlign(7, 0.25)(features, torch.zeros(0, 5))
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("deterministic", [False, True])
def test_gpu_agrees_with_cpu(boxes, deterministic):
    corners, scores, _ = boxes
    assert nms(corners.cuda(), scores.cuda(), 0.4)[1].tolist() == nms(corners, scores, 0.4)[1].tolist()
    rois = torch.tensor(ROIS * 20)
    values, gradients = [], []
    torch.use_deterministic_algorithms(deterministic)
    try:
        for device in "cpu", "cuda":
            torch.manual_seed(0)
            features = torch.randn(2, 4, 14, 24).to(device).requires_grad_()
            values.append(RoIAlign(7, 0.25)(features, rois.to(device)))
            values[-1].backward(torch.ones_like(values[-1]))
            gradients.append(features.grad.cpu())
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(values[1].cpu(), values[0])
    torch.testing.assert_close(gradients[1], gradients[0], **(dict(rtol=0, atol=0) if deterministic else {}))


served = pytest.mark.skipif(
    getattr(sys.modules.get(ops.EXTENSION), "nms", None) is not suppression.nms, reason="mmcv has its own compiled ops"
)


@served
def test_a_missing_op_is_refused_when_it_is_called():
    remedy = r"pip install --no-build-isolation --no-binary onedl-mmcv"
    boxes = torch.tensor([[0.0, 0, 2, 2, 0.1]])
    with pytest.raises(UserError, match=f"the op 'box_iou_rotated' is missing, .*{remedy}"):
        box_iou_rotated(boxes, boxes)
    with pytest.raises(AttributeError, match=r"'mmcv\._ext' has no attribute '__file__'"):
        _ = sys.modules[ops.EXTENSION].__file__


@served
def test_install_twice_keeps_the_first_module():
    module = sys.modules[ops.EXTENSION]
    ops.install()
    assert sys.modules[ops.EXTENSION] is module
    # how mmcv's check_ops_exist looks
    assert importlib.util.find_spec(ops.EXTENSION).loader is not None


def test_compiled_ops_stay(monkeypatch, tmp_path):
    loaded = ModuleType(ops.EXTENSION)
    monkeypatch.setitem(sys.modules, ops.EXTENSION, loaded)
    ops.install()
    assert sys.modules[ops.EXTENSION] is loaded

    (tmp_path / "_ext.py").write_text("built = True\n")
    monkeypatch.setattr(mmcv.__spec__, "submodule_search_locations", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, ops.EXTENSION)
    ops.install()
    assert ops.EXTENSION not in sys.modules


@served
def test_a_torchvision_of_another_torch_is_named():
    # its library does not load, and torchvision swallows that
    code = """
import sys, torch
from mixtransfer.compat import mmcv_ops as ops
from mixtransfer.compat.ops import suppression
def load_library(path):
    raise OSError("undefined symbol")
torch.ops.load_library = load_library
ops.install()
assert "torchvision" not in sys.modules
try:
    sys.modules[ops.EXTENSION].nms
except ops.UserError as error:
    print(error)
    print("mmcv" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, imported_mmcv = done.stdout.splitlines()
    assert f"does not work with torch {torch.__version__}" in message
    assert "install a pair that belongs together" in message
    assert imported_mmcv == "False"
