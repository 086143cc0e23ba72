"""Finding one network's weights in what a checkpoint file holds: containers, wrappers, prefixes, named rules.

Works on tensors and, without torch, on the entries of an outline alike.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixtransfer.checkpoints.stand_ins import Entry
from mixtransfer.errors import UserError

__all__ = [
    "DROPPED",
    "Selection",
    "all_behind",
    "is_tensor",
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
    "distillation and token heads": r"(head_dist|aux_head|token_head|tok_head|avg_head)\..+",
    "heads of other tasks": r"(head|fc|classifier|cls_head|projection_head|predictor|projector|pre_logits)\..+",
    "token classifier": r"token_classifier\..+",
    "neck and dense heads": r"(neck|decode_head|auxiliary_head|rpn_head|roi_head|bbox_head|mask_head|panoptic_head"
    r"|seg_head|query_head|fpn|img_neck|proposal_generator|roi_heads|sem_seg_head|fpn_(lateral|output)\d)\..+",
    "transformer decoder of a detector": r"(encoder|decoder|memory_trans_fc|memory_trans_norm|query_embedding"
    r"|dn_query_generator|positional_encoding)\..+|level_embed",
    "input normalization": r"data_preprocessor\..+|pixel_mean|pixel_std",
    "pretraining decoder": r"(decoder|decoder_\w+|target_generator|momentum_encoder|encoder_k)\..+|mask_token"
    r"|decoder_\w+",
    "pretraining queue": r"queue(_ptr|_2|_ptr_2)?",
    "counters": r"n_averaged|steps|step|num_updates",
}


@dataclass
class Selection:
    """The weights of one network.

    Attributes:
        weights: the entries, without wrappers and prefix; a classifier's heads beside its backbone keep ``head.``
            and ``aux_head.``.
        container: the path to them in the file, e.g. ``("state_dict",)``; empty for a flat file.
        prefix: what was cut off the names of the backbone.
        average: whether they are a moving average.
        other: the other container that holds weights, if any: raw where the average was taken, or the reverse.
        dropped: entries that a rule left behind, by rule.
        names: the name in the file of each entry of ``weights``.
    """

    weights: dict[str, Any]
    container: tuple[str, ...] = ()
    prefix: str = ""
    average: bool = False
    other: str = ""
    dropped: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def is_tensor(value: Any) -> bool:
    """Tell whether ``value`` is a tensor, or the outline of one."""
    torch = sys.modules.get("torch")
    return isinstance(value, Entry) or (torch is not None and isinstance(value, torch.Tensor))


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
    container, entries = wanted
    other = raw if wanted is ema else ema
    result = Selection({}, container, average=wanted is ema, other=".".join(other[0]) if other else "")
    _fill(result, entries, name, drop)
    return result


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


def _fill(result: Selection, entries: Mapping, name: str, drop: Sequence[str]) -> None:
    odd = [str(key) for key, value in entries.items() if not is_tensor(value) and "." in str(key)]
    if odd:
        raise UserError(f"{name}: {len(odd)} entries are no tensors: {', '.join(odd[:6])}")
    plain = [str(key) for key, value in entries.items() if not is_tensor(value) and key != "__metadata__"]
    if plain:
        result.dropped["not weights"] = plain
    names = {key: without_wrappers(key) for key in named_tensors(entries, name)}
    while front := next((p for p in FRONT if all_behind(p, names.values())), None):
        names = {key: new[len(front) :] if new.startswith(front) else new for key, new in names.items()}
        result.prefix += front
    inside = next((p for p in INSIDE if _is_inside(p, names.values(), drop)), "")
    result.prefix += inside
    for key, new in names.items():
        if any(re.fullmatch(pattern, new) for pattern in drop):
            result.dropped.setdefault("--drop", []).append(key)
            continue
        if re.fullmatch(DROPPED["counters"], new):
            result.dropped.setdefault("counters", []).append(key)
            continue
        if new.startswith(inside):
            new = new[len(inside) :]
        elif not new.startswith(("head.", "aux_head.")):
            rule = rule_for(new)
            if rule is None:
                raise UserError(
                    f"{name}: {key} lies outside {inside[:-1]} and no rule names it; say --drop '{re.escape(new)}'"
                )
            result.dropped.setdefault(rule, []).append(key)
            continue
        if new in result.weights:
            raise UserError(f"{name}: {key} and {result.names[new]} both name {new}")
        result.weights[new], result.names[new] = entries[key], key


def _is_inside(prefix: str, names: Collection[str], drop: Sequence[str]) -> bool:
    outside = [new for new in names if not new.startswith(prefix)]
    if len(outside) == len(names) or prefix == INSIDE[0]:
        return len(outside) < len(names)
    return all(rule_for(new) or any(re.fullmatch(p, new) for p in drop) for new in outside)


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
