"""UPerNet, FAN-T-Hybrid, ADE20K 512×512.

    tools/convert.py fan_tiny_8_p4_hybrid.pth.tar checkpoints/fan_hybrid_tiny_seg.safetensors --arch fan_hybrid_tiny_seg
    tools/train.py configs/seg/upernet_fan.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of pretraining; the paper (arXiv 2204.12451) segments Cityscapes, segformer_fan.py. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.FAN",
        arch="fan_hybrid_tiny_seg",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/fan_hybrid_tiny_seg.safetensors"),
    ),
    decode_head=dict(in_channels=[128, 256, 192, 192]),
    auxiliary_head=dict(in_channels=192),
)
