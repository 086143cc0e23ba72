"""UPerNet, MLP-Mixer-B/16, ADE20K 512×512.

    tools/convert.py jx_mixer_b16_224-76587d61.pth checkpoints/mixer_b16.safetensors --arch mixer_b16
    tools/train.py configs/seg/upernet_mlp_mixer.py

Hardware: 8 GPUs × 2 images. Recipe: ours, mmseg's for DeiT (upernet_deit.py) with the drop path of pretraining
(pretrain/mlp_mixer.py); MLP-Mixer's paper (arXiv 2105.01601) has no segmentor. The weights are Google's, as timm
publishes them; their positions are mixed at 14 × 14, to which maps are resampled. Not reproduced yet.
"""

_base_ = "../_base_/upernet_levels_160k.py"

model = dict(
    # Pretrained on images scaled to [-1, 1].
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        type="mixtransfer.MLPMixer",
        arch="mixer_b16",
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/mixer_b16.safetensors"),
    ),
    neck=dict(in_channels=[768, 768, 768, 768], out_channels=768),
    decode_head=dict(in_channels=[768, 768, 768, 768]),
    auxiliary_head=dict(in_channels=768),
)
