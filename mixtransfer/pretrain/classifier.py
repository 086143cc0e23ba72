"""An image classifier on top of any backbone's image embedding, trained with a mixing method."""

from __future__ import annotations

import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from torch import Tensor, nn

from mixtransfer.backbones import backbone_class
from mixtransfer.errors import UserError
from mixtransfer.mixing import Draw, Mixing
from mixtransfer.mixing.regions import build
from mixtransfer.registry import MODELS

__all__ = ["MixingClassifier", "smooth_one_hot", "soft_cross_entropy"]

#: Evidence that the classifier can collect in a forward pass, by the name that a mixing method asks for.
EVIDENCE = ("token_labels",)


@MODELS.register_module()
class MixingClassifier(BaseModel):
    """Backbone, image embedding, linear head.

    Args:
        arch: an architecture name, see :func:`mixtransfer.list_archs`.
        num_classes: rows of the head.
        backbone: keyword arguments of the backbone.
        mixing: config of a mixing method, e.g. ``dict(type="TLAlign")``; None trains on the images as they are.
        token: side in pixels of the cells of the grid that the method draws its regions on.
        label_smoothing: mass that a label spreads over all classes.
        data_preprocessor: config of the preprocessor, normally ``mmpretrain.ClsDataPreprocessor``.
        init_cfg: OpenMMLab initialization.

    Raises:
        UserError: the mixing method needs evidence that this model cannot collect.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int = 1000,
        *,
        backbone: dict | None = None,
        mixing: dict | None = None,
        token: int = 16,
        label_smoothing: float = 0.1,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = backbone_class(arch)(arch=arch, out_indices=(), with_embedding=True, **(backbone or {}))
        self.head = _head(self.backbone.embed_channels, num_classes)
        if self.backbone.token_head:
            self.aux_head = _head(self.backbone.embed_channels, num_classes)
        self.num_classes, self.label_smoothing, self.token = num_classes, label_smoothing, token
        self.mixing = None if mixing is None else build(mixing, Mixing)
        lacking = [need for need in self.mixing.needs if need not in EVIDENCE] if self.mixing else []
        if lacking:
            raise UserError(
                f"mixing {mixing['type']}: needs {', '.join(lacking)}, which MixingClassifier cannot collect"
            )
        self._register_load_state_dict_pre_hook(_accept_flat_names)

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"):
        """Run the classifier.

        Args:
            inputs: (B, 3, H, W).
            data_samples: mmpretrain ``DataSample`` per image, with ``gt_label`` for ``mode="loss"``.
            mode: ``"tensor"`` returns logits (B, num_classes), ``"loss"`` a dict of losses, ``"predict"`` the samples
                with ``pred_score`` and ``pred_label``.
        """
        if mode == "tensor":
            return self.classify(inputs)[0]
        if mode == "loss":
            return self.loss(inputs, torch.cat([sample.gt_label for sample in data_samples]))
        if mode == "predict":
            scores = self.classify(inputs)[0].softmax(dim=1)
            for sample, score, label in zip(data_samples, scores, scores.argmax(dim=1, keepdim=True), strict=True):
                sample.set_pred_score(score).set_pred_label(label)
            return data_samples
        raise ValueError(f"mode={mode!r}: give 'tensor', 'loss' or 'predict'")

    def classify(self, images: Tensor, token_labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, num_classes) and, with ``token_labels``, the label (B, K) of the embedding."""
        if self.backbone.token_head:
            encoded = self.backbone.encode(images, token_labels)
            return self.head(encoded.vector) + 0.5 * self.aux_head(encoded.tokens).amax(dim=1), encoded.label
        if token_labels is None:
            return self.head(self.backbone.embed(images)), None
        vector, label = self.backbone.embed(images, token_labels)
        return self.head(vector), label

    def loss(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the losses of a training step on images (B, 3, H, W) with class labels (B,)."""
        targets = smooth_one_hot(labels, self.num_classes, self.label_smoothing)
        if self.mixing is None:
            return {"loss": soft_cross_entropy(self.classify(images)[0], targets)}
        draw = self.draw(images)
        images = self.mixing.apply(images, draw)
        traced = "token_labels" in self.mixing.needs
        logits, label = self.classify(images, draw.label_map(images) if traced else None)
        targets = self.mixing.relabel(targets, draw, {"token_labels": label} if traced else {})
        return {"loss": soft_cross_entropy(logits, targets)}

    def draw(self, images: Tensor) -> Draw:
        """Draw how this step mixes its images (B, 3, H, W).

        Draws follow the iteration, which checkpoints restore, so that a resumed run draws what it would have drawn.
        """
        step = MessageHub.get_current_instance().runtime_info.get("iter")
        if step is not None:
            self.mixing.load_state_dict({"step": step})
        return self.mixing.draw(tuple(images.shape), tuple(-(-side // self.token) for side in images.shape[2:]))


def smooth_one_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return soft labels (B, K): ``smoothing``/K everywhere, and 1 − ``smoothing`` more at each label of (B,)."""
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, device=labels.device)
    return targets.scatter_(1, labels.view(-1, 1), 1 - smoothing + off)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the batch of −Σ targets · log softmax(logits), both (B, K)."""
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


def _head(channels: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(channels, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def _accept_flat_names(state: dict[str, Tensor], prefix: str, *_) -> None:
    """Let a backbone's own names, as ``convert_state_dict`` returns them, load into the classifier."""
    own = tuple(f"{prefix}{name}." for name in ("backbone", "head", "aux_head", "data_preprocessor"))
    if any(key.startswith(own[0]) for key in state):
        return
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(own)]:
        state[f"{prefix}backbone.{key[len(prefix) :]}"] = state.pop(key)
