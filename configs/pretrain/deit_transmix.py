"""DeiT-S classifier with TransMix, ImageNet-1k, 310 epochs.

    tools/train.py configs/pretrain/deit_transmix.py

Hardware: 8 GPUs × 32 images. Recipe: Beckschen/TransMix, configs/deit_s_transmix.yaml (arXiv 2111.09833): DeiT's with
AdamW 1e-3 at batch 256, 20 epochs warmup, 10 epochs at the lowest rate, averaged weights, no random erasing, each image
once an epoch. Published: 80.7 top-1, against 79.8 of DeiT (paper, from memory). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_timm_310e.py"

train_pipeline = [step for step in _base_.train_pipeline if step.type != "RandomErasing"]
test_pipeline = [dict(step, scale=248) if step.type == "ResizeEdge" else step for step in _base_.test_pipeline]

model = dict(
    arch="deit_small",
    backbone=dict(drop_path_rate=0.1),
    # The published file asks for a switch_prob of 0.8 under a name that its script does not read. DeiT-B gets it, with
    # a weight decay of 0.05 and 5 epochs warmup.
    mixing=dict(_delete_=True, type="mixtransfer.TransMix", mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5),
)
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=256)

optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.03))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=20, end=300),
]
custom_hooks = [dict(type="EMAHook", momentum=1 - 0.99996)]

# Other sizes (--arch) as their published files have them.
sizes = dict(deit_base={"weight_decay": 0.05, "warmup": 5, "model.mixing.switch_prob": 0.8})
