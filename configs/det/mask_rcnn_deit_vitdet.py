"""Mask R-CNN as ViTDet, DeiT-B, COCO, 100 epochs of large-scale jitter at 1024×1024.

    tools/convert.py weights://deit_base checkpoints/deit_base.safetensors --arch deit_base
    tools/train.py configs/det/mask_rcnn_deit_vitdet.py

Hardware: 64 GPUs × 1 image, as published. Recipe: facebookresearch/detectron2,
projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py (arXiv 2203.16527), there in mixed precision (--amp) and from
MAE's weights: AdamW 1e-4, 0.7 times the rate a layer, attention in windows of 14 but for blocks 3, 6, 9 and 12, a
pyramid of the last map, heads with LayerNorm. DeiT's weights have no relative positions, which are left out; any ViT in
DeiT's names fits (--cfg-options model.backbone.init_cfg.checkpoint=FILE), and --arch vit_large takes ViTDet-L's values
but for the drop path. Published: 51.6 box AP, 45.9 mask AP from MAE's weights with relative positions (there, README;
not confirmed here). Not reproduced yet.
"""

_base_ = "../_base_/mask_rcnn_lsj_100e.py"

norm = dict(type="mixtransfer.LayerNorm2d")
model = dict(
    backbone=dict(
        type="mixtransfer.VisionTransformer",
        arch="deit_base",
        drop_path_rate=0.1,
        out_indices=(11,),
        window=14,
        init_cfg=dict(checkpoint="checkpoints/deit_base.safetensors"),
    ),
    neck=dict(_delete_=True, type="mixtransfer.SimpleFeaturePyramid", in_channels=[768], out_channels=256, num_outs=5),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256, norm_cfg=norm),
        mask_head=dict(norm_cfg=norm),
    ),
)
# No norm decays, those of neck and heads included.
optim_wrapper = dict(paramwise_cfg=dict(undecayed=["norm", ".ln.", "pos_embed"], layer_decay_rate=0.7))
