"""A checkpoint is data: nothing of it is run, and a state of training that does not fit is refused, not ignored."""

from __future__ import annotations

import copy
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper, PolyLR
from tiny_runs import ProbeHook, small_scenes, tiny_config, train
from torch import nn

from mixtransfer.engine.hooks import CheckpointHook
from mixtransfer.engine.resume import (
    average_state,
    hub_state,
    optimizer_state,
    place_in,
    scheduler_states,
    stateless,
)
from mixtransfer.errors import UserError

NAME = "iter_3.pth"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A training of segmentation that was stopped after two of three iterations; its folder, config and data."""
    folder = tmp_path_factory.mktemp("stopped")
    data = small_scenes(folder)
    config = tiny_config("seg", folder)
    options = ("train_cfg.max_iters=2", "train_cfg.val_begin=9", "default_hooks.checkpoint.interval=2")
    ProbeHook.reset()
    assert train(config, data, folder / "run", cfg_options=options) == 0
    return folder, config, data


def resume(stopped, path, *more):
    _, config, data = stopped
    options = ("train_cfg.max_iters=3", "train_cfg.val_begin=9")
    return train(config, data, path.parent / "resumed", "--resume", str(path), *more, cfg_options=options)


def changed(stopped, tmp_path, change):
    content = torch.load(stopped[0] / "run" / "iter_2.pth", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


def test_the_text_of_a_config_in_a_checkpoint_is_never_run(stopped, tmp_path):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()\nmodel = dict()\n"

    def change(content):
        content["meta"] |= {"config": code, "cfg": code, "hook_msgs": {"config": code}}
        content["message_hub"]["runtime_info"]["cfg"] = code

    path = changed(stopped, tmp_path, change)
    ProbeHook.reset()
    assert resume(stopped, path) == 0
    assert len(ProbeHook.losses) == 1 and not mark.exists()


def test_a_misshapen_optimizer_state_is_one_line(stopped, tmp_path, capsys):
    # The fused optimizer read and wrote out of bounds.
    def change(content):
        content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)

    path = changed(stopped, tmp_path, change)
    assert resume(stopped, path) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(path) in error and "exp_avg of " in error and "is (3,) float32 instead of" in error


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.second(self.first(x))


def built(kind=torch.optim.AdamW, **settings):
    net = Net()
    groups = [{"params": list(part.parameters())} for part in net.children()]
    wrapper = OptimWrapper(kind(groups, lr=0.1, **settings))
    schedulers = [LinearLR(wrapper, 0.5, by_epoch=False, end=3), PolyLR(wrapper, power=0.9, begin=3, by_epoch=False)]
    return net, wrapper, schedulers


def trained(kind=torch.optim.AdamW, **settings):
    net, wrapper, schedulers = built(kind, **settings)
    for _ in range(2):
        wrapper.update_params(net(torch.ones(5, 3)).square().sum())
        for scheduler in schedulers:
            scheduler.step()
    return wrapper.state_dict(), [copy.deepcopy(scheduler.state_dict()) for scheduler in schedulers]


def taken(saved, without=(4, 5), kind=torch.optim.AdamW, **settings):
    net, wrapper, _ = built(kind, **settings)
    return wrapper, optimizer_state(wrapper, net, saved, without, NAME)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
        (torch.optim.RMSprop, {"centered": True}),
        (torch.optim.Adagrad, {}),
    ],
)
def test_the_state_of_any_optimizer_is_taken_as_it_was(kind, settings):
    saved, _ = trained(kind, **settings)
    without = stateless(saved)
    wrapper, (state, absent) = taken(copy.deepcopy(saved), without, kind, **settings)
    assert len(absent) == len(without)
    wrapper.load_state_dict(state)
    again = wrapper.state_dict()
    assert again["param_groups"] == saved["param_groups"] and again["state"].keys() == saved["state"].keys()
    for number, entries in saved["state"].items():
        for key, value in entries.items():
            assert value is None or torch.equal(again["state"][number][key], value)


def test_a_state_shares_no_memory():
    saved, _ = trained()
    saved["state"][0]["exp_avg"] = torch.zeros(1).expand(4, 3)
    saved["state"][0]["exp_avg_sq"] = saved["state"][0]["exp_avg"]
    _, (state, _) = taken(saved)
    assert all(value.is_contiguous() for value in state["state"][0].values())
    assert state["state"][0]["exp_avg"].data_ptr() != state["state"][0]["exp_avg_sq"].data_ptr()


def put(place, value):
    def change(saved):
        *path, last = place
        for key in path:
            saved = saved[key]
        if value is KeyError:
            del saved[last]
        else:
            saved[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            put(("state", 0, "exp_avg"), torch.zeros(())),
            r"exp_avg of first.weight .* is \(\) float32 instead of \(4, 3\)",
        ),
        (put(("state", 0, "exp_avg"), torch.zeros(4, 3).double()), "float64 instead of"),
        (put(("state", 1, "step"), torch.ones(4)), r"step of first.bias .* is \(4,\)"),
        (put(("state", 1, "step"), 3), "step of first.bias in its optimizer is not of this optimizer's kind"),
        (put(("state", 2, "exp_avg_sq"), torch.full((2, 4), math.nan)), "second.weight in its optimizer is not finite"),
        (put(("state", 2, "exp_avg_sq"), KeyError), "is exp_avg, step instead of exp_avg, exp_avg_sq, step"),
        (put(("state", 2, "momentum_buffer"), torch.zeros(2, 4)), "momentum_buffer"),
        (put(("state", 2), None), "second.weight in its optimizer is nothing"),
        (put(("state", 3), KeyError), "has no state of 1 parameters: second.bias"),
        (put(("state",), {}), "has no state of 4 parameters"),
        (put(("state",), []), "a state of parameters that are in none"),
        (put(("state", 17), {}), "a state of parameters that are in none"),
        (put(("param_groups", 2), KeyError), r"groups of \[2, 2\] parameters instead of \[2, 2, 2\]"),
        (put(("param_groups", 1, "params"), [2]), r"groups of \[2, 1, 2\]"),
        (put(("param_groups", 1, "params"), [2, 2]), "does not number"),
        (put(("param_groups", 1, "params"), [2, "3"]), "does not number"),
        (put(("param_groups", 1, "params"), None), "no list of parameter groups"),
        (put(("param_groups", 1, "lr"), "high"), "none of AdamW: lr"),
        (put(("param_groups", 1, "lr"), math.nan), "none of AdamW: lr"),
        (put(("param_groups", 1, "betas"), (0.9,)), "none of AdamW: betas"),
        (put(("param_groups", 1, "betas"), KeyError), "none of AdamW: no betas"),
        (put(("param_groups", 1, "momentum"), 0.9), "none of AdamW: momentum"),
        (put(("param_groups", 1, "decoupled_weight_decay"), False), "decoupled_weight_decay"),
        (put(("param_groups", 1, "maximize"), True), "maximize"),
        (put(("loss_scaler",), {}), "has base_param_settings, loss_scaler, param_groups, state instead of"),
        (put(("base_param_settings",), "x"), "a group of its optimizer is none of AdamW"),
    ],
)
def test_an_optimizer_state_that_does_not_fit_is_refused(change, text):
    saved, _ = trained()
    saved = copy.deepcopy(saved)
    change(saved)
    with pytest.raises(UserError, match=text) as caught:
        taken(saved)
    assert str(caught.value).startswith(NAME)


def test_another_optimizer_is_refused():
    saved, _ = trained(torch.optim.SGD, momentum=0.9)
    with pytest.raises(UserError, match="none of AdamW: no amsgrad"):
        taken(saved)
    saved, _ = trained(torch.optim.Adam)
    with pytest.raises(UserError, match="none of AdamW: decoupled_weight_decay"):
        taken(saved)


def test_how_the_optimizer_steps_is_the_new_trainings_choice():
    saved, _ = trained(foreach=True)
    saved["param_groups"][0]["differentiable"] = True
    _, (state, _) = taken(saved, fused=True)
    assert all(group["fused"] and not group["foreach"] for group in state["param_groups"])
    assert not state["param_groups"][0]["differentiable"]


def test_a_file_that_does_not_note_what_has_no_state_is_taken():
    saved, _ = trained()
    del saved["state"][3]
    _, (_, absent) = taken(saved, without=None)
    assert absent == ["second.bias", "unused.weight", "unused.bias"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda states: states.pop(), "has 1 schedulers where param_scheduler has 2"),
        (lambda states: states.reverse(), "its scheduler 0 is no LinearLR"),
        (put((0, "step"), "x"), "its scheduler 0 is no LinearLR"),
        (put((1, "power"), None), "power of its scheduler 1"),
        (put((1, "param_name"), "momentum"), "param_name of its scheduler 1"),
        (put((0, "base_values"), [0.1]), "base_values of its scheduler 0"),
        (put((0, "_last_value"), [0.1, 0.1, "x"]), "_last_value of its scheduler 0"),
        (put((0,), 3), "its scheduler 0 is no LinearLR"),
    ],
)
def test_schedulers_that_do_not_fit_are_refused(change, text):
    _, states = trained()
    _, wrapper, schedulers = built()
    for scheduler, state in scheduler_states(schedulers, copy.deepcopy(states), NAME):
        scheduler.load_state_dict(state)
    assert [scheduler.state_dict() for scheduler in schedulers] == states
    change(states)
    with pytest.raises(UserError, match=text):
        list(scheduler_states(built()[2], states, NAME))
    with pytest.raises(UserError, match="has 2 schedulers where param_scheduler has 0"):
        list(scheduler_states(None, [{}, {}], NAME))
    with pytest.raises(UserError, match="no CosineAnnealingLR"):
        list(scheduler_states([CosineAnnealingLR(wrapper, T_max=9)], states[:1], NAME))


def meta(**changes):
    return {
        "meta": {"epoch": 0, "iter": 3, "seed": 0, "dataset_meta": {"classes": ("a",)}, **changes},
        "optimizer": {},
        "message_hub": {},
        "param_schedulers": [],
    }


@pytest.mark.parametrize("value", [None, -1, "3", 3.0, True, 2**70, [3], float("nan")])
@pytest.mark.parametrize("key", ["epoch", "iter", "seed"])
def test_a_place_is_three_whole_numbers(key, value):
    assert place_in(meta(), NAME).classes == ("a",)
    with pytest.raises(UserError, match=rf"its meta\.{key} is no whole number from 0"):
        place_in(meta(**{key: value}), NAME)


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {**meta(), "meta": 3}, {**meta(), "optimizer": "x"}])
def test_weights_alone_cannot_be_resumed(content):
    with pytest.raises(UserError, match="holds weights but no state of training"):
        place_in(content, NAME)


def test_no_file_but_a_best_checkpoint_of_this_folder_can_be_replaced(tmp_path):
    hook = CheckpointHook(save_best="mIoU", interval=1)
    info = {"best_ckpt": "/home/somebody/best_mIoU_iter_3.pth"}
    runner = SimpleNamespace(
        work_dir=str(tmp_path),
        logger=logging.getLogger("test"),
        message_hub=SimpleNamespace(runtime_info=info, get_info=info.get),
    )
    hook.before_train(runner)
    assert hook.best_ckpt_path == str(tmp_path / "best_mIoU_iter_3.pth")
    for path in (str(tmp_path / "iter_3.pth"), "/etc/passwd", "", ".."):
        info["best_ckpt"], hook.out_dir = path, None
        hook.before_train(runner)
        assert hook.best_ckpt_path is None


def average():
    return {"steps": torch.tensor(3), **{f"module.{key}": value.clone() for key, value in Net().state_dict().items()}}


@pytest.mark.parametrize(
    "change",
    [
        put(("module.first.weight",), KeyError),
        put(("module.first.weight",), torch.ones(3)),
        put(("module.first.weight",), torch.full((4, 3), math.nan)),
        put(("module.first.weight",), torch.ones(4, 3).double()),
        put(("module.third.weight",), torch.ones(3)),
        put(("steps",), 3),
    ],
)
def test_a_moving_average_is_whole_or_refused(change):
    saved = average()
    assert average_state(Net(), average(), dict(saved), NAME) == saved
    change(saved)
    with pytest.raises(
        UserError, match="1 entries of its moving average are missing, too many, misshapen or not finite"
    ):
        average_state(Net(), average(), saved, NAME)
    with pytest.raises(UserError, match=r"it has no moving average of the weights \(ema_state_dict\)"):
        average_state(Net(), average(), None, NAME)


def hub():
    rows = torch.tensor([3.0, 2.0]), torch.tensor([1, 1])
    return {
        "log_scalars": {"loss": rows},
        "runtime_info": {"iter": 3, "keep_ckpt_ids": [2]},
        "resumed_keys": {"a": True},
    }


def test_a_log_is_restored_from_both_forms():
    plain = hub_state(hub(), NAME)["log_scalars"]["loss"]
    buffer = hub_state({**hub(), "log_scalars": {"loss": HistoryBuffer([3.0, 2.0], [1, 1])}}, NAME)["log_scalars"][
        "loss"
    ]
    assert plain.mean() == buffer.mean() == 2.5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (put(("log_scalars",), None), "is not log_scalars, runtime_info, resumed_keys"),
        (put(("log_scalars", "loss"), "x"), "loss in its message_hub"),
        (put(("log_scalars", "loss"), (torch.zeros(3), torch.zeros(2))), "loss in its message_hub"),
        (put(("log_scalars", "loss"), (torch.zeros(2).bfloat16(), torch.zeros(2))), "loss in its message_hub"),
        (put(("resumed_keys", "a"), "yes"), "a in its message_hub"),
        (put(("runtime_info", "keep_ckpt_ids"), ["../../x"]), "keep_ckpt_ids in its message_hub"),
        (put(("runtime_info", "keep_ckpt_ids"), [7**200]), "keep_ckpt_ids in its message_hub"),
        (put(("runtime_info", "best_ckpt"), 3), "best_ckpt in its message_hub"),
        (put(("runtime_info", "x"), {1, 2}), "x in its message_hub"),
    ],
)
def test_a_log_that_training_does_not_write_is_refused(change, text):
    saved = hub()
    change(saved)
    with pytest.raises(UserError, match=text):
        hub_state(saved, NAME)
