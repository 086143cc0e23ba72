"""DeiT-S classifier with TokenMix and label maps made beforehand, ImageNet-1k, 310 epochs: TokenMix as published.

    tools/train.py configs/pretrain/deit_tokenmix_maps.py

The maps of the training images, an NFNet-F6's as published, lie in ``data/imagenet/maps/classes``: TokenLabeling's
``label_top5_train_nfnet``, or ``mixtransfer data maps data/imagenet --kind classes --teacher FILE --arch NAME``.
Hardware: 8 GPUs × 128 images, as published. Recipe: Sense-X/TokenMix, exp/deit_small/run.sh and
relabel/label_transforms_factory.py (arXiv 2207.08409): flips and RandAugment of the whole image, then its crop.
Published: 80.8 top-1 (there, README). Not reproduced yet.
"""

_base_ = "./deit_tokenmix.py"

# The image is flipped and augmented before it is cropped; erasing leaves the maps alone.
train_pipeline = [
    _base_.train_pipeline[0],
    dict(type="mixtransfer.TracePixels", transforms=[_base_.train_pipeline[place] for place in (2, 3, 1)]),
    _base_.train_pipeline[4],
    dict(type="mixtransfer.LoadMap", kind="own_class", folder="maps/classes", data_root="data/imagenet", cell_size=16),
    dict(type="PackInputs", algorithm_keys=["activation_map"]),
]

model = dict(teacher=None)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
