"""RaftMLP-S classifier, Stanford's cars, 50 epochs from ImageNet-1k.

    tools/convert.py raft_mlp_s.pth checkpoints/raft_mlp_s.safetensors --arch raft_mlp_s
    tools/train.py configs/finetune/raft_mlp_cars.py

Hardware: 2 GPUs × 128 images. Recipe: okojoalg/raft-mlp, configs/settings/finetune/cars-raft-mlp-cross-mlp-emb-s.yaml
(arXiv 2108.04384): AdamW 1e-4 at batch 256, everything decayed, 10 epochs warmup, no drop path and nothing cut out. The
published code mixes every batch by Mixup and by CutMix. The paper prints a score, which is not confirmed here. Not
reproduced yet.
"""

_base_ = "../_base_/finetune_cars.py"

train_pipeline = [step for step in _base_.train_pipeline if step.type != "RandomErasing"]
model = dict(
    arch="raft_mlp_s",
    backbone=dict(drop_path_rate=0.0, init_cfg=dict(checkpoint="checkpoints/raft_mlp_s.safetensors")),
)
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
auto_scale_lr = dict(base_batch_size=256)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=1e-4), paramwise_cfg=dict(decay_norms=True, decay_biases=True)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=10, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=10),
]
train_cfg = dict(max_epochs=50)

# Other sizes (--arch) as their published files have them.
sizes = dict(raft_mlp_m=dict(), raft_mlp_l=dict())
