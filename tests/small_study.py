"""A study of four cells whose commands are stand-ins: they take a moment and write what a test would."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

#: Reading a recipe with all its bases takes longer than the rest of a test.
CONFIG = """
default_scope = "mmseg"
steps = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
backbone = dict(type="mixtransfer.SwinTransformer", arch="swin_micro")
model = dict(type="EncoderDecoder", backbone=backbone, decode_head=dict(type="FCNHead", num_classes=3, channels=48))
custom_hooks = [dict(type="mixtransfer.TokenMixHook", prob=0.5)]
train_dataloader = dict(batch_size=2, num_workers=1, dataset=dict(type="ADE20KDataset", pipeline=steps))
val_dataloader = test_dataloader = dict(dataset=dict(type="ADE20KDataset", pipeline=steps))
val_evaluator = test_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
train_cfg = dict(type="IterBasedTrainLoop", max_iters=1000, val_interval=250)
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-3))
default_hooks = dict(logger=dict(type="LoggerHook", interval=20))
"""


def write_study(folder: Path, data: Path, more: str = "") -> Path:
    config, file = folder / "small_config.py", folder / "small.py"
    config.write_text(CONFIG, encoding="utf-8")
    file.write_text(
        f"title = 'Small'\nwork_dir = {str(folder / 'work')!r}\nbackbones = ['swin_micro']\n"
        f"tasks = dict(seg=dict(config={str(config)!r}, data={str(data)!r}, metrics=['mIoU', 'aAcc']))\n"
        "hooks = dict(off=['custom_hooks.0.prob=0'], on=[])\nseeds = 2\ncompare = dict(hooks='off')\n" + more,
        encoding="utf-8",
    )
    return file


def stand_in(argv: list[str]) -> int:
    """Do what a command does, in several moments that a kill can fall between, going on where it was."""
    options = dict(itertools.pairwise(argv))
    work = Path(options["--work-dir"])
    work.mkdir(parents=True, exist_ok=True)
    state = work / "state"
    if argv[0] == "train":
        done = int(state.read_text()) if state.exists() else 0
        for step in range(done, 8):
            time.sleep(0.02)
            partial = work / "state.partial"
            partial.write_text(str(step + 1))
            partial.replace(state)
            print(f"Iter(train) [{step + 1}/8]  eta: 0:00:01", flush=True)
        (work / "iter_8.pth").touch()
        (work / "last_checkpoint").write_text("iter_8.pth")
        if (work.parent.parent.parent / "fails").exists():
            print("mixtransfer train: error: nothing is right here", file=sys.stderr)
            return 2
        return 0
    seed = int(argv[2].split("-s")[-1][0])
    counts = [[[40 + 5 * seed, 60, 70], [20, 40, 30]], [[10, 20, 30 + seed], [50, 60, 50]]]
    images = [
        {"image": f"{k}.jpg", "pixels": {str(c): row for c, row in enumerate(rows)}} for k, rows in enumerate(counts)
    ]
    record = {
        "metrics": {"mIoU": 50.0 + seed + ("-on-s" in argv[2]) * (1 + seed), "aAcc": 60.0 - ("-on-s" in argv[2])},
        "per_class": {"a": {"IoU": 50.0, "Acc": None}, "b": {"IoU": 60.0, "Acc": 61.0}},
        "dataset": {"classes": ["a", "b"], "images": 2},
        "weights": {"seed": seed, "iterations": 8, "training_loss": 0.5},
        "model": {"parameters": 1000, "macs": 2000, "input": [8, 8]},
        "versions": {"torch": "0"},
    }
    out = Path(options["--out"])
    out.write_text(json.dumps(record), encoding="utf-8")
    out.with_name("measured.images.json").write_text(json.dumps(images), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(stand_in(sys.argv[1:]))
