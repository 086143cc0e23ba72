"""Predicting from a checkpoint alone: answers are those that ``test`` measures, and nothing in the file is run."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_sets import H, W, class_folders, coco, masks, picture, turned
from tiny_runs import ProbeHook, tiny_config, train

import mixtransfer
from mixtransfer.cli import run_command
from mixtransfer.errors import UserError
from mixtransfer.inference.embedded import embedded_config
from mixtransfer.inference.results import Detections, Segmentation
from mixtransfer.inference.tiles import joined, tiles_of

SHORT = {
    "seg": ("train_cfg.max_iters=1", "train_cfg.val_interval=9"),
    "det": ("train_cfg.max_epochs=1", "train_cfg.val_interval=9"),
}


def trained(task: str, folder: Path, data: Path) -> Path:
    """Train for a moment, then leave neither config nor data where they were."""
    config = tiny_config(task, folder)
    ProbeHook.reset()
    assert train(config, data, folder / "work", cfg_options=SHORT[task]) == 0
    [checkpoint] = (folder / "work").glob("*_1.pth")
    return Path(shutil.move(checkpoint, folder / f"{task}.pth"))


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("seg")
    return trained("seg", folder, masks(folder / "data")), folder / "data"


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("det")
    return trained("det", folder, coco(folder / "data")), folder / "data"


def edited(checkpoint: Path, path: Path, old: str, new: str) -> Path:
    content = torch.load(checkpoint, weights_only=False)
    assert old in content["meta"]["cfg"]
    content["meta"]["cfg"] = content["meta"]["cfg"].replace(old, new)
    torch.save(content, path)
    return path


TTA, SLIDE = ("--tta", "--tta-scales", "1", "1.5"), ("--slide", "48", "32")


@pytest.mark.parametrize("protocol", [(), TTA, pytest.param(SLIDE, marks=pytest.mark.long)])
def test_a_segmentors_masks_measure_as_test_does(protocol, segmentor, tmp_path, capsys):
    checkpoint, data = segmentor
    config = tiny_config("seg", tmp_path)
    argv = [str(config), str(checkpoint), "--data", str(data), "--work-dir", str(tmp_path / "test"), *protocol]
    assert run_command("test", argv) == 0
    measured = json.loads((tmp_path / "test/metrics.json").read_text())["per_class"]
    away = tmp_path / "photos"
    shutil.copytree(data / "images/validation", away / "deep/er")
    out = tmp_path / "out"
    assert run_command("predict", [str(checkpoint), str(away), "--out", str(out), "--show", *protocol]) == 0
    listed = json.loads((out / "predictions.json").read_text())
    assert [entry["label"] for entry in listed["classes"]] == [1, 2, 3] and len(listed["images"]) == 2
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} == {
        f"{kind}/deep/er/{i}.png" for kind in ("masks", "pictures") for i in (0, 1)
    }
    for label, name in enumerate(("ant", "bee", "cat"), 1):
        both = either = 0
        for i in (0, 1):
            truth = np.asarray(Image.open(data / f"annotations/validation/{i}.png")) == label
            found = np.asarray(Image.open(out / f"masks/deep/er/{i}.png")) == label
            both, either = both + (truth & found).sum(), either + (truth | found).sum()
        assert measured[name]["IoU"] == pytest.approx(100 * both / either, abs=1e-3)
    mask = Image.open(out / "masks/deep/er/0.png")
    assert mask.mode == "P" and mask.getpalette()[3:6] == listed["classes"][0]["color"]
    assert sum(listed["images"][0]["shares"].values()) == pytest.approx(1)


@pytest.mark.parametrize("protocol", [(), pytest.param(TTA, marks=pytest.mark.long)])
def test_ap_recomputed_from_a_detectors_json_is_what_test_measured(protocol, detector, tmp_path):
    checkpoint, data = detector
    config = tiny_config("det", tmp_path)
    argv = [str(config), str(checkpoint), "--data", str(data), "--work-dir", str(tmp_path / "test"), *protocol]
    assert run_command("test", argv) == 0
    measured = json.loads((tmp_path / "test/metrics.json").read_text())["metrics"]
    assert (
        run_command("predict", [str(checkpoint), str(data / "val2017"), "--out", str(tmp_path / "out"), *protocol]) == 0
    )
    file = tmp_path / "out/predictions.json"
    content = json.loads(file.read_text())
    assert len(content["annotations"]) > 10 and COCO(str(file)).getAnnIds()
    truth = COCO(str(data / "annotations/instances_val2017.json"))
    ids = {image["file_name"]: image["id"] for image in truth.dataset["images"]}
    mine = {image["id"]: ids[Path(image["file_name"]).name] for image in content["images"]}
    named = {category["name"]: category["id"] for category in truth.dataset["categories"]}
    own = {category["id"]: named[category["name"]] for category in content["categories"]}
    results = [
        {**a, "image_id": mine[a["image_id"]], "category_id": own[a["category_id"]]} for a in content["annotations"]
    ]
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        key = next(key for key in measured if key.endswith(f"{kind}_mAP"))
        assert measured[key] == pytest.approx(evaluation.stats[0], abs=1e-3)


def test_a_classifiers_scores_are_a_table(tmp_path):
    data = class_folders(tmp_path / "data")
    short = ["train_cfg.max_epochs=1", "param_scheduler=[]", "train_dataloader.num_workers=0"]
    argv = ["swin_micro_scenes", "--data", str(data), "--work-dir", str(tmp_path / "work")]
    options = ["--cfg-options", *short, "train_dataloader.batch_size=4", "train_dataloader.drop_last=False"]
    assert run_command("train", [*argv, *options]) == 0
    out = tmp_path / "out"
    checkpoint = str(tmp_path / "work/epoch_1.pth")
    assert run_command("predict", [checkpoint, str(data / "val"), "--out", str(out), "--show"]) == 0
    with open(out / "scores.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and set(rows[0]) == {"file", "class", "score", "ant", "bee", "cat"}
    assert sum(float(rows[0][name]) for name in ("ant", "bee", "cat")) == pytest.approx(1, abs=1e-5)
    assert rows[0]["class"] == max(("ant", "bee", "cat"), key=lambda name: float(rows[0][name]))
    assert run_command("predict", [checkpoint, str(data / "val"), "--out", str(out), "--tile", "64"]) == 2


def test_a_model_answers_in_python_about_files_and_pixels(segmentor, detector):
    model = mixtransfer.load_model(segmentor[0], "cpu")
    file = segmentor[1] / "images/validation/0.png"
    answer = model.predict(file)
    assert isinstance(answer, Segmentation) and answer.labels.shape == answer.size == (H, W)
    assert answer.classes == ("ant", "bee", "cat") and list(answer.shares().values()) == sorted(
        answer.shares().values(), reverse=True
    )
    pixels = np.asarray(Image.open(file))
    several = model.predict([pixels, str(file), pixels[:40]], batch_size=2)
    assert np.array_equal(several[0].labels, answer.labels) and several[2].size == (40, W)
    found = mixtransfer.load_model(detector[0]).predict(detector[1] / "val2017/0.png")
    assert isinstance(found, Detections) and found.masks.shape == (len(found), H, W)
    assert (np.diff(found.scores) <= 0).all() and len(found.above(2.0)) == 0
    name, score, box = next(iter(found))
    assert name in found.classes and 0 < score <= 1 and len(box) == 4
    with pytest.raises(UserError, match="give RGB"):
        model.predict(pixels[..., 0])


def test_images_of_any_kind_are_read_as_in_training_and_bad_ones_are_named(segmentor, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    image = picture(np.random.default_rng(0), [((4, 5, 20, 15), 1), ((30, 20, 25, 20), 2)])
    Image.fromarray(image).save(images / "upright.png")
    turned(image, 6, images / "turned.png")
    kinds = {"grey.png": "L", "cmyk.TIFF": "CMYK", "alpha.webp": "RGBA", "palette.BMP": "P"}
    for name, mode in kinds.items():
        Image.fromarray(image).convert(mode).save(images / name, **({"lossless": True} if "webp" in name else {}))
    Image.fromarray(image[..., 0].astype(np.uint16) * 257).save(images / "deep.png")
    (images / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    assert run_command("predict", [str(segmentor[0]), str(images), "--out", str(out)]) == 1
    output = capsys.readouterr()
    assert output.err.count("error:") == 1 and "broken.jpg: cannot be loaded" in output.err
    listed = json.loads((out / "predictions.json").read_text())
    assert len(listed["images"]) == 7 and [Path(entry["file_name"]).name for entry in listed["failed"]] == [
        "broken.jpg"
    ]
    found = {path.stem: np.asarray(Image.open(path)) for path in (out / "masks").iterdir()}
    assert len(found) == 7 and all(labels.shape == (H, W) for labels in found.values())
    assert np.array_equal(found["turned"], found["upright"]) and np.array_equal(found["alpha"], found["upright"])
    assert np.array_equal(found["deep"], found["grey"]) or (found["deep"] == found["grey"]).mean() > 0.9


def test_outputs_take_the_place_of_no_image_and_what_is_missing_is_named(segmentor, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(tmp_path / "masks/a.png")
    assert run_command("predict", [str(segmentor[0]), str(tmp_path / "masks/a.png"), "--out", str(tmp_path)]) == 2
    assert "is one of the images; give another --out" in capsys.readouterr().err
    assert run_command("predict", [str(segmentor[0]), str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "none: no such image or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("type='PackSegInputs'", "type='os.getcwd'", "the type 'os.getcwd' at test_dataloader"),
        ("type='PackSegInputs'", "type='antigravity'", "no class of mixtransfer or OpenMMLab"),
        ("type='GELU'", "type='subprocess.Popen'", "'subprocess.Popen'"),
        ("default_scope = 'mmseg'", "default_scope = print('ran')", "its config is no list of settings"),
        ("default_scope = 'mmseg'", "default_scope = 'os'", "default_scope='os'"),
        ("default_scope = 'mmseg'", "import os", "its config is no list of settings"),
    ],
)
def test_nothing_in_the_config_of_a_checkpoint_is_run(segmentor, tmp_path, capsys, old, new, said):
    content = torch.load(segmentor[0], weights_only=False)
    if old not in content["meta"]["cfg"]:
        content["meta"]["cfg"] = content["meta"]["cfg"].replace(
            "model = dict(", f"model = dict(act_cfg=dict({new}),", 1
        )
    content["meta"]["cfg"] = content["meta"]["cfg"].replace(old, new)
    with pytest.raises(UserError) as error:
        embedded_config(content, "evil.pth")
    assert said in str(error.value) and "ran" not in capsys.readouterr().out


#: What a checkpoint may hold in the places of settings, by the text that it replaces or as its classes and colors.
HOSTILE = {
    "far more than the file": ("channels=8", "channels=400_000_000"),
    "a word for a number": ("channels=8", "channels='many'"),
    "a word for a dict": ("test_dataloader = dict(", "test_dataloader = 'x'\nrest = dict("),
    "windows of nothing": ("mode='whole'", "mode='slide', crop_size=(0, 0), stride=(0, 0)"),
    "an image of a size that no memory holds": ("type='PackSegInputs'", "type='Resize', scale=(9_000_000, 9_000_000)"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_config_is_one_line(segmentor, tmp_path, kind):
    old, new = HOSTILE[kind]
    path = edited(segmentor[0], tmp_path / "a.pth", old, new)
    with pytest.raises(UserError) as error:
        mixtransfer.load_model(path, "cpu").predict(segmentor[1] / "images/validation/0.png")
    assert str(error.value).startswith(f"{path}") and str(error.value).isprintable()


@pytest.mark.parametrize(
    ("classes", "palette", "said"),
    [
        (["a"], None, "names 1 classes, and answers with number"),
        (["\x1b[2J", "a\nb", "$$\ud800", "c"], [[1, 2, 3]] * 4, None),
        (["a", "b", "c"], [[0, 0, -1], "red", 7], None),
        ([["a"], 2, None], 5, None),
    ],
)
def test_hostile_classes_and_colors_are_shown_or_left_out(segmentor, tmp_path, capsys, classes, palette, said):
    content = torch.load(segmentor[0], weights_only=False)
    content["meta"]["dataset_meta"] = {"classes": classes, "palette": palette}
    torch.save(content, tmp_path / "a.pth")
    image = str(segmentor[1] / "images/validation/0.png")
    status = run_command("predict", [str(tmp_path / "a.pth"), image, "--out", str(tmp_path / "out"), "--show"])
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    if said is None:
        assert status == 0 and {path.suffix for path in (tmp_path / "out").rglob("*.*")} == {".png", ".json"}
    else:
        assert status == 2 and said in shown.err


def test_a_suppression_is_a_name_and_a_class_weight_no_file(detector):
    content = torch.load(detector[0], weights_only=False)
    text = content["meta"]["cfg"]
    for old, new in (("type='nms'", "type='__import__(\"os\").getcwd()'"), ("loss_weight=1.0", "class_weight='x.pkl'")):
        assert old in text
        with pytest.raises(UserError, match="no class of mixtransfer"):
            embedded_config({"meta": {"cfg": text.replace(old, new, 1)}}, "evil.pth")
    assert isinstance(embedded_config(content, "good.pth"), Config)


@pytest.mark.parametrize("task", ["seg", *(pytest.param(task, marks=pytest.mark.long) for task in ("det", "cls"))])
def test_a_fresh_process_knows_the_types_of_our_recipes(task):
    """Some of our classes are registered when their names are looked up."""
    name = {"seg": "upernet_swin_micro_scenes", "det": "mask_rcnn_swin_micro_nuts", "cls": "swin_micro_scenes"}[task]
    code = "from mixtransfer.engine.config import read_config; from mixtransfer.datasets.transforms import add_checks;"
    code += "from mixtransfer.inference.embedded import embedded_config;"
    code += f"cfg = read_config('{name}'); add_checks(cfg);"
    code += "embedded_config({'meta': {'cfg': cfg.pretty_text}}, 'a.pth')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_without_a_config_says_how_else(segmentor, tmp_path, capsys):
    content = torch.load(segmentor[0], weights_only=False)
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "bare.pth")
    argv = [str(tmp_path / "bare.pth"), str(segmentor[1] / "images/validation/0.png"), "--out", str(tmp_path)]
    assert run_command("predict", argv) == 2
    assert "holds no config" in capsys.readouterr().err


def test_tiles_cover_an_image_and_their_answers_become_one():
    size = (100, 150)
    tiles = tiles_of(size, 64)
    inner = np.zeros(size, int)
    for tile in tiles:
        assert tile.bottom - tile.top <= 64 and tile.right - tile.left <= 64
        top, left, bottom, right = tile.inner
        assert tile.top <= top and tile.left <= left and bottom <= tile.bottom and right <= tile.right
        inner[top:bottom, left:right] += 1
    assert (inner == 1).all() and tiles_of((64, 30), 64)[0].inner == (0, 0, 64, 30)
    labels = np.arange(size[0] * size[1]).reshape(size) % 251
    parts = [
        (t, Segmentation((0, 0), ("a",), labels[t.top : t.bottom, t.left : t.right].astype(np.uint8))) for t in tiles
    ]
    assert np.array_equal(joined(parts, size).labels, labels)


def test_an_instance_in_two_tiles_is_one():
    """A box over the border: one tile sees it whole, the others the parts that lie in them; a second one is small."""
    size, wanted = (100, 150), np.array([[50, 20, 62, 60], [100, 80, 110, 90]], np.float32)
    parts = []
    for tile in tiles_of(size, 64):
        boxes, scores, drawn = [], [], []
        for box, score in zip(wanted, (0.9, 0.8), strict=True):
            seen = np.clip(box - [tile.left, tile.top] * 2, 0, 64)
            if seen[2] - seen[0] > 2 and seen[3] - seen[1] > 2:
                whole = np.array_equal(seen, box - [tile.left, tile.top] * 2)
                boxes.append(seen)
                # A network may be surer of a part.
                scores.append(score if whole else 0.95)
                mask = np.zeros((tile.bottom - tile.top, tile.right - tile.left), bool)
                mask[int(seen[1]) : int(seen[3]), int(seen[0]) : int(seen[2])] = True
                drawn.append(mask)
        count = len(boxes)
        shape = (0, tile.bottom - tile.top, tile.right - tile.left)
        parts.append(
            (
                tile,
                Detections(
                    shape[1:],
                    ("a",),
                    np.array(boxes, np.float32).reshape(-1, 4),
                    np.zeros(count, np.int64),
                    np.array(scores, np.float32),
                    np.array(drawn, bool).reshape(count, *shape[1:]),
                ),
            )
        )
    assert sum(len(answer) for _, answer in parts) > 2
    answer = joined(parts, size)
    assert np.allclose(answer.boxes, wanted) and answer.masks[0].sum() == 12 * 40 and answer.size == size


def test_a_large_image_is_cut_into_tiles(segmentor, tmp_path):
    model = mixtransfer.load_model(segmentor[0])
    large = np.tile(picture(np.random.default_rng(0)), (3, 3, 1))
    answer = model.predict(large, tile=64)
    assert answer.labels.shape == large.shape[:2]
    [box] = [tile for tile in tiles_of(large.shape[:2], 64)][:1]
    top, left, bottom, right = box.inner
    alone = model.predict(large[box.top : box.bottom, box.left : box.right])
    assert np.array_equal(answer.labels[top:bottom, left:right], alone.labels[top:bottom, left:right])
    with pytest.raises(UserError, match="give 32 pixels or more"):
        model.predict(large, tile=8)
