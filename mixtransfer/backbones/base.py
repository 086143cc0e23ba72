"""The contract that every backbone fulfills.

Shapes: B batch, H × W image, K label channels, C_i channels of output i with strides s_i.

* ``forward(images)`` returns the tuple of dense maps (B, C_i, H_i, W_i), H_i = ceil(H / s_i), as the published dense
  code computes them; with ``token_labels`` (B, K, h, w) also the tuple of aligned labels (B, K, H_i, W_i).
* ``embed(images)`` returns the (B, D) vector that the published classifier feeds its linear head; with
  ``token_labels`` also the (B, K) label of that vector.
* ``observe(images, wanted)`` returns that vector and what some pretraining methods read beside it: the attention of
  the last block, the last tokens. A family that offers any lists it in ``evidence``.

All read the same trunk. A family implements :meth:`Backbone.dense`, :meth:`Backbone.embedding` and, if it offers any,
:meth:`Backbone.embedding_with_evidence` on top of it, and declares its published variants in ``archs`` and its
published key names in ``formats``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.errors import UserError, unknown_name
from mixtransfer.layers.labels import pool_labels

__all__ = ["Backbone", "TokenClassifier"]


class TokenClassifier(nn.Module):
    """A light classifier of single tokens on chosen outputs: LayerNorm over channels, then a linear map.

    Args:
        channels: channels C_i of each output of the backbone.
        num_classes: number of classes, background included where the labels have one.
        stages: positions in the tuple of outputs.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, stages: Sequence[int]):
        super().__init__()
        if not stages or not all(0 <= stage < len(channels) for stage in stages):
            raise UserError(
                f"token_classifier.stages={tuple(stages)}: give some of the outputs, 0 to {len(channels) - 1}"
            )
        self.num_classes, self.stages = num_classes, tuple(stages)
        self.norms = nn.ModuleList(nn.LayerNorm(channels[stage]) for stage in stages)
        self.heads = nn.ModuleList(nn.Linear(channels[stage], num_classes) for stage in stages)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return logits (B, num_classes, H_i, W_i) for each of ``stages``."""
        return tuple(
            head(norm(features[stage].permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            for stage, norm, head in zip(self.stages, self.norms, self.heads, strict=True)
        )


class Backbone(BaseModule):
    """Base of all families.

    A family sets its layers, then calls :meth:`finish`. Its constructor takes ``arch`` and, as keywords,
    ``in_channels``, ``img_size``, ``out_indices``, ``drop_path_rate``, ``frozen_stages``, ``with_cp``,
    ``with_embedding``, ``token_classifier`` and ``init_cfg``.

    ``with_embedding`` keeps the layers that only :meth:`embed` reads (the classifier's last norm, class-attention
    blocks, …). It is off in dense models, where such parameters would get no gradient and stop distributed training.
    """

    family: ClassVar[str]
    archs: ClassVar[Mapping[str, Any]]
    #: What the authors print about the variants; a variant may be missing.
    reported: ClassVar[Mapping[str, Reported]] = {}
    formats: ClassVar[Mapping[str, KeyMap]] = {"official": KeyMap()}
    label_rule: ClassVar[str]
    #: Regular expressions of entries that only ``forward`` reads and published classifiers lack.
    dense_only: ClassVar[tuple[str, ...]] = ()
    #: Regular expressions of entries that only ``embed`` reads and published dense checkpoints lack.
    embed_only: ClassVar[tuple[str, ...]] = ()

    #: What :meth:`embed_with_evidence` can tell beside the embedding.
    evidence: ClassVar[tuple[str, ...]] = ()

    #: Whether the published classifier has a second head, ``aux_head``, on tokens: half of the largest logit that it
    #: gives any of them is added to the logits of the embedding. Such a family has ``encode``, which returns both.
    has_token_logits: bool = False

    arch: str
    depth: int
    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    embed_channels: int

    def __init__(self, arch: str, *, with_cp: bool = False, with_embedding: bool = False, init_cfg: dict | None = None):
        if arch not in self.archs:
            raise unknown_name(f"architecture of {type(self).__name__}", arch, self.archs)
        super().__init__(init_cfg)
        self.arch, self.with_cp, self.with_embedding = arch, with_cp, with_embedding
        self.frozen_stages = -1
        self.token_classifier: TokenClassifier | None = None

    def finish(
        self, out_channels: Sequence[int], strides: Sequence[int], *, frozen_stages: int, token_classifier: dict | None
    ) -> None:
        """Declare the outputs, add the token classifier, and freeze; called at the end of a family's constructor."""
        self.out_channels, self.strides = tuple(out_channels), tuple(strides)
        if token_classifier is not None:
            self.token_classifier = TokenClassifier(self.out_channels, **token_classifier)
        last = len(self.stage_modules()) - 1
        if not -1 <= frozen_stages <= last:
            raise UserError(f"frozen_stages={frozen_stages} of {self.arch}: give -1 (none) to {last}")
        self.frozen_stages = frozen_stages
        self._freeze()

    def dense(self, images: Tensor, labels: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
        """Return the dense maps and, with ``labels`` (B, K, h, w), their aligned labels.

        A family whose ``label_rule`` is pooling is never given labels here: :meth:`forward` pools them onto its maps.
        """
        raise NotImplementedError

    def embedding(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the image embedding (B, D) and, with ``labels``, its label (B, K)."""
        raise NotImplementedError

    def embedding_with_evidence(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Return what :meth:`embed_with_evidence` does, for names of ``evidence``."""
        return {"vector": self.embedding(images, None)[0]}

    def stage_modules(self) -> list[list[nn.Module | nn.Parameter]]:
        """Return what ``frozen_stages`` freezes: the patch embedding first, then stage after stage."""
        raise NotImplementedError

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter, for layer-wise learning-rate decay.

        Args:
            name: the parameter's name inside the backbone.

        Returns:
            0 for the patch embedding, i for block i of 1 … ``depth``, ``depth`` + 1 for what follows the blocks.
        """
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that the published recipe does not decay, beyond norms and biases."""
        return set()

    def forward(self, images: Tensor, token_labels: Tensor | None = None):
        """Return the dense maps, with ``token_labels`` the pair (maps, aligned labels); see the module's docstring."""
        if token_labels is not None and self.label_rule == "pooling":
            maps, _ = self.dense(images, None)
            return maps, tuple(pool_labels(token_labels.detach(), tuple(m.shape[2:])) for m in maps)
        maps, aligned = self.dense(images, token_labels)
        return maps if token_labels is None else (maps, aligned)

    def embed(self, images: Tensor, token_labels: Tensor | None = None):
        """Return the image embedding, with ``token_labels`` the pair (embedding, label)."""
        if not self.with_embedding:
            raise UserError(f"{self.arch} was built for dense maps only; pass with_embedding=True to use embed()")
        vector, label = self.embedding(images, token_labels)
        return vector if token_labels is None else (vector, label)

    def embed_with_evidence(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Return the image embedding (B, D), under ``"vector"``, and what ``wanted`` names of ``evidence``.

        * ``"class_attention"`` (B, h, w): how much the class token attends to each patch in the last block that it
          takes part in, mean over the heads; its attention to itself is left out.
        * ``"image_attention"`` (B, h, w): how much the patches attend to each patch in the last block of theirs, mean
          over heads and patches; what goes to the class token is left out.
        * ``"tokens"`` (B, D, h, w): the last patches behind the norm of the embedding.

        Attention has no gradient and is at least float32.

        Raises:
            UserError: the backbone cannot tell, or was built without embedding.
        """
        lacking = [name for name in wanted if name not in self.evidence]
        if lacking or not self.with_embedding:
            raise UserError(f"{self.arch} cannot tell {', '.join(lacking or ['its embedding: with_embedding=False'])}")
        return self.embedding_with_evidence(images, wanted)

    def checkpointed(self, block: nn.Module, *args):
        """Run a block, recomputing its activations in the backward pass when ``with_cp`` is set."""
        if self.with_cp and self.training and torch.is_grad_enabled():
            contexts = lambda: (nullcontext(), _statistics_kept(block))  # noqa: E731
            return torch.utils.checkpoint.checkpoint(block, *args, use_reentrant=False, context_fn=contexts)
        return block(*args)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def init_weights(self) -> None:
        """Load the pretrained weights that ``init_cfg`` names; the constructor has drawn all others."""
        if self.init_cfg and not self.is_init:
            super().init_weights()

    def resize_loaded(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return checkpoint entries with size-dependent tables resampled to this network's sizes."""
        return state

    def _freeze(self) -> None:
        for part in self.stage_modules()[: self.frozen_stages + 1] if self.frozen_stages >= 0 else []:
            for item in part:
                if isinstance(item, nn.Parameter):
                    item.requires_grad_(False)
                else:
                    item.eval().requires_grad_(False)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are: recomputing a block must not count its batch a second time."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    saved = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, saved, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def check_out_indices(indices: Sequence[int], count: int, arch: str) -> tuple[int, ...]:
    """Return ``indices`` as a sorted tuple, or raise a :class:`UserError` when one is not in 0 … ``count`` − 1."""
    if any(not 0 <= index < count for index in indices) or list(indices) != sorted(set(indices)):
        raise UserError(f"out_indices={tuple(indices)} of {arch}: give rising numbers from 0 to {count - 1}")
    return tuple(indices)
