"""Point a config of mmseg, mmdet or mmpretrain at a dataset folder, whatever dataset it was written for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict

from mixtransfer.datasets.folders import DatasetFolder, Split, missing_dataset

__all__ = ["apply_dataset", "require_dataset"]

KEPT = ("pipeline", "filter_cfg", "test_mode", "serialize_data", "max_refetch", "indices", "lazy_init", "_scope_")
"""What a dataset's settings keep when another dataset takes its place."""
FITTING_METRICS = {
    "seg": ("IoUMetric",),
    "det": ("CocoMetric",),
    "cls": ("Accuracy", "SingleLabelMetric", "ConfusionMatrix"),
}
NO_CLASS_HEADS = ("rpn_head", "semantic_head")
"""Parts of a model whose ``num_classes`` counts something else: proposals, stuff."""


def apply_dataset(cfg: Config, folder: DatasetFolder) -> None:
    """Make ``cfg`` train, validate and test on ``folder``, in place.

    Datasets (also inside wrappers) are replaced and keep their pipelines; a concatenation becomes the one dataset.
    Metrics that fit the kind stay, those of other datasets give way to the kind's usual one. Every ``num_classes`` of
    the model takes the folder's, and weights that a loss gives to single classes, meant for other classes, become one.
    """
    for name, split in (("train", folder.train), ("val", folder.val), ("test", folder.val)):
        loader = cfg.get(f"{name}_dataloader")
        if loader:
            loader["dataset"] = _replaced(loader["dataset"], folder, split)
        evaluator = cfg.get(f"{name}_evaluator")
        if evaluator:
            cfg[f"{name}_evaluator"] = _metrics(evaluator, cfg.model, folder)
    _set_class_count(cfg.model, len(folder.classes), folder.kind)
    if "data_preprocessor" in cfg:
        _set_class_count(cfg.data_preprocessor, len(folder.classes), folder.kind)


def require_dataset(cfg: Config, splits: Sequence[str] = ("train", "val")) -> None:
    """Check that the dataset which ``cfg`` names for ``splits`` ("train", "val", "test") is on disk.

    Raises:
        UserError: what is missing, where it was looked for, the layout, and the remedy.
    """
    for split in splits:
        for dataset in _leaves((cfg.get(f"{split}_dataloader") or {}).get("dataset", {})):
            root, task = Path(dataset.get("data_root") or ""), _kind(dataset)
            prefix = dataset.get("data_prefix", {})
            wanted = [*(prefix.values() if isinstance(prefix, Mapping) else [prefix]), dataset.get("ann_file", "")]
            if not root.exists():
                raise missing_dataset(root, "the folder", task)
            for path in wanted:
                if path and not (root / path).exists():
                    raise missing_dataset(root, path, task)


def _leaves(dataset: Mapping) -> Iterator[Mapping]:
    """Yield the datasets inside wrappers and concatenations."""
    inner = dataset.get("datasets", [dataset["dataset"]] if "dataset" in dataset else None)
    if inner is None:
        yield dataset
    else:
        for wrapped in inner:
            yield from _leaves(wrapped)


def _kind(dataset: Mapping) -> str:
    prefix = dataset.get("data_prefix")
    if isinstance(prefix, Mapping) and "seg_map_path" in prefix:
        return "seg"
    return "det" if str(dataset.get("ann_file", "")).endswith(".json") else "cls"


def _replaced(dataset: Mapping, folder: DatasetFolder, split: Split) -> ConfigDict:
    if "dataset" in dataset:
        return ConfigDict({**dataset, "dataset": _replaced(dataset["dataset"], folder, split)})
    first = next(_leaves(dataset))
    kept = {key: first[key] for key in KEPT if key in first}
    if folder.kind == "seg" and "pipeline" in kept:
        kept["pipeline"] = [_void_is_zero(step) for step in kept["pipeline"]]
    return ConfigDict(**kept, data_root=str(folder.root), **_location(folder, split))


def _void_is_zero(step: Mapping) -> Mapping:
    """A step that states the opposite of its dataset would stop mmseg."""
    return {**step, "reduce_zero_label": True} if step.get("reduce_zero_label") is False else step


def _location(folder: DatasetFolder, split: Split) -> dict:
    # mmdet draws instances in tuples only.
    metainfo = dict(classes=folder.classes, palette=[tuple(color) for color in folder.palette])
    if folder.kind == "seg":
        return dict(
            type="mmseg.BaseSegDataset",
            data_prefix=dict(img_path=split.images, seg_map_path=split.annotations),
            img_suffix=split.image_suffix,
            seg_map_suffix=split.mask_suffix,
            reduce_zero_label=True,
            metainfo=metainfo,
        )
    if folder.kind == "det":
        prefix = dict(img=f"{split.images}/")
        return dict(type="mmdet.CocoDataset", data_prefix=prefix, ann_file=split.annotations, metainfo=metainfo)
    return dict(type="mmpretrain.CustomDataset", data_prefix=split.images, ann_file="", metainfo=metainfo)


def _metrics(evaluator: Mapping | Sequence[Mapping], model: Mapping, folder: DatasetFolder) -> list[ConfigDict]:
    given = [evaluator] if isinstance(evaluator, Mapping) else evaluator
    metrics = [ConfigDict(metric) for metric in given if _type_name(metric) in FITTING_METRICS[folder.kind]]
    if not metrics:
        usual = {
            "seg": dict(type="mmseg.IoUMetric", iou_metrics=["mIoU"]),
            "det": dict(type="mmdet.CocoMetric", metric=["bbox", "segm"] if _has_masks(model) else ["bbox"]),
            "cls": dict(type="mmpretrain.Accuracy", topk=(1,)),
        }
        metrics = [ConfigDict(usual[folder.kind])]
    for metric in metrics:
        if folder.kind == "det":
            metric["ann_file"] = str(folder.root / folder.val.annotations)
        elif "topk" in metric:
            ranks = [metric["topk"]] if isinstance(metric["topk"], int) else metric["topk"]
            metric["topk"] = tuple(k for k in ranks if k <= len(folder.classes)) or (1,)
    return metrics


def _type_name(settings: Mapping) -> str:
    """The class name of ``type``, given as a name, a scoped name or (new-style configs) the class itself."""
    return getattr(settings["type"], "__name__", str(settings["type"])).rsplit(".", 1)[-1]


def _has_masks(model: object) -> bool:
    if isinstance(model, Mapping):
        return any(key == "mask_head" or _has_masks(value) for key, value in model.items())
    return isinstance(model, (list, tuple)) and any(_has_masks(part) for part in model)


def _set_class_count(part: object, count: int, kind: str, was: int | None = None, backbone: bool = False) -> None:
    """Set ``num_classes`` throughout a model; a backbone's own counts only where the backbone is the classifier."""
    if isinstance(part, Mapping):
        if "num_classes" in part and not (backbone and kind != "cls"):
            was, part["num_classes"] = part["num_classes"], count
        if "num_things_classes" in part:
            was = part["num_things_classes"] + part["num_stuff_classes"]
            part["num_things_classes"], part["num_stuff_classes"] = count, 0
        weights = part.get("class_weight")
        if isinstance(weights, (list, tuple)) and was is not None and len(weights) in (was, was + 1):
            part["class_weight"] = [1.0] * count + list(weights[was:])
        for key, value in part.items():
            if key not in NO_CLASS_HEADS:
                _set_class_count(value, count, kind, was, backbone=key == "backbone")
    elif isinstance(part, (list, tuple)):
        for value in part:
            _set_class_count(value, count, kind, was)
