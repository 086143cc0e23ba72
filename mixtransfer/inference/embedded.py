"""The config inside a checkpoint, read as data: no statement of it is run, and no type of it but known ones is built.

mmengine keeps a training's config in its checkpoints as the text of a Python file. A checkpoint may come from anyone,
and libraries turn some texts of a config into code: the registry imports the module of a type that it does not know,
mmcv evaluates the name of a suppression. So the text is parsed and its literals are read, and each type in the parts
that are built must be a class that the libraries registered.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine import registry as root
from mmengine.config import Config
from mmengine.registry import Registry

from mixtransfer.engine.cfg_options import literal
from mixtransfer.errors import UserError
from mixtransfer.registry import HEADS, SCOPE, STEPS, import_quietly

__all__ = ["embedded_config", "require_known_types"]

#: Classes of ours that are registered when they are looked up.
LATE = {*HEADS, *STEPS}
#: What a model needs of a config to answer about images.
PARTS = ("default_scope", "model", "data_preprocessor", "test_dataloader", "val_dataloader", "custom_imports")
SCOPES = ("mixtransfer", "mmseg", "mmdet", "mmpretrain")
#: Where the classes may be defined; mmcv registers torch's layers.
HOMES = (*SCOPES, "mmengine", "mmcv", "torch")
#: Modules that read pickles which a config names, or evaluate its texts.
UNSAFE = (
    "mmpretrain.models.multimodal",
    "mmpretrain.models.retrievers",
    "mmpretrain.datasets.transforms.processing.torchvision",
    "mmdet.models.task_modules.tracking",
)
#: Types that are no classes: suppressions, which mmcv looks up among its ops.
SUPPRESSIONS = ("nms", "soft_nms", "nms_match")
LONGEST = 1 << 22


def embedded_config(content: Mapping[str, Any], name: str, trust: bool = False) -> Config:
    """Return what a model needs of the config that a checkpoint of training holds.

    Args:
        content: from :func:`~mixtransfer.checkpoints.read.read_checkpoint`.
        name: the checkpoint, for messages.
        trust: whether modules that it names as ``custom_imports`` may be imported, and any type be built.

    Raises:
        UserError: it holds no config, one that is no plain text of settings, or, without ``trust``, unknown types.
    """
    meta = content.get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        raise UserError(
            f"{name}: holds no config (converted weights and those of other tools have none); 'mixtransfer visualize"
            " predict CONFIG CHECKPOINT IMAGES' takes it from a file"
        )
    entries = _entries(text, name)
    if not isinstance(entries.get("model"), dict) or not isinstance(entries.get("default_scope"), str):
        raise UserError(f"{name}: its config has no model or no default_scope; give a checkpoint of a training")
    if not entries.get("test_dataloader"):
        entries["test_dataloader"] = entries.get("val_dataloader")
    if not trust:
        entries.pop("custom_imports", None)
        require_known_types(entries, name)
    return Config(entries)


def _entries(text: str, name: str) -> dict[str, Any]:
    entries = {}
    try:
        if len(text) > LONGEST:
            raise ValueError
        for statement in ast.parse(text).body:
            if not isinstance(statement, ast.Assign) or not all(isinstance(t, ast.Name) for t in statement.targets):
                raise ValueError
            for target in statement.targets:
                if target.id in PARTS:
                    entries[target.id] = literal(statement.value)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise UserError(
            f"{name}: its config is no list of settings; 'mixtransfer visualize predict CONFIG CHECKPOINT IMAGES' takes"
            " one from a file"
        ) from None
    return entries


def require_known_types(entries: Mapping[str, Any], name: str) -> None:
    """Refuse a config with a type that is no class of the libraries or of ours, in the parts that are built.

    Raises:
        UserError: naming the type and its place.
    """
    scope = entries["default_scope"]
    if scope not in SCOPES:
        raise UserError(f"{name}: default_scope={scope!r} of its config; known are {', '.join(SCOPES)}")
    import_quietly(f"{scope}.datasets")
    pipeline = _pipeline(entries)
    for part, place, roots in (
        (entries["model"], "model", (root.MODELS, root.TASK_UTILS, root.WEIGHT_INITIALIZERS)),
        (entries.get("data_preprocessor") or {}, "data_preprocessor", (root.MODELS,)),
        (pipeline, "test_dataloader.dataset.pipeline", (root.TRANSFORMS,)),
    ):
        for where, kind in _types(part, place):
            if not _is_known(kind, roots, scope):
                raise UserError(
                    f"{name}: its config has the type {str(kind)[:80]!r} at {where}, which is no class of mixtransfer"
                    " or OpenMMLab; pass --trust (trust=True) only if you know its author"
                )


def _pipeline(entries: Mapping[str, Any]) -> Any:
    dataset = (entries.get("test_dataloader") or {}).get("dataset") or {}
    while isinstance(dataset, Mapping) and "dataset" in dataset:
        dataset = dataset["dataset"]
    return dataset.get("pipeline") or []


def _types(part: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of each type, and of what a loss would read from a file."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            where = f"{place}.{key}"
            if key == "type" or (key == "class_weight" and isinstance(value, str)):
                yield where, value
            yield from _types(value, where)
    elif isinstance(part, list | tuple):
        for number, value in enumerate(part):
            yield from _types(value, f"{place}.{number}")


def _is_known(kind: Any, roots: tuple[Registry, ...], scope: str) -> bool:
    if not isinstance(kind, str):
        return False
    if kind in SUPPRESSIONS:
        return True
    home, _, short = kind.rpartition(".")
    scopes = {home} if home in HOMES else {scope, "mmengine", "mmcv", "mixtransfer", *SCOPES}
    for registry in roots:
        for child in (registry, *registry.children.values()):
            if child.scope in SCOPES:
                child.import_from_location()
            if child.scope == SCOPE == home and short in LATE:
                child.get(short)  # ours are registered when they are looked up
            found = child.module_dict.get(short)
            if found is None or (child.scope not in scopes and child is not registry):
                continue
            module = getattr(found, "__module__", "")
            # Configs of the libraries' new style name classes by their modules.
            named = home in ("", *HOMES) or kind == f"{module}.{getattr(found, '__name__', '')}"
            if named and module.partition(".")[0] in HOMES and not module.startswith(UNSAFE):
                return True
    return _is_op(kind)


def _is_op(kind: str) -> bool:
    """Return whether a name is one of mmcv's layers, which RoI extractors look up there."""
    from torch import nn

    found = getattr(import_quietly("mmcv.ops"), kind, None) if kind.isidentifier() else None
    return isinstance(found, type) and issubclass(found, nn.Module)
