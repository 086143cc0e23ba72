"""Configs: reading the file, applying options and the dataset, and the checks that need no torch.

Everything that can be wrong with the input is checked before anything slow is built.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtransfer.errors import UserError, unknown_name
from mixtransfer.progress import progress_line

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = [
    "CONFIGS",
    "LAUNCHERS",
    "READ_BY_RUNNER",
    "apply_options",
    "differences",
    "drop_pretrained",
    "first_line",
    "load_config",
    "make_folder",
    "read_config",
    "require_pretrained",
    "task_of",
]

CONFIGS = Path(__file__).parents[2] / "configs"
#: The top-level names of a config that a runner reads; everything else is a variable of the config file.
READ_BY_RUNNER = (
    "model data_preprocessor train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg auto_scale_lr"
    " optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks custom_hooks load_from env_cfg"
    " log_processor log_level visualizer default_scope randomness compile sync_bn find_unused_parameters"
    " model_wrapper_cfg activation_checkpointing efficient_conv_bn_eval"
).split()
TASKS = {"mmseg": "seg", "mmdet": "det", "mmpretrain": "cls"}
#: What :func:`differences` shows for an entry that one of the configs lacks, and the longest value it shows in full.
ABSENT, SHOWN = "(absent)", 80
#: What configs in work dirs of earlier versions call otherwise: types, and the side of a cell that regions lie on.
FORMER_TYPES = {"OneOf": "RandomChoice"}
FORMER_OPTIONS = {"token": "cell_size"}
CELLED = ("TokenMixHook", "MixingClassifier", "TokenLabelingClassifier", "DynamicClassifier", "OAMixer")
LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


def load_config(
    path: str | Path,
    splits: Sequence[str],
    *,
    options: Sequence[str] = (),
    data: str | None = None,
    work_dir: str | Path | None = None,
    launcher: str = "none",
) -> Config:
    """Return the config of a file with its options, dataset and work directory, all checked.

    Args:
        path: the config file.
        splits: the splits that will be read, "train", "val" or "test"; their data must be there.
        options: ``KEY=VALUE`` changes, see :func:`apply_options`.
        data: dataset folder to use instead of the config's, or ``"scenes"``.
        work_dir: where results go; by default ``work_dirs/<name of the config>``.
        launcher: how distributed processes were started, one of ``LAUNCHERS``.

    Raises:
        UserError: the file, an option, the dataset or the folder is not as it should be.
    """
    cfg = read_config(path)
    apply_options(cfg, options, str(path))
    if cfg.get("custom_imports"):
        # Importing is left to the registries, which do it when a class is looked up.
        cfg.pop("custom_imports")
    if "test" in splits and not cfg.get("test_dataloader"):
        raise UserError(f"{path}: nothing to measure: it has no test_dataloader (pretraining without labels)")
    use_data(cfg, data, splits)
    if "train" in splits:
        check_schedule(cfg)
    cfg.launcher = launcher
    cfg.work_dir = str(make_folder(work_dir or Path("work_dirs") / Path(path).stem, "--work-dir"))
    return cfg


def read_config(path: str | Path) -> Config:
    """Read a config file; ``_base_`` may name the configs of installed libraries, as in ``mmseg::_base_/...``.

    Raises:
        UserError: no such file, with the near names, or a file that cannot be read as a config.
    """
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE

    if not Path(path).is_file():
        known = [str(file.relative_to(CONFIGS.parent)) for file in CONFIGS.rglob("*.py") if "_base_" not in file.parts]
        raise unknown_name("config", str(path), known)
    # mmengine looks for the distribution "mmsegmentation"; the maintained one has another name, the module has not.
    MODULE2PACKAGE["mmseg"] = "mmseg"
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except SyntaxError as error:
        raise UserError(f"{path}: not a config: line {error.lineno}: {error.msg}") from error
    except (OSError, NameError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not a config: {type(error).__name__}: {first_line(error)}") from error
    if "model" not in cfg:
        raise UserError(f"{path}: not a config of a training: it has no 'model'")
    accept_former_names(cfg._cfg_dict)
    return cfg


def accept_former_names(part: Any) -> None:
    """Put today's names of types and options in place of those of earlier versions, throughout a config, in place."""
    if isinstance(part, Mapping):
        kind = str(part.get("type", "")).rpartition(".")[2]
        if kind in FORMER_TYPES:
            part["type"] = FORMER_TYPES[kind]
        for old, new in FORMER_OPTIONS.items() if kind in CELLED else ():
            if old in part:
                part[new] = part.pop(old)
    inside = list(part.values()) if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else ()
    for value in inside:
        accept_former_names(value)


def apply_options(cfg: Config, options: Sequence[str], name: str) -> None:
    """Apply ``KEY=VALUE`` options, in mmengine's notation, to entries that exist.

    New entries are allowed as arguments of something that has a ``type``, which checks them when it is built.

    Raises:
        UserError: an option that changes nothing or is not written as it should be; near names are listed.
    """
    from mmengine.config import DictAction

    for option in options:
        if "=" not in option:
            raise UserError(f"--cfg-options {option}: write KEY=VALUE, e.g. train_dataloader.batch_size=4")
        _check_key(cfg, option.partition("=")[0], name)
    parser = argparse.ArgumentParser()
    parser.add_argument("options", nargs="*", action=DictAction)
    try:
        values = parser.parse_args(list(options)).options or {}
        cfg.merge_from_dict(values)
    except (AssertionError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"--cfg-options {' '.join(options)}: {first_line(error)}") from error


def _check_key(cfg: Config, key: str, name: str) -> None:
    parts, place, path = key.split("."), cfg, []
    for number, part in enumerate(parts):
        here = ".".join(path) or name
        if isinstance(place, Mapping) or number == 0:
            known = list(place) if number else [key for key in place if key in READ_BY_RUNNER]
            new = number == len(parts) - 1 and ("type" in place if number else part in READ_BY_RUNNER)
            if number == 0 and part in place and part not in READ_BY_RUNNER:
                raise UserError(
                    f"--cfg-options {key}: {part!r} is a variable of the config file, changing it now has no effect;"
                    f" change where it is used, below {', '.join(known[:6])}, …"
                )
            if part not in known and not new:
                raise unknown_name(f"--cfg-options entry of {here}", part, known)
            place = place.get(part)
        elif isinstance(place, (list, tuple)):
            if not (part.isdigit() and int(part) < len(place)):
                raise UserError(f"--cfg-options {key}: {here} is a list; give a number from 0 to {len(place) - 1}")
            place = place[int(part)]
        else:
            raise UserError(f"--cfg-options {key}: {here} is {place!r} and has no entries; set it as a whole")
        path.append(part)


def task_of(cfg: Config) -> str:
    """Return what a config is for: "seg", "det" or "cls"."""
    scope = cfg.get("default_scope")
    if scope not in TASKS:
        raise UserError(f"default_scope={scope!r}: give {', '.join(TASKS)}; it tells what the config is for")
    return TASKS[scope]


def use_data(cfg: Config, data: str | None, splits: Sequence[str]) -> None:
    """Put the config on the dataset folder ``data``, or make sure that its own dataset is there."""
    from mixtransfer.datasets.configure import apply_dataset, require_dataset
    from mixtransfer.datasets.folders import open_dataset

    if data is None:
        require_dataset(cfg, splits)
    else:
        apply_dataset(cfg, open_dataset(data, task_of(cfg), progress=progress_line("preparing the dataset")))


def check_schedule(cfg: Config) -> None:
    """Make sure that every part of the learning rate's schedule without an end of its own begins before training ends.

    Raises:
        UserError: training was made shorter than the warmup.
    """
    for number, part in enumerate(cfg.get("param_scheduler") or ()):
        unit = "epoch" if part.get("by_epoch", True) else "iteration"
        last = cfg.train_cfg.get({"epoch": "max_epochs", "iteration": "max_iters"}[unit])
        if last is not None and "end" not in part and part.get("begin", 0) >= last:
            raise UserError(
                f"param_scheduler.{number} begins at {unit} {part.begin} and training ends at {unit} {last}; begin it"
                f" earlier: --cfg-options param_scheduler.{number}.begin=… and the same for what ends there"
            )


def require_pretrained(model: Any, name: str = "model") -> None:
    """Make sure that the weights which parts of a model start from are files, and there.

    Raises:
        UserError: a URL, wherever in the model it stands, or a file that is not there.
    """
    from mixtransfer.checkpoints.headers import is_url

    if isinstance(model, str) and is_url(model):
        raise UserError(
            f"{name}={model}: a URL, where a file is needed; download it first and say --cfg-options {name}=FILE"
        )
    for key, part in _parts(model):
        where = f"{name}.{key}" if name else str(key)
        if isinstance(part, str) and _names_weights(key) and not is_url(part) and not Path(part).is_file():
            random = f", or {name}=None to start from random weights" if _is_pretrained(model) else ""
            raise UserError(f"no pretrained weights in {part}; give their file with --cfg-options {where}=FILE{random}")
        require_pretrained(part, where)


def drop_pretrained(model: Any) -> None:
    """Let no part of a model start from weights of its own: a checkpoint of the whole model brings them all."""
    for key, part in _parts(model):
        if key == "pretrained" and isinstance(part, str):
            model[key] = None
        elif key == "init_cfg":
            kept = [item for item in (part if isinstance(part, list) else [part]) if not _is_pretrained(item)]
            model[key] = (kept or None) if isinstance(part, list) else part if kept else None
        else:
            drop_pretrained(part)


def _parts(model: Any) -> list[tuple[Any, Any]]:
    return list(model.items() if isinstance(model, Mapping) else enumerate(model) if isinstance(model, list) else ())


def _is_pretrained(config: Any) -> bool:
    """Tell whether an ``init_cfg`` reads weights: mmengine's types, the libraries' and ours say so in their names."""
    kind = config.get("type") if isinstance(config, Mapping) else None
    return "Pretrained" in getattr(kind, "__name__", str(kind))


def _names_weights(key: Any) -> bool:
    return key in ("pretrained", "checkpoint", "load_from") or str(key).endswith("_ckpt")


def make_folder(path: str | Path, option: str) -> Path:
    """Create the folder that an option names, or that is to hold its file, and make sure that it can be written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written to: {error.strerror}; choose another") from error
    return path


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Return ``"PATH: OLD -> NEW"`` for every entry in which two configs differ, in the order of the second."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = [*after, *(key for key in before if key not in after)]
        inside = [
            differences(before.get(key, ABSENT), after.get(key, ABSENT), f"{path}.{key}" if path else str(key))
            for key in keys
        ]
        return [line for lines in inside for line in lines]
    if isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for number, (a, b) in pairs for line in differences(a, b, f"{path}.{number}")]
    same = before is after or (type(before) is type(after) and before == after)
    return [] if same else [f"{path}: {_short(before)} -> {_short(after)}"]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's kind if it has none."""
    text = str(error.args[0] if error.args and isinstance(error, KeyError) else error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _short(value: Any) -> str:
    text = value if value is ABSENT else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
