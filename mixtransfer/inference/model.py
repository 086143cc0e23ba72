"""A trained network with its pipeline, classes and colors, built from its checkpoint alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mixtransfer.checkpoints.load import load_strictly
from mixtransfer.checkpoints.read import find_weights, read_checkpoint
from mixtransfer.checkpoints.verify import build_without_values
from mixtransfer.datasets.classes import trained_classes
from mixtransfer.datasets.configure import class_info, leaf_datasets, type_name
from mixtransfer.datasets.folders import make_palette
from mixtransfer.engine.build import prepare
from mixtransfer.engine.config import task_of
from mixtransfer.engine.console import quiet_libraries
from mixtransfer.engine.guarded_loading import GuardedLoading
from mixtransfer.engine.sampling import UNREADABLE, last_line
from mixtransfer.errors import UserError
from mixtransfer.inference.embedded import embedded_config
from mixtransfer.inference.results import Classification, Detections, Segmentation, as_prediction
from mixtransfer.inference.tiles import joined, tiles_of
from mixtransfer.registry import import_quietly

__all__ = ["Answer", "Image", "Model", "load_model"]

#: A file, or pixels: RGB, (H, W, 3) uint8.
Image = str | Path | np.ndarray
Answer = Segmentation | Detections | Classification


def load_model(
    checkpoint: str | Path,
    device: str | torch.device | None = None,
    *,
    trust: bool = False,
    adapt: Callable[[Config], None] | None = None,
) -> Model:
    """Return the model of a checkpoint of training: its config, classes and colors are in the file.

    Args:
        checkpoint: a file that ``mixtransfer train`` wrote, or mmseg, mmdet or mmpretrain did.
        device: where to run; by default the first GPU, or the CPU without one.
        trust: let the file run code, and its config import modules.
        adapt: changes the config in place before anything is built, such as
            ``lambda cfg: use_windows(cfg, 512, 341)`` of :mod:`mixtransfer.evaluation.protocols`.

    Raises:
        UserError: the file is damaged, holds no config, one with unknown types, or weights that do not fit it.
    """
    content = read_checkpoint(checkpoint, trust)
    with _described_by(str(checkpoint)):
        cfg = embedded_config(content, str(checkpoint), trust)
        return Model(cfg, content, str(checkpoint), device, trust=trust, adapt=adapt)


@contextmanager
def _described_by(name: str) -> Iterator[None]:
    """Say in one line what libraries raise about the config of a checkpoint, which anybody may have written."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        kind, reason = type(error).__name__, (str(error).strip().splitlines() or ["-"])[0]
        raise UserError(f"{name}: its config describes no model that works: {kind}: {reason[:200]}") from error


class Model:
    """A trained segmentor, detector or classifier that answers about images.

    Args:
        cfg: its config; changed to what predicting needs.
        content: its checkpoint, from :func:`~mixtransfer.checkpoints.read.read_checkpoint`.
        name: the checkpoint, for messages.
        device: where to run; by default the first GPU, or the CPU without one.
        trust: let files that the config names run code.
        adapt: changes the config in place before anything is built.

    Attributes:
        task: "seg", "det" or "cls".
        classes: names in the order of the network's outputs.
        palette: a color (R, G, B) for each class.
        values: what masks of the training data hold for each class, (K,) int64; of a segmentor.
        network: the library's model, in evaluation.
        batch_size: images a pass of :meth:`predict`, unless said otherwise: that of the config's tests.
    """

    def __init__(
        self,
        cfg: Config,
        content: Mapping[str, Any],
        name: str,
        device: str | torch.device | None = None,
        *,
        trust: bool = False,
        adapt: Callable[[Config], None] | None = None,
    ):
        self.task, self.name = task_of(cfg), name
        prepare(cfg, "predict")
        import_quietly(f"{cfg.default_scope}.datasets")
        init_default_scope(cfg.default_scope)
        dataset = next(leaf_datasets(cfg.test_dataloader.dataset))
        dataset["pipeline"] = _without_annotations(dataset["pipeline"])
        if adapt is not None:
            adapt(cfg)
        self.cfg = cfg
        # A classifier's config has it beside the model, as mmengine's runner takes it.
        preprocessor = {"data_preprocessor": cfg.data_preprocessor} if "data_preprocessor" in cfg else {}
        # All values come from the file: a config that describes far more than it holds takes no memory for that.
        with GuardedLoading(trust), build_without_values(), quiet_libraries():
            self.network: nn.Module = MODELS.build({**preprocessor, **cfg.model})
        load_strictly(self.network, find_weights(content, name), name)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network.to(self.device).eval()
        self._asked = _merging(cfg, self.network)
        info = class_info(dataset, cfg.default_scope)
        self.classes = trained_classes(content) or tuple(info.get("classes") or ())
        self.palette = _palette(content, info, self.classes)
        self.values = _stored_values(dataset, self.classes)
        self.batch_size = int(cfg.test_dataloader.get("batch_size", 1))
        self._steps: list[Callable[[dict], Any]] = Compose(dataset["pipeline"]).transforms

    def predict(
        self, images: Image | Sequence[Image], *, batch_size: int | None = None, tile: int | None = None
    ) -> Any:
        """Return the answer about an image, or a list of them about several.

        Args:
            images: a file or pixels (RGB, (H, W, 3) uint8), or a sequence of these.
            batch_size: images a pass; only those of one size share a pass, so that answers do not depend on it.
            tile: side in pixels of the squares that larger images are cut into, each an image of its own to the
                network; of a segmentor or detector.

        Returns:
            :class:`~mixtransfer.inference.results.Segmentation`,
            :class:`~mixtransfer.inference.results.Detections` or
            :class:`~mixtransfer.inference.results.Classification`.

        Raises:
            UserError: an image cannot be read.
        """
        single = isinstance(images, str | Path | np.ndarray)
        answers = []
        for _, answer in self.each([images] if single else images, batch_size=batch_size, tile=tile):
            if isinstance(answer, UserError):
                raise answer
            answers.append(answer)
        return answers[0] if single else answers

    def each(
        self, images: Iterable[Image], *, batch_size: int | None = None, tile: int | None = None
    ) -> Iterator[tuple[Image, Answer | UserError]]:
        """Yield each image with its answer, in order, or with the error why it cannot be read.

        Takes what :meth:`predict` takes, and holds no more than a batch in memory.
        """
        if tile is not None and self.task == "cls":
            raise UserError("tile: a classifier answers about the whole image; leave it out")
        waiting: list[tuple[Image, Any, tuple[int, int]]] = []
        most = batch_size or self.batch_size
        for image in images:
            try:
                pixels = self._load(image)
            except UserError as error:
                yield from self._answers(waiting)
                waiting = []
                yield image, error
                continue
            size = pixels["img"].shape[:2]
            if tile is not None and max(size) > tile:
                yield from self._answers(waiting)
                waiting = []
                yield image, self._tiled(pixels, size, tile)
                continue
            packed = self._pack(pixels)
            if waiting and (len(waiting) == most or _shapes(waiting[0][1]) != _shapes(packed)):
                yield from self._answers(waiting)
                waiting = []
            waiting.append((image, packed, size))
        yield from self._answers(waiting)

    def load(self, image: Image) -> np.ndarray:
        """Return an image as the network's pipeline loads it, in OpenCV's order of channels.

        Raises:
            UserError: it cannot be read.
        """
        return self._load(image)["img"]

    def _load(self, image: Image) -> dict[str, Any]:
        first = 1 + next(k for k, step in enumerate(self._steps) if "Load" in type(step).__name__)
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise UserError(f"an image of shape {image.shape} and type {image.dtype}; give RGB, (H, W, 3) uint8")
            bgr = np.ascontiguousarray(image[..., ::-1])
            results = dict(img=bgr, img_path=None, img_shape=bgr.shape[:2], ori_shape=bgr.shape[:2])
            loaded, rest = results, [step for step in self._steps[first:] if type(step).__name__ == "CheckImage"]
        else:
            loaded, rest = dict(img_path=str(image)), self._steps[: first + 1]
            rest = [step for k, step in enumerate(rest) if k < first or type(step).__name__ == "CheckImage"]
        loaded["img_id"] = 0
        try:
            for step in rest:
                loaded = step(loaded)
        except UNREADABLE as error:
            raise UserError(f"{image}: cannot be loaded ({last_line(error)})") from error
        return loaded

    def _pack(self, loaded: dict[str, Any]) -> Any:
        first = 1 + next(k for k, step in enumerate(self._steps) if "Load" in type(step).__name__)
        with _described_by(self.name):
            for step in self._steps[first:]:
                loaded = step(loaded)
        return loaded

    def _answers(self, waiting: list[tuple[Image, Any, tuple[int, int]]]) -> Iterator[tuple[Image, Answer]]:
        if not waiting:
            return
        with torch.no_grad(), _described_by(self.name):
            samples = self._asked.test_step(pseudo_collate([packed for _, packed, _ in waiting]))
        for (image, _, size), sample in zip(waiting, samples, strict=True):
            yield image, as_prediction(sample, size, self.classes, self.name)

    def _tiled(self, loaded: dict[str, Any], size: tuple[int, int], tile: int) -> Answer:
        answers = []
        for box in tiles_of(size, tile):
            piece = np.ascontiguousarray(loaded["img"][box.top : box.bottom, box.left : box.right])
            shape = piece.shape[:2]
            packed = self._pack({**loaded, "img": piece, "img_shape": shape, "ori_shape": shape})
            [(_, answer)] = self._answers([("", packed, shape)])
            answers.append((box, answer))
        return joined(answers, size)


def _without_annotations(pipeline: Sequence[Mapping]) -> list[Mapping]:
    """Return a test pipeline without what loads annotations."""
    return [step for step in pipeline if not type_name(step).startswith("Load") or "Image" in type_name(step)]


def _merging(cfg: Config, network: nn.Module) -> Any:
    """Return what answers: the network, or what merges its answers about several views of an image."""
    hooks = [hook for hook in cfg.get("custom_hooks") or [] if type_name(hook) == "PrepareTTAHook"]
    return MODELS.build({**hooks[0]["tta_cfg"], "module": network}) if hooks else network


def _shapes(packed: Mapping[str, Any]) -> list[torch.Size]:
    """Return the sizes of an image as the network sees it, of all its views."""
    inputs = packed["inputs"]
    return [view.shape for view in (inputs if isinstance(inputs, list) else [inputs])]


def _palette(content: Mapping[str, Any], info: Mapping[str, Any], classes: Sequence[str]) -> list[tuple[int, ...]]:
    meta = content.get("meta")
    kept = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    for found in (kept.get("palette") if isinstance(kept, Mapping) else None, info.get("palette")):
        if isinstance(found, list | tuple) and len(found) == len(classes) > 0 and all(map(_is_color, found)):
            return [tuple(color) for color in found]
    return list(make_palette(len(classes)))


def _is_color(color: Any) -> bool:
    return isinstance(color, list | tuple) and len(color) == 3 and all(type(x) is int and 0 <= x < 256 for x in color)


def _stored_values(dataset: Mapping[str, Any], classes: Sequence[str]) -> np.ndarray:
    """Return what the masks of a dataset hold for each class of the model."""
    from mmengine.registry import DATASETS

    reduced = dataset.get("reduce_zero_label")
    if reduced is None:
        kind = DATASETS.get(dataset["type"]) if isinstance(dataset.get("type"), str) else None
        parameter = inspect.signature(kind).parameters.get("reduce_zero_label") if kind else None
        reduced = parameter is not None and parameter.default is True
    stored = list(dataset.get("stored_classes") or classes)
    order = [stored.index(name) if name in stored else k for k, name in enumerate(classes)]
    return np.array(order, np.int64) + bool(reduced)
