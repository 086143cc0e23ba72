"""``tools/benchmark.py``: the package's ``benchmark`` and, beside it, ``speed``.

``speed`` compares with others' ways of computing, which only a checkout has.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mixtransfer.cli import run_main
from mixtransfer.cli.options import positive, require_writable, write_json
from mixtransfer.progress import progress_line

__all__ = ["CASES", "main", "parser", "run"]

#: Cases of ``speed``: functions of benchmarks.cases.
CASES = {
    "swin": "our Swin-T against mmseg's, mmdet's and timm's, evaluation and training",
    "tlalign": "DeiT-S training with TL-Align against plain CutMix and the published way of tracing labels",
    "optimizer": "merged groups with fused AdamW against mmengine's group for each parameter",
    "upernet": "our UPerNet on Swin-T against mmseg's: head, training step, test of an image",
    "coco": "COCO's metric of boxes and masks, ours in memory and mmdet's through JSON and pycocotools",
    "loader": "a classifier's training sample from a JPEG, as we load it and as the recipe's transforms do",
    "mask_rcnn": "our Mask R-CNN on Swin-T against mmdet's: training steps on 5 and on 30 objects",
    "families": "each family against its published code's way of computing it, evaluation and training",
}


def main(argv: Sequence[str]) -> int:
    """Run ``benchmark speed ...``, all of whose words are given, and return its exit status."""
    return run_main("mixtransfer benchmark speed", parser(), run, argv[2:])


def parser() -> argparse.ArgumentParser:
    """Return the options of ``speed``."""
    speed = argparse.ArgumentParser(
        prog="tools/benchmark.py speed",
        description="Run ours and others' in turns, after checking that they compute the same, and print a table of "
        "median times and of the ratios ours/theirs with their quartiles.\n\ncases:\n"
        + "\n".join(f"  {name:<10} {text}" for name, text in CASES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    speed.add_argument(
        "--case", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="what to run (default: all)"
    )
    speed.add_argument(
        "--family", nargs="+", default=(), metavar="NAME", help="families of the case families (default: all)"
    )
    speed.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    speed.add_argument("--threads", type=positive, metavar="N", help="threads on CPU (default: torch's choice)")
    speed.add_argument("--rounds", type=positive, default=15, metavar="N", help="timings of each (default 15)")
    speed.add_argument("--size", type=positive, metavar="PX", help="side of the images (default: the case's)")
    speed.add_argument("--batch", type=positive, metavar="N", help="images a step (default: the case's)")
    speed.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast (default float32)"
    )
    speed.add_argument("--compile", action="store_true", help="run all of them through torch.compile")
    speed.add_argument("--json", type=Path, metavar="FILE", help="also write every timing to this file")
    return speed


def run(args: argparse.Namespace) -> int:
    """Measure the cases, and print and write what was measured."""
    require_writable(args.json)

    import torch
    from mmengine.logging import MMLogger

    from benchmarks import cases
    from benchmarks.speed import measure, speedups, table
    from mixtransfer.evaluation.environment import device_of, environment

    device = device_of(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    MMLogger.get_current_instance().setLevel("WARNING")  # mmengine logs the settings of every parameter

    options = cases.Options(device, args.batch, args.size, getattr(torch, args.dtype), args.compile, tuple(args.family))
    about = {
        **environment(device),
        **{name: getattr(args, name) for name in ("rounds", "size", "batch", "dtype", "compile")},
    }
    results, gain = [], {}
    for case in args.case:
        for comparison in getattr(cases, case)(options):
            results.append(measure(comparison, args.rounds, device, progress_line(comparison.title)))
            gain = speedups(results)
            # After every comparison, so that a run that is stopped leaves what it measured.
            measured = {"results": [result.as_dict() for result in results], "speedups": gain}
            write_json(args.json, {"environment": about, **measured})
    print(", ".join(f"{name} {value}" for name, value in about.items() if value is not None), end="\n\n")
    print(table(results))
    if gain:
        print(f"\ntheirs / ours: lowest {gain['lowest']:.2f}, geometric mean {gain['geometric_mean']:.2f}")
    return 0
