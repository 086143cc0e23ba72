"""A run that was stopped by Ctrl-C or SIGTERM and resumed has the losses of one that was not, bit for bit."""

from __future__ import annotations

import os
import signal
from multiprocessing import active_children

import pytest
import torch
from tiny_runs import ProbeHook, small_scenes, tiny_config, train

from mixtransfer.engine.hooks import AtomicBackend
from mixtransfer.engine.work_dir import checkpoints
from mixtransfer.errors import UserError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("data"))


# Detection stops in the second of two epochs of eight iterations, segmentation on a validation iteration.
@pytest.mark.parametrize(
    "task, stop_after, stop",
    [("seg", 3, signal.SIGINT), pytest.param("det", 11, signal.SIGTERM, marks=pytest.mark.long)],
)
def test_resumed_losses_are_those_of_an_uninterrupted_run(task, stop_after, stop, scenes, tmp_path, capfd):
    config = tiny_config(task, tmp_path)
    # Which tests ran in this process before is the scheduler's choice, and loaders of theirs may not be collected yet.
    others = set(active_children())
    ProbeHook.reset()
    assert train(config, scenes, tmp_path / "straight") == 0
    straight = ProbeHook.losses
    assert len(straight) == {"seg": 6, "det": 16}[task]
    assert any(losses["loss_token"] > 0 for losses in straight)

    # Other numbers of workers: a sample's randomness must not depend on who loads it.
    ProbeHook.reset(stop_after=stop_after, stop_signal=stop)
    assert train(config, scenes, tmp_path / "cut", workers=2) == 130
    assert f"stopped after iteration {stop_after}" in capfd.readouterr().out
    assert ProbeHook.losses == straight[:stop_after]
    assert set(active_children()) <= others  # at the process's exit they would be killed, with a traceback
    assert checkpoints(tmp_path / "cut")[0].name == "interrupted.pth"
    torch.load(checkpoints(tmp_path / "cut")[0], weights_only=True)

    ProbeHook.reset()
    assert train(config, scenes, tmp_path / "cut", "--resume", workers=1) == 0
    assert ProbeHook.losses == straight[stop_after:] and set(active_children()) <= others
    assert not (tmp_path / "cut" / "interrupted.pth").exists()


def test_another_seed_gives_other_losses(scenes, tmp_path):
    config = tiny_config("seg", tmp_path)
    runs = []
    for seed in ("0", "1"):
        ProbeHook.reset()
        assert (
            train(
                config,
                scenes,
                tmp_path / seed,
                "--seed",
                seed,
                cfg_options=("train_cfg.max_iters=1", "train_cfg.val_begin=9"),
            )
            == 0
        )
        runs.append(ProbeHook.losses)
    assert runs[0] != runs[1]


def test_a_nan_loss_stops_and_writes_no_checkpoint(scenes, tmp_path, capsys):
    config = tiny_config("seg", tmp_path)
    options = ("default_hooks.checkpoint.interval=1", "default_hooks.checkpoint.max_keep_ckpts=2")
    ProbeHook.reset(poison_at=4)
    assert train(config, scenes, tmp_path / "run", cfg_options=options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "iteration 4: decode.loss_ce is nan" in error
    assert error.endswith(f"the last good checkpoint is {tmp_path / 'run' / 'iter_3.pth'}")
    assert sorted(path.name for path in (tmp_path / "run").glob("*.pth")) == ["iter_2.pth", "iter_3.pth"]


def test_a_kill_while_saving_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "iter_1.pth"
    AtomicBackend().put(b"first", path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        AtomicBackend().put(b"second", path)
    assert path.read_bytes() == b"first"


def test_a_full_disk_names_the_file_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*iter_1\.pth: No space left on device; free some space"):
        AtomicBackend().put(b"first", tmp_path / "iter_1.pth")
    assert not list(tmp_path.iterdir())


def test_last_checkpoint_survives_moving_its_folder(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "iter_3.pth").touch()
    (tmp_path / "old" / "last_checkpoint").write_text(str(tmp_path / "old" / "iter_3.pth"))
    (tmp_path / "old").rename(tmp_path / "new")
    assert checkpoints(tmp_path / "new") == [tmp_path / "new" / "iter_3.pth"]
    assert checkpoints(tmp_path) == []
