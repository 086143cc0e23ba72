"""Accounting for every entry of a checkpoint: mapped, resized, dropped by a named rule, or an error that lists it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixtransfer.backbones import Backbone
from mixtransfer.checkpoints.adapt_input import resize_input
from mixtransfer.checkpoints.recognize import group_name
from mixtransfer.checkpoints.rename import Renamed, absent_from, rename
from mixtransfer.checkpoints.select import matches, rule_for
from mixtransfer.errors import UserError

__all__ = [
    "AUX_HEAD",
    "FLOATS",
    "HEAD",
    "FittedState",
    "account_for",
    "drop_rule",
    "fill",
    "fit",
    "misfits",
    "shorten",
]

HEAD = ("head.weight", "head.bias")
#: Entries that options add to any backbone, and no published file has.
OPTIONS = (r"token_classifier\..+", r"output_norm\d+\..+")
#: Said where a position table does not fit.
OBLONG = "; tables of images that are not square fit networks for that size only, say --img-size HxW (img_size=(H, W))"
CLASSLESS = "; its class token has no position of its own (timm's no_embed_class), as it has in every network here"
#: The second head of networks with ``has_token_logits``.
AUX_HEAD = ("aux_head.weight", "aux_head.bias")
#: Types of weights; those of 8 bits are numbers only together with a scale.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class FittedState:
    """The entries of a checkpoint, fitted to a network; all names are ours except the dropped ones.

    Attributes:
        state: the entries that the network takes, complete.
        source: the format that they came from.
        resized: entry -> old and new shape.
        dropped: rule -> the entries that it left behind, by the names they came with.
        new: entries of the network that the checkpoint may lack, and does.
        filled: entries that have no name in ``source`` and got the network's initial value.
    """

    state: dict[str, Tensor]
    source: str
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dropped: dict[str, list[str]]
    new: tuple[str, ...]
    filled: tuple[str, ...] = ()


def account_for(
    weights: Mapping[str, Tensor], backbone: Backbone, source: str, name: str, head: int | None = None
) -> FittedState:
    """Rename the entries of a checkpoint to ours, and :func:`fit` them.

    Args:
        weights: entries under the names of ``source``, without container and prefix.
        backbone: the network's backbone; nothing is loaded into it.
        source: the format of the names.
        name: the file, for messages.
        head: see :func:`fit`.

    Raises:
        UserError: naming each missing, unexpected or misshapen entry.
    """
    return fit(rename(weights, backbone.arch, source), backbone, source, name, head)


def fit(ours: Renamed, backbone: Backbone, source: str, name: str, head: int | None = None) -> FittedState:
    """Sort the entries of a checkpoint for a network: a backbone, with a linear head of ``head`` classes if given.

    Args:
        ours: the entries under our names.
        backbone: the network's backbone; nothing is loaded into it.
        source: the format that they came from.
        name: the file, for messages.
        head: classes of the linear head on the embedding, and of the one on tokens where the network has it, or None
            for a network without.

    Raises:
        UserError: naming each missing, unexpected or misshapen entry.
    """
    network = backbone.state_dict()
    own = {key: tuple(value.shape) for key, value in network.items()}
    if head is not None:
        shapes = (head, backbone.embed_channels), (head,)
        for names in (HEAD, AUX_HEAD) if backbone.has_token_logits else (HEAD,):
            own |= dict(zip(names, shapes, strict=True))
    dropped = {"derived (recomputed)": list(ours.derived)} if ours.derived else {}
    before = {key: tuple(value.shape) for key, value in ours.state.items()}
    taken = {}
    for key, value in _resized_tables(backbone, ours.state, name).items():
        rule = None if key in own else drop_rule(key, backbone)
        if rule:
            dropped.setdefault(rule, []).append(key)
        else:
            taken[key] = value
    # A library's own reader may give entries other names.
    before = {**{key: tuple(value.shape) for key, value in taken.items()}, **before}
    state = resize_input(taken, own)
    uneven = _uneven(before, state, own)
    absent = [key for key in own if key not in state]
    optional = (*absent_from(type(backbone), source), *OPTIONS, *backbone.dense_only)
    if head is None:
        optional += backbone.embed_only
    halved = {_module(key) for key in state}
    new = [key for key in absent if matches(optional, key)]
    misshapen = [
        key for key, value in state.items() if key in own and (tuple(value.shape) != own[key] or key in uneven)
    ]
    problems = misfits(
        missing=[key for key in absent if key not in new or _module(key) in halved],
        unexpected=[key for key in state if key not in own],
        misshapen=[f"{key} {before[key]} instead of {own[key]}" for key in misshapen],
    )
    if problems:
        tables = [key for key in misshapen if re.search(r"pos(?![a-z]*_bias)", key)]
        classless = any(_is_classless(before[key], own[key]) for key in tables)
        hint = CLASSLESS if classless else OBLONG if tables else ""
        raise UserError(f"{name} does not fit {backbone.arch} ({source} names): {problems}{hint}")
    odd = [
        f"{key} ({str(value.dtype)[6:]})"
        for key, value in state.items()
        if value.dtype not in FLOATS and (key not in network or network[key].is_floating_point())
    ]
    if odd:
        raise UserError(f"{name}: {len(odd)} weights are no floating-point numbers: {shorten(odd)}")
    resized = {key: (before[key], shape) for key in state if (shape := tuple(state[key].shape)) != before[key]}
    return FittedState(state, source, resized, dropped, tuple(new))


def fill(fitted: FittedState, backbone: Backbone) -> FittedState:
    """Give entries that the source's format has no name for the value that a new network starts with."""
    nameless = absent_from(type(backbone), fitted.source)
    filled = [key for key in fitted.new if matches(nameless, key) and not matches(backbone.dense_only, key)]
    if not filled:
        return fitted
    fresh = type(backbone)(arch=backbone.arch, with_embedding=backbone.with_embedding).state_dict()
    return replace(
        fitted,
        state={**fitted.state, **{key: fresh[key] for key in filled}},
        new=tuple(key for key in fitted.new if key not in filled),
        filled=tuple(filled),
    )


def misfits(**entries: Sequence[str]) -> str:
    """Return the entries that do not fit, by kind: ``"1 missing: a; 2 unexpected: b, c"``, or ``""`` if all fit."""
    return "; ".join(f"{len(keys)} {kind}: {shorten(keys, 12)}" for kind, keys in entries.items() if keys)


def shorten(keys: Sequence[str], shown: int = 6) -> str:
    """Return the first keys, and how many more there are."""
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more


def drop_rule(key: str, backbone: Backbone) -> str | None:
    """Return the rule that leaves an entry behind which the backbone does not have, or None."""
    if matches((*backbone.dense_only, *backbone.embed_only), key):
        return "parts of the other use (dense or classification)"
    return rule_for(key)


def _resized_tables(backbone: Backbone, state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    with torch.no_grad():
        try:
            return backbone.resize_loaded(state)
        except (RuntimeError, IndexError, ValueError) as error:
            # A family resamples what has the right form; a table of another form is misshapen, not ours to guess.
            raise UserError(f"{name} does not fit {backbone.arch}: a table cannot be resampled ({error})") from None


def _is_classless(table: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Tell whether a position table, (1, tokens, channels), lacks only the rows of the one or two class tokens."""
    rest = len(table) == len(own) == 3 and own[1] - table[1]
    return rest in (1, 2) and math.isqrt(table[1]) ** 2 == table[1] and table[2] == own[2]


def _uneven(before: Mapping[str, tuple], state: Mapping[str, Tensor], own: Mapping[str, tuple]) -> set[str]:
    """Return the resized entries whose counterparts in other blocks came with another shape: damage, not a choice."""
    groups: dict[tuple, set[tuple]] = {}
    for key, shape in before.items():
        if key in own:
            groups.setdefault((group_name(key), own[key]), set()).add(shape)
    resized = [key for key in before if key in own and key in state and before[key] != tuple(state[key].shape)]
    return {key for key in resized if len(groups[group_name(key), own[key]]) > 1}


def _module(key: str) -> str:
    return key.rpartition(".")[0] or key
