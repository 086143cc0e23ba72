"""RetinaNet, PyramidTNT-S, COCO, 12 epochs.

    tools/convert.py pyramid_tnt_small.pth checkpoints/pyramid_tnt_small.safetensors --arch pyramid_tnt_small
    tools/train.py configs/det/retinanet_pyramid_tnt.py

Hardware: 8 GPUs × 2 images. Recipe: ours, PVT's RetinaNet (whai362/PVT,
detection/configs/retinanet_pvt_t_fpn_1x_coco.py) on strides 8 to 128. Published: 42.0 box AP (arXiv 2201.00978; not
confirmed here), without code or settings. Not reproduced yet.
"""

_base_ = "../_base_/retinanet_1x.py"

model = dict(
    # Pretrained on images scaled to [-1, 1].
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        type="mixtransfer.PyramidTNT",
        arch="pyramid_tnt_small",
        output_norm="layer",
        drop_path_rate=0.1,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(checkpoint="checkpoints/pyramid_tnt_small.safetensors"),
    ),
    neck=dict(in_channels=[128, 256, 512, 512]),
)
