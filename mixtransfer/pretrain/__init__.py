"""Pretraining: the mixing classifier, and the training of sparsified networks."""

from mixtransfer.pretrain.classifier import MixingClassifier
from mixtransfer.pretrain.dynamic import DynamicClassifier
from mixtransfer.pretrain.oamixer import OAMixer
from mixtransfer.pretrain.token_labeling import TokenLabelingClassifier

__all__ = ["DynamicClassifier", "MixingClassifier", "OAMixer", "TokenLabelingClassifier"]
