"""Options that make a training longer, shorter or different in one word; the schedule keeps its shape."""

from __future__ import annotations

import copy

import pytest
from mmengine.config import Config
from recipes import read

from mixtransfer.cli import run_command
from mixtransfer.engine import schedule
from mixtransfer.errors import UserError


def config(name: str) -> Config:
    return copy.deepcopy(read(name))


def test_iterations_scale_warm_up_decay_and_intervals():
    cfg = config("seg/upernet_swin.py")
    schedule.set_length(cfg, 1600, "iters")
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.begin, warm_up.end, decay.begin, decay.end) == (0, 15, 15, 1600)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (1600, 160)
    assert cfg.default_hooks.checkpoint.interval == 160
    with pytest.raises(UserError, match=r"--epochs: the config counts iters \(1600\); say --iters"):
        schedule.set_length(cfg, 3, "epochs")


def test_epochs_scale_milestones_and_a_warm_up_in_iterations():
    cfg = config("det/mask_rcnn_swin.py")
    before = copy.deepcopy(cfg.param_scheduler)
    schedule.set_length(cfg, 24, "epochs")
    for old, new in zip(before, cfg.param_scheduler, strict=True):
        assert new.end == 2 * old.end and new.begin == 2 * old.begin
        assert new.get("milestones", []) == [2 * place for place in old.get("milestones", [])]
    assert cfg.train_cfg.max_epochs == 24


def test_an_end_inside_the_warm_up_is_said():
    cfg = config("seg/upernet_swin.py")
    assert schedule.warm_up_note(cfg) is None
    cfg.train_cfg.max_iters = 1000
    assert "inside its warm-up of 1500" in schedule.warm_up_note(cfg) and "--iters 1000" in schedule.warm_up_note(cfg)
    schedule.set_length(cfg, 500, "iters")
    assert cfg.param_scheduler[0].end == 750


def test_what_one_word_adds(monkeypatch):
    cfg = config("seg/upernet_swin.py")
    schedule.freeze(cfg, 2)
    schedule.add_average(cfg, 0.999)
    schedule.add_early_stop(cfg, 3)
    assert cfg.model.backbone.frozen_stages == 2
    average, stop = cfg.custom_hooks[-2:]
    assert average["momentum"] == pytest.approx(0.001) and (stop["monitor"], stop["patience"]) == ("mIoU", 3)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    schedule.add_trackers(cfg, "tensorboard,wandb")
    kinds = [backend["type"] for backend in cfg.visualizer.vis_backends]
    assert kinds == ["LocalVisBackend", "TensorboardVisBackend", "WandbVisBackend"]
    with pytest.raises(UserError, match="did you mean wandb"):
        schedule.add_trackers(cfg, "wandbb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package mlflow is not installed"):
        schedule.add_trackers(cfg, "mlflow")


def test_the_learning_rate_follows_the_batch_where_the_config_says_of_which(capsys):
    cfg = config("det/mask_rcnn_swin.py")
    if not (cfg.get("auto_scale_lr") or {}).get("base_batch_size"):
        cfg.auto_scale_lr = dict(base_batch_size=16)
    schedule.follow_batch(cfg)
    assert cfg.auto_scale_lr["enable"] is True and cfg.auto_scale_lr["base_batch_size"] == 16
    cfg.auto_scale_lr = None
    with pytest.raises(UserError, match="does not say for how many images a step"):
        schedule.follow_batch(cfg)


def test_iterations_and_epochs_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as stop:
        run_command("train", ["upernet_swin", "--iters", "3", "--epochs", "2"])
    assert stop.value.code == 2 and "not allowed with" in capsys.readouterr().err
