"""ConvMixer-1536/20 classifier, ImageNet-1k, 150 epochs.

    tools/train.py configs/pretrain/convmixer.py

Hardware: 10 GPUs × 64 images, as published. Recipe: locuslab/convmixer, README and pytorch-image-models/train.py (arXiv
2201.09792): AdamW 1e-2 at batch 640, almost no decay, a rate that rises for 60 epochs and falls to a twentieth by epoch
120 and to 0 at the end, Mixup or CutMix of 0.5. Published: 81.37 top-1 (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_timm_310e.py"

test_pipeline = [dict(step, scale=233) if step.type == "ResizeEdge" else step for step in _base_.test_pipeline]

model = dict(
    arch="convmixer_1536_20",
    mixing=dict(mixup_alpha=0.5, cutmix_alpha=0.5),
)
train_dataloader = dict(batch_size=64)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=640)

optim_wrapper = dict(optimizer=dict(lr=1e-2, weight_decay=2e-5, eps=1e-3), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=True, end=60, convert_to_iter_based=True),
    dict(type="LinearLR", start_factor=1.0, end_factor=0.05, begin=60, end=120, convert_to_iter_based=True),
    dict(type="LinearLR", start_factor=1.0, end_factor=0.0, begin=120, end=150, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=150)
