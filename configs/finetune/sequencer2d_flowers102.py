"""Sequencer2D-S classifier, Oxford's 102 flowers, 210 epochs from ImageNet-1k.

    tools/convert.py weights://sequencer2d_s checkpoints/sequencer2d_s.safetensors --arch sequencer2d_s
    tools/train.py configs/finetune/sequencer2d_flowers102.py

Hardware: 4 GPUs × 128 images, as published. Recipe: okojoalg/sequencer, README.md, whose command for CIFAR-10 stands
for the others (arXiv 2205.01972): AdamW 1e-4, 5 epochs warmup, gradients clipped to norm 1, no erasing. The paper
prints a score, which is not confirmed here. Not reproduced yet.
"""

_base_ = "./sequencer2d_cars.py"

data_preprocessor = dict(num_classes=102)
model = dict(num_classes=102)
train_dataloader = dict(dataset=dict(type="Flowers102", data_root="data/Flowers102", split="trainval"))
val_dataloader = dict(dataset=dict(type="Flowers102", data_root="data/Flowers102"))
test_dataloader = val_dataloader
