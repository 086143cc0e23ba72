"""RetinaNet, Hire-MLP-T, COCO, 12 epochs.

    tools/convert.py weights://hire_mlp_tiny checkpoints/hire_mlp_tiny.safetensors --arch hire_mlp_tiny
    tools/train.py configs/det/retinanet_hire_mlp.py

Hardware: 8 GPUs × 2 images. Recipe: ours, PVT's (whai362/PVT, detection/configs/retinanet_pvt_t_fpn_1x_coco.py); there
is no code for the published detectors. Published: 38.9 box AP (arXiv 2108.13341; not confirmed here). Not reproduced
yet.
"""

_base_ = "../_base_/retinanet_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.HireMLP",
        arch="hire_mlp_tiny",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/hire_mlp_tiny.safetensors"),
    ),
    neck=dict(in_channels=[128, 320, 512]),
)
