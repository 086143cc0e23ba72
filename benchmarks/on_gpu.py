"""Everything about a GPU that a checkout can measure in a few minutes, in one dated JSON: ``benchmarks/on_gpu.sh``.

The tests that need CUDA; training steps of ours against mmseg's and mmdet's, eager and compiled, at two batch sizes;
TL-Align against CutMix. Of every contestant also the peak memory of a step, and how often it waits for the device or
reads a value of it, from torch's profiler. With ``--device cpu`` the same at toy sizes, to see that it runs.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import cases
from benchmarks.speed import Comparison, measure
from benchmarks.steps import Options
from mixtransfer.cli import run_main
from mixtransfer.cli.options import require_writable, write_json
from mixtransfer.evaluation.environment import device_of, environment

__all__ = ["WAITS", "Plan", "memory_and_waits", "plans", "run"]

#: Events of torch's profiler at which a step waits for the device or reads a value of it.
WAITS = ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
#: Seconds after which no further comparison begins: the script has eight minutes, and the tests come first.
SECONDS = 330
TESTS_SECONDS = 120


@dataclass(frozen=True)
class Plan:
    """A case with its options: ``case`` names a function of :mod:`benchmarks.cases`, ``arch`` its backbone."""

    case: str
    options: Options
    arch: str

    @property
    def title(self) -> str:
        """Return the settings as the JSON names them."""
        kind = "compiled" if self.options.compile else "eager"
        return f"{self.case}, {self.arch}, {self.options.dtype}, {kind}, batch {self.options.batch}"


def plans(device: torch.device) -> Iterator[Plan]:
    """Yield what is measured, the most telling first; on CPU toys and float32 beside bfloat16."""
    small = device.type == "cpu"
    size, batches = (64, (1, 2)) if small else (None, (2, 8))
    for compiled in (False, True):
        for batch in batches:
            for case in ("upernet", "mask_rcnn"):
                # Inductor compiles for minutes on CPU.
                if not (small and compiled):
                    arch = "swin_micro" if small else "swin_tiny"
                    yield Plan(case, Options(device, batch, size, torch.bfloat16, compiled), arch)
        if not compiled:
            arch = "deit_tiny" if small else "deit_small"
            yield Plan("tlalign", Options(device, 2 if small else 64, 32 if small else None, torch.bfloat16), arch)


def parser() -> argparse.ArgumentParser:
    """Return the options of the script."""
    options = argparse.ArgumentParser(prog="benchmarks/on_gpu.sh", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=10, metavar="N", help="timings of each (default: %(default)s)")
    options.add_argument("--json", type=Path, metavar="FILE", help="where the results go (default: by date)")
    options.add_argument("--skip-tests", action="store_true", help="leave out pytest -m gpu")
    return options


def run(args: argparse.Namespace) -> int:
    """Measure, writing after every comparison; return 1 if tests failed."""
    device = device_of(args.device)
    file = args.json or Path(f"work_dirs/on_{device.type}_{datetime.date.today():%Y-%m-%d}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    require_writable(file)
    torch.manual_seed(0)
    begun = time.monotonic()
    record: dict[str, Any] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "environment": environment(device),
        "tests": None if args.skip_tests else _tests(),
        "results": [],
        "left_out": [],
    }
    for plan in plans(device):
        if time.monotonic() - begun > SECONDS + TESTS_SECONDS:
            record["left_out"].append({"what": plan.title, "why": "no time"})
            continue
        try:
            for comparison in getattr(cases, plan.case)(plan.options, plan.arch):
                result = measure(comparison, args.rounds, device).as_dict()
                record["results"].append({"plan": plan.title, **result, **memory_and_waits(comparison, device)})
                write_json(file, record)
        except Exception as error:
            # Out of memory, contestants that differ, whatever a library meets there: the others can still be measured.
            traceback.print_exc()
            why = str(error) if isinstance(error, RuntimeError) else repr(error)
            record["left_out"].append({"what": plan.title, "why": why.partition("\n")[0]})
        if device.type == "cuda":
            torch.cuda.empty_cache()
    write_json(file, record)
    for result in record["results"]:
        ratios = ", ".join(f"{name} {ratio['median']:.2f}" for name, ratio in result["ratios"].items())
        print(f"{result['plan']}: {result['contest']}: ours / {ratios}")
    for item in record["left_out"]:
        print(f"left out: {item['what']}: {item['why']}")
    print(f"saved to {file}")
    return int(bool(record["tests"] and record["tests"]["status"]))


def memory_and_waits(comparison: Comparison, device: torch.device) -> dict[str, dict[str, Any]]:
    """Return the peak memory in bytes of a step of each contestant, None on CPU, and its waits by event."""
    memory, waits = {}, {}
    for name, step in comparison.steps.items():
        memory[name] = _peak(step, device)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        with profile(activities=activities) as trace:
            step()
        waits[name] = {event.key: event.count for event in trace.key_averages() if event.key in WAITS}
    return {"peak_bytes": memory, "waits": waits}


def _peak(step: Callable[[], Any], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TESTS_SECONDS)
    except subprocess.TimeoutExpired:
        return {"status": 1, "summary": f"took more than {TESTS_SECONDS} s"}
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    # 5: no test carries the marker.
    return {"status": 0 if done.returncode == 5 else done.returncode, "summary": lines[-1] if lines else ""}


if __name__ == "__main__":
    sys.exit(run_main("on_gpu", parser(), run, sys.argv[1:]))
