"""The report of ``make demo``: its pictures and its page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mixtransfer.datasets.folders import open_dataset
from mixtransfer.demo.steps import ITERATIONS, NAMES, SEGMENT, WORK, Step
from mixtransfer.engine.build import build_runner, prepare
from mixtransfer.engine.config import load_config
from mixtransfer.inference.model import load_model
from mixtransfer.visualization import report
from mixtransfer.visualization.batches import mixed_batch, save_aligned
from mixtransfer.visualization.pictures import color_labels, save_curves, save_sheet

SHOWN = 6
#: Colors that a reader expects of the scenes' classes.
COLORS = {
    "sky": (166, 206, 238),
    "grass": (120, 184, 88),
    "water": (44, 112, 178),
    "sand": (232, 206, 134),
    "brick": (184, 92, 66),
    "road": (110, 112, 120),
    "ball": (226, 60, 92),
    "box": (142, 92, 184),
    "tree": (26, 104, 62),
    "star": (252, 176, 36),
    "ring": (240, 122, 178),
    "fish": (20, 170, 170),
}


def write_report(took: Sequence[tuple[Step, float]]) -> tuple[Path, dict[str, float]]:
    """Write the pictures and ``report.html``; return its path and the two mIoU in percent."""
    folder = open_dataset("scenes", "seg")
    names = folder.classes
    palette = [COLORS[name] for name in names]
    results = {key: json.loads((WORK / f"test_{key}/metrics.json").read_text(encoding="utf-8")) for key in NAMES}
    scores = {key: result["metrics"]["mIoU"] for key, result in results.items()}

    rows = _prediction_rows(folder.root / folder.val.images, folder.root / folder.val.annotations, palette)
    legend = dict(zip(names, palette, strict=True))
    titles = ("input", "ground truth", *NAMES.values())
    predicted = save_sheet(rows, titles, WORK / "predictions.png", legend, wrap=4)
    aligned = _draw_alignment(palette, names)
    curves = save_curves(
        {
            "validation mIoU (%), 40 scenes": {NAMES[key]: _curve(WORK / key, "mIoU") for key in NAMES},
            "training loss": {NAMES[key]: _curve(WORK / key, "loss", smooth=5) for key in NAMES},
        },
        "iteration",
        WORK / "curves.png",
    )
    tiles = WORK / "tiles"
    best = rows[0]
    pieces = {
        "input": best[0],
        "ground truth": best[1],
        "from scratch": best[3],
        "transferred": best[2],
        "mixed image": _read(tiles / "0_mixed.png"),
        "its labels, stage 1": _read(tiles / "0_1.png"),
        "its labels, stage 3": _read(tiles / "0_3.png"),
    }
    save_sheet([list(pieces.values())], list(pieces), WORK / "strip.png", legend, wrap=4)
    costs = {step.key: seconds for step, seconds in took}
    page = WORK / "report.html"
    page.write_text(
        report.page(
            "A Swin, pretrained with TL-Align, learns to segment",
            [
                report.paragraph(
                    f"swin_micro was pretrained as a classifier on single pictures, converted, and trained for"
                    f" {ITERATIONS} iterations as the backbone of UPerNet with token-level mixing; then the same"
                    f" network was trained from random weights for as long."
                    f" Both were tested on the {folder.val.count} scenes held out."
                ),
                report.headline(
                    [
                        (f"{scores['transferred']:.1f}", "mIoU, transferred"),
                        (f"{scores['scratch']:.1f}", "mIoU, from scratch"),
                    ]
                ),
                report.section(
                    "What the two networks see",
                    report.figure(predicted, "Held-out scenes. Light gray in the ground truth is void."),
                ),
                report.section(
                    "How they learned",
                    report.figure(
                        curves,
                        "The same budget, seed and data in fine-tuning; only the start differs. Pretraining took"
                        f" {costs['pretrain']:.0f} s before, which the network from scratch did not have;"
                        f" fine-tuning took {costs['transferred']:.0f} s.",
                    ),
                ),
                report.section(
                    "A mixed batch, and where its labels go",
                    report.figure(
                        aligned,
                        "Two groups for each image. The first: mixed image, its ground truth, and the class shares of "
                        "the tokens after each stage, moved by the attention. The second: image and partner, and the "
                        "share of each token that came from the partner (blue: own, orange: partner).",
                    ),
                ),
                report.section("Numbers", report.table(("IoU, %", *NAMES.values()), _table(results, names))),
                report.section(
                    "What was run",
                    report.commands([(step.title, f"{seconds:.0f} s", step.command) for step, seconds in took]),
                ),
            ],
        ),
        encoding="utf-8",
    )
    return page, scores


def _table(results: Mapping[str, dict], names: Sequence[str]) -> list[list[str]]:
    rows = [[name, *(f"{result['per_class'][name]['IoU']:.1f}" for result in results.values())] for name in names]
    means = ["mean", *(f"{result['metrics']['mIoU']:.1f}" for result in results.values())]
    pixels = ["right pixels, %", *(f"{result['metrics']['aAcc']:.1f}" for result in results.values())]
    return [*rows, means, pixels]


def _prediction_rows(images: Path, masks: Path, palette: Sequence) -> list[list[np.ndarray]]:
    """Return rows of input, ground truth and both predictions for the scenes with most classes."""
    truths = {path: np.asarray(Image.open(path)).astype(int) - 1 for path in sorted(masks.glob("*.png"))}
    chosen = sorted(truths, key=lambda path: -len(np.unique(truths[path])))[:SHOWN]
    files = [images / f"{path.stem}.jpg" for path in chosen]
    columns = []
    for key in NAMES:
        model = load_model(WORK / key / f"iter_{ITERATIONS}.pth")
        columns.append([color_labels(answer.labels, palette) for answer in model.predict(files)])
    return [
        [_read(file), color_labels(truths[path], palette), *predicted]
        for file, path, *predicted in zip(files, chosen, *columns, strict=True)
    ]


def _draw_alignment(palette: Sequence, names: Sequence[str]) -> Path:
    cfg = load_config(SEGMENT, ("train", "val"), data="scenes", work_dir=WORK / "report")
    prepare(cfg, "draw mix")
    runner = build_runner(cfg)
    runner.load_checkpoint(str(WORK / "transferred" / f"iter_{ITERATIONS}.pth"))
    return save_aligned(mixed_batch(runner), palette, names, WORK / "alignment.png")


def _curve(work: Path, key: str, smooth: int = 1) -> tuple[list[int], list[float]]:
    """Read a curve from the newest log of a training, averaged over ``smooth`` entries."""
    log = max(work.glob("*/vis_data/scalars.json"))
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    points = [(entry["step"], entry[key]) for entry in entries if key in entry]
    values = [value for _, value in points]
    means = [float(np.mean(values[max(0, i - smooth + 1) : i + 1])) for i in range(len(values))]
    return [step for step, _ in points], means


def _read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))
