"""UPerNet, DINOv3's ViT-B of timm, ADE20K 512×512.

    tools/train.py configs/seg/upernet_timm_vit.py

Hardware: 8 GPUs × 2 images. Recipe: the values of upernet_swin on ViTDet's pyramid of the last map, for any plain ViT
of timm: --arch timm/vit_small_patch14_dinov2.lvd142m. Networks of several strides have upernet_timm.
No score is published for this recipe.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.TimmBackbone",
        arch="timm/vit_base_patch16_dinov3.lvd1689m",
        drop_path_rate=0.1,
        out_indices=(11,),
        init_cfg=dict(checkpoint="timm://vit_base_patch16_dinov3.lvd1689m"),
    ),
    neck=dict(type="mixtransfer.SimpleFeaturePyramid", in_channels=[768], out_channels=256, num_outs=4),
    decode_head=dict(in_channels=[256, 256, 256, 256]),
    auxiliary_head=dict(in_channels=256),
)
