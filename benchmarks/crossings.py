"""What crosses between host and device in a warm training step, for every family and use.

``python benchmarks/crossings.py`` prints the table of docs/results.md as Markdown, counted on the simulated accelerator
of the tests; with ``-v`` also each line of code that crosses. What a line of mixtransfer asks for is counted apart from
what libraries ask for.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print the table."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    from accelerator import DEVICE
    from device_steps import STEPS, warm

    print("| training step | copies to the device | reads | by libraries |\n|---|---|---|---|")
    for name, make in STEPS.items():
        log = warm(make(DEVICE))
        others = log.count("copy", ours=False) + log.count("read", ours=False)
        print(f"| {name} | {log.count('copy')} | {log.count('read')} | {others} |", flush=True)
        if "-v" in sys.argv:
            print(log.lines(), log.lines(ours=False), sep="\n")


if __name__ == "__main__":
    main()
