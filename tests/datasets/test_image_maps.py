"""Maps that accompany images follow them exactly; what cannot be read or followed is one line."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from PIL import Image
from recipes import dataset, recipe
from small_sets import class_folders

from mixtransfer.datasets.image_maps import LoadMap, SwapBackground, TracePixels, class_scores
from mixtransfer.errors import UserError
from mixtransfer.pretrain.activation_maps import class_map, crop_map

H, W = 96, 128


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmpretrain")


def smooth_image() -> np.ndarray:
    """Two ramps, which any interpolation keeps: red and green say where a pixel lies."""
    y, x = np.mgrid[:H, :W]
    return np.dstack([np.full((H, W), 90), 60 + y, 60 + x]).astype(np.uint8)


def trained_steps(name: str) -> list:
    """The transforms that a recipe traces, each operation of RandAugment in every image."""
    (trace,) = [s for s in dataset(recipe(name).train_dataloader).pipeline if s.type == "mixtransfer.TracePixels"]
    return trace.transforms


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("backend", ["pillow", "cv2"])
def test_places_are_where_the_pixels_lay(seed, backend):
    """Crop, flip, resizing, rotation and shearing of an image whose colors are its coordinates."""
    moves = [dict(type="Rotate", angle=25.0, prob=1.0), dict(type="Shear", magnitude=0.2, prob=1.0)]
    augment = dict(type="RandAugment", num_policies=2, magnitude_level=9, policies=moves)
    augment["hparams"] = dict(pad_val=[0, 0, 0], interpolation="bicubic")
    crop = dict(type="RandomResizedCrop", scale=64, crop_ratio_range=(0.4, 1.0), backend=backend)
    trace = TracePixels([crop, dict(type="RandomFlip", prob=0.5), augment])
    np.random.seed(seed)
    results = trace({"img": smooth_image(), "img_path": "a.png"})
    places, image = results["places"], results["img"].astype(float)
    inside = ~np.isnan(places[..., 0])
    assert 0.5 < inside.mean() <= 1 and not image[~inside, 1:].all()
    # A pixel of the border blends with the padding.
    kernel = np.ones((5, 5), np.uint8)
    sure = cv2.erode(inside.astype(np.uint8), kernel, borderValue=0).astype(bool)
    wanted = np.dstack([60 + places[..., 1] * H - 0.5, 60 + places[..., 0] * W - 0.5])
    assert np.abs(image[..., 1:] - wanted)[sure].max() < 2.5


def test_every_augmentation_of_the_recipe_can_be_followed():
    trace = TracePixels(trained_steps("pretrain/deit_oamixer.py"))
    for seed in range(8):
        np.random.seed(seed)
        results = trace({"img": smooth_image(), "img_path": "a.png"})
        assert results["img"].shape == (224, 224, 3) and results["places"].shape == (224, 224, 2)
        found = results["places"][~np.isnan(results["places"])]
        assert found.min() > -0.02 and found.max() < 1.02


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(UserError, match="cannot follow RandomErasing"):
        TracePixels([dict(type="RandomErasing")])


def test_the_image_is_the_one_without_tracing():
    from mmcv.transforms import Compose

    steps = trained_steps("pretrain/deit_oamixer.py")
    np.random.seed(3)
    plain = Compose([step for step in map(dict, steps)])({"img": smooth_image(), "img_path": "a.png"})
    np.random.seed(3)
    traced = TracePixels(steps)({"img": smooth_image(), "img_path": "a.png"})
    assert np.array_equal(plain["img"], traced["img"])


def sample(tmp_path, kind, content, places, label=0, **options):
    path = tmp_path / "maps/train/c/x"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "foreground":
        Image.fromarray(content).save(path.with_suffix(".png"))
    else:
        np.save(path.with_suffix(".npy"), content)
    load = LoadMap(kind, "maps", str(tmp_path), **{"cell_size": 16, **options})
    return load({"img_path": str(tmp_path / "train/c/x.jpg"), "places": places, "gt_label": label})


def whole(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.dstack([(x + 0.5) / width, (y + 0.5) / height])


def test_foreground_is_read_where_the_crop_lies(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, (40, 60)).astype(np.uint8)
    places = whole(40, 60)[5:25, 50:9:-1]
    places[0, 0] = np.nan
    found = sample(tmp_path, "foreground", content, places)["patch_labels"]
    assert found.shape == (1, 20, 41) and found[0, 0, 0] == 0
    expected = content[5:25, 50:9:-1] / 255
    np.testing.assert_allclose(found[0].numpy().ravel()[1:], expected.ravel()[1:], atol=1e-3)


def test_class_maps_of_a_crop_are_those_that_the_published_crop_reads(tmp_path):
    """Of a crop without flip, RoIAlign with two points a side of a cell, as TokenMix's and OAMixer's code crops."""
    rng = np.random.default_rng(1)
    scores = rng.random((5, 18, 18)).astype(np.float32)
    classes = np.stack([rng.permutation(7)[:5] for _ in range(324)], axis=1).reshape(5, 18, 18)
    top, left, height, width = 32, 0, 160, 224
    places = whole(224, 224)[top : top + height, left : left + width]
    content = np.stack([scores, classes]).astype(np.float32)
    found = sample(tmp_path, "classes", content, places, num_classes=7)["patch_labels"]
    maps = torch.stack([class_map(torch.from_numpy(content)[None], torch.tensor([k])) for k in range(7)])[:, 0]
    crops = torch.tensor([[top / 224, left / 224, height / 224, width / 224]]).expand(7, -1)
    expected = crop_map(maps, crops, (10, 14))
    # RoIAlign takes as many points as a cell has cells of the map: 2.
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)
    own = sample(tmp_path, "own_class", content, places, label=3, num_classes=7)["activation_map"]
    np.testing.assert_allclose(own.numpy(), expected[3].numpy(), atol=1e-5)


def test_scores_of_cells_outside_of_the_image_are_zero():
    places = np.full((32, 32, 2), np.nan, np.float32)
    places[:16, :16] = whole(16, 16)
    found = class_scores(np.ones((1, 4, 4), np.float32), np.ones((1, 4, 4), np.int64), places, (2, 2), 3)
    np.testing.assert_allclose(found[1], [[1, 0], [0, 0]])
    assert not found[[0, 2]].any()


@pytest.mark.parametrize(
    ("kind", "content", "text"),
    [
        ("classes", np.zeros((5, 18, 18), np.float32), "has shape"),
        ("classes", np.full((2, 1, 2, 2), 9, np.float32), "class number 9 of 3 classes"),
        ("classes", np.full((2, 1, 2, 2), np.nan, np.float32), "no numbers"),
        ("classes", np.array([None]), "mixtransfer data maps"),
        ("foreground", np.eye(4, dtype=np.uint8), "full foreground is 255"),
    ],
)
def test_maps_that_are_none_are_one_line(tmp_path, kind, content, text):
    with pytest.raises(UserError, match=text):
        sample(tmp_path, kind, content, whole(32, 32), num_classes=3)


def test_missing_maps_and_places_are_one_line(tmp_path):
    load = LoadMap("own_class", "maps", str(tmp_path))
    with pytest.raises(UserError, match="put TracePixels"):
        load({"img_path": str(tmp_path / "a.png")})
    with pytest.raises(UserError, match="no such map"):
        load({"img_path": str(tmp_path / "a.png"), "places": whole(16, 16)})
    with pytest.raises(UserError, match="set data_root"):
        load({"img_path": str(tmp_path.parent / "a.png"), "places": whole(16, 16)})


def test_published_files_are_read_without_running_code(tmp_path):
    path = tmp_path / "maps/a.pt"
    path.parent.mkdir()
    torch.save(torch.stack([torch.full((1, 2, 2), 3.0), torch.full((1, 2, 2), 2.0)]).half(), path)
    load = LoadMap("own_class", "maps", str(tmp_path), num_classes=3)
    found = load({"img_path": str(tmp_path / "a.png"), "places": whole(32, 32), "gt_label": 2})
    assert (found["activation_map"] == 3).all()
    torch.save({"code": LoadMap}, path)
    with pytest.raises(UserError, match=r"a\.pt"):
        load({"img_path": str(tmp_path / "a.png"), "places": whole(32, 32), "gt_label": 2})


def test_swapped_backgrounds_keep_the_foreground_and_come_from_another_image(tmp_path):
    root = class_folders(tmp_path)
    share = np.zeros((48, 64), np.uint8)
    share[10:30, 10:40] = 255
    for path in root.glob("train/*/*.png"):
        target = root / "maps" / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(share).save(target)
    path = root / "train/ant/0.png"
    image = cv2.imread(str(path))
    swap = SwapBackground(str(root / "train"), "maps", str(root))
    found = swap({"img": image, "img_path": str(path)})["img"]
    assert np.array_equal(found[share == 255], image[share == 255])
    others = [cv2.imread(str(p)) for p in root.glob("train/*/*.png") if p != path]
    far = cv2.dilate(share, np.ones((3, 3))) == 0
    assert any(np.array_equal(found[far], other[far]) for other in others)
    assert np.array_equal(found, swap({"img": image, "img_path": str(path)})["img"])
