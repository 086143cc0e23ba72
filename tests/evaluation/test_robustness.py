"""Robustness: the published metric, the folders that it is read from, the command."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from parity_records import record, records
from tiny_runs import CONFIGS

import mixtransfer
from mixtransfer.cli import run_command
from mixtransfer.engine.config import read_config
from mixtransfer.errors import UserError
from mixtransfer.evaluation.robustness import (
    ALEXNET_ERRORS,
    corruption_errors,
    for_cropped_images,
    lacking,
    mean_corruption_error,
    mean_top1,
    open_corrupted,
    open_subset,
    outputs_of,
    summary,
    table,
)

METRIC = records("metric")
TOP1 = record(*METRIC[0])["given"]["top1_percent_by_corruption_and_severity"]
CLASSES = ("ant", "bee", "cat")
CONFIG = """
_base_ = {base!r}
model = dict(num_classes=3)
test_dataloader = dict(batch_size=4)
"""


@pytest.mark.parametrize(("system", "name"), METRIC)
def test_the_metric_equals_published(system, name):
    expected = record(system, name)
    given, outputs = expected["given"], expected["outputs"]
    top1, clean = given["top1_percent_by_corruption_and_severity"], given["clean_top1"]
    assert given["alexnet_error"] == ALEXNET_ERRORS
    assert mean_corruption_error(top1) == pytest.approx(outputs["mCE"], rel=1e-12)
    assert mean_top1(top1) == pytest.approx(outputs["mean_top1_by_corruption"], rel=1e-12)
    found = summary(top1, clean)
    assert found["mean top-1 of 15 corruptions"] == pytest.approx(outputs["mean_top1_15"], rel=1e-12)
    assert found["mean top-1 of 19 corruptions"] == pytest.approx(outputs["mean_top1_19"], rel=1e-12)
    assert found["mCE"] == pytest.approx(100 * outputs["mCE"], rel=1e-12)
    assert found["retention"] == pytest.approx(100 * outputs["mean_top1_15"] / clean, rel=1e-12)


def test_the_mean_corruption_error_is_hendrycks_mean_of_ratios_of_sums():
    """AlexNet itself has 1 in every corruption."""
    alexnet = {name: [100 * (1 - error)] * 5 for name, error in ALEXNET_ERRORS.items()}
    assert corruption_errors(alexnet) == pytest.approx(dict.fromkeys(ALEXNET_ERRORS, 1.0))
    assert mean_corruption_error(alexnet) == pytest.approx(1.0)


def test_there_is_no_mean_corruption_error_of_some_corruptions():
    some = {name: values for name, values in TOP1.items() if name not in ("fog", "snow")}
    assert lacking(some) == ["snow", "fog"] and mean_corruption_error(some) is None
    assert "mCE" not in summary(some) and "these are missing: snow, fog" in table(some)
    # The extra four have no AlexNet error, but a row.
    assert "| spatter | 77.96 | 69.02 | 58.23 | 48.14 | 40.68 | 58.81 |  |" in table(some)


def test_no_share_of_a_clean_accuracy_of_nothing():
    assert summary({"fog": [0.0] * 5}, 0.0) == {"mean top-1 of 1 corruptions": 0.0, "clean top-1": 0.0}


def test_corrupted_images_are_not_cropped_again():
    steps = [dict(type="ResizeEdge", scale=256, edge="short"), dict(type="CenterCrop", crop_size=224)]
    assert for_cropped_images(steps) == [dict(type="ResizeEdge", scale=224, edge="short"), steps[1]]
    assert steps[0]["scale"] == 256
    assert for_cropped_images([dict(type="Resize", scale=64)]) == [dict(type="Resize", scale=64)]


def write_images(folder, counts, rng):
    """Write as many noise images of each class as ``counts`` says; the classes' brightness differs."""
    for number, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 80, (64, 64, 3)) + 80 * number
            cv2.imwrite(str(folder / name / f"{index}.png"), pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory):
    """Two corruptions, whose severities differ by how many images each class has."""
    root, rng = tmp_path_factory.mktemp("robustness") / "corrupted", np.random.default_rng(0)
    for corruption in ("fog", "spatter"):
        for severity in range(1, 6):
            write_images(root / corruption / str(severity), (severity, 1, 1 + (corruption == "fog")), rng)
    write_images(root.parent / "val", (2, 1, 1), rng)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Config and checkpoint of a classifier of three classes."""
    folder = tmp_path_factory.mktemp("model")
    base = str(CONFIGS / "pretrain/swin_micro_scenes.py")
    (folder / "three.py").write_text(CONFIG.format(base=base), encoding="utf-8")
    torch.manual_seed(2)
    net = mixtransfer.build_classifier("swin_micro", 3)
    torch.save({"state_dict": net.state_dict(), "meta": {}}, folder / "three.pth")
    return str(folder / "three.py"), str(folder / "three.pth")


def accuracy(net, cfg, folder, classes=CLASSES):
    """Return the top-1 of a network on a folder, image after image."""
    mean, std = (torch.tensor(cfg.data_preprocessor[name]).view(3, 1, 1) for name in ("mean", "std"))
    hits = []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            pixels = torch.from_numpy(cv2.imread(str(path))[..., ::-1].copy()).permute(2, 0, 1)
            hits.append(int(net(((pixels - mean) / std)[None]).argmax()) == label)
    return 100 * sum(hits) / len(hits)


def test_the_command_measures_every_folder(corrupted, model, tmp_path, capsys):
    config, checkpoint = model
    out, val = tmp_path / "robustness.json", corrupted.parent / "val"
    options = ["--data", str(corrupted), "--clean", str(val), "--json", str(out)]
    assert run_command("benchmark", ["robustness", config, checkpoint, *options]) == 0
    printed, found = capsys.readouterr().out, json.loads(out.read_text())
    net = mixtransfer.build_classifier("swin_micro", 3).eval()
    net.load_state_dict(torch.load(checkpoint)["state_dict"])
    cfg = read_config(config)
    with torch.no_grad():
        top1 = {
            name: [accuracy(net, cfg, corrupted / name / str(severity)) for severity in range(1, 6)]
            for name in ("fog", "spatter")
        }
        clean = accuracy(net, cfg, val)
    assert found["top1"] == {name: pytest.approx(values, rel=1e-5) for name, values in top1.items()}
    assert len(set(top1["fog"])) > 1 and top1["fog"] != top1["spatter"]
    assert found["summary"] == pytest.approx(summary(top1, clean), rel=1e-5)
    assert printed.strip().endswith(table(found["top1"], found["summary"]["clean top-1"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: shutil.rmtree(root), "no such folder; ImageNet-C's layout is corruption/severity/class/image"),
        (lambda root: [shutil.rmtree(path) for path in root.iterdir()], "no folder of a corruption in it"),
        (lambda root: [shutil.rmtree(root / "fog" / n) for n in "24"], "fog: severities 2, 4 are missing"),
        (lambda root: (root / "spatter/3/dog").mkdir(), "spatter/3: its class folders differ from those of .*: dog"),
        (lambda root: [path.unlink() for path in root.glob("fog/5/*/*")], "fog/5: no images"),
        (lambda root: shutil.rmtree(root / "fog/1/bee"), "fog/1: its class folders differ from those of .*clean: bee"),
    ],
)
def test_an_incomplete_folder_is_refused(corrupted, tmp_path, change, words):
    root = shutil.copytree(corrupted, tmp_path / "copy")
    shutil.copytree(corrupted.parent / "val", root / "clean")
    assert open_corrupted(root).clean == root / "clean"
    assert list(open_corrupted(root).folders) == ["fog", "spatter"]
    if "no folder" in words or "no such" in words:
        shutil.rmtree(root / "clean")
    change(root)
    with pytest.raises(UserError, match=words):
        open_corrupted(root)


def test_what_the_command_cannot_do_is_one_line(corrupted, model, tmp_path, capsys):
    config, checkpoint = model

    def error(*args):
        assert run_command("benchmark", ["robustness", *map(str, args)]) == 2
        # Libraries warn as they are imported.
        return capsys.readouterr().err.strip().splitlines()[-1]

    data = ("--data", corrupted)
    assert "nothing.pth: no such checkpoint file" in error(config, "nothing.pth", *data)
    assert "--clean x: no such folder" in error(config, checkpoint, *data, "--clean", "x")
    assert "3 class folders, and the model of" in error(CONFIGS / "pretrain/swin.py", checkpoint, *data)
    segmentor = CONFIGS / "seg/upernet_swin.py"
    assert "no segmentation dataset in" in error(segmentor, checkpoint, *data)
    assert "--clean, --backgrounds: they are for classifiers" in error(segmentor, checkpoint, *data, "--clean", "x")
    assert "unknown corruption 'rain'" in error(segmentor, checkpoint, "--corruptions", "rain")
    assert "--data: give the folder" in error(config, checkpoint)
    assert "--corruptions, --severities: images for classifiers" in error(config, checkpoint, "--severities", 1, *data)
    assert "--json" in error(config, checkpoint, *data, "--json", tmp_path / "no/where.json")
    torch.save({"state_dict": {"head.weight": torch.zeros(3, 2)}}, tmp_path / "other.pth")
    assert "does not fit the model" in error(config, tmp_path / "other.pth", *data)


def test_images_of_some_classes_are_answered_among_these(tmp_path, capsys):
    """ImageNet-A and -R: the likeliest of their classes counts, whatever the model makes of the other 800."""
    ids = ("n01498041", "n01534433", "n07768694")  # stingray 6, junco 13, pomegranate 957
    rng = np.random.default_rng(0)
    for number, name in enumerate(ids):
        (tmp_path / "a" / name).mkdir(parents=True)
        for index in range(3):
            pixels = rng.integers(0, 80, (64, 64, 3)) + 80 * number
            cv2.imwrite(str(tmp_path / "a" / name / f"{index}.png"), pixels.astype(np.uint8))
    base = str(CONFIGS / "pretrain/swin_micro_scenes.py")
    config, checkpoint = tmp_path / "thousand.py", tmp_path / "thousand.pth"
    config.write_text(CONFIG.format(base=base).replace("3)", "1000)"), encoding="utf-8")
    torch.manual_seed(1)
    net = mixtransfer.build_classifier("swin_micro", 1000).eval()
    torch.save({"state_dict": net.state_dict(), "meta": {}}, checkpoint)
    out = tmp_path / "a.json"
    command = ["robustness", str(config), str(checkpoint), "--data", str(tmp_path / "a"), "--json", str(out)]
    assert run_command("benchmark", command) == 0
    chosen = torch.nn.Module()
    chosen.forward = lambda images: net(images)[:, [6, 13, 957]]
    with torch.no_grad():
        expected = accuracy(chosen, read_config(config), tmp_path / "a", ids)
    assert json.loads(out.read_text())["top1"] == {str(tmp_path / "a"): pytest.approx(expected)}
    assert "of 3 classes" in capsys.readouterr().out


def test_outputs_are_found_by_what_the_checkpoint_was_trained_on():
    ids = ("n01498041", "n01534433")
    assert outputs_of(ids, None, 1000, "a") == [6, 13]
    assert outputs_of(ids, ["stingray", "junco"] * 500, 1000, "a") == [6, 13]
    assert outputs_of(ids, ["n01534433", "n00000001", "n01498041"], 3, "a") == [2, 0]
    with pytest.raises(UserError, match="the model has 10 outputs; give one of 1000"):
        outputs_of(ids, None, 10, "a")
    with pytest.raises(UserError, match="the model has no class n01534433"):
        outputs_of(ids, ["n01498041"], 1, "a")


def test_other_layouts_are_no_subset(corrupted):
    assert open_subset(corrupted) is None and open_subset(corrupted / "nowhere") is None
