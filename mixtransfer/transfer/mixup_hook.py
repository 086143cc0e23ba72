"""Mixup while a segmentor is trained: two images blended, two losses weighted as they are.

Paper: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412. A pixel of the mix has
two labels. The cross-entropy is linear in them, so that λ of the loss against the image's own label map and 1 − λ of
the loss against the partner's is the loss of the mixed label; the logits are computed once. Detectors take mmdet's
``MixUp`` in their pipeline (``MultiImageMixDataset``), which keeps the instances of both images.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from torch import Tensor, nn

from mixtransfer.engine.parts import model_of, seed_of
from mixtransfer.errors import UserError
from mixtransfer.mixing.draws import draw_beta, flip_partner, step_generator
from mixtransfer.registry import HOOKS

__all__ = ["MixupHook"]

HEADS = ("decode_head", "auxiliary_head")


@HOOKS.register_module()
class MixupHook(Hook):
    """Blend the images of a segmentor's batch, and weigh the losses of both label maps.

    Image i is blended with image B − 1 − i, the middle one of an odd batch with the image before it, where both are:
    padding stays, and what the partner does not cover is ignored in its loss. A batch of one is not mixed. Draws are a
    function of (seed, rank, iteration, seed of the run), so a resumed run draws as an uninterrupted one. The accuracy
    that heads report is that of the image's own labels.

    Args:
        alpha: λ is drawn from Beta(alpha, alpha), once a step; 0.2 to 0.4 in the paper.
        prob: probability that a step mixes.
        stop_iters: number of iterations at the end without mixing.
        seed: start of the random streams.

    Raises:
        UserError: an option out of its range; or, when training starts, no segmentor with mmseg's heads.
    """

    def __init__(self, alpha: float = 0.2, prob: float = 0.5, stop_iters: int = 0, seed: int = 0):
        if alpha <= 0 or not 0 <= prob <= 1 or stop_iters < 0 or seed < 0:
            raise UserError(
                f"MixupHook: alpha={alpha}, prob={prob}, stop_iters={stop_iters}, seed={seed}; give an alpha above 0, "
                "a probability from 0 to 1 and numbers from 0"
            )
        self.alpha, self.prob, self.stop_iters, self.seed = alpha, prob, stop_iters, seed
        self._handle: Any = None
        self._heads: list[nn.Module] = []
        self._iteration, self._run_seed, self._stopped = 0, 0, False
        #: λ and the partners' samples, while the model runs a step that mixes.
        self._blend: tuple[float, list] | None = None

    def before_train(self, runner) -> None:
        """Attach to the model and to its heads, after checking that they can be worked on."""
        self.after_train(runner)
        model = model_of(runner)
        found = [getattr(model, name, None) for name in HEADS]
        self._heads = [
            head for part in found for head in (part if isinstance(part, nn.ModuleList) else [part]) if head is not None
        ]
        odd = [type(head).__name__ for head in self._heads if not _takes_logits(head)]
        if odd or not self._heads:
            what = f"head {odd[0]} computes its loss in a way of its own" if odd else "it has no decode_head"
            raise UserError(
                f"MixupHook: {type(model).__name__}: {what}; it is for segmentors with mmseg's heads, and detectors "
                "take mmdet's MixUp in their pipeline"
            )
        self._signature, self._ignored = inspect.signature(model.forward), self._heads[0].ignore_index
        for head in self._heads:
            vars(head)["loss_by_feat"] = partial(self._losses, head.loss_by_feat)
        self._handle = model.register_forward_pre_hook(torch.compiler.disable(self._mix), with_kwargs=True)

    def after_train(self, runner) -> None:
        """Detach from the model."""
        if self._handle is not None:
            self._handle.remove()
        for head in self._heads:
            vars(head).pop("loss_by_feat", None)
        self._handle, self._heads, self._blend = None, [], None

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Note the iteration, and whether mixing is over."""
        self._iteration, self._run_seed = runner.iter, seed_of(runner)
        self._stopped = runner.iter >= runner.max_iters - self.stop_iters

    def _mix(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self._blend = None
        call = self._signature.bind(*args, **kwargs)
        if call.arguments.get("mode") != "loss" or not model.training or self._stopped:
            return None
        images, samples = call.arguments["inputs"], call.arguments["data_samples"]
        if not isinstance(images, Tensor):
            raise UserError(f"MixupHook mixes one batch of images, but the model was given {type(images).__name__}")
        generator = step_generator(self.seed, get_rank(), self._iteration, self._run_seed)
        if len(images) < 2 or torch.rand((), generator=generator) >= self.prob:
            return None
        lam, order = draw_beta(self.alpha, generator), flip_partner(len(images)).tolist()
        mixed, partners = images.clone(), []
        for i, j in enumerate(order):
            height, width = _covered(samples[i], samples[j], images)
            mixed[i, :, :height, :width].lerp_(images[j, :, :height, :width], 1 - lam)
            partners.append(self._of_partner(samples[i], samples[j], height, width))
        self._blend = lam, partners
        call.arguments["inputs"] = mixed
        return call.args, call.kwargs

    def _of_partner(self, own: Any, partner: Any, height: int, width: int) -> Any:
        """Return a copy of a sample with the partner's label map, ignored where the partner is not blended in."""
        sample, labels = own.new(), torch.full_like(own.gt_sem_seg.data, self._ignored)
        labels[..., :height, :width] = partner.gt_sem_seg.data[..., :height, :width]
        sample.gt_sem_seg = own.gt_sem_seg.new(data=labels)
        return sample

    def _losses(self, plain: Callable, logits: Any, samples: list) -> Mapping[str, Tensor]:
        own = plain(logits, samples)
        if self._blend is None:
            return own
        lam, partners = self._blend
        other = plain(logits, partners)
        return {name: lam * value + (1 - lam) * other[name] if "loss" in name else value for name, value in own.items()}


def _takes_logits(head: nn.Module) -> bool:
    """Say whether a head computes its loss from logits and samples, by one label map of each."""
    method = getattr(head, "loss_by_feat", None)
    names = list(inspect.signature(method).parameters) if method is not None else []
    return len(names) == 2 and names[1] == "batch_data_samples" and hasattr(head, "ignore_index")


def _covered(own: Any, partner: Any, images: Tensor) -> tuple[int, int]:
    """Return height and width of the area in the upper left corner that two images of a batch both cover."""
    shapes = [sample.metainfo.get("img_shape", images.shape[2:])[:2] for sample in (own, partner)]
    return min(shape[0] for shape in shapes), min(shape[1] for shape in shapes)
