"""UPerNet on our smallest Swin, CamVid 480×360, token-level mixing: a real dataset within minutes on two CPU cores.

    make demo  # pretrains the Swin, and runs:
    tools/convert.py CHECKPOINT work_dirs/demo/swin_micro_tlalign.safetensors --arch swin_micro
    tools/train.py configs/seg/upernet_swin_micro_camvid.py --data data/camvid

Hardware: two CPU cores. Recipe: ours, with the budget that docs/results.md reports; without mixing:
--cfg-options custom_hooks.0.prob=0
"""

_base_ = "./upernet_swin_tlalign.py"

ITERATIONS = 1000
CROP = (128, 128)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=(240, 180), ratio_range=(0.8, 1.4), keep_ratio=True),
    dict(type="RandomCrop", crop_size=CROP, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion", brightness_delta=16, contrast_range=(0.8, 1.2), hue_delta=5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(240, 180), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
model = dict(
    data_preprocessor=dict(size=CROP),
    backbone=dict(
        arch="swin_micro",
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint="work_dirs/demo/swin_micro_tlalign.safetensors"),
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=48),
    auxiliary_head=dict(in_channels=128, channels=32),
)
train_dataloader = dict(batch_size=12, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=test_pipeline))

optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=50, end=ITERATIONS),
]
train_cfg = dict(max_iters=ITERATIONS, val_interval=250)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=250))
