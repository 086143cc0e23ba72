"""UPerNet, FAN-Swin-T, ADE20K 512×512.

    tools/convert.py fan_swin_tiny.pth.tar checkpoints/fan_swin_tiny.safetensors --arch fan_swin_tiny
    tools/train.py configs/seg/upernet_fan_swin.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3); no dense recipe is
published for FAN-Swin. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.FANSwin",
        arch="fan_swin_tiny",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="checkpoints/fan_swin_tiny.safetensors"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
