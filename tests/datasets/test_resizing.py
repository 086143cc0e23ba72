"""Crops of classifiers: the same parts as mmpretrain's, with Pillow's pixels to two levels."""

from __future__ import annotations

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mixtransfer.datasets.resizing import RandomResizedCrop, resize, resize_quickly
from mixtransfer.registry import import_quietly

LibraryCrop = import_quietly("mmpretrain.datasets.transforms").RandomResizedCrop
PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def photograph(rng):
    """Smooth colors with edges and grain."""
    rows, columns = np.mgrid[:480, :640]
    waves = [127 + 120 * np.sin(rows / a + columns / b) for a, b in rng.uniform(9, 90, (3, 2))]
    image = np.stack(waves, axis=2) + rng.normal(0, 6, (480, 640, 3))
    image[100:300, 200:330] = rng.uniform(0, 255, 3)
    return image.clip(0, 255).astype(np.uint8)


def noise(rng):
    return rng.integers(0, 256, (480, 640, 3), np.uint8)


@pytest.mark.parametrize("kind", PILLOW)
@pytest.mark.parametrize("make", [photograph, noise])
def test_pixels_are_pillows_to_two_levels(make, kind):
    rng = np.random.default_rng(0)
    image = make(rng)
    differences = []
    for height, width in ((480, 640), (331, 207), (120, 90), (224, 224), (61, 300)):
        top, left = int(rng.integers(0, 481 - height)), int(rng.integers(0, 641 - width))
        part = image[top : top + height, left : left + width]
        # Pillow 13 filters rows first where that is cheaper; the recipes' Pillow never did.
        columns_first = Image.fromarray(part).resize((224, height), PILLOW[kind])
        expected = np.asarray(columns_first.resize((224, 192), PILLOW[kind]))
        got = resize(part, (192, 224), kind)
        assert got.dtype == np.uint8 and got.shape == expected.shape
        differences.append((got.astype(int) - expected).ravel())
    found = np.concatenate(differences)
    assert np.abs(found).max() <= 2
    assert (found != 0).mean() < 0.01
    assert abs(found.mean()) < 0.005


@pytest.mark.parametrize("kind", PILLOW)
def test_crops_are_mmpretrains(kind):
    image = photograph(np.random.default_rng(1))
    settings = dict(scale=96, backend="pillow", interpolation=kind)
    for seed in range(4):
        answers = []
        for cls in (RandomResizedCrop, LibraryCrop):
            np.random.seed(seed)
            answers.append(cls(**settings).transform({"img": image}))
        assert answers[0]["img_shape"] == answers[1]["img_shape"] == (96, 96, 3)
        assert np.abs(answers[0]["img"].astype(int) - answers[1]["img"]).max() <= 2


def test_grey_images_and_other_kinds_are_pillows():
    for image, kind in ((np.zeros((50, 60), np.uint8) + 9, "bicubic"), (np.ones((50, 60, 3), np.uint8), "lanczos")):
        answers = []
        for cls in (RandomResizedCrop, LibraryCrop):
            np.random.seed(0)
            answers.append(cls(scale=32, backend="pillow", interpolation=kind).transform({"img": image})["img"])
        assert np.array_equal(*answers)


def test_training_takes_it_and_tests_do_not():
    crop = dict(type="RandomResizedCrop", scale=224, backend="pillow", interpolation="bicubic")
    choice = dict(type="RandomChoice", transforms=[[dict(crop)], [dict(crop, backend="cv2")]])
    loader = dict(dataset=dict(type="ImageNet", pipeline=[dict(crop), choice]))
    cfg = Config(dict(train_dataloader=loader, val_dataloader=dict(dataset=dict(pipeline=[dict(crop)]))))
    resize_quickly(cfg)
    first, second = cfg.train_dataloader.dataset.pipeline
    assert first.type == "mixtransfer.RandomResizedCrop" and first.scale == 224
    assert [branch[0].type for branch in second.transforms] == ["mixtransfer.RandomResizedCrop", "RandomResizedCrop"]
    assert cfg.val_dataloader.dataset.pipeline[0].type == "RandomResizedCrop"
