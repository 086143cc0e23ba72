"""UPerNet, ConvNeXt-T of timm, ADE20K 512×512.

    tools/train.py configs/seg/upernet_timm.py

Hardware: 8 GPUs × 2 images. Recipe: the values of upernet_swin, so that any network of timm with maps of several
strides stands beside ours as a control: --arch timm/resnet50.a1_in1k. Plain ViTs have
upernet_timm_vit. No score is published for this recipe.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.TimmBackbone",
        arch="timm/convnext_tiny.fb_in1k",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="timm://convnext_tiny.fb_in1k"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
