"""Batches before and after TokenMixHook or a mixing classifier, with their labels, as pictures."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
from mixtransfer.visualization.pictures import Palette, color_labels, color_shares, enlarge, heat, save, save_sheet

__all__ = [
    "MixedBatch",
    "MixedClasses",
    "mixed_batch",
    "mixed_classes",
    "restore_images",
    "save_aligned",
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
    """

    images: np.ndarray
    labels: np.ndarray
    mixed_images: np.ndarray
    mixed_labels: np.ndarray
    aligned: list[np.ndarray]
    classes: np.ndarray
    partner: list[np.ndarray]


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
    )


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
    """

    images: np.ndarray
    mixed_images: np.ndarray
    partner: np.ndarray
    classes: np.ndarray
    pixels: np.ndarray
    label: np.ndarray


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
    )


def training_batch(runner: Runner, seed: int, shuffled: bool = False) -> dict:
    """Return a batch of training samples, augmented by ``seed``: the first ones or, if ``shuffled``, any."""
    dataset = runner.train_loop.dataloader.dataset
    torch.manual_seed(seed)
    count = max(runner.cfg.train_dataloader.batch_size, 2)  # one image alone has no partner
    order = torch.randperm(len(dataset)).tolist() if shuffled else range(len(dataset))
    return pseudo_collate([dataset[(order[i % len(order)], (0, seed, 0, i))] for i in range(count)])


def save_mixed_classes(batch: MixedClasses, names: Sequence[str], path: Path, count: int = 3) -> Path:
    """Draw images, their partners and the mix of both, with the shares of area and label as text."""
    area = batch.pixels.mean(axis=(1, 2))

    def name(image: int) -> str:
        number = int(batch.classes[image])
        return names[number] if number < len(names) else f"class {number}"

    rows = []
    for i in np.argsort(np.abs(area - 0.5), kind="stable")[:count].tolist():
        j = int(batch.partner[i])
        text = (
            f"{name(i)}\n  area {1 - area[i]:.2f}, label {1 - batch.label[i]:.2f}\n"
            f"{name(j)}\n  area {area[i]:.2f}, label {batch.label[i]:.2f}"
        )
        rows.append([batch.images[i], batch.images[j], batch.mixed_images[i], heat(batch.pixels[i]), text])
    return save_sheet(rows, ("image", "partner", "mixed image", "from the partner", "area and label"), path)


def restore_images(images: Tensor, preprocessor: nn.Module) -> np.ndarray:
    """Return normalized images (B, 3, H, W) as RGB pictures (B, H, W, 3) uint8."""
    images = images.detach().cpu()
    if getattr(preprocessor, "_enable_normalize", False):
        images = images * preprocessor.std.cpu() + preprocessor.mean.cpu()
    return images.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def save_mixed(batch: MixedBatch, palette: Palette, names: Sequence[str], path: Path, count: int = 4) -> Path:
    """Draw images, their partners and the mix of both, with its ground truth."""
    order = flip_partner(len(batch.images)).numpy()
    rows = [
        [
            batch.images[i],
            batch.images[order[i]],
            batch.mixed_images[i],
            color_labels(batch.mixed_labels[i], palette),
        ]
        for i in most_mixed(batch, count)
    ]
    titles = ("image", "partner", "mixed image", "mixed ground truth")
    return save_sheet(rows, titles, path, dict(zip(names, palette, strict=False)))


def save_aligned(batch: MixedBatch, palette: Palette, names: Sequence[str], path: Path, count: int = 3) -> Path:
    """Draw mixed images with the labels of their tokens after each stage; tiles go to ``tiles/`` beside ``path``."""
    colors = [palette[k] if k < len(palette) else (0, 0, 0) for k in batch.classes]
    size = batch.images.shape[1:3]
    rows = []
    for number, i in enumerate(most_mixed(batch, count)):
        mixed, truth = batch.mixed_images[i], color_labels(batch.mixed_labels[i], palette)
        stages = [enlarge(color_shares(shares[i], colors), size) for shares in batch.aligned]
        rows += [
            [mixed, truth, *stages],
            [batch.images[i], batch.images[-1 - i], *(enlarge(heat(share[i]), size) for share in batch.partner)],
        ]
        for name, picture in {"mixed": mixed, "truth": truth, **dict(enumerate(stages, start=1))}.items():
            save(picture, path.parent / "tiles" / f"{number}_{name}.png")
    titles = ["mixed / image", "truth / partner", *(f"tokens, stage {n + 1}" for n in range(len(batch.aligned)))]
    return save_sheet(rows, titles, path, dict(zip(names, palette, strict=False)))


def most_mixed(batch: MixedBatch, count: int) -> list[int]:
    """Return the ``count`` images of the batch whose regions are nearest to half of the image."""
    shares = [abs(float(share.mean()) - 0.5) for share in batch.partner[0]]
    return sorted(range(len(shares)), key=shares.__getitem__)[:count]


def class_colors(cfg: Config) -> tuple[tuple[str, ...], list]:
    """Return names and colors of the classes of a config's training set."""
    info = cfg.train_dataloader.dataset.get("metainfo", {})
    return tuple(info.get("classes", ())), [tuple(color) for color in info.get("palette", ())]
