"""Loading pretrained weights strictly: every entry is used, dropped by a named rule, or an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.logging import print_log
from torch import Tensor, nn

from mixtransfer.backbones import Backbone
from mixtransfer.checkpoints.fit import HEAD, account_for, misfits, shorten
from mixtransfer.checkpoints.read import read_checkpoint
from mixtransfer.checkpoints.rename import OURS, rename
from mixtransfer.checkpoints.select import Selection, select_weights
from mixtransfer.errors import UserError
from mixtransfer.registry import WEIGHT_INITIALIZERS

__all__ = ["LoadReport", "Pretrained", "is_resumable", "load_checkpoint", "load_strictly", "recognize_format"]

#: Entries of a segmentor's or detector's state that training adds and testing does not need.
OPTIONAL = "backbone.token_classifier."


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
            text += f", {len(keys)} {name}: {shorten(keys)}" if keys else ""
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
    return _load(backbone, select_weights(read_checkpoint(path, trust), str(path)), source, str(path))


def _load(backbone: Backbone, selected: Selection, source: str, name: str) -> LoadReport:
    if source == "auto":
        source = recognize_format(backbone, selected.weights)
    account = account_for(selected.weights, backbone, source, name)
    backbone.load_state_dict(account.state, strict=False)
    dropped = [key for keys in (*selected.dropped.values(), *account.dropped.values()) for key in keys]
    return LoadReport(source, tuple(account.state), tuple(account.resized), tuple(dropped), account.new)


def recognize_format(backbone: Backbone, weights: Mapping[str, Tensor]) -> str:
    """Return the format under whose names most entries of the network, and its head, are found; ours wins a tie."""
    own = {*backbone.state_dict(), *HEAD}
    dense = {key for key in own if any(re.fullmatch(pattern, key) for pattern in backbone.dense_only)}

    def fit(source: str) -> tuple[int, int, int]:
        try:
            keys = rename(weights, backbone.arch, source).state.keys()
        except ValueError:
            return -1, 0, 0
        # Norms of some outputs only speak against a format: the last one may be a classifier's there.
        partial = len(dense - keys) if dense & keys else 0
        return len(own & keys), -len(keys - own), -partial

    return max([OURS, *type(backbone).formats], key=fit)


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Load the weights of a whole model, every entry; only those of the token classifier may be absent or extra.

    Raises:
        UserError: naming the missing, unexpected and misshapen entries.
    """
    own = model.state_dict()
    for old, new in getattr(model, "former_names", {}).items():
        weights = {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in weights.items()}
    problems = misfits(
        missing=[key for key in own if key not in weights and not key.startswith(OPTIONAL)],
        unexpected=[key for key in weights if key not in own and not key.startswith(OPTIONAL)],
        misshapen=[
            f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
            for key, value in weights.items()
            if key in own and value.shape != own[key].shape
        ],
    )
    if problems:
        raise UserError(
            f"{name} does not fit the model: {problems}; use the config, --data and --cfg-options that it"
            " was trained with"
        )
    model.load_state_dict({key: value for key, value in weights.items() if key in own}, strict=False)


def is_resumable(content: dict) -> bool:
    """Tell whether a checkpoint holds the state of a training, not only weights."""
    return {"meta", "optimizer", "message_hub", "param_schedulers"} <= content.keys() and "iter" in content["meta"]


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
