"""Copy-paste with a jitter of scales: the partner, resized from its corner, with all of its ground truth."""

from __future__ import annotations

import pytest
import torch
from hooked_models import SIZE, Recorder, attach, det_batch, step

from mixtransfer.errors import UserError
from mixtransfer.mixing import InstanceRegion
from mixtransfer.transfer import TokenMixHook
from mixtransfer.transfer.dense_mixing import GroundTruth, ground_truth, rescaled


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_everything_is_resized_alike(scale):
    """A white box on black: where the image is white, the mask is set and the box ends."""
    valid = (48, 64)
    image, mask = torch.zeros(3, SIZE, SIZE), torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    image[:, 8:24, 16:40], mask[:, 8:24, 16:40] = 1, 1
    maps = {"gt_sem_seg": {"data": mask.long() * 7}}
    truth = GroundTruth(
        valid, maps, {"gt_instances": {"bboxes": torch.tensor([[16.0, 8, 40, 24]])}}, {"gt_instances": mask}
    )
    resized, found, placed = rescaled(image, truth, maps, scale)
    top, bottom, left, right = (min(round(side * scale), SIZE) for side in (8, 24, 16, 40))
    expected = torch.zeros(SIZE, SIZE)
    expected[top:bottom, left:right] = 1
    if scale == 1:
        assert torch.equal(resized, image)
    inner = expected[top + 1 : bottom - 1, left + 1 : right - 1]
    assert torch.equal(resized[0, top + 1 : bottom - 1, left + 1 : right - 1], inner)
    assert (resized[0] > 0.5).eq(expected.bool()).float().mean() > 0.97
    assert torch.equal(found.masks["gt_instances"][0].float(), expected)
    assert torch.equal(placed["gt_sem_seg"]["data"][0], expected.long() * 7)
    assert found.instances["gt_instances"]["bboxes"].tolist() == [[left, top, right, bottom]]
    assert found.valid == (min(round(48 * scale), SIZE), min(round(64 * scale), SIZE))


def test_what_leaves_the_image_is_gone():
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    mask[:, 50:60, 50:60] = 1
    truth = GroundTruth(
        (SIZE, SIZE), {}, {"gt_instances": {"bboxes": torch.tensor([[50.0, 50, 60, 60]])}}, {"gt_instances": mask}
    )
    _, found, _ = rescaled(torch.zeros(3, SIZE, SIZE), truth, {}, 2.0)
    assert not found.masks["gt_instances"].any() and found.crops("gt_instances", (SIZE, SIZE))[0].count == 0


@pytest.mark.parametrize("masks", [True, False])
def test_pasted_instances_are_those_of_the_resized_partner(masks):
    images, samples = det_batch((2, 3), masks)
    model = Recorder()
    hook = attach(model, dict(type="InstanceRegion", share=1.0, jitter=(0.5, 0.5)), loss_weight=0, min_pixels=1)
    step(model, (images, samples), hook)
    mixed, given, _ = model.given
    for i in range(2):
        other = ground_truth(samples[1 - i], (SIZE, SIZE))
        image, truth, _ = rescaled(images[1 - i], other, {}, 0.5)
        region = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        for crop in truth.crops("gt_instances", truth.valid):
            region[crop.area] |= (
                torch.ones(1, dtype=torch.bool) if crop.pixels is None else torch.from_numpy(crop.pixels)
            )
        assert region.any() and not region[SIZE // 2 :].any() and not region[:, SIZE // 2 :].any()
        assert torch.equal(mixed[i], torch.where(region, image, images[i]))
        pasted = len(truth.instances["gt_instances"]["bboxes"])
        boxes = given[i].gt_instances.bboxes[-pasted:]
        torch.testing.assert_close(boxes, truth.instances["gt_instances"]["bboxes"])
        if masks:
            found = torch.from_numpy(given[i].gt_instances.masks.to_ndarray()[-pasted:])
            assert torch.equal(found.bool(), truth.masks["gt_instances"].bool())
    # The loader's samples are as they were.
    again = det_batch((2, 3), masks)
    assert all(
        torch.equal(a.gt_instances.bboxes, b.gt_instances.bboxes) for a, b in zip(samples, again[1], strict=True)
    )


def test_factors_differ_between_images_and_repeat_with_the_iteration():
    seen = []
    for iteration in (0, 0, 1):
        model = Recorder()
        hook = attach(model, dict(type="InstanceRegion", share=1.0, jitter=(0.3, 1.5)), loss_weight=0)
        step(model, det_batch((2, 3)), hook, iteration)
        seen.append(model.given[0])
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("jitter", [(0, 1), (2, 1), (1, 2, 3)])
def test_bounds_that_are_none_are_one_line(jitter):
    with pytest.raises(UserError, match="give two factors above 0"):
        InstanceRegion(jitter=jitter)


def test_it_is_refused_inside_a_choice():
    choice = dict(type="RandomChoice", regions=[dict(type="InstanceRegion", jitter=(0.5, 2)), dict(type="TokenBox")])
    with pytest.raises(UserError, match="jitter works alone"):
        TokenMixHook(choice)
