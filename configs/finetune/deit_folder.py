"""DeiT-S classifier from ImageNet-1k on any folder of classes, 50 epochs.

    tools/convert.py weights://deit_small checkpoints/deit_small.safetensors --arch deit_small
    tools/train.py configs/finetune/deit_folder.py --data DIR

DIR holds a folder of images a class, as docs/data.md says; iNaturalist 2018 and 2019 come so. Any classifier's weights
fit with --arch, the head starts anew. Hardware: one GPU × 256 images. Recipe: ours, that of RaftMLP's transfers
(raft_mlp_cifar10.py) with the drop path of pretraining. Not reproduced yet.
"""

_base_ = "../_base_/imagenet_timm_310e.py"

model = dict(
    arch="deit_small",
    backbone=dict(
        drop_path_rate=0.1,
        init_cfg=dict(type="mixtransfer.Pretrained", checkpoint="checkpoints/deit_small.safetensors"),
    ),
)
train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(base_batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=10, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=10),
]
train_cfg = dict(max_epochs=50)
