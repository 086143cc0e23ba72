"""Dataset folders: described, checked for every kind of damage, and put into OpenMMLab configs."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from PIL import Image

import mixtransfer.registry  # noqa: F401  makes mmcv.ops importable, which the libraries' configs import
from mixtransfer.cli import main
from mixtransfer.datasets import folders
from mixtransfer.datasets.check import check_folder
from mixtransfer.datasets.configure import apply_dataset, require_dataset
from mixtransfer.datasets.folders import make_palette, open_dataset
from mixtransfer.datasets.scene_rendering import THINGS
from mixtransfer.datasets.scenes import CLASSES, write_scenes
from mixtransfer.errors import UserError

SMALL = dict(train=6, val=3, classify_train=24, classify_val=12, size=(64, 80))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", **SMALL)


@pytest.fixture
def copy(scenes, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(scenes, tmp_path / "copy"))


# --- open_dataset --------------------------------------------------------------------------------------------------


def test_the_scenes_in_all_layouts(scenes):
    seg, det, cls = (open_dataset(scenes, task) for task in ("seg", "det", "cls"))
    assert seg.classes == CLASSES and det.classes == tuple(THINGS) and cls.classes == tuple(sorted(CLASSES))
    assert [seg.train.count, det.train.count, cls.train.count] == [6, 6, 24]
    assert [seg.val.count, det.val.count, cls.val.count] == [3, 3, 12]
    assert (seg.train.image_suffix, seg.train.mask_suffix) == (".jpg", ".png")
    assert det.root == scenes / "det"


def test_the_word_scenes_writes_once_then_reuses(tmp_path, monkeypatch):
    calls = []

    def write_small(root, progress):
        calls.append(root)
        write_scenes(root, **SMALL)

    monkeypatch.setattr(folders, "write_scenes", write_small)
    monkeypatch.chdir(tmp_path)
    assert open_dataset("scenes", "seg").root == Path("data/scenes/seg")
    assert open_dataset("scenes", "det").root == Path("data/scenes/det")
    assert calls == [Path("data/scenes")]


def test_without_a_list_the_classes_are_counted_in_the_masks(copy):
    (copy / "seg/classes.txt").unlink()
    mask = np.zeros((64, 80), np.uint8)
    mask[:5], mask[5:9] = 17, 255
    Image.fromarray(mask).save(copy / "seg/annotations/validation/000001.png")
    opened = open_dataset(copy / "seg", "seg")
    assert opened.classes == tuple(f"class_{i}" for i in range(1, 18))
    assert len(set(opened.palette)) == 17


def test_palette_has_a_color_for_every_label():
    assert len(set(make_palette(254))) == 254


def test_missing_dataset_says_what_where_which_layout_and_the_remedy(tmp_path):
    with pytest.raises(UserError) as error:
        open_dataset(tmp_path / "ade", "seg")
    text = str(error.value)
    assert "\n" not in text
    for part in (
        "images/training is missing",
        str(tmp_path / "ade"),
        "annotations/{training,validation}",
        "--data scenes",
    ):
        assert part in text


def test_a_dataset_in_another_layout_is_named(scenes):
    with pytest.raises(UserError, match=r"no detection dataset.*what is there is in ADE20K's layout"):
        open_dataset(scenes / "seg", "det")


def test_unknown_task(scenes):
    with pytest.raises(UserError, match="unknown task 'segm'; did you mean seg"):
        open_dataset(scenes, "segm")


def test_folders_that_cannot_be_used(copy):
    (copy / "seg/annotations/training/000002.png").unlink()
    with pytest.raises(UserError, match=r"1 of 6 images .*000002\.jpg"):
        open_dataset(copy, "seg")
    (copy / "seg/images/training/000002.jpg").rename(copy / "seg/images/training/000001.png")
    with pytest.raises(UserError, match=r"two images named 000001, in different formats"):
        open_dataset(copy, "seg")
    (copy / "det/val2017/000001.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images .*first 000001\.jpg"):
        open_dataset(copy, "det")
    shutil.rmtree(copy / "cls/val/ring")
    with pytest.raises(UserError, match="different class folders: ring"):
        open_dataset(copy, "cls")


def test_detection_classes_come_in_the_order_of_the_file_that_mmdet_uses(copy):
    for name in ("train", "val"):
        path = copy / f"det/annotations/instances_{name}2017.json"
        content = json.loads(path.read_text())
        content["categories"].reverse()
        path.write_text(json.dumps(content))
    assert open_dataset(copy, "det").classes == tuple(reversed(THINGS))


# --- check ---------------------------------------------------------------------------------------------------------


def test_clean_scenes_pass_and_the_table_counts(scenes, capsys):
    assert main(["data", "check", str(scenes)]) == 0
    out = capsys.readouterr().out
    assert "no problems" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["training", "6", "6", "64x80"] == next(row for row in rows if row[:1] == ["training"])[:4]
    assert ["ring", "2", "1"] in rows
    seg, det, _ = check_folder(scenes)
    content = json.loads((scenes / "det/annotations/instances_train2017.json").read_text())
    crowd = sum(annotation["iscrowd"] for annotation in content["annotations"])
    assert det.splits[1][4:6] == (str(len(content["annotations"])), str(crowd))
    shares = [float(row[1].rstrip("%")) for row in seg.classes[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.1)


def test_problems_end_in_status_2_and_one_line(copy, capsys):
    (copy / "seg/images/training/000001.jpg").write_bytes(b"no image")
    assert main(["data", "check", str(copy), "--task", "seg"]) == 2
    output = capsys.readouterr()
    assert "images/training/000001.jpg" in output.out
    assert output.err.count("\n") == 1 and "1 problem in" in output.err
    assert main(["data", "check", str(copy / "nowhere")]) == 2
    assert "no dataset in" in capsys.readouterr().err


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def _save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


SEG_DAMAGE = {
    "unreadable image": lambda r: _truncate(r / "images/training/000000.jpg"),
    "unreadable mask": lambda r: _truncate(r / "annotations/validation/000000.png"),
    "image without mask": lambda r: (r / "annotations/training/000003.png").unlink(),
    "mask without image": lambda r: (r / "images/training/000003.jpg").unlink(),
    "mask of another size": lambda r: _save(r / "annotations/training/000000.png", np.ones((64, 79), np.uint8)),
    "label outside the classes": lambda r: _save(
        r / "annotations/training/000000.png", np.full((64, 80), 13, np.uint8)
    ),
    "mask with several channels": lambda r: _save(
        r / "annotations/training/000000.png", np.ones((64, 80, 3), np.uint8)
    ),
    "no images": lambda r: shutil.rmtree(r / "images/validation"),
    "different formats": lambda r: Image.open(r / "images/training/000000.jpg").save(r / "images/training/000000.png"),
    "unusable list of classes": lambda r: (r / "classes.txt").write_text("sky\nsky\n"),
}


@pytest.mark.parametrize("problem", SEG_DAMAGE)
def test_check_finds_damage_in_segmentation(copy, problem):
    SEG_DAMAGE[problem](copy / "seg")
    (report,) = check_folder(copy / "seg", "seg")
    assert any(problem in kind for kind in report.problems), report.problems


def test_a_mask_may_be_void(copy):
    _save(copy / "seg/annotations/training/000001.png", np.full((64, 80), 255, np.uint8))
    assert check_folder(copy, "seg")[0].count == 0


def test_photographs_turned_by_exif_fit_their_masks(copy):
    image = Image.open(copy / "seg/images/training/000000.jpg").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(copy / "seg/images/training/000000.jpg", exif=exif)
    assert check_folder(copy, "seg")[0].count == 0


DET_DAMAGE = {
    "unknown category": lambda c: c["annotations"][0].update(category_id=99),
    "annotation of an image that is not listed": lambda c: c["annotations"][0].update(image_id=99),
    "box without area": lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 4]),
    "box outside its image": lambda c: c["annotations"][0].update(bbox=[70, 2, 20, 4]),
    "malformed polygon": lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5]], iscrowd=0),
    "polygon without area": lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 6]], iscrowd=0),
    "polygon outside its image": lambda c: c["annotations"][0].update(segmentation=[[0, 0, 99, 0, 0, 9]], iscrowd=0),
    "empty segmentation": lambda c: c["annotations"][0].update(segmentation=[]),
    "malformed run lengths": lambda c: c["annotations"][0].update(segmentation={"size": [64, 80], "counts": [5, 6]}),
    "id used twice in annotations": lambda c: c["annotations"][0].update(id=c["annotations"][1]["id"]),
    "id used twice in images": lambda c: c["images"][0].update(id=c["images"][1]["id"]),
    "missing image": lambda c: c["images"][0].update(file_name="elsewhere.jpg"),
    "image of another size than stated": lambda c: c["images"][0].update(height=65),
    "no annotations": lambda c: c["annotations"].clear(),
    "categories differ": lambda c: c["categories"].pop(),
    "unusable annotation file": lambda c: c.pop("images"),
}


@pytest.mark.parametrize("problem", DET_DAMAGE)
def test_check_finds_damage_in_detection(copy, problem):
    path = copy / "det/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    DET_DAMAGE[problem](content)
    path.write_text(json.dumps(content))
    (report,) = check_folder(copy, "det")
    assert any(problem in kind for kind in report.problems), report.problems


def test_check_finds_damaged_files_in_detection(copy):
    _truncate(copy / "det/train2017/000000.jpg")
    (copy / "det/annotations/instances_val2017.json").write_text('{"images": [')
    problems = check_folder(copy, "det")[0].problems
    assert "000000.jpg" in problems["unreadable image"][0]
    assert "not a JSON file" in problems["unusable annotation file"][0]
    (copy / "det/annotations/instances_val2017.json").unlink()
    assert "missing file" in check_folder(copy, "det")[0].problems


def test_boxes_without_masks_are_no_problem(copy):
    for name in ("train", "val"):
        path = copy / f"det/annotations/instances_{name}2017.json"
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        path.write_text(json.dumps(content))
    assert check_folder(copy, "det")[0].count == 0


def test_check_finds_damage_in_classification(copy):
    root = copy / "cls"
    _truncate(root / "train/sky/00000.png")
    for path in (root / "val/box").iterdir():
        path.unlink()
    shutil.rmtree(root / "train/fish")
    shutil.copy(root / "val/sky/00000.png", root / "val/loose.png")
    assert set(check_folder(copy, "cls")[0].problems) == {
        "unreadable image",
        "class without images",
        "class folder in one split only",
        "image outside the class folders",
    }


def test_long_lists_of_problems_are_cut(copy):
    for path in (copy / "cls/train/sky", copy / "cls/train/ring", copy / "cls/train/tree", copy / "cls/train/ball"):
        for image in path.iterdir():
            image.write_bytes(b"")
    text = str(check_folder(copy, "cls")[0])
    assert "unreadable image: 8" in text and "and 3 more" in text


# --- configs -------------------------------------------------------------------------------------------------------


def _det_config() -> Config:
    return Config(
        dict(
            model=dict(
                type="MaskRCNN",
                backbone=dict(type="X", token_classifier=dict(num_classes=80)),
                rpn_head=dict(type="RPNHead", num_classes=1),
                roi_head=dict(
                    bbox_head=[dict(num_classes=80, loss_cls=dict(class_weight=1.0)) for _ in range(3)],
                    mask_head=dict(num_classes=80),
                ),
            ),
            train_dataloader=dict(
                batch_size=2,
                dataset=dict(
                    type="RepeatDataset",
                    times=2,
                    dataset=dict(
                        type="ConcatDataset",
                        datasets=[
                            dict(type="VOCDataset", data_root="voc", ann_file="2007.txt", pipeline=[dict(type="A")]),
                            dict(type="VOCDataset", data_root="voc", ann_file="2012.txt", pipeline=[dict(type="A")]),
                        ],
                    ),
                ),
            ),
            val_dataloader=dict(
                dataset=dict(type="CocoDataset", data_root="x", ann_file="y.json", test_mode=True, pipeline=[])
            ),
            test_dataloader=None,
            val_evaluator=[
                dict(type="CocoMetric", ann_file="y.json", metric="bbox"),
                dict(type="CityScapesMetric", outfile_prefix="z"),
            ],
            test_evaluator=dict(type="VOCMetric", metric="mAP"),
        )
    )


def test_apply_to_a_detector_with_wrappers(scenes):
    cfg, folder = _det_config(), open_dataset(scenes, "det")
    apply_dataset(cfg, folder)
    repeated = cfg.train_dataloader.dataset
    assert (repeated.type, repeated.times, cfg.train_dataloader.batch_size) == ("RepeatDataset", 2, 2)
    dataset = repeated.dataset
    assert dataset.type == "mmdet.CocoDataset" and dataset.pipeline == [dict(type="A")]
    assert (Path(dataset.data_root) / dataset.ann_file).is_file()
    assert dataset.metainfo.classes == folder.classes
    assert cfg.val_dataloader.dataset.test_mode and cfg.val_dataloader.dataset.data_prefix.img == "val2017/"
    assert cfg.test_dataloader is None
    annotations = str(scenes / "det/annotations/instances_val2017.json")
    assert [dict(metric) for metric in cfg.val_evaluator] == [
        dict(type="CocoMetric", ann_file=annotations, metric="bbox")
    ]
    assert cfg.test_evaluator[0].metric == ["bbox", "segm"] and cfg.test_evaluator[0].ann_file == annotations
    model = cfg.model
    assert [head.num_classes for head in model.roi_head.bbox_head] == [6, 6, 6]
    assert model.roi_head.mask_head.num_classes == model.backbone.token_classifier.num_classes == 6
    assert model.rpn_head.num_classes == 1


@pytest.mark.parametrize(
    "path, heads",
    [
        ("retinanet/retinanet_r50_fpn_1x_coco.py", [("bbox_head", "num_classes")]),
        ("htc/htc_r50_fpn_1x_coco.py", [("roi_head", "bbox_head", 2, "num_classes")]),
        ("mask2former/mask2former_r50_8xb2-lsj-50e_coco.py", [("panoptic_head", "num_things_classes")]),
    ],
)
def test_apply_to_published_detectors(scenes, path, heads):
    cfg = _from_library("mmdet", path)
    apply_dataset(cfg, open_dataset(scenes, "det"))
    for keys in heads:
        value = cfg.model
        for key in keys:
            value = value[key]
        assert value == 6
    if "htc" in path:
        assert cfg.model.roi_head.semantic_head.num_classes == 183
    if "mask2former" in path:
        assert cfg.model.panoptic_head.loss_cls.class_weight == [1.0] * 6 + [0.1]


def _from_library(package: str, path: str) -> Config:
    return Config.fromfile(Path(importlib.import_module(package).__file__).parent / ".mim/configs" / path)


def test_apply_to_published_segmentors(scenes):
    folder = open_dataset(scenes, "seg")
    cfg = _from_library("mmseg", "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py")
    pipeline = [dict(step) for step in cfg.train_dataloader.dataset.pipeline]
    apply_dataset(cfg, folder)
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 12
    assert [dict(step) for step in cfg.train_dataloader.dataset.pipeline] == pipeline
    assert cfg.train_dataloader.dataset.reduce_zero_label
    assert cfg.val_evaluator == [dict(type="IoUMetric", iou_metrics=["mIoU"])]
    cfg = _from_library("mmseg", "ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py")
    apply_dataset(cfg, folder)
    assert cfg.model.decode_head.loss_decode[0].class_weight == [1.0] * 12
    cfg = _from_library("mmseg", "mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py")
    apply_dataset(cfg, folder)
    assert cfg.model.decode_head.loss_cls.class_weight == [1.0] * 12 + [0.1]


def test_apply_to_a_published_classifier(scenes):
    cfg = _from_library("mmpretrain", "swin_transformer/swin-tiny_16xb64_in1k.py")
    apply_dataset(cfg, open_dataset(scenes, "cls"))
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 12
    assert cfg.val_evaluator[0].topk == (1, 5)
    four = ConfigDict(type="Accuracy", topk=(1, 5))
    cfg.val_evaluator = four
    folder = open_dataset(scenes, "cls")
    apply_dataset(cfg, type(folder)(**{**vars(folder), "classes": folder.classes[:4], "palette": folder.palette[:4]}))
    assert cfg.val_evaluator[0].topk == (1,)


def test_the_libraries_load_what_the_config_says(scenes):
    """The datasets are built and read, so that names, labels and void are what was written."""
    from mmdet.registry import DATASETS as DET
    from mmdet.utils import register_all_modules as register_det
    from mmpretrain.registry import DATASETS as CLS
    from mmpretrain.utils import register_all_modules as register_cls
    from mmseg.registry import DATASETS as SEG
    from mmseg.utils import register_all_modules as register_seg

    def built(registry, register, task, pipeline):
        register(init_default_scope=False)
        loader = dict(dataset=dict(type="Any", pipeline=pipeline))
        cfg = Config(dict(model=dict(num_classes=1), train_dataloader=loader))
        apply_dataset(cfg, open_dataset(scenes, task))
        return registry.build(cfg.train_dataloader.dataset)

    load = [dict(type="LoadImageFromFile")]
    seg = built(SEG, register_seg, "seg", [*load, dict(type="mmseg.LoadAnnotations", reduce_zero_label=False)])
    assert len(seg) == 6
    stored = np.asarray(Image.open(scenes / "seg/annotations/training/000002.png"))
    expected = np.where(stored == 0, 255, stored - 1)
    assert np.array_equal(seg[2]["gt_seg_map"], expected)

    det = built(DET, register_det, "det", [*load, dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True)])
    content = json.loads((scenes / "det/annotations/instances_train2017.json").read_text())
    seen = set()
    for sample in (det[i] for i in range(len(det))):
        annotations = [a for a in content["annotations"] if a["image_id"] == sample["img_id"]]
        names = [CLASSES[a["category_id"] - 1] for a in annotations]
        assert [det.metainfo["classes"][label] for label in sample["gt_bboxes_labels"]] == names
        assert list(sample["gt_ignore_flags"]) == [bool(a["iscrowd"]) for a in annotations]
        for annotation, mask in zip(annotations, sample["gt_masks"].masks, strict=True):
            if not annotation["iscrowd"]:
                assert mask.sum() == annotation["area"]
        seen.update(names)
    assert len(seen) > 3

    cls = built(CLS, register_cls, "cls", load)
    assert len(cls) == 24
    for i in (0, 11, 23):
        assert cls.metainfo["classes"][cls[i]["gt_label"]] == Path(cls[i]["img_path"]).parent.name


def test_a_config_whose_dataset_is_not_there(scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = _from_library("mmseg", "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py")
    with pytest.raises(UserError, match=r"no segmentation dataset in data/ade/ADEChallengeData2016.*--data scenes"):
        require_dataset(cfg)
    cfg = _from_library("mmdet", "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    (tmp_path / "data/coco/train2017").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no detection dataset.*annotations/instances_train2017\.json is missing"):
        require_dataset(cfg)
    apply_dataset(cfg, open_dataset(scenes, "det"))
    require_dataset(cfg, ("train", "val", "test"))
