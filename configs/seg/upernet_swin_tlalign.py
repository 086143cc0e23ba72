"""UPerNet, Swin-T pretrained with TL-Align, ADE20K 512×512, token-level mixing while fine-tuning.

    tools/convert.py best_checkpoint.pth checkpoints/swin_tiny_tlalign.safetensors --arch swin_tiny
    tools/train.py configs/seg/upernet_swin_tlalign.py

Hardware: 8 GPUs × 2 images, as published. Recipe: Swin, arXiv 2103.14030, appendix A2.3: AdamW, 160k iterations.
Published: 44.51 mIoU with ImageNet-1k weights (SwinTransformer/Swin-Transformer-Semantic-Segmentation, README).
Not reproduced yet.
"""

_base_ = [
    "../_base_/models/upernet_swin.py",
    "mmseg::_base_/datasets/ade20k.py",
    "mmseg::_base_/schedules/schedule_160k.py",
    "mmseg::_base_/default_runtime.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(
        # To start from random weights: --cfg-options model.backbone.init_cfg=None
        init_cfg=dict(type="mixtransfer.Pretrained", checkpoint="checkpoints/swin_tiny_tlalign.safetensors"),
        token_classifier=dict(num_classes=150, stages=(3,)),
    )
)
custom_hooks = [
    dict(type="mixtransfer.TokenMixHook", region=dict(type="TokenBox", alpha=1.0), prob=0.5, token=32, loss_weight=0.5)
]

train_dataloader = dict(batch_size=2)

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="mixtransfer.TransferOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]
