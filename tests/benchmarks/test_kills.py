"""The comparison of killed trainings with others finds what differs, and its trainings' configs can be read."""

import copy
import json
import random

import pytest
import torch

from benchmarks.kills import HISTORIES, differences, plan, table
from mixtransfer.engine.config import read_config

CONTENT = {
    "meta": {"iter": 3, "time": "now"},
    "state_dict": {"a": torch.tensor([1.0, -0.0])},
    "message_hub": {"log_scalars": {"train/loss": (torch.ones(2), torch.ones(2)), "train/time": (torch.ones(2),)}},
}
LINE = {"loss": 0.1, "step": 3, "time": 0.2}


def written(folder, change=lambda content: None, line=LINE):
    content = copy.deepcopy(CONTENT)
    change(content)
    (folder / "start" / "vis_data").mkdir(parents=True)
    torch.save(content, folder / "iter_3.pth")
    # A kill cuts the last line.
    (folder / "start" / "vis_data" / "scalars.json").write_text(json.dumps(line) + '\n{"loss"')
    return folder


def test_times_are_not_compared(tmp_path):
    def later(content):
        content["meta"]["time"] = "then"
        content["message_hub"]["log_scalars"]["train/time"][0].zero_()

    pair = written(tmp_path / "peace"), written(tmp_path / "killed", later, {**LINE, "time": 9})
    assert differences(*pair) == (6, [])


@pytest.mark.parametrize(
    ("change", "line", "found"),
    [
        (lambda content: content["state_dict"]["a"].abs_(), LINE, "iter_3.pth.state_dict.a"),
        (lambda content: content["meta"].update(iter=True), LINE, "iter_3.pth.meta.iter"),
        (lambda content: content["state_dict"].update(b=torch.ones(1)), LINE, "iter_3.pth.state_dict.b"),
        (lambda content: None, {**LINE, "loss": 0.2}, "log: train 3: loss"),
        (lambda content: None, {**LINE, "step": 4}, "log: train 3 is missing"),
    ],
)
def test_one_bit_is_found(change, line, found, tmp_path):
    assert found in differences(written(tmp_path / "peace"), written(tmp_path / "killed", change, line))[1]


@pytest.mark.parametrize("name", HISTORIES)
def test_a_history_has_a_config_and_kills_in_order(name, tmp_path):
    (tmp_path / "config.py").write_text(HISTORIES[name].config())
    cfg = read_config(tmp_path / "config.py")
    assert cfg.optim_wrapper.accumulative_counts == HISTORIES[name].accumulate
    assert any("EMAHook" in str(hook["type"]) for hook in cfg.custom_hooks) == HISTORIES[name].average
    kills = plan(HISTORIES[name], 5, 1, random.Random(0))
    assert [place for place, _ in kills] == sorted(place for place, _ in kills) and len(kills) == 5
    result = {"kills": [vars(kill) for _, kill in kills], "compared": 9, "differences": []}
    assert table({name: result}).endswith("5 kills, 5 of them bit-equal")
