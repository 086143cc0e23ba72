"""Self-emerging token labeling (STL): a labeler learns to classify tokens, a student learns from what it says.

Paper: Zhao et al., "Fully Attentional Networks with Self-emerging Token Labeling", ICCV 2023, arXiv 2401.03844. Code:
NVlabs/STL (NVIDIA Source Code License-NC, no commercial use); nothing here is taken from it.

A second head, ``aux_head``, classifies the last tokens. The labeler learns the image's label with the class head and
with the mean of its tokens' logits. Then, frozen, it labels the tokens of the images that the student sees: of a clean
view of them, before mixing, with the same crop, flip and geometric augmentation, without color operations and erasing.

Shapes: B batch, h × w grid of tokens, K classes.

Kept from the published code: a token's label is one draw from the labeler's softmax (the largest of logits and Gumbel
noise), smoothed as the image's; it is not mixed where images are; both losses count equally; predictions are those of
the class head alone.
Different: the labeler takes the mean before the head, which is linear; the noise of step n of a run is the same on
every resume; the smoothed one-hot labels of tokens are never written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import get_rank
from mmengine.logging import MessageHub
from torch import Tensor, nn

from mixtransfer.checkpoints.fit import AUX_HEAD, account_for
from mixtransfer.checkpoints.load import recognize_format
from mixtransfer.checkpoints.read import read_checkpoint
from mixtransfer.checkpoints.select import select_weights
from mixtransfer.errors import UserError
from mixtransfer.layers.init import init_linear
from mixtransfer.mixing.draws import step_generator
from mixtransfer.pretrain.classifier import MixingClassifier, smooth_one_hot
from mixtransfer.registry import MODELS, TRANSFORMS

__all__ = ["CleanView", "TokenLabelingClassifier", "load_labeler"]

#: mmpretrain's operations that move pixels; the others change colors.
GEOMETRIC = ("Rotate", "Shear", "Translate")


@MODELS.register_module()
class TokenLabelingClassifier(MixingClassifier):
    """A classifier of images and of their tokens: a labeler, or with a ``teacher`` its student.

    Args:
        arch: an architecture whose backbone observes its tokens; published is FAN-Hybrid (``fan_hybrid_*_token``).
        num_classes: rows of both heads.
        teacher: the labeler, ``dict(arch=..., checkpoint=..., source="auto", trust=False)``: a file of this model, or
            a published one. :meth:`init_weights` loads it, completely.
        noise_seed: start of the random stream of the token labels; not the mixing method's.
        kwargs: those of :class:`~mixtransfer.pretrain.classifier.MixingClassifier`; methods that mix labels by area.

    Raises:
        UserError: the backbone does not observe tokens, or ``teacher`` is incomplete.
    """

    evidence: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(
        self, arch: str, num_classes: int = 1000, *, teacher: dict | None = None, noise_seed: int = 1, **kwargs
    ):
        super().__init__(arch, num_classes, **kwargs)
        if "tokens" not in self.backbone.evidence:
            raise UserError(f"TokenLabelingClassifier of {arch}: has no tokens to classify; give e.g. a fan_hybrid")
        self.aux_head = nn.Linear(self.backbone.embed_channels, num_classes)
        init_linear(self.aux_head)
        self.noise_seed, self.step = noise_seed, 0
        # Outside of the module tree: a labeler is neither trained nor saved.
        self.labelers: tuple[TokenLabelingClassifier, ...] = ()
        self.source: dict = {}
        if teacher is not None:
            if not {"arch", "checkpoint"} <= set(teacher) <= {"arch", "checkpoint", "source", "trust"}:
                raise UserError(f"teacher={dict(teacher)}: give arch and checkpoint, and source or trust if needed")
            self.source = {key: value for key, value in teacher.items() if key != "arch"}
            self.labelers = (TokenLabelingClassifier(teacher["arch"], num_classes).requires_grad_(False).eval(),)

    def init_weights(self) -> None:
        """Initialize as configured, and load the labeler."""
        super().init_weights()
        for labeler in self.labelers:
            load_labeler(labeler, **self.source)

    def _apply(self, fn, recurse: bool = True) -> TokenLabelingClassifier:
        for labeler in self.labelers:
            labeler._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"):
        """Run the classifier, as :meth:`MixingClassifier.forward` describes it.

        For ``mode="loss"`` samples may bring their clean view (3, H, W) as :class:`CleanView` makes it; without one,
        the labeler sees ``inputs``, before they are mixed.
        """
        if mode != "loss":
            return super().forward(inputs, data_samples, mode)
        clean = None
        if self.labelers and "clean" in data_samples[0]:
            clean = self.data_preprocessor({"inputs": [sample.clean for sample in data_samples]})["inputs"]
        return self.loss(inputs, torch.cat([sample.gt_label for sample in data_samples]), clean)

    def loss(self, images: Tensor, labels: Tensor, clean: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses of a training step on images with class labels (B,); the labeler sees ``clean`` ones.

        Both views are (B, 3, H, W); one view does for both.
        """
        dtype = torch.promote_types(images.dtype, torch.float32)
        targets = smooth_one_hot(labels, self.num_classes, self.label_smoothing, dtype)
        token_labels = self.token_labels(images if clean is None else clean)
        if self.mixing is not None:
            draw = torch.compiler.disable(self.draw)(images)
            images = self.mixing.apply(images, draw)
            targets = self.mixing.relabel(targets, draw, {})
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
        """Return a class (B, h, w) for each token of unmixed images, drawn as the labeler says; None without one."""
        for labeler in self.labelers:
            logits = labeler.classify_tokens(labeler.backbone.embed_with_evidence(images, ("tokens",))["tokens"])
            return (logits + torch.compiler.disable(self.noise)(logits)).argmax(dim=-1)
        return None

    def noise(self, logits: Tensor) -> Tensor:
        """Return Gumbel noise of the logits' shape, at least float32.

        It is drawn where the logits are, since the host would be slow at so many numbers, and follows the iteration,
        which checkpoints restore.
        """
        step = MessageHub.get_current_instance().runtime_info.get("iter", self.step)
        self.step = step + 1
        seed = step_generator(self.noise_seed, get_rank(), step).initial_seed()
        generator = torch.Generator(logits.device).manual_seed(seed)
        draws = torch.empty_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32))
        return -draws.exponential_(generator=generator).log()


def load_labeler(net: TokenLabelingClassifier, checkpoint: str, source: str = "auto", trust: bool = False) -> None:
    """Load a labeler with both of its heads, completely; the moving average where the file has one.

    Raises:
        UserError: naming each missing, unexpected or misshapen entry.
    """
    content = read_checkpoint(checkpoint, trust)
    found = select_weights(content, checkpoint)
    if found.other == "state_dict_ema":
        # timm keeps the average beside the weights; mmengine keeps it in their place.
        found = select_weights(content, checkpoint, average=True)
    weights, shapes = dict(found.weights), {key: tuple(net.state_dict()[key].shape) for key in AUX_HEAD}
    heads = {key: weights.pop(key) for key in AUX_HEAD if key in weights}
    for key, shape in shapes.items():
        if key not in heads or tuple(heads[key].shape) != shape:
            what = f"has {key} {tuple(heads[key].shape)} instead of {shape}" if key in heads else f"lacks {key}"
            raise UserError(f"{checkpoint} {what}; give a token labeler of {net.num_classes} classes")
    if source == "auto":
        source = recognize_format(net.backbone, weights)
    state = account_for(weights, net.backbone, source, checkpoint, head=net.num_classes).state
    net.load_state_dict({**state, **heads})


@TRANSFORMS.register_module()
class CleanView:
    """mmpretrain's RandAugment that keeps a second image, ``clean``, which only the geometric operations change.

    It takes RandAugment's place in a pipeline; what comes before is part of both images, what comes after of the first
    alone. ``PackInputs(algorithm_keys=["clean"])`` passes the second one on.

    Args:
        augment: config of ``mmpretrain.RandAugment``.
    """

    def __init__(self, augment: dict):
        self.augment = TRANSFORMS.build(augment)

    def __call__(self, results: dict) -> dict:
        """Augment ``img`` (H, W, 3), and add ``clean``, a uint8 tensor (3, H, W)."""
        from mmcv.transforms.utils import cache_random_params  # pretraining without it needs no mmcv

        clean = {"img": results["img"]}
        for index in self.augment.random_policy_indices():
            operation = self.augment.transforms[index]
            with cache_random_params(operation):
                results = operation(results)
                if type(operation).__name__ in GEOMETRIC:
                    clean = operation(clean)
        # A copy: erasing writes into an image that no operation has changed.
        results["clean"] = torch.from_numpy(np.ascontiguousarray(clean["img"].transpose(2, 0, 1)))
        return results
