"""What a mix does to label maps, instances and their boxes, on batches small enough to check by hand."""

import numpy as np
import pytest
import torch

import mixtransfer.registry  # noqa: F401  before mmdet, whose masks look for mmcv.ops when they are imported

# isort: split
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from mixtransfer.errors import UserError
from mixtransfer.mixing import (
    Box,
    ClassRegion,
    Draw,
    FourierBlobs,
    GaussianBlobs,
    GridHoles,
    InstanceRegion,
    MaskedCells,
    RandomChoice,
    RandomTokens,
    Region,
    TokenBlocks,
    TokenBox,
)
from mixtransfer.mixing.draws import step_generator
from mixtransfer.transfer.crops import Crop, draw_regions
from mixtransfer.transfer.dense_mixing import class_map, ground_truth, label_maps, mix_instances, partner_evidence
from mixtransfer.transfer.token_loss import token_loss, token_shares
from mixtransfer.transfer.token_mix_hook import _Kept, _mixed_sample

SIZE = (8, 12)
THINGS = 3


def area(top, bottom, left, right, size=SIZE):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def seg_sample(labels, valid=SIZE):
    sample = SegDataSample(metainfo=dict(img_shape=valid))
    sample.gt_sem_seg = PixelData(data=torch.as_tensor(labels)[None])
    return sample


def det_sample(boxes, labels, ignored=(), masks=True, valid=SIZE, canvas=SIZE):
    """Instances that fill their boxes (top, bottom, left, right)."""
    sample = DetDataSample(metainfo=dict(img_shape=valid))
    for key, group, names in (("gt_instances", boxes, labels), ("ignored_instances", ignored, [0] * len(ignored))):
        fields = dict(
            bboxes=torch.tensor([[x1, y1, x2, y2] for y1, y2, x1, x2 in group]).float().reshape(-1, 4),
            labels=torch.tensor(names, dtype=torch.long),
        )
        if masks:
            bitmaps = [area(*map(round, box), canvas).numpy().astype(np.uint8) for box in group]
            fields["masks"] = BitmapMasks(bitmaps, *canvas)
        setattr(sample, key, InstanceData(**fields))
    return sample


def mix(own, partner, pixels, min_share=0.0, min_pixels=0, size=SIZE):
    region = Crop.of(pixels.numpy())
    kept = [_Kept(torch.zeros(3, *size), ground_truth(sample, size), label_maps(sample)) for sample in (own, partner)]
    truths = [item.truth for item in kept]
    instances = mix_instances(own, *truths, region, size, min_share=min_share, min_pixels=min_pixels)
    mask = None if region.pixels is None else torch.from_numpy(region.pixels)
    return _mixed_sample(own, *kept, region, mask, instances)


def draw_pixels(region, cell_size, valid, size, generator, evidence=None):
    pixels = np.zeros((len(valid), *size), dtype=bool)
    for canvas, crop in zip(pixels, draw_regions(region, cell_size, valid, generator, evidence), strict=True):
        crop.paint(canvas, True)
    return torch.from_numpy(pixels)


def boxes(instances):
    return instances.bboxes.tolist()


def frozen(sample):
    """Return copies of everything in a detection sample."""
    return [
        (value.to_ndarray() if hasattr(value, "to_ndarray") else value.numpy()).copy()
        for element in (sample.gt_instances, sample.ignored_instances)
        for value in element.values()
    ]


def test_label_maps_are_pasted_pixel_by_pixel_with_their_ignored_pixels():
    own = torch.arange(96).view(8, 12).to(torch.uint8)
    own[0] = 255
    other = 100 + torch.arange(96).view(8, 12).to(torch.uint8)
    other[3, 3] = 255
    first, second = seg_sample(own.clone()), seg_sample(other.clone())
    pixels = area(2, 6, 3, 7)

    mixed = mix(first, second, pixels).gt_sem_seg.data

    expected = own.clone()
    for y in range(2, 6):
        for x in range(3, 7):
            expected[y, x] = other[y, x]
    assert mixed.dtype == torch.uint8 and torch.equal(mixed[0], expected)
    assert torch.equal(first.gt_sem_seg.data[0], own) and torch.equal(second.gt_sem_seg.data[0], other)


@pytest.mark.parametrize("masks", [True, False])
def test_what_a_larger_partner_has_beyond_the_image_is_cut_off(masks):
    """Batches of one are mixed with the one before, whose padded size may be another."""
    large = (12, 16)
    own = det_sample([(0, 2, 0, 2)], [0], masks=masks)
    partner = det_sample([(2, 11, 4, 15), (9, 12, 0, 4)], [1, 2], masks=masks, valid=large, canvas=large)
    pixels = area(0, 8, 3, 12)
    mixed = mix(own, partner, pixels, min_share=0.4).gt_instances
    assert boxes(mixed) == [[0, 0, 2, 2], [4, 2, 12, 8]] and mixed.labels.tolist() == [0, 1]
    if masks:
        assert torch.equal(torch.from_numpy(mixed.masks.masks[1]).bool(), area(2, 8, 4, 12))
    # 48 of 99 pixels are left.
    assert boxes(mix(own, partner, pixels, min_share=0.5).gt_instances) == [[0, 0, 2, 2]]
    expected = torch.where(area(2, 8, 4, 12), 1, THINGS)
    assert torch.equal(class_map(ground_truth(partner, SIZE), SIZE, THINGS + 1, 255), expected)


def test_every_dense_map_of_a_sample_is_pasted():
    own, partner = seg_sample(torch.zeros(SIZE).long()), seg_sample(torch.ones(SIZE).long())
    own.gt_depth_map = PixelData(data=torch.full((1, *SIZE), 2.5))
    partner.gt_depth_map = PixelData(data=torch.full((1, *SIZE), 7.5))
    mixed = mix(own, partner, area(0, 8, 0, 6))
    assert mixed.gt_depth_map.data[0, 0].tolist() == [7.5] * 6 + [2.5] * 6


def test_a_label_map_of_another_size_than_its_image_is_named():
    sample = seg_sample(torch.zeros(4, 6).long())
    sample.set_metainfo(dict(img_path="a.jpg"))
    with pytest.raises(UserError, match=r"a\.jpg: gt_sem_seg is \(4, 6\), its image \(8, 12\)"):
        ground_truth(sample, SIZE)


def test_instances_are_cut_covered_brought_along_or_left_alone():
    own = det_sample(
        [
            (0, 2, 0, 2),  # outside the region: as it was
            (3, 5, 3, 5),  # inside: covered
            (3, 5, 0, 12),  # through the region: cut in two
            (5, 8, 5, 8),  # a corner under the region
        ],
        [0, 1, 2, 0],
    )
    partner = det_sample(
        [
            (0, 2, 9, 12),  # outside: stays behind
            (3, 5, 3, 5),  # inside: comes along whole
            (0, 8, 0, 12),  # larger than the region: comes as the region
        ],
        [0, 1, 2],
    )
    before = frozen(own), frozen(partner)
    pixels = area(2, 6, 2, 6)

    mixed = mix(own, partner, pixels).gt_instances

    assert boxes(mixed) == [[0, 0, 2, 2], [0, 3, 12, 5], [5, 5, 8, 8], [3, 3, 5, 5], [2, 2, 6, 6]]
    assert mixed.labels.tolist() == [0, 2, 0, 1, 2]
    expected = [
        area(0, 2, 0, 2),
        area(3, 5, 0, 12) & ~pixels,
        area(5, 8, 5, 8) & ~pixels,
        area(3, 5, 3, 5),
        pixels,
    ]
    np.testing.assert_array_equal(mixed.masks.to_ndarray(), torch.stack(expected).numpy())
    assert mixed.masks.to_ndarray().dtype == np.uint8
    after = frozen(own), frozen(partner)
    for one, two in zip(before, after, strict=True):
        for x, y in zip(one, two, strict=True):
            np.testing.assert_array_equal(x, y)


def test_boxes_are_tight_around_what_is_left():
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.random(SIZE) < 0.5)
    bitmaps = (rng.random((5, *SIZE)) < 0.1).astype(np.uint8)
    samples = []
    for group in (bitmaps, bitmaps[::-1]):
        sample = DetDataSample(metainfo=dict(img_shape=SIZE))
        masks = BitmapMasks(np.ascontiguousarray(group), *SIZE)
        sample.gt_instances = InstanceData(
            bboxes=HorizontalBoxes.from_instance_masks(masks).tensor,
            labels=torch.zeros(5, dtype=torch.long),
            masks=masks,
        )
        samples.append(sample)
    mixed = mix(*samples, pixels).gt_instances
    assert len(mixed) > 5
    for box, mask in zip(boxes(mixed), mixed.masks.to_ndarray(), strict=True):
        ys, xs = np.nonzero(mask)
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_an_untouched_instance_keeps_its_annotated_box():
    own, partner = det_sample([(0.25, 2, 0, 1.5)], [0]), det_sample([(4.25, 5.75, 4, 5)], [1])
    mixed = mix(own, partner, area(4, 8, 4, 8)).gt_instances
    assert boxes(mixed) == [[0, 0.25, 1.5, 2], [4, 4.25, 5, 5.75]]


def test_an_instance_with_too_little_left_is_dropped():
    own = det_sample([(0, 4, 0, 10), (6, 7, 0, 1)], [0, 1])  # 40 pixels, of which 4 stay; one pixel, which stays
    empty = det_sample([], [])
    pixels = area(0, 4, 1, 12)
    assert mix(own, empty, pixels, min_share=0.1, min_pixels=4).gt_instances.labels.tolist() == [0, 1]
    assert mix(own, empty, pixels, min_share=0.11).gt_instances.labels.tolist() == [1]
    # A small instance that no region touches is no leftover.
    assert mix(own, empty, pixels, min_pixels=5).gt_instances.labels.tolist() == [1]
    # The same holds for the partner's.
    assert mix(empty, own, ~pixels, min_share=0.11).gt_instances.labels.tolist() == [1]


def test_ignored_instances_stay_ignored_and_are_clipped_alike():
    own, partner = det_sample([], [], ignored=[(0, 8, 0, 12)]), det_sample([], [], ignored=[(2, 4, 2, 4), (0, 1, 0, 1)])
    pixels = area(0, 8, 1, 12)
    mixed = mix(own, partner, pixels, min_share=0.9, min_pixels=50)
    assert len(mixed.gt_instances) == 0
    assert boxes(mixed.ignored_instances) == [[0, 0, 1, 8], [2, 2, 4, 4]]
    np.testing.assert_array_equal(
        mixed.ignored_instances.masks.to_ndarray(), torch.stack([~pixels, area(2, 4, 2, 4)]).numpy()
    )


def test_images_without_instances_mix_with_others():
    empty, full = det_sample([], []), det_sample([(0, 8, 0, 12)], [2])
    pixels = area(0, 4, 0, 4)
    assert boxes(mix(empty, full, pixels).gt_instances) == [[0, 0, 4, 4]]
    kept = mix(full, empty, pixels).gt_instances
    assert boxes(kept) == [[0, 0, 12, 8]] and kept.masks.areas.tolist() == [80]
    neither = mix(empty, empty, pixels).gt_instances
    assert neither.bboxes.shape == (0, 4) and neither.masks.to_ndarray().shape == (0, *SIZE)


def test_boxes_without_masks_are_cut_as_rectangles():
    own = det_sample(
        [
            (1.5, 7.5, 1.5, 7.5),  # right third covered, over the whole height
            (2, 7, 3, 12),  # a hole in the middle: nothing to shorten
            (5, 7, 5, 7),  # covered
        ],
        [0, 1, 2],
        masks=False,
    )
    partner = det_sample([(0.5, 7.5, 4.5, 6.5), (0, 8, 10, 12)], [1, 1], masks=False)
    mixed = mix(own, partner, area(0, 8, 5, 8)).gt_instances
    assert boxes(mixed) == [[1.5, 1.5, 5, 7.5], [3, 2, 12, 7], [5, 0.5, 6.5, 7.5]]
    assert mixed.labels.tolist() == [0, 1, 1] and "masks" not in mixed


def test_polygons_and_box_objects_are_understood():
    own, partner = det_sample([(0, 4, 0, 4)], [0]), det_sample([(2, 6, 2, 6)], [1])
    for sample, (low, high) in ((own, (0, 4)), (partner, (2, 6))):
        corners = np.array([low, low, high, low, high, high, low, high], dtype=float)
        bboxes = HorizontalBoxes(sample.gt_instances.bboxes)
        sample.gt_instances = InstanceData(
            bboxes=bboxes, labels=sample.gt_instances.labels, masks=PolygonMasks([[corners]], *SIZE)
        )
    mixed = mix(own, partner, area(3, 8, 0, 12)).gt_instances
    assert isinstance(mixed.bboxes, HorizontalBoxes)
    assert mixed.bboxes.tensor.tolist() == [[0, 0, 4, 3], [2, 3, 6, 6]]
    np.testing.assert_array_equal(mixed.masks.to_ndarray(), torch.stack([area(0, 3, 0, 4), area(3, 6, 2, 6)]).numpy())


def test_masks_of_different_canvases_meet_on_the_images_own():
    own = det_sample([(0, 4, 0, 4)], [0], valid=(6, 10), canvas=(6, 10))
    partner = det_sample([(0, 8, 0, 8)], [1], valid=(8, 8), canvas=(8, 8))
    mixed = mix(own, partner, area(2, 6, 2, 8)).gt_instances
    assert boxes(mixed) == [[0, 0, 4, 4], [2, 2, 8, 6]]
    assert mixed.masks.to_ndarray().shape == (2, 6, 10)
    assert mixed.masks.areas.tolist() == [12, 24]


class Everything(Region):
    def draw(self, shape, grid, generator):
        ones = torch.ones(1, *grid, dtype=torch.bool)
        return Draw(torch.arange(shape[0]), ones, torch.zeros(shape[0]))


def test_regions_stay_inside_the_valid_area():
    pixels = draw_pixels(Everything(), 4, [(8, 12), (5, 7), (3, 12)], SIZE, torch.Generator())
    expected = torch.stack([area(0, 8, 0, 12), area(0, 5, 0, 7), area(0, 3, 0, 12)])
    assert torch.equal(pixels, expected)


def test_a_region_of_classes_is_half_of_those_that_the_partner_shows():
    labels = torch.tensor([[0, 0, 1, 1], [2, 2, 1, 255], [3, 3, 3, 255]]).repeat_interleave(3, 1)
    size = tuple(labels.shape)
    own, partner = seg_sample(torch.full(size, 9), size), seg_sample(labels, size)
    truth, seen = ground_truth(partner, size), set()
    for step in range(40):
        region = ClassRegion()
        evidence = [partner_evidence(region, truth, 255)]
        (pixels,) = draw_pixels(region, 2, [size], size, step_generator(0, 0, step), evidence)
        chosen = labels[pixels].unique().tolist()
        # Two of four classes, all of their pixels, none that is ignored.
        assert len(chosen) == 2 and 255 not in chosen
        assert torch.equal(pixels, torch.isin(labels, torch.tensor(chosen)))
        mixed = mix(own, partner, pixels, size=size).gt_sem_seg.data[0]
        assert torch.equal(mixed, torch.where(pixels, labels, 9))
        seen.add(tuple(chosen))
    assert len(seen) == 6


def test_a_region_of_classes_ends_where_both_images_do():
    labels = torch.arange(4).view(2, 2).repeat_interleave(4, 0).repeat_interleave(6, 1)
    region, valid = ClassRegion(share=1.0), (5, 7)
    evidence = [partner_evidence(region, ground_truth(seg_sample(labels), SIZE), 255)]
    (pixels,) = draw_pixels(region, 4, [valid], SIZE, step_generator(0, 0, 0), evidence)
    assert torch.equal(pixels, area(0, 5, 0, 7))


@pytest.mark.parametrize("masks", [True, False])
def test_a_region_of_instances_is_a_choice_of_whole_ones(masks):
    own = det_sample([(0, 8, 0, 3)], [0], masks=masks)
    groups = [(0, 3, 4, 8), (2, 6, 9, 12), (5, 8, 3, 8)]
    partner = det_sample(groups, [1, 2, 0], ignored=[(0, 1, 0, 1)], masks=masks)
    truth, counts = ground_truth(partner, SIZE), set()
    for step in range(40):
        region = InstanceRegion()
        evidence = [partner_evidence(region, truth, 255)]
        (pixels,) = draw_pixels(region, 4, [SIZE], SIZE, step_generator(0, 0, step), evidence)
        inside = [k for k, group in enumerate(groups) if bool(pixels[group[0], group[2]])]
        expected = torch.zeros(SIZE, dtype=torch.bool)
        for k in inside:
            expected |= area(*groups[k])
        assert torch.equal(pixels, expected)
        mixed = mix(own, partner, pixels).gt_instances
        assert mixed.labels.tolist() == [0, *([1, 2, 0][k] for k in inside)]
        assert boxes(mixed)[1:] == [[x1, y1, x2, y2] for y1, y2, x1, x2 in (groups[k] for k in inside)]
        counts.add(len(inside))
    assert counts == {0, 1, 2, 3}


def test_ground_truth_of_the_other_kind_is_named():
    segmented, detected = (ground_truth(s, SIZE) for s in (seg_sample(torch.zeros(SIZE)), det_sample([], [])))
    with pytest.raises(UserError, match="ClassRegion follows label maps; detectors have InstanceRegion"):
        partner_evidence(ClassRegion(), detected, 255)
    with pytest.raises(UserError, match="InstanceRegion follows instances; segmentors have ClassRegion"):
        partner_evidence(InstanceRegion(), segmented, 255)
    empty = partner_evidence(InstanceRegion(), detected, 255)
    pixels = draw_pixels(InstanceRegion(), 4, [SIZE], SIZE, step_generator(0, 0, 0), [empty])
    assert not pixels.any()


@pytest.mark.parametrize(
    "region",
    [
        ClassRegion(),
        FourierBlobs(),
        GaussianBlobs(),
        GridHoles(),
        MaskedCells(side=1),
        RandomTokens(extra=0),
        TokenBlocks(extra=0),
        RandomChoice([ClassRegion(), TokenBox(), FourierBlobs()]),
    ],
    ids=lambda region: type(region).__name__,
)
def test_any_region_mixes_random_samples_as_pixel_by_pixel(region):
    """Label map, token shares and ignored pixels of the mix, against loops over pixels."""
    rng = torch.Generator().manual_seed(1)
    for step in range(6):
        maps = [torch.randint(0, 5, (4, 6), generator=rng).repeat_interleave(4, 0).repeat_interleave(4, 1)] * 2
        maps[1] = maps[1].flip(0, 1).clone()
        maps[step % 2][3:5, 2:9] = 255
        size = tuple(maps[0].shape)
        own, partner = (seg_sample(labels, size) for labels in maps)
        evidence = [partner_evidence(region, ground_truth(partner, size), 255)]
        (pixels,) = draw_pixels(region, 4, [size], size, step_generator(2, 0, step), evidence)
        mixed = mix(own, partner, pixels, size=size)
        found = class_map(ground_truth(mixed, size), size, 5, 255)
        shares, classes = token_shares(found[None], 4, 5)
        for y in range(size[0]):
            for x in range(size[1]):
                expected = int(maps[int(pixels[y, x])][y, x])
                assert int(mixed.gt_sem_seg.data[0, y, x]) == expected
                assert int(found[y, x]) == (-1 if expected == 255 else expected)
        for index, label in enumerate(classes.tolist()):
            counted = (found == label).double().unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).mean(dim=(1, 3))
            torch.testing.assert_close(shares[0, index].double(), counted)


@pytest.mark.parametrize("region", [TokenBox(), Box()])
def test_regions_are_drawn_for_each_image_in_its_own_area(region):
    size, valid = (64, 96), [(64, 40), (33, 96)]
    seen = torch.zeros(2, *size, dtype=torch.bool)
    pairs = []
    for step in range(40):
        pixels = draw_pixels(region, 8, valid, size, step_generator(0, 0, step))
        seen |= pixels
        pairs.append(torch.equal(pixels[0, :33, :40], pixels[1, :33, :40]))
    assert not all(pairs)
    for mask, (height, width) in zip(seen, valid, strict=True):
        assert mask[:height, :width].float().mean() > 0.95 and mask.sum() == mask[:height, :width].sum()


def test_token_boxes_are_made_of_whole_tokens():
    for step in range(20):
        pixels = draw_pixels(TokenBox(), 8, [(64, 96)], (64, 96), step_generator(1, 0, step))
        cells = pixels.view(8, 8, 12, 8).float().mean(dim=(1, 3))
        assert set(cells.unique().tolist()) <= {0.0, 1.0}


def test_instances_are_painted_small_over_large_on_background_with_crowd_and_padding_unlabeled():
    sample = det_sample([(3, 5, 3, 5), (2, 6, 2, 6)], [1, 0], ignored=[(0, 3, 0, 12)], valid=(7, 10))
    painted = class_map(ground_truth(sample, SIZE), SIZE, THINGS + 1, 255)
    expected = torch.full(SIZE, 3)
    expected[0:3] = -1
    expected[2:6, 2:6] = 0  # an annotated instance inside a crowd is known
    expected[3:5, 3:5] = 1
    expected[7:] = -1
    expected[:, 10:] = -1
    assert torch.equal(painted, expected)
    boxes_only = det_sample([(3, 5, 3, 5), (2, 6, 2, 6)], [1, 0], ignored=[(0, 3, 0, 12)], masks=False, valid=(7, 10))
    assert torch.equal(class_map(ground_truth(boxes_only, SIZE), SIZE, THINGS + 1, 255), expected)


def test_a_label_map_is_its_own_class_map_without_ignored_pixels():
    labels = torch.randint(0, 5, SIZE)
    labels[0, :4] = 7
    painted = class_map(ground_truth(seg_sample(labels, valid=(6, 12)), SIZE), SIZE, 5, 7)
    expected = torch.where(labels == 7, -1, labels)
    expected[6:] = -1
    assert torch.equal(painted, expected)


def test_labels_outside_the_classes_are_named():
    with pytest.raises(UserError, match=r"label 9 in the ground truth, but token_classifier\.num_classes=9"):
        token_shares(torch.tensor([[[1, 9]]]), 1, 9)
    sample = det_sample([(0, 1, 0, 1)], [3])
    with pytest.raises(UserError, match=r"instance label 3, but token_classifier\.num_classes=4"):
        class_map(ground_truth(sample, SIZE), SIZE, THINGS + 1, 255)


@pytest.mark.parametrize("stride", [1, 4, 5])
def test_token_shares_count_pixels(stride):
    maps = torch.randint(-1, 6, (2, 13, 9))
    maps[maps == 3] = 1  # a class that is absent
    shares, classes = token_shares(maps, stride, 8)
    assert classes.tolist() == sorted(set(maps.unique().tolist()) - {-1})
    expected = torch.zeros(2, len(classes), -(-13 // stride), -(-9 // stride))
    for b in range(2):
        for y in range(13):
            for x in range(9):
                if maps[b, y, x] >= 0:
                    k = classes.tolist().index(maps[b, y, x])
                    expected[b, k, y // stride, x // stride] += 1
    torch.testing.assert_close(shares, expected / stride**2)


def test_token_loss_is_the_mass_weighted_cross_entropy():
    classes = torch.tensor([0, 2, 4])
    logits = [torch.randn(2, 5, 3, 4, requires_grad=True), torch.randn(2, 5, 2, 2, requires_grad=True)]
    labels = [torch.rand(2, 3, 3, 4), torch.rand(2, 3, 2, 2)]
    labels[0][0, :, 1] = 0
    total = 0.0
    for scores, shares in zip(logits, labels, strict=True):
        loss = mass = 0.0
        for b in range(scores.shape[0]):
            for y in range(scores.shape[2]):
                for x in range(scores.shape[3]):
                    probability = scores[b, :, y, x].exp() / scores[b, :, y, x].exp().sum()
                    for k, c in enumerate(classes.tolist()):
                        loss = loss - shares[b, k, y, x] * probability[c].log()
                        mass = mass + shares[b, k, y, x]
        total = total + loss / mass / 2
    value = token_loss(logits, labels, classes)
    torch.testing.assert_close(value, total)
    value.backward()
    assert not logits[0].grad[0, :, 1].any() and logits[0].grad[0, :, 0].all()


def test_without_labels_the_token_loss_is_zero_and_has_a_graph():
    shares, classes = token_shares(torch.full((2, 4, 4), -1), 2, 5)
    logits = torch.randn(2, 5, 2, 2, requires_grad=True)
    loss = token_loss([logits], [shares], classes)
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0


def test_token_loss_of_half_precision_logits_is_computed_in_float32():
    logits, shares = torch.randn(1, 5, 2, 2) * 30, torch.rand(1, 5, 2, 2)
    loss = token_loss([logits.bfloat16()], [shares.bfloat16()], torch.arange(5))
    assert loss.dtype == torch.float32
    expected = token_loss([logits.bfloat16().double()], [shares.bfloat16().double()], torch.arange(5))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
