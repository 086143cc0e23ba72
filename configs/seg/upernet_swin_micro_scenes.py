"""UPerNet on our smallest Swin, for small images such as the built-in scenes of 128×128, token-level mixing.

    mixtransfer demo  # pretrains the Swin, and converts it:
    tools/convert.py CHECKPOINT work_dirs/demo/swin_micro_tlalign.safetensors --arch swin_micro
    tools/train.py configs/seg/upernet_swin_micro_scenes.py --data scenes

Hardware: two CPU cores, about two minutes. Recipe: ours, UPerNet's with a short schedule and light augmentation.
"""

_base_ = "./upernet_swin_tlalign.py"

ITERATIONS = 450
SIZE = (128, 128)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=(512, 128), ratio_range=(0.9, 1.3), keep_ratio=True),
    dict(type="RandomCrop", crop_size=SIZE, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    # Milder than for photographs: a long schedule learns to see past changed colors, a short one does not.
    dict(
        type="PhotoMetricDistortion",
        brightness_delta=16,
        contrast_range=(0.8, 1.2),
        saturation_range=(0.8, 1.2),
        hue_delta=5,
    ),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(512, 128), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
model = dict(
    data_preprocessor=dict(size=SIZE),
    backbone=dict(
        arch="swin_micro",
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint="work_dirs/demo/swin_micro_tlalign.safetensors"),
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=32),
    auxiliary_head=dict(in_channels=128, channels=32),
)
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=test_pipeline, indices=40))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=test_pipeline))

optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=30),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=30, end=ITERATIONS),
]
train_cfg = dict(max_iters=ITERATIONS, val_interval=75)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=ITERATIONS))
custom_hooks = [
    dict(
        type="mixtransfer.TokenMixHook",
        region=dict(type="TokenBox", alpha=1.0),
        prob=0.5,
        cell_size=16,
        loss_weight=0.5,
    )
]
