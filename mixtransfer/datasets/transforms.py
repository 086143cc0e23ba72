"""Samples are looked at as they are loaded: the size of images, and what masks store, before anything wraps around."""

from __future__ import annotations

from collections.abc import Mapping

from mmcv.transforms import BaseTransform
from mmengine.config import Config, ConfigDict

from mixtransfer.datasets.configure import type_name
from mixtransfer.datasets.stored import Unusable, require_size
from mixtransfer.errors import UserError
from mixtransfer.registry import TRANSFORMS

__all__ = ["SEE_CHECK", "CheckImage", "add_checks"]

SEE_CHECK = "see mixtransfer data check"


@TRANSFORMS.register_module()
class CheckImage(BaseTransform):
    """Stop at an image that cannot be used, or that has not the size that its annotations state.

    :func:`add_checks` puts it right after the image is loaded.

    Raises:
        UserError: naming the image.
    """

    def transform(self, results: dict) -> dict:
        """Return ``results`` as they are."""
        size = tuple(results["ori_shape"][:2])
        try:
            require_size(size)
        except Unusable as error:
            raise UserError(f"{results['img_path']}: {error}; {SEE_CHECK}") from error
        stated = results.get("height"), results.get("width")
        if None not in stated and stated != size:
            raise UserError(
                f"{results['img_path']}: the image has {size[0]}x{size[1]} pixels as it is loaded, its annotations"
                f" state {stated[0]}x{stated[1]}; {SEE_CHECK}"
            )
        return results


def add_checks(cfg: Config) -> None:
    """Let every pipeline of a config look at what it loads, in place: images always, masks of a segmentor."""
    heads = cfg.model.get("decode_head")
    head = heads if isinstance(heads, Mapping) or not heads else heads[-1]
    for split in ("train", "val", "test"):
        _add(cfg.get(f"{split}_dataloader") or {}, head and head.num_classes)


def _add(part: object, classes: int | None) -> None:
    if isinstance(part, Mapping):
        for value in part.values():
            _add(value, classes)
    elif isinstance(part, list):
        for value in part:
            _add(value, classes)
        for place in reversed(range(len(part))):
            step = part[place]
            if isinstance(step, Mapping) and type_name(step) == "LoadImageFromFile":
                check = ConfigDict(type="mixtransfer.CheckImage")
                # Configs share pipelines between splits.
                if part[place + 1 : place + 2] != [check]:
                    part.insert(place + 1, check)
            elif isinstance(step, Mapping) and type_name(step) == "LoadAnnotations" and classes:
                part[place] = ConfigDict({**step, "type": "mixtransfer.LoadLabels", "num_classes": classes})
