"""RaftMLP-S classifier, ImageNet-1k, 305 epochs.

    tools/train.py configs/pretrain/raft_mlp.py

Hardware: 8 GPUs × 256 images. Recipe: okojoalg/raft-mlp, configs/settings/imagenet-raft-mlp-cross-mlp-emb-s.yaml (arXiv
2108.04384): AdamW 2e-3 at batch 2048, everything decayed, crops of one size. Published: 76.1 top-1 (there; not
confirmed here). The published code mixes every batch by Mixup and by CutMix, one after the other, jitters colors and
cuts squares out instead of erasing. Not reproduced yet.
"""

_base_ = "../_base_/imagenet_300e.py"

crop = [
    dict(type="ResizeEdge", scale=256, edge="short", backend="pillow", interpolation="bicubic"),
    dict(type="RandomCrop", crop_size=224),
]
train_pipeline = [
    part for step in _base_.train_pipeline for part in (crop if step.type == "RandomResizedCrop" else [step])
]

model = dict(
    arch="raft_mlp_s",
    backbone=dict(drop_path_rate=0.1),
)
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
auto_scale_lr = dict(base_batch_size=2048)

optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(decay_norms=True, decay_biases=True))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=5),
]
train_cfg = dict(max_epochs=305)

# Other sizes (--arch) as their published files have them.
sizes = dict(raft_mlp_m=dict(), raft_mlp_l=dict())
