"""Corruptions on the fly: the same image is corrupted alike in every run, and scores are averaged as published."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from imagecorruptions import corrupt, get_corruption_names
from random_models import DET, SEG, made, mean_iou, normalized
from small_sets import H, W, coco, masks

from mixtransfer.cli import run_command
from mixtransfer.errors import UserError
from mixtransfer.evaluation import corruptions
from mixtransfer.evaluation.corruptions import COMMON, EXTRA, Corrupt, corrupted, summary


def test_the_names_are_the_packages():
    assert set(COMMON) == set(get_corruption_names("common")) and set(EXTRA) == set(get_corruption_names("validation"))


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "glass_blur", "fog"])
def test_an_image_is_corrupted_alike_in_every_run(name):
    image = np.random.default_rng(0).integers(0, 255, (40, 48, 3)).astype(np.uint8)

    def run(path="a/1.png", severity=2, seed=0):
        np.random.seed(seed)
        state = np.random.get_state()[1].copy()
        found = Corrupt(name, severity)({"img": image.copy(), "img_path": path})["img"]
        assert (np.random.get_state()[1] == state).all()
        return found

    first = run()
    assert first.shape == image.shape and first.dtype == np.uint8 and (first != image).any()
    # Another folder on another machine, after other draws.
    assert (first == run("b/1.png", seed=1)).all()
    assert (first != run("a/2.png")).any() and (first != run(severity=3)).any()


def test_a_small_image_is_named():
    with pytest.raises(UserError, match=r"x\.png: a side of less than 32 pixels"):
        Corrupt("fog", 1)({"img": np.zeros((31, 64, 3), np.uint8), "img_path": "x.png"})


def test_images_are_corrupted_as_they_are_loaded():
    """Before they are resized, and after their size is checked."""
    steps = [dict(type="LoadImageFromFile"), dict(type="mixtransfer.CheckImage"), dict(type="Resize", scale=(8, 8))]
    assert [step.type.rpartition(".")[2] for step in corrupted(steps, "fog", 3)] == [
        "LoadImageFromFile", "CheckImage", "Corrupt", "Resize"
    ]  # fmt: skip
    with pytest.raises(UserError, match="loads no image from a file"):
        corrupted(steps[2:], "fog", 3)


def test_means_are_over_corruptions_and_severities():
    """mPC and rPC of arXiv 1907.07484, equations 1 and 2; FAN's retention is the second."""
    scores = {name: [40.0, 30.0 - number] for number, name in enumerate(COMMON)}
    found = summary(scores, 50.0)
    assert found == pytest.approx({"mPC of 15 corruptions": (40 + 23) / 2, "clean": 50, "rPC": 63})
    found = summary({**scores, "spatter": [0.0, 0.0]}, 50.0)
    assert found["mPC of 16 corruptions"] == pytest.approx(31.5 * 15 / 16) and found["rPC"] == pytest.approx(63)
    assert summary({"fog": [10.0]}, 0.0) == {"mPC of 1 corruptions": 10, "clean": 0}


def test_the_command_measures_as_computed_by_hand(tmp_path, capsys):
    segmentor = made("seg", masks(tmp_path / "data"), tmp_path, SEG)
    files = sorted((segmentor.data / "images/validation").iterdir())
    truths = [cv2.imread(str(segmentor.data / "annotations/validation" / f.name), -1).astype(int) - 1 for f in files]

    def expected(name, severity):
        answers = []
        for file in files:
            image = cv2.imread(str(file))
            if name:
                image = Corrupt(name, severity)({"img": image, "img_path": str(file)})["img"]
            with torch.no_grad():
                logits = segmentor.model.decode_head(segmentor.model.backbone(normalized(segmentor, image, (72, 96))))
            answers.append(F.interpolate(F.interpolate(logits, (72, 96), mode="bilinear"), (H, W), mode="bilinear"))
        return mean_iou([answer[0].argmax(0).numpy() for answer in answers], truths)

    out, names, severities = tmp_path / "city-c.json", ("contrast", "gaussian_noise"), (1, 5)
    command = ["robustness", str(segmentor.path), str(segmentor.checkpoint), "--data", str(segmentor.data)]
    options = ["--corruptions", *names, "--severities", "5", "1", "--json", str(out)]
    assert run_command("benchmark", [*command, *options]) == 0
    found = json.loads(out.read_text())
    assert found["clean"] == {"mIoU": pytest.approx(expected(None, 0), abs=0.05)}
    by_hand = {name: [expected(name, severity) for severity in severities] for name in names}
    assert found["scores"] == {"mIoU": {name: pytest.approx(values, abs=0.05) for name, values in by_hand.items()}}
    assert found["scores"]["mIoU"]["contrast"][1] != found["clean"]["mIoU"]
    assert found["summary"]["mIoU"]["rPC"] == pytest.approx(
        100 * np.mean(list(by_hand.values())) / found["clean"]["mIoU"], abs=0.5
    )
    assert "| corruption (mIoU) | 1 | 5 | mean |" in capsys.readouterr().out


def test_a_detector_scores_as_on_files_that_are_corrupted_beforehand(tmp_path, capsys):
    detector = made("det", coco(tmp_path / "data"), tmp_path, DET)
    stored = tmp_path / "stored"
    shutil.copytree(detector.data, stored)
    for file in (stored / "val2017").iterdir():
        image = Corrupt("brightness", 1)({"img": cv2.imread(str(file)), "img_path": str(file)})["img"]
        cv2.imwrite(str(file), image)

    def found(data):
        out = tmp_path / "found.json"
        command = ["robustness", str(detector.path), str(detector.checkpoint), "--data", str(data), "--json", str(out)]
        # Boxes of random weights hardly meet those of the truth.
        options = ["--cfg-options", "test_evaluator.iou_thrs=[0.05]"]
        assert run_command("benchmark", [*command, "--corruptions", "brightness", "--severities", "1", *options]) == 0
        return json.loads(out.read_text())

    first, then = found(detector.data), found(stored)
    for score in ("coco/bbox_mAP", "coco/segm_mAP"):
        assert first["clean"][score] > 0 and first["clean"][score] != then["clean"][score]
        assert first["scores"][score]["brightness"] == [then["clean"][score]]
    assert "| corruption (bbox_mAP) | 1 | mean |" in capsys.readouterr().out


def test_without_the_package_it_says_which(monkeypatch):
    monkeypatch.setattr(corruptions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install imagecorruptions-imaug"):
        corruptions.require_package()


def test_seeds_are_the_packages_own():
    """What is drawn follows numpy's seed, so anybody can make the same images with the package alone."""
    image = np.full((40, 48, 3), 128, np.uint8)
    found = Corrupt("shot_noise", 4)({"img": image, "img_path": "x/7.png"})["img"]
    np.random.seed(corruptions.zlib.crc32(b"7.png shot_noise 4"))
    assert (found == corrupt(image, severity=4, corruption_name="shot_noise")).all()
