"""Configs: reading the file, applying options and the dataset, and the checks that need no torch.

Everything that can be wrong with the input is checked before anything slow is built.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtransfer.engine.cfg_options import LISTS, SECTIONS, apply_options, first_line
from mixtransfer.engine.launchers import check_launcher
from mixtransfer.engine.recipes import find_config
from mixtransfer.errors import UserError
from mixtransfer.progress import notice, progress_line

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = [
    "differences",
    "drop_pretrained",
    "load_config",
    "make_folder",
    "parse_config",
    "read_config",
    "require_pretrained",
    "task_of",
]

TASKS = {"mmseg": "seg", "mmdet": "det", "mmpretrain": "cls"}
#: What :func:`differences` shows for an entry that one of the configs lacks, and the longest value it shows in full.
ABSENT, SHOWN = "(absent)", 80
#: What configs in work dirs of earlier versions call otherwise: types, and the side of a cell that regions lie on.
FORMER_TYPES = {"OneOf": "RandomChoice"}
FORMER_OPTIONS = {"token": "cell_size"}
#: Steps of pipelines that commands added to the configs in work dirs; their successors are added again.
FORMER_STEPS = {"CheckLabels"}
CELLED = (
    *("TokenMixHook", "MixingClassifier", "DistilledClassifier", "TokenLabelingClassifier", "DynamicClassifier"),
    "OAMixer",
)


def load_config(
    path: str | Path,
    splits: Sequence[str],
    *,
    arch: str | None = None,
    options: Sequence[str] = (),
    data: str | None = None,
    work_dir: str | Path | None = None,
    launcher: str = "none",
    zero_is_class: bool | None = None,
) -> Config:
    """Return the config of a file with its options, dataset and work directory, all checked.

    Args:
        path: the config file.
        splits: the splits that will be read, "train", "val" or "test"; their data must be there.
        arch: another size of the recipe's backbone, with its values, see :func:`~mixtransfer.engine.sizes.apply_arch`;
            what changes is said.
        options: ``KEY=VALUE`` changes, see :func:`~mixtransfer.engine.cfg_options.apply_options`.
        data: dataset folder to use instead of the config's, or ``"scenes"``.
        work_dir: where results go; by default ``work_dirs/<name of the config>``.
        launcher: how distributed processes were started, one of ``LAUNCHERS``.
        zero_is_class: whether label 0 of masks is a class, see
            :func:`~mixtransfer.datasets.folders.open_dataset`.

    Raises:
        UserError: the file, an option, the dataset or the folder is not as it should be.
    """
    check_launcher(launcher)
    cfg = read_config(path)
    if arch is not None:
        from mixtransfer.engine.sizes import apply_arch

        before = cfg.to_dict()
        remark = apply_arch(cfg, arch, str(path))
        for line in [*differences(before, cfg.to_dict()), *([] if remark is None else [remark])]:
            notice(f"--arch {arch}: {line}")
    apply_options(cfg, options, str(path))
    check_windows(cfg)
    if "test" in splits and not cfg.get("test_dataloader"):
        raise UserError(f"{path}: nothing to measure: it has no test_dataloader (pretraining without labels)")
    use_data(cfg, data, splits, zero_is_class)
    if "train" in splits:
        check_schedule(cfg)
    cfg.launcher = launcher
    cfg.work_dir = str(make_folder(work_dir or Path("work_dirs") / Path(path).stem, "--work-dir"))
    return cfg


def read_config(path: str | Path) -> Config:
    """Read a config, a file or the name of one of ours.

    ``_base_`` may name the configs of installed libraries, as in ``mmseg::_base_/...``.

    Raises:
        UserError: no such file, with the near names, or a file that cannot be read as a config.
    """
    file = find_config(path)
    cfg = parse_config(file)
    if "model" not in cfg:
        raise UserError(f"{path}: not a config of a training: it has no 'model'")
    for key in (*SECTIONS, *LISTS):
        value = cfg.get(key)
        items = value if key in LISTS and isinstance(value, list | tuple) else [value]
        if value is not None and not all(isinstance(item, Mapping) for item in items):
            raise UserError(
                f"{path}: {key} is {str(value)[:60]!r}; write dict(...){' or a list of such' * (key in LISTS)}"
            )
    try:
        accept_former_names(cfg._cfg_dict)
    except ImportError as error:  # what a config imports is imported when it is looked at
        raise UserError(f"{path}: {first_line(error)}") from error
    return cfg


def parse_config(path: str | Path) -> Config:
    """Read a file in the language of configs, whatever it is about.

    Raises:
        UserError: it cannot be read.
    """
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE

    # mmengine looks for the distribution "mmsegmentation"; the maintained one has another name, the module has not.
    MODULE2PACKAGE["mmseg"] = "mmseg"
    try:
        with _bases_by_path():
            return Config.fromfile(path, import_custom_modules=False)
    except SyntaxError as error:
        raise UserError(f"{path}: not a config: line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # all that is run here is the config's own code
        raise UserError(f"{path}: not a config: {type(error).__name__}: {first_line(error)}") from error


@contextlib.contextmanager
def _bases_by_path() -> Iterator[None]:
    """Let mmengine take a library's config from where its name says.

    For every ``_base_`` in a library it would read all of the library's tables of results, 0.1 s each.
    """
    from mmengine.config import config, utils

    by_tables = config._get_external_cfg_path

    def find(package: str, name: str) -> str:
        try:
            return utils._get_external_cfg_base_path(package, name)
        except FileNotFoundError:
            return by_tables(package, name)

    config._get_external_cfg_path = find
    try:
        yield
    finally:
        config._get_external_cfg_path = by_tables


def accept_former_names(part: Any) -> None:
    """Put today's names of types and options in place of those of earlier versions, throughout a config, in place."""
    if isinstance(part, dict):
        kind = _kind(part)
        # A transform of albumentations is called OneOf too.
        if kind in FORMER_TYPES and "regions" in part:
            part["type"] = FORMER_TYPES[kind]
        for old, new in FORMER_OPTIONS.items() if kind in CELLED else ():
            if old in part:
                part[new] = part.pop(old)
    if isinstance(part, list):
        part[:] = [value for value in part if _kind(value) not in FORMER_STEPS]
    inside = list(part.values()) if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else ()
    for value in inside:
        accept_former_names(value)


def _kind(part: Any) -> str:
    """Return the type that a part of a config names, without its registry."""
    return str(part.get("type", "")).rpartition(".")[2] if isinstance(part, Mapping) else ""


def task_of(cfg: Config) -> str:
    """Return what a config is for: "seg", "det" or "cls"."""
    scope = cfg.get("default_scope")
    if scope not in TASKS:
        raise UserError(f"default_scope={scope!r}: give {', '.join(TASKS)}; it tells what the config is for")
    return TASKS[scope]


def use_data(cfg: Config, data: str | None, splits: Sequence[str], zero_is_class: bool | None = None) -> None:
    """Put the config on the dataset folder ``data``, or make sure that its own dataset is there."""
    from mixtransfer.datasets.configure import apply_dataset, require_dataset
    from mixtransfer.datasets.folders import open_dataset
    from mixtransfer.datasets.image_sizes import size_note

    if data is None:
        if zero_is_class is not None:
            raise UserError("--zero-is-class: is about the masks of --data; give it too")
        require_dataset(cfg, splits)
    else:
        progress = progress_line("preparing the dataset")
        folder = open_dataset(data, task_of(cfg), progress=progress, zero_is_class=zero_is_class)
        apply_dataset(cfg, folder)
        if "train" in splits and (said := size_note(cfg, folder)):
            notice(said)


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


def check_windows(cfg: Config) -> None:
    """Make sure that a segmentor that is tested window by window knows their size and how far apart they are.

    Raises:
        UserError: ``model.test_cfg`` lacks one of them.
    """
    test = cfg.model.get("test_cfg")
    if isinstance(test, Mapping) and test.get("mode") == "slide" and not {"crop_size", "stride"} <= test.keys():
        raise UserError(
            "model.test_cfg.mode=slide needs the windows too: --cfg-options model.test_cfg.mode=slide"
            " 'model.test_cfg.crop_size=(512,512)' 'model.test_cfg.stride=(341,341)'"
        )


def require_pretrained(model: Any, name: str = "model") -> None:
    """Make sure that the weights which parts of a model start from are files, and there; names are fetched, in place.

    Raises:
        UserError: another URL, wherever in the model it stands, or a file that is not there or cannot be fetched.
    """
    from mixtransfer.checkpoints.fetch import is_name, located
    from mixtransfer.checkpoints.headers import is_url

    if isinstance(model, str):
        if is_url(model):
            raise UserError(
                f"{name}={model}: a URL, where a file is needed; download it first and say --cfg-options {name}=FILE"
            )
        return
    for key, part in _parts(model):
        where = f"{name}.{key}" if name else str(key)
        if isinstance(part, str) and is_name(part) and _names_weights(key):
            try:
                model[key] = part = str(located(part))
            except UserError as error:
                raise UserError(f"{where}: {error}; then say --cfg-options {where}=FILE, or run this again") from None
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


def _short(value: Any) -> str:
    text = value if value is ABSENT else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
