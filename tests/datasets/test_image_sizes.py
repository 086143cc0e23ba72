"""Images far from the size that a recipe is made for are said, with options that take them about as they are."""

from __future__ import annotations

import copy
import shlex

import numpy as np
import pytest
from PIL import Image
from recipes import read

from mixtransfer.datasets.folders import DatasetFolder, Split
from mixtransfer.datasets.image_sizes import size_note
from mixtransfer.engine.cfg_options import apply_options


def folder(path, width, height, kind="seg"):
    (path / "images").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path / f"images/{number}.png")
    (path / "images/broken.png").write_bytes(b"no image")
    split = Split("images", "masks", 3)
    return DatasetFolder(kind, path, ("a", "b"), ((0, 0, 0), (1, 1, 1)), split, split)


@pytest.mark.parametrize(
    ("recipe", "kind", "size", "words"),
    [
        ("seg/upernet_swin.py", "seg", (160, 120), "images are 160x120, and the recipe enlarges them to 683x512"),
        ("det/mask_rcnn_swin.py", "det", (160, 120), "enlarges them to 853x640"),
        ("seg/upernet_swin.py", "seg", (6000, 4000), "shrinks them to 768x512"),
    ],
)
def test_sizes_far_from_the_recipes_are_said_with_options_that_fit(recipe, kind, size, words, tmp_path):
    cfg, data = copy.deepcopy(read(recipe)), folder(tmp_path, *size, kind)
    said = size_note(cfg, data)
    assert words in said
    options = shlex.split(said.partition("--cfg-options ")[2])
    apply_options(cfg, options, recipe)
    assert size_note(cfg, data) is None
    crops = [option for option in options if "crop_size" in option or "data_preprocessor" in option]
    assert bool(crops) == (size[0] < 1000)


@pytest.mark.parametrize(
    ("recipe", "kind", "size"),
    [
        ("seg/upernet_swin.py", "seg", (683, 512)),
        ("seg/upernet_swin.py", "seg", (2048, 1024)),
        ("det/mask_rcnn_swin.py", "det", (640, 480)),
        ("seg/upernet_swin_micro_scenes.py", "seg", (128, 128)),
        ("pretrain/swin.py", "cls", (32, 32)),
    ],
)
def test_sizes_that_recipes_are_published_on_are_not(recipe, kind, size, tmp_path):
    assert size_note(read(recipe), folder(tmp_path, *size, kind)) is None
