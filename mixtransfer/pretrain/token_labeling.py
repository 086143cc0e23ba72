"""Self-emerging token labeling (STL): a labeler learns to classify tokens, and its labels teach a student.

Paper: Zhao et al., "Fully Attentional Networks with Self-emerging Token Labeling", ICCV 2023, arXiv 2401.03844. Code:
NVlabs/STL (NVIDIA Source Code License-NC, no commercial use); nothing here is taken from it.

``aux_head`` classifies the last tokens. The labeler learns the image's label with the class head and with the mean of
its tokens' logits. Then, frozen, it labels the tokens of the student's images. It sees a clean view of them: before
mixing, with the same crop, flip and geometric augmentation, without color operations and erasing.

Shapes: B batch, h × w grid of tokens, K classes.

Kept from the published code: a token's label is one draw from the labeler's softmax (the largest of logits and Gumbel
noise), smoothed as the image's; it is not mixed where images are; both losses count equally; predictions are those of
the class head alone.
Different: the labeler takes the mean before the head, which is linear; the noise of step n of a run is the same on
every resume; the smoothed one-hot labels of tokens are never written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtransfer.checkpoints.fit import AUX_HEAD
from mixtransfer.checkpoints.load import fit_file
from mixtransfer.checkpoints.select import Selection, select_weights
from mixtransfer.errors import UserError
from mixtransfer.layers.init import init_linear
from mixtransfer.mixing.steps import outside_graphs
from mixtransfer.pretrain.classifier import MixingClassifier, smooth_one_hot
from mixtransfer.pretrain.teachers import Teacher
from mixtransfer.registry import MODELS, TRANSFORMS

__all__ = ["CleanView", "Labeler", "TokenLabelingClassifier"]


@MODELS.register_module()
class TokenLabelingClassifier(MixingClassifier):
    """A classifier of images and of their tokens: a labeler, or with a ``teacher`` its student.

    A sample may bring its clean view (3, H, W) as ``clean``, which :class:`CleanView` makes; the labeler then sees that
    in place of the image.

    Args:
        arch: an architecture; published is FAN-Hybrid (``fan_hybrid_*_token``).
        num_classes: rows of both heads.
        teacher: the labeler, ``dict(arch=..., checkpoint=..., source="auto", trust=False)``: a file of this model, or
            a published one. :meth:`init_weights` loads it, completely.
        noise_seed: start of the random stream of the token labels; not the mixing method's.
        kwargs: those of :class:`~mixtransfer.pretrain.classifier.MixingClassifier`; methods that mix labels by area.

    Raises:
        UserError: ``teacher`` is incomplete.
    """

    evidence: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(
        self, arch: str, num_classes: int = 1000, *, teacher: dict | None = None, noise_seed: int = 1, **kwargs
    ):
        super().__init__(arch, num_classes, **kwargs)
        self.aux_head = nn.Linear(self.backbone.embed_channels, num_classes)
        init_linear(self.aux_head)
        self.noise_seed = noise_seed
        if teacher is not None:
            self.teacher = Labeler(teacher, lambda arch: TokenLabelingClassifier(arch, num_classes))

    def sample_fields(self, samples: list) -> dict[str, Tensor]:
        """Return the samples' clean views, preprocessed, as ``clean`` (B, 3, H, W); none without a labeler.

        Raises:
            UserError: some samples bring a clean view and others none.
        """
        views = [sample.clean for sample in samples if "clean" in sample]
        if self.teacher is None or not views:
            return {}
        if len(views) < len(samples):
            raise UserError(
                f"{len(samples) - len(views)} of {len(samples)} samples have no clean view; give all or none"
            )
        return {"clean": self.data_preprocessor({"inputs": views})["inputs"]}

    def loss(self, images: Tensor, labels: Tensor, fields: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the losses of a training step, and count it.

        Args:
            images: (B, 3, H, W).
            labels: (B,), the classes of the images.
            fields: ``clean`` (B, 3, H, W), the labeler's view of the images; by default the images before mixing.

        Raises:
            UserError: the labeler's tokens form another grid than the student's.
        """
        dtype = torch.promote_types(images.dtype, torch.float32)
        targets = smooth_one_hot(labels, self.num_classes, self.label_smoothing, dtype)
        token_labels = self.token_labels((fields or {}).get("clean", images))
        if self.mixing is not None:
            draw = self.draw(images).resolve({})
            images = self.mixing.apply(images, draw)
            targets = self.mixing.relabel(targets, draw, {})
        self.count_step()
        seen = self.backbone.embed_with_evidence(images, ("tokens",))
        losses = {"loss_class": self.criterion(self.head(seen["vector"]), targets)}
        if token_labels is None:
            losses["loss_tokens"] = self.criterion(self.aux_head(seen["tokens"].mean(dim=(2, 3))), targets)
        else:
            losses["loss_tokens"] = self.token_loss(self.classify_tokens(seen["tokens"]), token_labels)
        return losses

    def classify_tokens(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, h, w, K) of tokens (B, D, h, w)."""
        return self.aux_head(tokens.permute(0, 2, 3, 1))

    def token_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over all tokens of the cross-entropy of logits (B, h, w, K) and smoothed labels (B, h, w)."""
        if logits.shape[:3] != labels.shape:
            ours, theirs = ("×".join(map(str, grid)) for grid in (logits.shape[1:3], labels.shape[1:]))
            raise UserError(f"teacher.arch: its tokens form a {theirs} grid, the student's {ours}; give another")
        return F.cross_entropy(logits.flatten(0, 2), labels.flatten(), label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def token_labels(self, images: Tensor) -> Tensor | None:
        """Return a class (B, h, w) for each token of unmixed images, drawn from the labeler's softmax, or None."""
        if self.teacher is None:
            return None
        labeler = self.teacher.net
        logits = labeler.classify_tokens(labeler.backbone.embed_with_evidence(images, ("tokens",))["tokens"])
        return (logits + self.noise(logits)).argmax(dim=-1)

    @outside_graphs
    def noise(self, logits: Tensor) -> Tensor:
        """Return this step's Gumbel noise, of the logits' shape and at least float32.

        It is drawn on the device of the logits, since the host would be slow at so many numbers.
        """
        generator = self.generator(self.noise_seed, logits.device)
        draws = torch.empty_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32))
        return -draws.exponential_(generator=generator).log()


class Labeler(Teacher[TokenLabelingClassifier]):
    """A token labeler as the teacher, with both of its heads."""

    def read(self) -> dict[str, Tensor]:
        """Return the entries of the file that the labeler takes, complete; the moving average where the file has one.

        Raises:
            UserError: naming each missing, unexpected or misshapen entry.
        """
        heads: dict[str, Tensor] = {}

        def select(content: Any, name: str) -> Selection:
            found = select_weights(content, name)
            if found.other == "state_dict_ema":
                # timm keeps the average beside the weights; mmengine keeps it in their place.
                found = select_weights(content, name, average=True)
            heads.update({key: found.weights.pop(key) for key in AUX_HEAD if key in found.weights})
            return found

        classes = self.net.num_classes
        fitted = fit_file(self.net.backbone, self.checkpoint, self.source, self.trust, head=classes, select=select)
        own = self.net.state_dict()
        for key in AUX_HEAD:
            shape = tuple(own[key].shape)
            if key not in heads or tuple(heads[key].shape) != shape:
                what = f"has {key} {tuple(heads[key].shape)} instead of {shape}" if key in heads else f"lacks {key}"
                raise UserError(f"{self.checkpoint} {what}; give a token labeler of {classes} classes")
        return {**fitted.state, **heads}


@TRANSFORMS.register_module()
class CleanView:
    """mmpretrain's RandAugment that keeps a second image, ``clean``, which only the geometric operations change.

    It takes RandAugment's place in a pipeline. Transforms before it change both images, those behind it the first one
    alone. ``PackInputs(algorithm_keys=["clean"])`` passes the second one on.

    Args:
        augment: config of ``mmpretrain.RandAugment``.
    """

    def __init__(self, augment: dict):
        self.augment = TRANSFORMS.build(augment)

    def __call__(self, results: dict) -> dict:
        """Augment ``img`` (H, W, 3), and add ``clean``, a uint8 tensor (3, H, W)."""
        from mixtransfer.datasets.image_maps import in_step  # pretraining without it needs no mmcv

        results, clean = in_step(self.augment, results, {"img": results["img"]})
        # A copy: erasing writes into an image that no operation has changed.
        results["clean"] = torch.from_numpy(np.ascontiguousarray(clean["img"].transpose(2, 0, 1)))
        return results
