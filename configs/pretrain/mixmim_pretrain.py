"""MixMIM-B by restoring mixed images, ImageNet-1k without labels, 600 epochs.

    tools/train.py configs/pretrain/mixmim_pretrain.py --amp

Its checkpoint is converted like a published one; configs/pretrain/mixmim.py and the dense recipes start from there.
Hardware: 8 GPUs × 256 images; published 16 × 128. Recipe: Sense-X/MixMIM, exp/base_600ep/pretrain.sh and
main_pretrain.py (arXiv 2205.13137): AdamW 1.2e-3 at batch 2048, float16. Published: 85.1 top-1 after fine-tuning
(there, README). Not reproduced yet.
"""

_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs512_mae.py",
    "../_base_/schedules/adamw_300e.py",
    "mmpretrain::_base_/default_runtime.py",
    "../_base_/runtime.py",
]

data_preprocessor = dict(type="mmpretrain.ClsDataPreprocessor")
model = dict(type="mixtransfer.MixMIM", arch="mixmim_base")
train_dataloader = dict(batch_size=256)

optim_wrapper = dict(optimizer=dict(lr=1.2e-3, betas=(0.9, 0.95)))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-4, by_epoch=True, end=40, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, begin=40, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=600)
val_cfg = test_cfg = None
