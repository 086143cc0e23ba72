"""Distributed processes: what launchers tell each of them, and how they meet where there is no GPU."""

from __future__ import annotations

import os
import subprocess

from mixtransfer.errors import UserError

__all__ = ["LAUNCHERS", "check_launcher", "meet_without_gpu"]

#: Launcher -> what tells every process its rank, the number of processes and its rank on its host, and what starts it.
STARTED_BY = {
    "pytorch": (("RANK", "WORLD_SIZE", "LOCAL_RANK"), "torchrun"),
    "slurm": (("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"), "srun"),
    "mpi": (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        "mpirun, with MASTER_ADDR exported",
    ),
}
#: Launcher -> what tells where the processes meet.
MEETING = {"pytorch": ("MASTER_ADDR", "MASTER_PORT"), "slurm": ("SLURM_NODELIST",), "mpi": ("MASTER_ADDR",)}
LAUNCHERS = ("none", *STARTED_BY)
#: torch's own port.
PORT = "29500"


def check_launcher(launcher: str) -> None:
    """Make sure that the processes that a launcher starts know of each other.

    Raises:
        UserError: this process was not started by it.
    """
    if launcher == "none":
        return
    ranks, start = STARTED_BY[launcher]
    missing = [key for key in (*ranks, *MEETING[launcher]) if key not in os.environ]
    if missing:
        raise UserError(f"--launcher {launcher}: no {missing[0]} in the environment; start it with {start}")


def meet_without_gpu(launcher: str) -> None:
    """Let the processes that a launcher has started meet through gloo; mmengine's own ways choose a GPU first.

    Raises:
        UserError: nothing tells where they meet.
    """
    import torch.distributed

    for name, theirs in zip(STARTED_BY["pytorch"][0], STARTED_BY[launcher][0], strict=True):
        os.environ[name] = os.environ[theirs]
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _first_host(os.environ["SLURM_NODELIST"])
    os.environ.setdefault("MASTER_PORT", PORT)
    torch.distributed.init_process_group("gloo")


def _first_host(nodes: str) -> str:
    """Return the first of Slurm's hosts, which it writes as ``node[01-04]``."""
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        raise UserError(f"--launcher slurm: {' '.join(command)} names no host; export MASTER_ADDR") from None
