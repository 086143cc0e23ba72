"""Records of tests: complete, the same bytes for the same run, and true to what was counted in each image."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny_runs import ProbeHook, small_scenes, tiny_config, train

from mixtransfer.cli import run_command
from mixtransfer.evaluation.records import percentages
from mixtransfer.study.average_precision import precision_scores


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """Trainings of one iteration less than the other tests need: seeds 1, 1 and 2."""
    folder = tmp_path_factory.mktemp("trained")
    config, losses = tiny_config("seg", folder), []
    for number, seed in enumerate((1, 1, 2)):
        ProbeHook.reset()
        options = ("train_cfg.max_iters=3", "train_cfg.val_interval=9", "default_hooks.checkpoint.interval=3")
        assert train(config, scenes, folder / f"run{number}", "--seed", str(seed), cfg_options=options) == 0
        losses.append([entry["loss"] for entry in ProbeHook.losses])
    return config, folder, losses


def measure(trained, scenes, number, out, *more):
    config, folder, _ = trained
    command = [str(config), str(folder / f"run{number}/iter_3.pth"), "--data", str(scenes), "--work-dir", str(out)]
    assert run_command("test", [*command, *more]) == 0
    return json.loads((out / "metrics.json").read_text())


def test_two_seeds_differ_and_one_seed_twice_agrees(trained, scenes, tmp_path):
    _, _, losses = trained
    assert losses[0] == losses[1] != losses[2]
    records = [measure(trained, scenes, number, tmp_path / str(number)) for number in range(3)]
    assert [record["weights"]["seed"] for record in records] == [1, 1, 2]
    hashes = [record["weights"]["sha256"] for record in records]
    assert hashes[0] == hashes[1] != hashes[2]
    assert records[0]["weights"]["training_loss"] == pytest.approx(np.mean(losses[0]))


def test_a_record_says_what_was_measured_on_what(trained, scenes, tmp_path):
    record = measure(trained, scenes, 0, tmp_path, "--per-image")
    assert record["schema"] == 1 and record["task"] == "seg"
    assert record["weights"]["iterations"] == 3 and record["weights"]["selection"] == "last iteration"
    assert record["dataset"]["images"] == 2 and len(record["dataset"]["classes"]) == 12
    assert record["model"]["parameters"] > 1e6 and record["model"]["macs"] > 1e6 and record["model"]["input"]
    assert {"torch", "numpy", "python", "mixtransfer"} <= record["versions"].keys()
    assert len(record["config_hash"]) == 64 and str(scenes) not in json.dumps(record["resolved_config"])
    images = json.loads((tmp_path / "metrics.images.json").read_text())
    total = np.zeros((12, 3), np.int64)
    for image in images:
        for k, row in image["pixels"].items():
            total[int(k)] += row
    assert percentages(total)["mIoU"] == record["metrics"]["mIoU"]
    ious = [values["IoU"] for values in record["per_class"].values() if values["IoU"] is not None]
    assert record["metrics"]["mIoU"] == pytest.approx(np.mean(ious), abs=1e-9)
    cost = json.loads((tmp_path / "metrics.cost.json").read_text())
    assert cost["images_per_second"] > 0 and "images_per_second" not in json.dumps(record)


def test_a_record_does_not_depend_on_where_things_lie(trained, scenes, tmp_path):
    first = measure(trained, scenes, 0, tmp_path / "first")
    moved = tmp_path / "elsewhere"
    shutil.copytree(scenes, moved)
    second = measure(trained, moved, 1, tmp_path / "second")
    first.pop("checkpoint"), second.pop("checkpoint")
    assert json.dumps(first) == json.dumps(second)


def test_a_detectors_images_hold_its_detections(scenes, tmp_path):
    config = tiny_config("det", tmp_path)
    ProbeHook.reset()
    assert train(config, scenes, tmp_path, cfg_options=("train_cfg.max_epochs=1", "train_cfg.val_begin=9")) == 0
    command = [str(config), str(tmp_path / "epoch_1.pth"), "--data", str(scenes), "--work-dir", str(tmp_path)]
    few = ["--cfg-options", "model.test_cfg.rcnn.score_thr=0.0", "model.test_cfg.rcnn.max_per_img=5"]
    assert run_command("test", [*command, "--per-image", *few]) == 0
    images = json.loads((tmp_path / "metrics.images.json").read_text())
    assert len(images) == 2
    found = [detection for image in images for detection in image["detections"]]
    assert found and all(set(x) == {"image_id", "category", "score", "bbox", "segmentation"} for x in found)
    metrics, once = json.loads((tmp_path / "metrics.json").read_text())["metrics"], np.ones((1, 2), int)
    for kind in ("bbox", "segm"):
        scored = precision_scores([image["matches"][kind] for image in images], once)
        assert scored == pytest.approx([metrics[f"coco/{kind}_mAP"]], abs=1e-12)
