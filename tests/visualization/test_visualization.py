"""Pictures say what they should: colors of labels and shares, what a mixed batch shows, a report in one file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from toys import TOYS, build_toy

from mixtransfer.backbones.mlp_mixer import MLPMixer
from mixtransfer.cli import run_command
from mixtransfer.datasets.scenes import write_scenes
from mixtransfer.demo import steps as demo
from mixtransfer.demo.screen import Screen
from mixtransfer.engine.build import build_runner, prepare
from mixtransfer.engine.config import load_config
from mixtransfer.errors import UserError
from mixtransfer.pretrain.classifier import MixingClassifier
from mixtransfer.visualization import mixes, report
from mixtransfer.visualization.batches import mixed_batch, mixed_classes
from mixtransfer.visualization.pictures import (
    OWN,
    PARTNER,
    VOID_COLOR,
    color_labels,
    color_shares,
    heat,
    outline,
    overlay,
)
from mixtransfer.visualization.token_shares import drifts, token_shares

ROOT = Path(__file__).parents[2]
SEGMENT = "upernet_swin_micro_scenes"
CLASSIFY = str(ROOT / "configs/pretrain/swin_micro_scenes.py")
PALETTE = [(255, 0, 0), (0, 0, 255)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> str:
    return str(write_scenes(tmp_path_factory.mktemp("data") / "scenes", 4, 1, 12, 12))


def prepared(data: str, work_dir: Path, options: list[str], purpose: str, config: str = SEGMENT) -> Config:
    cfg = load_config(config, ("train", "test"), options=options, data=data, work_dir=work_dir)
    prepare(cfg, purpose)
    return cfg


def test_labels_have_their_colors_and_void_is_gray():
    labels = np.array([[0, 1], [-1, 1]])
    assert color_labels(labels, PALETTE).tolist() == [[[255, 0, 0], [0, 0, 255]], [list(VOID_COLOR), [0, 0, 255]]]
    half = overlay(np.zeros((2, 2, 3), np.uint8), labels, PALETTE, opacity=0.5)
    assert half[0].tolist() == [[128, 0, 0], [0, 0, 128]]


def test_a_token_of_two_classes_has_the_mean_of_their_colors_and_lacking_mass_is_void():
    shares = np.array([[[0.5, 0.5]], [[0.5, 0.0]]])
    assert color_shares(shares, PALETTE)[0, 0].tolist() == [128, 0, 128]
    assert color_shares(shares, PALETTE)[0, 1].tolist() == [240, 112, 112]
    assert heat(np.array([[0.0, 1.0]])).tolist() == [[list(OWN), list(PARTNER)]]


def test_mixed_batch_is_pasted_from_image_and_partner(scenes, tmp_path):
    options = ["model.backbone.init_cfg=None", "train_dataloader.batch_size=4"]
    batch = mixed_batch(build_runner(prepared(scenes, tmp_path, options, "draw mix")), seed=1)
    from_own = (batch.mixed_images == batch.images).all(-1)
    from_partner = (batch.mixed_images == batch.images[::-1]).all(-1)
    assert (from_own | from_partner).all() and not from_own.all()
    labels = np.where(from_own, batch.labels, batch.labels[::-1])
    assert (labels == batch.mixed_labels).all()
    # What arrives in every stage is still as much as what was pasted.
    pasted = (~from_own).mean(axis=(1, 2))
    for share in batch.partner:
        assert share.mean(axis=(1, 2)) == pytest.approx(pasted, abs=0.15)
    assert [share.shape[1:] for share in batch.partner] == [(32, 32), (16, 16), (8, 8), (4, 4)]


@pytest.mark.parametrize("method", ["CutMix", "TLAlign"])
def test_a_classifiers_mix_shows_what_came_from_whom_and_what_the_label_makes_of_it(scenes, tmp_path, method):
    options = [f"model.mixing.type={method}", "train_dataloader.batch_size=6"]
    batch = mixed_classes(build_runner(prepared(scenes, tmp_path, options, "draw", CLASSIFY)), seed=1)
    expected = np.where(batch.pixels[..., None] == 1, batch.images[batch.partner], batch.images)
    assert (batch.mixed_images == expected).all() and (batch.partner == np.arange(6)[::-1]).all()
    area = batch.pixels.mean(axis=(1, 2))
    assert 0.02 < area.min() and len(set(batch.classes)) > 1
    # Labels go by area, or by what the untrained network carries into its embedding.
    assert batch.label == pytest.approx(area, abs=1e-6 if method == "CutMix" else 0.2)
    assert method == "CutMix" or np.abs(batch.label - area).max() > 1e-4


def test_mix_draws_a_classifiers_batch_and_says_where_there_is_none(scenes, tmp_path, capsys):
    argv = ["--data", scenes, "--work-dir", str(tmp_path), "--cfg-options", "train_dataloader.batch_size=1"]
    assert run_command("visualize", ["mix", CLASSIFY, *argv]) == 0
    assert Image.open(tmp_path / "mix.png").width > 1000
    assert run_command("visualize", ["mix", CLASSIFY, *argv, "model.mixing=None"]) == 2
    assert "MixingClassifier of this config mixes no labels; there is no mix to draw" in capsys.readouterr().err


def test_align_draws_a_sheet_and_its_pieces(scenes, tmp_path):
    options = ["--cfg-options", "model.backbone.init_cfg=None", "train_dataloader.batch_size=2"]
    argv = ["align", SEGMENT, "--data", scenes, "--work-dir", str(tmp_path), "--count", "1", *options]
    assert run_command("visualize", argv) == 0
    assert (tmp_path / "align.png").is_file()
    assert Image.open(tmp_path / "tiles/0_mixed.png").size == (128, 128)


@pytest.mark.long
def test_align_of_a_classifier_and_every_method_are_sheets_to_read_on_a_telephone(scenes, tmp_path, capsys):
    """Letters of 9 points in 5.6 inches have 8 pixels where the picture is shown 390 pixels wide."""
    argv = [CLASSIFY, "--data", scenes, "--work-dir", str(tmp_path), "--cfg-options", "train_dataloader.batch_size=6"]
    assert run_command("visualize", ["align", *argv]) == 0
    assert Image.open(tmp_path / "align.png").width == 1120
    assert run_command("visualize", ["mix", *argv[:-2], "--mixing", "all", *argv[-2:]]) == 0
    sheet = Image.open(tmp_path / "mix.png")
    # The images and twelve methods, each with a line of text.
    assert sheet.width == 1120 and sheet.height > 13 * 200
    assert run_command("visualize", ["mix", *argv[:-2], "--mixing", "TransMax", *argv[-2:]]) == 2
    assert "TransMax" in capsys.readouterr().err


def test_methods_that_a_network_cannot_carry_are_named_on_the_sheet(scenes, tmp_path, monkeypatch):
    runner = build_runner(prepared(scenes, tmp_path, ["train_dataloader.batch_size=4"], "draw", CLASSIFY))
    monkeypatch.setattr(MLPMixer, "archs", {**MLPMixer.archs, "toy_mlp": TOYS["mlp_mixer"]})
    plain = MixingClassifier("toy_mlp", 12, cell_size=8)
    plain.data_preprocessor, runner.model = runner.model.data_preprocessor, plain
    runner.cfg.model.update(arch="toy_mlp", backbone={})
    kept = {}
    monkeypatch.setattr(mixes, "save_sheet", lambda rows, titles, path, *_, heads, **__: kept.update(heads=heads))
    mixes.save_every_method(runner, ("a",) * 12, tmp_path / "x.png", 0, "")
    assert "not with this network: MixPro, SMMix, TransMix" in kept["heads"][0]
    assert [head.partition(":")[0] for head in kept["heads"][1:]] == [
        *("CowMix", "CutMix", "FMix", "GridMix", "Mixup", "MixupOrCutMix", "ResizeMix", "TLAlign", "TokenMix")
    ]


@pytest.mark.parametrize("config", [SEGMENT, CLASSIFY])
def test_fluctuation_draws_maps_a_curve_and_numbers(scenes, tmp_path, config):
    options = ["train_dataloader.batch_size=2", *(["model.backbone.init_cfg=None"] if config == SEGMENT else [])]
    argv = ["fluctuation", config, "--data", scenes, "--work-dir", str(tmp_path), "--count", "1"]
    assert run_command("visualize", [*argv, "--cfg-options", *options]) == 0
    found = json.loads((tmp_path / "fluctuation.json").read_text())
    assert [step["name"] for step in found["steps"]] == [f"block {n}" for n in range(1, 9)]
    assert 0.3 <= found["input_share"][0] <= 0.7 and len(found["output_share"]) == 2
    drift = [step["drift"][0] for step in found["steps"]]
    # Shares mix more and more.
    assert drift[-1] > max(drift[1], 0.05) and max(drift) <= 1
    assert (tmp_path / "fluctuation.png").is_file() and (tmp_path / "fluctuation_curve.png").is_file()


@pytest.mark.parametrize("family", [name for name in TOYS if "/" not in name])
def test_shares_after_the_blocks_are_those_of_the_outputs(family):
    """Whatever the tokens' layout: the outputs have what the backbone's own labels say, and nothing gets lost."""
    net = build_toy(family, with_embedding=True)
    images, labels = torch.randn(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    if net.label_rule == "pooling":
        with pytest.raises(UserError, match="no attention that moves tokens"):
            token_shares(net, images, labels)
        return
    steps, output = token_shares(net, images, labels)
    with torch.no_grad():
        expected = [label[:, 0] for _, label in net.eval().trunk(images, labels, net.output_count)]
        assert torch.equal(output, net.embed(images, labels)[1][:, 0])
    ends = [step.share for step in steps if step.ends_stage]
    assert len(ends) == len(expected) and all(map(torch.equal, ends, expected))
    assert drifts(steps, labels).shape == (len(steps), 2)
    assert all((step.share >= -1e-5).all() and (step.share <= 1 + 1e-5).all() for step in steps)


def test_instances_are_outlined_in_the_color_of_their_class():
    masks = np.zeros((1, 20, 20), bool)
    masks[0, 8:12, 8:12] = True
    drawn = outline(np.zeros((20, 20, 3), np.uint8), np.array([[4.0, 4, 16, 16]]), masks, np.array([1]), PALETTE)
    blue = (drawn == [0, 0, 255]).all(-1)
    assert blue[4, 4:16].all() and blue[15, 4:16].all() and blue[8, 8:12].all()
    assert not blue[6, 6] and not blue[9:11, 9:11].any() and blue.sum() == 4 * 11 + 4 * 3


def test_only_what_depends_on_weights_asks_for_them(scenes, tmp_path, capsys):
    options = ["--cfg-options", "model.backbone.init_cfg.checkpoint=none.pth", "train_dataloader.batch_size=2"]
    argv = [SEGMENT, "--data", scenes, "--work-dir", str(tmp_path), "--count", "1", *options]
    assert run_command("visualize", ["align", *argv]) == 2
    assert "no pretrained weights in none.pth; give their file with --cfg-options" in capsys.readouterr().err
    assert run_command("visualize", ["mix", *argv]) == 0
    assert (tmp_path / "mix.png").is_file() and not (tmp_path / "align.png").exists()


def test_predict_writes_label_maps_in_the_dataset_s_values(scenes, tmp_path):
    cfg = prepared(scenes, tmp_path, [], "predict")
    model = build_runner(cfg).model
    last = model.decode_head.conv_seg
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.arange(12) == 3)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "always_3.pth")
    argv = ["predict", SEGMENT, str(tmp_path / "always_3.pth"), "IMAGE", "--data", scenes, "--work-dir", str(tmp_path)]
    argv[3] = f"{scenes}/seg/images/validation/000000.jpg"
    assert run_command("visualize", argv) == 0
    assert set(np.unique(Image.open(tmp_path / "000000_labels.png"))) == {4}


def test_predict_writes_a_classifiers_answer_on_the_image(scenes, tmp_path):
    argv = ["--data", scenes, "--work-dir", str(tmp_path)]
    short = ["train_cfg.max_epochs=1", "param_scheduler=[]", "train_dataloader.num_workers=0"]
    assert run_command("train", [CLASSIFY, *argv, "--cfg-options", *short]) == 0
    image = tmp_path / "grey.png"
    Image.fromarray(np.full((90, 120), 128, np.uint8)).save(image)
    (tmp_path / "out").mkdir()
    argv[-1] = str(tmp_path / "out")
    assert run_command("visualize", ["predict", CLASSIFY, str(tmp_path / "epoch_1.pth"), str(image), *argv]) == 0
    drawn = np.asarray(Image.open(tmp_path / "out" / "grey.png"))
    assert drawn.shape[2] == 3 and (drawn != 128).any() and (drawn == 128).all(-1).mean() > 0.3


def test_predict_names_an_image_that_is_not_there(scenes, capsys):
    assert run_command("visualize", ["predict", SEGMENT, "none.pth", "absent.jpg", "--data", scenes]) == 2
    assert "absent.jpg: no such image" in capsys.readouterr().err


def test_report_is_one_file(tmp_path):
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(picture)
    page = report.page("a < b", [report.section("s", report.figure(picture, "c")), report.table(("x",), [("<i>",)])])
    assert re.findall(r'src="(.{15})', page) == ["data:image/png;"]
    assert "a &lt; b" in page and "&lt;i&gt;" in page and "viewport" in page


def test_demo_keeps_steps_and_stops_at_the_first_failure(tmp_path, monkeypatch, capsys):
    """A step runs again only if its command or an earlier one is another; a failure stops with the step's own words."""
    monkeypatch.setattr(demo, "WORK", tmp_path)
    script = tmp_path / "count.py"
    script.write_text(
        "import pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "path.parent.mkdir(exist_ok=True)\n"
        "log = path.parents[1] / 'runs'\n"
        "log.write_text(log.read_text() + 'x' if log.exists() else 'x')\n"
        "sys.exit('out of luck') if len(sys.argv) > 2 else path.write_text('made')\n"
    )
    step = demo.Step("one", "One", (str(script), str(tmp_path / "one/made")), tmp_path / "one/made")
    assert demo.run_step(step, ["a"], Screen())[1] == 0
    assert demo.run_step(step, ["a"], Screen())[1] == 0
    assert (tmp_path / "runs").read_text() == "x"
    assert demo.run_step(step, ["b"], Screen())[1] == 0
    assert (tmp_path / "runs").read_text() == "xx"
    failing = demo.Step("two", "Two", (*step.argv, "fail"), tmp_path / "one/made")
    assert demo.run_step(failing, ["b", "c"], Screen())[1] == 1
    assert "out of luck" in capsys.readouterr().err


def test_demo_notes_the_conversion_as_it_was_run(tmp_path, monkeypatch):
    """The report lists commands that a user can type, so the file that pretraining ended with must stand in it."""
    monkeypatch.setattr(demo, "WORK", tmp_path)
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain/epoch_1.pth").touch()
    (tmp_path / "pretrain/last_checkpoint").write_text(str(tmp_path / "pretrain/epoch_1.pth"))
    script = tmp_path / "convert.py"
    script.write_text("import sys; open(sys.argv[2], 'w').close()")
    step = demo.Step("convert", "Convert", (str(script), "PRETRAINED", str(tmp_path / "made")), tmp_path / "made")
    took = {}
    assert demo.run_chain([step], [], took, Screen()) == 0
    assert took["convert"][0].argv[1] == str(tmp_path / "pretrain/epoch_1.pth")
