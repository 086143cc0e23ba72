"""``--mixing`` and ``--token-mix``: a mixing method for any classifier's recipe, token mixing for any dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixtransfer.engine.config import CELLED
from mixtransfer.errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["use_mixing", "use_token_mix"]

HOOK = "TokenMixHook"
#: Sides in pixels of the cells that regions are drawn on, and the fewest cells that an image should have along a side.
CELL, CELLS = 32, 8


def use_mixing(cfg: Config, name: str, path: str) -> None:
    """Put a mixing method with its published settings into a classifier's config, in place; "none" mixes nothing.

    A teacher stays only if the method reads what it says.

    Args:
        cfg: the config.
        name: a method, e.g. "TransMix".
        path: the config's file, for messages.

    Raises:
        UserError: the config is of no classifier that mixes.
    """
    if _name(cfg.model) not in CELLED:
        raise UserError(f"--mixing: {path} trains no classifier that mixes; --token-mix is for dense recipes")
    cfg.model.mixing = None if name == "none" else dict(type=f"mixtransfer.{name.removeprefix('mixtransfer.')}")
    if name != "TokenMix" and _name(cfg.model) in ("MixingClassifier", "DistilledClassifier"):
        cfg.model.pop("teacher", None)


def use_token_mix(cfg: Config, region: str, path: str) -> None:
    """Put token-level mixing into a segmentor's or detector's config, in place; see ``docs/token_mix_hook.md``.

    A hook that is there takes the region; a new one is added, with a token classifier on the backbone's last output.
    A backbone that is not ours mixes without labels and token loss.

    Args:
        cfg: the config.
        region: name of a region that cuts pixels out, e.g. "TokenBox".
        path: the config's file, for messages.

    Raises:
        UserError: the config is of a classifier.
    """
    backbone = cfg.model.get("backbone")
    if not isinstance(backbone, dict) or "type" not in backbone:
        raise UserError(f"--token-mix: {path} trains no segmentor or detector; --mixing is for classifiers")
    wanted = dict(type=region.removeprefix("mixtransfer."))
    hooks = [dict(hook) for hook in cfg.get("custom_hooks") or []]
    for hook in hooks:
        if _name(hook) == HOOK:
            hook["region"] = wanted
    if not any(_name(hook) == HOOK for hook in hooks):
        ours = str(backbone["type"]).startswith("mixtransfer.")
        weight = {} if ours else dict(loss_weight=0)
        hooks.append(dict(type=f"mixtransfer.{HOOK}", region=wanted, cell_size=_cell_size(cfg), **weight))
        if ours:
            # How many classes and which output, fit_channels finds out.
            backbone["token_classifier"] = dict(num_classes=1, stages=None)
    cfg.custom_hooks = hooks


def _name(part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    return getattr(kind, "__name__", str(kind)).rpartition(".")[2]


def _cell_size(cfg: Config) -> int:
    """Return the side of a cell, such that the training images have some cells a side."""
    sides = [min(size) for size in _sizes(cfg.train_dataloader.get("dataset"))]
    return CELL if not sides else max(min(CELL, min(sides) // CELLS), 1)


def _sizes(part: Any) -> list[Sequence[int]]:
    """Return the sizes (height, width) that crops of pipelines, or without any the resizings, name inside a dataset."""
    if isinstance(part, Mapping):
        found = [part[key] for key in ("crop_size", "scale") if _is_size(part.get(key))]
        return found[:1] + [size for value in part.values() for size in _sizes(value)]
    return [size for value in part for size in _sizes(value)] if isinstance(part, list | tuple) else []


def _is_size(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value)
