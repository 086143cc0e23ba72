"""UPerNet, PyramidTNT-S, ADE20K 512×512.

    tools/convert.py pyramid_tnt_small.pth checkpoints/pyramid_tnt_small.safetensors --arch pyramid_tnt_small
    tools/train.py configs/seg/upernet_pyramid_tnt.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of pretraining; the paper (arXiv 2201.00978) has detectors only. Maps have strides 8, 16, 32 and 64; the auxiliary head
reads stride 16, as elsewhere. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    # Pretrained on images scaled to [-1, 1].
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        type="mixtransfer.PyramidTNT",
        arch="pyramid_tnt_small",
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/pyramid_tnt_small.safetensors"),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 512]),
    auxiliary_head=dict(in_channels=256, in_index=1),
)
