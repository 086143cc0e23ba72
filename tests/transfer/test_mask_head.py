"""The mask head's targets are mmdet's, without a full-size mask for every proposal."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead as MMDetFCNMaskHead
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import ConfigDict
from torch.utils._python_dispatch import TorchDispatchMode

HEAD = dict(num_convs=1, in_channels=16, conv_out_channels=16, num_classes=3)
H, W = 90, 130


class Largest(TorchDispatchMode):
    """The largest tensor that was made, in elements."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.untyped_storage().nbytes() // out.element_size())
        return out


def batch(counts=(3, 2), proposals=(20, 12)):
    """Sampling results and ground truth of two images; the last has no positive proposal if ``proposals`` says so."""
    rng, sampled, truth = np.random.default_rng(0), [], []
    for masks, count in zip(counts, proposals, strict=True):
        bitmaps = np.zeros((masks, H, W), np.uint8)
        for mask in bitmaps:
            top, left = rng.integers(0, 60, 2)
            mask[top : top + 25, left : left + 40] = rng.random((25, 40))[: len(mask[top : top + 25])] > 0.3
        corner = rng.uniform(-10, 100, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(1, 60, (count, 2))], axis=1)
        numbers = torch.from_numpy(rng.integers(masks, size=count))
        sampled.append(SimpleNamespace(pos_priors=torch.from_numpy(boxes).float(), pos_assigned_gt_inds=numbers))
        truth.append(SimpleNamespace(masks=BitmapMasks(bitmaps, H, W)))
    return sampled, truth


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("proposals", [(20, 12), (20, 0), (0, 0)])
def test_targets_are_mmdets(soft, proposals):
    sampled, truth = batch(proposals=proposals)
    config = ConfigDict(mask_size=14, soft_mask_target=soft)
    ours, theirs = MODELS.build({**HEAD, "type": "mixtransfer.FCNMaskHead"}), MMDetFCNMaskHead(**HEAD)
    got, expected = (head.get_targets(sampled, truth, config) for head in (ours, theirs))
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)
    assert sum(proposals) == 0 or 0 < got.mean() < 1
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_no_mask_is_copied_for_a_proposal():
    sampled, truth = batch(proposals=(64, 64))
    config = ConfigDict(mask_size=14)
    found = {}
    for name in ("mixtransfer.FCNMaskHead", "mmdet.FCNMaskHead"):
        head = MODELS.build({**HEAD, "type": name})
        with Largest() as largest:
            head.get_targets(sampled, truth, config)
        found[name] = largest.elements
    assert found["mmdet.FCNMaskHead"] == 64 * H * W
    assert found["mixtransfer.FCNMaskHead"] == 3 * H * W


def test_polygons_are_cut_as_mmdet_cuts_them():
    polygons = PolygonMasks([[np.array([10.0, 10, 50, 10, 50, 40, 10, 40])]], H, W)
    sampled = [SimpleNamespace(pos_priors=torch.tensor([[5.0, 5, 60, 45]]), pos_assigned_gt_inds=torch.tensor([0]))]
    truth, config = [SimpleNamespace(masks=polygons)], ConfigDict(mask_size=14)
    ours, theirs = MODELS.build({**HEAD, "type": "mixtransfer.FCNMaskHead"}), MMDetFCNMaskHead(**HEAD)
    assert torch.equal(ours.get_targets(sampled, truth, config), theirs.get_targets(sampled, truth, config))
