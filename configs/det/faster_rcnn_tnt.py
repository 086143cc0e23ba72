"""Faster R-CNN, TNT-S, COCO, 12 epochs.

    tools/convert.py tnt_s_81.5.pth.tar checkpoints/tnt_small.safetensors --arch tnt_small
    tools/train.py configs/det/faster_rcnn_tnt.py

Hardware: 8 GPUs × 2 images. Recipe: ours, PVT's rates (whai362/PVT, detection/configs/mask_rcnn_pvt_t_fpn_1x_coco.py)
with the drop path of pretraining; the paper's settings are in no code. A neck rescales the last map to strides 4 to 64.
Published: 41.5 box AP (arXiv 2103.00112; not confirmed here). Not reproduced yet.
"""

_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/adamw_1x.py",
    "mmdet::_base_/default_runtime.py",
    "../_base_/runtime.py",
]

model = dict(
    # Pretrained on images scaled to [-1, 1].
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        _delete_=True,
        type="mixtransfer.TNT",
        arch="tnt_small",
        output_norm="layer",
        drop_path_rate=0.1,
        out_indices=(11,),
        init_cfg=dict(type="mixtransfer.Pretrained", checkpoint="checkpoints/tnt_small.safetensors"),
    ),
    neck=dict(
        _delete_=True,
        type="mmseg.MultiLevelNeck",
        in_channels=[384],
        out_channels=256,
        scales=[4, 2, 1, 0.5, 0.25],
    ),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4))
