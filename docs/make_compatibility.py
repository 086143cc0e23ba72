"""The compatibility page: which configs of mmdet and mmseg run on the ops that mixtransfer supplies.

For one config of every folder that the installed libraries ship: its model is built at full size from random weights,
and its transforms; it trains a step on two small random images, with the config's optimizer, and predicts. Each runs in
a process of its own, a fork of one that has the libraries loaded, so that a crash or an endless loop costs that row
only. Rows go into ``compatibility.json`` as they are made; a second call makes those that are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import multiprocessing
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixtransfer.cli import run_main
from mixtransfer.compat import mmcv_ops
from mixtransfer.engine.config import drop_pretrained, read_config
from mixtransfer.errors import UserError
from mixtransfer.progress import progress_line

__all__ = ["STEPS", "check", "chosen", "page", "parser", "run", "summary"]

LIBRARIES = {"mmdet": "onedl-mmdetection", "mmseg": "onedl-mmsegmentation"}
#: What is asked of a config, in this order.
STEPS = ("builds", "trains", "predicts")
#: Names of configs that stand back while a folder has others: large networks, images of six channels, and SSD, with
#: which mmdet 3.5.1 cannot predict.
LARGE = re.compile(
    r"^ssd|101|152|x\d+-|[-_](?:l|b|x|m|large|base|huge|d53)(?:[-_\d]|$)|\d[.\d]+GF|hr(?:32|40|48)|levir"
)
#: Side of the images in pixels, and rows that need another: SSD's last map has one pixel at its own sizes; DINO and its
#: like choose 900 positions; heads pool over windows.
SIDE = 128
SIDES = {
    "mmdet/ssd": 300,
    **dict.fromkeys(("mmdet/dino", "mmdet/ddq", "mmdet/v3det", "mmdet/reid"), 256),
    "mmseg/mobilenet_v3": 400,
}
#: Proposals that pass a stage of a detector, at most.
FEW = 100
#: Seconds that a row may take.
LIMIT = 900
#: What a failure says when something outside of mmdet, mmseg and mixtransfer is not there -> the kind of its reason.
ABSENT = {
    "package": re.compile(
        r"No module named '(?P<name>[\w.]+)'|(?:[Pp]lease|to) (?:run )?[\"'`]?(?:pip |mim )?install (?P<other>[\w-]+)"
        r"|(?P<third>[\w-]+) is not installed|requires the (?P<fourth>[\w-]+) library"
    ),
    "op": re.compile(r"the op '(?P<name>\w+)' is missing"),
}
#: Rows -> why they fail, where the error alone does not say whose fault it is.
NOTES = {
    "mmdet/cascade_rpn": "mmdet 3.5.1's class wants an argument that its configs do not give",
    "mmdet/clrnet": "this script draws no lanes",
    "mmdet/queryinst": "an empty range of rows in mmdet's pasting of masks",
    "mmdet/ssd": "mmdet 3.5.1 reads an attribute that SSD's head does not have",
    "mmseg/san": "mmseg 1.4.2 initializes a class by a method that its base does not have",
}

INTRODUCTION = """\
# Configs of mmdet and mmseg on our ops

Written by `python docs/make_compatibility.py` from [`compatibility.json`](compatibility.json), which it fills;
`--check` says whether it is up to date. Do not edit it.

mmcv's packages on the index come without compiled ops, and mmdet and mmseg cannot be imported then. `import
mixtransfer.registry` supplies the ops in torch's and torchvision's operations (`mixtransfer/compat/ops`). To see what
runs on them, one config of each folder that the installed libraries ship, the shortest name of a small network (and
not SSD, with which mmdet 3.5.1 cannot predict, where there is another), was

- **built**: the model at full size with random weights, the transforms of training and test;
- **trained** for one step on two random images of {side} × {side} pixels, with the config's optimizer, in float32, no
  stage passing on more than {few} proposals; of trackers that are not trained themselves, the detector;
- asked to **predict** the same images.

Boxes, masks, classes and, for trackers, frames are random. Nothing is said about scores. *Ops* are those of mmcv that
were called; a config without any runs on torch alone.
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the script."""
    options = argparse.ArgumentParser(
        prog="docs/make_compatibility.py",
        description="Try a config of every folder of the installed mmdet and mmseg that compatibility.json has no row "
        "of, and write the page compatibility.md.",
    )
    options.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the page is not up to date"
    )
    options.add_argument(
        "--again", nargs="*", metavar="ROW", help="try these rows anew (mmdet/dino); alone: all failed"
    )
    options.add_argument(
        "--folder", type=Path, default=Path(__file__).parent, metavar="DIR", help="of compatibility.json and .md"
    )
    return options


def run(args: argparse.Namespace) -> int:
    """Try what is missing and write the page, or check it; return 1 if it is not up to date."""
    store, target = args.folder / "compatibility.json", args.folder / "compatibility.md"
    record = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {"versions": {}, "rows": {}}
    if args.check:
        fresh = target.exists() and target.read_text(encoding="utf-8") == page(record)
        print("" if fresh else f"{target} is not up to date; run docs/make_compatibility.py", end="" if fresh else "\n")
        return 0 if fresh else 1
    rows, files = record["rows"], chosen()
    if unknown := [name for name in args.again or () if name not in files]:
        raise UserError(f"--again {unknown[0]}: no such row; they are called mmdet/FOLDER or mmseg/FOLDER")
    failed = [name for name, row in rows.items() if row["failed"]]
    redo = () if args.again is None else args.again or failed
    wanted = [name for name in files if name not in rows or name in redo]
    record["versions"] = {name: version(name) for name in ("torch", "onedl-mmcv", *LIBRARIES.values())}
    progress = progress_line("tried")
    _load_libraries()
    for done, name in enumerate(wanted, 1):
        rows[name] = _in_a_fork(check, name, files[name])
        record["rows"] = rows = {key: rows[key] for key in files if key in rows}
        store.write_text(_dumps(record), encoding="utf-8")
        target.write_text(page(record), encoding="utf-8")
        progress(done, len(wanted))
    target.write_text(page(record), encoding="utf-8")
    print("\n".join(summary(rows)))
    return 0


def chosen() -> dict[str, Path]:
    """Return library/folder -> the config that stands for it; folders without a config of a model are left out."""
    found = {}
    for library in LIBRARIES:
        root = _configs(library)
        for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name != "_base_"):
            names = sorted(folder.rglob("*.py"), key=lambda path: _size(path, folder))
            for path in names:
                if "_base_" not in path.parts[len(root.parts) :] and _has_model(path):
                    found[f"{library}/{folder.name}"] = path
                    break
    return found


def _configs(library: str) -> Path:
    spec = importlib.util.find_spec(library)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], ".mim", "configs")


def _size(path: Path, folder: Path) -> tuple[bool, int, int, str]:
    return bool(LARGE.search(path.stem)), len(path.relative_to(folder).parts), len(path.stem), path.stem


def _has_model(path: Path) -> bool:
    try:
        return "type" in read_config(path).model
    except UserError:
        return False


def _load_libraries() -> None:
    from mmengine.logging import MMLogger

    from mixtransfer.registry import import_quietly

    MMLogger.get_current_instance().setLevel("WARNING")
    for library in LIBRARIES:
        import_quietly(f"{library}.apis")
    torch.set_num_threads(1)


def _in_a_fork(function: Callable[..., dict], *args: Any) -> dict:
    """Return what ``function(report, *args)`` reports last, in a process of its own; a crash fails the step after."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_reporting, args=(function, sender, *args))
    process.start()
    sender.close()
    row: dict[str, Any] = {"config": args[-1].stem, "passed": [], "ops": [], "failed": None}
    why = f"took more than {LIMIT} s"
    try:
        while receiver.poll(LIMIT):
            row = receiver.recv()
        process.kill()
        process.join()
    except EOFError:
        process.join()
        why = f"the process ended with status {process.exitcode}"
    if len(row["passed"]) < len(STEPS) and row["failed"] is None:
        row["failed"] = {"kind": "error", "reason": why}
    return row


def _reporting(function: Callable[..., dict], sender: Connection, *args: Any) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    function(sender.send, *args)
    sender.close()


def check(report: Callable[[dict], None], name: str, path: Path) -> dict[str, Any]:
    """Build, train and predict with a config, and return its row.

    Args:
        report: called with the row after every step.
        name: library/folder.
        path: the config.
    """
    row: dict[str, Any] = {"config": path.stem, "passed": [], "ops": [], "failed": None}
    torch.manual_seed(0)
    np.random.seed(0)
    with _counted() as calls:
        steps = _steps(name, path)
        for step in STEPS:
            try:
                next(steps)
                row["passed"].append(step)
            except Exception as error:
                traceback.print_exc()
                row["failed"] = _reason(error)
            row["ops"] = sorted(calls)
            report(row)
            if row["failed"]:
                break
    return row


def _reason(error: BaseException) -> dict[str, str]:
    """Return the kind of what is missing and its name, or the error's first line."""
    chain, text = error, ""
    while chain is not None:
        text += f"{type(chain).__name__}: {chain}\n"
        chain = chain.__cause__ or chain.__context__
    for kind, pattern in ABSENT.items():
        if found := pattern.search(text):
            return {"kind": kind, "reason": next(group for group in found.groups() if group)}
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {"kind": "error", "reason": lines[0][:160]}


@contextlib.contextmanager
def _counted() -> Iterator[Counter]:
    """Count the calls of mmcv's ops meanwhile, by name."""
    mmcv_ops.install()
    extension, calls = sys.modules[mmcv_ops.EXTENSION], Counter()

    def counting(name: str) -> Callable[..., Any]:
        op = getattr(extension, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return op(*args, **kwargs)

        return counted

    before = dict(vars(extension))
    for name in mmcv_ops.SERVED:
        setattr(extension, name, counting(name))
    try:
        yield calls
    finally:
        vars(extension).update(before)


def _steps(name: str, path: Path) -> Iterator[None]:
    """Do one step after the other."""
    from mmengine.logging import MessageHub
    from mmengine.model import revert_sync_batchnorm
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
    from mmengine.utils import import_modules_from_strings

    cfg = read_config(path)
    if imports := cfg.get("custom_imports"):
        import_modules_from_strings(**imports)
    init_default_scope(cfg.default_scope)
    side = SIDES.get(name, SIDE)
    _start_afresh(cfg.model)
    _at_size(cfg.model, side)
    _with_few_proposals(cfg.model)
    for part in ("train", "test"):
        for transform in _pipeline(cfg.get(f"{part}_dataloader") or {}):
            TRANSFORMS.build(transform)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model = revert_sync_batchnorm(model)
    yield
    inputs = _Inputs(cfg, side)
    # Trackers of detections have no training of their own: that of their detector stands for it.
    trained = model if "optim_wrapper" in cfg else model.detector
    if trained is not model:
        trained.data_preprocessor = MODELS.build({"type": "mmdet.DetDataPreprocessor"})
    settings = {**cfg.get("optim_wrapper", {"optimizer": {"type": "SGD", "lr": 0.01}}), "type": "OptimWrapper"}
    for key in ("dtype", "loss_scale", "use_fp16"):
        settings.pop(key, None)
    wrapper = build_optim_wrapper(trained, settings)
    hub = MessageHub.get_current_instance()
    for key, value in {"iter": 0, "epoch": 0, "max_iters": 1, "max_epochs": 1}.items():
        hub.update_info(key, value)
    model.train()
    losses = trained.train_step(inputs.train(trained is model), wrapper)
    if not all(math.isfinite(float(value)) for key, value in losses.items() if "loss" in key):
        raise ValueError(f"losses {losses} are not finite")
    yield
    model.eval()
    with torch.no_grad():
        if not model.test_step(inputs.test()):
            raise ValueError("nothing was predicted")
    yield


def _start_afresh(part: Any) -> None:
    """Let nothing start from a file of weights."""
    drop_pretrained(part)
    for item in part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else ():
        _start_afresh(item)
    if isinstance(part, dict):
        for key in part:
            if key.endswith("_ckpt") or (key == "init_cfg" and "checkpoint" in (part[key] or ())):
                part[key] = None
            elif key == "type" and part[key] in ("SyncBN", "MMSyncBN"):
                part[key] = "BN"
            elif key == "pretrained" and part[key] is True:
                part[key] = False
            elif key == "teacher_config" and str(part[key]).startswith("configs/"):
                # Relative to a checkout; packages have their configs elsewhere.
                part[key] = str(_configs("mmdet") / part[key].removeprefix("configs/"))


def _at_size(model: Any, side: int) -> None:
    """Have images of this side: preprocessors that pad to a size or resize at random, tables of fixed positions."""
    if (model.get("backbone") or {}).get("type") in ("BEiT", "MAE"):
        model.backbone.img_size = (side, side)
    processor = model.get("data_preprocessor") or {}
    for part in (processor, processor.get("data_preprocessor") or {}):
        # Of a config in which neither is set the library's preprocessor says that both must not be.
        if part.get("size") is not None or part.get("type") == "SegDataPreProcessor":
            part["size"] = (side, side)
        for augment in part.get("batch_augments") or ():
            for key in ("size", "random_size_range"):
                if key in augment:
                    augment[key] = (side, side)


def _with_few_proposals(part: Any) -> None:
    """Let no stage pass on more than :data:`FEW` boxes; sizes of the network stay."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        if key in ("nms_pre", "max_per_img", "nms_post", "max_num") and isinstance(value, int):
            part[key] = min(value, FEW)
        elif key == "sampler" and isinstance(value, dict) and "num" in value:
            value["num"] = min(value["num"], FEW)
        else:
            _with_few_proposals(value)


def _pipeline(loader: Mapping[str, Any]) -> list[Any]:
    """Return the transforms of a loader's dataset, those of its wrappers after those inside."""
    dataset, found = loader.get("dataset") or {}, []
    while isinstance(dataset, Mapping) and dataset:
        found = [*(dataset.get("pipeline") or ()), *found]
        inner = dataset.get("dataset") or dataset.get("datasets")
        dataset = inner[0] if isinstance(inner, list) else inner
    return found


class _Inputs:
    """Random batches of the kind that a config's loader gives."""

    def __init__(self, cfg: Any, side: int):
        self.model, self.scope, self.side = cfg.model, cfg.default_scope, side
        found = Counter(_numbers(cfg.model, "num_classes"))
        self.classes = min((count for count in found if count > 0), default=10)
        text = str(_pipeline(cfg.get("train_dataloader") or {}))
        self.reduced = 8 if "SegRescale" in text and "0.125" in text else 1
        self.masks, self.maps = "'with_mask': True" in text, "'with_seg': True" in text
        self.kind = "reid" if "PackReIDInputs" in text else "frames" if "PackTrackInputs" in text else "images"
        test = str(_pipeline(cfg.get("test_dataloader") or {}))
        self.test_kind = "frames" if "PackTrackInputs" in test else self.kind
        if "MultiBranch" in text:
            self.kind = "branches"

    def train(self, whole: bool) -> dict[str, Any]:
        """Return a batch of training; without ``whole`` for the detector inside of a tracker."""
        return self._batch(self.kind if whole else "images", 2)

    def test(self) -> dict[str, Any]:
        """Return a batch to predict."""
        return self._batch(self.test_kind, 1)

    def _batch(self, kind: str, count: int) -> dict[str, Any]:
        if self.scope == "mmseg":
            return self._maps(count)
        if kind == "reid":
            return self._people()
        if kind == "frames":
            return self._frames()
        if kind == "branches":
            batches = {branch: self._images(count) for branch in ("sup", "unsup_teacher", "unsup_student")}
            return {
                key: {branch: batch[key] for branch, batch in batches.items()} for key in ("inputs", "data_samples")
            }
        return self._images(count)

    def _images(self, count: int) -> dict[str, Any]:
        from mmdet.testing import demo_mm_inputs
        from mmengine.structures import InstanceData

        # demo_mm_inputs draws semantic maps in 8 bits.
        shape, labels = (3, self.side, self.side), min(max(self.classes, 2), 255)
        batch = demo_mm_inputs(
            count,
            shape,
            [4] * count,
            labels,
            sem_seg_output_strides=self.reduced,
            with_mask=self.masks,
            with_semantic=self.maps,
        )
        for sample in batch["data_samples"]:
            sample.gt_instances.labels %= self.classes
            sample.set_metainfo({"homography_matrix": np.eye(3, dtype=np.float32), "batch_input_shape": shape[1:]})
            sample.set_metainfo({"img_path": "random.jpg", "scale_factor": (1.0, 1.0), "pad_shape": shape[1:]})
            if self.model.type == "FastRCNN":
                boxes = sample.gt_instances.bboxes
                sample.proposals = InstanceData(bboxes=boxes.clone(), scores=torch.ones(len(boxes)))
        return batch

    def _frames(self) -> dict[str, Any]:
        from mmdet.testing import demo_track_inputs

        shape = (3, self.side, self.side)
        batch = demo_track_inputs(1, 2, [0], shape, [4], self.classes, with_mask=True)
        for sample in batch["data_samples"]:
            for number, frame in enumerate(sample.video_data_samples):
                frame.set_metainfo({"frame_id": number, "video_length": 2, "scale_factor": (1.0, 1.0)})
        return batch

    def _people(self) -> dict[str, Any]:
        from mmdet.structures import ReIDDataSample

        sample = ReIDDataSample()
        sample.set_gt_label(np.repeat(np.arange(2), 4))
        return {"inputs": [torch.randint(256, (8, 3, self.side, self.side // 2)).byte()], "data_samples": [sample]}

    def _maps(self, count: int) -> dict[str, Any]:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        shape, samples = (self.side, self.side), []
        for _ in range(count):
            sample = SegDataSample(metainfo={key: shape for key in ("img_shape", "ori_shape", "pad_shape")})
            sample.gt_sem_seg = PixelData(data=torch.randint(self.classes, (1, *shape)))
            sample.gt_edge_map = PixelData(data=torch.randint(2, (1, *shape)))
            sample.gt_depth_map = PixelData(data=1 + torch.rand(1, *shape))
            sample.set_metainfo({"img_path": "random.jpg", "scale_factor": (1.0, 1.0), "flip": False})
            samples.append(sample)
        return {"inputs": [torch.randint(256, (3, *shape)).byte() for _ in samples], "data_samples": samples}


def _numbers(part: Any, name: str) -> Iterator[int]:
    items = part.items() if isinstance(part, Mapping) else enumerate(part) if isinstance(part, list | tuple) else ()
    for key, value in items:
        if key == name and isinstance(value, int):
            yield value
        else:
            yield from _numbers(value, name)


def page(record: Mapping[str, Any]) -> str:
    """Return the page in Markdown, from ``versions``, distribution to version, and ``rows``, see :func:`check`."""
    rows = record["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    lines = [INTRODUCTION.format(side=SIDE, few=FEW), f"Made with {versions}, on CPU.", "", *summary(rows)]
    for library in LIBRARIES:
        lines += ["", f"## {library}", "", f"| folder | config | {' | '.join(STEPS)} | ops | reason |"]
        lines.append(f"|---|---|{'---|' * len(STEPS)}---|---|")
        for name, row in rows.items():
            if name.startswith(f"{library}/"):
                marks = ["yes" if step in row["passed"] else "no" for step in STEPS]
                failed = row["failed"]
                reason = f"{failed['kind']}: `{failed['reason'].replace('|', '/')}`" if failed else ""
                if failed and name in NOTES:
                    reason = f"{reason} ({NOTES[name]})"
                cells = [name.partition("/")[2], f"`{row['config']}`", *marks, _ops(row["ops"]), reason]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _ops(names: list[str]) -> str:
    short = dict.fromkeys(re.sub(r"_(forward|backward)\w*$", "", name) for name in names)
    return ", ".join(short)


def summary(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return how many rows pass, and what the others lack, as lines of Markdown."""
    absent = {name: row for name, row in rows.items() if (row["failed"] or {}).get("kind") == "package"}
    passed = [name for name, row in rows.items() if len(row["passed"]) == len(STEPS)]
    able = len(rows) - len(absent)
    share = f", {100 * len(passed) / able:.1f} %" if able else ""
    packages = ", ".join(sorted({row["failed"]["reason"] for row in absent.values()}))
    called = sum(bool(row["ops"]) for row in rows.values())
    return [
        f"**{len(passed)} of {able}{share}, build, train and predict**; {called} call ops of mmcv. "
        + (f"{len(absent)} more need a package that is not installed here: {packages}." if absent else ""),
    ]


def _dumps(record: Mapping[str, Any]) -> str:
    """Return the record as JSON, a line for each row."""
    rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in record["rows"].items())
    return f'{{\n "versions": {json.dumps(record["versions"])},\n "rows": {{\n{rows}\n }}\n}}\n'


if __name__ == "__main__":
    sys.exit(run_main("make_compatibility", parser(), run, sys.argv[1:]))
