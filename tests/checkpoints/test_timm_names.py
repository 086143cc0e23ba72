"""Files of timm's other networks are recognized by the index, and conversions say how to use them."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from mixtransfer.checkpoints.convert import ConvertOptions, convert_file
from mixtransfer.checkpoints.describe import describe
from mixtransfer.checkpoints.index import make_timm_index
from mixtransfer.checkpoints.timm_names import TIMM_INDEX, variants_of
from mixtransfer.errors import UserError


def test_the_index_holds_what_timm_builds():
    """A few of them: all take two minutes (python -m mixtransfer.checkpoints.index)."""
    index = json.loads(TIMM_INDEX.read_text(encoding="utf-8"))
    assert sum(map(len, index.values())) > 1300
    for key, names in make_timm_index(["resnet18", "convnext_atto", "vit_small_patch14_dinov2"]).items():
        assert set(names) <= set(index[key])


def test_heads_and_sizes_of_images_do_not_matter():
    with torch.device("meta"):
        state = timm.create_model("vit_small_patch14_dinov2", num_classes=5, img_size=112).state_dict()
        other = timm.create_model("vit_small_patch14_dinov2", embed_dim=192).state_dict()
    assert "vit_small_patch14_dinov2" in variants_of(state)
    assert variants_of(other) == []


def test_inspect_and_convert_say_whose_file_it_is(tmp_path):
    file = tmp_path / "resnet10t.pth"
    torch.save({"state_dict": timm.create_model("resnet10t").state_dict()}, file)
    rows = dict(describe(file).rows)
    assert rows["network"] == "timm's resnet10t, of no family here" and rows["names"] == "timm"
    assert "train upernet_timm --arch timm/resnet10t " in rows["use"]
    with pytest.raises(UserError, match=r"resnet10t.pth: timm's resnet10t, of no family here; it keeps its names"):
        convert_file(file, tmp_path / "b.safetensors", ConvertOptions())
    assert not (tmp_path / "b.safetensors").exists()
