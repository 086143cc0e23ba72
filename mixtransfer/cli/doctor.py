"""``doctor``: what is installed, which ops are served by what, GPUs, datasets found, and one training step a task."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mixtransfer import __version__
from mixtransfer.errors import visible

if TYPE_CHECKING:
    import torch

__all__ = ["parser", "run"]

PACKAGES = (
    "torch torchvision timm onedl-mmengine onedl-mmcv onedl-mmdetection onedl-mmsegmentation onedl-mmpretrain"
    " mmengine mmcv mmdet mmsegmentation mmpretrain numpy opencv-python opencv-python-headless pillow pycocotools"
    " safetensors transformers onnx onnxruntime tensorboard wandb mlflow"
).split()
#: Task -> the config whose model makes a step, and what keeps it small.
STEPS = {
    "cls": ("swin_micro_scenes", ()),
    "seg": ("upernet_swin_micro_scenes", ("model.backbone.init_cfg=None",)),
    "det": (
        "mask_rcnn_swin_micro_nuts",
        ("model.backbone.init_cfg=None", "train_dataloader.dataset.pipeline.2.scale=(128,128)"),
    ),
}
TASKS = {"cls": "classification", "seg": "segmentation", "det": "detection"}


def parser() -> argparse.ArgumentParser:
    """Return the options: there is one."""
    options = argparse.ArgumentParser(
        prog="mixtransfer doctor",
        description="Print what is installed, which ops are served by what, GPUs and datasets, and train each task for"
        " one step on scenes drawn for it. Paste the output into a bug report. Exit status 1 if a step fails.",
    )
    options.add_argument(
        "--data", default="data", metavar="DIR", help="folder whose folders are looked at for datasets (default: data)"
    )
    return options


def run(args: argparse.Namespace) -> int:
    """Print the report; return 0, or 1 if a task cannot make a step."""
    for name, value in _installation():
        print(f"{name:<24} {value}", flush=True)
    for name, value in (*_devices(), *_ops(), *_datasets(Path(args.data))):
        print(f"{name:<24} {visible(value)}", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        from mixtransfer.datasets.scenes import write_scenes

        data = write_scenes(
            Path(folder) / "scenes", train=2, val=1, classify_train=12, classify_val=12, size=(128, 128)
        )
        for task in STEPS:
            start = time.monotonic()
            try:
                said = _step(task, data, Path(folder) / task)
            except Exception as error:
                # Whatever a library raises here is the finding.
                failed += 1
                said = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"{TASKS[task]:<24} {visible(said)}, {time.monotonic() - start:.1f} s", flush=True)
    return 1 if failed else 0


def _installation() -> Iterator[tuple[str, str]]:
    yield "mixtransfer", f"{__version__}, {Path(__file__).parents[1]}"
    yield "python", f"{platform.python_version()}, {sys.executable}"
    yield "system", f"{platform.platform()}, {os.cpu_count()} cores"
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield package, importlib.metadata.version(package)


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    if not torch.cuda.is_available():
        yield "GPU", f"none that torch {torch.__version__} finds; everything runs on CPU"
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        yield f"GPU {number}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _ops() -> Iterator[tuple[str, str]]:
    from mixtransfer.compat.mmcv_ops import SERVED, install, is_installed

    # They are there from the first import of mmcv.ops on, which has not happened yet.
    install()
    if is_installed():
        yield "mmcv ops", f"mmcv came without compiled ops; mixtransfer serves {len(SERVED)} on torch and torchvision"
    else:
        yield "mmcv ops", "mmcv's own, compiled"


def _datasets(folder: Path) -> Iterator[tuple[str, str]]:
    from mixtransfer.datasets.folders import found_layouts

    places = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    found = [(path, found_layouts(path)) for path in places]
    found += [(path / kind, [kind]) for path in places if (path / "scenes.json").is_file() for kind in TASKS]
    lines = [(str(path), ", ".join(TASKS[kind] for kind in kinds)) for path, kinds in found if kinds]
    yield from lines or [("datasets", f"none in {folder.resolve()}")]


def _step(task: str, data: Path, work: Path) -> str:
    """Train for one step, without an update of the weights, and return what was seen."""
    from mixtransfer.engine.build import build_runner, prepare
    from mixtransfer.engine.config import load_config

    config, options = STEPS[task]
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cfg = load_config(config, ("train",), options=(*options, *_small(task)), data=str(data), work_dir=work)
        cfg.log_level = "ERROR"
        prepare(cfg, "draw")
        runner = build_runner(cfg)
        runner.initialize()
        loader = runner.build_dataloader(cfg.train_dataloader, seed=0)
        model = runner.model.train()
        batch = model.data_preprocessor(next(iter(loader)), True)
        loss, _ = model.parse_losses(model(**batch, mode="loss"))
        loss.backward()
    return f"{_judged(loss, model)} on {next(model.parameters()).device}"


def _small(task: str) -> tuple[str, ...]:
    return (f"train_dataloader.batch_size={6 if task == 'cls' else 2}", "train_dataloader.num_workers=0")


def _judged(loss: torch.Tensor, model: torch.nn.Module) -> str:
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    finite = all(bool(gradient.isfinite().all()) for gradient in gradients) and bool(loss.isfinite())
    if not gradients or not finite:
        raise ArithmeticError(f"loss {float(loss.detach()):.3g}, {len(gradients)} gradients, not all of them finite")
    return f"forward and backward: loss {float(loss.detach()):.3f}, {len(gradients)} gradients, all finite,"
