"""DETR, TNT-S, COCO, 50 epochs.

    tools/convert.py tnt_s_81.5.pth.tar checkpoints/tnt_small.safetensors --arch tnt_small
    tools/train.py configs/det/detr_tnt.py

Hardware: 8 GPUs × 2 images. Recipe: ours, mmdet's for DETR (open-mmlab/mmdetection,
configs/detr/detr_r50_8xb2-150e_coco.py) over the 50 epochs of PVT's (whai362/PVT,
detection/configs/detr_pvt_s_8x2_50ep_coco.py), a tenth of the rate from epoch 34 on; the paper's settings are in no
code. The transformer reads the last map, of stride 16. Published: 38.2 box AP (arXiv 2103.00112; not confirmed here).
Not reproduced yet.
"""

_base_ = ["mmdet::detr/detr_r50_8xb2-150e_coco.py", "../_base_/runtime.py"]

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
    neck=dict(in_channels=[384]),
)
train_cfg = dict(max_epochs=50)
param_scheduler = [dict(type="MultiStepLR", begin=0, end=50, by_epoch=True, milestones=[33], gamma=0.1)]
