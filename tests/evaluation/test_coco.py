"""COCO's average precision from arrays: pycocotools' numbers on random results, whatever identifiers and order are."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mixtransfer.evaluation.coco import evaluate
from mixtransfer.evaluation.metrics import ClassAP
from mixtransfer.study.average_precision import precision_scores
from mixtransfer.study.statistics import draws

SIDE, CLASSES = 160, 4
NUMBERS, THRESHOLDS = (1, 10, 100), np.linspace(0.5, 0.95, 10)


def disc(box):
    """An ellipse in a box, as run lengths."""
    x, y, w, h = box
    rows, columns = np.ogrid[:SIDE, :SIDE]
    inside = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    found = run_lengths.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def random_case(seed, images=12, real=6, found=14):
    """Ground truth with crowds and images without objects, and predictions with ties, near misses and nonsense."""
    rng = np.random.default_rng(seed)
    identities = rng.choice(10_000, images, replace=False).tolist()
    categories = (1 + rng.permutation(90)[:CLASSES]).tolist()
    annotations, predictions = [], []
    for number, identity in enumerate(identities):
        boxes, classes = [], []
        for _ in range(rng.integers(real) if number % 4 else 0):
            w, h = rng.uniform(4, 120, 2)
            box = [float(rng.uniform(0, SIDE - w)), float(rng.uniform(0, SIDE - h)), float(w), float(h)]
            segment, crowd = disc(box), int(rng.random() < 0.2)
            boxes.append(box)
            classes.append(int(rng.integers(CLASSES)))
            annotations.append(
                dict(id=7 + 3 * len(annotations), image_id=identity, category_id=categories[classes[-1]], bbox=box)
                | dict(area=float(run_lengths.area(segment)), iscrowd=crowd, segmentation=segment)
            )
        guesses, labels = [], []
        for _ in range(rng.integers(found) if number % 5 else 0):
            if boxes and rng.random() < 0.8:
                pick = int(rng.integers(len(boxes)))
                x, y, w, h = np.array(boxes[pick]) + rng.normal(0, 3, 4)
                labels.append(classes[pick] if rng.random() < 0.9 else int(rng.integers(CLASSES)))
            else:
                x, y, w, h = rng.uniform(0, 60, 4)
                labels.append(int(rng.integers(CLASSES)))
            guesses.append([x, y, x + max(w, 2), y + max(h, 2)])
        guesses = np.array(guesses, np.float32).reshape(-1, 4)
        masks = [disc([x, y, u - x, v - y]) for x, y, u, v in guesses]
        scores = rng.integers(1, 6, len(labels)).astype(np.float32) / 5
        predictions.append(
            dict(img_id=identity, bboxes=guesses, labels=np.array(labels, int), masks=masks, scores=scores)
            | (dict(mask_scores=scores[::-1].copy()) if seed % 2 else {})
        )
    truth = dict(
        images=[dict(id=identity, width=SIDE, height=SIDE) for identity in identities],
        categories=[dict(id=identity, name=f"class {identity}") for identity in sorted(categories)],
        annotations=annotations,
    )
    return truth, categories, predictions


def by_pycocotools(truth, categories, predictions, kind, numbers=NUMBERS):
    """Return pycocotools' precision and recall with the classes in the order of ``categories``, and its means."""
    rows = []
    for item in predictions:
        scores = item.get("mask_scores", item["scores"]) if kind == "segm" else item["scores"]
        for box, score, label, mask in zip(item["bboxes"].tolist(), scores, item["labels"], item["masks"], strict=True):
            row = dict(image_id=item["img_id"], score=float(score), category_id=categories[label])
            shape = dict(segmentation=mask) if kind == "segm" else {}
            x, y, u, v = box
            rows.append(row | (shape or dict(bbox=[x, y, u - x, v - y])))
    with contextlib.redirect_stdout(io.StringIO()):
        real = COCO()
        real.dataset = truth
        real.createIndex()
        run = COCOeval(real, real.loadRes(rows), kind)
        run.params.catIds, run.params.maxDets, run.params.iouThrs = categories, list(numbers), THRESHOLDS
        run.evaluate()
        run.accumulate()
        run.summarize()
    order = [sorted(categories).index(identity) for identity in categories]
    return run.eval["precision"][:, :, order], run.eval["recall"][:, order], run.stats


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_arrays_and_means_are_pycocotools(seed, kind):
    truth, categories, predictions = random_case(seed)
    precision, recall, stats = by_pycocotools(truth, categories, predictions, kind)
    result = evaluate(truth, categories, predictions, kind, NUMBERS, THRESHOLDS)
    np.testing.assert_array_equal(result.precision, precision)
    np.testing.assert_array_equal(result.recall, recall)
    assert 0 < stats[0] < 1
    names = "mAP mAP_50 mAP_75 mAP_s mAP_m mAP_l AR@1 AR@10 AR@100 AR_s@100 AR_m@100 AR_l@100"
    # Sums of equal numbers in another order.
    assert [result.stats()[name] for name in names.split()] == pytest.approx(stats.tolist(), abs=1e-12)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_images_drawn_again_have_the_precision_of_a_set_that_holds_them_so_often(seed, kind):
    truth, categories, predictions = random_case(seed)
    for item in predictions:
        # Equal scores in other images only: copies of an image rank those inside it in turn.
        for key in {"scores", "mask_scores"} & set(item):
            item[key] = item[key] + np.arange(len(item[key]), dtype=np.float32) / 1000
    found = evaluate(truth, categories, predictions, kind, NUMBERS, THRESHOLDS)
    times = draws(len(predictions))[:4]
    assert times.max() > 1
    wanted = {"mAP": [], "mAP_50": [], "mAP_75": []}
    for counts in times:
        rows = [(number, 100 * item["img_id"] + copy) for number, item in enumerate(predictions) for copy in range(9)]
        rows = [(number, identity) for number, identity in rows if identity % 100 < counts[number]]
        again = dict(truth, images=[dict(id=identity, width=SIDE, height=SIDE) for _, identity in rows])
        again["annotations"] = [
            {**item, "id": 1000 * identity + item["id"], "image_id": identity}
            for _, identity in rows
            for item in truth["annotations"]
            if item["image_id"] == identity // 100
        ]
        drawn = [{**predictions[number], "img_id": identity} for number, identity in rows]
        stats = evaluate(again, categories, drawn, kind, NUMBERS, THRESHOLDS).stats()
        for name, values in wanted.items():
            values.append(stats[name])
    images = json.loads(json.dumps(found.images))
    for name, values in wanted.items():
        overlap = int(name[4:]) / 100 if name[4:] else None
        assert precision_scores(images, times, overlap) == pytest.approx(values, abs=1e-12)
    whole = precision_scores(images, np.ones((1, len(images)), int))
    assert whole == pytest.approx([found.stats()["mAP"]], abs=1e-12)


def test_hundreds_of_masks_are_measured():
    truth, categories, predictions = random_case(4, found=80)
    assert sum(len(item["masks"]) for item in predictions) > 255
    precision, recall, _ = by_pycocotools(truth, categories, predictions, "segm")
    result = evaluate(truth, categories, predictions, "segm", NUMBERS, THRESHOLDS)
    np.testing.assert_array_equal(result.precision, precision)
    np.testing.assert_array_equal(result.recall, recall)


def test_identifiers_and_the_order_of_categories_change_nothing():
    truth, categories, predictions = random_case(3)
    expected = evaluate(truth, categories, predictions, "bbox", NUMBERS, THRESHOLDS)
    order = sorted(image["id"] for image in truth["images"])
    named = {identity: f"{place:03}" for place, identity in enumerate(order)}
    classes = {identity: f"class {identity}" for identity in categories}
    renamed = dict(
        images=[{**image, "id": named[image["id"]]} for image in truth["images"]],
        categories=[{**item, "id": classes[item["id"]]} for item in reversed(truth["categories"])],
        # pycocotools counts the object 0 as never found.
        annotations=[
            {**item, "id": i, "image_id": named[item["image_id"]], "category_id": classes[item["category_id"]]}
            for i, item in enumerate(truth["annotations"])
        ],
    )
    found = [{**item, "img_id": named[item["img_id"]]} for item in predictions]
    result = evaluate(renamed, [classes[identity] for identity in categories], found, "bbox", NUMBERS, THRESHOLDS)
    np.testing.assert_array_equal(result.precision, expected.precision)
    np.testing.assert_array_equal(result.recall, expected.recall)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nothing_found_is_zero_and_a_class_without_objects_is_not_a_number(kind):
    truth, categories, predictions = random_case(1)
    truth["annotations"] = [item for item in truth["annotations"] if item["category_id"] != categories[2]]
    nothing = [{**item, "masks": []} | {k: item[k][:0] for k in ("bboxes", "labels", "scores")} for item in predictions]
    nothing = [{key: value for key, value in item.items() if key != "mask_scores"} for item in nothing]
    result = evaluate(truth, categories, nothing, kind, NUMBERS, THRESHOLDS)
    assert result.stats()["mAP"] == 0
    assert [value == 0 for value in result.by_class()] == [True, True, False, True]
    assert np.isnan(result.by_class()[2])


def test_an_unknown_image_is_refused():
    truth, categories, predictions = random_case(0)
    with pytest.raises(ValueError, match="'lost'"):
        evaluate(truth, categories, [{**predictions[0], "img_id": "lost"}], "bbox", NUMBERS, THRESHOLDS)


def test_the_metric_reports_mmdets_numbers_without_writing_files(tmp_path, monkeypatch):
    truth, categories, predictions = random_case(5)
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    names = {item["id"]: item["name"] for item in truth["categories"]}
    samples = [
        dict(img_id=item["img_id"], ori_shape=(SIDE, SIDE))
        | dict(
            pred_instances={
                key: torch.from_numpy(item[key]) for key in ("bboxes", "labels", "scores", "mask_scores") if key in item
            }
            | dict(masks=item["masks"])
        )
        for item in predictions
    ]
    # mmdet takes the classes' axis for the order of the file, which pycocotools sorts.
    order = {label: sorted(categories).index(identity) for label, identity in enumerate(categories)}
    for sample in samples:
        labels = sample["pred_instances"]["labels"]
        sample["pred_instances"]["labels"] = torch.tensor([order[int(label)] for label in labels], dtype=torch.long)
    found = {}
    for cls in (CocoMetric, ClassAP):
        metric = cls(str(file), metric=["bbox", "segm"])
        metric.dataset_meta = {"classes": [names[identity] for identity in sorted(categories)]}
        metric.process({}, samples)
        if cls is ClassAP:
            monkeypatch.setattr("mmdet.evaluation.metrics.coco_metric.dump", None)
        found[cls] = metric.evaluate(len(samples))
    assert found[ClassAP] == found[CocoMetric]
    assert metric.per_class.keys() == set(names.values())
