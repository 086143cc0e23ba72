"""MLP-Mixer-S/16 classifier, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/mlp_mixer.py

Hardware: 8 GPUs × 128 images; published: 4 × 64, at a quarter of the rate. Recipe: alinlab/OAMixer, ``main.py`` (arXiv
2212.06595), its baseline without masks: DeiT's, each image three times an epoch. No score is in the code. Not
reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="mixer_s16",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(sampler=dict(type="RepeatAugSampler"))
