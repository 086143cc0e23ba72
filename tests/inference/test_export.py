"""Exported networks answer as the model does; what cannot be exported is one line, and leaves no file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recipes import build, recipe

from mixtransfer.cli import run_command
from mixtransfer.errors import UserError
from mixtransfer.inference import export as exporting
from mixtransfer.inference.model import Model, load_model

SMALL = {
    "seg": ("seg/upernet_swin_micro_scenes.py", 150),
    "cls": ("pretrain/swin_micro_scenes.py", 12),
    "det": ("det/mask_rcnn_swin_micro_nuts.py", 80),
}
PIXELS = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints as training writes them, of random weights."""
    folder, found = tmp_path_factory.mktemp("checkpoints"), {}
    for task, (name, classes) in SMALL.items():
        cfg = recipe(name)
        cfg.model.backbone.pop("token_classifier", None)
        meta = {"cfg": cfg.pretty_text, "dataset_meta": {"classes": tuple(f"c{k}" for k in range(classes))}}
        found[task] = folder / f"{task}.pth"
        torch.save({"state_dict": build(cfg).state_dict(), "meta": meta}, found[task])
    return found


def answer_of(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    """Return what the library computes of RGB pixels, through its own preprocessor."""
    network = model.network
    seen = network.data_preprocessor({"inputs": list(pixels.flip(1))}, False)["inputs"]
    with torch.no_grad():
        if model.task == "cls":
            return network(seen, mode="tensor")
        about = {"img_shape": tuple(seen.shape[2:])}
        return network.encode_decode(seen, [about] * len(seen))


# Sides that are no multiples of 32 need padding, and are tried as they are alone.
@pytest.mark.parametrize(
    ("task", "to", "width"), [("seg", "torchscript", 96), ("cls", "exported", 92), ("cls", "onnx", 92)]
)
def test_a_file_answers_about_other_images_as_the_model(task, to, width, checkpoints, tmp_path, capsys):
    """Shifted windows keep their size in a trace, the number of images is free in all three formats."""
    for package in ("onnx", "onnxscript", "onnxruntime") if to == "onnx" else ():
        pytest.importorskip(package, reason="the extra [export] is not installed")
    out = tmp_path / f"net.{to}"
    argv = [str(checkpoints[task]), "--to", to, "--out", str(out), "--size", "64", str(width)]
    assert run_command("export", argv) == 0
    said = capsys.readouterr().out
    assert f"for any number of images of 64x{width}\nproven on 2x3x64x{width} and 1x3x64x{width}" in said
    assert list(tmp_path.iterdir()) == [out]
    pixels = PIXELS[..., :width]
    own = answer_of(load_model(checkpoints[task], "cpu"), pixels)
    with torch.no_grad():
        (answer,) = exporting.loaded(out, to)(pixels)
    assert torch.allclose(answer, own, atol=1e-3 * float(own.std()))


def test_a_network_without_windows_leaves_the_size_free(tmp_path):
    """Its file answers about a size on which nothing was proven, too."""
    cfg = recipe("pretrain/pvt_v2.py")
    network = build(cfg).eval()
    out = tmp_path / "net.pt"
    model: Any = SimpleNamespace(task="cls", name="pvt_v2", network=network)
    assert exporting.export(model, out, "torchscript", (64, 64))[0] == "for any number of images, sides multiples of 32"
    pixels = torch.cat([PIXELS, PIXELS], dim=2)
    with torch.no_grad():
        (answer,) = exporting.loaded(out, "torchscript")(pixels)
    own = answer_of(model, pixels)
    assert torch.allclose(answer, own, atol=1e-3 * float(own.std()))


def test_a_detectors_backbone_is_exported_and_its_boxes_are_not(checkpoints, tmp_path, capsys):
    argv = [str(checkpoints["det"]), "--to", "torchscript", "--out", str(tmp_path / "a.pt"), "--size", "64", "64"]
    assert run_command("export", argv) == 2
    assert "no trace holds; say --part backbone" in capsys.readouterr().err
    assert run_command("export", [*argv, "--part", "backbone"]) == 0 and (tmp_path / "a.pt").is_file()


def test_a_file_that_answers_otherwise_is_not_kept(checkpoints, tmp_path, monkeypatch):
    model = load_model(checkpoints["cls"], "cpu")
    monkeypatch.setattr(exporting, "loaded", lambda path, to: lambda images: [torch.full((len(images), 12), torch.nan)])
    with pytest.raises(UserError, match=r"cannot be exported to torchscript: .* off by"):
        exporting.export(model, tmp_path / "a.pt", "torchscript", (64, 64))
    assert list(tmp_path.iterdir()) == []


def test_onnx_needs_its_packages(checkpoints, tmp_path, monkeypatch, capsys):
    """One line names the first that is missing."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run_command("export", [str(checkpoints["cls"]), "--to", "onnx", "--out", str(tmp_path / "a.onnx")]) == 2
    assert "package onnx is not installed; pip install 'mixtransfer[export]'" in capsys.readouterr().err
