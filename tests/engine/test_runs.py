"""A training that is stopped anywhere, by whatever, leaves a state that resumes exactly; a model of a few weights."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.visualization import Visualizer
from torch import nn

from mixtransfer.engine.hooks import LossGuardHook
from mixtransfer.engine.interrupt import Interrupted, InterruptHook
from mixtransfer.engine.runner import TransferRunner
from mixtransfer.engine.sampling import SeededDataset, guarded, init_worker
from mixtransfer.engine.work_dir import REQUEUE, checkpoints, locked, newest_sound, remove_training, require_unused
from mixtransfer.errors import UserError
from mixtransfer.registry import DATASETS, METRICS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS

SIZE = 12


@MODELS.register_module()
class ToyModel(BaseModel):
    """A line behind a batch normalization, which has a state that a forward pass changes."""

    def __init__(self):
        super().__init__()
        self.norm, self.line = nn.BatchNorm1d(3), nn.Linear(3, 1)
        nn.init.constant_(self.line.weight, 0.1)

    def forward(self, x, rest, mode="tensor"):
        out = self.line(self.norm(torch.stack(x) if isinstance(x, list) else x))
        return {"loss": (out - 1).square().mean()} if mode == "loss" else [out]


@DATASETS.register_module()
class ToyDataset(torch.utils.data.Dataset):
    data_root, metainfo = "toy", {"classes": ("a", "b")}

    def __init__(self, size=SIZE):
        self.size = size

    def __getitem__(self, index):
        # A worker whose parent is gone waits for ever to hand over more than a pipe holds.
        return {"x": torch.randn(3) + index, "rest": bytes(2**17)}

    def __len__(self):
        return self.size


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Better each time that it is computed."""

    computed = 0

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        type(self).computed += 1
        return {"score": self.computed}


class At(Hook):
    """Do something before or after an iteration, or in the middle of a validation."""

    priority = "VERY_LOW"

    def __init__(self, moment, iteration, action):
        self.moment, self.iteration, self.action = moment, iteration, action

    def _meet(self, moment, iteration):
        if (moment, iteration) == (self.moment, self.iteration):
            self.action()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._meet("train", runner.iter + 1)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._meet("val", runner.iter)


def loader(batch, shuffle, workers=0):
    sampler = dict(type="DefaultSampler", shuffle=shuffle)
    return dict(batch_size=batch, num_workers=workers, dataset=dict(type="mixtransfer.ToyDataset"), sampler=sampler)


def toy(
    work_dir,
    *more,
    resume=None,
    accumulate=1,
    by_epoch=False,
    workers=0,
    length=12,
    launcher="none",
    uneven=False,
    **checkpoint,
):
    """Return the runner of a toy training of 12 iterations, validated every 5, and its InterruptHook."""
    for manager in (MessageHub, MMLogger, Visualizer):
        manager._instance_dict.clear()
    schedule = dict(max_epochs=2, val_interval=1) if by_epoch else dict(max_iters=length, val_interval=5)
    checkpoint = {"type": "mixtransfer.CheckpointHook", "interval": 5, "by_epoch": by_epoch, **checkpoint}
    validation = loader(1 if uneven else 3, False)
    validation["sampler"]["round_up"] = not uneven
    validation["dataset"]["size"] = 9 if uneven else SIZE
    cfg = Config(
        dict(
            model=dict(type="mixtransfer.ToyModel"),
            work_dir=str(work_dir),
            train_dataloader=loader(2, True, workers),
            val_dataloader=validation,
            launcher=launcher,
            train_cfg=dict(by_epoch=by_epoch, **schedule),
            val_cfg=dict(),
            val_evaluator=dict(type="mixtransfer.ToyMetric"),
            optim_wrapper=dict(optimizer=dict(type="Adam", lr=0.01), accumulative_counts=accumulate),
            param_scheduler=[dict(type="LinearLR", start_factor=0.5, by_epoch=False, begin=0, end=9)],
            default_hooks=dict(checkpoint=checkpoint),
            randomness=dict(seed=3),
            load_from=resume and str(resume),
            resume=resume is not None,
        )
    )
    runner, interrupt = TransferRunner.from_cfg(cfg), InterruptHook()
    for hook in (*more, interrupt):
        runner.register_hook(hook)
    return runner, interrupt


def run(work_dir, *more, **options):
    runner, interrupt = toy(work_dir, *more, **options)
    with interrupt.signals(), interrupt.saving(runner):
        runner.train()
    return runner


def state(runner):
    averages = [dict(hook.ema_model.state_dict()) for hook in runner.hooks if isinstance(hook, EMAHook)]
    adam = runner.optim_wrapper.optimizer.state
    return [
        dict(runner.model.state_dict()),
        *averages,
        {str(i): value["exp_avg"] for i, value in enumerate(adam.values())},
    ]


def assert_same(first, second):
    for one, other in zip(state(first), state(second), strict=True):
        assert one.keys() == other.keys()
        assert [key for key in one if not torch.equal(one[key], other[key])] == []


def send(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(("by_epoch", "interval", "name"), [(False, 5, "iter_6.pth"), (True, 1, "epoch_1.pth")])
def test_no_checkpoint_falls_into_an_accumulation(by_epoch, interval, name, tmp_path):
    options = dict(accumulate=4 if by_epoch else 3, by_epoch=by_epoch, interval=interval)
    straight = run(tmp_path / "straight", **options)
    content = torch.load(tmp_path / "straight" / name, weights_only=True)
    assert content["meta"]["iter"] == (8 if by_epoch else 6)
    run_on = run(tmp_path / "again", resume=tmp_path / "straight" / name, **options)
    assert_same(straight, run_on)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("moment", "iteration"), [("train", 4), ("val", 5), ("val", 12)])
def test_a_signal_in_training_and_validation_with_averages(moment, iteration, accumulate, tmp_path):
    straight = run(tmp_path / "straight", EMAHook(momentum=0.3), accumulate=accumulate)
    begun = ToyMetric.computed
    with pytest.raises(Interrupted) as stop:
        hooks = EMAHook(momentum=0.3), At(moment, iteration, send(signal.SIGTERM))
        run(tmp_path / "cut", *hooks, accumulate=accumulate)
    assert stop.value.status == 130 and stop.value.iteration % accumulate == 0
    assert 0 <= stop.value.iteration - iteration < accumulate
    computed = ToyMetric.computed
    resumed = run(tmp_path / "cut", EMAHook(momentum=0.3), resume=stop.value.checkpoint, accumulate=accumulate)
    assert_same(straight, resumed)
    # The validations after 5, 10 and 12 iterations: one in an accumulation is not abandoned, any other is repeated.
    assert ToyMetric.computed - begun == 3
    assert ToyMetric.computed - computed == (1 if iteration == 12 else 3 if accumulate == 1 else 2)


def test_signals_of_schedulers_have_a_status_of_their_own(tmp_path):
    with pytest.raises(Interrupted) as stop:
        run(tmp_path, At("train", 2, send(signal.SIGUSR1)), At("train", 2, send(signal.SIGTERM)))
    assert stop.value.status == REQUEUE and Path(stop.value.checkpoint).name == "interrupted.pth"


def test_an_error_saves_the_iterations_before_it(tmp_path, capsys, monkeypatch):
    straight = run(tmp_path / "straight")
    forward = ToyModel.forward

    def out_of_memory(self, x, rest, mode="tensor"):
        result = forward(self, x, rest, mode)
        if mode == "loss" and runner.iter == 7:
            raise torch.OutOfMemoryError("no memory")  # after the statistics have changed
        return result

    monkeypatch.setattr(ToyModel, "forward", out_of_memory)
    runner, interrupt = toy(tmp_path / "cut")
    with pytest.raises(torch.OutOfMemoryError), interrupt.saving(runner):
        runner.train()
    assert "the state after iteration 7" in capsys.readouterr().err
    monkeypatch.setattr(ToyModel, "forward", forward)
    resumed = run(tmp_path / "cut", resume=tmp_path / "cut" / "interrupted.pth")
    assert_same(straight, resumed)
    rates = [ended.message_hub.get_scalar("train/lr").data[0].tolist() for ended in (straight, resumed)]
    assert rates[0] == rates[1] and len(rates[0]) == 12


@pytest.mark.parametrize(("by_epoch", "name"), [(False, "iter_5.pth"), (True, "epoch_1.pth")])
def test_a_checkpoint_before_a_validation_is_resumed_with_it(by_epoch, name, tmp_path):
    def fail():
        raise RuntimeError("as good as a kill")

    options = dict(by_epoch=by_epoch, interval=1 if by_epoch else 5)
    straight = run(tmp_path / "straight", **options)
    computed = ToyMetric.computed
    with pytest.raises(RuntimeError):
        run(tmp_path / "cut", At("train", 8, fail), **options)
    assert checkpoints(tmp_path / "cut")[0].name == name
    resumed = run(tmp_path / "cut", resume=tmp_path / "cut" / name, **options)
    assert_same(straight, resumed)
    rows = [len(ended.message_hub.get_scalar("val/score").data[0]) for ended in (straight, resumed)]
    assert rows[0] == rows[1] == (2 if by_epoch else 3)
    assert ToyMetric.computed - computed == rows[0] + 1  # the first one twice


def test_an_error_in_a_validation_is_resumed_with_that_validation(tmp_path):
    def fail():
        raise RuntimeError("a metric")

    straight = run(tmp_path / "straight")
    computed = ToyMetric.computed
    with pytest.raises(RuntimeError):
        run(tmp_path / "cut", At("val", 10, fail), interval=100)
    resumed = run(tmp_path / "cut", resume=tmp_path / "cut" / "interrupted.pth", interval=100)
    assert_same(straight, resumed)
    assert ToyMetric.computed - computed == 3  # after 5, 10 and 12 iterations


def test_an_error_after_a_step_saves_nothing(tmp_path):
    def fail():
        raise RuntimeError("a hook")

    with pytest.raises(RuntimeError):
        run(tmp_path, At("train", 3, fail))
    assert checkpoints(tmp_path) == []


def test_the_best_checkpoint_is_never_missing(tmp_path, monkeypatch):
    ToyMetric.computed = 0
    save, seen = TransferRunner.save_checkpoint, []

    def watched(self, out_dir, filename, **options):
        seen.append((filename, sorted(path.name for path in Path(out_dir).glob("best_*"))))
        save(self, out_dir, filename, **options)

    monkeypatch.setattr(TransferRunner, "save_checkpoint", watched)
    run(tmp_path, save_best="score", rule="greater")
    assert ("best_score_iter_10.pth", ["best_score_iter_5.pth"]) in seen
    assert [path.name for path in tmp_path.glob("best_*")] == ["best_score_iter_12.pth"]


def test_the_text_of_the_config_is_formatted_once(tmp_path, monkeypatch):
    calls = []
    text = Config.pretty_text.fget
    monkeypatch.setattr(Config, "pretty_text", property(lambda self: calls.append(1) or text(self)))
    run(tmp_path, interval=2)
    assert len(calls) == 1


#: A training of the toy with data workers, which says when it is in a step.
PROGRAM = """
import sys
from test_runs import At, run, Interrupted
try:
    run(sys.argv[1], At("train", 2, lambda: print("step", flush=True)), workers=2, length=10**6, interval=10**6)
except Interrupted as stop:
    sys.exit(stop.status)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_data_workers_leave_signals_to_their_parent_and_end_with_it(number, tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    training = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        assert any(line == "step\n" for line in training.stdout)
        (os.killpg if number == signal.SIGTERM else os.kill)(training.pid, number)
        training.communicate(timeout=600)  # until no process, no data worker either, holds its output
        status = training.returncode
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(training.pid, signal.SIGKILL)
    assert status == (130 if number == signal.SIGTERM else -number)
    saved = [path.name for path in checkpoints(tmp_path)]
    assert saved == (["interrupted.pth"] if number == signal.SIGTERM else [])


class Endless(torch.utils.data.Dataset):
    """Its second sample never comes."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        time.sleep(600 * index)
        return index


def test_a_worker_that_hangs_is_gone_when_training_ends(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    plain = torch.utils.data.DataLoader(
        Endless(), num_workers=1, persistent_workers=True, worker_init_fn=partial(init_worker, then=None)
    )
    loader = guarded(plain, resumable=False)
    assert next(iter(loader)) == 0
    (worker,) = loader._iterator._workers
    loop = SimpleNamespace(dataloader=loader)
    TransferRunner._stop_workers(SimpleNamespace(_train_loop=loop, _val_loop=None, _test_loop=None))
    # Asking the process would wait for it.
    assert worker._popen.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="terminals")
def test_a_terminal_that_closes_leaves_the_state_behind(tmp_path):
    # It sends SIGHUP, and whatever is printed afterwards is an error.
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    master, slave = os.openpty()
    login = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{PROGRAM}".replace("workers=2", "workers=0")
    training = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", login, str(tmp_path)],
        **dict.fromkeys(("stdin", "stdout", "stderr"), slave),
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        os.close(slave)
        seen = b""
        while b"step" not in seen:
            seen += os.read(master, 4096)
        os.close(master)
        assert training.wait(600) == REQUEUE
    finally:
        training.kill()
        training.wait()
    assert [path.name for path in checkpoints(tmp_path)] == ["interrupted.pth"]


#: Two processes with five and four batches of validation, of which the second one gets a signal in a validation.
TWO = """
import os, signal, sys
from test_runs import At, EMAHook, run, Interrupted
second = os.environ["RANK"] == "1"
def statistics():
    print("statistics", [hook for hook in hooks if hasattr(hook, "src_model")][0].src_model.norm.running_mean.tolist())
hooks = [EMAHook(momentum=0.3), At("val", 5, statistics)]
hooks += [At("val", 10, lambda: os.kill(os.getpid(), signal.SIGUSR2))] if second else []
try:
    run(sys.argv[1], *hooks, launcher="pytorch", uneven=True)
except Interrupted as stop:
    print("stopped after", stop.iteration)
    sys.exit(stop.status)
"""


def test_two_processes_validate_unevenly_and_stop_together(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(tmp_path)],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    try:
        printed = [rank.communicate(timeout=600)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [REQUEUE, REQUEUE], "".join(printed)
    assert all("stopped after 10" in text for text in printed)
    measured = [[line for line in text.splitlines() if line.startswith("statistics")] for text in printed]
    # Batches of the two differ, and so do their own statistics.
    assert len(measured[1]) == 4 and {*measured[0]} == {*measured[1]} and len({*measured[0]}) == 1
    assert checkpoints(tmp_path)[0].name == "interrupted.pth"


class Pictures:
    """Ten files of images, of which some are none; index 3 is a bug of the dataset."""

    def __init__(self, folder, bad):
        self.files = [folder / f"{number}.png" for number in range(10)]
        for number, file in enumerate(self.files):
            file.write_bytes(b"") if number in bad else cv2.imwrite(str(file), np.full((2, 2, 3), number, np.uint8))

    def get_data_info(self, index):
        return {"img_path": str(self.files[index])}

    def __getitem__(self, index):
        assert index != 3, "a bug"
        image = cv2.imread(str(self.files[index]))
        assert image is not None
        return int(image.max()), float(torch.rand(()))

    def __len__(self):
        return 10


def test_images_that_cannot_be_read_are_replaced_up_to_a_share(tmp_path):
    dataset = SeededDataset(Pictures(tmp_path, bad=(5, 6, 8)), seed=1)
    with pytest.raises(UserError, match=r"5\.png: cannot be loaded"):
        dataset[5]
    dataset.replace_unreadable(0.2)
    drawn = dataset[5, (0, 0, 0, 0)]
    assert drawn == dataset[7, (0, 0, 0, 0)]  # the next sound one, of the same draw
    assert [Path(path).name for path in dataset.unreadable_files()] == ["5.png", "6.png"]
    with pytest.raises(UserError, match=r"8\.png: .*; 3 of 10 images cannot be, more than --bad-images 0\.2"):
        dataset[8]
    with pytest.raises(AssertionError, match="a bug"):
        dataset[3]


def test_a_loss_of_nothing_stops():
    guard, runner = LossGuardHook(), SimpleNamespace(iter=0)
    for _ in range(49):
        guard.after_train_iter(runner, 0, outputs={"loss": torch.zeros(())})
    with pytest.raises(UserError, match="the loss is exactly 0 in the first 50 steps"):
        guard.after_train_iter(runner, 0, outputs={"loss": torch.zeros(())})


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ApartConstructor:
    """Two optimizers, as those of generators and discriminators are built."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.rates = optim_wrapper_cfg

    def __call__(self, model):
        parts = {name: getattr(model, name).parameters() for name in self.rates}
        return OptimWrapperDict(
            **{name: OptimWrapper(torch.optim.SGD(part, **self.rates[name])) for name, part in parts.items()}
        )


def test_several_optimizers_are_one_line(tmp_path):
    runner = toy(tmp_path)[0]
    rates = dict(norm=dict(lr=0.1), line=dict(lr=0.2), constructor="mixtransfer.ApartConstructor")
    runner.optim_wrapper = rates
    with pytest.raises(UserError, match=r"optim_wrapper: has 2 optimizers \(norm, line\), training works with one"):
        runner.train()


def test_a_training_that_is_done_is_not_shortened(tmp_path):
    run(tmp_path)
    with pytest.raises(UserError, match=r"iter_12\.pth stands after 12, train_cfg.max_iters=9 is less"):
        run(tmp_path, resume=tmp_path / "iter_12.pth", length=9)


@pytest.mark.parametrize("pointer", [None, b"", b"\n", b".", b"\xff\x00", b"iter_9.pth", b"/nowhere/iter_9.pth"])
def test_the_newest_checkpoint_is_found_without_its_pointer(pointer, tmp_path):
    for name in ("iter_3.pth", "iter_12.pth", "best_mIoU_iter_12.pth", "other.pth"):
        (tmp_path / name).touch()
    if pointer is not None:
        (tmp_path / "last_checkpoint").write_bytes(pointer)
    assert [path.name for path in checkpoints(tmp_path)] == ["iter_12.pth", "iter_3.pth"]


def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, capsys):
    def read(path):
        if path.name != "iter_3.pth":
            raise UserError(f"{path}: damaged")
        return "content"

    assert newest_sound(tmp_path, read) is None
    for name in ("iter_3.pth", "iter_6.pth"):
        (tmp_path / name).touch()
    assert newest_sound(tmp_path, read) == (tmp_path / "iter_3.pth", "content")
    line = capsys.readouterr().err
    assert "iter_6.pth: damaged; going on from" in line and "iter_3.pth" in line
    (tmp_path / "iter_3.pth").unlink()
    with pytest.raises(UserError, match="none of the 1 checkpoints in"):
        newest_sound(tmp_path, read)


def test_a_work_dir_of_another_training(tmp_path):
    require_unused(tmp_path)
    for name in ("iter_3.pth", "best_mIoU_iter_3.pth", "last_checkpoint", "converted.pth"):
        (tmp_path / name).touch()
    require_unused(tmp_path, tmp_path / "iter_3.pth")
    for resumed in (None, tmp_path / "other" / "iter_3.pth"):
        with pytest.raises(UserError, match=r"holds iter_3.pth of another training; --resume .* --overwrite"):
            require_unused(tmp_path, resumed)
    remove_training(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["converted.pth"]


def test_a_work_dir_has_one_training_at_a_time(tmp_path):
    code = (
        "import sys, time; from mixtransfer.engine.work_dir import locked\n"
        f"with locked({str(tmp_path)!r}): print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=f"process {other.pid} on .* trains in it"), locked(tmp_path):
            pass
    finally:
        other.kill()
        other.communicate()
    with locked(tmp_path):  # of a process that has ended
        assert str(os.getpid()) in (tmp_path / "training.lock").read_text()
    assert not list(tmp_path.iterdir())
    (tmp_path / "training.lock").write_text("7 elsewhere\n")
    with (
        pytest.raises(UserError, match="process 7 on elsewhere trains in it; if that has ended, delete"),
        locked(tmp_path),
    ):
        pass
