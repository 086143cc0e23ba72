"""The state that a training resumes from, checked entry by entry against the training that takes it.

A checkpoint is data. Of what it says about the training that wrote it, only plain values that training writes are
read, and nothing is run: the text of the config in it stays text. A state that does not fit, in whatever place, is
refused, since a training that goes on without a part of its state is another training.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.optim import Optimizer

from mixtransfer.checkpoints.fit import shorten
from mixtransfer.checkpoints.load import present_names
from mixtransfer.checkpoints.read import read_checkpoint
from mixtransfer.datasets.classes import trained_classes
from mixtransfer.errors import UserError

__all__ = [
    "SETTINGS",
    "UNVALIDATED",
    "WITHOUT_STATE",
    "Place",
    "average_state",
    "hub_state",
    "meta_of",
    "optimizer_state",
    "place_in",
    "scheduler_states",
    "stateless",
]

#: The entry of ``meta`` that lists the parameters, by number in the optimizer, that never had a gradient.
WITHOUT_STATE = "without_optimizer_state"
#: The entry of ``meta`` that describes a training's settings, as :func:`~mixtransfer.engine.settings.describe` does.
SETTINGS = "settings"
#: The entry of ``meta`` that tells whether the state is that before a validation or in one; it is resumed with that.
UNVALIDATED = "unvalidated"
#: The parts of a checkpoint that training goes on from, beside the weights.
PARTS = ("meta", "optimizer", "message_hub", "param_schedulers")
#: What ``meta`` has beside numbers: the config among it, as text.
TEXTS = ("cfg", "experiment_name", "time", "mmengine_version")
#: How an optimizer steps, not what it computes: the new training's own choice.
IMPLEMENTATIONS = ("fused", "foreach", "capturable", "differentiable")
#: Settings of a parameter group that earlier versions of torch did not have.
ADDED = ("maximize", "decoupled_weight_decay")
#: Types of the rows of a log.
NUMBERS = (torch.float64, torch.float32, torch.int64, torch.int32)
#: The largest count of iterations or epochs, and the largest seed.
LARGEST = 2**53


@dataclass(frozen=True)
class Place:
    """The state of a training after ``iteration`` iterations, with the seed that it was started with."""

    epoch: int
    iteration: int
    seed: int
    classes: tuple[str, ...] | None
    #: Parameters without a state of the optimizer; None in files of versions that did not note them.
    stateless: tuple[int, ...] | None
    #: The settings of the training, as text; None in files of versions that did not note them.
    settings: str | None = None

    @classmethod
    def of(cls, path: str | Path, trust: bool = False) -> Place:
        """Return the place that a checkpoint file tells of; see :func:`place_in`."""
        return place_in(read_checkpoint(path, trust, mapped=True), str(path))


def place_in(content: Mapping[str, Any], name: str) -> Place:
    """Return where the training stood that wrote a checkpoint.

    Args:
        content: what the file holds.
        name: the file, for messages.

    Raises:
        UserError: it is no checkpoint of a training, or tells of no possible place.
    """
    meta = content.get("meta")
    if any(not isinstance(content.get(part), Mapping | list) for part in PARTS) or not isinstance(meta, Mapping):
        raise UserError(f"{name}: holds weights but no state of training; it cannot be resumed")
    numbers: dict[str, Any] = {key: meta.get(key) for key in ("epoch", "iter", "seed")}
    odd = [key for key, value in numbers.items() if type(value) is not int or not 0 <= value < LARGEST]
    if odd:
        raise UserError(f"{name}: its meta.{odd[0]} is no whole number from 0; it cannot be resumed")
    without = meta.get(WITHOUT_STATE)
    if without is not None and (not isinstance(without, list) or any(type(number) is not int for number in without)):
        raise UserError(f"{name}: its meta.{WITHOUT_STATE} is no list of numbers; it cannot be resumed")
    return Place(
        numbers["epoch"],
        numbers["iter"],
        numbers["seed"],
        trained_classes(content),
        None if without is None else tuple(without),
        meta[SETTINGS] if isinstance(meta.get(SETTINGS), str) else None,
    )


def meta_of(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what training itself writes into ``meta``, and nothing else of it; texts stay texts.

    Raises:
        UserError: see :func:`place_in`.
    """
    place_in(content, name)
    meta = content["meta"]
    texts = {key: meta[key] for key in TEXTS if isinstance(meta.get(key), str)}
    rest = ("epoch", "iter", "seed", "dataset_meta", WITHOUT_STATE, UNVALIDATED)
    return {**texts, **{key: meta[key] for key in rest if key in meta and _is_plain(meta[key])}}


def stateless(saved: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the parameters that an optimizer's ``state_dict`` has no state of."""
    return [number for group in saved["param_groups"] for number in group["params"] if number not in saved["state"]]


def optimizer_state(
    wrapper: OptimWrapper, model: nn.Module, saved: Any, without: Sequence[int] | None, name: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the state that ``wrapper`` loads, on its own memory, and the parameters that the file lacks one of.

    Every parameter must have exactly the state that a step of this optimizer makes: the same entries, shapes and
    types, all values finite.

    Args:
        wrapper: of the training that goes on.
        model: its model, for names in messages.
        saved: what a checkpoint has of the optimizer.
        without: the parameters that may lack a state; None for those of a file that does not say so.
        name: the file, for messages.

    Raises:
        UserError: naming what differs.
    """
    own = wrapper.state_dict()
    if not isinstance(saved, Mapping) or saved.keys() != own.keys():
        there = sorted(map(str, saved)) if isinstance(saved, Mapping) else []
        raise _refused(
            name, f"its optimizer's state has {', '.join(there) or 'no entries'} instead of {', '.join(sorted(own))}"
        )
    kind = type(wrapper.optimizer).__name__
    groups, numbers = _groups(own["param_groups"], saved["param_groups"], kind, name)
    result: dict[str, Any] = {"param_groups": groups}
    if "base_param_settings" in own:
        result["base_param_settings"] = _settings(own["base_param_settings"], saved["base_param_settings"], kind, name)
    for key in own.keys() - {"state", "param_groups", "base_param_settings"}:
        result[key] = saved[key]
        if not _alike(own[key], saved[key]):
            raise _refused(name, f"its optimizer's {key} is not of this training's kind")
    parameters = [parameter for group in wrapper.optimizer.param_groups for parameter in group["params"]]
    if not isinstance(saved["state"], Mapping) or not saved["state"].keys() <= set(numbers):
        raise _refused(name, "its optimizer has a state of parameters that are in none of its groups")
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    labels = [names.get(id(parameter), f"parameter {number}") for number, parameter in enumerate(parameters)]
    absent = [label for number, label in zip(numbers, labels, strict=True) if number not in saved["state"]]
    if without is not None and (lost := {*numbers} - saved["state"].keys() - set(without)):
        lost = [label for number, label in zip(numbers, labels, strict=True) if number in lost]
        raise _refused(name, f"its optimizer has no state of {len(lost)} parameters: {shorten(lost)}")
    templates, state = _Templates(wrapper.optimizer), {}
    for number, label, parameter in zip(numbers, labels, parameters, strict=True):
        if number in saved["state"]:
            state[number] = _own_copy(templates.of(parameter), saved["state"][number], label, name)
    return {**result, "state": state}, absent


def _groups(own: Sequence[dict], saved: Any, kind: str, name: str) -> tuple[list[dict], list[int]]:
    """Return the saved parameter groups with this training's way to step, and the numbers of their parameters."""
    if not isinstance(saved, list) or not all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in saved
    ):
        raise _refused(name, "its optimizer has no list of parameter groups")
    sizes, theirs = [len(group["params"]) for group in own], [len(group["params"]) for group in saved]
    if sizes != theirs:
        raise _refused(name, f"its optimizer has groups of {theirs} parameters instead of {sizes}")
    numbers = [number for group in saved for number in group["params"]]
    if any(type(number) is not int for number in numbers) or len(set(numbers)) < len(numbers):
        raise _refused(name, "its optimizer does not number its parameters")
    return [_settings(*pair, kind, name) for pair in zip(own, saved, strict=True)], numbers


def _settings(own: Mapping[str, Any], saved: Any, kind: str, name: str) -> dict[str, Any]:
    """Return the saved settings of parameters with this training's way to step."""
    if not isinstance(saved, Mapping):
        raise _refused(name, f"a group of its optimizer is none of {kind}")
    known = own.keys() - {*IMPLEMENTATIONS}
    more = [key for key in saved if key not in {*own, *IMPLEMENTATIONS}]
    lacking = [key for key in known - saved.keys() if key not in ADDED and not key.startswith("initial_")]
    odd = [key for key in known & saved.keys() if not _setting_fits(key, own[key], saved[key])]
    odd += [key for key in more if not (str(key).startswith("initial_") and _number(saved[key]))]
    if lacking or odd:
        found = shorten([*(f"no {key}" for key in sorted(lacking)), *map(str, odd)])
        raise _refused(name, f"a group of its optimizer is none of {kind}: {found}")
    way = {key: own[key] for key in IMPLEMENTATIONS if key in own}
    return {**{key: value for key, value in saved.items() if key not in IMPLEMENTATIONS}, **way}


def _setting_fits(key: str, own: Any, saved: Any) -> bool:
    # Numbers of parameters are compared by whom they belong to.
    return isinstance(saved, type(own)) if key == "params" and isinstance(own, list) else _alike(own, saved)


class _Templates:
    """The states that one step of an optimizer makes, by group and by shape of the parameter."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        self.groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
        self.made: dict[tuple, dict[str, Any]] = {}

    def of(self, parameter: Tensor) -> dict[str, Any]:
        """Return the state of a parameter such as this one."""
        group = self.groups[id(parameter)]
        key = id(group), parameter.shape, parameter.stride(), parameter.dtype, parameter.device
        if key not in self.made:
            # A copy has the settings and none of what schedulers hang on the original's step.
            probe, like = copy.copy(self.optimizer), torch.zeros_like(parameter, requires_grad=True)
            like.grad = torch.zeros_like(parameter)
            probe.state, probe.param_groups = type(probe.state)(dict), [{**group, "params": [like]}]
            probe.step()
            self.made[key] = {entry: _described(value) for entry, value in probe.state[like].items()}
        return self.made[key]


@dataclass(frozen=True)
class _Layout:
    """The properties of a tensor other than its values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _described(value: Any) -> Any:
    return _Layout(value.shape, value.stride(), value.dtype, value.device) if isinstance(value, Tensor) else value


def _own_copy(template: Mapping[str, Any], saved: Any, label: str, name: str) -> dict[str, Any]:
    """Return a parameter's saved state on memory of its own, which no other entry shares."""
    saved = {key: value for key, value in saved.items() if value is not None} if isinstance(saved, Mapping) else {}
    expected = {key: value for key, value in template.items() if value is not None}
    if saved.keys() != expected.keys():
        found = ", ".join(sorted(map(str, saved))) or "nothing"
        raise _refused(
            name, f"the state of {label} in its optimizer is {found} instead of {', '.join(sorted(expected))}"
        )
    result = {}
    for key, like in expected.items():
        value = saved[key]
        if isinstance(like, _Layout) and isinstance(value, Tensor):
            if value.shape != like.shape or value.dtype != like.dtype:
                raise _refused(
                    name,
                    f"{key} of {label} in its optimizer is {tuple(value.shape)} {str(value.dtype)[6:]} instead of"
                    f" {tuple(like.shape)} {str(like.dtype)[6:]}",
                )
            if not torch.isfinite(value).all():
                raise _refused(name, f"{key} of {label} in its optimizer is not finite")
            empty = torch.empty_strided(like.shape, like.stride, dtype=like.dtype, device=like.device)
            result[key] = empty.copy_(value)
        elif not isinstance(like, _Layout) and _alike(like, value):
            result[key] = value
        else:
            raise _refused(name, f"{key} of {label} in its optimizer is not of this optimizer's kind")
    return result


def scheduler_states(own: Any, saved: Any, name: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield every scheduler of the training that goes on with its saved state.

    Args:
        own: the schedulers: a list, a dict of lists, or None.
        saved: what a checkpoint has of them.
        name: the file, for messages.

    Raises:
        UserError: another number or kind of schedulers, or values of another kind.
    """
    if isinstance(own, Mapping):
        if not isinstance(saved, Mapping) or saved.keys() != own.keys():
            raise _refused(name, f"it has no schedulers of {', '.join(own)}")
        for key in own:
            yield from scheduler_states(own[key], saved[key], name)
        return
    own = own or []
    if not isinstance(saved, list) or len(saved) != len(own):
        found = len(saved) if isinstance(saved, list) else "no list of"
        raise _refused(name, f"it has {found} schedulers where param_scheduler has {len(own)}")
    for number, (scheduler, state) in enumerate(zip(own, saved, strict=True)):
        mine, kind = scheduler.state_dict(), type(scheduler).__name__
        if not isinstance(state, Mapping) or state.keys() != mine.keys():
            raise _refused(name, f"its scheduler {number} is no {kind}")
        odd = [key for key, value in mine.items() if not _alike(value, state[key])]
        if odd:
            raise _refused(name, f"{odd[0]} of its scheduler {number} ({kind}) is not of this training's kind")
        yield scheduler, dict(state)


def hub_state(saved: Any, name: str) -> dict[str, dict[str, Any]]:
    """Return the saved log and progress of mmengine's message hub, with the log in mmengine's buffers.

    Raises:
        UserError: a part is missing, or a value is not as training writes it.
    """
    parts = ("log_scalars", "runtime_info", "resumed_keys")
    if not isinstance(saved, Mapping) or any(not isinstance(saved.get(part), Mapping) for part in parts):
        raise _refused(name, f"its message_hub is not {', '.join(parts)}")
    log, info, resumed = ({str(key): value for key, value in saved[part].items()} for part in parts)
    odd = [key for key, value in info.items() if not _is_plain(value)]
    odd += [key for key, value in resumed.items() if type(value) is not bool]
    kept = info.get("keep_ckpt_ids", [])
    if not isinstance(kept, list) or any(type(n) is not int or not 0 <= n < LARGEST for n in kept):
        odd.append("keep_ckpt_ids")
    paths = [key for key in info if key == "last_ckpt" or key.startswith("best_ckpt")]
    odd += [key for key in paths if not isinstance(info[key], str | None)]
    buffers = {}
    for key, value in log.items():
        pair = (value._log_history, value._count_history) if isinstance(value, HistoryBuffer) else value
        rows: Any = _rows(pair)
        if rows is None:
            odd.append(key)
        else:
            buffers[key] = HistoryBuffer(*rows)
    if odd:
        raise _refused(name, f"{odd[0]} in its message_hub is not as training writes it")
    return {"log_scalars": buffers, "runtime_info": info, "resumed_keys": resumed}


def average_state(model: nn.Module, own: Mapping[str, Tensor], saved: Any, name: str) -> dict[str, Tensor]:
    """Return the saved moving average of a model's weights, which must have every entry of ``own``.

    Raises:
        UserError: it is not there, or an entry is missing, unexpected, misshapen or not finite.
    """
    if not isinstance(saved, Mapping) or not saved:
        raise _refused(name, "it has no moving average of the weights (ema_state_dict), which the config's hook makes")
    saved = present_names(model, saved, "module.")
    odd = [
        str(key)
        for key in {**own, **saved}
        if key not in own
        or not isinstance(saved.get(key), Tensor)
        or saved[key].shape != own[key].shape
        or saved[key].dtype != own[key].dtype
        or not torch.isfinite(saved[key]).all()
    ]
    if odd:
        raise _refused(
            name,
            f"{len(odd)} entries of its moving average are missing, too many, misshapen or not finite: {shorten(odd)}",
        )
    return saved


def _refused(name: str, problem: str) -> UserError:
    return UserError(
        f"{name} does not continue this training: {problem}; resume with the config and options it was started with,"
        " or start anew from its weights (load_from)"
    )


def _number(value: Any) -> bool:
    return type(value) in (int, float) and not math.isnan(value)


def _alike(own: Any, saved: Any) -> bool:
    """Tell whether a saved value can stand in the place of one's own: names and switches equal, numbers for numbers."""
    if isinstance(own, Tensor):
        return isinstance(saved, Tensor) and saved.shape == own.shape and saved.dtype == own.dtype
    if isinstance(own, bool | str):
        return type(saved) is type(own) and saved == own
    if isinstance(own, int | float):
        return _number(saved)
    if isinstance(own, Mapping):
        return isinstance(saved, Mapping) and saved.keys() == own.keys() and all(_alike(own[k], saved[k]) for k in own)
    if isinstance(own, list | tuple):
        same = isinstance(saved, list | tuple) and len(saved) == len(own)
        return same and all(_alike(a, b) for a, b in zip(own, saved, strict=True))
    return saved is None or _number(saved) if own is None else type(saved) is type(own)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | bytes | Tensor | np.ndarray | np.generic)


def _rows(pair: Any) -> list[np.ndarray] | None:
    """Return a pair of equally long rows of real numbers as arrays, or None for anything else."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return None
    tensors = [part for part in pair if isinstance(part, Tensor) and part.dtype in NUMBERS]
    rows = [part.numpy() for part in tensors] or [part for part in pair if isinstance(part, np.ndarray)]
    fine = len(rows) == 2 and rows[0].shape == rows[1].shape and rows[0].ndim == 1
    return rows if fine and all(row.dtype.kind in "iuf" for row in rows) else None
