"""UPerNet, Swin-MLP-T (C24), ADE20K 512×512.

    tools/convert.py swin_mlp.pth checkpoints/swin_mlp_tiny_c24_w8_256.safetensors --arch swin_mlp_tiny_c24_w8_256
    tools/train.py configs/seg/upernet_swin_mlp.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of pretraining; no dense recipe is published for Swin-MLP. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.SwinMLP",
        arch="swin_mlp_tiny_c24_w8_256",
        output_norm="layer",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="checkpoints/swin_mlp_tiny_c24_w8_256.safetensors"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
