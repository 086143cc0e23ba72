"""The built-in scenes: same seed, same bytes; labels, instances and COCO annotations tell the same story."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mixtransfer.datasets import scenes as scenes_module
from mixtransfer.datasets.scene_rendering import STUFF, THINGS
from mixtransfer.datasets.scenes import (
    CLASSES,
    Instance,
    draw_crop,
    draw_scene,
    read_parameters,
    write_scenes,
)
from mixtransfer.errors import UserError

SMALL = dict(train=6, val=2, classify_train=12, classify_val=12, size=(96, 128))


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _scenes(count: int, size: tuple[int, int] = (128, 128)):
    return [draw_scene(np.random.default_rng([3, index]), size) for index in range(count)]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", **SMALL)


def test_same_seed_same_bytes_and_each_image_stands_alone(written, tmp_path):
    again = _bytes(write_scenes(tmp_path / "again", **SMALL))
    assert again == _bytes(written)
    fewer = _bytes(write_scenes(tmp_path / "fewer", **{**SMALL, "train": 2}))
    images = [name for name in fewer if name.endswith((".jpg", ".png"))]
    assert len(images) == 2 * 3 + 2 * 3 + 24
    assert all(fewer[name] == again[name] for name in images)
    other = _bytes(write_scenes(tmp_path / "other", **SMALL, seed=1))
    assert all(other[name] != again[name] for name in images)


def test_splits_do_not_share_images(written):
    first = (written / "seg/images/training/000000.jpg").read_bytes()
    assert first != (written / "seg/images/validation/000000.jpg").read_bytes()


def test_labels_and_instances_agree():
    for scene in _scenes(20):
        covered = np.zeros(scene.labels.shape, int)
        for instance in scene.instances:
            covered += instance.mask
            assert CLASSES[instance.label - 1] in THINGS
            assert set(np.unique(scene.labels[instance.mask])) <= {0, instance.label}
            assert instance.mask.sum() >= scenes_module.MIN_AREA
        assert covered.max() <= 1
        assert (scene.labels[covered == 0] <= len(STUFF)).all()


def test_every_class_void_crowds_and_empty_scenes_occur():
    scenes = _scenes(60, (64, 64))
    assert set(np.unique([scene.labels for scene in scenes])) == set(range(len(CLASSES) + 1))
    assert any(instance.crowd for scene in scenes for instance in scene.instances)
    assert any(not scene.instances for scene in scenes)
    assert 0.002 < np.mean([scene.labels == 0 for scene in scenes]) < 0.05


def test_color_alone_does_not_tell_the_class():
    """Nearest-mean classification by mean color stays far below what texture and shape allow."""
    colors = np.array(
        [
            [draw_crop(np.random.default_rng([i, k]), name).mean((0, 1)) for i in range(24)]
            for k, name in enumerate(CLASSES)
        ]
    )
    centers = colors[:, :12].mean(1)
    guesses = np.argmin(np.linalg.norm(colors[:, 12:, None] - centers, axis=-1), -1)
    assert np.mean(guesses == np.arange(len(CLASSES))[:, None]) < 0.4


def test_masks_hold_the_labels_of_the_drawn_scene(written):
    scene = draw_scene(np.random.default_rng([0, 0, 4]), SMALL["size"])
    stored = cv2.imread(str(written / "seg/annotations/training/000004.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(stored, scene.labels)
    assert (written / "seg/classes.txt").read_text().split() == list(CLASSES)
    for name in ("train", "val"):
        assert sorted(path.name for path in (written / "cls" / name).iterdir()) == sorted(CLASSES)


def test_coco_file_loads_and_its_masks_are_the_instances(written):
    coco = COCO(written / "det/annotations/instances_train2017.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(THINGS)
    for index in range(SMALL["train"]):
        image = coco.loadImgs([index + 1])[0]
        assert (written / "det/train2017" / image["file_name"]).is_file()
        scene = draw_scene(np.random.default_rng([0, 0, index]), SMALL["size"])
        annotations = coco.loadAnns(coco.getAnnIds([index + 1]))
        assert len(annotations) == len(scene.instances)
        for annotation, instance in zip(annotations, scene.instances, strict=True):
            assert np.array_equal(coco.annToMask(annotation), instance.mask)
            assert annotation["area"] == instance.mask.sum()
            rows, columns = np.nonzero(instance.mask)
            x, y, w, h = annotation["bbox"]
            assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert annotation["iscrowd"] == instance.crowd


def test_all_three_encodings_are_used():
    shapes = [
        (type(shape).__name__, type(shape["counts"]).__name__ if isinstance(shape, dict) else "", instance.crowd)
        for scene in _scenes(40)
        for instance in scene.instances
        for shape in [scenes_module._segmentation(instance)]
    ]
    assert set(shapes) == {("list", "", False), ("dict", "str", False), ("dict", "list", True)}


@settings(max_examples=60, deadline=None)
@given(bits=st.lists(st.booleans(), min_size=42, max_size=42), crowd=st.booleans())
def test_every_encoding_encloses_exactly_the_mask(bits, crowd):
    """Any 6x7 mask, with pixels that touch at corners only, holes, and pixels on all borders."""
    mask = np.array(bits).reshape(6, 7)
    mask[3, 3] = True
    shape = scenes_module._segmentation(Instance(7, mask, crowd))
    if isinstance(shape, list):
        packed = coco_mask.merge(coco_mask.frPyObjects(shape, 6, 7))
    elif isinstance(shape["counts"], list):
        packed = coco_mask.frPyObjects(shape, 6, 7)
    else:
        packed = shape
    assert np.array_equal(coco_mask.decode(packed), mask)


def test_second_call_reuses_and_other_parameters_are_refused(tmp_path):
    root = write_scenes(tmp_path / "scenes", **SMALL)
    (root / "seg/images/training/000000.jpg").write_bytes(b"kept")
    write_scenes(root, **SMALL)
    assert (root / "seg/images/training/000000.jpg").read_bytes() == b"kept"
    with pytest.raises(UserError, match=r"seed 0 instead of 5.*--force"):
        write_scenes(root, **SMALL, seed=5)
    write_scenes(root, **SMALL, seed=5, force=True)
    assert read_parameters(root).seed == 5
    assert (root / "seg/images/training/000000.jpg").read_bytes() != b"kept"
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_scenes_of_an_older_generator_are_drawn_anew_without_being_asked(written, tmp_path):
    root = write_scenes(tmp_path / "scenes", **SMALL)
    stored = json.loads((root / "scenes.json").read_text())
    (root / "scenes.json").write_text(json.dumps({**stored, "generator": stored["generator"] - 1}))
    (root / "seg/images/training/000000.jpg").write_bytes(b"an older picture")
    write_scenes(root, **SMALL)
    assert _bytes(root) == _bytes(written)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes", **SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_another_process_may_have_written_the_same(tmp_path):
    """Ranks of one run all ask for the scenes; whoever comes second takes what the first one wrote."""
    root = tmp_path / "scenes"

    def race(done, total):
        if done == total:
            write_scenes(tmp_path / "first", **SMALL)
            (tmp_path / "first").rename(root)

    write_scenes(root, **SMALL, progress=race)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_foreign_folders_are_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no scenes of ours"):
        write_scenes(tmp_path, **SMALL, force=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(train=0), "--train 0"),
        (dict(classify_val=5), "--classify-val need at least 12"),
        (dict(size=(32, 128)), "--size 32 128"),
        (dict(seed=-1), "--seed -1"),
    ],
)
def test_impossible_parameters(tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        write_scenes(tmp_path / "scenes", **{**SMALL, **wrong})
    assert not (tmp_path / "scenes").exists()


def test_damaged_parameters_and_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*name another folder"):
        write_scenes(tmp_path / "file" / "scenes", **SMALL)
    (tmp_path / "scenes.json").write_text(json.dumps({"train": 3}))
    with pytest.raises(UserError, match=r"scenes\.json is damaged"):
        write_scenes(tmp_path, **SMALL)
