"""Two processes on gloo train as one would on the batches of both, say what one says, and resume together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import small_scenes, tiny_config

REPOSITORY = Path(__file__).parents[2]
#: What the processes run: the tiny recipes need the hook of tiny_runs.
PROGRAM = (
    "import sys; import tiny_runs; from mixtransfer.cli import run_command; "
    "sys.exit(run_command('train', sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("data"))


#: Launcher -> what it calls rank, number of processes and rank on the host.
NAMES = {
    "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}


def train_on(count: int, *arguments: str, launcher: str = "pytorch") -> list[subprocess.CompletedProcess]:
    """Run ``train`` in ``count`` processes as a launcher starts them; return what they did, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SLURM_NODELIST": "host", "OMP_NUM_THREADS": "1"},
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)]),
    }
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments, "--launcher", launcher]
    processes = [
        subprocess.Popen(
            command,
            env={**shared, **dict(zip(NAMES[launcher], map(str, (rank, count, rank)), strict=True))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(command, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


# Two processes take four iterations of the same sixteen scenes that one process takes eight of.
STEPS = {"seg": ("train_cfg.max_iters=4", "train_cfg.val_interval=4"), "det": ("train_cfg.max_epochs=1",)}


@pytest.mark.parametrize(
    ("task", "launcher"), [("seg", "pytorch"), pytest.param("det", "slurm", marks=pytest.mark.long)]
)
def test_two_processes_hold_the_same_weights_after_training_on_different_images(task, launcher, scenes, tmp_path):
    more = f"custom_hooks.append(dict(type='mixtransfer.WeightsHook', folder={str(tmp_path)!r}))"
    config = tiny_config(task, tmp_path, more)
    options = ("train_dataloader.num_workers=0", *STEPS[task])
    common = (str(config), "--data", str(scenes), "--work-dir", str(tmp_path / "run"))
    ranks = train_on(2, *common, "--cfg-options", *options, launcher=launcher)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr + ranks[1].stderr
    assert "(train)" in ranks[0].stdout and "(train)" not in ranks[1].stdout
    assert "(val)" in ranks[0].stdout
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first["losses"] != second["losses"]
    assert first["weights"].keys() == second["weights"].keys()
    assert [key for key, value in first["weights"].items() if not torch.equal(value, second["weights"][key])] == []


# Nearly a minute of CPU time; benchmarks/kills.py stops and resumes two processes too.
@pytest.mark.long
def test_two_processes_resume_with_the_losses_of_an_uninterrupted_run(scenes, tmp_path):
    more = f"custom_hooks.append(dict(type='mixtransfer.WeightsHook', folder={str(tmp_path)!r}))"
    config = tiny_config("seg", tmp_path, more)
    common = (str(config), "--data", str(scenes), "--work-dir")
    options = ("--cfg-options", "train_dataloader.num_workers=0", "train_cfg.val_begin=9")
    runs = {}
    for name, folder, length, resume, launcher in (
        ("straight", "one", 4, (), "pytorch"),
        ("first half", "two", 2, (), "mpi"),
        ("second half", "two", 4, ("--resume",), "slurm"),
    ):
        length = f"train_cfg.max_iters={length}"
        ranks = train_on(2, *common, str(tmp_path / folder), *resume, *options, length, launcher=launcher)
        assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr + ranks[1].stderr
        runs[name] = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)["losses"] for rank in range(2)]
    for rank in range(2):
        assert len(runs["straight"][rank]) == 4
        assert runs["first half"][rank] + runs["second half"][rank] == runs["straight"][rank]


def test_launcher_without_torchrun_is_one_line(scenes, tmp_path, monkeypatch, capsys):
    from mixtransfer.cli import run_command

    monkeypatch.delenv("RANK", raising=False)
    config = tiny_config("seg", tmp_path)
    arguments = [str(config), "--data", str(scenes), "--work-dir", str(tmp_path / "run"), "--launcher", "pytorch"]
    assert run_command("train", arguments) == 2
    assert "start it with torchrun" in capsys.readouterr().err.strip().splitlines()[-1]
