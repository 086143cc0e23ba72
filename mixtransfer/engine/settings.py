"""A training's settings as plain text in its checkpoints, and how those of a resumed one differ."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mixtransfer.engine.cfg_options import READ_BY_RUNNER
from mixtransfer.engine.config import differences, drop_pretrained
from mixtransfer.errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["changed_settings", "describe"]

#: What a training computes does not depend on these.
WITHOUT_EFFECT = ("load_from", "log_processor", "log_level", "visualizer", "auto_scale_lr")
#: Entries whose values a checkpoint brings: the state of the optimizer and of its schedule.
IN_STATE = ("optim_wrapper.optimizer", "optim_wrapper.paramwise_cfg", "param_scheduler")
#: Entries that the order of the samples follows from.
ORDER = ("processes", "train_dataloader.batch_size", "train_dataloader.sampler", "train_dataloader.drop_last")


def describe(cfg: Config, processes: int) -> str:
    """Return the settings of a training as JSON: what a runner reads of its config, and the number of processes."""
    config = {key: value for key, value in cfg.to_dict().items() if key in READ_BY_RUNNER}
    return json.dumps({"config": config, "processes": processes}, default=_named)


def _named(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else str(value)


def changed_settings(saved: str | None, now: str, name: str) -> list[str]:
    """Return one line for each setting in which a resumed training differs from the one that wrote a checkpoint.

    Args:
        saved: what the checkpoint has from :func:`describe`; None in files of versions that wrote none.
        now: the same of the training that goes on.
        name: the checkpoint, for messages.

    Raises:
        UserError: the optimizer or its schedule is another; the state in the checkpoint would keep the former.
    """
    if saved is None:
        return [f"{name} does not tell its config; what has changed since is not seen"]
    try:
        lines = differences(_plain(saved), _plain(now))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [f"{name} tells its config in another form; what has changed since is not seen"]
    kept = [line for line in lines if line.startswith(IN_STATE)]
    if kept:
        more = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
        raise UserError(
            f"--resume: {kept[0]}{more}: {name} brings the state of the former; resume with what it was started with,"
            " or start anew from its weights (--cfg-options load_from=FILE, without --resume)"
        )
    reordered = [line for line in lines if line.startswith(ORDER)]
    return [*lines, *(["samples come in another order from here on"] if reordered else [])]


def _plain(text: str) -> dict[str, Any]:
    content = json.loads(text)
    config = {key: value for key, value in content["config"].items() if key not in WITHOUT_EFFECT}
    drop_pretrained(config["model"])  # a checkpoint brings all weights
    return {"processes": content["processes"], **_without_none(config)}


def _without_none(part: Any) -> Any:
    """Return a config without the entries that are None, which is what most are where they are absent."""
    if isinstance(part, dict):
        return {key: _without_none(value) for key, value in part.items() if value is not None}
    return [_without_none(item) for item in part] if isinstance(part, list) else part
