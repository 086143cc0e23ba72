"""Datasets as other tools leave them are checked, trained on and predicted for, all with the same samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import H, W, picture
from tiny_runs import CONFIGS, ProbeHook, tiny_config, train

from mixtransfer.cli import run_command
from mixtransfer.datasets import convert
from mixtransfer.datasets.check import check_folder
from mixtransfer.datasets.folders import open_dataset
from mixtransfer.datasets.layouts import CITYSCAPES, recognize
from mixtransfer.datasets.sources import read_classes
from mixtransfer.datasets.stored import read_mask
from mixtransfer.engine.config import load_config
from mixtransfer.errors import UserError

NAMES = ("ground", "ball", "box")
COLORS = ((10, 20, 30), (200, 0, 0), (0, 0, 200))
COUNT = 6


def samples(seed: int = 0) -> list[tuple[str, np.ndarray, list]]:
    rng, found = np.random.default_rng(seed), []
    for i in range(COUNT):
        boxes = [((4 + i, 5, 20, 15), 1), ((30, 20 + i, 25, 20), 2)]
        found.append((f"p{i}", picture(rng, boxes), boxes))
    return found


def labels(boxes: list, value: Callable[[int], int] = lambda k: k) -> np.ndarray:
    mask = np.full((H, W), value(0), np.uint8)
    for (x, y, w, h), k in boxes:
        mask[y : y + h, x : x + w] = value(k)
    return mask


def save(array: np.ndarray, path: Path, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array, mode="P" if palette else None)
    if palette:
        image.putpalette([x for color in COLORS for x in color])
    image.save(path)


def split_of(i: int) -> str:
    return "train" if i < 4 else "val"


def names(root: Path, colors: bool = False) -> None:
    lines = [f"{name} {r} {g} {b}" if colors else name for name, (r, g, b) in zip(NAMES, COLORS, strict=True)]
    (root / "classes.txt").write_text("\n".join(lines) + "\n")


def flat(root: Path) -> None:
    for name, image, boxes in samples():
        save(image, root / f"images/{name}.JPG")
        save(labels(boxes), root / f"masks/{name}.png")


def pairs_in_one_folder(root: Path) -> None:
    for name, image, boxes in samples():
        save(image, root / f"{name}.png")
        save(labels(boxes), root / f"{name}_mask.png")
    names(root)


def spelled(root: Path) -> None:
    for i, (name, image, boxes) in enumerate(samples()):
        split = {"train": "train", "val": "valid"}[split_of(i)]
        save(image, root / f"{split}/Images/{name}.webp")
        save(labels(boxes, lambda k: k + 1), root / f"{split}/Labels/{name}.png")
    names(root)


def camvid(root: Path) -> None:
    for i, (name, image, boxes) in enumerate(samples()):
        save(image, root / split_of(i) / f"{name}.tiff")
        save(labels(boxes), root / f"{split_of(i)}annot/{name}.bmp")
    names(root)


def in_colors(root: Path) -> None:
    for name, image, boxes in samples():
        save(image, root / f"images/{name}.png")
        save(np.array(COLORS, np.uint8)[labels(boxes)], root / f"masks/{name}.png")
    names(root, colors=True)


def palettes(root: Path) -> None:
    for i, (name, image, boxes) in enumerate(samples()):
        save(image, root / f"images/{split_of(i)}/{name}.png")
        save(labels(boxes), root / f"annotations/{split_of(i)}/{name}.png", palette=True)
    names(root)


def binary(root: Path) -> None:
    for name, image, boxes in samples():
        save(image, root / f"images/{name}.png")
        save(labels(boxes, lambda k: 255 * (k > 0)), root / f"masks/{name}.png")


def cityscapes(root: Path) -> None:
    ids = [CITYSCAPES[name] for name in ("road", "car", "person")]
    for i, (name, image, boxes) in enumerate(samples()):
        save(image, root / f"leftImg8bit/{split_of(i)}/ulm/{name}_leftImg8bit.png")
        save(labels(boxes, lambda k: ids[k]), root / f"gtFine/{split_of(i)}/ulm/{name}_gtFine_labelIds.png")


def voc(root: Path) -> None:
    home = root / "VOCdevkit/VOC2012"
    lists = {"train": [], "val": []}
    for i, (name, image, boxes) in enumerate(samples()):
        lists[split_of(i)].append(name)
        save(image, home / f"JPEGImages/{name}.png")
        save(labels(boxes), home / f"SegmentationClass/{name}.png", palette=True)
        objects = "".join(
            f"<object><name>{NAMES[k]}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for (x, y, w, h), k in boxes
        )
        (home / "Annotations").mkdir(exist_ok=True)
        (home / f"Annotations/{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename>{objects}</annotation>"
        )
    for kind in ("Main", "Segmentation"):
        (home / "ImageSets" / kind).mkdir(parents=True)
        for split, listed in lists.items():
            (home / f"ImageSets/{kind}/{split}.txt").write_text("\n".join(listed) + "\n")
    (home / "classes.txt").write_text("\n".join(NAMES) + "\n")


def voc_beside(root: Path) -> None:
    """As Roboflow exports it."""
    voc(root / "tmp")
    for i, (name, image, _) in enumerate(samples()):
        split = {"train": "train", "val": "valid"}[split_of(i)]
        save(image, root / f"{split}/{name}.png")
        (root / "tmp/VOCdevkit/VOC2012/Annotations" / f"{name}.xml").rename(root / f"{split}/{name}.xml")
    shutil.rmtree(root / "tmp")


def content(chosen: list[int]) -> dict:
    images, annotations = [], []
    for i, (name, _, boxes) in enumerate(samples()):
        if i in chosen:
            images.append({"id": i, "file_name": f"{name}.png", "height": H, "width": W})
            for (x, y, w, h), k in boxes:
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    {"id": len(annotations), "image_id": i, "category_id": 10 * k, "bbox": [x, y, w, h]}
                    | {"area": w * h, "iscrowd": 0, "segmentation": [polygon]}
                )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 10 * k, "name": NAMES[k]} for k in (1, 2)],
    }


def one_coco(root: Path) -> None:
    for name, image, _ in samples():
        save(image, root / f"images/{name}.png")
    (root / "annotations.json").write_text(json.dumps(content(list(range(COUNT)))))


def roboflow_coco(root: Path) -> None:
    for i, (name, image, _) in enumerate(samples()):
        save(image, root / {"train": "train", "val": "valid"}[split_of(i)] / f"{name}.png")
    for split, chosen in (("train", [0, 1, 2, 3]), ("valid", [4, 5])):
        (root / split / "_annotations.coco.json").write_text(json.dumps(content(chosen)))


def yolo(root: Path, polygons: bool = False) -> None:
    for i, (name, image, boxes) in enumerate(samples()):
        save(image, root / f"images/{split_of(i)}/{name}.png")
        lines = []
        for (x, y, w, h), k in boxes:
            corners = [x / W, y / H, (x + w) / W, y / H, (x + w) / W, (y + h) / H, x / W, (y + h) / H]
            box = [(x + w / 2) / W, (y + h / 2) / H, w / W, h / H]
            lines.append(" ".join(map(repr, [k - 1, *(corners if polygons else box)])))
        (root / f"labels/{split_of(i)}").mkdir(parents=True, exist_ok=True)
        (root / f"labels/{split_of(i)}/{name}.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: ball, 1: box}\n")


def yolo_polygons(root: Path) -> None:
    yolo(root, polygons=True)


def labelme(root: Path) -> None:
    for name, image, boxes in samples():
        save(image, root / f"{name}.png")
        shapes = [
            {"label": NAMES[k], "shape_type": "rectangle", "points": [[x, y], [x + w - 1, y + h - 1]]}
            for (x, y, w, h), k in boxes
        ]
        file = {"imagePath": f"{name}.png", "shapes": shapes, "imageHeight": H, "imageWidth": W}
        (root / f"{name}.json").write_text(json.dumps(file))


SEGMENTATION = {
    "images and masks, flat": flat,
    "images and masks in one folder": pairs_in_one_folder,
    "train and val spelled otherwise": spelled,
    "masks beside each split (CamVid)": camvid,
    "masks in colors": in_colors,
    "palette masks": palettes,
    "masks of 0 and 255": binary,
    "Cityscapes": cityscapes,
    "Pascal VOC, masks": voc,
    "LabelMe, painted": labelme,
}
DETECTION = {
    "one COCO file": one_coco,
    "COCO files beside the images (Roboflow)": roboflow_coco,
    "Pascal VOC, boxes": voc,
    "Pascal VOC beside the images (Roboflow)": voc_beside,
    "YOLO, boxes": yolo,
    "YOLO, polygons": yolo_polygons,
    "LabelMe": labelme,
}
CASES = [pytest.param("seg", make, id=name) for name, make in SEGMENTATION.items()]
CASES += [pytest.param("det", make, id=name) for name, make in DETECTION.items()]


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    return Path("set")


@pytest.mark.parametrize(("task", "make"), CASES)
def test_a_layout_is_read_without_a_word_of_configuration(task, make, data, capsys):
    """Every sample is there, in one split, with what was annotated, whatever the layout; check finds no fault."""
    make(data)
    folder = open_dataset(data, task)
    assert folder.train.count + folder.val.count == COUNT and 0 < folder.val.count <= 2
    said = capsys.readouterr().err
    assert "in our layout in data/converted/set-" in said
    found = {}
    if task == "seg":
        for split in ("training", "validation"):
            for path in (folder.root / "annotations" / split).rglob("*.png"):
                found[path.name[:2]] = read_mask(path)
        first = 0 if folder.zero_is_class else 1
        for name, _, boxes in samples():
            expected = labels(boxes, {binary: lambda k: int(k > 0)}.get(make, lambda k: k))
            if make is cityscapes:
                expected = np.array([list(CITYSCAPES).index(x) for x in ("road", "car", "person")])[expected]
            assert np.array_equal(found[name] - first, expected)
        assert ("label 0" in said) == (make is not spelled) or make is spelled
        expected = {
            binary: ("class_0", "class_1"),
            cityscapes: tuple(CITYSCAPES),
            flat: ("class_0", "class_1", "class_2"),
        }
        expected[labelme] = ("_background_", "ball", "box")
        assert folder.classes == expected.get(make, NAMES)
        assert make is not in_colors or folder.palette == COLORS
    else:
        for name in ("train2017", "val2017"):
            file = json.loads((folder.root / f"annotations/instances_{name}.json").read_text())
            names = {category["id"]: category["name"] for category in file["categories"]}
            images = {image["id"]: image["file_name"][:2] for image in file["images"]}
            for annotation in file["annotations"]:
                entry = (names[annotation["category_id"]], [round(x) for x in annotation["bbox"]])
                found.setdefault(images[annotation["image_id"]], []).append(entry)
        less = 1 if make is labelme else 0
        for name, _, boxes in samples():
            expected = [(NAMES[k], [x, y, w - less, h - less]) for (x, y, w, h), k in boxes]
            assert sorted(found[name]) == sorted(expected)
    assert [report.count for report in check_folder(data, task)] == [0]
    assert [report.kind for report in check_folder(data)][:1] == [task] or make in (voc, labelme)


#: A detector without masks, for datasets that have boxes only.
BOXES = """
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(_delete_=True, type="mixtransfer.SwinTransformer", arch="swin_micro", out_indices=(1, 2, 3)),
    neck=dict(in_channels=[64, 128, 256], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
)
train_cfg = dict(max_epochs=2, val_interval=5)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
"""


@pytest.mark.long
@pytest.mark.parametrize(("task", "make"), CASES)
def test_a_layout_is_checked_trained_on_and_predicted_for_by_one_command_each(task, make, data, tmp_path):
    make(data)
    if make in (voc, voc_beside, yolo) and task == "det":
        config = tmp_path / "boxes.py"
        config.write_text(f"_base_ = {str(CONFIGS / 'det/retinanet_pvt.py')!r}\n{BOXES}")
    else:
        config = tiny_config(task, tmp_path)
    ProbeHook.reset()
    assert run_command("data", ["check", "set", "--task", task]) == 0
    length = {"seg": "train_cfg.max_iters=1", "det": "train_cfg.max_epochs=1"}[task]
    assert train(config, data, tmp_path / "work", cfg_options=(length, "train_cfg.val_interval=1")) == 0
    [checkpoint] = (tmp_path / "work").glob("*_1.pth")
    save(samples(1)[0][1], tmp_path / "new/photo.jpg")
    assert run_command("predict", [str(checkpoint), str(tmp_path / "new"), "--out", str(tmp_path / "out")]) == 0
    listed = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(listed["images"]) == 1
    if task == "seg":
        folder = open_dataset(data, "seg")
        first = 0 if folder.zero_is_class else 1
        assert [entry["label"] for entry in listed["classes"]] == [first + k for k in range(len(folder.classes))]


def test_the_drawn_split_follows_from_the_names(data):
    flat(data)
    first = open_dataset(data, "seg")
    held = {path.stem for path in (first.root / "images/validation").iterdir()}
    rng = np.random.default_rng(5)
    for i in range(20):
        save(picture(rng), data / f"images/more{i}.jpg")
        save(np.ones((H, W), np.uint8), data / f"masks/more{i}.png")
    second = open_dataset(data, "seg")
    assert second.root != first.root and second.val.count == 5
    assert len(held & {path.stem for path in (second.root / "images/validation").iterdir()}) <= len(held)
    assert open_dataset(data, "seg").root == second.root


def test_it_is_asked_whether_0_is_a_class_where_masks_leave_it_open(data, capsys):
    for name, image, boxes in samples():
        save(image, data / f"images/{name}.png")
        save(labels(boxes), data / f"masks/{name}.png")
    (data / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    with pytest.raises(UserError, match="highest label is 2 and there are 5 names: say --zero-is-class if"):
        open_dataset(data, "seg")
    assert open_dataset(data, "seg", zero_is_class=True).zero_is_class
    void = open_dataset(data, "seg", zero_is_class=False)
    assert not void.zero_is_class and void.classes == ("a", "b", "c", "d", "e")
    cfg = load_config("upernet_swin_micro_scenes", ("train",), data="set", zero_is_class=True, work_dir="work")
    dataset = cfg.train_dataloader.dataset
    assert dataset.reduce_zero_label is False
    assert [step.reduce_zero_label for step in dataset.pipeline if "reduce_zero_label" in step] == [False]
    assert run_command("train", ["upernet_swin_micro_scenes", "--zero-is-class", "--work-dir", "work"]) == 2
    assert "--zero-is-class: is about the masks of --data" in capsys.readouterr().err


def test_labels_that_cityscapes_does_not_have_are_named(data):
    cityscapes(data)
    path = sorted(data.glob("gtFine/train/ulm/*_labelIds.png"))[0]
    mask = read_mask(path).copy()
    mask[0, :4] = (0, 33, 255, 77)
    save(mask, path)
    with pytest.raises(UserError, match=f"{path.name}: labels that Cityscapes does not have: 77$"):
        open_dataset(data, "seg")


def test_colors_are_asked_for_once(data):
    in_colors(data)
    (data / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"is in colors; write .*classes.txt .*colors here: 0 0 200, 10 20 30, 200 0 0"):
        open_dataset(data, "seg")
    (data / "classes.txt").write_text("ground 10 20 30\nball 200 0 0\n")
    with pytest.raises(UserError, match=r"the color 0 0 200 is of no class in classes\.txt"):
        open_dataset(data, "seg")


@pytest.mark.parametrize("text", ["a\na\n", "a 1 2 3\nb 1 2 3\n", "\n"])
def test_a_list_of_classes_has_each_name_and_color_once(text, tmp_path):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match="1 to 254 different class names"):
        read_classes(tmp_path / "classes.txt")


def test_convert_writes_a_folder_of_its_own_and_split_draws_anew(data, capsys):
    voc(data)
    assert run_command("data", ["convert", "set", "out"]) == 2
    assert "fits several tasks (seg, det); say --task" in capsys.readouterr().err
    assert run_command("data", ["convert", "set", "out", "--task", "det"]) == 0
    assert run_command("data", ["split", "set", "half", "--task", "seg", "--val", "0.5", "--link"]) == 0
    assert not (Path("out/train2017/p0.png")).is_symlink()
    folder = open_dataset("half", "seg")
    assert (folder.train.count, folder.val.count, folder.zero_is_class) == (3, 3, True)
    assert run_command("data", ["convert", "set", "out", "--task", "det"]) == 2
    assert "out: is there already; choose another folder" in capsys.readouterr().err
    Path("empty").mkdir()
    assert run_command("data", ["convert", "empty", "new"]) == 2
    assert "no dataset is recognized; known are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "damage", "said"),
    [
        (
            yolo,
            lambda r: (r / "labels/train/p0.txt").write_text("0 0.5 x 1 1\n"),
            "p0.txt, line 1: no class and shares",
        ),
        (yolo, lambda r: (r / "labels/train/p0.txt").write_text("0 0.5 0.5 1\n"), "4 numbers; a class and a box"),
        (yolo, lambda r: (r / "labels/train/p0.txt").write_text("7 0.5 0.5 0.1 0.1\n"), "class 7 occurs, and 2 names"),
        (voc_beside, lambda r: (r / "train/p0.xml").write_text("<annotation>"), "p0.xml: no Pascal VOC annotation"),
        (one_coco, lambda r: (r / "images/p3.png").unlink(), "its images are in no folder of set, first p3.png"),
        (labelme, lambda r: (r / "p0.png").unlink(), "p0.json: its image p0.png is not there"),
    ],
)
def test_a_damaged_dataset_of_another_tool_is_one_line(make, damage, said, data):
    make(data)
    damage(data)
    with pytest.raises(UserError) as error:
        open_dataset(data, "det")
    assert said in str(error.value)


def test_an_interrupted_conversion_leaves_nothing(data, monkeypatch):
    flat(data)
    source = recognize(data, "seg")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.write_standard(source, Path("out"), progress=stop)
    assert sorted(path.name for path in Path(".").iterdir()) == ["set"]
