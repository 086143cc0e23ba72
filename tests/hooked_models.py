"""Small segmentors and detectors, batches for them, and TokenMixHook attached to them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

import mixtransfer.registry  # noqa: F401  before mmdet, whose masks look for mmcv.ops when they are imported

# isort: split
import mmdet.models  # noqa: F401
import mmseg.models  # noqa: F401
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import nn

from mixtransfer.mixing import Draw, Region
from mixtransfer.registry import MODELS
from mixtransfer.transfer import TokenMixHook

SIZE = 64
CLASSES = 5
BACKBONE = dict(
    type="mixtransfer.SwinTransformer",
    arch="swin_micro",
    token_classifier=dict(num_classes=CLASSES, stages=(2, 3)),
)


@MODELS.register_module(force=True)
class FixedRegion(Region):
    """The columns from ``start`` to ``stop`` of the token grid, a part of them all."""

    def __init__(self, start=0.5, stop=1.0):
        self.start, self.stop = start, stop

    def draw(self, shape, grid, generator):
        mask = torch.zeros(1, *grid, dtype=torch.bool)
        mask[..., round(self.start * grid[1]) : round(self.stop * grid[1])] = True
        return Draw(torch.arange(shape[0]), mask, torch.ones(shape[0]))


HALF = dict(type="FixedRegion")


class Fake(nn.Module):
    """The least that follows the backbone's contract: labels are pooled, and so are the pixels."""

    strides = (4, 8)

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, 8, 4, 4)
        self.token_classifier = Classifier()

    def forward(self, images, token_labels=None):
        first = self.proj(images)
        maps = first, nn.functional.avg_pool2d(first, 2, ceil_mode=True)
        if token_labels is None:
            return maps
        return maps, (token_labels, nn.functional.avg_pool2d(token_labels, 2, ceil_mode=True))


class Classifier(nn.Module):
    num_classes, stages = CLASSES, (1,)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, CLASSES, 1)

    def forward(self, features):
        return tuple(self.conv(features[stage]) for stage in self.stages)


class Recorder(nn.Module):
    """A model that keeps what it was given."""

    def __init__(self, backbone=None):
        super().__init__()
        self.backbone = Fake() if backbone is None else backbone
        self.given = None

    def forward(self, inputs, data_samples=None, mode="tensor"):
        features = self.backbone(inputs)
        self.given = inputs, data_samples, features
        return {"loss_head": features[-1].square().mean()} if mode == "loss" else features


def segmentor(**backbone):
    head = dict(
        type="FCNHead",
        in_channels=[32, 64, 128, 256],
        in_index=[0, 1, 2, 3],
        input_transform="resize_concat",
        channels=8,
        num_convs=1,
        dropout_ratio=0,
        num_classes=CLASSES,
    )
    config = dict(
        type="EncoderDecoder",
        data_preprocessor=None,
        backbone={**BACKBONE, **backbone},
        decode_head=head,
        train_cfg={},
        test_cfg=ConfigDict(mode="whole"),
    )
    with DefaultScope.overwrite_default_scope("mmseg"):
        return ROOT.build(dict(config, _scope_="mmseg"))


def detector(name, changes=None, **backbone):
    whole = get_config(f"mmdet::_base_/models/{name}.py")
    whole.merge_from_dict(dict(model=changes or {}))
    config = whole.model
    config.backbone = {**BACKBONE, **backbone}
    config.neck.in_channels = [32, 64, 128, 256][-len(config.backbone.get("out_indices", range(4))) :]
    config.neck.start_level = 0
    config.pop("data_preprocessor")
    heads = [config.roi_head.bbox_head, config.roi_head.mask_head] if "roi_head" in config else [config.bbox_head]
    for head in heads:
        head.num_classes = CLASSES - 1
    with DefaultScope.overwrite_default_scope("mmdet"):
        return ROOT.build(dict(config, _scope_="mmdet"))


def runner_of(model, iteration=0, max_iters=100, seed=0):
    return SimpleNamespace(model=model, iter=iteration, max_iters=max_iters, seed=seed, _resume=True)


def attach(model, region=HALF, **options):
    hook = TokenMixHook(region, **{"prob": 1.0, "cell_size": 8, **options})
    hook.before_train(runner_of(model))
    return hook


def step(model, batch, hook=None, iteration=0, max_iters=100, seed=0):
    """Run one training step as the runner does, and return its losses."""
    if hook is None:
        return model.train()(*batch, mode="loss")
    runner = runner_of(model, iteration, max_iters, seed)
    hook.before_train_iter(runner, iteration)
    losses = model.train()(*batch, mode="loss")
    hook.after_train_iter(runner, iteration)
    return losses


def seg_batch(batch=2, height=SIZE, width=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, height, width, generator=generator)
    samples = []
    for _ in range(batch):
        sample = SegDataSample(metainfo=dict(img_shape=(height, width)))
        labels = torch.randint(0, CLASSES, (1, height, width), generator=generator)
        labels[0, :3] = 255
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return images, samples


def det_batch(counts=(2, 3), masks=True, seed=0):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.standard_normal((len(counts), 3, SIZE, SIZE))).float()
    samples = []
    for count in counts:
        corners, sides = rng.integers(0, 40, (count, 2)), rng.integers(8, 24, (count, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
        bitmaps = np.zeros((count, SIZE, SIZE), dtype=np.uint8)
        for bitmap, (x1, y1, x2, y2) in zip(bitmaps, boxes.astype(int), strict=True):
            bitmap[y1:y2, x1:x2] = 1
        fields = dict(bboxes=torch.from_numpy(boxes), labels=torch.from_numpy(rng.integers(0, CLASSES - 1, count)))
        if masks:
            fields["masks"] = BitmapMasks(bitmaps, SIZE, SIZE)
        sample = DetDataSample(
            metainfo=dict(img_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE), batch_input_shape=(SIZE, SIZE))
        )
        sample.gt_instances = InstanceData(**fields)
        sample.ignored_instances = InstanceData(**fields)[:0]
        samples.append(sample)
    return images, samples
