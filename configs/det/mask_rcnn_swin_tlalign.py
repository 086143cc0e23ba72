"""Mask R-CNN, Swin-T pretrained with TL-Align, COCO, 12 epochs, token-level mixing while fine-tuning.

    tools/convert.py best_checkpoint.pth checkpoints/swin_tiny_tlalign.safetensors --arch swin_tiny
    tools/train.py configs/det/mask_rcnn_swin_tlalign.py

Hardware: 8 GPUs × 2 images, as published. Recipe: Swin, arXiv 2103.14030, appendix A2.2, 1x.
Published: 43.7 box AP, 39.8 mask AP with ImageNet-1k weights (SwinTransformer/Swin-Transformer-Object-Detection,
README). Not reproduced yet.
"""

_base_ = [
    "../_base_/models/mask_rcnn_swin.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(
        # To start from random weights: --cfg-options model.backbone.init_cfg=None
        init_cfg=dict(type="mixtransfer.Pretrained", checkpoint="checkpoints/swin_tiny_tlalign.safetensors"),
        # 80 classes and background.
        token_classifier=dict(num_classes=81, stages=(3,)),
    )
)
custom_hooks = [
    dict(type="mixtransfer.TokenMixHook", region=dict(type="TokenBox", alpha=1.0), prob=0.5, token=32, loss_weight=0.5)
]

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="mixtransfer.TransferOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
