"""Images per second, latency and memory of a whole model, in training steps and in tests, on images of one size.

Images and ground truth are random and in memory, so that nothing but the model is timed: no file is read, no image is
decoded or augmented. A training step is the config's: losses, gradients, clipping and optimizer.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

from mixtransfer.engine.config import task_of
from mixtransfer.evaluation.environment import forget_peak, peak_memory
from mixtransfer.registry import import_quietly

__all__ = ["Measured", "build", "random_batch", "sweep", "table"]

#: Steps before anything is timed, and the fewest that are.
WARM_UP, FEWEST = 2, 5
#: Objects of a random image of a detector, about as many as COCO's have.
OBJECTS = 7
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Measured:
    """One row.

    Attributes:
        config: the config's file.
        mode: ``"evaluation"`` or ``"training"``.
        batch: images in a step.
        size: (H, W) of the images in pixels.
        steps: how many were timed.
        images_per_second: images of all timed steps by their time.
        latency: percentile -> milliseconds of a step.
        memory: most memory in MiB: that of tensors on a GPU, on a CPU the process's resident memory, with everything
            that is loaded; None where the system does not tell.
        failed: why there are no figures, such as "out of memory"; empty otherwise.
    """

    config: str
    mode: str
    batch: int
    size: tuple[int, int]
    steps: int = 0
    images_per_second: float | None = None
    latency: Mapping[int, float] | None = None
    memory: float | None = None
    failed: str = ""


def build(cfg: Config) -> Any:
    """Build the model of a config, prepared for ``"predict"``, with random weights and a norm that one process has."""
    import_quietly(f"{cfg.default_scope}.datasets")
    init_default_scope(cfg.default_scope)
    preprocessor = {"data_preprocessor": cfg.data_preprocessor} if "data_preprocessor" in cfg else {}
    return revert_sync_batchnorm(MODELS.build({**preprocessor, **cfg.model, "_scope_": cfg.default_scope}))


def random_batch(cfg: Config, count: int, size: tuple[int, int], seed: int = 0) -> dict[str, list]:
    """Return a batch as a loader collates it: uint8 images (3, H, W) and samples with ground truth."""
    rng = torch.Generator().manual_seed(seed)
    images = [torch.randint(256, (3, *size), generator=rng, dtype=torch.uint8) for _ in range(count)]
    make = {"seg": _labeled_pixels, "det": _objects, "cls": _labeled_image}[task_of(cfg)]
    classes = _classes(cfg)
    return {"inputs": images, "data_samples": [make(classes, size, rng) for _ in images]}


def _classes(cfg: Config) -> int:
    heads = cfg.model.get("decode_head") or cfg.model.get("roi_head", cfg.model).get("bbox_head") or cfg.model
    heads = heads[-1] if isinstance(heads, Sequence) else heads
    return heads.get("num_classes") or heads.get("head", {}).get("num_classes") or 2


def _about(size: tuple[int, int]) -> dict[str, Any]:
    shapes = dict.fromkeys(("ori_shape", "img_shape", "pad_shape", "batch_input_shape"), size)
    return {**shapes, "scale_factor": (1.0, 1.0), "img_id": 0, "img_path": "", "flip": False}


def _labeled_pixels(classes: int, size: tuple[int, int], rng: torch.Generator) -> Any:
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=_about(size))
    sample.gt_sem_seg = PixelData(data=torch.randint(classes, (1, *size), generator=rng))
    return sample


def _objects(classes: int, size: tuple[int, int], rng: torch.Generator) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    sides = torch.tensor([size[1], size[0]]).repeat(2)
    # From a tenth to half of the image on each side.
    start, extent = torch.rand(OBJECTS, 2, generator=rng) / 2, 0.1 + 0.4 * torch.rand(OBJECTS, 2, generator=rng)
    boxes = (torch.cat([start, start + extent], 1) * sides).floor()
    masks = np.zeros((OBJECTS, *size), np.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    sample = DetDataSample(metainfo=_about(size))
    labels = torch.randint(classes, (OBJECTS,), generator=rng)
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, *size))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=labels[:0])
    return sample


def _labeled_image(classes: int, size: tuple[int, int], rng: torch.Generator) -> Any:
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=_about(size)).set_gt_label(int(torch.randint(classes, (1,), generator=rng)))


def sweep(
    model: Any,
    cfg: Config,
    name: str,
    *,
    modes: Sequence[str],
    batches: Sequence[int],
    size: tuple[int, int],
    device: torch.device,
    dtype: str,
    seconds: float,
) -> Iterator[Measured]:
    """Yield a row for each mode and batch as it is measured; a batch that memory does not hold ends its mode.

    Args:
        model: the model.
        cfg: its config, whose optimizer trains it.
        name: the config's file.
        modes: ``"evaluation"``, ``"training"``.
        batches: numbers of images, the smallest first.
        size: (H, W) in pixels.
        device: where it runs.
        dtype: the name of a floating type; other than float32 by autocast.
        seconds: least time that the timed steps of a row take together.
    """
    model = model.to(device)
    for mode in modes:
        model.train(mode == "training")
        for batch in batches:
            data = random_batch(cfg, batch, size)
            step = _training_step(model, cfg, data) if mode == "training" else _test_step(model, data)
            try:
                with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
                    times, memory = _timed(step, device, seconds)
            except torch.OutOfMemoryError:
                yield Measured(name, mode, batch, size, failed="out of memory")
                break
            except ValueError as error:
                # BatchNorm on maps of one pixel, such as UPerNet's coarsest.
                if not str(error).startswith("Expected more than 1 value per channel"):
                    raise
                yield Measured(name, mode, batch, size, failed="a norm needs 2 images")
                continue
            finally:
                # The optimizer's state and the gradients of one row are no memory of the next.
                del step
                model.zero_grad(set_to_none=True)
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            found = np.percentile(times, PERCENTILES).tolist()
            latency = {key: 1e3 * value for key, value in zip(PERCENTILES, found, strict=True)}
            yield Measured(name, mode, batch, size, len(times), batch * len(times) / sum(times), latency, memory)


def _test_step(model: Any, data: Mapping[str, list]) -> Callable[[], None]:
    def step() -> None:
        with torch.no_grad():
            model.test_step({**data, "data_samples": [sample.clone() for sample in data["data_samples"]]})

    return step


def _training_step(model: Any, cfg: Config, data: Mapping[str, list]) -> Callable[[], None]:
    # Casting is done around the step, on any device; mmengine's own wrapper for it needs a GPU.
    settings = {key: value for key, value in cfg.optim_wrapper.items() if key not in ("type", "dtype", "loss_scale")}
    wrapper = build_optim_wrapper(model, {"type": "OptimWrapper", **settings})

    def step() -> None:
        samples = [sample.clone() for sample in data["data_samples"]]
        batch = model.data_preprocessor({**data, "data_samples": samples}, True)
        loss, _ = model.parse_losses(model(**batch, mode="loss"))
        wrapper.update_params(loss)

    return step


def _timed(step: Callable[[], None], device: torch.device, seconds: float) -> tuple[list[float], float | None]:
    """Return the seconds of each timed step and the most memory meanwhile, in MiB."""
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None
    for _ in range(WARM_UP):
        step()
    wait()
    forget_peak(device)
    times: list[float] = []
    while len(times) < FEWEST or sum(times) < seconds:
        start = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - start)
    return times, peak_memory(device)


def table(rows: Sequence[Measured]) -> str:
    """Return a Markdown table."""
    names = ["config", "mode", "batch", "size", "images/s", *(f"p{p}, ms" for p in PERCENTILES), "memory, MiB", "steps"]
    lines = [f"| {' | '.join(names)} |", "|---|---|" + "---:|" * (len(names) - 2)]
    for row in rows:
        cells = [row.config, row.mode, str(row.batch), f"{row.size[0]} × {row.size[1]}"]
        if row.latency is None or row.images_per_second is None:
            cells += [row.failed, *[""] * (len(PERCENTILES) + 2)]
        else:
            cells += [f"{row.images_per_second:.2f}", *(f"{row.latency[p]:.1f}" for p in PERCENTILES)]
            cells += ["" if row.memory is None else f"{row.memory:.0f}", str(row.steps)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
