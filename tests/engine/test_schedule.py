"""Options that make a training longer, shorter or different in one word; the schedule keeps its shape."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
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


@pytest.mark.parametrize(("name", "unit"), [("pretrain/swin.py", "epochs"), ("seg/upernet_swin.py", "iters")])
def test_a_training_of_one_step_has_no_warm_up(name, unit):
    cfg = config(name)
    before = copy.deepcopy(cfg.param_scheduler[1])
    schedule.set_length(cfg, 1, unit)
    (decay,) = cfg.param_scheduler
    assert (decay.type, decay.begin, decay.get("end") or 1) == (before.type, 0, 1)


def test_an_end_inside_the_warm_up_is_refused_or_said():
    cfg = config("seg/upernet_swin.py")
    assert schedule.check_warm_up(cfg, lambda: pytest.fail("asked for without need")) is None
    cfg.train_cfg.max_iters = 1000
    with pytest.raises(UserError, match=r"^train_cfg.max_iters: .* inside its warm-up of 1500.*; --iters 1000 scales"):
        schedule.check_warm_up(cfg, lambda: 160_000)
    # A file that ends inside its own warm-up means it so.
    assert "--iters 1000" in schedule.check_warm_up(cfg, lambda: 1000)
    schedule.set_length(cfg, 500, "iters")
    assert cfg.param_scheduler[0].end == 750


def test_the_command_refuses_a_run_that_its_options_end_inside_the_warm_up(tmp_path, capsys):
    argv = ["mask_rcnn_swin_micro_nuts", "--data", "scenes", "--work-dir", str(tmp_path)]
    scheduler = "param_scheduler=[dict(type='LinearLR', start_factor=0.1, begin=0, end=2)]"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixtransfer.engine.config.use_data", lambda *_: None)
        patch.setattr("mixtransfer.engine.config.require_pretrained", lambda *_: None)
        assert run_command("train", [*argv, "--cfg-options", "train_cfg.max_epochs=1", scheduler]) == 2
    assert "inside its warm-up of 2, so that" in capsys.readouterr().err


def rates(cfg: Config) -> list[float]:
    """Return the learning rate of each step, by mmengine's own schedulers."""
    wrapper = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    parts = [PARAM_SCHEDULERS.build({**part, "optimizer": wrapper}) for part in cfg.param_scheduler]
    found = []
    for _ in range(cfg.train_cfg.max_iters):
        found.append(wrapper.optimizer.param_groups[0]["lr"])
        for part in parts:
            part.step()
    return found


@pytest.mark.parametrize(("length", "steps"), [(450, 30), (60, 4), (12, 0)])
def test_a_run_of_any_length_reaches_its_learning_rate(length, steps):
    """mmengine's warm-up of one step stays at its first rate, a millionth here, until training ends."""
    cfg = config("seg/upernet_swin_micro_scenes.py")
    schedule.set_length(cfg, length, "iters")
    found = rates(cfg)
    assert [part.end for part in cfg.param_scheduler if part.type == "LinearLR"] == [steps] * bool(steps)
    assert max(found) > 0.85 and found[-1] < 0.2


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


def test_a_warm_up_that_outlasts_few_images_is_shortened():
    """The recipes' epochs are of thousands of iterations, those of forty photos of twenty."""
    parts = [dict(type="LinearLR", by_epoch=False, begin=0, end=500), dict(type="MultiStepLR", milestones=[8, 11])]
    fitted, said = schedule.fit_warm_up(parts, 240)
    assert [part.get("end") for part in fitted] == [24, None] and "a warm-up of 500" in said and "to 24" in said
    assert schedule.fit_warm_up(parts, 501) == (parts, None) and schedule.fit_warm_up(None, 9) == (None, None)
    fitted, said = schedule.fit_warm_up(parts, 19)
    assert fitted == parts[1:] and said.endswith("is left out")
