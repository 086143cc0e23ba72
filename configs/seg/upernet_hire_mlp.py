"""UPerNet, Hire-MLP-S, ADE20K 512×512.

    tools/convert.py weights://hire_mlp_small checkpoints/hire_mlp_small.safetensors --arch hire_mlp_small
    tools/train.py configs/seg/upernet_hire_mlp.py

Hardware: 8 GPUs × 4 images, as published. Recipe: ggjy/Hire-Wave-MLP.pytorch,
mmseg-v0.11/configs/upernet/hire_mlp_small_512x512_ade20k.py: AdamW 1.2e-4, 80k iterations, BatchNorm over all GPUs,
norms decay. Published: 46.1 mIoU, 47.1 with flips and scales (arXiv 2108.13341; not confirmed here). Not reproduced
yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.HireMLP",
        arch="hire_mlp_small",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="checkpoints/hire_mlp_small.safetensors"),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
sync_bn = "torch"

train_dataloader = dict(batch_size=4)
train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
optim_wrapper = dict(optimizer=dict(lr=1.2e-4), paramwise_cfg=dict(decay_norms=True))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=800),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=800, end=80000),
]
