"""``study``: a whole study from one file: its trainings, where they stand, and the page that they lead to."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixtransfer.cli.options import CODE, positive

if TYPE_CHECKING:
    from mixtransfer.study.plan import Study

__all__ = ["parser", "run"]

END = f"""\
{CODE} Exit status of run: 0 all cells are done; 1 some are not; 2 something given is wrong, in one line; 130 stopped:
the same command goes on."""


def parser() -> argparse.ArgumentParser:
    """Return the options of ``study``."""
    options = argparse.ArgumentParser(
        prog="mixtransfer study",
        description="Run a study: backbones, pretraining methods, tasks, hooks, fractions of the labels and seeds."
        " 'run' starts it or goes on with it, 'status' says where it stands, 'report' writes its records and its page.",
        epilog=END,
    )
    options.add_argument("file", metavar="FILE", help="the study, e.g. studies/few_labels.py; see docs/studies.md")
    options.add_argument("action", choices=("run", "status", "report"))
    running = options.add_argument_group("run")
    running.add_argument(
        "--dry-run", action="store_true", help="print each cell's commands and, from a few timed steps, the time of all"
    )
    running.add_argument(
        "--launcher",
        choices=("local", "slurm", "print"),
        default="local",
        help="where cells run: here; as Slurm jobs, submitted and left (needs submitit); nowhere: print their commands",
    )
    running.add_argument("--jobs", type=positive, help="cells at a time (default: one for each GPU, or one)")
    running.add_argument("--threads", type=positive, default=1, help="CPU threads of a cell (default: %(default)s)")
    running.add_argument("--retry", action="store_true", help="run cells again that failed")
    running.add_argument(
        "--redo",
        action="store_true",
        help="put cells aside that were begun with another config, data, weights or packages, and run them again",
    )
    running.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="cells with one of these in their names")
    options.add_argument("--watch", action="store_true", help="status: go on showing it until no cell runs")
    reporting = options.add_argument_group("report")
    reporting.add_argument("--out", metavar="DIR", help="where records and page go (default: FILE without its suffix)")
    reporting.add_argument(
        "--check", action="store_true", help="write nothing; fail where the page does not follow from the records"
    )
    return options


def run(args: argparse.Namespace) -> int:
    """Do what is wanted; return the exit status."""
    from mixtransfer.study.plan import read_study

    study = read_study(args.file)
    if args.action == "report":
        return _report(args, study)
    if args.action == "status":
        return _status(study, args.watch)
    if args.dry_run:
        return _estimate(study, args.jobs or 1, args.only)
    if args.launcher == "print":
        return _print(study, args.only)
    if args.launcher == "slurm":
        from mixtransfer.study.launch import Worker, submit

        jobs = submit(Worker(Path(args.file), args.threads, args.retry, args.redo, args.only), args.jobs or 1)
        print(f"submitted {', '.join(job.job_id for job in jobs)}; see {study.work_dir / 'jobs'} and 'status'")
        return 0
    return _run(args, study)


def _run(args: argparse.Namespace, study: Study) -> int:
    from mixtransfer.study.launch import gpu_slots
    from mixtransfer.study.run import Runner
    from mixtransfer.study.status import summary

    begun = time.monotonic()

    def say(text: str) -> None:
        seconds = int(time.monotonic() - begun)
        print(f"[{seconds // 60}:{seconds % 60:02d}] {text}", flush=True)

    runner = Runner(study, args.threads, args.retry, args.redo, args.only, say)
    done = runner.run(gpu_slots(args.jobs, study.processes))
    print(summary(runner.cells, [folder.state() for folder in runner.cells]))
    if runner.stopping:
        return 130
    if done:
        print(f"now: mixtransfer study {args.file} report")
    return 0 if done else 1


def _status(study: Study, watch: bool) -> int:
    from rich.console import Console
    from rich.live import Live

    from mixtransfer.study.cells import RUNNING, folders
    from mixtransfer.study.status import status_table

    cells, console = folders(study), Console()
    if not watch:
        console.print(status_table(cells, study.title))
        return 0
    with Live(status_table(cells, study.title), console=console, auto_refresh=False) as live:
        while any(folder.state()[0] == RUNNING for folder in cells):
            time.sleep(2)
            live.update(status_table(cells, study.title), refresh=True)
    return 0


def _print(study: Study, only: Sequence[str]) -> int:
    from mixtransfer.study.cells import DONE
    from mixtransfer.study.run import Runner, command_of

    for folder in Runner(study, only=only).cells:
        if folder.state()[0] != DONE:
            print(f"# {folder.cell.name}")
            for step in folder.steps():
                print(shlex.join(["python", *command_of(step, study.processes)[1:]]))
    return 0


def _estimate(study: Study, jobs: int, only: Sequence[str]) -> int:
    from mixtransfer.study.cells import DONE
    from mixtransfer.study.estimate import time_cell
    from mixtransfer.study.run import Runner
    from mixtransfer.study.status import duration

    cells = [folder for folder in Runner(study, only=only).cells if folder.state()[0] != DONE]
    _print(study, only)
    timings, total, unknown = {}, 0.0, 0
    for folder in cells:
        cell = folder.cell
        if cell.kind == "probe":
            unknown += 1
            continue
        group = cell.factors["task"], cell.factors["backbone"], cell.factors["hooks"]
        if group not in timings:
            # Where a teacher is still to be trained, its own training stands for that of the one that it teaches.
            taught = folder.source if cell.kind == "pretrain" else None
            timings[group] = timing = time_cell(taught or folder)
            print(
                f"{' '.join(group)}: {timing.step:.2f} s a step, {timing.image:.3f} s an image, {timing.start:.0f} s a"
                f" start; {duration(timing.seconds(1))} a cell on all labels",
                file=sys.stderr,
            )
        total += timings[group].seconds(float(cell.fraction))
    rest = f", and {unknown} probes, which are not estimated" if unknown else ""
    print(f"{len(cells) - unknown} cells to run{rest}: about {duration(total / jobs)} with {jobs} at a time")
    return 0


def _report(args: argparse.Namespace, study: Study) -> int:
    from mixtransfer.study.report import check, write

    out = Path(args.out or study.file.with_suffix(""))
    if args.check:
        wrong = check(study, out)
        for name in wrong:
            print(f"{out / name}: does not follow from the records; write it anew with 'report'", file=sys.stderr)
        return 1 if wrong else 0
    missing = write(study, out)
    print(f"wrote {out / 'index.html'}" + (f"; {missing} of {len(study.cells)} cells are missing" if missing else ""))
    return 0
