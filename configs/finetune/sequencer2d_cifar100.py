"""Sequencer2D-S classifier, CIFAR-100, 210 epochs from ImageNet-1k.

    tools/convert.py weights://sequencer2d_s checkpoints/sequencer2d_s.safetensors --arch sequencer2d_s
    tools/train.py configs/finetune/sequencer2d_cifar100.py

Hardware: 4 GPUs × 128 images, as published. Recipe: okojoalg/sequencer, README.md, whose command for CIFAR-10 stands
for the others (arXiv 2205.01972): AdamW 1e-4, 5 epochs warmup, gradients clipped to norm 1, no erasing. The paper
prints a score, which is not confirmed here. Not reproduced yet.
"""

_base_ = "./sequencer2d_cifar10.py"

data_preprocessor = dict(num_classes=100)
model = dict(num_classes=100)
train_dataloader = dict(dataset=dict(type="CIFAR100", data_root="data/cifar100"))
val_dataloader = dict(dataset=dict(type="CIFAR100", data_root="data/cifar100"))
test_dataloader = val_dataloader
