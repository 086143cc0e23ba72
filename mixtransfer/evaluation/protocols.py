"""Protocols of tests that papers report and a config does not hold: views, windows, answers for a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mixtransfer.datasets.configure import leaf_datasets, type_name
from mixtransfer.engine.config import task_of
from mixtransfer.errors import UserError

__all__ = ["RATIOS", "use_views", "use_windows", "write_for_server"]

#: Task -> the sizes of the views as multiples of the config's own test scale. Segmentors: mmseg 0.x on ADE20K, whose
#: test scale is (2048, 512), as Swin's, HorNet's and DeiT's tables with "ms + flip". Detectors: mmdet's RetinaNet.
RATIOS = {"seg": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "det": (0.5, 1.0, 1.5)}
FLIPS = [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)]
#: What packed samples must tell of a view, so that its answer can be turned back.
TOLD = ("flip", "flip_direction")


def use_views(cfg: Config, ratios: Sequence[float] | None = None) -> None:
    """Test on several sizes of each image, mirrored and not, in place.

    mmseg 1.x's own pipeline multiplies the size of the photograph; the papers, and this, the test scale.

    Args:
        cfg: the config of a segmentor or detector, on its data.
        ratios: sizes as multiples of the test scale, by default :data:`RATIOS`.

    Raises:
        UserError: a classifier, or a pipeline that does not resize.
    """
    task = task_of(cfg)
    if task not in RATIOS:
        raise UserError("--tta: classifiers are tested on one view; give the config of a segmentor or detector")
    for dataset in leaf_datasets(cfg.test_dataloader.dataset):
        dataset["pipeline"] = _with_views(dataset["pipeline"], ratios or RATIOS[task])
    merging: dict[str, Any] = dict(type="mixtransfer.SegTTAModel")
    if task == "det":
        test = cfg.model.get("test_cfg") or {}
        test = test.get("rcnn", test)
        if not {"nms", "max_per_img"} <= test.keys():
            raise UserError("--tta: model.test_cfg has no nms and max_per_img, by which the boxes of views are merged")
        merging = dict(type="mixtransfer.DetTTAModel", nms=test["nms"], max_per_img=test["max_per_img"])
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), dict(type="PrepareTTAHook", tta_cfg=merging)]


def _with_views(pipeline: Sequence[Mapping], ratios: Sequence[float]) -> list[ConfigDict]:
    steps = [ConfigDict(step) for step in pipeline]
    places = [number for number, step in enumerate(steps) if "Resize" in type_name(step)]
    if not places or not {"scale", "scale_factor"} & steps[places[0]].keys():
        names = ", ".join(map(type_name, steps))
        raise UserError(f"--tta: the test pipeline ({names}) has no Resize with a scale to multiply; add one")
    first, after = places[0], places[-1] + 1
    for step in steps:
        if type_name(step).startswith("Pack") and "meta_keys" in step:
            step.meta_keys = (*step.meta_keys, *(key for key in TOLD if key not in step.meta_keys))
    # Labels are loaded behind the flip: they stay as they are.
    choices = [[_scaled(steps[first], ratio) for ratio in ratios], *([step] for step in steps[first + 1 : after])]
    choices += [[ConfigDict(flip) for flip in FLIPS], *([step] for step in steps[after:])]
    return [*steps[:first], ConfigDict(type="TestTimeAug", transforms=choices)]


def _scaled(step: ConfigDict, ratio: float) -> ConfigDict:
    key = "scale_factor" if step.get("scale_factor") else "scale"
    sides = step[key] if isinstance(step[key], Sequence) else (step[key],) * 2
    sides = (ratio * side for side in sides)
    return ConfigDict({**step, key: tuple(sides if key == "scale_factor" else map(round, sides))})


def use_windows(cfg: Config, crop: int, stride: int) -> None:
    """Test a segmentor on square windows and average their answers where they overlap, in place.

    Args:
        cfg: the config.
        crop: side of a window in pixels of the resized image.
        stride: pixels from one window to the next.

    Raises:
        UserError: no segmentor, or windows that leave pixels out.
    """
    if task_of(cfg) != "seg":
        raise UserError("--slide: windows are for segmentors; give the config of one")
    if stride > crop:
        raise UserError(f"--slide {crop} {stride}: windows of {crop} pixels leave some out; give a stride up to {crop}")
    test = {**(cfg.model.get("test_cfg") or {}), "mode": "slide", "crop_size": (crop, crop), "stride": (stride, stride)}
    cfg.model.test_cfg = ConfigDict(test)


def write_for_server(cfg: Config, folder: Path) -> None:
    """Write a detector's answers as COCO's server takes them instead of measuring them, in place.

    The files are ``folder``/results.bbox.json and, with masks, results.segm.json; images and categories have the
    numbers of the annotation file, which needs no annotations.

    Args:
        cfg: the config of a detector, on its data.
        folder: where the files go.

    Raises:
        UserError: no detector, or a test set that is not one COCO file.
    """
    metrics = [cfg.test_evaluator] if isinstance(cfg.test_evaluator, Mapping) else cfg.test_evaluator
    datasets = list(leaf_datasets(cfg.test_dataloader.dataset))
    if task_of(cfg) != "det" or len(datasets) > 1 or any(type_name(metric) != "CocoMetric" for metric in metrics):
        raise UserError("--format-only: writes COCO's files; give a detector's config with one COCO test set")
    (dataset,) = datasets
    file = str(Path(dataset.get("data_root") or "") / dataset["ann_file"])
    dataset["pipeline"] = [step for step in dataset["pipeline"] if type_name(step) != "LoadAnnotations"]
    for metric in metrics:
        prefix = str(folder / "results")
        metric.update(format_only=True, outfile_prefix=prefix, ann_file=file, numbered_as=file)
