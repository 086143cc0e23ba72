"""``--cfg-options``: changes of a config's entries, of those that it has and those that what is built from it takes."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixtransfer.errors import UserError, unknown_name

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["LISTS", "READ_BY_RUNNER", "SECTIONS", "apply_options", "first_line", "literal"]

#: The top-level names of a config that a runner reads; everything else is a variable of the config file.
READ_BY_RUNNER = (
    "model data_preprocessor train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg auto_scale_lr"
    " optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks custom_hooks load_from env_cfg"
    " log_processor log_level visualizer default_scope randomness compile sync_bn find_unused_parameters"
    " model_wrapper_cfg activation_checkpointing efficient_conv_bn_eval"
).split()

#: Places of a config without a ``type`` that would check what is put there -> the entries that are read there.
TAKEN = {
    "*_dataloader": "batch_size num_workers persistent_workers drop_last pin_memory prefetch_factor timeout collate_fn"
    " sampler batch_sampler dataset worker_init_fn",
    "randomness": "seed deterministic diff_rank_seed",
    "env_cfg": "cudnn_benchmark mp_cfg dist_cfg resource_limit",
    "env_cfg.mp_cfg": "mp_start_method opencv_num_threads",
    "env_cfg.dist_cfg": "backend timeout",
    "auto_scale_lr": "enable base_batch_size",
    "optim_wrapper": "type constructor optimizer clip_grad accumulative_counts paramwise_cfg dtype loss_scale",
    "optim_wrapper.clip_grad": "type max_norm norm_type error_if_nonfinite clip_value",
    "train_cfg": "type by_epoch max_epochs max_iters val_begin val_interval dynamic_intervals",
    "val_cfg": "type fp16",
    "test_cfg": "type fp16",
    "default_hooks": "runtime_info timer sampler_seed logger param_scheduler checkpoint visualization",
    # A classifier's, which names no type; its family refuses what it has not.
    "model.backbone": "in_channels drop_path_rate frozen_stages with_cp init_cfg img_size window",
    "model.test_cfg": "mode crop_size stride",
    "model.test_cfg.rpn": "nms_pre max_per_img min_bbox_size nms",
    "model.test_cfg.rcnn": "score_thr nms max_per_img mask_thr_binary",
}
#: Top-level names that hold settings or a list of such; what else a runner reads are words, switches or either.
SECTIONS = (
    "model data_preprocessor train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg auto_scale_lr"
    " optim_wrapper default_hooks env_cfg log_processor visualizer randomness model_wrapper_cfg"
).split()
LISTS = ("custom_hooks", "param_scheduler", "val_evaluator", "test_evaluator")
#: Settings that nothing works without.
NEEDED = ("model", "model.backbone", "train_dataloader", "train_dataloader.dataset", "train_cfg", "optim_wrapper",
          "optim_wrapper.optimizer", "default_hooks", "env_cfg")  # fmt: skip
#: Places that a config need not have.
ABSENT = (
    "model.backbone",
    "randomness",
    "env_cfg",
    "env_cfg.mp_cfg",
    "env_cfg.dist_cfg",
    "auto_scale_lr",
    "optim_wrapper.clip_grad",
)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's kind if it has none."""
    text = str(error.args[0] if error.args and isinstance(error, KeyError) else error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def apply_options(cfg: Config, options: Sequence[str], name: str) -> None:
    """Apply ``KEY=VALUE`` options to a config, in place; ``KEY+=VALUE`` appends to a list.

    A value is written as in Python, with ``dict(...)`` too, or as mmengine takes it: ``a,b`` is a list, other words
    are text. New entries are allowed as arguments of something that has a ``type``, which checks them when it is
    built, and where it is known what is read.

    Raises:
        UserError: an option that changes nothing or is not written as it should be; near names are listed.
    """
    values = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise UserError(f"--cfg-options {option}: write KEY=VALUE, e.g. train_dataloader.batch_size=4")
        more = key.endswith("+")
        key = key.removesuffix("+")
        _check_key(cfg, key, name)
        values[key] = _value(option, text) if not more else _appended(cfg, key, _value(option, text), values, option)
        _check_kind(cfg, key, values[key], option)
    try:
        cfg.merge_from_dict(values)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"--cfg-options {' '.join(options)}: {first_line(error)}") from error


def _appended(cfg: Config, key: str, value: Any, before: Mapping[str, Any], option: str) -> list:
    """Return the list at ``key``, as options ``before`` this one have it, with ``value`` or its items behind."""
    present = before[key] if key in before else _at(cfg, key)
    if present is None and key in LISTS:
        present = []
    if isinstance(present, Mapping) and key in LISTS:
        present = [present]
    if not isinstance(present, list | tuple):
        raise UserError(f"--cfg-options {option}: {key} is no list; write {key}=VALUE")
    return [*present, *(value if isinstance(value, list | tuple) else [value])]


def _at(cfg: Config, key: str) -> Any:
    place: Any = cfg
    for part in key.split("."):
        place = place[int(part)] if isinstance(place, list | tuple) else place.get(part)
    return place


def _value(option: str, text: str) -> Any:
    from mmengine.config import DictAction

    text = text.strip()
    try:
        value = literal(ast.parse(text, mode="eval").body)
        return list(value) if isinstance(value, tuple) and not text.startswith("(") else value
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    try:
        closed = text[:1] not in ("(", "[") or text[-1:] in (")", "]")
        if closed and "{" not in text and "dict(" not in text:
            return DictAction._parse_iterable(text)
    except (AssertionError, RecursionError):  # brackets that do not close
        pass
    raise UserError(
        f"--cfg-options {option}: the value cannot be read; write it as in Python and quote it for the shell, e.g."
        " \"custom_hooks=[dict(type='EMAHook')]\""
    )


def literal(node: ast.expr) -> Any:
    """Return the value of a literal in which ``dict(key=value)`` is one too; raise a ValueError for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("** in dict()")
        return {str(keyword.arg): literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        keys = [key for key in node.keys if key is not None]
        return {literal(key): literal(value) for key, value in zip(keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple):
        items = [literal(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    return ast.literal_eval(node)


def _check_key(cfg: Config, key: str, name: str) -> None:
    place: Any = cfg
    parts, path = key.split("."), []
    for number, part in enumerate(parts):
        here = ".".join(path) or name
        if isinstance(place, dict) or number == 0:
            known = [key for key in place if number or key in READ_BY_RUNNER] + _taken(path, place)
            leaf = number == len(parts) - 1
            new = leaf and ("type" in place if number else part in READ_BY_RUNNER)
            if number == 0 and part in place and part not in READ_BY_RUNNER:
                raise UserError(
                    f"--cfg-options {key}: {part!r} is a variable of the config file, changing it now has no effect;"
                    f" change where it is used, below {', '.join(known[:6])}, …"
                )
            if not leaf and ".".join([*path, part]) in ABSENT and place.get(part) is None:
                place[part] = {}
            if part not in known and part not in place and not new:
                raise unknown_name(f"--cfg-options entry of {here}", part, known)
            if not leaf and part not in place:
                raise UserError(f"--cfg-options {key}: {here} has no {part}; set it as a whole")
            place = place.get(part)
        elif isinstance(place, (list, tuple)):
            if not (part.isdigit() and int(part) < len(place)):
                raise UserError(f"--cfg-options {key}: {here} is a list; give a number from 0 to {len(place) - 1}")
            place = place[int(part)]
        else:
            raise UserError(f"--cfg-options {key}: {here} is {place!r} and has no entries; set it as a whole")
        path.append(part)


def _check_kind(cfg: Config, key: str, value: Any, option: str) -> None:
    """Refuse a word or number in the place of settings; where a config says None, make room for settings."""
    *path, last = key.split(".")
    holder: Any = cfg
    for part in path:
        holder = holder[int(part)] if isinstance(holder, list | tuple) else holder[part]
    present = holder.get(last) if isinstance(holder, dict) or not path else holder[int(last)]
    several = isinstance(present, list | tuple) and any(isinstance(item, Mapping) for item in present)
    listed = several or (not path and last in LISTS)
    if listed or isinstance(present, Mapping) or (not path and last in SECTIONS):
        items = value if isinstance(value, list | tuple) else [value]
        fits = all(isinstance(item, Mapping) for item in items) and (listed or bool(items))
        if not fits and (value is not None or key in NEEDED):
            kind = "a list of settings" if several else "settings"
            example = f"{key}={'[dict(...)]' if several else 'dict(...)'}"
            raise UserError(f"--cfg-options {option}: {key} holds {kind}; set their entries, or write {example}")
    if present is None and isinstance(value, Mapping) and last in holder:
        holder[last] = {}
    elif isinstance(present, Mapping) and isinstance(value, Mapping):
        _make_room(present, value)


def _make_room(present: Any, value: Mapping) -> None:
    """Let settings take the places in ``present`` where it says None, which mmengine does not merge with."""
    for key, item in value.items():
        if isinstance(item, Mapping) and key in present:
            if present[key] is None:
                present[key] = {}
            elif isinstance(present[key], Mapping):
                _make_room(present[key], item)


def _taken(path: Sequence[str], place: Mapping) -> list[str]:
    """Return the entries that are read at a path of a config, as far as that is known."""
    if path == ["model", "test_cfg"] and "mode" not in place:
        return []  # a detector's
    key = "*_dataloader" if len(path) == 1 and path[0].endswith("_dataloader") else ".".join(path)
    return TAKEN.get(key, "").split()
