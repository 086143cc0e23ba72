"""Semantic FPN, Hire-MLP-S, ADE20K 512×512.

    tools/convert.py weights://hire_mlp_small checkpoints/hire_mlp_small.safetensors --arch hire_mlp_small
    tools/train.py configs/seg/semantic_fpn_hire_mlp.py

Hardware: 8 GPUs × 4 images, as published. Recipe: ggjy/Hire-Wave-MLP.pytorch,
mmseg-v0.11/configs/sem_fpn/hire_mlp_small_512x512_ade20k.py: AdamW 2e-4, 40k iterations, BatchNorm over all GPUs.
Published: 44.3 mIoU (arXiv 2108.13341; not confirmed here). Not reproduced yet.
"""

_base_ = "../_base_/semantic_fpn_40k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.HireMLP",
        arch="hire_mlp_small",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/hire_mlp_small.safetensors"),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
sync_bn = "torch"

optim_wrapper = dict(optimizer=dict(weight_decay=0.05))

# Sides are not rounded up to 32, as PVT's are.
test_pipeline = [step for step in _base_.test_pipeline if step.type != "ResizeToMultiple"]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
