"""Work dirs and checkpoints of version 547323b go on working; see tests/fixtures/547323b/README.md."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixtransfer.backbones import SwinTransformer, VisionTransformer, deit, swin
from mixtransfer.cli import run_command
from mixtransfer.datasets.scenes import write_scenes
from mixtransfer.engine.config import accept_former_names

FIXTURES = Path(__file__).parents[1] / "fixtures" / "547323b"
#: Work dir -> its checkpoint, the length of the training that goes on from it, the checkpoint at its end.
RUNS = {
    "smmix": ("epoch_1.pth", "train_cfg.max_epochs=3", "epoch_3.pth"),
    "segmentor": ("iter_3.pth", "train_cfg.max_iters=6", "iter_6.pth"),
}
#: What the command of that version said beside its config, under the name of this version.
OPTIONS = {"smmix": (), "segmentor": ("custom_hooks.0.cell_size=8",)}
every_run = pytest.mark.parametrize("name", RUNS)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(root, train=10, val=4, classify_train=12, classify_val=12, size=(64, 64))


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    monkeypatch.setitem(VisionTransformer.archs, "deit_toy", deit.Spec(16, 4, 2, img_size=64))
    toy = swin.Spec(8, (1, 2, 2, 1), (1, 2, 2, 4), window=4, img_size=64)
    monkeypatch.setitem(SwinTransformer.archs, "swin_toy", toy)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def our_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {re.sub(r"^token_head\.", "region_head.", key): value for key, value in state.items()}


# The config that lies in a work dir is complete, so that no recipe of ours is read, and has the names of its version.
@every_run
@pytest.mark.parametrize("own_config", [False, True], ids=["our config", "config of the work dir"])
def test_training_goes_on_to_the_same_weights(name, own_config, scenes, tmp_path):
    checkpoint, length, last = RUNS[name]
    work_dir = shutil.copytree(FIXTURES / name, tmp_path / "moved")
    config = (work_dir if own_config else FIXTURES) / f"{name}.py"
    command = [config, "--data", scenes, "--work-dir", work_dir, "--resume", "--cfg-options", length]
    command += () if own_config else OPTIONS[name]
    assert run_command("train", [str(word) for word in command]) == 0
    start = our_names(weights(FIXTURES / name / checkpoint))
    found, expected = weights(work_dir / last), our_names(load_file(FIXTURES / name / "continued.safetensors"))
    assert found.keys() == expected.keys() == start.keys()
    trained = [key for key in start if not torch.allclose(start[key], expected[key], rtol=0, atol=1e-4)]
    assert len(trained) > len(start) / 2
    # Bit for bit with one thread, as it was made; two threads and other processors round sums differently.
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@every_run
def test_a_checkpoint_measures_the_same(name, scenes, tmp_path):
    command = [FIXTURES / f"{name}.py", FIXTURES / name / RUNS[name][0], "--data", scenes, "--work-dir", tmp_path]
    assert run_command("test", [str(word) for word in command]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    expected = json.loads((FIXTURES / name / "metrics.json").read_text())
    # Pixels that two classes share on another processor are few: 0.05 are eight of them.
    assert found == pytest.approx(expected, abs=0.05)


# A training that goes on writes its checkpoints under the names of this version.
@pytest.mark.parametrize("renamed", [False, True], ids=["as written", "our names"])
@pytest.mark.parametrize("name, arch", [("smmix", "deit_toy"), ("segmentor", "swin_toy")])
def test_a_checkpoint_is_converted(name, arch, renamed, tmp_path):
    checkpoint = FIXTURES / name / RUNS[name][0]
    content = weights(checkpoint)
    if renamed:
        content, checkpoint = our_names(content), tmp_path / "theirs.pth"
        torch.save({"state_dict": content}, checkpoint)
    assert run_command("convert", [str(checkpoint), str(tmp_path / "ours.safetensors"), "--arch", arch]) == 0
    found = load_file(tmp_path / "ours.safetensors")
    written = {key.removeprefix("backbone."): value for key, value in content.items()}
    # The token classifier, the second head and the segmentor's heads stay behind.
    others = ("token_classifier.", "token_head.", "region_head.", "decode_head.", "auxiliary_head.")
    assert all(key in found or key.startswith(others) for key in written)
    assert ("head.weight" in found) == (name == "smmix")
    for key, value in found.items():
        torch.testing.assert_close(value, written[key], rtol=0, atol=0)


def test_former_names_in_configs_are_read_and_a_librarys_are_left():
    region = {"type": "OneOf", "regions": [{"type": "Box"}]}
    flip = {"type": "OneOf", "transforms": [{"type": "HorizontalFlip"}]}
    cfg = {
        "hook": {"type": "TokenMixHook", "token": 4, "region": region},
        "pipeline": [{"type": "Albu", "transforms": [flip]}],
    }
    accept_former_names(cfg)
    assert cfg["hook"] == {
        "type": "TokenMixHook",
        "cell_size": 4,
        "region": {"type": "RandomChoice", "regions": region["regions"]},
    }
    assert flip["type"] == "OneOf"
