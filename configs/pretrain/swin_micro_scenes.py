"""Our smallest Swin as a classifier with TL-Align, for the built-in scenes on two CPU cores: the demo's pretraining.

    tools/train.py configs/pretrain/swin_micro_scenes.py --data scenes

Hardware: two CPU cores, about two minutes. Recipe: ours, TL-Align's with a short schedule and light augmentation.
"""

_base_ = "./swin_tlalign.py"

model = dict(
    arch="swin_micro",
    num_classes=12,
    backbone=dict(drop_path_rate=0.0),
    # Cells of 8 pixels, 8 a side. Half of the steps are not mixed: so few of them learn faster from whole images.
    cell_size=8,
    mixing=dict(prob=0.5),
    label_smoothing=0.0,
)

train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="RandomResizedCrop", scale=64, crop_ratio_range=(0.4, 1.0)),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackInputs"),
        ]
    ),
)
val_dataloader = dict(
    num_workers=0,
    dataset=dict(pipeline=[dict(type="LoadImageFromFile"), dict(type="Resize", scale=64), dict(type="PackInputs")]),
)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-3))
epochs = 8
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=epochs, val_interval=4)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=epochs))
