"""Point a config of mmseg, mmdet or mmpretrain at a dataset folder, whatever dataset it was written for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict

from mixtransfer.datasets.folders import DatasetFolder, Split, missing_dataset
from mixtransfer.progress import notice

__all__ = ["apply_dataset", "class_info", "has_masks", "leaf_datasets", "require_dataset", "type_name"]

KEPT = ("pipeline", "filter_cfg", "test_mode", "serialize_data", "max_refetch", "indices", "lazy_init", "_scope_")
"""The settings of a dataset that stay when another dataset takes its place."""
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
    the model takes the folder's. Weights that a loss gives to single classes stay if the folder has these classes, by
    name or, where the config does not name them, by number; else they become one, which is said.
    """
    loader = cfg.get("train_dataloader") or cfg.get("test_dataloader")
    written_for = (next(leaf_datasets(loader["dataset"])), cfg.get("default_scope")) if loader else None
    for name, split in (("train", folder.train), ("val", folder.val), ("test", folder.val)):
        loader = cfg.get(f"{name}_dataloader")
        if loader:
            loader["dataset"] = _replaced(loader["dataset"], folder, split)
        evaluator = cfg.get(f"{name}_evaluator")
        if evaluator:
            cfg[f"{name}_evaluator"] = _metrics(evaluator, cfg.model, folder)
    counts = _ClassCounts(folder, written_for)
    counts.apply(cfg.model)
    if "data_preprocessor" in cfg:
        counts.apply(cfg.data_preprocessor)
    for text in sorted(counts.said):
        notice(text)


def require_dataset(cfg: Config, splits: Sequence[str] = ("train", "val")) -> None:
    """Check that the dataset which ``cfg`` names for ``splits`` ("train", "val", "test") is on disk.

    Raises:
        UserError: what is missing, where it was looked for, the layout, and the remedy.
    """
    for split in splits:
        for dataset in leaf_datasets((cfg.get(f"{split}_dataloader") or {}).get("dataset", {})):
            root, task = Path(dataset.get("data_root") or ""), _kind(dataset)
            prefix = dataset.get("data_prefix", {})
            wanted = [*(prefix.values() if isinstance(prefix, Mapping) else [prefix]), dataset.get("ann_file", "")]
            if not root.exists():
                raise missing_dataset(root, "the folder", task)
            for path in wanted:
                if path and not (root / path).exists():
                    raise missing_dataset(root, path, task)


def leaf_datasets(dataset: Mapping) -> Iterator[Mapping]:
    """Yield the datasets inside wrappers and concatenations."""
    inner = dataset.get("datasets", [dataset["dataset"]] if "dataset" in dataset else None)
    if inner is None:
        yield dataset
    else:
        for wrapped in inner:
            yield from leaf_datasets(wrapped)


def _kind(dataset: Mapping) -> str:
    prefix = dataset.get("data_prefix")
    if isinstance(prefix, Mapping) and "seg_map_path" in prefix:
        return "seg"
    return "det" if str(dataset.get("ann_file", "")).endswith(".json") else "cls"


def _replaced(dataset: Mapping, folder: DatasetFolder, split: Split) -> ConfigDict:
    if "dataset" in dataset:
        return ConfigDict({**dataset, "dataset": _replaced(dataset["dataset"], folder, split)})
    first = next(leaf_datasets(dataset))
    kept = {key: first[key] for key in KEPT if key in first}
    if folder.kind == "seg" and "pipeline" in kept:
        kept["pipeline"] = [_reducing(step, not folder.zero_is_class) for step in kept["pipeline"]]
    elif folder.kind == "cls" and "pipeline" in kept:
        kept["pipeline"] = [_beside(step, folder) for step in kept["pipeline"]]
    return ConfigDict(**kept, data_root=str(folder.root), **_location(folder, split))


def _reducing(step: Mapping, reduced: bool) -> Mapping:
    """A step that states the opposite of its dataset would stop mmseg."""
    return {**step, "reduce_zero_label": reduced} if step.get("reduce_zero_label") is (not reduced) else step


def _beside(step: Mapping, folder: DatasetFolder) -> Mapping:
    """Maps that accompany images lie in the same dataset, and are of its classes."""
    if type_name(step) != "LoadMap":
        return step
    return {**step, "data_root": str(folder.root), "num_classes": len(folder.classes)}


def _location(folder: DatasetFolder, split: Split) -> dict:
    # mmdet draws instances in tuples only.
    metainfo = dict(classes=folder.classes, palette=[tuple(color) for color in folder.palette])
    if folder.kind == "seg":
        return dict(
            type="mixtransfer.MaskFolders",
            stored_classes=folder.classes,
            data_prefix=dict(img_path=split.images, seg_map_path=split.annotations),
            img_suffix=split.image_suffix,
            seg_map_suffix=split.mask_suffix,
            reduce_zero_label=not folder.zero_is_class,
            metainfo=metainfo,
        )
    if folder.kind == "det":
        prefix = dict(img=f"{split.images}/")
        return dict(type="mmdet.CocoDataset", data_prefix=prefix, ann_file=split.annotations, metainfo=metainfo)
    return dict(type="mixtransfer.ClassFolders", data_prefix=split.images, ann_file="", metainfo=metainfo)


def _metrics(evaluator: Mapping | Sequence[Mapping], model: Mapping, folder: DatasetFolder) -> list[ConfigDict]:
    given = [evaluator] if isinstance(evaluator, Mapping) else evaluator
    metrics = [ConfigDict(metric) for metric in given if type_name(metric) in FITTING_METRICS[folder.kind]]
    if not metrics:
        usual = {
            "seg": dict(type="mmseg.IoUMetric", iou_metrics=["mIoU"]),
            "det": dict(type="mmdet.CocoMetric", metric=["bbox", "segm"] if has_masks(model) else ["bbox"]),
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


def type_name(settings: Mapping) -> str:
    """Return the class name of ``type``, given as a name, a scoped name or (new-style configs) the class itself."""
    kind = settings.get("type")
    return getattr(kind, "__name__", str(kind)).rpartition(".")[2]


def has_masks(model: object) -> bool:
    """Return whether a detector has a mask head."""
    if isinstance(model, Mapping):
        return any((key == "mask_head" and bool(value)) or has_masks(value) for key, value in model.items())
    return isinstance(model, (list, tuple)) and any(has_masks(part) for part in model)


def class_info(dataset: Mapping, scope: str | None) -> dict:
    """Return the ``metainfo`` of a dataset in a config, completed by what its class has.

    Args:
        dataset: its settings.
        scope: the library whose dataset it is if its type does not say, "mmseg", "mmdet" or "mmpretrain".
    """
    from mmengine.registry import DATASETS

    from mixtransfer.registry import import_quietly

    kind, info = dataset.get("type"), dataset.get("metainfo") or {}
    if isinstance(kind, str) and scope and not info.get("classes"):
        import_quietly(f"{scope}.datasets")
        kind = DATASETS.get(kind if "." in kind else f"{scope}.{kind}")
    return {**(getattr(kind, "METAINFO", None) or {}), **info}


class _ClassCounts:
    """Sets ``num_classes`` throughout a model, and what is as long.

    Args:
        folder: the new classes.
        written_for: settings and library of the dataset that the config has, see :func:`class_info`.
    """

    def __init__(self, folder: DatasetFolder, written_for: tuple[Mapping, str | None] | None):
        self.folder, self.count, self.written_for = folder, len(folder.classes), written_for
        self.said: set[str] = set()

    def apply(self, part: object, was: int | None = None, backbone: bool = False) -> None:
        """Change ``part`` in place; a backbone's own counts only where the backbone is the classifier."""
        if isinstance(part, Mapping):
            if "num_classes" in part and not (backbone and self.folder.kind != "cls"):
                was = part["num_classes"]
                # A segmentor's head may repeat its number of classes; one channel with a sigmoid is a choice.
                if "loss_decode" in part and part.get("out_channels") == was != 1:
                    part["out_channels"] = self.count
                part["num_classes"] = self.count
            if "num_things_classes" in part:
                was = part["num_things_classes"] + part["num_stuff_classes"]
                part["num_things_classes"], part["num_stuff_classes"] = self.count, 0
            weights = part.get("class_weight")
            if isinstance(weights, (list, tuple)) and was is not None:
                part["class_weight"] = self._weights(list(weights), was)
            for key, value in part.items():
                if key not in NO_CLASS_HEADS:
                    self.apply(value, was, backbone=key == "backbone")
        elif isinstance(part, (list, tuple)):
            for value in part:
                self.apply(value, was)

    def _weights(self, weights: list[float], was: int) -> list[float]:
        if len(weights) not in (was, was + 1):
            return weights
        # Some losses have one more, for what is no class.
        own, rest = weights[:was], weights[was:]
        names = tuple(class_info(*self.written_for).get("classes") or ()) if self.written_for else ()
        named = names if len(names) == was else ()
        if named and set(named) == set(self.folder.classes):
            return [own[named.index(name)] for name in self.folder.classes] + rest
        if was == self.count and not named:
            return weights
        if any(weight != 1 for weight in own):
            what = f"the config's {was} classes" if named else f"{was} classes"
            self.said.add(f"class_weight is of {what}, the data has {_some(self.folder.classes)}; all weights become 1")
        return [1.0] * self.count + rest


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
