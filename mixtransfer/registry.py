"""Child registries of scope ``mixtransfer``: configs name our classes as ``type="mixtransfer.NAME"``.

mmengine imports this module where it meets such a name. The modules that hold the classes are imported at the first
look-up, those of necks and heads when one of their names is looked up.
"""

import contextlib
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

from mmengine import registry as root

from mixtransfer.errors import unknown_name

__all__ = [
    "DATASETS",
    "HOOKS",
    "METRICS",
    "MODELS",
    "OPTIM_WRAPPER_CONSTRUCTORS",
    "TRANSFORMS",
    "WEIGHT_INITIALIZERS",
    "build",
    "import_quietly",
]

SCOPE = "mixtransfer"
#: Our segmentor, necks and heads on mmdet's and mmseg's, with their modules, which import such a library: seconds.
HEADS = {
    "EncoderDecoder": "transfer.segmentor",
    "FCNMaskHead": "transfer.mask_head",
    "FPNHead": "transfer.level_heads",
    "HorFPN": "transfer.hornet_heads",
    "HorUPerHead": "transfer.hornet_heads",
    "LayerNorm2d": "transfer.simple_feature_pyramid",
    "LevelwiseSegformerHead": "transfer.level_heads",
    "PSPHead": "transfer.level_heads",
    "SegFormerHead": "transfer.segformer_head",
    "SimpleFeaturePyramid": "transfer.simple_feature_pyramid",
    "UPerHead": "transfer.uper_head",
}
#: Transforms that extend a library's, with their modules.
STEPS = {
    "LoadLabels": "datasets.label_maps",
    "RandomResizedCrop": "datasets.resizing",
    **dict.fromkeys(("LoadMap", "SwapBackground", "TracePixels"), "datasets.image_maps"),
}
T = TypeVar("T")


class _Late(root.Registry):
    """A registry that imports the modules of :data:`HEADS` and :data:`STEPS` when one of their names is looked up."""

    def get(self, key: str) -> type | None:
        """Return the class of this name; None where there is none."""
        module = {**HEADS, **STEPS}.get(key.removeprefix(f"{SCOPE}."))
        if module is not None:
            importlib.import_module(f"mixtransfer.{module}")
        return super().get(key)


def _child(parent: root.Registry, *locations: str, kind: type[root.Registry] = root.Registry) -> root.Registry:
    return kind(parent.name, parent=parent, scope=SCOPE, locations=[f"mixtransfer.{x}" for x in locations])


def import_quietly(module: str) -> ModuleType:
    """Import a module of a library that announces on standard output which optional package it lacks."""
    with contextlib.redirect_stdout(None):
        return importlib.import_module(module)


MODELS = _child(root.MODELS, "backbones", "pretrain", "mixing", kind=_Late)
HOOKS = _child(root.HOOKS, "engine.hooks", "transfer", "pretrain")
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS, "engine.optim", "pretrain")
WEIGHT_INITIALIZERS = _child(root.WEIGHT_INITIALIZERS, "checkpoints.load", "pretrain.initialize")
DATASETS = _child(root.DATASETS, "datasets.sets")
TRANSFORMS = _child(root.TRANSFORMS, "datasets.transforms", "pretrain", kind=_Late)
METRICS = _child(root.METRICS, "evaluation.metrics")


def build(config: Mapping[str, Any] | T, base: type[T]) -> T:
    """Build the region, target or method that ``config`` names; an instance of ``base`` is returned as it is.

    Names are ours, whatever OpenMMLab's default scope is.

    Raises:
        UserError: no such name.
    """
    if isinstance(config, base):
        return config
    options = dict(config)
    name = options.pop("type").removeprefix("mixtransfer.")
    known = {key: cls for key, cls in MODELS.module_dict.items() if isinstance(cls, type) and issubclass(cls, base)}
    if name not in known:
        raise unknown_name(f"mixing {base.__name__.lower().replace('mixing', 'method')}", name, known)
    return known[name](**options)
