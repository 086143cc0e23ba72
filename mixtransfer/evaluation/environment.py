"""The conditions of a measured figure, the devices that one can be measured on, and the memory that it takes."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from mixtransfer.errors import UserError
from mixtransfer.evaluation.identity import versions

__all__ = ["device_of", "environment", "forget_peak", "peak_memory"]


def device_of(name: str) -> torch.device:
    """Return the device of ``--device``.

    Raises:
        UserError: there is none of this name.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: give cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; give another")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: give cpu, cuda or cuda:N")
    return device


def environment(device: torch.device) -> dict[str, Any]:
    """Return the conditions of a figure: processor, device, threads, load of the machine, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        **versions(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def forget_peak(device: torch.device) -> None:
    """Start the peak of :func:`peak_memory` anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> float | None:
    """Return the most memory that torch on a GPU, or this process, has held, in MB; None where it is not told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    return None
