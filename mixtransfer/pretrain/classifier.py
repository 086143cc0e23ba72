"""An image classifier on top of any backbone's image embedding, trained with a mixing method."""

from __future__ import annotations

import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from torch import Tensor, nn

from mixtransfer.backbones import backbone_class
from mixtransfer.errors import UserError
from mixtransfer.mixing import Mixing
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
        self.head = nn.Linear(self.backbone.embed_channels, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
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
            return self.head(self.backbone.embed(inputs))
        if mode == "loss":
            return self.loss(inputs, torch.cat([sample.gt_label for sample in data_samples]))
        if mode == "predict":
            scores = self.head(self.backbone.embed(inputs)).softmax(dim=1)
            for sample, score, label in zip(data_samples, scores, scores.argmax(dim=1, keepdim=True), strict=True):
                sample.set_pred_score(score).set_pred_label(label)
            return data_samples
        raise ValueError(f"mode={mode!r}: give 'tensor', 'loss' or 'predict'")

    def loss(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the losses of a training step on images (B, 3, H, W) with class labels (B,)."""
        targets = smooth_one_hot(labels, self.num_classes, self.label_smoothing)
        if self.mixing is None:
            return {"loss": soft_cross_entropy(self.head(self.backbone.embed(images)), targets)}
        # Draws follow the iteration, which checkpoints restore, so that a resumed run draws what it would have drawn.
        step = MessageHub.get_current_instance().runtime_info.get("iter")
        if step is not None:
            self.mixing.load_state_dict({"step": step})
        grid = tuple(-(-side // self.token) for side in images.shape[2:])
        draw = self.mixing.draw(tuple(images.shape), grid)
        images = self.mixing.apply(images, draw)
        evidence = {}
        if "token_labels" in self.mixing.needs:
            vector, evidence["token_labels"] = self.backbone.embed(images, draw.label_map(images))
        else:
            vector = self.backbone.embed(images)
        targets = self.mixing.relabel(targets, draw, evidence)
        return {"loss": soft_cross_entropy(self.head(vector), targets)}


def smooth_one_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return soft labels (B, K): ``smoothing``/K everywhere, and 1 − ``smoothing`` more at each label of (B,)."""
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, device=labels.device)
    return targets.scatter_(1, labels.view(-1, 1), 1 - smoothing + off)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the batch of −Σ targets · log softmax(logits), both (B, K)."""
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


def _accept_flat_names(state: dict[str, Tensor], prefix: str, *_) -> None:
    """Let a backbone's own names, as ``convert_state_dict`` returns them, load into the classifier."""
    own = tuple(f"{prefix}{name}." for name in ("backbone", "head", "data_preprocessor"))
    if any(key.startswith(own[0]) for key in state):
        return
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(own)]:
        state[f"{prefix}backbone.{key[len(prefix) :]}"] = state.pop(key)
