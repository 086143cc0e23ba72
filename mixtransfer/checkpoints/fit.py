"""Accounting for every entry of a checkpoint: mapped, resized, dropped by a named rule, or an error that lists it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mixtransfer.backbones import Backbone
from mixtransfer.checkpoints.adapt_input import resize_input
from mixtransfer.checkpoints.recognize import group_name
from mixtransfer.checkpoints.rename import OURS, rename
from mixtransfer.checkpoints.select import rule_for
from mixtransfer.errors import UserError

__all__ = ["AUX_HEAD", "HEAD", "FittedState", "account_for", "shorten"]

HEAD = ("head.weight", "head.bias")
#: Said where a position table does not fit.
OBLONG = "; tables of images that are not square fit networks for that size only, say --img-size HxW (img_size=(H, W))"
#: The second head of networks with ``has_token_logits``.
AUX_HEAD = ("aux_head.weight", "aux_head.bias")


@dataclass
class FittedState:
    """What became of the entries of a checkpoint; all names are ours except the dropped ones.

    Attributes:
        state: the entries that the network takes, complete.
        source: the format that they came from.
        resized: entry -> old and new shape.
        dropped: rule -> the entries that it left behind, by the names they came with.
        new: entries of the network that the checkpoint may lack, and does.
    """

    source: str
    state: dict[str, Tensor] = field(default_factory=dict)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    new: tuple[str, ...] = ()


def account_for(
    weights: Mapping[str, Tensor], backbone: Backbone, source: str, name: str, head: int | None = None
) -> FittedState:
    """Sort the entries of a checkpoint for a network: a backbone, with a linear head of ``head`` classes if given.

    Args:
        weights: entries under the names of ``source``, without container and prefix.
        backbone: the network's backbone; nothing is loaded into it.
        source: the format of the names.
        name: the file, for messages.
        head: classes of the linear head on the embedding, and of the one on tokens where the network has it, or None
            for a network without.

    Raises:
        UserError: naming each missing, unexpected or misshapen entry.
    """
    own = {key: tuple(value.shape) for key, value in backbone.state_dict().items()}
    if head is not None:
        shapes = (head, backbone.embed_channels), (head,)
        for names in (HEAD, AUX_HEAD) if backbone.has_token_logits else (HEAD,):
            own |= dict(zip(names, shapes, strict=True))
    converted = rename(weights, backbone.arch, source)
    result = FittedState(source)
    if converted.derived:
        result.dropped["derived (recomputed)"] = converted.derived
    for key, value in converted.state.items():
        rule = None if key in own else _rule_of(key, backbone)
        if rule:
            result.dropped.setdefault(rule, []).append(key)
        else:
            result.state[key] = value
    before = {key: tuple(value.shape) for key, value in result.state.items()}
    result.state = resize_input(_resized_tables(backbone, result.state, name), own)
    uneven = _uneven(before, result.state, own)
    changed = {key: tuple(value.shape) for key, value in result.state.items() if before.get(key) != tuple(value.shape)}
    result.resized = {key: (before[key], shape) for key, shape in changed.items()}
    absent = [key for key in own if key not in result.state]
    lacking_by_format = () if source == OURS else backbone.formats[source].absent
    optional = (*lacking_by_format, r"token_classifier\..+", *backbone.dense_only)
    if head is None:
        optional += backbone.embed_only
    result.new = tuple(key for key in absent if any(re.fullmatch(pattern, key) for pattern in optional))
    halves = [key for key in result.new if any(_module(key) == _module(other) for other in result.state)]
    missing = [key for key in absent if key not in result.new or key in halves]
    misshapen = [
        key for key, value in result.state.items() if key in own and (tuple(value.shape) != own[key] or key in uneven)
    ]
    _refuse(
        f"{name} does not fit {backbone.arch} ({source} names)",
        OBLONG if any(re.search(r"pos(?![a-z]*_bias)", key) for key in misshapen) else "",
        missing=missing,
        unexpected=[key for key in result.state if key not in own],
        misshapen=[f"{key} {before[key]} instead of {own[key]}" for key in misshapen],
    )
    kinds = [f"{key} ({str(value.dtype)[6:]})" for key, value in result.state.items() if not value.is_floating_point()]
    whole = {key for key, value in backbone.state_dict().items() if not value.is_floating_point()}
    odd = [text for text in kinds if text.split()[0] not in whole]
    if odd:
        raise UserError(f"{name}: {len(odd)} weights are no floating-point numbers: {shorten(odd)}")
    return result


def shorten(keys: Sequence[str], shown: int = 6) -> str:
    """Return the first keys, and how many more there are."""
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more


def _refuse(what: str, hint: str, **problems: list[str]) -> None:
    found = [f"{len(keys)} {kind}: {shorten(keys, 12)}" for kind, keys in problems.items() if keys]
    if found:
        raise UserError(f"{what}: {'; '.join(found)}{hint}")


def _rule_of(key: str, backbone: Backbone) -> str | None:
    if any(re.fullmatch(pattern, key) for pattern in (*backbone.dense_only, *backbone.embed_only)):
        return "parts of the other use (dense or classification)"
    return rule_for(key)


def _resized_tables(backbone: Backbone, state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    with torch.no_grad():
        try:
            return backbone.resize_loaded(state)
        except (RuntimeError, IndexError, ValueError) as error:
            # A family resamples what has the right form; a table of another form is misshapen, not ours to guess.
            raise UserError(f"{name} does not fit {backbone.arch}: a table cannot be resampled ({error})") from None


def _uneven(before: Mapping[str, tuple], state: Mapping[str, Tensor], own: Mapping[str, tuple]) -> set[str]:
    """Return the resized entries whose counterparts in other blocks came with another shape: damage, not a choice."""
    groups: dict[tuple, set[tuple]] = {}
    for key, shape in before.items():
        if key in own:
            groups.setdefault((group_name(key), own[key]), set()).add(shape)
    resized = [key for key in before if key in own and before[key] != tuple(state[key].shape)]
    return {key for key in resized if len(groups[group_name(key), own[key]]) > 1}


def _module(key: str) -> str:
    return key.rpartition(".")[0] or key
