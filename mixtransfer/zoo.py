"""The public door to all architectures: list them, build a backbone, build a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixtransfer.backbones import FAMILIES, Backbone, backbone_class
from mixtransfer.errors import unknown_name

if TYPE_CHECKING:
    from mixtransfer.pretrain.classifier import MixingClassifier

__all__ = ["build_backbone", "build_classifier", "list_archs"]


def list_archs(family: str | None = None) -> list[str]:
    """Return all architecture names ``<family>_<variant>``, sorted, or those of one family.

    Raises:
        UserError: ``family`` is unknown.
    """
    known = {cls.family for cls in FAMILIES}
    if family is not None and family not in known:
        raise unknown_name("family", family, known)
    return sorted(arch for cls in FAMILIES if family in (None, cls.family) for arch in cls.archs)


def build_backbone(arch: str, **kwargs: Any) -> Backbone:
    """Build a backbone with random weights; ``kwargs`` are those of its class.

    Unlike a config's backbone it has the layers of both uses, ``forward`` and ``embed``, unless
    ``with_embedding=False`` is given.

    Raises:
        UserError: ``arch`` is unknown.
    """
    return backbone_class(arch)(arch=arch, **{"with_embedding": True, **kwargs})


def build_classifier(arch: str, num_classes: int = 1000, **kwargs: Any) -> MixingClassifier:
    """Build a classifier: the backbone's image embedding and a linear head.

    ``net(images, mode="tensor")`` returns logits (B, num_classes). ``kwargs`` are those of
    :class:`~mixtransfer.pretrain.classifier.MixingClassifier`; ``backbone`` holds those of the backbone.

    Raises:
        UserError: ``arch`` is unknown.
    """
    from mixtransfer.pretrain.classifier import MixingClassifier

    return MixingClassifier(arch=arch, num_classes=num_classes, **kwargs)
