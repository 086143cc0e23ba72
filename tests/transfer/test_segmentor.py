"""The segmentor answers as mmseg's does: the same classes of the original pixels, with fewer maps on the way."""

from __future__ import annotations

import copy

import mmseg.registry
import pytest
import torch
from mmengine.config import ConfigDict
from mmseg.structures import SegDataSample
from torch.nn import functional as F

SIDE = (48, 64)
MODEL = dict(
    data_preprocessor=dict(type="mmseg.SegDataPreProcessor"),
    backbone=dict(type="mmseg.ResNet", depth=18, base_channels=8, num_stages=4, norm_cfg=dict(type="BN")),
    decode_head=dict(
        type="mmseg.FCNHead", in_channels=64, in_index=3, channels=16, num_convs=1, num_classes=7, norm_cfg=None
    ),
    train_cfg=dict(),
    test_cfg=ConfigDict(mode="whole"),
)


@pytest.fixture(scope="module")
def segmentors():
    """Ours and mmseg's with the same weights."""
    torch.manual_seed(0)
    ours, theirs = (
        mmseg.registry.MODELS.build({**copy.deepcopy(MODEL), "type": f"{name}.EncoderDecoder"}).eval()
        for name in ("mixtransfer", "mmseg")
    )
    torch.nn.init.normal_(theirs.decode_head.conv_seg.weight)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


#: What a sample says of its image, of 48 × 64 pixels as it is tested.
ABOUT = {
    "size as it is": dict(ori_shape=SIDE),
    "larger original": dict(ori_shape=(71, 90)),
    "padded": dict(ori_shape=(40, 60), padding_size=[1, 3, 0, 8]),
    "padded for the test": dict(ori_shape=(40, 60), img_padding_size=[0, 4, 8, 0], padding_size=[0, 0, 0, 0]),
    "flipped": dict(ori_shape=SIDE, flip=True, flip_direction="horizontal"),
    "turned over": dict(ori_shape=(30, 30), flip=True, flip_direction="vertical"),
}


@torch.no_grad()
@pytest.mark.parametrize("about", ABOUT.values(), ids=ABOUT)
def test_classes_are_mmsegs(segmentors, about):
    images = torch.randn(2, 3, *SIDE)
    answers = []
    for net in segmentors:
        samples = [SegDataSample(metainfo=dict(img_shape=SIDE, pad_shape=SIDE, **about)) for _ in images]
        answers.append(net.predict(images, samples))
    for ours, theirs in zip(*answers, strict=True):
        assert ours.pred_sem_seg.shape == theirs.pred_sem_seg.shape == tuple(about["ori_shape"])
        assert torch.equal(ours.pred_sem_seg.data, theirs.pred_sem_seg.data)
        assert ours.pred_sem_seg.data.unique().numel() > 1
        torch.testing.assert_close(ours.seg_logits.data, theirs.seg_logits.data, rtol=0, atol=1e-5)


@torch.no_grad()
def test_windows_and_images_without_samples_are_mmsegs(segmentors):
    images, found = torch.randn(2, 3, *SIDE), []
    for net in segmentors:
        net.test_cfg = ConfigDict(mode="slide", crop_size=(32, 32), stride=(16, 16))
        found.append(net.predict(images))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours.pred_sem_seg.data, theirs.pred_sem_seg.data)


@torch.no_grad()
def test_a_map_of_the_right_size_is_not_resampled(segmentors, monkeypatch):
    sizes, resample = [], F.interpolate

    def counted(x, size=None, *args, **kwargs):
        sizes.append((tuple(x.shape[2:]), tuple(size)))
        return resample(x, size, *args, **kwargs)

    monkeypatch.setattr(F, "interpolate", counted)
    for net in segmentors:
        sizes.clear()
        net.test_cfg["mode"] = "whole"
        net.predict(torch.randn(1, 3, *SIDE), [SegDataSample(metainfo=dict(img_shape=SIDE, ori_shape=SIDE))])
        assert [before == after for before, after in sizes] == ([False] if net is segmentors[0] else [False, True])
