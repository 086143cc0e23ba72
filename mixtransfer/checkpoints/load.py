"""Loading pretrained weights strictly: every entry is used, dropped by a named rule, or an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.logging import print_log
from torch import Tensor, nn

from mixtransfer.backbones import Backbone
from mixtransfer.checkpoints.convert import OURS, convert
from mixtransfer.checkpoints.read import find_weights, read_checkpoint
from mixtransfer.errors import UserError
from mixtransfer.registry import WEIGHT_INITIALIZERS

__all__ = ["LoadReport", "Pretrained", "load_checkpoint", "load_weights", "recognize_format"]

#: What a dense network never takes from a checkpoint: classifier heads, and our token classifier.
OLD_HEADS = re.compile(r"(head|head_dist|aux_head|classifier|fc|token_classifier)\..+")
SHOWN = 6


@dataclass(frozen=True)
class LoadReport:
    """What became of the entries of a checkpoint, by name."""

    format: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    dropped: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} entries loaded ({self.format} names)"
        for name in ("resized", "dropped", "new"):
            keys = getattr(self, name)
            text += f", {len(keys)} {name}: {_some(keys)}" if keys else ""
        return text


def load_checkpoint(backbone: Backbone, path: str | Path, source: str = "auto", *, trust: bool = False) -> LoadReport:
    """Load a checkpoint file into a backbone, completely or not at all.

    Position tables of another size are resampled. Classifier heads are dropped; a segmentor's or detector's file gives
    the entries under ``backbone.``.

    Args:
        backbone: the network, changed in place.
        path: a ``.safetensors`` or ``torch.save`` file.
        source: the format of its names, or ``"auto"``.
        trust: allow the file to run code.

    Raises:
        UserError: naming each missing, unexpected or misshapen entry.
    """
    weights = find_weights(read_checkpoint(path, trust), str(path))
    return load_weights(backbone, weights, source, str(path))


def load_weights(backbone: Backbone, weights: Mapping[str, Tensor], source: str, name: str) -> LoadReport:
    """Load named tensors into a backbone; see :func:`load_checkpoint`."""
    inside = {key[len("backbone.") :]: value for key, value in weights.items() if key.startswith("backbone.")}
    outside = [key for key in weights if not key.startswith("backbone.")] if inside else []
    weights = inside or dict(weights)
    if source == "auto":
        source = recognize_format(backbone, weights)
    result = convert(weights, backbone.arch, source)
    own = backbone.state_dict()
    unused = type(backbone).dense_only + type(backbone).embed_only
    state, dropped = {}, [*outside, *result.derived]
    for key, value in result.state.items():
        no_place = key not in own and (OLD_HEADS.fullmatch(key) or any(re.fullmatch(p, key) for p in unused))
        if no_place or key.startswith("token_classifier."):
            dropped.append(key)
        else:
            state[key] = value
    before = {key: value.shape for key, value in state.items()}
    state = backbone.resize_loaded(state)
    missing = [key for key in own if key not in state and not backbone.may_be_new(key)]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {_some(keys, 12)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise UserError(f"{name} does not fit {backbone.arch} ({source} names): {'; '.join(problems)}")
    backbone.load_state_dict(state, strict=False)
    new = tuple(key for key in own if key not in state)
    resized = tuple(key for key, shape in before.items() if state[key].shape != shape)
    return LoadReport(source, tuple(state), resized, tuple(dropped), new)


def recognize_format(backbone: Backbone, weights: Mapping[str, Tensor]) -> str:
    """Return the format under whose names most entries of the network are found; ours wins a tie."""
    own = set(backbone.state_dict())

    def found(source: str) -> int:
        try:
            return len(own & set(convert(weights, backbone.arch, source).state))
        except ValueError:
            return -1

    return max([OURS, *type(backbone).formats], key=found)


@WEIGHT_INITIALIZERS.register_module()
class Pretrained:
    """Initialize a backbone from a checkpoint, strictly: ``init_cfg=dict(type="mixtransfer.Pretrained", ...)``.

    Args:
        checkpoint: the file.
        source: the format of its names, or ``"auto"``.
        trust: allow the file to run code.
    """

    def __init__(self, checkpoint: str, source: str = "auto", trust: bool = False):
        self.checkpoint, self.source, self.trust = checkpoint, source, trust

    def __call__(self, module: nn.Module) -> None:
        """Load the checkpoint into ``module``, a backbone."""
        if not isinstance(module, Backbone):
            raise UserError(f"init_cfg type mixtransfer.Pretrained: {type(module).__name__} is no mixtransfer backbone")
        report = load_checkpoint(module, self.checkpoint, self.source, trust=self.trust)
        print_log(f"{self.checkpoint}: {report}", logger="current")


def _some(keys, shown: int = SHOWN) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more
