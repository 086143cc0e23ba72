"""An ImageNet-1k classifier, 300 epochs of 1024 images a step: DeiT's recipe, from which the others differ.

RandAugment and random erasing (timm's), Mixup 0.8 or CutMix 1.0 in every step, label smoothing 0.1, AdamW.
"""

_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py",
    "./schedules/adamw_300e.py",
    "mmpretrain::_base_/default_runtime.py",
    "./runtime.py",
]

data_preprocessor = dict(type="mmpretrain.ClsDataPreprocessor")
model = dict(
    type="mixtransfer.MixingClassifier",
    num_classes=1000,
    mixing=dict(type="mixtransfer.MixupOrCutMix", mixup_alpha=0.8, cutmix_alpha=1.0),
    label_smoothing=0.1,
)
train_dataloader = dict(batch_size=128)
