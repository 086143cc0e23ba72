"""UPerNet, ConvMixer-1024/20, ADE20K 512×512.

    tools/convert.py convmixer_1024_20.pth.tar checkpoints/convmixer.safetensors --arch convmixer_1024_20_ks9_p14
    tools/train.py configs/seg/upernet_convmixer.py

Hardware: 8 GPUs × 2 images. Recipe: ours, mmseg's for DeiT (upernet_deit.py) without drop path, as pretrained;
ConvMixer's paper (arXiv 2201.09792) has no segmentor. A neck rescales stride 14 to 4, 8, 16 and 32; BatchNorm over all
GPUs. Not reproduced yet.
"""

_base_ = "../_base_/upernet_levels_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.ConvMixer",
        arch="convmixer_1024_20_ks9_p14",
        output_norm="layer",
        init_cfg=dict(checkpoint="checkpoints/convmixer.safetensors"),
    ),
    neck=dict(in_channels=[1024, 1024, 1024, 1024], out_channels=1024, scales=[14 / 4, 14 / 8, 14 / 16, 14 / 32]),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024]),
    auxiliary_head=dict(in_channels=1024),
)
sync_bn = "torch"
