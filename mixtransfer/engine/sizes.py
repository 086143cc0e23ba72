"""Other sizes of a recipe: what the papers change together with the architecture.

A recipe's ``sizes`` has a row for each architecture that its published files train otherwise than the recipe's own:
``sizes = dict(hornet_base_7x7=dict(drop_path=0.7, layer_decay=0.8))``. A row holds differences only, by the names of
:data:`FIELDS`, or by a path in the config where there is no name for them. In a path a step of a pipeline, or a
scheduler, is addressed by its type: ``"train_dataloader.dataset.pipeline.RandAugment.magnitude_level"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtransfer.datasets.configure import leaf_datasets, type_name
from mixtransfer.errors import UserError, unknown_name

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["FIELDS", "apply_arch", "set_path", "steps"]


def apply_arch(cfg: Config, arch: str, name: str) -> str | None:
    """Make a recipe train another size of its family, in place: the architecture, its weights, and its row of values.

    The file of pretrained weights follows by name. Where the recipe has no row, a classifier's images follow the side
    that the architecture is made for, blocks that are read keep their share of the depth, and scales of a neck that
    rescales maps follow their strides.

    Args:
        cfg: a recipe as read; options are applied afterwards, so that they win.
        arch: an architecture of the recipe's family.
        name: the recipe's file, for messages.

    Returns:
        What a reader should know beside the changes, or None.

    Raises:
        UserError: the recipe has no backbone of ours, or its family no such architecture.
    """
    from mixtransfer.backbones import backbone_class

    model = cfg.model
    named = model.backbone if "arch" in (model.get("backbone") or {}) else model
    if "arch" not in named:
        raise UserError(f"--arch {arch}: {name} has no backbone of ours; set its own options by --cfg-options")
    before = named.arch
    family = backbone_class(before)
    if arch not in family.archs:
        raise unknown_name(f"size of {family.family}, the backbone of {name},", arch, family.archs)
    if arch == before:
        return None
    row: Mapping[str, Any] = (cfg.get("sizes") or {}).get(arch, {})
    named.arch = arch
    _follow(cfg, family, before, arch)
    for field, value in row.items():
        if field in FIELDS:
            FIELDS[field](cfg, value)
        elif "." in field:
            set_path(cfg, field, value)
        else:
            raise unknown_name(f"value in sizes of {name},", field, FIELDS)
    if arch not in (cfg.get("sizes") or {}):
        return f"{name} has no values of its own for {arch}; those of {before} stay"
    return None


def set_path(cfg: Any, path: str, value: Any) -> None:
    """Set the entry of a config at a dotted path; in a list the parts are types of its elements, each there once.

    Raises:
        UserError: nothing, or more than one thing, stands at the path.
    """
    *places, last = path.split(".")
    part = cfg
    for place in places:
        if isinstance(part, list):
            found = [item for item in part if type_name(item) == place]
        else:
            found = [part[place]] if hasattr(part, "get") and place in part else []
        if len(found) != 1:
            raise UserError(f"sizes: {path}: there are {len(found)} entries {place}")
        part = found[0]
    part[last] = value


def steps(cfg: Config, split: str, kind: str) -> Iterator[Any]:
    """Yield the steps of a type in the pipelines of a split, also those inside random choices."""

    def inside(pipeline: Any) -> Iterator[Any]:
        for step in pipeline:
            if isinstance(step, list):
                yield from inside(step)
            else:
                yield from inside(step.get("transforms", ()))
                if type_name(step) == kind:
                    yield step

    loader = cfg.get(f"{split}_dataloader") or {}
    for dataset in leaf_datasets(loader.get("dataset") or {}):
        yield from inside(dataset.get("pipeline", ()))


def _at(path: str) -> Callable[[Any, Any], None]:
    return lambda cfg, value: set_path(cfg, path, value)


def _in_steps(kind: str, key: str) -> Callable[[Any, Any], None]:
    def change(cfg: Any, value: Any) -> None:
        for step in steps(cfg, "train", kind):
            step[key] = value

    return change


def _clip(cfg: Any, norm: float | None) -> None:
    cfg.optim_wrapper.clip_grad = None if norm is None else dict(max_norm=norm)


def _backbone(key: str) -> Callable[[Any, Any], None]:
    # A classifier's recipe may leave all options of its backbone out.
    return lambda cfg, value: cfg.model.setdefault("backbone", {}).update({key: value})


def _paramwise(key: str) -> Callable[[Any, Any], None]:
    return lambda cfg, value: cfg.optim_wrapper.setdefault("paramwise_cfg", {}).update({key: value})


def _warmup(cfg: Any, end: int) -> None:
    """Let the first part of the schedule end, and the second begin, at an epoch or iteration."""
    first, second, *_ = cfg.param_scheduler
    first.end = second.begin = end


def _start(cfg: Any, factor: float) -> None:
    cfg.param_scheduler[0].start_factor = factor


def _average(cfg: Any, decay: float | None) -> None:
    """Average the weights at a decay a step, or not at all."""
    hooks = [hook for hook in cfg.get("custom_hooks") or [] if type_name(hook) != "EMAHook"]
    cfg.custom_hooks = hooks if decay is None else [*hooks, dict(type="EMAHook", momentum=1 - decay)]


def _crop(cfg: Any, side: int) -> None:
    """Train a segmentor on square crops, a classifier on images, of a side; test at sizes in the same proportion."""
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = (side, side)
        for step in steps(cfg, "train", "RandomCrop"):
            step.crop_size = (side, side)
        for split, kind in (("train", "RandomResize"), ("val", "Resize"), ("test", "Resize")):
            for step in steps(cfg, split, kind):
                step.scale = (4 * side, side)
        if cfg.model.test_cfg.mode == "slide":
            cfg.model.test_cfg.update(crop_size=(side, side), stride=(2 * side // 3, 2 * side // 3))
        return
    for step in steps(cfg, "train", "RandomResizedCrop"):
        step.scale = side
    for split in ("val", "test"):
        for center in steps(cfg, split, "CenterCrop"):
            for edge in steps(cfg, split, "ResizeEdge"):
                edge.scale = edge.scale * side // center.crop_size
            center.crop_size = side


#: Names of values in a row of ``sizes`` -> how a config takes them.
FIELDS: dict[str, Callable[[Any, Any], None]] = {
    "drop_path": _backbone("drop_path_rate"),
    "window": _backbone("window"),
    "img_size": _backbone("img_size"),
    "lr": _at("optim_wrapper.optimizer.lr"),
    "weight_decay": _at("optim_wrapper.optimizer.weight_decay"),
    "layer_decay": _paramwise("layer_decay_rate"),
    "layers_above": _paramwise("layers_above"),
    "clip": _clip,
    "batch": _at("train_dataloader.batch_size"),
    "total": _at("auto_scale_lr.base_batch_size"),
    "epochs": _at("train_cfg.max_epochs"),
    "warmup": _warmup,
    "start": _start,
    "last_lr": _at("param_scheduler.CosineAnnealingLR.eta_min"),
    "crop": _crop,
    "erase": _in_steps("RandomErasing", "erase_prob"),
    "magnitude": _in_steps("RandAugment", "magnitude_level"),
    "average": _average,
}


def _follow(cfg: Config, family: Any, before: str, arch: str) -> None:
    """Change what follows from an architecture without a table: the file of weights, images, blocks, scales."""
    backbone: Any = cfg.model.get("backbone") or {}
    old, new = family.archs[before], family.archs[arch]
    if getattr(old, "plain", None) != getattr(new, "plain", None):
        kinds = ("maps of several strides", "one stride")
        raise UserError(
            f"--arch {arch}: has {kinds[new.plain]}, and the recipe is made for {kinds[old.plain]}; take the one for"
            f" {'plain networks, whose name ends in timm_vit' if new.plain else 'pyramids, whose name ends in timm'}"
        )
    # A library's networks have its name in front, which files have not.
    names = [name.rpartition("/")[2] for name in (before, arch)]
    for part in (backbone, cfg.model):
        start: Any = part.get("init_cfg") or {}
        if "checkpoint" in start:
            folder, slash, file = start.checkpoint.rpartition("/")
            follows = file.replace(*names) if names[0] in file else names[1] + Path(file).suffix
            start.checkpoint = folder + slash + follows
    sides = [getattr(spec, "img_size", None) for spec in (old, new)]
    if cfg.default_scope == "mmpretrain" and sides[0] != sides[1] and isinstance(sides[1], int):
        _crop(cfg, sides[1])
    indices = backbone.get("out_indices")
    if indices and max(indices) + 1 == getattr(old, "depth", None):
        backbone.out_indices = tuple((index + 1) * new.depth // old.depth - 1 for index in indices)
    patches = [getattr(spec, "patch", None) for spec in (old, new)]
    neck: Any = cfg.model.get("neck") or {}
    if patches[0] != patches[1] and "scales" in neck:
        neck.scales = [scale * patches[1] / patches[0] for scale in neck.scales]
    elif patches[0] != patches[1] and type_name(neck) == "SimpleFeaturePyramid" and cfg.default_scope == "mmdet":
        raise UserError(
            f"--arch {arch}: has patches of {patches[1]}, and the recipe's pyramid is made for {patches[0]}"
        )
