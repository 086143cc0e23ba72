"""DeiT-T classifier with OAMixer on ReLabel's maps and with token labels, ImageNet-1k, 300 epochs.

    tools/train.py configs/pretrain/deit_oamixer.py

The maps of both splits, an NFNet-F6's as published, lie in ``data/imagenet/maps/classes``: those of TokenLabeling or
naver-ai/relabel_imagenet, or ``mixtransfer data maps data/imagenet --kind classes --teacher FILE --arch NAME``.
Hardware: 4 GPUs × 64 images, as published. Recipe: alinlab/OAMixer, README.md and main.py (arXiv 2212.06595): DeiT's at
256 images a step, 2.5e-4. Published: no accuracy in the repository. Not reproduced yet.
"""

_base_ = "./deit.py"

oamixer_map = dict(
    type="mixtransfer.LoadMap", kind="classes", folder="maps/classes", data_root="data/imagenet", cell_size=16
)
oamixer_pack = dict(type="PackInputs", algorithm_keys=["patch_labels"])
# Erasing leaves the maps alone.
train_pipeline = [
    _base_.train_pipeline[0],
    dict(type="mixtransfer.TracePixels", transforms=_base_.train_pipeline[1:4]),
    _base_.train_pipeline[4],
    oamixer_map,
    oamixer_pack,
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type="mixtransfer.TracePixels", transforms=_base_.test_pipeline[1:3]),
    oamixer_map,
    oamixer_pack,
]

model = dict(
    type="mixtransfer.OAMixer",
    arch="oamixer_deit_t",
    kind="relabel",
    token_weight=0.5,
    mixing=dict(
        _delete_=True,
        type="mixtransfer.Mixing",
        region=dict(
            type="RandomChoice", regions=[dict(type="WholeImage", alpha=0.8), dict(type="TokenBox", alpha=1.0)]
        ),
        target=dict(type="Area"),
    ),
)
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2.5e-4))
auto_scale_lr = dict(base_batch_size=256)
param_scheduler = [
    dict(type="LinearLR", start_factor=4e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=5),
]

# Other sizes (--arch) as their published files have them.
sizes = dict(_delete_=True, oamixer_deit_s=dict())
