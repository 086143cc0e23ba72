"""The train and test commands: what they refuse, with which words, and what a test leaves behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from tiny_runs import ProbeHook, small_scenes, tiny_config, train

from mixtransfer.cli import run_command
from mixtransfer.cli.train import amp_settings
from mixtransfer.errors import UserError

ROOT = Path(__file__).parents[2]
SHORT = ("train_cfg.max_iters=1", "train_cfg.val_begin=9")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """Config and checkpoint of one iteration of segmentation."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config("seg", folder)
    ProbeHook.reset()
    assert train(config, scenes, folder, cfg_options=SHORT) == 0
    return config, folder / "iter_1.pth"


@pytest.fixture
def error(capsys):
    """Return a function that gives the one line which a failed command printed."""

    def last() -> str:
        return capsys.readouterr().err.strip().splitlines()[-1]

    return last


def test_help_needs_neither_torch_nor_openmmlab():
    code = "import sys; from mixtransfer.cli import train, test; train.parser(), test.parser()"
    heavy = "print([m for m in ('torch', 'mmengine', 'cv2') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", f"{code}; {heavy}"], cwd=ROOT, capture_output=True, text=True)
    assert printed.stdout.strip() == "[]", printed.stderr


def test_a_missing_dataset_is_one_line_before_torch_is_imported(tmp_path):
    code = (
        "import sys; from mixtransfer.cli import run_command;"
        f"rc = run_command('train', [{str(ROOT / 'configs/seg/upernet_swin_tlalign.py')!r}]);"
        "print(rc, 'torch' in sys.modules)"
    )
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"]
    (line,) = done.stderr.strip().splitlines()
    for part in ("data/ade/ADEChallengeData2016", "images/{training,validation}", "--data scenes"):
        assert part in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, words",
    [
        (["modle.backbone.arch=x"], "'modle'; did you mean model"),
        (["model.bakbone.arch=x"], "entry of model 'bakbone'; did you mean backbone"),
        (
            ["model.backbone.arch=swin_tin"],
            "unknown architecture of SwinTransformer 'swin_tin'; did you mean",
        ),
        (["model.backbone.archh=swin_micro"], "unexpected keyword argument 'archh'"),
        (["model.decode_head.type=UPerHed"], "UPerHed is not in the"),
        (["crop_size=(64,64)"], "'crop_size' is a variable of the config file"),
        (["custom_hooks.7.prob=1"], "custom_hooks is a list; give a number from 0 to 1"),
        (["model.backbone.init_cfg.checkpoint=x"], "model.backbone.init_cfg is None and has no entries"),
        (["train_cfg"], "write KEY=VALUE"),
        (["optim_wrapper.paramwise_cfg.layer_decay=0.9"], "paramwise_cfg"),
        (["train_dataloader.batch_size=1"], "set train_dataloader.batch_size=2 or more"),
        (["train_dataloader.batch_size=0"], "dataloader: batch_size should be a positive integer"),
        (["optim_wrapper.optimizer.lr=-1"], "optim_wrapper: Invalid learning rate: -1"),
        (["param_scheduler.0.end=0"], "param_scheduler: end should be larger than begin"),
        (["default_hooks.logger.interval=0"], "default_hooks or custom_hooks: interval must be greater than 0"),
        (["train_cfg.val_interval=0"], "train_cfg.val_interval=0: give a number from 1"),
        (["model.backbone.out_indices=[3]"], "in_index=[0, 1] of mixtransfer.UPerHead: the backbone returns 1 outputs"),
        (["model.backbone.in_channels=4"], "data_preprocessor.mean is of images with 3 channels"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words, scenes, tmp_path, error):
    ProbeHook.reset()
    assert train(tiny_config("seg", tmp_path), scenes, tmp_path / "run", cfg_options=(*SHORT, *options)) == 2
    assert words in error()


def test_unknown_configs_list_the_near_ones(error):
    assert run_command("train", ["configs/seg/upernet_swin_tlaling.py"]) == 2
    assert "did you mean configs/seg/upernet_swin_tlalign.py" in error()


def test_a_broken_config_names_the_line(tmp_path, error):
    path = tmp_path / "broken.py"
    path.write_text("model = dict(\n")
    assert run_command("train", [str(path)]) == 2
    assert f"{path}: not a config: line 1" in error()


def test_a_work_dir_that_cannot_be_written(scenes, tmp_path, error):
    (tmp_path / "file").touch()
    assert train(tiny_config("seg", tmp_path), scenes, tmp_path / "file" / "run") == 2
    assert f"--work-dir {tmp_path / 'file' / 'run'}: cannot be written to: Not a directory" in error()


def test_a_training_shorter_than_its_warmup(scenes, tmp_path, error):
    recipe, work = str(ROOT / "configs/pretrain/swin.py"), ("--data", str(scenes), "--work-dir", str(tmp_path / "run"))
    assert run_command("train", [recipe, *work, "--cfg-options", "train_cfg.max_epochs=3"]) == 2
    assert re.search(r"param_scheduler\.1 begins at epoch \d+ and training ends at epoch 3", error())


def test_missing_pretrained_weights_name_the_way_out(scenes, tmp_path, error):
    config = tiny_config("seg", tmp_path, 'model["backbone"]["init_cfg"] = dict(checkpoint="nowhere.pth")')
    assert train(config, scenes, tmp_path / "run") == 2
    assert "no pretrained weights in nowhere.pth; give their file with --cfg-options model.backbone.init_cfg" in error()


def test_amp_without_a_gpu_is_refused(scenes, tmp_path, error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train(tiny_config("seg", tmp_path), scenes, tmp_path / "run", "--amp") == 2
    assert "--amp needs a GPU" in error()


@pytest.mark.parametrize(
    ("kind", "has", "expected"),
    [
        ("auto", True, ("bfloat16", {"enabled": False})),
        ("auto", False, ("float16", "dynamic")),
        ("bfloat16", True, ("bfloat16", {"enabled": False})),
        ("float16", True, ("float16", "dynamic")),
    ],
)
def test_amp_takes_the_type_that_the_gpu_has(kind, has, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    settings = amp_settings(kind)
    assert (settings["dtype"], settings["loss_scale"]) == expected and settings["type"] == "AmpOptimWrapper"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    if not has:
        with pytest.raises(UserError, match="--amp bfloat16: Old GPU has none; give float16"):
            amp_settings("bfloat16")


def test_what_cannot_be_resumed(trained, scenes, tmp_path, error):
    config, checkpoint = trained
    assert train(config, scenes, tmp_path / "empty", "--resume", "must") == 2
    assert "--resume must: no checkpoint in" in error()
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "weights.pth")
    assert train(config, scenes, tmp_path / "run", "--resume", str(tmp_path / "weights.pth")) == 2
    assert "weights.pth: holds weights but no state of training" in error()
    assert train(config, scenes, tmp_path / "run", "--resume", str(checkpoint), "--seed", "7") == 2
    assert "was trained with --seed 0; resume it with the same" in error()


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_checkpoints_that_cannot_be_measured(trained, scenes, tmp_path, error, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, checkpoint = trained
    whole = checkpoint.read_bytes()
    Path("cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": {"a": torch.zeros(1)}}, "foreign.pth")
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": RunsCode()}, "code.pth")
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["decode_head.conv_seg.bias"] = torch.zeros(150)
    torch.save(content, "classes.pth")
    for file, words in {
        "cut.pth": "cut.pth: ",
        "foreign.pth": "foreign.pth does not fit the model",
        "code.pth": "--trust",
        "classes.pth": "1 misshapen: decode_head.conv_seg.bias (150,) instead of (12,); use the config, --data and",
        "none.pth": "none.pth: no such checkpoint file",
    }.items():
        assert run_command("test", [str(config), file, "--data", str(scenes), "--work-dir", "run"]) == 2
        assert words in error()
    assert not Path("executed").exists()
    assert not Path("run/metrics.json").exists()


def test_metrics_of_a_segmentor_and_pictures(trained, scenes, tmp_path, capsys):
    config, checkpoint = trained
    common = [str(config), str(checkpoint), "--data", str(scenes), "--work-dir", str(tmp_path)]
    assert run_command("test", [*common, "--show-dir", str(tmp_path / "pictures")]) == 0
    result = json.loads((tmp_path / "metrics.json").read_text())
    ious = [values["IoU"] for values in result["per_class"].values() if values["IoU"] is not None]
    assert len(result["per_class"]) == 12 and "sky" in result["per_class"]
    assert result["metrics"]["mIoU"] == pytest.approx(np.mean(ious), abs=0.01)
    assert "mIoU" in capsys.readouterr().out
    pictures = list((tmp_path / "pictures").iterdir())
    assert len(pictures) == 2 and all(cv2.imread(str(path)) is not None for path in pictures)


def test_where_metrics_and_pictures_cannot_go_is_said_before_anything_is_measured(trained, scenes, tmp_path, error):
    config, checkpoint = trained
    command = [str(config), str(checkpoint), "--data", str(scenes), "--work-dir", str(tmp_path / "run")]
    (tmp_path / "file").touch()
    for option, place, words in (
        ("--out", tmp_path / "file" / "metrics.json", f"--out, folder {tmp_path / 'file'}: cannot be written to"),
        ("--out", tmp_path, f"--out {tmp_path}: is a folder; give a file"),
        ("--show-dir", tmp_path / "file", f"--show-dir {tmp_path / 'file'}: cannot be written to"),
    ):
        assert run_command("test", [*command, option, str(place)]) == 2
        assert words in error()


def test_a_detector_that_finds_nothing_has_an_ap_of_zero_for_every_class(scenes, tmp_path):
    config = tiny_config("det", tmp_path)
    ProbeHook.reset()
    assert train(config, scenes, tmp_path, cfg_options=("train_cfg.max_epochs=1", "train_cfg.val_begin=9")) == 0
    command = [str(config), str(tmp_path / "epoch_1.pth"), "--data", str(scenes), "--work-dir", str(tmp_path)]
    nothing = ["--cfg-options", "model.test_cfg.rcnn.score_thr=1.1"]
    # The ground truth is drawn all the same.
    assert run_command("test", [*command, "--show-dir", str(tmp_path / "pictures"), *nothing]) == 0
    assert all(cv2.imread(str(path)) is not None for path in sorted((tmp_path / "pictures").iterdir()))
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["metrics"]["coco/bbox_mAP"] == result["metrics"]["coco/segm_mAP"] == 0
    assert set(result["per_class"]) == {"ball", "box", "tree", "star", "ring", "fish"}
    assert all(values.keys() == {"bbox_AP", "segm_AP"} for values in result["per_class"].values())


def test_an_image_that_cannot_be_drawn_on_is_named(trained, scenes, tmp_path, error):
    config, checkpoint = trained
    (tmp_path / "no.jpg").write_bytes(b"no image")
    command = ["predict", str(config), str(checkpoint), str(tmp_path / "no.jpg"), "--data", str(scenes)]
    assert run_command("visualize", [*command, "--work-dir", str(tmp_path / "pictures")]) == 1
    assert f"{tmp_path / 'no.jpg'}: cannot be loaded (failed to load image" in error()


@pytest.mark.parametrize(
    "words",
    [
        ["visualize", "mix", "config.py", "--count", "0"],
        ["visualize", "mix", "config.py", "--seed", "-1"],
        ["train", "config.py", "--seed", "4294967296"],
        ["data", "scenes", "folder", "--train", "0"],
        ["convert", "a.pth", "b.pth", "--window", "x"],
    ],
)
def test_numbers_that_an_option_does_not_take(words, error):
    with pytest.raises(SystemExit, match="2"):
        run_command(words[0], words[1:])
    assert f"argument {words[-2]}: '{words[-1]}': give a number from" in error()


def test_a_checkpoint_without_token_classifier_gives_the_same_metrics(trained, scenes, tmp_path):
    config, checkpoint = trained
    content = torch.load(checkpoint, weights_only=True)
    state = content["state_dict"]
    token = [key for key in state if "token_classifier" in key]
    assert token
    content["state_dict"] = {key: value for key, value in state.items() if key not in token}
    torch.save(content, tmp_path / "without.pth")
    results = []
    for number, file in enumerate((checkpoint, tmp_path / "without.pth")):
        out = tmp_path / f"{number}.json"
        command = [str(config), str(file), "--data", str(scenes), "--work-dir", str(tmp_path), "--out", str(out)]
        assert run_command("test", command) == 0
        results.append(json.loads(out.read_text())["metrics"])
    numbers = [{key: value for key, value in result.items() if "time" not in key} for result in results]
    assert numbers[0] == numbers[1]


def test_the_hook_taken_out_leaves_no_untrained_classifier(scenes, tmp_path):
    config = tiny_config("seg", tmp_path)
    ProbeHook.reset()
    assert train(config, scenes, tmp_path / "run", cfg_options=(*SHORT, "custom_hooks=[]")) == 0
    state = torch.load(tmp_path / "run" / "iter_1.pth", weights_only=True)["state_dict"]
    assert not [key for key in state if "token_classifier" in key]


def copy_of(scenes: Path, target: Path) -> tuple[Path, Path, Path]:
    """Return a segmentation folder of one image, with the image and its mask."""
    for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
        for split in ("training", "validation"):
            folder = target / kind / split
            folder.mkdir(parents=True)
            source = min((scenes / "seg" / kind / split).glob(f"*{suffix}"))
            (folder / source.name).write_bytes(source.read_bytes())
    (target / "classes.txt").write_text((scenes / "seg" / "classes.txt").read_text())
    (image,), (mask,) = ((target / kind / "training").iterdir() for kind in ("images", "annotations"))
    return target, image, mask


@pytest.mark.parametrize(
    "harm, words, workers",
    [
        (lambda image, mask: image.write_bytes(b"no image"), "cannot be loaded", 0),
        # OpenCV reads it where it is not asked for colors.
        (
            lambda image, mask: image.write_bytes(cv2.imencode(".tif", np.zeros((64, 64), np.float32))[1].tobytes()),
            "cannot be loaded: unreadable image (OpenCV reads no TIFF of mode F",
            0,
        ),
        (
            lambda image, mask: cv2.imwrite(str(mask), np.full((64, 64), 13, np.uint8)),
            "outside the classes (13; 12 classes",
            1,
        ),
        (
            lambda image, mask: cv2.imwrite(str(mask), np.tile(np.uint8([1, 2]), (32, 32))),
            "the mask has 32x64 pixels, its image 64x64",
            0,
        ),
    ],
    ids=["unreadable", "float", "label", "size"],
)
def test_bad_samples_are_named(harm, words, workers, scenes, tmp_path, error):
    folder, image, mask = copy_of(scenes, tmp_path / "data")
    harm(image, mask)
    ProbeHook.reset()
    assert train(tiny_config("seg", tmp_path), folder, tmp_path / "run", workers=workers, cfg_options=SHORT) == 2
    line = error()
    assert words in line and image.stem in line


@pytest.mark.parametrize(
    "task, options",
    [
        ("seg", ["train_cfg.max_iters=3", "train_cfg.val_begin=9"]),
        pytest.param(
            "det",
            ["train_cfg.max_epochs=1", "train_cfg.val_begin=9", "train_dataloader.batch_size=6"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            "cls",
            ["train_cfg.max_epochs=1", "param_scheduler=[]", "train_dataloader.batch_size=4"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_compiled_training_has_the_losses_of_training(task, options, scenes, tmp_path, monkeypatch):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()  # other tests may have used up the graphs that a function is granted
    graphs, compile_module = CompileCounter(), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend=graphs))
    if task == "cls":
        config = tmp_path / "tiny.py"
        hooks = [dict(type="mixtransfer.ProbeHook")]
        recipe = str(ROOT / "configs" / "pretrain" / "swin_micro_scenes.py")
        config.write_text(f"_base_ = {recipe!r}\ncustom_hooks = {hooks!r}\n", encoding="utf-8")
    else:
        config = tiny_config(task, tmp_path)
    losses = []
    for flags in ((), ("--compile",)):
        ProbeHook.reset()
        assert train(config, scenes, tmp_path / "run", "--overwrite", *flags, cfg_options=options) == 0
        losses.append(ProbeHook.losses)
    assert graphs.op_count > 100 and len(losses[0]) == 3
    for eager, compiled in zip(*losses, strict=True):
        assert eager.keys() == compiled.keys()
        assert all(compiled[key] == pytest.approx(value, rel=1e-3) for key, value in eager.items())


def test_pictures_of_images_with_the_same_name_in_two_class_folders(tmp_path):
    from mmcv.transforms import LoadImageFromFile
    from mmpretrain.structures import DataSample
    from mmpretrain.visualization import UniversalVisualizer

    from mixtransfer.visualization.prediction_hook import PredictionPictures

    samples = []
    for label, name in enumerate(("ball", "box")):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), np.zeros((32, 32, 3), np.uint8))
        sample = DataSample(metainfo={"img_path": str(tmp_path / name / "0.png"), "num_classes": 2})
        samples.append(sample.set_gt_label(label).set_pred_label(0).set_pred_score(torch.tensor([0.9, 0.1])))
    visualizer = UniversalVisualizer()
    visualizer.dataset_meta = {"classes": ("ball", "box")}

    class Folders(list):
        pipeline = SimpleNamespace(transforms=[LoadImageFromFile()])

        def get_data_info(self, index):
            return {"img_path": self[index].img_path}

    loader = SimpleNamespace(dataset=Folders(samples))
    runner = SimpleNamespace(visualizer=visualizer, cfg=SimpleNamespace(model={}), test_dataloader=loader)
    hook = PredictionPictures(tmp_path / "out")
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, outputs=samples)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "out").rglob("*.png")) == [
        "out/ball/0.png",
        "out/box/0.png",
    ]
