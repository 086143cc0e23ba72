"""MixMIM-B classifier from its pretrained encoder, ImageNet-1k, 100 epochs.

    tools/convert.py mixmim_base_pretrain.pth checkpoints/mixmim_base.safetensors --arch mixmim_base
    tools/train.py configs/pretrain/mixmim.py

Hardware: 8 GPUs × 128 images, as published. Recipe: Sense-X/MixMIM, exp/base_600ep/finetune.sh and util/lr_decay.py
(arXiv 2205.13137): AdamW 2e-3 at batch 1024, layer-wise learning rate. Published: 85.1 top-1 after 600 epochs of
pretraining (there, README). Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

model = dict(
    arch="mixmim_base",
    backbone=dict(
        drop_path_rate=0.1,
        init_cfg=dict(type="mixtransfer.Pretrained", checkpoint="checkpoints/mixmim_base.safetensors"),
    ),
)

# As published, the last norm and the head learn no faster than the last block.
optim_wrapper = dict(
    optimizer=dict(lr=2e-3), paramwise_cfg=dict(layer_decay_rate=0.7, layers_above=dict(norm=1), head_lr_mult=0.7)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=5e-4, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=5),
]
train_cfg = dict(max_epochs=100)
