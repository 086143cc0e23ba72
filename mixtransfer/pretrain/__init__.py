"""Pretraining: the mixing classifier, the training of sparsified networks, and mixed images restored."""

from mixtransfer.pretrain.classifier import MixingClassifier
from mixtransfer.pretrain.distillation import DistilledClassifier
from mixtransfer.pretrain.dynamic import DynamicClassifier
from mixtransfer.pretrain.mixmim import MixMIM
from mixtransfer.pretrain.oamixer import OAMixer
from mixtransfer.pretrain.token_labeling import TokenLabelingClassifier

__all__ = [
    "DistilledClassifier",
    "DynamicClassifier",
    "MixMIM",
    "MixingClassifier",
    "OAMixer",
    "TokenLabelingClassifier",
]
