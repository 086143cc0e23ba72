"""Mask R-CNN, MLP-Mixer-B/16, COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py jx_mixer_b16_224-76587d61.pth checkpoints/mixer_b16.safetensors --arch mixer_b16
    tools/train.py configs/det/mask_rcnn_mlp_mixer.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's Mask R-CNN (mask_rcnn_swin.py) with the drop path of
pretrain/mlp_mixer.py; MLP-Mixer's paper (arXiv 2105.01601) has no detector. The weights are Google's, as timm publishes
them; their positions are mixed at 14 × 14, to which maps are resampled. Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_levels_1x.py"

model = dict(
    # Pretrained on images scaled to [-1, 1].
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        type="mixtransfer.MLPMixer",
        arch="mixer_b16",
        output_norm="layer",
        drop_path_rate=0.1,
        out_indices=(11,),
        init_cfg=dict(checkpoint="checkpoints/mixer_b16.safetensors"),
    ),
    neck=dict(in_channels=[768]),
)
