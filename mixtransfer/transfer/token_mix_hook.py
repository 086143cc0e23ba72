"""Token-level mixing while a segmentor or detector is trained, as one hook in a config.

The region and the labels that travel with the tokens are TL-Align's (Xiao et al., arXiv 2210.06455), whose code has
classification only; the mixing of dense ground truth is ours and is described in ``docs/token_mix_hook.md``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from torch import Tensor, nn

from mixtransfer.engine.parts import model_of, seed_of
from mixtransfer.errors import UserError
from mixtransfer.layers.host_draws import send
from mixtransfer.mixing.draws import flip_partner, size_of, step_generator
from mixtransfer.mixing.regions import Region
from mixtransfer.registry import HOOKS, build
from mixtransfer.transfer.crops import Crop, draw_regions
from mixtransfer.transfer.dense_mixing import (
    PARTNER,
    GroundTruth,
    Maps,
    classes_of,
    ground_truth,
    label_maps,
    mix_instances,
    partner_evidence,
    paste,
    rescaled,
    saved_sample,
)
from mixtransfer.transfer.token_loss import count_tokens, shares_of, token_loss

__all__ = ["TokenMixHook"]

CHECKPOINT_KEY = "token_mix_hook"


@dataclass
class _Step:
    """One forward pass in training: labels on their way into the backbone, then the loss on its way out."""

    labels: Tensor | None = None
    classes: Tensor | None = None
    loss: Tensor | None = None


class _Kept(NamedTuple):
    """An image with its ground truth on the host, and its label maps where it lies itself."""

    image: Tensor
    truth: GroundTruth
    maps: Maps


@HOOKS.register_module()
class TokenMixHook(Hook):
    """Mix images with their dense ground truth, and train tokens against the labels that travelled with them.

    Works on the batch that the data preprocessor made, in ``mode="loss"`` of a model in training mode only. Image i is
    mixed with image B − 1 − i, the middle one of an odd batch with the image before it. A batch of one is mixed with
    the image of the batch of one before it, which is kept, and saved in the checkpoint for a resumed run; the first
    such step of a run is not mixed.

    Draws are a function of (seed, rank, iteration, seed of the run), so a resumed run draws as an uninterrupted one.

    Args:
        region: config of a region that pastes whole pixels in their places, e.g. ``dict(type="TokenBox", alpha=1.0)``
            or ``dict(type="ClassRegion")``.
        prob: probability that a step mixes. With 0 the hook does nothing at all.
        cell_size: side in pixels of the cells that regions are drawn on.
        loss_weight: weight of the token loss ``loss_token``; 0 leaves the backbone alone, so that any backbone will do.
        stop_iters: number of iterations at the end without mixing and token loss.
        min_share: an instance that a region cuts is dropped if less than this share of its pixels is left.
        min_pixels: an instance that a region cuts is dropped if fewer pixels are left.
        seed: start of the random streams.

    Raises:
        UserError: an option out of its range; or, when training starts, a model that the hook cannot work on.
    """

    def __init__(
        self,
        region: Mapping[str, Any],
        prob: float = 0.5,
        cell_size: int = 32,
        loss_weight: float = 0.5,
        stop_iters: int = 0,
        min_share: float = 0.1,
        min_pixels: int = 16,
        seed: int = 0,
    ):
        self.region = build(region, Region)
        if not (self.region.hard_mask and self.region.keeps_places and set(self.region.needs) <= set(PARTNER)):
            raise UserError(
                f"TokenMixHook: region {type(self.region).__name__} does not cut pixels out by itself, in their "
                "places, so labels cannot be pasted with it; use TokenBox, ClassRegion, ..., see docs/token_mix_hook.md"
            )
        if any(getattr(part, "jitter", None) for part in getattr(self.region, "regions", ())):
            raise UserError("TokenMixHook: InstanceRegion's jitter works alone; leave it out inside of RandomChoice")
        for name, value, fine, range_ in (
            ("prob", prob, 0 <= prob <= 1, "a probability from 0 to 1"),
            ("cell_size", cell_size, cell_size >= 1, "a number of pixels from 1 on"),
            ("loss_weight", loss_weight, loss_weight >= 0, "0 or more"),
            ("stop_iters", stop_iters, stop_iters >= 0, "0 or more"),
            ("min_share", min_share, 0 <= min_share <= 1, "a share from 0 to 1"),
            ("min_pixels", min_pixels, min_pixels >= 0, "0 or more"),
            ("seed", seed, seed >= 0, "0 or more"),
        ):
            if not fine:
                raise UserError(f"TokenMixHook: {name}={value}; give {range_}")
        self.prob, self.cell_size, self.loss_weight, self.stop_iters = prob, cell_size, loss_weight, stop_iters
        self.min_share, self.min_pixels, self.seed = min_share, min_pixels, seed
        self._handles: list = []
        self._step: _Step | None = None
        self._previous: _Kept | None = None
        #: The same as the running iteration found it; nothing between iterations.
        self._found: list[_Kept | None] = []
        self._loaded: list = []
        self._iteration, self._run_seed, self._stopped = 0, 0, False

    def before_train(self, runner) -> None:
        """Attach to the model, after checking that it can be worked on."""
        self.after_train(runner)
        if not self.prob:
            return
        model = model_of(runner)
        self._signature = inspect.signature(model.forward)
        self._ignore_index = _ignore_index(model)
        # Ground truth is handled by NumPy and by data-dependent sizes: torch.compile takes the networks around it.
        outside = torch.compiler.disable
        self._handles = [
            model.register_forward_pre_hook(outside(self._mix), with_kwargs=True),
            model.register_forward_hook(outside(self._add_loss)),
        ]
        preprocessor = getattr(model, "data_preprocessor", None)
        if isinstance(preprocessor, nn.Module):
            self._handles.append(preprocessor.register_forward_pre_hook(outside(self._keep_loaded), with_kwargs=True))
        if self.loss_weight:
            backbone = _checked_backbone(model)
            self._classifier, self._stride = backbone.token_classifier, backbone.strides[0]
            self._handles += [
                backbone.register_forward_pre_hook(outside(self._give_labels), with_kwargs=True),
                # First of all, so that other hooks on the backbone see its maps as they know them.
                backbone.register_forward_hook(outside(self._take_labels), prepend=True),
            ]

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Note the iteration, and whether mixing is over."""
        self._iteration, self._run_seed, self._found = runner.iter, seed_of(runner), [self._previous]
        self._stopped = runner.iter >= runner.max_iters - self.stop_iters

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Let the next iteration mix with what this one has kept."""
        self._found = []

    def after_train(self, runner) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Save the image that the next batch of one is mixed with; after an error, that of the iteration it ended."""
        (previous,) = self._found or [self._previous]
        if previous is not None:
            checkpoint[CHECKPOINT_KEY] = {"image": previous.image, "truth": previous.truth.saved()}

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Restore the image that the next batch of one is mixed with, when a run is resumed."""
        if runner._resume and CHECKPOINT_KEY in checkpoint:
            image, truth = saved_sample(checkpoint[CHECKPOINT_KEY])
            self._previous = _Kept(image, truth, truth.maps)

    def _mix(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self._step = None
        call = self._signature.bind(*args, **kwargs)
        if call.arguments.get("mode") != "loss" or not model.training:
            return None
        self._step = _Step()
        if self._stopped:
            return None
        images, samples = call.arguments["inputs"], call.arguments["data_samples"]
        if not isinstance(images, Tensor):
            raise UserError(f"TokenMixHook mixes one batch of images, but the model was given {type(images).__name__}")
        call.arguments["inputs"], call.arguments["data_samples"] = self._mixed(images, samples)
        return call.args, call.kwargs

    @torch.no_grad()
    def _mixed(self, images: Tensor, samples: list) -> tuple[Tensor, list]:
        """Return images and data samples of this step, mixed or not, and keep the token labels that belong to them.

        The host works on the ground truth as it was loaded; whatever the device needs of it goes there in one copy.
        """
        size, device = size_of(images), images.device
        loaded = samples if device.type == "cpu" else self._take_loaded(samples)
        truths = [ground_truth(sample, size, host) for sample, host in zip(samples, loaded, strict=True)]
        everyone = [_Kept(*item) for item in zip(images, truths, map(label_maps, samples), strict=True)]
        partners, order = self._partners(everyone)
        generator = step_generator(self.seed, get_rank(), self._iteration, self._run_seed)
        regions: list[Crop] = []
        if partners and torch.rand((), generator=generator) < self.prob:
            if getattr(self.region, "jitter", None):
                low, high = self.region.jitter
                factors = low + (high - low) * torch.rand(len(partners), generator=generator)
                pairs = zip(partners, factors.tolist(), strict=True)
                partners, order = [_Kept(*rescaled(*item, factor)) for item, factor in pairs], []
            valid = [
                (min(own.truth.valid[0], other.truth.valid[0]), min(own.truth.valid[1], other.truth.valid[1]))
                for own, other in zip(everyone, partners, strict=True)
            ]
            needs = [partner_evidence(self.region, item.truth, self._ignore_index) for item in partners]
            regions = draw_regions(self.region, self.cell_size, valid, generator, needs)
        parcel: list[Tensor] = []
        if self.loss_weight:
            classes = own = self._class_maps(truths, size)
            if regions:
                others = own[order] if order else self._class_maps([partner.truth for partner in partners], size)
                classes = own.copy()
                for canvas, other, region in zip(classes, others, regions, strict=True):
                    region.paste(canvas, other)
            parcel += map(torch.from_numpy, count_tokens(classes, self._stride))
        limits = {"min_share": self.min_share, "min_pixels": self.min_pixels}
        instances = [
            mix_instances(sample, own.truth, other.truth, region, size, **limits) if region.count else {}
            for sample, own, other, region in zip(samples, everyone, partners, regions, strict=bool(regions))
        ]
        fields = [
            (element, name)
            for mixed in instances
            for element in mixed.values()
            for name, value in element.items()
            if isinstance(value, Tensor)
        ]
        masks = [region.pixels for region in regions if region.pixels is not None]
        parcel += [element.get(name) for element, name in fields]
        sent = iter(send([*parcel, *map(torch.from_numpy, masks)], device))
        if self.loss_weight:
            self._step.labels, self._step.classes = shares_of(next(sent), self._stride), next(sent)
        if not regions:
            return images, samples
        for element, name in fields:
            setattr(element, name, next(sent))
        pixels = [None if region.pixels is None else next(sent) for region in regions]
        mixed_images = images.clone()
        for image, partner, region, mask in zip(mixed_images, partners, regions, pixels, strict=True):
            paste(image, partner.image, region, mask)
        mixed = [
            _mixed_sample(*item) if item[3].count else item[0]
            for item in zip(samples, everyone, partners, regions, pixels, instances, strict=True)
        ]
        return mixed_images, mixed

    def _partners(self, everyone: list[_Kept]) -> tuple[list[_Kept], list[int]]:
        """Return everyone's partner and its place in the batch; none for a batch of one that has nothing before it."""
        if len(everyone) > 1:
            order = flip_partner(len(everyone)).tolist()
            return [everyone[i] for i in order], order
        previous, self._previous = self._previous, everyone[0]
        return [] if previous is None else [previous], []

    def _class_maps(self, truths: list[GroundTruth], size: tuple[int, int]) -> np.ndarray:
        classes = self._classifier.num_classes
        return np.stack([classes_of(truth, size, classes, self._ignore_index) for truth in truths])

    def _keep_loaded(self, preprocessor: nn.Module, args: tuple, kwargs: dict) -> None:
        data = args[0] if args else kwargs.get("data")
        samples = data.get("data_samples") if isinstance(data, Mapping) else None
        # What augments a whole batch changes its ground truth.
        plain = isinstance(samples, list) and not getattr(preprocessor, "batch_augments", None)
        self._loaded = list(samples) if plain else []

    def _take_loaded(self, samples: list) -> list:
        """Return the samples on the host, as the loader brought them; None for all whose ground truth is another."""
        loaded, self._loaded = self._loaded, []
        if len(loaded) != len(samples):
            return [None] * len(samples)
        return [
            host if host.metainfo.get("img_shape") == sample.metainfo.get("img_shape") else None
            for host, sample in zip(loaded, samples, strict=True)
        ]

    def _give_labels(self, backbone: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self._step is None or self._step.labels is None:
            return None
        return args, {**kwargs, "token_labels": self._step.labels}

    def _take_labels(self, backbone: nn.Module, args: tuple, output):
        if self._step is None or self._step.labels is None:
            return None
        features, aligned = output
        labels = [aligned[stage] for stage in self._classifier.stages]
        self._step.loss = token_loss(self._classifier(features), labels, self._step.classes)
        self._step.labels = None
        return features

    def _add_loss(self, model: nn.Module, args: tuple, losses):
        step, self._step = self._step, None
        if step is None or not self.loss_weight:
            return None
        assert step.labels is None, "the model did not call its backbone"
        if step.loss is None:
            # Distributed training wants a gradient for every parameter, also when the loss is switched off.
            step.loss = 0 * sum(parameter.sum() for parameter in self._classifier.parameters())
        return {**losses, "loss_token": self.loss_weight * step.loss}


def _mixed_sample(
    sample: Any, own: _Kept, partner: _Kept, region: Crop, mask: Tensor | None, instances: dict[str, Any]
) -> Any:
    """Return a copy of a data sample with the ground truth of the mixed image."""
    mixed = sample.new()
    for key, maps in own.maps.items():
        pasted = {name: value.clone() for name, value in maps.items()}
        for name, value in pasted.items():
            paste(value, partner.maps[key][name], region, mask)
        setattr(mixed, key, getattr(sample, key).new(**pasted))
    for key, element in instances.items():
        boxes = getattr(sample, key).bboxes
        if hasattr(boxes, "tensor"):
            element.bboxes = type(boxes)(element.bboxes)
        setattr(mixed, key, element)
    return mixed


def _checked_backbone(model: nn.Module) -> Any:
    """Return the model's backbone if it carries token labels and can classify its tokens."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise UserError(f"TokenMixHook: {type(model).__name__} has no backbone; it works on segmentors and detectors")
    name = type(backbone).__name__
    if "token_labels" not in inspect.signature(backbone.forward).parameters or not hasattr(backbone, "strides"):
        raise UserError(
            f"TokenMixHook: backbone {name} carries no token labels; use one of mixtransfer's "
            "(type='mixtransfer.SwinTransformer', ...) or set loss_weight=0 to mix without the token loss"
        )
    classifier = getattr(backbone, "token_classifier", None)
    expected = _token_classes(model)
    if classifier is None:
        raise UserError(
            f"TokenMixHook: backbone {name} has no token classifier; give it "
            f"token_classifier=dict(num_classes={expected or '...'}, stages=({len(backbone.strides) - 1},)) "
            "or set the hook's loss_weight=0"
        )
    if expected not in (None, classifier.num_classes):
        raise UserError(
            f"TokenMixHook: token_classifier.num_classes={classifier.num_classes}, but the model's head needs "
            f"{expected} (a detector's classes plus background)"
        )
    return backbone


def _token_classes(model: nn.Module) -> int | None:
    """Return the number of classes of a token, read off the model's head, or None where it does not say."""
    segmentation = getattr(model, "decode_head", None)
    detection = getattr(getattr(model, "roi_head", model), "bbox_head", None)
    for head, background in ((segmentation, 0), (detection, 1)):
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        if hasattr(head, "num_classes"):
            return head.num_classes + background
    things = getattr(getattr(model, "panoptic_head", None), "num_things_classes", None)
    return None if things is None else things + 1


def _ignore_index(model: nn.Module) -> int:
    head = getattr(model, "decode_head", None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    return getattr(head, "ignore_index", 255)
