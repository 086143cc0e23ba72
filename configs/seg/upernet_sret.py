"""UPerNet, SReT-T, ADE20K 512×512.

    tools/convert.py weights://sret_tiny checkpoints/sret_tiny.safetensors --arch sret_tiny
    tools/train.py configs/seg/upernet_sret.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of pretraining; the paper (arXiv 2111.05297) has no dense task. There are three maps, of strides 8, 16 and 32; the
auxiliary head reads stride 16, as elsewhere. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.SReT",
        arch="sret_tiny",
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/sret_tiny.safetensors"),
    ),
    decode_head=dict(in_channels=[64, 128, 256], in_index=[0, 1, 2]),
    auxiliary_head=dict(in_channels=128, in_index=1),
)
