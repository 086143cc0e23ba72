"""A training made longer or shorter with its schedule, and what else an option adds to a config's training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mixtransfer.engine.config import task_of
from mixtransfer.errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["TRACKERS", "add_average", "add_early_stop", "add_trackers", "follow_batch", "freeze", "set_length"]

#: Entries of a learning rate's schedule that are places or lengths in the training.
PLACES = ("begin", "end", "T_max", "total_steps")
#: Trackers -> mmengine's backends, and the package that each needs.
TRACKERS = {
    "tensorboard": ("TensorboardVisBackend", "tensorboard"),
    "wandb": ("WandbVisBackend", "wandb"),
    "mlflow": ("MLflowVisBackend", "mlflow"),
}
#: Task -> the metric by which a validation is better than another.
MONITORED = {"seg": "mIoU", "det": "coco/bbox_mAP", "cls": "accuracy/top1"}


def set_length(cfg: Config, count: int, unit: str) -> None:
    """Let a training take ``count`` iterations or epochs, in place; warm-up, decay and intervals keep their shares.

    A warm-up that leaves what follows no room, of one epoch in a training of one, is left out.

    Args:
        cfg: the config.
        count: how many.
        unit: "iters" or "epochs", which has to be the config's.

    Raises:
        UserError: the config counts the other.
    """
    key, other = f"max_{unit}", {"iters": "epochs", "epochs": "iters"}[unit]
    before = cfg.train_cfg.get(key)
    if before is None:
        raise UserError(f"--{unit}: the config counts {other} ({cfg.train_cfg.get(f'max_{other}')}); say --{other}")
    ratio = count / before
    cfg.train_cfg[key] = count
    for entry, name in ((cfg.train_cfg, "val_interval"), (_checkpoint(cfg), "interval")):
        if isinstance(entry.get(name), int):
            entry[name] = min(max(1, round(entry[name] * ratio)), count)
    parts = [part for part in cfg.get("param_scheduler") or () if part.get("by_epoch", True) == (unit == "epochs")]
    begun = [part for part in parts if part.get("begin", 0) < before]
    for part in cfg.get("param_scheduler") or ():
        for name in PLACES:
            # Without an end of its own a part ends with the training.
            if isinstance(part.get(name), int) and part[name] > 0:
                part[name] = max(1, round(part[name] * ratio))
        if part.get("milestones"):
            part["milestones"] = [max(1, round(place * ratio)) for place in part["milestones"]]
    _drop_warm_up_of_one(cfg)
    late = [part for part in begun if part.get("begin", 0) >= count]
    if late:
        for part in late:
            part["begin"] = 0
        whole = [part for part in parts if part not in late and (part.get("end") or count) >= count]
        cfg.param_scheduler = [part for part in cfg.param_scheduler if part not in whole]


def _drop_warm_up_of_one(cfg: Config) -> None:
    """Leave out a warm-up of a single step: mmengine's would stay at its first rate until training ends."""
    parts = list(cfg.get("param_scheduler") or ())
    short = [part for part in parts if _is_warm_up(part) and part.get("end") == 1 and not _converted(part)]
    for part in parts if short else ():
        if part.get("begin") == 1:
            part["begin"] = 0
    if short:
        cfg.param_scheduler = [part for part in parts if part not in short]


def _is_warm_up(part: Mapping[str, Any]) -> bool:
    return part.get("begin", 0) == 0 and str(part.get("type")).endswith(("LinearLR", "ConstantLR"))


def _converted(part: Mapping[str, Any]) -> bool:
    """Tell whether a part that is given in epochs changes the rate in every iteration."""
    return bool(part.get("by_epoch", True) and part.get("convert_to_iter_based"))


def _checkpoint(cfg: Config) -> dict[str, Any]:
    return (cfg.get("default_hooks") or {}).get("checkpoint") or {}


def fit_warm_up(parts: Any, iterations: int) -> tuple[Any, str | None]:
    """Shorten a warm-up that counts iterations and would outlast a training that counts epochs, of few images.

    Args:
        parts: ``param_scheduler`` of a config.
        iterations: of the whole training.

    Returns:
        The parts, the warm-up a tenth of the training or, below two steps, none; and what to say of it.
    """
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        return parts, None
    long = [part for part in parts if _is_warm_up(part) and not part.get("by_epoch", True)]
    long = [part for part in long if (part.get("end") or 0) >= iterations]
    if not long:
        return parts, None
    end = iterations // 10
    kept = [{**part, "end": end} if part in long else part for part in parts if part not in long or end > 1]
    return kept, (
        f"training has {iterations} iterations and a warm-up of {long[0]['end']}, which would never end; the warm-up is"
        f" {f'shortened to {end}' if end > 1 else 'left out'}"
    )


def length_of(cfg: Config) -> int | None:
    """Return the iterations or epochs that a config trains for."""
    return cfg.train_cfg.get("max_iters") or cfg.train_cfg.get("max_epochs")


def check_warm_up(cfg: Config, own_length: Callable[[], int | None]) -> str | None:
    """Return what to say where a training ends before its warm-up does; None where it does not.

    Args:
        cfg: the config.
        own_length: returns the length that the config's file states, which is asked for in such a case only.

    Raises:
        UserError: the file's own length is beyond the warm-up, so that an option has cut it off.
    """
    for part in cfg.get("param_scheduler") or ():
        unit = "epochs" if part.get("by_epoch", True) else "iters"
        last = cfg.train_cfg.get(f"max_{unit}")
        if last is None or not _is_warm_up(part) or (part.get("end") or 0) < last:
            continue
        said = (
            f"training ends after {last} {unit}, inside its warm-up of {part['end']}, so that the learning rate is"
            f" never reached; --{unit} {last} scales the schedule"
        )
        own = own_length()
        if own is not None and own > part["end"]:
            raise UserError(f"train_cfg.max_{unit}: {said}")
        return said
    return None


def follow_batch(cfg: Config) -> None:
    """Let the learning rate follow the images a step, in place, as mmengine's ``auto_scale_lr`` does.

    Raises:
        UserError: the config does not say for how many images its learning rate is.
    """
    settings = cfg.get("auto_scale_lr") or {}
    if not settings.get("base_batch_size"):
        raise UserError(
            "--auto-scale-lr: the config does not say for how many images a step its learning rate is; say"
            " --cfg-options auto_scale_lr.base_batch_size=16, or what its docstring has"
        )
    cfg.auto_scale_lr = {**settings, "enable": True}


def add_trackers(cfg: Config, names: str) -> None:
    """Let trackers, their names joined by commas, log beside the local log, in place.

    Raises:
        UserError: an unknown one, or one whose package is not installed.
    """
    import importlib.util

    from mixtransfer.errors import unknown_name

    backends = []
    for name in names.split(","):
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
        kind, package = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--log {name}: the package {package} is not installed; pip install 'mixtransfer[trackers]'"
            )
        backends.append(dict(type=kind))
    added = [backend["type"] for backend in backends]
    kinds = {
        "seg": "mmseg.SegLocalVisualizer",
        "det": "mmdet.DetLocalVisualizer",
        "cls": "mmpretrain.UniversalVisualizer",
    }
    visualizer: dict[str, Any] = dict(cfg.get("visualizer") or dict(type=kinds[task_of(cfg)]))
    present = list(visualizer.get("vis_backends") or [])
    kept = [backend for backend in present if backend["type"] not in added]
    if not any(str(backend["type"]).endswith("LocalVisBackend") for backend in kept):
        kept.insert(0, dict(type="LocalVisBackend"))
    cfg.visualizer = {**visualizer, "vis_backends": [*kept, *backends]}


def add_average(cfg: Config, decay: float) -> None:
    """Validate and save an exponential moving average of the weights, which keeps ``decay`` of itself a step."""
    cfg.custom_hooks = [
        *(cfg.get("custom_hooks") or []),
        dict(type="mmengine.EMAHook", ema_type="mmengine.ExponentialMovingAverage", momentum=1 - decay),
    ]


def freeze(cfg: Config, stages: int) -> None:
    """Leave the patch embedding and the first ``stages`` stages of the backbone as they are.

    Raises:
        UserError: the model has no backbone.
    """
    backbone = cfg.model.get("backbone")
    if not isinstance(backbone, Mapping):
        raise UserError("--freeze: the model has no backbone")
    cfg.model.backbone.frozen_stages = stages


def add_early_stop(cfg: Config, patience: int) -> None:
    """Stop once so many validations in a row were no better than the best."""
    cfg.custom_hooks = [
        *(cfg.get("custom_hooks") or []),
        dict(type="mmengine.EarlyStoppingHook", monitor=MONITORED[task_of(cfg)], rule="greater", patience=patience),
    ]
