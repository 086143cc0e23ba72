"""Mask R-CNN, DINOv3's ViT-B of timm, COCO, 12 epochs with multi-scale training and crops.

    tools/train.py configs/det/mask_rcnn_timm_vit.py

Hardware: 8 GPUs × 2 images. Recipe: the schedule of mask_rcnn_swin on ViTDet's pyramid of the last map, for any plain
ViT of timm with patches of 16: --arch timm/vit_small_patch16_dinov3.lvd1689m. Attention is global.
No score is published for this recipe.
"""

_base_ = "../_base_/mask_rcnn_swin_1x.py"

model = dict(
    backbone=dict(
        type="mixtransfer.TimmBackbone",
        arch="timm/vit_base_patch16_dinov3.lvd1689m",
        drop_path_rate=0.1,
        out_indices=(11,),
        init_cfg=dict(checkpoint="timm://vit_base_patch16_dinov3.lvd1689m"),
    ),
    neck=dict(_delete_=True, type="mixtransfer.SimpleFeaturePyramid", in_channels=[768], out_channels=256, num_outs=5),
)
