"""Sizes of necks and heads from what the backbone declares, instead of numbers copied into configs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

from mixtransfer.datasets.configure import type_name
from mixtransfer.errors import UserError
from mixtransfer.registry import MODELS

__all__ = ["fit_channels"]


def fit_channels(cfg: Config) -> None:
    """Make a config's neck, heads and token classifier follow its backbone and its classes, in place.

    A neck takes the channels of all outputs; without one, heads take those of the outputs that ``in_index`` selects,
    and Mask2Former's those of all.
    A segmentor's neck that only rescales maps, and is as wide as the last of them, stays so, and its heads with it.
    The token classifier takes the classes of a segmentor's head, or those of a detector's and background; without a
    hook that trains it, it goes. Models whose backbone has no ``arch`` stay as they are.

    Raises:
        UserError: the architecture or one of its options is unknown, the images have other channels, or a head selects
            an output that there is not.
    """
    model = cfg.model
    backbone = model.get("backbone")
    if not isinstance(backbone, ConfigDict) or "type" not in backbone or "arch" not in backbone:
        return
    read, mean = backbone.get("in_channels", 3), (model.get("data_preprocessor") or {}).get("mean")
    if mean and len(mean) != read:
        raise UserError(f"backbone.in_channels={read}: data_preprocessor.mean is of images with {len(mean)} channels")
    # Without weights: this is about the sizes that the class computes from its options.
    with torch.device("meta"):
        built = MODELS.build({**backbone, "init_cfg": None, "token_classifier": None})
    channels = list(built.out_channels)
    if isinstance(model.get("neck"), ConfigDict):
        if "in_channels" in model.neck:
            written, model.neck.in_channels = model.neck.in_channels, channels
            if type_name(model.neck) == "MultiLevelNeck" and model.neck.out_channels == written[-1]:
                _widen(model, channels[-1])
    else:
        heads = [
            head for name in ("decode_head", "auxiliary_head", "panoptic_head") for head in _dicts(model.get(name))
        ]
        for head in heads:
            index = head.get("in_index", -1)
            if "in_index" not in head and isinstance(head.get("in_channels"), Sequence):
                # Mask2Former's reads all maps, and wants to know their strides.
                head.in_channels, head.strides = channels, list(built.strides)
                continue
            try:
                head.in_channels = [channels[i] for i in index] if isinstance(index, Sequence) else channels[index]
            except IndexError:
                text = f"in_index={index} of {head.get('type')}: the backbone returns {len(channels)} outputs"
                raise UserError(f"{text}, numbered from 0") from None
    hooks = [hook for hook in cfg.get("custom_hooks") or [] if type_name(hook) == "TokenMixHook"]
    if not any(hook.get("prob", 1) and hook.get("loss_weight", 1) for hook in hooks):
        backbone.token_classifier = None
    token_classifier: Any = backbone.get("token_classifier")
    if token_classifier:
        if token_classifier.get("stages") is None:
            token_classifier.stages = (len(channels) - 1,)
        segmentor, detector = _dicts(model.get("decode_head")), _dicts(model.get("roi_head", model).get("bbox_head"))
        if segmentor:
            token_classifier.num_classes = segmentor[-1].num_classes
        elif detector:
            token_classifier.num_classes = detector[-1].num_classes + 1
        elif "panoptic_head" in model:
            token_classifier.num_classes = model.panoptic_head.num_things_classes + 1


def _widen(model: Any, width: int) -> None:
    """Make the neck's outputs, and a segmentor's heads on them, ``width`` channels wide."""
    heads = _dicts(model.get("decode_head")) + _dicts(model.get("auxiliary_head"))
    for head in heads:
        head.in_channels = [width] * len(head.in_channels) if isinstance(head.in_channels, Sequence) else width
    if heads:
        model.neck.out_channels = width


def _dicts(part: Any) -> list[Any]:
    return [] if part is None else [part] if isinstance(part, ConfigDict) else list(part)
