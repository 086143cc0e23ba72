"""What ``train`` and ``test`` share: their arguments, and the way from a config file to a runner.

Everything that can be wrong with the input is looked at before anything slow is built, most of it before torch is
imported.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtransfer.cli.progress import progress_line
from mixtransfer.errors import UserError, unknown_name

if TYPE_CHECKING:
    from mmengine.config import Config

    from mixtransfer.transfer.runner import TransferRunner

CONFIGS = Path(__file__).parents[2] / "configs"
#: The top-level names of a config that a runner reads; everything else is a variable of the config file.
READ_BY_RUNNER = (
    "model data_preprocessor train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg auto_scale_lr"
    " optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks custom_hooks load_from env_cfg"
    " log_processor log_level visualizer default_scope randomness compile sync_bn find_unused_parameters"
    " model_wrapper_cfg activation_checkpointing efficient_conv_bn_eval"
).split()
TASKS = {"mmseg": "seg", "mmdet": "det", "mmpretrain": "cls"}
LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command on a config takes, the config first."""
    parser.add_argument("config", metavar="CONFIG", help="a config file, e.g. configs/seg/upernet_swin_tlalign.py")
    parser.add_argument("--data", metavar="DIR", help="dataset folder to use instead of the config's, or 'scenes'")
    parser.add_argument("--work-dir", metavar="DIR", help="where results go (default: work_dirs/<name of the config>)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change entries of the config, e.g. train_dataloader.batch_size=4",
    )
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="how distributed processes were started")
    parser.add_argument("--trust", action="store_true", help="let checkpoints run code (only if you know their author)")


def load_config(args: argparse.Namespace, splits: Sequence[str]) -> Config:
    """Return the config that ``args`` describe: file, options, dataset and work directory, all checked.

    Args:
        args: parsed arguments of :func:`add_arguments`.
        splits: the splits that will be read, "train", "val" or "test"; their data must be there.
    """
    cfg = read_config(args.config)
    apply_options(cfg, args.cfg_options, args.config)
    if cfg.get("custom_imports"):
        # Importing is left to the registries, which do it when a class is looked up.
        cfg.pop("custom_imports")
    if "test" in splits and not cfg.get("test_dataloader"):
        raise UserError(f"{args.config}: nothing to measure: it has no test_dataloader (pretraining without labels)")
    use_data(cfg, args.data, splits)
    if "train" in splits:
        check_schedule(cfg)
    cfg.launcher = args.launcher
    cfg.work_dir = str(make_folder(args.work_dir or Path("work_dirs") / Path(args.config).stem, "--work-dir"))
    for split in ("train", "val", "test"):
        loader = cfg.get(f"{split}_dataloader")
        if loader and not loader.get("num_workers"):
            # torch refuses workers that persist where there are none.
            loader.persistent_workers = False
    # The libraries' hook draws nothing unless asked, and says so at every start.
    if "visualization" in cfg.get("default_hooks", {}):
        cfg.default_hooks.pop("visualization")
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
        raise UserError(f"{path}: not a config: {type(error).__name__}: {_first_line(error)}") from error
    if "model" not in cfg:
        raise UserError(f"{path}: not a config of a training: it has no 'model'")
    return cfg


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
        raise UserError(f"--cfg-options {' '.join(options)}: {_first_line(error)}") from error


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
    """Make sure that the weights which parts of a model start from are there."""
    parts = model.items() if isinstance(model, Mapping) else enumerate(model) if isinstance(model, list) else ()
    if isinstance(model, Mapping) and str(model.get("type")).endswith("Pretrained"):
        file = str(model.get("checkpoint"))
        if "://" not in file and not Path(file).is_file():
            raise UserError(
                f"no pretrained weights in {file}; give their file with --cfg-options {name}.checkpoint=FILE, or"
                f" {name}=None to start from random weights"
            )
    for key, part in parts:
        require_pretrained(part, f"{name}.{key}")


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


def build_runner(cfg: Config, trust: bool = False) -> TransferRunner:
    """Build the runner of a checked config; with ``trust`` the checkpoints that it reads may run code."""
    from mmengine.runner.utils import set_random_seed

    from mixtransfer.datasets.label_check import add_label_check
    from mixtransfer.registry import import_quietly
    from mixtransfer.transfer import fit_channels
    from mixtransfer.transfer.runner import TransferRunner

    import_quietly(f"{cfg.default_scope}.datasets")
    if "decode_head" in cfg.model:
        add_label_check(cfg)
    if cfg.get("randomness", {}).get("seed") is None:
        cfg.randomness = {**cfg.get("randomness", {}), "seed": 0}
    set_random_seed(cfg.randomness.seed)
    fit_channels(cfg)
    runner = TransferRunner.from_cfg(cfg)
    runner.trust = trust
    return runner


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn what the libraries raise about a config, and what a data worker raises, into a one-line UserError."""
    try:
        yield
    except UserError as error:
        # A worker's exception arrives as the text of its traceback.
        if "\n" in str(error):
            raise UserError(str(error).strip().splitlines()[-1].partition("UserError: ")[2]) from error
        raise
    except TypeError as error:
        if re.search(r"__init__\(\) (got an unexpected keyword|missing \d+ required)", str(error)):
            raise UserError(f"{name}: {_first_line(error)}") from error
        raise
    except KeyError as error:
        if "is not in the" in str(error) and "registry" in str(error):
            raise UserError(f"{name}: {str(error.args[0]).partition('.')[0]}") from error
        raise
    except ValueError as error:
        if str(error).startswith("Expected more than 1 value per channel"):
            raise UserError(
                f"{name}: a batch of one image has nothing to normalize maps of one pixel by; set"
                " train_dataloader.batch_size=2 or more"
            ) from error
        raise


def _first_line(error: BaseException) -> str:
    text = str(error.args[0] if error.args and isinstance(error, KeyError) else error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def plain(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: numpy's numbers as Python's, not-a-number as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and value != value else value
