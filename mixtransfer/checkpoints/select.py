"""Finding one network's weights in what a checkpoint file holds: containers, wrappers, prefixes, named rules.

Works on tensors and, without torch, on the entries of an outline alike.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixtransfer.checkpoints.stand_ins import Entry
from mixtransfer.errors import UserError

__all__ = [
    "DROPPED",
    "Container",
    "Selection",
    "all_behind",
    "find_container",
    "is_tensor",
    "matches",
    "named_tensors",
    "rule_for",
    "select_weights",
    "without_wrappers",
]

#: Names under which published files keep their weights, in the order in which they are looked for.
RAW = ("model", "state_dict", "module", "model_state_dict", "model_state", "net", "network", "checkpoint", "student")
EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema", "teacher")

#: What wrappers put into names, anywhere: torch.compile, FSDP, activation checkpointing.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
#: What DDP, DeepSpeed, Lightning and averaging put in front of all names.
FRONT = ("module.", "model.", "net.")
#: Where a larger network keeps the backbone: detectors and segmentors, MoCo, SimMIM. All but the first are taken only
#: where rules name everything else, since a network may have a part of that name.
INSIDE = ("backbone.", "encoder_q.", "base_encoder.", "online_encoder.", "encoder.")

#: Entries that are left behind, by rule; a rule never takes an entry that the network has.
DROPPED: dict[str, str] = {
    "distillation and token heads": r"(head_dist|aux_head|token_head|region_head|tok_head|avg_head)\..+",
    "heads of other tasks": r"(head|fc|classifier|cls_head|projection_head|predictor|projector|pre_logits)\..+",
    "token classifier": r"token_classifier\..+",
    "norms of outputs": r"output_norm\d+\..+",
    "neck and dense heads": r"(neck|decode_head|auxiliary_head|rpn_head|roi_head|bbox_head|mask_head|panoptic_head"
    r"|seg_head|query_head|fpn|img_neck|proposal_generator|roi_heads|sem_seg_head|fpn_(lateral|output)\d)\..+",
    "transformer decoder of a detector": r"(encoder|decoder|memory_trans_fc|memory_trans_norm|query_embedding"
    r"|dn_query_generator|positional_encoding)\..+|level_embed",
    "input normalization": r"data_preprocessor\..+|pixel_mean|pixel_std",
    "pretraining decoder": r"(decoder_\w+|target_generator|momentum_encoder|encoder_k)\..+|mask_token"
    r"|decoder_\w+",
    "pretraining queue": r"queue(_ptr|_2|_ptr_2)?",
    "counters": r"n_averaged|steps|step|num_updates",
}


@dataclass(frozen=True)
class Container:
    """A place of weights inside a checkpoint.

    Attributes:
        path: the keys that lead there, e.g. ``("state_dict",)``; empty for a flat file.
        entries: what lies there, weights and other values.
        average: whether the weights are a moving average.
        other: the other container that holds weights, if any: raw where the average was taken, or the reverse.
    """

    path: tuple[str, ...]
    entries: Mapping[str, Any]
    average: bool
    other: str


@dataclass(frozen=True)
class Selection:
    """The weights of one network.

    Attributes:
        weights: the entries, without wrappers and prefix; a classifier's heads beside its backbone keep ``head.``
            and ``aux_head.``.
        names: the name in the file of each entry of ``weights``.
        dropped: entries that a rule left behind, by rule.
        container: the path to them in the file, see :class:`Container`.
        prefix: the part that was cut off the names of the backbone.
        average: whether they are a moving average.
        other: the other container that holds weights, if any.
    """

    weights: dict[str, Any]
    names: dict[str, str]
    dropped: dict[str, list[str]]
    container: tuple[str, ...]
    prefix: str
    average: bool
    other: str


def is_tensor(value: Any) -> bool:
    """Tell whether ``value`` is a tensor, or the outline of one."""
    torch = sys.modules.get("torch")
    return isinstance(value, Entry) or (torch is not None and isinstance(value, torch.Tensor))


def matches(patterns: Iterable[str], key: str) -> bool:
    """Tell whether one of several regular expressions describes the whole of ``key``."""
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def rule_for(key: str) -> str | None:
    """Return the rule that leaves ``key`` behind, or None."""
    return next((rule for rule, pattern in DROPPED.items() if re.fullmatch(pattern, key)), None)


def select_weights(
    content: Any, name: str = "the checkpoint", average: bool | None = None, drop: Sequence[str] = ()
) -> Selection:
    """Return the weights of the network that a checkpoint holds.

    Args:
        content: what the file holds.
        name: the file, for messages.
        average: take the moving average (True), the raw weights (False), or the raw ones if there are both (None).
        drop: regular expressions of further entries to leave behind.

    Raises:
        UserError: there are no such weights, or two entries claim one name.
    """
    found = find_container(content, name, average)
    odd = [str(key) for key, value in found.entries.items() if not is_tensor(value) and "." in str(key)]
    if odd:
        raise UserError(f"{name}: {len(odd)} entries are no tensors: {', '.join(odd[:6])}")
    plain = [str(key) for key, value in found.entries.items() if not is_tensor(value) and key != "__metadata__"]
    dropped = {"not weights": plain} if plain else {}
    bare, prefix = _without_fronts(named_tensors(found.entries, name))
    inside = next((p for p in INSIDE if _is_inside(p, bare.values(), drop)), "")
    weights, names = {}, {}
    for key, new in bare.items():
        own = new.startswith((inside, "head.", "aux_head."))
        rule = "--drop" if matches(drop, new) else "counters" if matches([DROPPED["counters"]], new) else None
        rule = rule or (None if own else rule_for(new))
        if rule is None and not own:
            raise UserError(
                f"{name}: {key} lies outside {inside[:-1]} and no rule names it; say --drop '{re.escape(new)}'"
            )
        if rule:
            dropped.setdefault(rule, []).append(key)
            continue
        new = new.removeprefix(inside)
        if new in weights:
            raise UserError(f"{name}: {key} and {names[new]} both name {new}")
        weights[new], names[new] = found.entries[key], key
    return Selection(weights, names, dropped, found.path, prefix + inside, found.average, found.other)


def find_container(content: Any, name: str = "the checkpoint", average: bool | None = None) -> Container:
    """Return where a checkpoint holds the weights of a network or of a whole model; see :func:`select_weights`.

    Raises:
        UserError: there are no such weights.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{name}: holds a {type(content).__name__}, not named weights")
    raw, ema = _find(content, RAW), _find(content, EMA)
    if not raw and not ema and any(map(is_tensor, content.values())):
        raw = ((), content)
    wanted = raw if average is False else ema if average else raw or ema
    if not wanted:
        if average is not None and (raw or ema):
            kinds = ("moving average", "drop --ema") if average else ("raw weights", "pass --ema")
            raise UserError(f"{name}: holds no {kinds[0]}; {kinds[1]}")
        raise UserError(f"{name}: no weights under {', '.join((*RAW, *EMA))} or at the top level")
    other = raw if wanted is ema else ema
    return Container(*wanted, average=wanted is ema, other=".".join(other[0]) if other else "")


def _find(content: Mapping, containers: tuple[str, ...], depth: int = 0) -> tuple[tuple[str, ...], Mapping] | None:
    for key in containers:
        inner = content.get(key)
        if not isinstance(inner, Mapping) or not inner:
            continue
        if any(map(is_tensor, inner.values())):
            return (key,), inner
        deeper = _find(inner, (*RAW, *EMA), depth + 1) if depth < 2 else None
        if deeper:
            return (key, *deeper[0]), deeper[1]
    return None


def _without_fronts(keys: Iterable[str]) -> tuple[dict[str, str], str]:
    """Return the names without wrappers and without the prefix of all of them, by key, and that prefix."""
    names, cut = {key: without_wrappers(key) for key in keys}, ""
    while front := next((p for p in FRONT if all_behind(p, names.values())), None):
        names = {key: new.removeprefix(front) for key, new in names.items()}
        cut += front
    return names, cut


def _is_inside(prefix: str, names: Collection[str], drop: Sequence[str]) -> bool:
    outside = [new for new in names if not new.startswith(prefix)]
    if len(outside) == len(names) or prefix == INSIDE[0]:
        return len(outside) < len(names)
    return all(rule_for(new) or matches(drop, new) for new in outside)


def named_tensors(entries: Mapping, name: str) -> dict[str, Any]:
    """Return the tensors among ``entries``.

    Raises:
        UserError: one is not named by a text.
    """
    found = {key: value for key, value in entries.items() if is_tensor(value)}
    odd = [repr(key)[:20] for key in found if not isinstance(key, str)]
    if odd:
        raise UserError(f"{name}: {len(odd)} tensors have names that are no text: {', '.join(odd[:6])}")
    return found


def without_wrappers(key: str) -> str:
    """Return the name of an entry without what wrappers of modules put into it."""
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def all_behind(prefix: str, names: Collection[str]) -> bool:
    """Tell whether every name starts with ``prefix``, counters of averaging aside."""
    counted = [new for new in names if not re.fullmatch(DROPPED["counters"], new)]
    return bool(counted) and all(new.startswith(prefix) for new in counted)
