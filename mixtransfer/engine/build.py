"""From a checked config to a runner: what a purpose changes in the config, and the libraries' errors in one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from mixtransfer.engine.cfg_options import first_line
from mixtransfer.engine.config import differences, drop_pretrained, require_pretrained
from mixtransfer.errors import UserError, unknown_name

if TYPE_CHECKING:
    from mmengine.config import Config

    from mixtransfer.engine.runner import TransferRunner

__all__ = ["PURPOSES", "build_runner", "one_line_errors", "prepare"]

#: What a config is prepared for -> what becomes of it.
PURPOSES = {
    "train": "trains from random or pretrained weights",
    "resume": "goes on from a checkpoint of training, which brings all weights",
    "test": "measures a checkpoint, class by class",
    "format": "writes what a checkpoint finds, without ground truth",
    "predict": "runs a checkpoint on single images",
    "draw": "draws a training batch of a model that nothing is measured with",
    "draw mix": "the same, of what depends on no weights",
}
#: Metrics of the libraries -> ours, which keep their numbers class by class.
BY_CLASS = {"IoUMetric": "mixtransfer.ClassIoU", "CocoMetric": "mixtransfer.ClassAP"}


def prepare(cfg: Config, purpose: str) -> list[str]:
    """Make a config fit for a purpose, in place: the one place where commands change what a config says.

    Args:
        cfg: from :func:`~mixtransfer.engine.config.load_config`.
        purpose: one of ``PURPOSES``.

    Returns:
        What was changed, one line an entry, see :func:`~mixtransfer.engine.config.differences`.

    Raises:
        UserError: pretrained weights are missing; head, neck or token classifier cannot follow the backbone.
    """
    from mixtransfer.datasets.before import prepare_data
    from mixtransfer.datasets.configure import type_name
    from mixtransfer.engine.fit_channels import fit_channels

    if purpose not in PURPOSES:
        raise unknown_name("purpose", purpose, PURPOSES)
    before = cfg.to_dict()
    _import_custom(cfg)
    for split in ("train", "val", "test"):
        loader = cfg.get(f"{split}_dataloader")
        if loader and not loader.get("num_workers"):
            # torch refuses workers that persist where there are none.
            loader.persistent_workers = False
    hooks = cfg.setdefault("default_hooks", {})
    pictures = hooks.get("visualization") or {}
    if not pictures.get("draw") and not pictures.get("enable"):
        # The libraries' hook draws nothing then, and says so at every start.
        hooks.pop("visualization", None)
    if purpose in ("train", "draw"):
        require_pretrained(cfg.model)
        start = {"load_from": cfg.get("load_from")}
        require_pretrained(start, "")
        cfg.update(start)
    else:
        # A checkpoint brings all weights; those that training started from may be gone.
        drop_pretrained(cfg.model)
    if purpose in ("train", "resume"):
        cfg.default_hooks.checkpoint = {
            "max_keep_ckpts": 3,
            **(cfg.default_hooks.get("checkpoint") or {}),
            "type": "mixtransfer.CheckpointHook",
        }
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), dict(type="mixtransfer.LossGuardHook")]
    if purpose in ("test", "format"):
        evaluator = cfg.test_evaluator
        for metric in [evaluator] if isinstance(evaluator, dict) else evaluator:
            metric["type"] = BY_CLASS.get(type_name(metric), metric["type"])
        cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks") or [] if type_name(hook) != "TokenMixHook"]
    if purpose.startswith("draw"):
        for split in ("val", "test"):
            for part in ("dataloader", "cfg", "evaluator"):
                cfg[f"{split}_{part}"] = None
    prepare_data(cfg, purpose)
    if cfg.get("randomness", {}).get("seed") is None:
        cfg.randomness = {**cfg.get("randomness", {}), "seed": 0}
    fit_channels(cfg)
    return differences(before, cfg.to_dict())


def _import_custom(cfg: Config) -> None:
    """Import the modules that a config names, which register classes of their own."""
    from mixtransfer.registry import import_quietly

    custom = cfg.get("custom_imports") or {}
    names = custom.get("imports") or []
    for name in [names] if isinstance(names, str) else names:
        try:
            import_quietly(name)
        except ImportError as error:
            if not custom.get("allow_failed_imports"):
                raise UserError(
                    f"custom_imports: {name}: {first_line(error)}; put the folder of the module into PYTHONPATH"
                ) from error


def build_runner(cfg: Config, trust: bool = False) -> TransferRunner:
    """Build the runner of a prepared config; with ``trust`` the checkpoints that it reads may run code."""
    from mmengine.runner.utils import set_random_seed

    from mixtransfer.engine.runner import TransferRunner, TrustingRunner
    from mixtransfer.registry import import_quietly

    import_quietly(f"{cfg.default_scope}.datasets")
    set_random_seed(cfg.randomness.seed)
    return cast(TransferRunner, (TrustingRunner if trust else TransferRunner).from_cfg(cfg))


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn what the libraries raise about a config, and what a data worker raises, into a one-line UserError."""
    try:
        yield
    except UserError as error:
        # A worker's exception arrives as the text of its traceback.
        text = str(error.args[0]) if error.args else ""
        if text.startswith("Caught UserError in "):
            raise UserError(text.strip().splitlines()[-1].partition("UserError: ")[2]) from error
        raise
    except FileNotFoundError as error:
        # mmengine's own words for weights that are not there.
        if "can not be found" in str(error):
            raise UserError(f"{name}: {first_line(error)} among the weights that the model starts from") from error
        raise
    except TypeError as error:
        if re.search(r"__init__\(\) (got an unexpected keyword|missing \d+ required)", str(error)):
            raise UserError(f"{name}: {first_line(error)}") from error
        raise
    except KeyError as error:
        if "is not in the" in str(error) and "registry" in str(error):
            raise UserError(f"{name}: {str(error.args[0]).partition('. ')[0]}") from error
        raise
    except ValueError as error:
        if str(error).startswith("Expected more than 1 value per channel"):
            raise UserError(
                f"{name}: a batch of one image has nothing to normalize maps of one pixel by; set"
                " train_dataloader.batch_size=2 or more, and drop_last=True where one image is left for"
                " the last batch"
            ) from error
        raise
