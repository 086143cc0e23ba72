"""Weights that mmengine and the libraries load by themselves: no code of a file is run, and nothing is half loaded."""

from __future__ import annotations

import functools

import pytest
import timm
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmengine.model.weight_init import PretrainedInit
from mmengine.runner import checkpoint, load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint, load_state_dict
from tiny_runs import small_scenes, tiny_config, train
from torch import nn

from mixtransfer import build_backbone
from mixtransfer.engine.config import drop_pretrained, require_pretrained
from mixtransfer.engine.guarded_loading import GuardedLoading
from mixtransfer.errors import UserError


class Harm:
    """Unpickles to a call of ``open(path, "w")``."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class Part(BaseModule):
    """A part of a model such as libraries have, which loads its weights in one of their ways."""

    def __init__(self, way=None, init_cfg=None):
        super().__init__(init_cfg)
        self.conv, self.norm0 = nn.Conv2d(3, 4, 1), nn.LayerNorm(4)
        self.register_buffer("index", torch.arange(3))
        self.way = way

    def init_weights(self):
        if self.way:
            self.way(self, CheckpointLoader.load_checkpoint(self.init_cfg["checkpoint"], logger=None))
        else:
            super().init_weights()


WAYS = {
    "mmengine's initializer": None,
    "load_state_dict by name": lambda part, state: load_state_dict(part, state, strict=False),
    "its own load_state_dict": lambda part, state: part.load_state_dict(state, False),
}
GOOD = {"conv.weight": torch.ones(4, 3, 1, 1), "conv.bias": torch.ones(4)}


def started(path, way=None, **options):
    model = nn.Sequential(Part(way, init_cfg=ConfigDict(type="Pretrained", checkpoint=str(path), **options)))
    with GuardedLoading(False) as loading, loading.completely(model):
        model[0].init_weights()
    return model[0]


def saved(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_is_complete_is_loaded(way, tmp_path):
    # Norms of a dense network's outputs and tables that it computes are not in a classifier's file; heads are.
    part = started(saved({**GOOD, "head.weight": torch.ones(7, 4)}, tmp_path / "a.pth"), way)
    assert all(torch.equal(part.state_dict()[key], value) for key, value in GOOD.items())
    inside = saved({"state_dict": {f"neck.{key}": value for key, value in GOOD.items()}}, tmp_path / "b.pth")
    assert torch.equal(started(inside, prefix="neck.").conv.bias, GOOD["conv.bias"])


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"conv.bias": None}, "does not fit Part: 1 missing: conv.bias"),
        ({"conv.extra": torch.ones(3)}, "does not fit Part: 1 unexpected: conv.extra"),
        ({"conv.weight": torch.ones(4, 5, 1, 1)}, r"size mismatch for conv.weight"),
        ({"conv.weight": torch.full((4, 3, 1, 1), torch.nan)}, r"1 entries hold NaN or infinite values: conv.weight"),
        ({"conv.weight": torch.ones(4, 3, 1, 1, dtype=torch.int32)}, r"conv.weight \(int32\)"),
        ({"conv.weight": torch.ones(4, 3, 1, 1, dtype=torch.complex64)}, r"conv.weight \(complex64\)"),
        ({"conv.weight": torch.ones(4, 3, 1, 1).to(torch.float8_e5m2)}, r"conv.weight \(float8_e5m2\)"),
    ],
)
def test_what_is_not_complete_stops_in_one_line(way, change, text, tmp_path):
    state = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    path = saved(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match=text) as caught:
        started(path, way)
    assert str(path) in str(caught.value)


def test_our_backbones_say_which_initializer_knows_their_names(tmp_path):
    net = build_backbone("swin_micro")
    net.init_cfg = dict(type="Pretrained", checkpoint=str(saved(GOOD, tmp_path / "a.pth")))
    with GuardedLoading(False) as loading, loading.completely(net), pytest.raises(UserError, match=r"mixtransfer\.Pre"):
        net.init_weights()


READERS = {
    "init_cfg": started,
    "init_cfg with a prefix": functools.partial(started, prefix="conv."),
    "a library's own": functools.partial(started, way=WAYS["its own load_state_dict"]),
    "PretrainedInit": lambda path: PretrainedInit(str(path))(Part()),
    "load_checkpoint": lambda path: load_checkpoint(Part(), str(path)),
    "_load_checkpoint": lambda path: _load_checkpoint(str(path)),
    "CheckpointLoader": lambda path: CheckpointLoader.load_checkpoint(str(path)),
    "torch.load": lambda path: torch.load(path, weights_only=False),
    "torch.load of an open file": lambda path: torch.load(path.open("rb"), weights_only=False),
    "timm": lambda path: timm.create_model("resnet10t", checkpoint_path=str(path)),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_no_code_of_a_file_is_run(reader, tmp_path):
    path = saved({**GOOD, "extra": Harm(tmp_path / "ran")}, tmp_path / "a.pth")
    with GuardedLoading(False), pytest.raises((UserError, RuntimeError, torch.serialization.pickle.UnpicklingError)):
        reader(path)
    assert not (tmp_path / "ran").exists()


def test_trust_runs_code_and_the_guard_ends(tmp_path):
    before = torch.load, load_state_dict
    path = saved({**GOOD, "extra": Harm(tmp_path / "ran")}, tmp_path / "a.pth")
    with GuardedLoading(True):
        assert torch.load is not before[0]
        _load_checkpoint(str(path))
    assert (tmp_path / "ran").exists()
    assert before == (torch.load, checkpoint.load_state_dict)


def test_a_file_that_is_not_there_or_a_url_is_told_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = str(saved(GOOD, tmp_path / "a.pth"))
    fine = {"backbone": {"init_cfg": {"type": "Pretrained", "checkpoint": here}}, "pretrained": None}
    require_pretrained(fine)
    for model, text in (
        (
            {"neck": {"init_cfg": [{"type": PretrainedInit, "checkpoint": "x.pth"}]}},
            r"model\.neck\.init_cfg\.0=None to",
        ),
        ({"pretrained": "x.pth"}, r"no pretrained weights in x\.pth; .* model\.pretrained=FILE$"),
        ({"teacher": {"checkpoint": "x.pth"}}, r"model\.teacher\.checkpoint=FILE$"),
        (
            {"teacher_ckpt": "https://127.0.0.1:9/x.pth"},
            r"model\.teacher_ckpt: https://127.0.0.1:9/x\.pth: cannot be fe",
        ),
        ({"pretrained": "torchvision://resnet50"}, "a URL, where a file is needed; download it first"),
        ({"backbone": {"init_cfg": {"checkpoint": "open-mmlab://x"}}}, "a URL"),
    ):
        with pytest.raises(UserError, match=text):
            require_pretrained(model)


def test_a_checkpoint_of_the_whole_model_needs_no_other():
    model = {
        "pretrained": "x.pth",
        "backbone": {"init_cfg": {"type": "mixtransfer.Pretrained", "checkpoint": "x.pth"}},
        "neck": {"init_cfg": [{"type": "Pretrained", "checkpoint": "x.pth"}, {"type": "Xavier"}]},
        "head": {"init_cfg": {"type": "Normal"}, "teacher": {"checkpoint": "x.pth"}},
    }
    drop_pretrained(model)
    assert model == {
        "pretrained": None,
        "backbone": {"init_cfg": None},
        "neck": {"init_cfg": [{"type": "Xavier"}]},
        "head": {"init_cfg": {"type": "Normal"}, "teacher": {"checkpoint": "x.pth"}},
    }


def test_training_starts_from_no_file_that_runs_code_or_lies_elsewhere(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = small_scenes(tmp_path)
    evil = saved({**GOOD, "extra": Harm(tmp_path / "ran")}, tmp_path / "evil.pth")
    for where, file, text in (
        ("decode_head.init_cfg", str(evil), f"{evil}: wants to run code"),
        ("decode_head.init_cfg", "https://127.0.0.1:9/swin.pth", "https://127.0.0.1:9/swin.pth: cannot be fetched ("),
    ):
        config = tiny_config(
            "seg",
            tmp_path,
            f"model['{where.split('.')[0]}']['init_cfg'] = dict(type='Pretrained', checkpoint={file!r})",
        )
        assert train(config, data, tmp_path / "run") == 2
        assert text in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "ran").exists()
