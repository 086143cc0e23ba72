"""The loss in bands is mmseg's loss of upsampled logits: values, accuracy and gradients."""

from __future__ import annotations

import copy
import math

import mmseg.registry
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mixtransfer.transfer import pixel_loss

CLASSES, IGNORED = 7, 255
HEAD = dict(type="mmseg.FCNHead", in_channels=5, in_index=0, channels=6, num_convs=1)
HEAD |= dict(num_classes=CLASSES, dropout_ratio=0)
#: Sizes of logits and labels.
SIZES = {
    "times 4": ((9, 11), (36, 44)),
    "odd": ((9, 11), (35, 50)),
    "as they are": ((9, 11), (9, 11)),
    "smaller": ((9, 11), (5, 7)),
    "one row": ((1, 1), (6, 5)),
}


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Labels of these sizes fit into one band otherwise."""
    monkeypatch.setattr(pixel_loss, "BAND_VALUES", 3 * 44 * CLASSES)


def truth(size, batch=2):
    labels = torch.randint(CLASSES, (batch, 1, *size))
    labels[0, :, size[0] // 2 :] = IGNORED
    return [SegDataSample(gt_sem_seg=PixelData(data=x)) for x in labels]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "large"), SIZES.values(), ids=SIZES)
def test_loss_and_gradient_are_exact(small, large, align_corners):
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, CLASSES, *small, dtype=torch.float64)).requires_grad_()
    labels = torch.cat([sample.gt_sem_seg.data for sample in truth(large)])
    total, right = pixel_loss.UpsampledCrossEntropy.apply(logits, labels, IGNORED, align_corners, True)
    wide = F.interpolate(logits, large, mode="bilinear", align_corners=align_corners)
    want = F.cross_entropy(wide, labels, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(total, want, rtol=1e-12, atol=0)
    assert right == (wide.argmax(dim=1) == labels).sum()
    found, expected = (torch.autograd.grad(0.3 * x, logits)[0] for x in (total, want))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * expected.abs().max())


@pytest.mark.parametrize(
    "loss",
    [
        dict(),
        dict(avg_non_ignore=True, loss_weight=0.4, loss_name="loss_other"),
        dict(class_weight=[1.0, 2.0, 1.0, 1.0, 0.5, 1.0, 1.0]),
        dict(use_sigmoid=True),
    ],
    ids=str,
)
def test_a_head_has_mmsegs_losses(loss, monkeypatch):
    torch.manual_seed(0)
    head = mmseg.registry.MODELS.build({**HEAD, "loss_decode": dict(type="mmseg.CrossEntropyLoss", **loss)})
    banded, calls = pixel_loss.UpsampledCrossEntropy.apply, []
    monkeypatch.setattr(pixel_loss.UpsampledCrossEntropy, "apply", lambda *args: calls.append(1) or banded(*args))
    maps, samples = [torch.randn(2, 5, 9, 11)], truth((36, 44))
    found = pixel_loss.head_losses(head, maps, samples, {})
    want = head.loss(maps, samples, {})
    assert len(calls) == (not {"class_weight", "use_sigmoid"} & loss.keys())
    assert found.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=0)
    (name,) = (name for name in want if name.startswith("loss"))
    gradients = [torch.autograd.grad(losses[name], list(head.parameters())) for losses in (found, want)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=float(1e-5 * theirs.abs().max()))


def test_labels_that_are_all_ignored_or_wrong():
    head = mmseg.registry.MODELS.build(copy.deepcopy(HEAD))
    samples = truth((36, 44))
    for sample in samples:
        sample.gt_sem_seg.data[:] = IGNORED
    losses = pixel_loss.head_losses(head, [torch.randn(2, 5, 9, 11)], samples, {})
    assert losses["loss_ce"] == 0
    losses["loss_ce"].backward()
    assert all(not parameter.grad.any() for parameter in head.parameters())
    samples[0].gt_sem_seg.data[0, 0, 0] = CLASSES
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        pixel_loss.head_losses(head, [torch.randn(2, 5, 9, 11)], samples, {})
    samples[0].gt_sem_seg.data[0, 0, 0] = 0
    losses = pixel_loss.head_losses(head, [torch.full((2, 5, 9, 11), math.nan)], samples, {})
    assert losses["loss_ce"].isnan()


def test_outside_of_float32_on_cpu_the_head_computes_its_loss():
    torch.manual_seed(0)
    head = mmseg.registry.MODELS.build(copy.deepcopy(HEAD))
    maps, samples = [torch.randn(2, 5, 9, 11)], truth((36, 44))
    with torch.autocast("cpu", torch.bfloat16):
        found, want = pixel_loss.head_losses(head, maps, samples, {}), head.loss(maps, samples, {})
    assert all(torch.equal(found[name], want[name]) for name in want)
