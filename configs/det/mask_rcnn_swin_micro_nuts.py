"""Mask R-CNN on our smallest Swin, nuts and fruits on 14 photographs, token-level mixing, on two CPU cores.

    make demo  # pretrains the Swin, and runs:
    tools/convert.py CHECKPOINT work_dirs/demo/swin_micro_tlalign.safetensors --arch swin_micro
    tools/train.py configs/det/mask_rcnn_swin_micro_nuts.py --data data/nuts

Hardware: two CPU cores. Recipe: ours, with the budget that docs/results.md reports; without mixing:
--cfg-options custom_hooks.0.prob=0
"""

_base_ = "./mask_rcnn_swin_tlalign.py"

EPOCHS = 60
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=(320, 240), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(320, 240), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
model = dict(
    backbone=dict(
        arch="swin_micro",
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint="work_dirs/demo/swin_micro_tlalign.safetensors"),
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        mask_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)
train_dataloader = dict(batch_size=2, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=test_pipeline))

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=False, begin=0, end=50),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=EPOCHS, milestones=[45, 55], gamma=0.1),
]
train_cfg = dict(max_epochs=EPOCHS, val_interval=15)
default_hooks = dict(logger=dict(interval=7), checkpoint=dict(interval=15))
