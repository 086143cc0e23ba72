"""Checks of a config's data before anything is built: those of ``data check`` that are cheap."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mixtransfer.datasets.coco import Findings, find_problems, read_coco, sound_content
from mixtransfer.datasets.configure import class_info, has_masks, leaf_datasets, type_name
from mixtransfer.datasets.learnable import require_learnable
from mixtransfer.datasets.stored import Unusable, image_size
from mixtransfer.datasets.transforms import add_checks
from mixtransfer.errors import UserError
from mixtransfer.progress import notice, progress_line

__all__ = ["prepare_data"]

#: Purpose of a config -> the splits that are read for it; single images need none, others the training split.
READ = {"train": ("train", "val"), "resume": ("train", "val"), "predict": ()} | dict.fromkeys(
    ("test", "format"), ("test",)
)


def prepare_data(cfg: Config, purpose: str) -> None:
    """Check a config's data, and let it be read soundly, in place.

    COCO files are judged completely; mmdet and its metric then read sound copies in the work directory. Masks and
    images are judged as they are loaded, some masks at once where the config trains.

    Args:
        cfg: the config, on its data.
        purpose: one of :data:`~mixtransfer.engine.build.PURPOSES`.

    Raises:
        UserError: naming the file.
    """
    if purpose in ("train", "resume"):
        require_learnable(cfg)
    _sound_annotations(cfg, READ.get(purpose, ("train",)), annotated=purpose != "format")
    add_checks(cfg)
    if purpose in ("train", "resume") and cfg.get("default_scope") == "mmpretrain":
        from mixtransfer.datasets.resizing import resize_quickly

        resize_quickly(cfg)


def _sound_annotations(cfg: Config, splits: Sequence[str], annotated: bool) -> None:
    copies: dict[Path, str] = {}
    masks = has_masks(cfg.model) or _loads_masks(cfg.get("train_dataloader"))
    for split in splits:
        for dataset in leaf_datasets((cfg.get(f"{split}_dataloader") or {}).get("dataset") or {}):
            if type_name(dataset) != "CocoDataset" or not dataset.get("ann_file"):
                continue
            file = Path(dataset.get("data_root") or "") / dataset["ann_file"]
            if not file.is_file():
                continue
            if file.resolve() not in copies:
                path = Path(cfg.work_dir).resolve() / "annotations" / f"{len(copies)}_{file.name}"
                _write_sound(cfg, dataset, file, path, masks, annotated)
                copies[file.resolve()] = str(path)
            dataset["ann_file"] = copies[file.resolve()]
    for split in splits:
        _replace(cfg.get(f"{split}_evaluator"), copies)


def _loads_masks(part: Any) -> bool:
    if isinstance(part, Mapping):
        return bool(part.get("with_mask")) or any(map(_loads_masks, part.values()))
    return isinstance(part, (list, tuple)) and any(map(_loads_masks, part))


def _replace(part: Any, copies: Mapping[Path, str]) -> None:
    for metric in [part] if isinstance(part, Mapping) else part or []:
        file = metric.get("ann_file")
        if file and Path(file).resolve() in copies:
            metric["ann_file"] = copies[Path(file).resolve()]


def _write_sound(cfg: Config, dataset: Mapping, file: Path, path: Path, masks: bool, annotated: bool) -> None:
    content = read_coco(file, annotated)
    found = find_problems(content, str(file), progress_line(f"checking {file.name}"))
    if not annotated:
        del found.problems["no annotations"]
    fatal = found.fatal(masks)
    if fatal:
        kind, places = next(iter(fatal.items()))
        raise UserError(
            f"{kind}: {places[0]}; {sum(map(len, fatal.values()))} problems in all, see mixtransfer data check"
        )
    if masks and annotated and not found.masks:
        raise UserError(f"{file}: no annotation has a segmentation, the model has a mask head; use one for boxes only")
    _say_left_out(found, masks, file)
    classes = tuple(class_info(dataset, cfg.get("default_scope")).get("classes") or ())
    _match_categories(file, content, classes, annotated)
    prefix = dataset.get("data_prefix") or {}
    folder = Path(dataset.get("data_root") or "") / prefix.get("img", "")
    sound = sound_content(content, classes, masks, _sizes_in_files(content, folder))
    # Distributed processes, maybe on several machines, write the same file at the same time.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(sound), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another --work-dir") from error


def _match_categories(file: Path, content: Mapping, classes: Sequence[str], annotated: bool) -> None:
    """mmdet leaves out what is of no class that it knows, and trains classes without instances like others."""
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    if not set(names.values()) & set(classes):
        raise UserError(
            f"{file}: none of its categories ({', '.join(list(names.values())[:10])}) is a class of the dataset in the"
            f" config ({', '.join(classes[:10])}); use --data, which takes them from the file"
        )
    strange = sorted(set(names.values()) - set(classes))
    if strange:
        notice(f"{file}: categories that are no class of the config's dataset are left out: {', '.join(strange[:10])}")
    used = {names.get(annotation.get("category_id")) for annotation in content["annotations"]}
    unused = [name for name in classes if name not in used]
    if unused and annotated:
        notice(f"{file}: classes without an instance: {', '.join(unused[:10])}")


def _say_left_out(found: Findings, masks: bool, file: Path) -> None:
    for kind, places in found.problems.items():
        if kind not in found.fatal(masks):
            notice(f"{kind}: {len(places)} of {found.annotations} annotations, first {places[0]}")


def _sizes_in_files(content: dict, folder: Path) -> dict[str, tuple[int, int]]:
    """Return (height, width), by file name, of the images whose entry in a COCO file states none.

    Raises:
        UserError: one of them cannot be read.
    """
    unsized = [str(image["file_name"]) for image in content["images"] if image.get("height") is None]
    sizes = {}
    for name in unsized:
        try:
            sizes[name] = image_size(folder / name)
        except Unusable as error:
            raise UserError(f"{folder / name}: {error}") from error
    return sizes
