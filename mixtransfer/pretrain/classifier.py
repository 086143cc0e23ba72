"""An image classifier on top of any backbone's image embedding, trained with a mixing method."""

from __future__ import annotations

import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from mixtransfer.backbones import backbone_class
from mixtransfer.registry import MODELS

__all__ = ["MixingClassifier"]


@MODELS.register_module()
class MixingClassifier(BaseModel):
    """Backbone, image embedding, linear head.

    Args:
        arch: an architecture name, see :func:`mixtransfer.list_archs`.
        num_classes: rows of the head.
        backbone: keyword arguments of the backbone.
        mixing: config of a mixing method, e.g. ``dict(type="TLAlign")``; None trains on the images as they are.
        label_smoothing: mass that a label spreads over all classes.
        data_preprocessor: config of the preprocessor, normally ``mmpretrain.ClsDataPreprocessor``.
        init_cfg: OpenMMLab initialization.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int = 1000,
        *,
        backbone: dict | None = None,
        mixing: dict | None = None,
        label_smoothing: float = 0.1,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = backbone_class(arch)(arch=arch, out_indices=(), with_embedding=True, **(backbone or {}))
        self.head = nn.Linear(self.backbone.embed_channels, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self._register_load_state_dict_pre_hook(_accept_flat_names)

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"):
        """Return logits (B, num_classes) for ``mode="tensor"``, losses for ``"loss"``, samples for ``"predict"``."""
        if mode == "tensor":
            return self.head(self.backbone.embed(inputs))
        raise ValueError(f"mode={mode!r}: give 'tensor', 'loss' or 'predict'")


def _accept_flat_names(state: dict[str, Tensor], prefix: str, *_) -> None:
    """Let a backbone's own names, as ``convert_state_dict`` returns them, load into the classifier."""
    heads = tuple(f"{prefix}{name}." for name in ("head", "backbone", "data_preprocessor"))
    if any(key.startswith(heads[1]) for key in state):
        return
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(heads)]:
        state[f"{prefix}backbone.{key[len(prefix) :]}"] = state.pop(key)
