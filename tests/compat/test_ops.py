"""The ops that mmdet and mmseg call, through mmcv's own functions, against plain loops and torch's convolutions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from mixtransfer.compat import mmcv_ops
from mixtransfer.compat.ops.convolutions import (
    carafe_naive_backward,
    masked_col2im_forward,
    masked_im2col_forward,
)
from mixtransfer.compat.ops.suppression import bbox_overlaps

mmcv_ops.install()

from mmcv import ops  # noqa: E402
from mmcv.ops.carafe import carafe, carafe_naive  # noqa: E402
from mmcv.ops.masked_conv import masked_conv2d  # noqa: E402
from mmcv.ops.multi_scale_deform_attn import (  # noqa: E402
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

DOUBLE = dict(dtype=torch.float64)


def overlap(a, b, offset=0):
    shared = 1.0
    for axis in (0, 1):
        shared *= max(min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis]) + offset, 0)
    areas = [(x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b)]
    return shared / (sum(areas) - shared)


def crowd(count=40):
    rng = np.random.default_rng(5)
    corner, extent = rng.uniform(0, 40, (count, 2)), rng.uniform(5, 30, (count, 2))
    return np.concatenate([corner, corner + extent], axis=1), rng.permutation(count) / count + 0.01


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms_lowers_scores_one_box_at_a_time(method, offset):
    boxes, scores = crowd()
    left, rest = [], list(range(len(boxes)))
    values = dict(enumerate(scores))
    while rest:
        best = max(rest, key=values.get)
        left.append((best, values[best]))
        rest.remove(best)
        for i in rest:
            o = overlap(boxes[best], boxes[i], offset)
            if method == "gaussian":
                values[i] *= math.exp(-(o**2) / 0.5)
            elif o >= 0.3:
                values[i] *= 0 if method == "naive" else 1 - o
        rest = [i for i in rest if values[i] >= 0.05]
    dets, indices = ops.soft_nms(torch.tensor(boxes), torch.tensor(scores), 0.3, 0.5, 0.05, method, offset)
    assert indices.tolist() == [i for i, _ in left]
    np.testing.assert_allclose(dets[:, 4], [value for _, value in left], rtol=1e-9)
    np.testing.assert_allclose(dets[:, :4], boxes[indices])


def test_nms_match_groups_boxes_under_the_one_that_suppresses_them():
    boxes, scores = crowd()
    order, groups = sorted(range(len(boxes)), key=lambda i: -scores[i]), []
    while order:
        first, *rest = order
        matched = [i for i in rest if overlap(boxes[first], boxes[i]) >= 0.4]
        groups.append([first, *matched])
        order = [i for i in rest if i not in matched]
    found = ops.nms_match(torch.tensor(np.column_stack([boxes, scores])), 0.4)
    assert [group.tolist() for group in found] == groups


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_overlaps_on_a_device_are_those_of_mmcvs_cpu_code(mode, aligned):
    first, second = torch.tensor(crowd(12)[0]), torch.tensor(crowd(24)[0][12:])
    ious = torch.zeros(12) if aligned else torch.zeros(12, 12)
    bbox_overlaps(first, second, ious, mode=int(mode == "iof"), aligned=aligned, offset=0)
    expected = ops.bbox_overlaps(first, second, mode, aligned)
    torch.testing.assert_close(ious, expected.float())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_losses_are_their_formulas(gamma, weighted):
    logits = torch.randn(6, 4, **DOUBLE).mul(3).requires_grad_()
    target = torch.tensor([0, 3, 1, 4, 4, 2])
    weight = torch.rand(4, **DOUBLE) + 0.5 if weighted else None
    found = ops.sigmoid_focal_loss(logits, target, gamma, 0.25, weight, "none")
    for n in range(6):
        for c in range(4):
            p = 1 / (1 + math.exp(-logits[n, c].item()))
            value = -0.25 * (1 - p) ** gamma * math.log(p) if target[n] == c else -0.75 * p**gamma * math.log(1 - p)
            value *= weight[target[n]].item() if weighted and target[n] < 4 else 1
            assert found[n, c].item() == pytest.approx(value, rel=1e-9)
    assert gradcheck(lambda x: ops.sigmoid_focal_loss(x, target, gamma, 0.25, weight, "sum"), (logits,))

    target = torch.tensor([0, 3, 1, 2, 0, 2])
    found = ops.softmax_focal_loss(logits, target, gamma, 0.25, weight, "none")
    p = logits.softmax(dim=1)[torch.arange(6), target]
    expected = -0.25 * (1 - p) ** gamma * p.log() * (weight[target] if weighted else 1)
    torch.testing.assert_close(found, expected)
    # mmcv's function multiplies by the gradient of a scalar, so that only reduced losses have one.
    assert gradcheck(lambda x: ops.softmax_focal_loss(x, target, gamma, 0.25, weight, "mean"), (logits,))


ROIS = [(0, 1.2, 0.7, 9.9, 7.1), (1, 3.0, 2.0, 3.0, 2.0), (1, -4.0, -3.0, 5.0, 4.0), (0, 30.0, 30.0, 40.0, 40.0)]


def test_roi_pool_takes_the_largest_pixel_of_each_bin():
    maps = torch.randn(2, 3, 7, 9, **DOUBLE, requires_grad=True)
    rois = torch.tensor(ROIS, **DOUBLE)
    found = ops.RoIPool((2, 3), 0.8)(maps, rois)
    for n, (batch, x1, y1, x2, y2) in enumerate(ROIS):
        x1, y1, x2, y2 = 0.8 * x1, 0.8 * y1, 0.8 * (x2 + 1), 0.8 * (y2 + 1)
        for i in range(2):
            for j in range(3):
                ys, xs = y1 + (y2 - y1) / 2 * np.array([i, i + 1]), x1 + (x2 - x1) / 3 * np.array([j, j + 1])
                rows = range(max(math.floor(ys[0]), 0), min(math.ceil(ys[1]), 7))
                columns = range(max(math.floor(xs[0]), 0), min(math.ceil(xs[1]), 9))
                inside = [maps[batch, :, r, c] for r in rows for c in columns]
                expected = torch.stack(inside).amax(dim=0) if inside else torch.zeros(3, **DOUBLE)
                torch.testing.assert_close(found[n, :, i, j], expected)
    assert gradcheck(lambda x: ops.roi_pool(x, rois, (2, 3), 0.8), (maps,))


@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_by_maximum_takes_the_largest_sample(aligned, sampling):
    maps = torch.randn(2, 3, 7, 9, **DOUBLE, requires_grad=True)
    rois = torch.tensor(ROIS, **DOUBLE)
    layer = ops.RoIAlign((2, 3), 0.8, sampling, "max", aligned)
    found = layer(maps, rois)
    # One bin a sample: the mean of one is the sample itself.
    for n, roi in enumerate(ROIS):
        counts = [sampling, sampling]
        if not sampling:
            sides = [0.8 * (roi[4] - roi[2]), 0.8 * (roi[3] - roi[1])]
            sides = sides if aligned else [max(side, 1) for side in sides]
            counts = [math.ceil(sides[0] / 2), math.ceil(sides[1] / 3)]
        if 0 in counts:
            assert not found[n].any()
            continue
        fine = ops.RoIAlign((2 * counts[0], 3 * counts[1]), 0.8, 1, "avg", aligned)(maps, rois[n : n + 1])[0]
        largest = F.max_pool2d(fine, (counts[0], counts[1]))
        torch.testing.assert_close(found[n], largest)
    sound = rois[[0, 2]]
    assert gradcheck(lambda x: layer(x, sound), (maps,))


def test_deformable_roi_pooling_moves_the_samples_of_a_bin():
    maps = torch.randn(2, 3, 7, 9, **DOUBLE, requires_grad=True)
    rois = torch.tensor(ROIS[:1], **DOUBLE)
    plain = ops.deform_roi_pool(maps, rois, None, (2, 2), 0.8, 2, 0.1)
    torch.testing.assert_close(plain, ops.RoIAlign((2, 2), 0.8, 2, "avg", True)(maps, rois))
    sides = 0.8 * (ROIS[0][3] - ROIS[0][1]), 0.8 * (ROIS[0][4] - ROIS[0][2])
    offset = torch.zeros(1, 2, 2, 2, **DOUBLE)
    offset[0, 0], offset[0, 1] = 1.0 / (0.1 * sides[0]), -1.0 / (0.1 * sides[1])  # a pixel right, a pixel up
    moved = ops.deform_roi_pool(maps, rois, offset, (2, 2), 0.8, 2, 0.1)
    shifted = F.pad(maps, (0, 1, 1, 0), "replicate")[:, :, :-1, 1:]
    expected = ops.RoIAlign((2, 2), 0.8, 2, "avg", True)(shifted, rois)
    torch.testing.assert_close(moved[..., 1:, :1], expected[..., 1:, :1])
    offset = (0.3 * torch.randn(1, 2, 2, 2, **DOUBLE)).requires_grad_()
    assert gradcheck(lambda x, o: ops.deform_roi_pool(x, rois, o, (2, 2), 0.8, 2, 0.1), (maps, offset))


def test_deformable_convolutions_without_offsets_are_plain_ones_and_have_gradients():
    x = torch.randn(2, 4, 6, 7, **DOUBLE, requires_grad=True)
    weight, bias = torch.randn(6, 2, 3, 3, **DOUBLE), torch.randn(6, **DOUBLE)
    settings = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    plain = F.conv2d(x, weight, None, groups=2, **settings)
    height, width = plain.shape[2:]
    offset = torch.zeros(2, 2 * 2 * 9, height, width, **DOUBLE)
    order = (*settings.values(), 2, 2)
    torch.testing.assert_close(ops.deform_conv2d(x, offset, weight, *order), plain)
    mask = torch.full((2, 2 * 9, height, width), 0.5, **DOUBLE)
    torch.testing.assert_close(
        ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *order), plain / 2 + bias[:, None, None]
    )
    offset = (0.4 * torch.randn(1, 2 * 9, 3, 3, **DOUBLE)).requires_grad_()
    small = torch.randn(1, 2, 3, 3, **DOUBLE, requires_grad=True)
    kernel = torch.randn(2, 2, 3, 3, **DOUBLE, requires_grad=True)
    assert gradcheck(lambda *a: ops.deform_conv2d(*a, 1, 1), (small, offset, kernel))
    mask = torch.rand(1, 9, 3, 3, **DOUBLE, requires_grad=True)
    bias = torch.randn(2, **DOUBLE, requires_grad=True)
    assert gradcheck(lambda *a: ops.modulated_deform_conv2d(*a, 1, 1), (small, offset, mask, kernel, bias))


def test_masked_convolution_computes_the_chosen_pixels():
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    x, mask = torch.randn(1, 3, 6, 7), torch.rand(1, 6, 7) > 0.6
    with torch.no_grad():
        found = masked_conv2d(x, mask.float(), layer.weight, layer.bias, (1, 1), (1, 1))
        # mmcv takes the cheap way of masking on a CPU; the op itself is what a GPU gets.
        rows, columns = mask[0].nonzero(as_tuple=True)
        data = torch.zeros(27, len(rows))
        masked_im2col_forward(x, rows, columns, data, kernel_h=3, kernel_w=3, pad_h=1, pad_w=1)
        out = torch.zeros(1, 5, 6, 7)
        product = layer.weight.flatten(1) @ data + layer.bias[:, None]
        masked_col2im_forward(product, rows, columns, out, height=6, width=7, channels=5)
        expected = layer(x) * mask[:, None]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(out, expected)


def test_carafe_gives_each_output_pixel_its_own_kernel():
    x = torch.randn(2, 4, 3, 4, **DOUBLE, requires_grad=True)
    masks = torch.rand(2, 2 * 9, 6, 8, **DOUBLE, requires_grad=True)
    expected = torch.zeros(2, 4, 6, 8, **DOUBLE)
    padded = F.pad(x, (1, 1, 1, 1))
    for c in range(4):
        for i in range(6):
            for j in range(8):
                patch = padded[:, c, i // 2 : i // 2 + 3, j // 2 : j // 2 + 3].flatten(1)
                group = c // 2
                expected[:, c, i, j] = (patch * masks[:, 9 * group : 9 * group + 9, i, j]).sum(dim=1)
    for function in (carafe, carafe_naive):
        torch.testing.assert_close(function(x, masks, 3, 2, 2), expected)
    # mmcv's functions refuse a backward pass on CPU by themselves, so the op is called beside them.
    grad, grads = torch.randn_like(expected), [torch.zeros_like(x), torch.zeros_like(masks)]
    carafe_naive_backward(grad, x, masks, *grads, kernel_size=3, group_size=2, scale_factor=2)
    for found, wanted in zip(grads, torch.autograd.grad(expected, (x, masks), grad), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["collect", "distribute"])
def test_psa_masks_are_put_where_their_pixels_are(kind):
    masks = torch.randn(2, 5 * 3, 3, 4, **DOUBLE, requires_grad=True)
    found = ops.PSAMask(kind, (5, 3))(masks)
    expected = torch.zeros(2, 12, 3, 4, **DOUBLE)
    for h in range(3):
        for w in range(4):
            for i in range(5):
                for j in range(3):
                    y, x = h + i - 2, w + j - 1
                    if not (0 <= y < 3 and 0 <= x < 4):
                        continue
                    value = masks[:, i * 3 + j, h, w]
                    if kind == "collect":
                        expected[:, y * 4 + x, h, w] = value
                    else:
                        expected[:, h * 4 + w, y, x] = value
    torch.testing.assert_close(found, expected)
    assert gradcheck(lambda m: ops.PSAMask(kind, (5, 3))(m), (masks,))


def test_multi_scale_deformable_attention_is_mmcvs_own_in_pytorch():
    shapes = torch.tensor([(3, 4), (2, 2)])
    value = torch.randn(2, 16, 2, 3, **DOUBLE, requires_grad=True)
    places = torch.rand(2, 3, 2, 2, 2, 2, **DOUBLE, requires_grad=True)
    weights = torch.rand(2, 3, 2, 2, 2, **DOUBLE, requires_grad=True)
    start = torch.tensor([0, 12])
    found = MultiScaleDeformableAttnFunction.apply(value, shapes, start, places, weights, 64)
    torch.testing.assert_close(found, multi_scale_deformable_attn_pytorch(value, shapes, places, weights))
    assert gradcheck(
        lambda v, p, w: MultiScaleDeformableAttnFunction.apply(v, shapes, start, p, w, 64), (value, places, weights)
    )


def test_offsets_of_a_larger_map_are_read_by_their_memory():
    """DyHead's blocks hand over those of the level below; mmcv's kernel walks through them in steps of its output."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 5, 6, **DOUBLE), torch.randn(3, 4, 3, 3, **DOUBLE)
    offset, mask = torch.randn(2, 18, 10, 12, **DOUBLE), torch.rand(2, 9, 10, 12, **DOUBLE)
    inputs = [x.requires_grad_(), offset.requires_grad_(), mask.requires_grad_()]
    out = ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1, 1, 1, 1)
    read = [
        torch.stack([image.reshape(-1)[: count * 30].view(count, 5, 6) for image in values])
        for values, count in ((offset, 18), (mask, 9))
    ]
    expected = ops.modulated_deform_conv2d(x, read[0], read[1], weight, None, 1, 1, 1, 1, 1)
    assert torch.equal(out, expected)
    upstream = torch.randn_like(out)
    got, wanted = (torch.autograd.grad(value, inputs, upstream) for value in (out, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)
