"""COCO files: problems are found before training, missing fields filled, and identifiers and order change nothing."""

import json
import random

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as pycoco
from small_sets import NAMES, H, W, coco

import mixtransfer.registry  # noqa: F401  makes mmcv.ops importable
from mixtransfer.datasets.before import prepare_data
from mixtransfer.datasets.check import check_folder
from mixtransfer.datasets.coco import find_problems, read_coco, sound_content
from mixtransfer.datasets.configure import apply_dataset
from mixtransfer.datasets.folders import open_dataset
from mixtransfer.errors import UserError


def prepared(root, work_dir, masks=True, purpose="train"):
    """A config on the data, as ``train`` prepares it."""
    loader = dict(dataset=dict(type="CocoDataset", pipeline=[dict(type="LoadImageFromFile")]))
    head = dict(bbox_head=dict(num_classes=1)) | (dict(mask_head=dict(num_classes=1)) if masks else {})
    cfg = Config(
        dict(model=dict(roi_head=head), train_dataloader=loader, val_dataloader=loader, test_dataloader=loader)
        | dict(val_evaluator=dict(type="CocoMetric"), work_dir=str(work_dir), default_scope="mmdet")
    )
    apply_dataset(cfg, open_dataset(root, "det"))
    prepare_data(cfg, purpose)
    return cfg


def each(change):
    """Change every annotation."""

    def edit(content):
        for number, annotation in enumerate(content["annotations"]):
            change(number, annotation)

    return edit


def sound(root, split="train2017"):
    return sound_content(read_coco(root / f"annotations/instances_{split}.json"), NAMES)


FILLED = {
    "iscrowd": each(lambda n, a: a.pop("iscrowd")),
    "no area": each(lambda n, a: a.pop("area")),
    "null area": each(lambda n, a: a.update(area=None)),
    "area of 0": each(lambda n, a: a.update(area=0)),
    "negative area": each(lambda n, a: a.update(area=-1.5)),
    "box": each(lambda n, a: a.pop("bbox")),
    "id": each(lambda n, a: a.pop("id")),
    "size": lambda content: [image.pop("height") and image.pop("width") for image in content["images"]],
}


@pytest.mark.parametrize("field", FILLED)
def test_a_missing_field_is_filled_and_noted(tmp_path, field):
    coco(tmp_path / "whole")
    coco(tmp_path / "lacking", FILLED[field])
    assert not check_folder(tmp_path / "whole")[0].notes
    (report,) = check_folder(tmp_path / "lacking")
    assert report.count == 0 and len(report.notes) == 2
    expected = prepared(tmp_path / "whole", tmp_path / "a")
    found = prepared(tmp_path / "lacking", tmp_path / "b")
    for split in ("train", "val"):
        files = [cfg[f"{split}_dataloader"].dataset.ann_file for cfg in (expected, found)]
        first, second = (json.loads(open(file).read()) for file in files)
        assert first == second
    assert found.val_evaluator[0].ann_file == found.val_dataloader.dataset.ann_file


def test_fields_of_run_lengths_come_from_their_pixels(tmp_path):
    pixels = np.zeros((H, W), np.uint8, order="F")
    pixels[5:9, 7:12], pixels[20, 30] = 1, 1
    packed = pycoco.encode(pixels)["counts"].decode()
    flat = pixels.flatten(order="F")
    ends = [*np.flatnonzero(np.diff(flat)) + 1, flat.size]
    plain = np.diff([0, *ends]).tolist()

    def edit(content):
        for annotation, counts in zip(content["annotations"], (packed, plain), strict=False):
            annotation["segmentation"] = dict(size=[H, W], counts=counts)
            del annotation["bbox"], annotation["area"]

    root = coco(tmp_path / "data", edit)
    assert check_folder(root)[0].count == 0
    for annotation in [a for a in sound(root)["annotations"] if isinstance(a["segmentation"], dict)]:
        assert annotation["area"] == 21 and annotation["bbox"] == [7, 5, 24, 16]


def one(**change):
    """Change the second annotation."""
    return each(lambda n, a: n == 1 and a.update(change))


def cut(text):
    return {"size": [H, W], "counts": text}


REFUSED = {
    "malformed box": [
        one(bbox=["1", "2", "3", "4"]),
        one(bbox=[1, 2, float("nan"), 4]),
        one(bbox=[1, 2, float("inf"), 4]),
        one(bbox=[1, 2, 3]),
        one(bbox="box"),
        one(bbox=[10**400, 2, 3, 4]),
        one(bbox=[True, 2, 3, 4]),
        one(bbox=None, segmentation=None),
    ],
    "box without area": [one(bbox=[1, 2, 0, 4]), one(bbox=[1, 2, 3, -4])],
    "box of less than a pixel": [one(bbox=[0.1, 0.2, 0.5, 0.5])],
    "no instance to train on": [each(lambda n, a: a.update(iscrowd=1)), each(lambda n, a: a.update(ignore=True))],
    "box outside its image": [one(bbox=[W, 2, 20, 4]), one(bbox=[-5, 2, 20, 4])],
    "malformed polygon": [
        one(segmentation=[1, 2, 9, 2, 9, 9]),
        one(segmentation=[[1, 2, 9, 2]]),
        one(segmentation=[[1, 2, 9, 2, 9, 9], [1, 2, 9, 2]]),
        one(segmentation=[[1, 2, 9, 2, 9, "9"]]),
        one(segmentation=[[1, 2, 9, 2, 9, float("nan")]]),
        one(segmentation="polygon"),
        one(segmentation=5),
    ],
    "polygon without area": [one(segmentation=[[1, 2, 3, 4, 5, 6]])],
    "polygon outside its image": [one(segmentation=[[0, 0, 99, 0, 0, 9]])],
    "empty segmentation": [one(segmentation=[]), each(lambda n, a: n == 1 and a.pop("segmentation"))],
    "malformed run lengths": [
        one(segmentation=cut([5, 6])),
        one(segmentation=cut([H * W])),
        one(segmentation=cut([H * W + 5, -5])),
        one(segmentation=cut([H * W - 5, 2.5, 2.5])),
        one(segmentation=cut("04")),
        one(segmentation=cut("no text of run lengths ~")),
        one(segmentation=cut("")),
        one(segmentation=cut(None)),
        one(segmentation={"size": [H, W - 1], "counts": [5, H * (W - 1) - 5]}),
        one(segmentation={"counts": [5, H * W - 5]}),
        one(segmentation={"size": "large", "counts": [5]}),
    ],
    "unknown category": [one(category_id=99), each(lambda n, a: n == 1 and a.pop("category_id"))],
    "annotation of an image that is not listed": [one(image_id=99), each(lambda n, a: n == 1 and a.pop("image_id"))],
    "iscrowd that is neither 0 nor 1": [one(iscrowd="0"), one(iscrowd=2)],
    "area that is no number": [one(area="12"), one(area=float("nan"))],
    "id used twice in annotations": [one(id=1)],
    "id used twice in images": [lambda c: c["images"][0].update(id=2)],
    "id used twice in categories": [lambda c: c["categories"][0].update(id=2)],
    "name used twice in categories": [lambda c: c["categories"][0].update(name="bee")],
    "file name used twice in images": [lambda c: c["images"][0].update(file_name="1.png")],
    "file name that is not inside the image folder": [
        lambda c: c["images"][0].update(file_name="/pictures/0.png"),
        lambda c: c["images"][0].update(file_name="../train2017/0.png"),
    ],
    "image without a size": [
        lambda c: c["images"][0].update(height=str(H)),
        lambda c: c["images"][0].update(height=0),
        lambda c: c["images"][0].pop("width"),
    ],
    "missing image": [lambda c: c["images"][0].update(file_name="long" * 99 + ".png")],
    "no annotations": [lambda c: c["annotations"].clear()],
    "unusable annotation file": [
        one(id=[1]),
        one(image_id={}),
        one(category_id=1.5),
        lambda c: c["images"][0].pop("file_name"),
        lambda c: c["categories"].append("dog"),
        lambda c: c["annotations"].append(None),
    ],
}


@pytest.mark.parametrize("kind, number", [(kind, n) for kind, edits in REFUSED.items() for n in range(len(edits))])
def test_what_the_check_lists_training_refuses_in_one_line(tmp_path, kind, number):
    root = coco(tmp_path / "data", REFUSED[kind][number])
    (report,) = check_folder(root)
    assert kind in report.problems, report.problems
    with pytest.raises(UserError, match=r"instances_(train|val)2017\.json") as error:
        prepared(root, tmp_path / "work")
    assert "\n" not in str(error.value)


def test_problems_of_masks_do_not_stop_a_detector_of_boxes(tmp_path):
    root = coco(tmp_path / "data", one(segmentation=[[1, 2, 9, 2]]))
    cfg = prepared(root, tmp_path / "work", masks=False)
    content = json.loads(open(cfg.train_dataloader.dataset.ann_file).read())
    assert len(content["annotations"]) == 12
    assert not any("segmentation" in annotation for annotation in content["annotations"])
    # Without a box there is only the mask.
    root = coco(tmp_path / "boxless", one(segmentation=[[1, 2, 9, 2]], bbox=None))
    with pytest.raises(UserError, match="malformed box"):
        prepared(root, tmp_path / "work", masks=False)


def test_a_model_with_masks_refuses_data_without(tmp_path):
    root = coco(tmp_path / "data", each(lambda n, a: a.pop("segmentation")))
    assert check_folder(root)[0].count == 0
    assert any("no masks" in note for note in check_folder(root)[0].notes)
    with pytest.raises(UserError, match="no annotation has a segmentation, the model has a mask head"):
        prepared(root, tmp_path / "work")
    cfg = prepared(root, tmp_path / "work", masks=False)
    assert json.loads(open(cfg.train_dataloader.dataset.ann_file).read())["annotations"][0]["area"] == 14 * 12


def test_few_instances_without_area_are_said_and_left_to_mmdet(tmp_path, capsys):
    """COCO's own files have some."""

    def edit(content):
        content["annotations"] *= 84
        content["annotations"] = [{**a, "id": n} for n, a in enumerate(content["annotations"])]
        content["annotations"][5]["bbox"] = [1, 2, 0, 4]

    root = coco(tmp_path / "data", edit, counts=(4, 4))
    prepared(root, tmp_path / "work")
    assert "note: box without area: 1 of 1008 annotations, first" in capsys.readouterr().err
    assert check_folder(root)[0].count == 2


def shuffled(content):
    """The same content under other ids, 0 and gaps among them, and in another order."""
    draw = random.Random(7)
    for key, link in (("images", "image_id"), ("categories", "category_id"), ("annotations", None)):
        ids = [*draw.sample(range(5 * len(content[key])), len(content[key]) - 1), 10**12]
        ids[0] = 0
        new = dict(zip([entry["id"] for entry in content[key]], ids, strict=True))
        for entry in content[key]:
            entry["id"] = new[entry["id"]]
        for annotation in content["annotations"] if link else ():
            annotation[link] = new[annotation[link]]
        draw.shuffle(content[key])


def test_mmdet_reads_the_same_whatever_ids_and_order_a_file_has(tmp_path):
    plain, other = coco(tmp_path / "a"), coco(tmp_path / "b", shuffled)
    assert {name for name in open_dataset(other, "det").classes} == set(NAMES)
    first, second = (sound(root) for root in (plain, other))
    assert first == second
    assert [a["id"] for a in first["annotations"]] == list(range(1, 13))
    assert all(NAMES[a["category_id"] - 1] == NAMES[i % 3] for i, a in enumerate(first["annotations"]))


def test_categories_of_the_splits_match_by_name(tmp_path):
    root = coco(tmp_path / "data")
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    # As tools write files that list what occurs in them only, in the order of occurrence.
    content["categories"] = [dict(id=5, name="cat"), dict(id=0, name="ant")]
    ids = {1: 0, 3: 5}
    content["annotations"] = [
        {**a, "category_id": ids[a["category_id"]]} for a in content["annotations"] if a["category_id"] in ids
    ]
    path.write_text(json.dumps(content))
    (report,) = check_folder(root)
    assert report.count == 0 and report.notes == ["annotations: categories without validation: bee"]
    cfg = prepared(root, tmp_path / "work")
    assert cfg.val_dataloader.dataset.metainfo.classes == NAMES
    found = json.loads(open(cfg.val_dataloader.dataset.ann_file).read())
    assert [category["name"] for category in found["categories"]] == list(NAMES)
    assert [a["category_id"] for a in found["annotations"]] == [1, 3] * 3

    from mmdet.registry import DATASETS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    dataset = DATASETS.build({**cfg.val_dataloader.dataset, "pipeline": [], "test_mode": True})
    assert [instance["bbox_label"] for instance in dataset.get_data_info(0)["instances"]] == [0, 2]
    content["categories"].append(dict(id=9, name="dog"))
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="lacks: dog; there are ant, bee, cat"):
        open_dataset(root, "det")
    assert "categories differ between the splits" in check_folder(root)[0].problems


def test_categories_that_the_config_does_not_know_are_not_trained_silently(tmp_path, capsys):
    """Without ``--data`` mmdet takes the classes of its dataset, and leaves out what has another name."""

    def config(*classes):
        dataset = dict(type="CocoDataset", data_root=str(root), data_prefix=dict(img="train2017"), pipeline=[])
        dataset |= dict(ann_file="annotations/instances_train2017.json", metainfo=dict(classes=classes))
        model = dict(bbox_head=dict(num_classes=len(classes)))
        cfg = dict(model=model, train_dataloader=dict(dataset=dataset), default_scope="mmdet")
        return Config(cfg | dict(work_dir=str(tmp_path / "work")))

    root = coco(tmp_path / "data")
    with pytest.raises(UserError, match=r"none of its categories .ant, bee, cat. is a class .*person, car"):
        prepare_data(config("person", "car"), "train")
    cfg = config("bee", "person")
    prepare_data(cfg, "train")
    said = capsys.readouterr().err
    assert "are left out: ant, cat" in said and "classes without an instance: person" in said
    content = json.loads(open(cfg.train_dataloader.dataset.ann_file).read())
    assert [category["name"] for category in content["categories"]] == ["bee", "person", "ant", "cat"]


def test_numbers_are_names(tmp_path):
    root = coco(tmp_path / "data", lambda c: [k.update(name=10 * k["id"]) for k in c["categories"]])
    assert open_dataset(root, "det").classes == ("10", "20", "30")
    cfg = prepared(root, tmp_path / "work")
    content = json.loads(open(cfg.train_dataloader.dataset.ann_file).read())
    assert [category["name"] for category in content["categories"]] == ["10", "20", "30"]


@pytest.mark.parametrize("pixels", ["stripes", "noise", "full", "corner"])
def test_packed_run_lengths_are_read_as_pycocotools_packs_them(pixels):
    rng = np.random.default_rng(0)
    mask = np.zeros((200, 300), np.uint8, order="F")
    if pixels == "noise":
        mask[:] = rng.integers(0, 2, mask.shape)
    else:
        mask[{"stripes": np.s_[::7], "full": np.s_[:], "corner": np.s_[-1:, -1:]}[pixels]] = 1
    text = pycoco.encode(mask)["counts"].decode()
    content = dict(images=[dict(id=1, file_name="a", height=200, width=300)], categories=[dict(id=1, name="a")])
    annotation = dict(id=1, image_id=1, category_id=1, segmentation=dict(size=[200, 300], counts=text))
    content["annotations"] = [annotation]
    assert not find_problems(content, "f").problems
    (filled,) = sound_content(content, ["a"])["annotations"]
    assert filled["area"] == mask.sum() and filled["bbox"] == pycoco.toBbox(pycoco.encode(mask)).tolist()
    annotation["segmentation"]["counts"] = text[:-1]
    assert "malformed run lengths" in find_problems(content, "f").problems


@pytest.mark.parametrize("edit", [lambda content: None, shuffled], ids=["plain", "shuffled"])
def test_right_answers_are_measured_as_right_whatever_ids_a_file_has(tmp_path, edit):
    """pycocotools takes an annotation of id 0 for none, and mmdet numbers classes by their place in the file."""
    import torch
    from mmdet.utils import register_all_modules
    from mmengine.registry import DATASETS, METRICS

    root = coco(tmp_path / "data", edit)
    cfg = prepared(root, tmp_path / "work")
    register_all_modules(init_default_scope=False)
    dataset = DATASETS.build({**cfg.val_dataloader.dataset, "pipeline": [], "test_mode": True})
    metric = METRICS.build(dict(cfg.val_evaluator[0], type="mmdet.CocoMetric", metric="bbox"))
    metric.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        labels = torch.tensor([instance["bbox_label"] for instance in info["instances"]])
        boxes = torch.tensor([instance["bbox"] for instance in info["instances"]], dtype=torch.float)
        # By color, which knows nothing of the file.
        pixels = np.asarray(Image.open(info["img_path"])).astype(int)
        for (x, y, _, _), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            assert dataset.metainfo["classes"][label] == NAMES[(pixels[y, x, 0] - 40) // 70]
        found = dict(bboxes=boxes, labels=labels, scores=torch.ones(len(labels)))
        metric.process({}, [dict(img_id=info["img_id"], ori_shape=(H, W), pred_instances=found)])
    assert metric.evaluate(len(dataset))["coco/bbox_mAP"] == 1
