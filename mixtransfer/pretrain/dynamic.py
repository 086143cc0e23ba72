"""Training of sparsified networks: losses, draws, parameter groups, and the hook that holds pretrained layers still.

Papers: Rao et al., NeurIPS 2021, arXiv 2106.02034, section 3.3, and T-PAMI 2023, arXiv 2207.01580. Code:
raoyongming/DynamicViT (MIT). A pretrained network gets predictors (and fast paths) and is fine-tuned with its former
self as the teacher. The loss is the classes', plus the squared difference of the kept shares from their targets, plus
the divergence from the teacher's logits, plus the distance from the teacher's tokens.

Shapes: B batch, N tokens or positions, D channels of the tokens, K classes.

Kept from the published code: the token loss reads the kept tokens where tokens are dropped, the whole map elsewhere;
LV-ViT compares the logits of its ``aux_head`` instead of the tokens. Different: a batch that keeps no token at all has
a token loss of 0 with the graph intact; the draws of step n of a run are the same on every resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from mixtransfer.backbones.dynamicvit import Encoded, SparseBackbone, logistic_noise
from mixtransfer.engine.optim import TransferOptimWrapperConstructor
from mixtransfer.errors import UserError
from mixtransfer.mixing.losses import divergence, kl
from mixtransfer.pretrain.classifier import MixingClassifier, smooth_one_hot
from mixtransfer.pretrain.teachers import Teacher
from mixtransfer.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS

__all__ = [
    "DynamicClassifier",
    "DynamicOptimWrapperConstructor",
    "HoldPretrainedHook",
    "divergence",
    "ratio_loss",
    "token_distance",
    "token_divergence",
]


def ratio_loss(decisions: Sequence[Tensor], ratios: Sequence[float]) -> Tensor:
    """Return the mean over predictors and images of (share of kept tokens − its target)²; decisions are (B, N)."""
    terms = [(kept.mean(dim=1) - ratio).square().mean() for kept, ratio in zip(decisions, ratios, strict=True)]
    return torch.stack(terms).mean()


def token_distance(tokens: Tensor, expected: Tensor, kept: Tensor | None) -> Tensor:
    """Return the mean squared distance of tokens (B, N, D), over those of ``kept`` (B, N) or over all."""
    return _mean((tokens - expected).square().mean(dim=2), kept)


def token_divergence(logits: Tensor, expected: Tensor, kept: Tensor | None) -> Tensor:
    """Return the mean of KL(softmax(expected) ‖ softmax(logits)), both (B, N, K), over the tokens as above."""
    return _mean(kl(logits, expected), kept)


def _mean(values: Tensor, kept: Tensor | None) -> Tensor:
    return values.mean() if kept is None else (values * kept).sum() / kept.sum().clamp(min=1)


@MODELS.register_module()
class DynamicClassifier(MixingClassifier):
    """A sparsified backbone with its published heads, trained with the network before sparsification as its teacher.

    The class token and the position table stay as they are, as in the published recipe.

    Args:
        arch: an architecture of the ``dynamicvit`` families.
        num_classes: rows of the head.
        teacher: ``dict(checkpoint=..., source="auto", trust=False)``, weights and head of the network before
            sparsification (DeiT, LV-ViT, Swin, ConvNeXt), under any format's names. :meth:`init_weights` loads them,
            completely, into the teacher, and into all of this network that is not new. None trains without a teacher.
        ratio_weight: weight of the loss of the kept shares.
        distill_weight: weight of both losses against the teacher.
        decision_seed: start of the decisions' random stream; not the mixing method's.
        kwargs: those of :class:`~mixtransfer.pretrain.classifier.MixingClassifier`.

    Raises:
        UserError: ``arch`` is not sparsified, or ``teacher`` is incomplete.
    """

    evidence: ClassVar[Mapping[str, tuple[str, ...]]] = {"token_labels": ()}

    def __init__(
        self,
        arch: str,
        num_classes: int = 1000,
        *,
        backbone: dict | None = None,
        teacher: dict | None = None,
        ratio_weight: float = 2.0,
        distill_weight: float = 0.5,
        decision_seed: int = 1,
        **kwargs,
    ):
        super().__init__(arch, num_classes, backbone=backbone, **kwargs)
        if not isinstance(self.backbone, SparseBackbone):
            raise UserError(
                f"DynamicClassifier of {arch}: takes sparsified networks only, whose names begin with dynamicvit_"
            )
        for name in self.backbone.no_weight_decay() & {"cls_token", "pos_embed"}:
            self.backbone.get_parameter(name).requires_grad_(False)
        self.ratio_weight, self.distill_weight = ratio_weight, distill_weight
        self.decision_seed = decision_seed
        if teacher is not None:
            plain = {**(backbone or {}), "keep_rate": 1.0}
            self.teacher = Teacher(teacher, lambda arch: DynamicClassifier(arch, num_classes, backbone=plain), arch)

    def init_weights(self) -> None:
        """Load the teacher's weights into it and into this network; predictors and fast paths stay as drawn.

        Raises:
            UserError: the file does not fit the teacher, naming each missing, unexpected or misshapen entry.
        """
        super().init_weights()
        if self.teacher is not None:
            self.load_state_dict({**self.state_dict(), **self.teacher.net.state_dict()})

    def loss(self, images: Tensor, labels: Tensor, fields: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the losses of a training step, and count it.

        Args:
            images: (B, 3, H, W).
            labels: (B,), the classes of the images.
            fields: not read.
        """
        targets = smooth_one_hot(labels, self.num_classes, self.label_smoothing)
        # Drawn on the images' device, since there are as many numbers as tokens.
        device = images.device
        noise = partial(logistic_noise, generator=self.generator(self.decision_seed, device), device=device)
        label_map = draw = None
        if self.mixing is not None:
            draw = self.draw(images).resolve({})
            images = self.mixing.apply(images, draw)
            label_map = draw.label_map(images) if "token_labels" in self.mixing.needs else None
        self.count_step()
        with self.backbone.drawing(images):
            encoded = self.backbone.encode(images, label_map, noise)
        if draw is not None:
            targets = self.mixing.relabel(targets, draw, {"token_labels": encoded.label})
        return self.losses(images, encoded, targets)

    def losses(self, images: Tensor, encoded: Encoded, targets: Tensor) -> dict[str, Tensor]:
        """Return the weighted losses of images (B, 3, H, W) that the backbone encoded, with targets (B, K)."""
        logits = self.head(encoded.vector)
        if self.backbone.has_token_logits and self.teacher is None:
            # As published: aux_head learns from the teacher's, or from the classes.
            logits = logits + 0.5 * self.aux_head(encoded.tokens).amax(dim=1)
        losses = {"loss_class": self.criterion(logits, targets)}
        if encoded.decisions:
            losses["loss_ratio"] = self.ratio_weight * ratio_loss(encoded.decisions, self.backbone.keep_ratios)
        if self.teacher is not None:
            teacher = self.teacher.net
            with torch.no_grad():
                expected = teacher.backbone.encode(images)
                expected_logits = teacher.head(expected.vector)
                expected_tokens = (
                    teacher.aux_head(expected.tokens) if self.backbone.has_token_logits else expected.tokens
                )
            kept = encoded.decisions[-1].detach() if self.backbone.drops_tokens and encoded.decisions else None
            if self.backbone.has_token_logits:
                tokens = token_divergence(self.aux_head(encoded.tokens), expected_tokens, kept)
            else:
                tokens = token_distance(encoded.tokens, expected_tokens, kept)
            losses["loss_distill"] = self.distill_weight * divergence(logits, expected_logits)
            losses["loss_token"] = self.distill_weight * tokens
        return losses


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DynamicOptimWrapperConstructor(TransferOptimWrapperConstructor):
    """Full learning rate for predictors and fast paths, a fraction for what is pretrained, the heads included.

    Args:
        optim_wrapper_cfg: config of the wrapper, with its ``optimizer``.
        paramwise_cfg: ``pretrained_lr_mult``, and the settings of
            :class:`~mixtransfer.engine.optim.TransferOptimWrapperConstructor` on weight decay.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        settings = dict(paramwise_cfg or {})
        self.pretrained_lr_mult = settings.pop("pretrained_lr_mult", 0.01)
        if not 0 <= self.pretrained_lr_mult < 1:
            raise UserError(
                f"paramwise_cfg.pretrained_lr_mult={self.pretrained_lr_mult}: give a number from 0, below 1"
            )
        super().__init__(optim_wrapper_cfg, settings)

    def groups(self, model: nn.Module, lr: float, weight_decay: float) -> list[dict]:
        """Return the groups; ``pretrained`` marks those that :class:`HoldPretrainedHook` holds."""
        return [{**group, "pretrained": group["lr"] < lr} for group in super().groups(model, lr, weight_decay)]

    def _lr_factor(self, name: str, backbone: nn.Module | None) -> float:
        added = any(f".{part}" in name for part in backbone.added)
        return 1.0 if added else self.pretrained_lr_mult


@HOOKS.register_module()
class HoldPretrainedHook(Hook):
    """Hold the pretrained layers still at first: their learning rate is 0 while the new ones train for some epochs.

    Args:
        epochs: how many; training has to be counted in epochs.
    """

    def __init__(self, epochs: int = 5):
        self.epochs = epochs
        self.rates: list[tuple[dict, float]] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Set the learning rates to 0, and note the schedule's."""
        if runner.epoch < self.epochs:
            self.rates = [(g, g["lr"]) for g in runner.optim_wrapper.param_groups if g.get("pretrained")]
            for group, _ in self.rates:
                group["lr"] = 0.0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Restore the learning rates, from which the schedule computes the next ones."""
        for group, rate in self.rates:
            group["lr"] = rate
        self.rates = []
