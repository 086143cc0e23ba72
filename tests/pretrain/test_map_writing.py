"""Maps that a frozen network makes, and the commands that write, train with and measure by them."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from recipes import CONFIGS
from tiny_runs import small_scenes
from toys import TOYS

from mixtransfer.backbones.deit import VisionTransformer
from mixtransfer.cli import run_command
from mixtransfer.datasets.image_maps import LoadMap
from mixtransfer.pretrain.classifier import MixingClassifier
from mixtransfer.pretrain.map_writing import class_maps, token_cut

#: A recipe of the toy on pictures of 64 pixels.
SMALL = """
model = dict(arch="toy", backbone=dict(drop_path_rate=0.0))
train_dataloader = dict(batch_size=6, num_workers=0, persistent_workers=False, sampler=dict(type="DefaultSampler"))
val_dataloader = dict(batch_size=6, num_workers=0, persistent_workers=False)
test_dataloader = dict(batch_size=6, num_workers=0, persistent_workers=False)
train_cfg = dict(max_epochs=1)
param_scheduler = []
"""


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(VisionTransformer, "archs", {**VisionTransformer.archs, "toy": TOYS["deit"]})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("maps"))


def test_two_blocks_of_tokens_are_cut_apart():
    """The small block stands out; a few tokens of noise change nothing."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(2, 8, 6, 6)
    tokens[:, 0], tokens[0, :4, 1:3, 1:4] = 1, torch.tensor([0.0, 1, 1, 0])[:, None, None]
    tokens[1, :4, 4:, 3:] = torch.tensor([0.0, 0, 0, 1])[:, None, None]
    found = token_cut(tokens + 0.1 * torch.randn(tokens.shape, generator=generator))
    wanted = torch.zeros(2, 6, 6, dtype=torch.bool)
    wanted[0, 1:3, 1:4] = wanted[1, 4:, 3:] = True
    assert torch.equal(found, wanted)


def test_class_maps_hold_the_best_scores_of_every_token(toy):
    net = MixingClassifier("toy", 7).eval()
    images = torch.randn(2, 3, 64, 64)
    found = class_maps(net, images, best=3)
    with torch.no_grad():
        tokens = net.backbone.embed_with_evidence(images, ("tokens",))["tokens"]
        scores = torch.einsum("bdhw,kd->bkhw", tokens, net.head.weight) + net.head.bias[:, None, None]
    assert found.shape == (2, 2, 3, *tokens.shape[2:]) and found.dtype == np.float16
    best = scores.sort(dim=1, descending=True)
    np.testing.assert_allclose(found[:, 0], best.values[:, :3], atol=2e-3)
    assert np.array_equal(found[:, 1], best.indices[:, :3])


def test_ground_truth_of_the_scenes_trains_tests_and_measures_oamixer(toy, scenes, tmp_path, capsys):
    """The walk of a user: maps, training with foreground, the test, and the test with other backgrounds."""
    assert run_command("data", ["maps", str(scenes)]) == 0
    files = sorted((scenes / "cls/maps/foreground").rglob("*.png"))
    assert len(files) == 24 and "24 maps written" in capsys.readouterr().out
    shares = {path.parent.name: cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in files}
    assert (shares["grass"] == 255).all() and 0.03 < (shares["ball"] == 255).mean() < 0.9
    config = tmp_path / "small.py"
    config.write_text(
        f"_base_ = {str(CONFIGS / 'pretrain/deit_oamixer.py')!r}\n{SMALL}"
        "model.update(kind='bigbigan', token_weight=0.0)\n"
        "maps = dict(_base_.oamixer_map, kind='foreground', folder='maps/foreground')\n"
        "start, trace, erase, _, pack = _base_.train_pipeline\n"
        "train_dataloader['dataset'] = dict(pipeline=[start, trace, erase, maps, pack])\n"
        "start, trace, _, pack = _base_.test_pipeline\n"
        "val_dataloader['dataset'] = test_dataloader['dataset'] = dict(pipeline=[start, trace, maps, pack])\n",
        encoding="utf-8",
    )
    data = ["--data", str(scenes), "--work-dir", str(tmp_path / "out")]
    assert run_command("train", [str(config), *data]) == 0
    checkpoint = str(tmp_path / "out/epoch_1.pth")
    before = torch.load(checkpoint, weights_only=False)["state_dict"]["mask_scale"]
    assert before.shape == (4,) and before.any()
    assert run_command("test", [str(config), checkpoint, *data]) == 0
    result = tmp_path / "swapped.json"
    options = ["--data", str(scenes), "--backgrounds", "maps/foreground", "--json", str(result)]
    assert run_command("benchmark", ["robustness", str(config), checkpoint, *options]) == 0
    assert "6 of 12 images have no background" in capsys.readouterr().out
    found = json.loads(result.read_text())
    assert len(found["swapped"]) == 3 and found["without_background"] == 6
    lost = next(path for path in files if "val" in path.parts)
    lost.unlink()
    assert run_command("test", [str(config), checkpoint, *data]) == 2
    assert f"{lost.name}: no such map; mixtransfer data maps writes maps" in capsys.readouterr().err
    assert run_command("data", ["maps", str(scenes)]) == 0
    assert ": 1 maps written" in capsys.readouterr().out and lost.is_file()


def test_a_teacher_writes_the_maps_that_tokenmix_trains_with(toy, scenes, tmp_path, capsys):
    checkpoint = tmp_path / "teacher.pth"
    torch.save(MixingClassifier("toy", 12).state_dict(), checkpoint)
    teacher = ["--teacher", str(checkpoint), "--arch", "toy", "--side", "64"]
    assert run_command("data", ["maps", str(scenes), "--kind", "classes", *teacher]) == 0
    assert run_command("data", ["maps", str(scenes), "--folder", "maps/cut", *teacher]) == 0
    assert len(list((scenes / "cls/maps/cut").rglob("*.png"))) == 24
    capsys.readouterr()
    config = tmp_path / "small.py"
    config.write_text(f"_base_ = {str(CONFIGS / 'pretrain/deit_tokenmix_maps.py')!r}\n{SMALL}", encoding="utf-8")
    argv = [str(config), "--data", str(scenes), "--work-dir", str(tmp_path / "out")]
    assert run_command("train", argv) == 0
    # A teacher of other classes has no scores for these.
    torch.save(MixingClassifier("toy", 5).state_dict(), checkpoint)
    other = ["maps", str(scenes), "--kind", "classes", "--folder", "maps/other", *teacher]
    assert run_command("data", other) == 2
    assert "head.weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--kind", "classes"], "give a --teacher"),
        (["--teacher", "x.pth"], "give both"),
        (["--masks", "x", "--kind", "classes"], "leave --teacher and --kind out"),
        (["--masks", "x", "--folder", "maps/masks"], "needs its mask there"),
    ],
)
def test_what_cannot_be_made_is_one_line(options, text, scenes, capsys):
    assert run_command("data", ["maps", str(scenes), *options]) == 2
    assert text in capsys.readouterr().err


def test_masks_become_foreground(scenes, tmp_path):
    for path in (scenes / "cls").glob("*/*/*.png"):
        target = tmp_path / path.relative_to(scenes / "cls")
        if target.parts[-3] in ("train", "val"):
            target.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(target), np.repeat(np.uint8([0, 3, 255, 7]), 16)[None].repeat(64, 0))
    assert run_command("data", ["maps", str(scenes), "--masks", str(tmp_path), "--folder", "maps/masks"]) == 0
    path = next((scenes / "cls/train").rglob("*.png"))
    load = LoadMap("foreground", "maps/masks", str(scenes / "cls"))
    places = np.dstack([np.full((4, 4), 0.0), np.full((4, 4), 0.5)]).astype(np.float32)
    places[..., 0] = [0.1, 0.4, 0.6, 0.9]
    assert load({"img_path": str(path), "places": places})["patch_labels"][0, 0].tolist() == [0, 1, 0, 1]
