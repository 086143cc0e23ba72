"""Identity of a measurement: a hash over what can change its numbers, and nothing else.

The hash is over an allow-list. Device, workers, logs, folders and checkpoint intervals are left out, so that moving a
run does not make it another one; weights and data stand for themselves by their content and not by their path.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mixtransfer import __version__
from mixtransfer.checkpoints.whole_files import file_hash, write_json
from mixtransfer.datasets.configure import leaf_datasets

__all__ = ["Fingerprints", "commit", "content_hash", "digest", "resolved", "versions"]

#: Top-level entries of a config that numbers follow from; of those below, only the listed entries.
WHOLE = (
    "model data_preprocessor optim_wrapper param_scheduler custom_hooks auto_scale_lr compile sync_bn default_scope"
    " model_wrapper_cfg efficient_conv_bn_eval test_evaluator"
).split()
PARTLY = {
    "train_dataloader": "batch_size drop_last collate_fn sampler batch_sampler dataset",
    "test_dataloader": "batch_size collate_fn dataset",
    "train_cfg": "type by_epoch max_epochs max_iters",
    "randomness": "diff_rank_seed deterministic",
}
#: Entries of a dataset that say where it lies; its fingerprint stands for it.
PLACES = ("data_root", "serialize_data", "lazy_init", "max_refetch", "_scope_")
#: Packages that numbers come from. Where a package has two names, either is found.
PACKAGES = (
    "torch torchvision numpy opencv-python-headless opencv-python pillow timm safetensors scipy pycocotools hotcoco"
    " onedl-mmengine mmengine onedl-mmcv mmcv onedl-mmdetection mmdet onedl-mmsegmentation mmsegmentation"
    " onedl-mmpretrain mmpretrain"
).split()


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those that numbers come from."""
    found = {"python": platform.python_version(), "mixtransfer": __version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> dict[str, Any]:
    """Return the commit of the checkout that this package is imported from, and whether files in it were changed.

    Empty for an installed package and where there is no git.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return {}

    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "mixtransfer", "configs")
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {}


def content_hash(content: Any) -> str:
    """Return the SHA-256 of plain values as JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def digest(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of tensors, whatever container they came from."""
    import torch

    total = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return total.hexdigest()


def resolved(cfg: Config, stand_ins: Mapping[str, str] = {}) -> dict[str, Any]:
    """Return the entries of a config that numbers follow from, as plain values without a path in them.

    A string that names a file becomes ``"sha256:…"``. Datasets lose their folder: :class:`Fingerprints` tells them
    apart.

    Args:
        cfg: from :func:`~mixtransfer.engine.config.load_config`, before anything else has changed it.
        stand_ins: path -> what stands in its place, for files that are still to be made.
    """
    config = cfg.to_dict()
    roots = {str(leaf.get("data_root")) for leaf in _leaves(config) if leaf.get("data_root")}
    chosen = {key: config[key] for key in WHOLE if config.get(key) is not None}
    for key, entries in PARTLY.items():
        part = config.get(key) or {}
        found = {entry: part[entry] for entry in entries.split() if part.get(entry) is not None}
        chosen.update({key: found} if found else {})
    return _plain(chosen, stand_ins, sorted(roots, key=len, reverse=True))


def _leaves(config: Mapping) -> Iterable[Mapping]:
    for split in ("train", "val", "test"):
        yield from leaf_datasets((config.get(f"{split}_dataloader") or {}).get("dataset") or {})


def _plain(part: Any, stand_ins: Mapping[str, str], roots: list[str]) -> Any:
    if isinstance(part, Mapping):
        kept = {key: value for key, value in part.items() if value is not None and key not in PLACES}
        return {str(key): _plain(value, stand_ins, roots) for key, value in kept.items()}
    if isinstance(part, list | tuple):
        return [_plain(value, stand_ins, roots) for value in part]
    if isinstance(part, str):
        return _without_path(part, stand_ins, roots)
    if isinstance(part, bool | int | float) or part is None:
        return part
    return f"{part.__module__}.{part.__qualname__}" if isinstance(part, type) else str(part)


def _without_path(text: str, stand_ins: Mapping[str, str], roots: list[str]) -> str:
    if text in stand_ins:
        return stand_ins[text]
    for root in roots:
        if text.startswith(f"{root}/"):
            return f"DATA{text[len(root) :]}"
    with contextlib.suppress(OSError, ValueError):
        if len(text) < 4096 and Path(text).is_file():
            return f"sha256:{file_hash(Path(text))}"
    return text


class Fingerprints:
    """Hashes of datasets by the list of their files and the contents of these.

    Args:
        memory: a JSON file that keeps hashes of folders whose files have the same names, sizes and times as before.
    """

    def __init__(self, memory: Path | None = None):
        self.memory = memory
        try:
            self.known: dict[str, str] = json.loads(memory.read_text(encoding="utf-8")) if memory else {}
        except (OSError, ValueError):
            self.known = {}

    def of(self, cfg: Config, split: str) -> str:
        """Return the hash of the data that a config reads for ``split``, "train", "val" or "test"."""
        dataset = (cfg.get(f"{split}_dataloader") or {}).get("dataset") or {}
        return content_hash([self._folder(leaf) for leaf in leaf_datasets(dataset)])

    def _folder(self, dataset: Mapping) -> str:
        root = Path(dataset.get("data_root") or ".")
        prefix = dataset.get("data_prefix") or {}
        places = [*(prefix.values() if isinstance(prefix, Mapping) else [prefix]), dataset.get("ann_file") or ""]
        files: set[Path] = set()
        for place in {root / place for place in places if place} or {root}:
            files |= {path for path in place.rglob("*") if path.is_file()} if place.is_dir() else {place}
        listed = sorted((path.relative_to(root).as_posix(), path) for path in files if path.is_file())
        stats = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in listed]
        key = content_hash([str(root.resolve()), stats])
        if key not in self.known:
            self.known[key] = content_hash([(name, file_hash(path)) for name, path in listed])
            if self.memory:
                write_json(self.memory, self.known)
        return self.known[key]
