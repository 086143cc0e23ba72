"""Progress of long work, with the time left, and notices, both on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

__all__ = ["is_first_process", "notice", "progress_line"]

#: Where torchrun, Slurm and MPI tell a process its rank.
RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


def is_first_process() -> bool:
    """Tell whether this is the first of the processes that a launcher has started, or the only one."""
    return next((os.environ[key] for key in RANKS if key in os.environ), "0") == "0"


def notice(text: str) -> None:
    """Say on stderr in one line what the user should know; of distributed processes the first one says it."""
    if is_first_process():
        print(f"note: {text}", file=sys.stderr, flush=True)


def progress_line(label: str, every: float = 0.5) -> Callable[[int, int], None]:
    """Return ``progress(done, total)`` that keeps one line on stderr, with the time left, once work takes a second.

    Where stderr is no terminal it prints a line every ten seconds instead.
    """
    start = shown = time.monotonic()
    terminal = sys.stderr.isatty()
    written = False

    def progress(done: int, total: int) -> None:
        nonlocal shown, written
        now = time.monotonic()
        if done == total and written and terminal:
            print(f"\r{label}: {done}/{total} in {now - start:.0f} s{' ' * 16}", file=sys.stderr)
        elif done < total and now - start > 1 and now - shown > (every if terminal else 10):
            shown, written = now, True
            left = (now - start) / done * (total - done)
            line = f"{label}: {done}/{total}, {left:.0f} s left"
            print(f"\r{line:<60}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)

    return progress
