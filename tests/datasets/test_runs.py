"""Commands on data whose classes, names and images are unusual but sound, and on some that are not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import NAMES, coco, masks, picture, turned
from tiny_runs import ProbeHook, tiny_config, train

from mixtransfer.cli import run_command
from mixtransfer.inference.write import output_names
from mixtransfer.visualization.pictures import plain_text


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A config and a checkpoint of a segmentor on :func:`small_sets.masks`."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config("seg", folder)
    masks(folder / "data")
    ProbeHook.reset()
    short = ("train_cfg.max_iters=1", "train_cfg.val_interval=9")
    assert train(config, folder / "data", folder / "work", cfg_options=short) == 0
    return config, folder / "work/iter_1.pth"


def test_a_segmentor_is_measured_by_the_names_of_its_classes(trained, tmp_path, capsys):
    config, checkpoint = trained
    other = dict(zip((1, 2, 3), (2, 3, 1), strict=True))
    masks(tmp_path / "plain")
    masks(tmp_path / "other", names=["cat", "ant", "bee"], background=other[1], labels=lambda k: other[k + 1])
    results = []
    for name in ("plain", "other"):
        argv = [
            str(config),
            str(checkpoint),
            "--data",
            str(tmp_path / name),
            "--work-dir",
            str(tmp_path / f"{name}_run"),
        ]
        assert run_command("test", argv) == 0
        results.append(json.loads((tmp_path / f"{name}_run/metrics.json").read_text()))
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["per_class"] == results[1]["per_class"] and list(results[0]["per_class"]) == list(NAMES)
    capsys.readouterr()
    for name in ("plain", "other"):
        images = tmp_path / name / "images/validation"
        argv = ["predict", str(config), str(checkpoint), str(images), "--data", str(tmp_path / name)]
        assert run_command("visualize", [*argv, "--work-dir", str(tmp_path / f"{name}_run")]) == 0
    first, second = (np.asarray(Image.open(tmp_path / f"{name}_run/0_labels.png")) for name in ("plain", "other"))
    assert np.array_equal(np.array([0, *other.values()])[first], second)
    masks(tmp_path / "third", names=["ant", "bee", "dog"])
    argv = [str(config), str(checkpoint), "--data", str(tmp_path / "third"), "--work-dir", str(tmp_path / "run")]
    assert run_command("test", argv) == 2
    assert "was trained on 3 classes (ant, bee, cat), the data has 3 (ant, bee, dog)" in capsys.readouterr().err


def test_pictures_keep_their_folders_and_one_that_cannot_be_read_stops_no_other(trained, tmp_path, capsys):
    config, checkpoint = trained
    data = tmp_path / "data"
    for seed, side in enumerate(("left", "right")):
        masks(data, below=side, seed=seed)
    common = ["--data", str(data), "--work-dir", str(tmp_path / "out")]
    expected = {f"{side}/{i}.png" for side in ("left", "right") for i in (0, 1)}

    def written(folder):
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}

    assert run_command("test", [str(config), str(checkpoint), *common, "--show-dir", str(tmp_path / "shown")]) == 0
    assert written(tmp_path / "shown") == expected
    images = tmp_path / "images"
    shutil.copytree(data / "images/validation", images)
    (images / "left/1.png").write_bytes(b"no image")
    Image.fromarray(np.ones((1, 50, 3), np.uint8)).save(images / "row.png")
    capsys.readouterr()
    assert run_command("visualize", ["predict", str(config), str(checkpoint), str(images), *common]) == 1
    output = capsys.readouterr()
    labels = {name.replace(".png", "_labels.png") for name in expected}
    assert written(tmp_path / "out") == (expected | labels) - {"left/1.png", "left/1_labels.png"}
    assert len(output.out.split()) == 3 and output.err.count("error:") == 2
    assert "left/1.png: cannot be loaded" in output.err and "row.png: image with a side of one pixel" in output.err
    # In the folder of the images their pictures would take their place.
    assert (
        run_command("visualize", ["predict", str(config), str(checkpoint), str(images), *common[:3], str(images)]) == 2
    )
    assert "is one of the images; give another --work-dir" in capsys.readouterr().err


def test_turned_photographs_are_drawn_as_the_network_sees_them(trained, tmp_path):
    config, checkpoint = trained
    image = picture(np.random.default_rng(0), [((4, 5, 20, 15), 1), ((30, 20, 25, 20), 2)])
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images/upright.png")
    for tag in range(2, 9):
        turned(image, tag, tmp_path / f"images/tag{tag}.png")
    masks(tmp_path / "data")
    argv = ["predict", str(config), str(checkpoint), str(tmp_path / "images"), "--data", str(tmp_path / "data")]
    assert run_command("visualize", [*argv, "--work-dir", str(tmp_path / "out")]) == 0
    upright = np.asarray(Image.open(tmp_path / "out/upright.png"))
    for tag in range(2, 9):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"out/tag{tag}.png")), upright)


def test_a_detector_trains_on_a_file_without_optional_fields(tmp_path, capsys):
    def edit(content):
        for annotation in content["annotations"]:
            del annotation["iscrowd"], annotation["area"], annotation["id"]

    def area_of_0(content):
        for annotation in content["annotations"]:
            annotation["area"] = 0

    config, losses = tiny_config("det", tmp_path), []
    for name, change in (("whole", lambda content: None), ("lacking", edit), ("zero", area_of_0)):
        data = coco(tmp_path / name, change)
        ProbeHook.reset()
        assert train(config, data, tmp_path / f"{name}_run", cfg_options=("train_cfg.max_epochs=1",)) == 0
        losses.append(ProbeHook.losses)
    assert losses[0] == losses[1] == losses[2] and all(step["loss_bbox"] > 0 for step in losses[0])
    capsys.readouterr()
    data = coco(
        tmp_path / "polygons", lambda content: content["annotations"][4].update(segmentation=[1, 2, 3, 4, 9, 6])
    )
    assert train(config, data, tmp_path / "run") == 2
    assert "malformed polygon: " in capsys.readouterr().err


def test_no_two_pictures_have_one_name():
    def names(*files, **options):
        return list(output_names([Path(file) for file in files], **options).values())

    assert names("a/x/0.jpg", "a/y/0.jpg") == ["x/0", "y/0"]
    assert names("a/x/0.jpg", "b/0.jpg", root=Path("a")) == ["x/0", "_/b/0"]
    assert names("a/0.jpg", "a/0.png", "a/1.png") == ["0.jpg", "0.png", "1.png"]
    assert names("a/0.jpg", "a/0_labels.jpg") == ["0.jpg", "0_labels.jpg"]
    assert names("a/A.jpg", "a/a.jpg") == ["A.jpg", "a.jpg"]
    assert names("a/v1.2.jpg") == ["v1.2"]


def test_dollars_are_no_formula():
    from matplotlib.text import Text

    assert Text()._preprocess_math(plain_text("a $b$ c")) == ("a $b$ c", False)
