"""UPerNet, Swin-T, ADE20K 512×512.

    tools/convert.py weights://swin_tiny checkpoints/swin_tiny.safetensors --arch swin_tiny
    tools/train.py configs/seg/upernet_swin.py

Hardware: 8 GPUs × 2 images, as published. Recipe: SwinTransformer/Swin-Transformer-Semantic-Segmentation,
configs/swin/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k.py: AdamW, 160k iterations. Published: 44.51 mIoU,
45.81 with flips and scales, with ImageNet-1k weights, 60 M parameters, 945 G MACs (there, README). Not
reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.SwinTransformer",
        arch="swin_tiny",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="checkpoints/swin_tiny.safetensors"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)

# Other sizes (--arch) as their published files have them;
# those from ImageNet-22k have crops of 640 in the paper (arXiv 2103.14030, table 3; from memory), without a file.
sizes = dict(
    swin_small=dict(),
    swin_base=dict(),
    swin_base_w12=dict(crop=640),
    swin_large_w12=dict(crop=640),
)
