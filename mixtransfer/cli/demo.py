"""``demo``: a Swin is pretrained with TL-Align, converted, and transferred to UPerNet, all on the built-in scenes."""

from __future__ import annotations

import argparse
import shutil
from concurrent.futures import ThreadPoolExecutor

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``demo``, which has one option."""
    options = argparse.ArgumentParser(
        prog="mixtransfer demo",
        description="Pretrain a small Swin as a classifier with TL-Align on scenes that are drawn here, convert it,"
        " train UPerNet on it and on random weights, and write work_dirs/demo/report.html, which lists every command.",
    )
    options.add_argument("--fresh", action="store_true", help="repeat steps that were done before")
    return options


def run(args: argparse.Namespace) -> int:
    """Run all steps, write the report, and print the two mIoU in percent."""
    from mixtransfer.demo.screen import Screen
    from mixtransfer.demo.steps import NAMES, WORK, plan, run_chain

    if args.fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    steps = {step.key: step for step in plan()}
    screen, took = Screen(), {}

    def run_keys(chain: list[str]) -> int:
        first = [] if "scenes" in chain else [steps["scenes"].command]
        return run_chain([steps[key] for key in chain], first, took, screen)

    for chains in ([["scenes"]], [["pretrain", "convert", *_ends("transferred")], _ends("scratch")]):
        # Networks this small leave a second core idle, so what does not wait for pretraining runs beside it.
        with ThreadPoolExecutor(len(chains)) as pool:
            statuses = list(pool.map(run_keys, chains))
        # A step that a signal killed has a negative status.
        failed = [status for status in statuses if status]
        if failed:
            return failed[0]
    screen.say("Draw the report")
    from mixtransfer.demo.report import write_report

    report, scores = write_report([took[key] for key in steps])
    screen.say("Done\n")
    for key, name in NAMES.items():
        print(f"mIoU {name:<13} {scores[key]:5.1f}")
    print(f"report            {report}")
    return 0


def _ends(key: str) -> list[str]:
    return [key, f"test_{key}"]
