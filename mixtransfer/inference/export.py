"""A trained network as a file for other runtimes, proven to give the same answers before it is kept."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixtransfer.errors import UserError, unknown_name
from mixtransfer.inference.model import Model
from mixtransfer.layers import cpu
from mixtransfer.layers.compiling import traceable as tracing

__all__ = ["Traceable", "export", "loaded"]

#: The largest difference that is let pass, in standard deviations of the model's own answer.
TOLERANCE = 1e-3
#: Sides are free in steps of it: the largest stride of a backbone.
MULTIPLE = 32


class Traceable(nn.Module):
    """Pixels in, scores out: the network with its normalization, and without anything that depends on the image.

    Input is RGB, (B, 3, H, W) float32 from 0 to 255, of the size that the network is to see. A segmentor returns scores
    of classes (B, K, H, W), a classifier logits (B, K); with ``part="backbone"`` the backbone's maps are returned.

    Raises:
        UserError: a detector, whose boxes depend on the image in number; its backbone can be exported. A backbone
            without maps, as our classifiers have.
    """

    def __init__(self, model: Model, part: str = "model"):
        super().__init__()
        self.task, self.part, self.network = model.task, part, model.network
        if model.task == "det" and part != "backbone":
            raise UserError("a detector has as many boxes as an image shows, which no trace holds; say --part backbone")
        if part == "backbone" and getattr(self.network.backbone, "out_indices", None) == ():
            raise UserError("this backbone returns no maps, only the classifier's vector; export the model")
        preprocessor: Any = self.network.data_preprocessor
        normalized = bool(getattr(preprocessor, "_enable_normalize", False))
        # Pipelines load BGR. The libraries' preprocessors turn it to RGB by one of these, or not at all.
        rgb = bool(getattr(preprocessor, "_channel_conversion", False) or getattr(preprocessor, "to_rgb", False))
        mean = preprocessor.mean.reshape(1, -1, 1, 1) if normalized else torch.zeros(1, 3, 1, 1)
        std = preprocessor.std.reshape(1, -1, 1, 1) if normalized else torch.ones(1, 3, 1, 1)
        self.register_buffer("mean", mean.detach().clone().cpu())
        self.register_buffer("std", std.detach().clone().cpu())
        self.flip = not rgb

    def forward(self, images: Tensor) -> Any:
        """Return the scores, or the backbone's maps."""
        network: Any = self.network
        x = images.flip(1) if self.flip else images
        x = (x - self.mean) / self.std
        if self.part == "backbone":
            return tuple(network.backbone(x))
        if self.task == "cls":
            return network(x, mode="tensor")
        return network.encode_decode(x, [{"img_shape": tuple(x.shape[2:]), "pad_shape": tuple(x.shape[2:])}])


def export(model: Model, path: Path, to: str, size: Sequence[int], part: str = "model") -> list[str]:
    """Write a network to ``path`` and return what was proven, one line an entry.

    Height, width and number of images are free where the network can be traced so, else the number of images, else
    nothing; each attempt is proven on two inputs that differ in what it leaves free.

    Args:
        model: the network, on the CPU.
        path: the file, which is replaced whole.
        to: "onnx", "torchscript" or "exported".
        size: (height, width) of the images that it is traced with.
        part: "model" or "backbone".

    Raises:
        UserError: a package is missing, or the network cannot be traced, or answers otherwise afterwards.
    """
    writers = {"onnx": _write_onnx, "torchscript": _write_script, "exported": _write_exported}
    if to not in writers:
        raise unknown_name("format", to, writers)
    for package in ("onnx", "onnxscript", "onnxruntime") if to == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--to onnx: the package {package} is not installed; pip install 'mixtransfer[export]'")
    traceable = Traceable(model, part).eval()
    height, width = size
    images = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (2, 3, height, width)).astype(np.float32))
    partial = path.with_name(f".{path.name}.partial")
    said: list[str] = []
    try:
        with torch.no_grad(), cpu.plain_torch(), tracing(), _quiet():
            for free, dynamic, inputs in _attempts(images):
                try:
                    writers[to](traceable, inputs[0], dynamic, partial)
                    run = loaded(partial, to)
                    differences = [_difference(traceable, run, pixels) for pixels in inputs]
                except Exception as error:  # whatever a tracer raises: the next attempt leaves less free
                    said.append(f"not for {free}: {type(error).__name__}: {_reason(error)}")
                    continue
                if not all(difference <= TOLERANCE for difference in differences):
                    said.append(f"not for {free}: its answers are off by {max(differences):.2g} standard deviations")
                    continue
                os.replace(partial, path)
                shapes = " and ".join("x".join(map(str, pixels.shape)) for pixels in inputs)
                return [f"for {free}", f"proven on {shapes}: off by {max(differences):.1g} standard deviations", *said]
    finally:
        partial.unlink(missing_ok=True)
    raise UserError(f"{model.name}: cannot be exported to {to}: {said[-1]}")


def _attempts(images: Tensor) -> Iterator[tuple[str, dict[int, Any], list[Tensor]]]:
    """Yield what is left free, as words and as axes, and inputs that differ in it, most freedom first."""
    height, width = images.shape[2:]
    batch = torch.export.Dim("batch")
    if height % MULTIPLE == width % MULTIPLE == 0:
        # Networks pad other sizes, where a trace would keep the padding of the size it was made with.
        sides = {axis: MULTIPLE * torch.export.Dim(name) for axis, name in ((2, "rows"), (3, "columns"))}
        larger = F.interpolate(images[:1], (height + MULTIPLE, width + 2 * MULTIPLE))
        yield f"any number of images, sides multiples of {MULTIPLE}", {0: batch, **sides}, [images, larger]
    yield f"any number of images of {height}x{width}", {0: batch}, [images, images[:1]]
    yield f"one image of {height}x{width}", {}, [images[:1], images[1:]]


def _write_exported(module: nn.Module, images: Tensor, dynamic: dict[int, Any], path: Path) -> None:
    torch.export.save(_program(module, images, dynamic), path)


def _program(module: nn.Module, images: Tensor, dynamic: dict[int, Any]) -> torch.export.ExportedProgram:
    return torch.export.export(module, (images,), dynamic_shapes=(dynamic,) if dynamic else None, strict=False)


def _write_script(module: nn.Module, images: Tensor, dynamic: dict[int, Any], path: Path) -> None:
    torch.jit.save(torch.jit.trace(module, (images,), check_trace=False), str(path))


def _write_onnx(module: nn.Module, images: Tensor, dynamic: dict[int, Any], path: Path) -> None:
    torch.onnx.export(
        _program(module, images, dynamic), (), str(path), dynamo=True, external_data=False, input_names=["images"]
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    # TorchScript begins with its own code.
    return lines[-1 if "TorchScript" in lines[0] else 0][:160]


def loaded(path: Path, to: str) -> Callable[[Tensor], list[Tensor]]:
    """Return the function that an exported file holds: from images (B, 3, H, W) to the list of its answers."""
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: [torch.from_numpy(x) for x in session.run(None, {name: images.numpy()})]
    run: Any = torch.jit.load(str(path)) if to == "torchscript" else torch.export.load(path).module()
    return lambda images: _listed(run(images))


def _listed(answer: Any) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else list(answer)


def _difference(module: nn.Module, run: Callable[[Tensor], list[Tensor]], images: Tensor) -> float:
    """Return the largest difference between a module's answers and those of its file, in standard deviations."""
    pairs = zip(_listed(module(images)), run(images), strict=True)
    return max(float((own - other).abs().max() / own.std().clamp_min(1e-12)) for own, other in pairs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to themselves what tracers say about each operation."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
