"""Loading pretrained weights strictly: every entry is used, dropped by a named rule, or an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mixtransfer.backbones import Backbone
from mixtransfer.backbones.foreign import WrappedBackbone
from mixtransfer.checkpoints.fit import FLOATS, HEAD, FittedState, account_for, drop_rule, misfits, shorten
from mixtransfer.checkpoints.read import read_checkpoint
from mixtransfer.checkpoints.rename import OURS, rename
from mixtransfer.checkpoints.select import Selection, select_weights
from mixtransfer.checkpoints.verify import nonfinite
from mixtransfer.errors import UserError
from mixtransfer.registry import WEIGHT_INITIALIZERS

__all__ = [
    "LoadReport",
    "Pretrained",
    "check_numbers",
    "fit_file",
    "fitting_weights",
    "load_checkpoint",
    "load_strictly",
    "present_names",
    "recognize_format",
    "without_unread",
]

#: Entries of a segmentor's or detector's state that training adds and testing does not need.
OPTIONAL = "backbone.token_classifier."


@dataclass(frozen=True)
class LoadReport:
    """The fate of the entries of a checkpoint, by name."""

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
        UserError: naming each missing, unexpected or misshapen entry, and those that are no finite real numbers.
    """
    fitted = fit_file(backbone, path, source, trust)
    own = backbone.state_dict()
    backbone.load_state_dict({**{key: own[key] for key in fitted.new}, **fitted.state})
    dropped = [key for keys in fitted.dropped.values() for key in keys]
    return LoadReport(fitted.source, tuple(fitted.state), tuple(fitted.resized), tuple(dropped), fitted.new)


def fit_file(
    backbone: Backbone,
    path: str | Path,
    source: str = "auto",
    trust: bool = False,
    *,
    head: int | None = None,
    select: Callable[[Any, str], Selection] = select_weights,
) -> FittedState:
    """Read a checkpoint file and fit its entries to a network: a backbone, with a linear head if ``head`` is given.

    Args:
        backbone: the network's backbone; nothing is loaded into it.
        path: a ``.safetensors`` or ``torch.save`` file.
        source: the format of its names, or ``"auto"``.
        trust: allow the file to run code.
        head: classes of the head, see :func:`~mixtransfer.checkpoints.fit.account_for`.
        select: called with the content and the name of the file, returns the weights of the network in it.

    Raises:
        UserError: naming each missing, unexpected or misshapen entry, and those that are no finite real numbers.
    """
    selected = select(read_checkpoint(path, trust), str(path))
    if source == "auto":
        source = recognize_format(backbone, selected.weights)
    fitted = account_for(selected.weights, backbone, source, str(path), head)
    check_numbers(fitted.state, backbone.state_dict(), str(path))
    rules = dict.fromkeys((*selected.dropped, *fitted.dropped))
    dropped = {rule: [*selected.dropped.get(rule, ()), *fitted.dropped.get(rule, ())] for rule in rules}
    return replace(fitted, dropped=dropped)


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

    formats = [*type(backbone).formats()]
    # A library's reader knows other names too, which nothing of it has; ours have their own beginning.
    strange = isinstance(backbone, WrappedBackbone) and not weights.keys() & backbone.state_dict().keys()
    return max([*formats, OURS] if strange else [OURS, *formats], key=fit)


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Load the weights of a whole model, every entry; only those of the token classifier may be absent or extra.

    Raises:
        UserError: see :func:`fitting_weights`.
    """
    model.load_state_dict(fitting_weights(model, weights, name), strict=False)


def fitting_weights(model: nn.Module, weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return those of ``weights`` that a whole model takes, under its present names; nothing is loaded.

    Published segmentors and detectors fit too: their backbone may have the names of any format that its family knows,
    and entries that nothing reads are left out by rule, see :func:`without_unread`.

    Raises:
        UserError: naming the missing, unexpected and misshapen entries, and those that are no finite real numbers.
    """
    own, weights = model.state_dict(), without_unread(model, present_names(model, weights), name)
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
    kept = {key: value for key, value in weights.items() if key in own}
    check_numbers(kept, own, name)
    return kept


def without_unread(model: nn.Module, weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the entries of a whole model with its backbone's under our names, without what no forward pass reads.

    Rules take an entry only if the model has none of its name: tables that the backbone computes itself, its parts for
    the other use, and parts that a head's published class builds and leaves unused (``unread`` of its module). They are
    said in the log.
    """
    own, dropped = model.state_dict().keys(), {}
    unread = {f"{path}.{entry}" for path, part in model.named_modules() for entry in getattr(part, "unread", ())}
    for key in weights.keys() & unread - own:
        dropped.setdefault("parts that the head does not read", []).append(key)
    result = {key: value for key, value in weights.items() if key in own or key not in unread}
    backbone, front = getattr(model, "backbone", None), "backbone."
    strange = [key for key in result if key.startswith(front) and key not in own and not key.startswith(OPTIONAL)]
    if isinstance(backbone, Backbone) and strange:
        inside = {key.removeprefix(front): result.pop(key) for key in [*result] if key.startswith(front)}
        ours = rename(inside, backbone.arch, recognize_format(backbone, inside))
        if ours.derived:
            dropped["derived (recomputed)"] = [front + key for key in ours.derived]
        for key, value in ours.state.items():
            rule = None if front + key in own or (front + key).startswith(OPTIONAL) else drop_rule(key, backbone)
            if rule:
                dropped.setdefault(rule, []).append(front + key)
            else:
                result[front + key] = value
    for rule, keys in dropped.items():
        print_log(f"{name}: {len(keys)} entries left out, {rule}: {shorten(sorted(keys))}", logger="current")
    return result


def present_names(model: nn.Module, weights: Mapping[str, Tensor], front: str = "") -> dict[str, Tensor]:
    """Return entries under the model's present names where an earlier version had others; ``front`` precedes all."""
    result = dict(weights)
    for old, new in getattr(model, "former_names", {}).items():
        old, new = front + old, front + new
        result = {new + key.removeprefix(old) if key.startswith(old) else key: v for key, v in result.items()}
    return result


def check_numbers(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> None:
    """Make sure that weights are finite real numbers, and whole ones exactly where the model's ``own`` are.

    Heads, which ``own`` may lack, hold no whole numbers.

    Raises:
        UserError: naming the entries that are not.
    """
    odd = [
        f"{key} ({str(value.dtype)[6:]})"
        for key, value in weights.items()
        if (value.dtype in FLOATS) != (key not in own or own[key].is_floating_point()) or value.is_complex()
    ]
    if odd:
        raise UserError(f"{name}: {len(odd)} weights are numbers of another kind than the model's: {shorten(odd)}")
    if bad := nonfinite(weights):
        raise UserError(
            f"{name}: {len(bad)} entries hold NaN or infinite values: {shorten(bad)}; the training broke down, take an"
            " earlier checkpoint"
        )


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
