"""Pretraining: the mixing classifier."""

from mixtransfer.pretrain.classifier import MixingClassifier

__all__ = ["MixingClassifier"]
