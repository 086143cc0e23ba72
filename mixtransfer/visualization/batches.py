"""Batches before and after TokenMixHook or a mixing classifier, with their labels, as pictures."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from torch import Tensor, nn

from mixtransfer.errors import UserError
from mixtransfer.mixing.draws import flip_partner
from mixtransfer.transfer import TokenMixHook
from mixtransfer.transfer.dense_mixing import class_map, ground_truth
from mixtransfer.visualization.pictures import (
    BACKGROUND_COLOR,
    OWN,
    PARTNER,
    VOID_COLOR,
    Palette,
    color_labels,
    color_shares,
    enlarge,
    heat,
    outline,
    save,
    save_sheet,
)
from mixtransfer.visualization.token_shares import at_most, token_shares

#: The legend of what came from whom.
SOURCES = {"the image's own": OWN, "the partner's": PARTNER}
#: Outputs of a classifier that are drawn.
STEPS = 4

__all__ = [
    "SOURCES",
    "MixedBatch",
    "MixedClasses",
    "mixed_batch",
    "mixed_classes",
    "restore_images",
    "save_aligned",
    "save_aligned_classes",
    "save_mixed",
    "save_mixed_classes",
]


@dataclass
class MixedBatch:
    """A batch before and after mixing.

    Attributes:
        images: (B, H, W, 3) uint8; image i was mixed with image B − 1 − i.
        labels: (B, H, W), the class of each pixel, −1 where there is none.
        mixed_images: as ``images``, after mixing.
        mixed_labels: as ``labels``, after mixing.
        aligned: for each output of the backbone the class shares of its tokens (B, K, h, w).
        classes: (K,), the classes that the shares stand for.
        partner: for each output the share of its tokens that came from the partner (B, h, w).
        instances: for each mixed image of a detector its boxes (n, 4), masks (n, H, W) or None, and classes (n,).
    """

    images: np.ndarray
    labels: np.ndarray
    mixed_images: np.ndarray
    mixed_labels: np.ndarray
    aligned: list[np.ndarray]
    classes: np.ndarray
    partner: list[np.ndarray]
    instances: list[tuple[np.ndarray, np.ndarray | None, np.ndarray]]


def mixed_batch(runner: Runner, seed: int = 0) -> MixedBatch:
    """Mix a batch of training images with the hook of a runner's config, at probability 1, and record the step.

    Raises:
        UserError: the config has no TokenMixHook with a token loss.
    """
    hook = next((hook for hook in runner.hooks if isinstance(hook, TokenMixHook)), None)
    if hook is None or not hook.loss_weight:
        raise UserError("the config has no TokenMixHook with a token loss; there are no token labels to draw")
    hook.prob, hook.seed = 1.0, seed
    batch = training_batch(runner, seed)
    model, backbone = runner.model.train(), runner.model.backbone
    data = model.data_preprocessor(batch, training=True)
    size = tuple(data["inputs"].shape[-2:])
    num_classes, ignore = backbone.token_classifier.num_classes, getattr(hook, "_ignore_index", 255)

    def maps(samples: Sequence) -> np.ndarray:
        return torch.stack([class_map(ground_truth(s, size), size, num_classes, ignore) for s in samples]).numpy()

    seen: dict = {}
    signature = inspect.signature(model.forward)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    watchers = [
        model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(signature.bind(*args, **kwargs).arguments), with_kwargs=True
        ),
        backbone.register_forward_hook(
            lambda module, args, output: seen.update(aligned=output[1], classes=hook._step.classes), prepend=True
        ),
    ]
    with torch.no_grad():
        model(inputs=data["inputs"], data_samples=data["data_samples"], mode="loss")
    for watcher in watchers:
        watcher.remove()
    hook.after_train(runner)

    images, mixed = data["inputs"], seen["inputs"]
    taken = (images != mixed).any(dim=1, keepdim=True).float()
    backbone.eval()
    with torch.no_grad():
        _, shares = backbone(mixed, F.avg_pool2d(taken, backbone.strides[0], ceil_mode=True))
    return MixedBatch(
        restore_images(images, model.data_preprocessor),
        maps(data["data_samples"]),
        restore_images(mixed, model.data_preprocessor),
        maps(seen["data_samples"]),
        [labels.cpu().numpy() for labels in seen["aligned"]],
        seen["classes"].cpu().numpy(),
        [share[:, 0].cpu().numpy() for share in shares],
        [_instances(sample) for sample in seen["data_samples"] if "gt_instances" in sample],
    )


def _instances(sample: Any) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    found = sample.cpu().gt_instances
    boxes = getattr(found.bboxes, "tensor", found.bboxes)
    return boxes.numpy(), found.masks.to_ndarray() if "masks" in found else None, found.labels.numpy()


@dataclass
class MixedClasses:
    """A batch of a mixing classifier before and after mixing.

    Attributes:
        images: (B, H, W, 3) uint8.
        mixed_images: as ``images``, after mixing.
        partner: (B,), the index of the image that each was mixed with.
        classes: (B,), the class of each image.
        pixels: (B, H, W), the share of each pixel that came from the partner.
        label: (B,), the partner's share of the label.
        inputs: (B, 3, H, W), the mixed images as the network sees them.
    """

    images: np.ndarray
    mixed_images: np.ndarray
    partner: np.ndarray
    classes: np.ndarray
    pixels: np.ndarray
    label: np.ndarray
    inputs: Tensor


def mixed_classes(runner: Runner, seed: int = 0) -> MixedClasses:
    """Mix a batch of training images with the classifier of a runner.

    Raises:
        UserError: the classifier does not mix.
    """
    model = runner.model
    if getattr(model, "mixing", None) is None or not hasattr(model, "mixed"):
        raise UserError(f"{type(model).__name__} of this config mixes no labels; there is no mix to draw")
    batch = training_batch(runner, seed, shuffled=True)  # folders come class by class
    model.mixing.prob, model.mixing.seed = 1.0, seed
    data = model.train().data_preprocessor(batch, training=True)
    images, labels = data["inputs"], torch.cat([sample.gt_label for sample in data["data_samples"]])
    with torch.no_grad():
        mixed, draw, evidence = model.mixed(images, labels, model.sample_fields(data["data_samples"]))
        # One class an image tells the sources apart, also where partners are of one class.
        shares = model.mixing.relabel(torch.eye(len(images), device=images.device), draw, evidence).cpu()
    return MixedClasses(
        restore_images(images, model.data_preprocessor),
        restore_images(mixed, model.data_preprocessor),
        draw.partner.cpu().numpy(),
        labels.cpu().numpy(),
        draw.pixels(tuple(images.shape[2:])).double().expand(len(images), -1, -1).cpu().numpy(),
        shares[torch.arange(len(images)), draw.partner.cpu()].numpy(),
        mixed,
    )


def training_batch(runner: Runner, seed: int, shuffled: bool = False) -> dict:
    """Return a batch of training samples, augmented by ``seed``: the first ones or, if ``shuffled``, any."""
    dataset = runner.train_loop.dataloader.dataset
    torch.manual_seed(seed)
    count = max(runner.cfg.train_dataloader.batch_size, 2)  # one image alone has no partner
    order = torch.randperm(len(dataset)).tolist() if shuffled else range(len(dataset))
    return pseudo_collate([dataset[(order[i % len(order)], (0, seed, 0, i))] for i in range(count)])


def save_mixed_classes(batch: MixedClasses, names: Sequence[str], path: Path, count: int = 3, title: str = "") -> Path:
    """Draw images, their partners and the mix of both, with the shares of area and label as text."""
    chosen = half_mixed(batch, count)
    rows = [
        [
            batch.images[i],
            batch.images[batch.partner[i]],
            batch.mixed_images[i],
            heat(batch.pixels[i]),
        ]
        for i in chosen
    ]
    titles = ("image", "partner", "mixed image", "from the partner")
    heads = [shares_said(batch, i, names) for i in chosen]
    return save_sheet(rows, titles, path, SOURCES, title=title, heads=heads, wrap=4)


def save_aligned_classes(
    batch: MixedClasses, backbone: Any, names: Sequence[str], path: Path, count: int = 3, title: str = ""
) -> Path:
    """Draw mixed images of a classifier, and how much of each token came from the partner after each output."""
    pixels = torch.from_numpy(batch.pixels)[:, None].to(batch.inputs)
    steps, _ = token_shares(backbone, batch.inputs, pixels)
    steps = at_most([step for step in steps if step.ends_stage], STEPS)
    chosen, size = half_mixed(batch, count), batch.images.shape[1:3]
    rows = [
        [
            batch.mixed_images[i],
            heat(batch.pixels[i]),
            *(enlarge(heat(step.share[i].cpu().numpy()), size) for step in steps),
        ]
        for i in chosen
    ]
    titles = ("mixed image", "from the partner", *(f"tokens, {step.name}" for step in steps))
    heads = [shares_said(batch, i, names) for i in chosen]
    return save_sheet(rows, titles, path, SOURCES, title=title, heads=heads)


def half_mixed(batch: MixedClasses, count: int) -> list[int]:
    """Return the ``count`` images of the batch of which nearest to half came from the partner."""
    return np.argsort(np.abs(batch.pixels.mean(axis=(1, 2)) - 0.5), kind="stable")[:count].tolist()


def shares_said(batch: MixedClasses, image: int, names: Sequence[str]) -> str:
    """Return one line about a mix: both classes, and the partner's share of area and label."""

    def name(number: int) -> str:
        return names[number] if number < len(names) else f"class {number}"

    own, other = (name(int(batch.classes[i])) for i in (image, batch.partner[image]))
    area = batch.pixels[image].mean()
    return f"{own} + {other}: of {other} {area:.2f} by area, {batch.label[image]:.2f} by label"


def restore_images(images: Tensor, preprocessor: nn.Module) -> np.ndarray:
    """Return normalized images (B, 3, H, W) as RGB pictures (B, H, W, 3) uint8."""
    images = images.detach().cpu()
    if getattr(preprocessor, "_enable_normalize", False):
        images = images * preprocessor.std.cpu() + preprocessor.mean.cpu()
    return images.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def save_mixed(
    batch: MixedBatch, palette: Palette, names: Sequence[str], path: Path, count: int = 4, title: str = ""
) -> Path:
    """Draw images, their partners and the mix of both, with its ground truth; a detector's as outlines too."""
    order = flip_partner(len(batch.images)).numpy()
    chosen = most_mixed(batch, count)
    rows = []
    for i in chosen:
        mixed = batch.mixed_images[i]
        if batch.instances:
            mixed = outline(mixed, *batch.instances[i], palette)
        rows.append([batch.images[i], batch.images[order[i]], mixed, color_labels(batch.mixed_labels[i], palette)])
    titles = ("image", "partner", "mixed image", "ground truth")
    heads = [_area_said(batch, i) for i in chosen]
    return save_sheet(rows, titles, path, legend(names, palette), title=title, heads=heads, wrap=4)


def save_aligned(
    batch: MixedBatch, palette: Palette, names: Sequence[str], path: Path, count: int = 3, title: str = ""
) -> Path:
    """Draw mixed images with the labels of their tokens after each stage; tiles go to ``tiles/`` beside ``path``."""
    colors = [palette[k] if k < len(palette) else VOID_COLOR for k in batch.classes]
    size = batch.images.shape[1:3]
    rows, heads = [], []
    for number, i in enumerate(most_mixed(batch, count)):
        mixed, truth = batch.mixed_images[i], color_labels(batch.mixed_labels[i], palette)
        stages = [enlarge(color_shares(shares[i], colors), size) for shares in batch.aligned]
        shares = [enlarge(heat(share[i]), size) for share in batch.partner]
        drawn = outline(mixed, *batch.instances[i], palette) if batch.instances else mixed
        rows += [[drawn, truth, *stages], [batch.images[i], batch.images[-1 - i], *shares]]
        heads += [f"classes of the tokens; {_area_said(batch, i)}", "where the tokens came from"]
        for name, picture in {"mixed": mixed, "truth": truth, **dict(enumerate(stages, start=1))}.items():
            save(picture, path.parent / "tiles" / f"{number}_{name}.png")
    titles = ["mixed / image", "truth / partner", *(f"tokens, stage {n + 1}" for n in range(len(batch.aligned)))]
    return save_sheet(rows, titles, path, {**legend(names, palette), **SOURCES}, title=title, heads=heads)


def _area_said(batch: MixedBatch, image: int) -> str:
    return f"{batch.partner[0][image].mean():.2f} of the area from the partner"


def legend(names: Sequence[str], palette: Palette) -> dict[str, Sequence[int]]:
    """Return the colors of a sheet with ground truth by name, those of no class included."""
    return {**dict(zip(names, palette, strict=False)), "void": VOID_COLOR}


def most_mixed(batch: MixedBatch, count: int) -> list[int]:
    """Return the ``count`` images of the batch whose regions are nearest to half of the image."""
    shares = [abs(float(share.mean()) - 0.5) for share in batch.partner[0]]
    return sorted(range(len(shares)), key=shares.__getitem__)[:count]


def class_colors(cfg: Config) -> tuple[tuple[str, ...], list]:
    """Return names and colors of the classes of a config's training set, and of a detector's background."""
    info = cfg.train_dataloader.dataset.get("metainfo", {})
    names, colors = tuple(info.get("classes", ())), [tuple(color) for color in info.get("palette", ())]
    if cfg.get("default_scope") == "mmdet":
        return (*names, "background"), [*colors, BACKGROUND_COLOR]
    return names, colors
