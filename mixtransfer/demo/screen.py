"""The demonstration's lines on the terminal while several steps run."""

from __future__ import annotations

import re
import sys
import threading
import time

__all__ = ["Screen"]


class Screen:
    """The screen while steps run beside each other: a line a step and validation, and the progress of trainings."""

    def __init__(self):
        self.start, self.lock = time.monotonic(), threading.Lock()
        self.running: dict[str, str] = {}

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        seconds = int(time.monotonic() - self.start)
        with self.lock:
            self._print(f"[{seconds // 60}:{seconds % 60:02d}] {text}")

    def show(self, key: str, line: str) -> None:
        """Show a line of a training's log: its progress on a terminal, elsewhere its validations only."""
        match = re.search(r"(Iter|Epoch)\((train|val)\) *(\[.*?\](?:\[.*?\])?)", line)
        if not match:
            return
        values = re.findall(r"\b(eta|loss|mIoU|accuracy/top1): *([\d:.]+)", line)
        place = f"{key} {match[1].lower()} {re.sub(' +', '', match[3])}"
        text = " ".join([place, *(f"{key} {value}" for key, value in values)])
        with self.lock:
            if "mIoU" in line or "accuracy" in line:
                self._print(f"        {text}")
            elif sys.stdout.isatty():
                self.running[key] = text
                print(f"\r\033[K        {'  |  '.join(self.running.values())}", end="", flush=True)

    def end(self, key: str) -> None:
        """Remove the step from the screen."""
        with self.lock:
            self.running.pop(key, None)

    def _print(self, text: str) -> None:
        print(f"\r\033[K{text}" if sys.stdout.isatty() else text, flush=True)
