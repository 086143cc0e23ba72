"""HorNet-L (7×7) classifier at 384 pixels from ImageNet-22k, ImageNet-1k, 30 epochs.

    tools/convert.py weights://hornet_large_7x7_22k checkpoints/hornet_large_7x7_22k.safetensors --arch hornet_large_7x7
    tools/train.py configs/finetune/hornet_22k_384.py

The head takes the rows of the 1000 classes: write the numbers of raoyongming/HorNet's in1k_to_21k_map.pth into
data/in1k_to_21k_map.txt, one a line. Hardware: 32 GPUs × 16 images, as published. Recipe: raoyongming/HorNet,
TRAINING.md and main.py (arXiv 2207.14284): AdamW 5e-5 without warmup, 0.7 times the rate a layer, gradients clipped to
norm 1, averaged weights, no mixing. No score is in the code. Not reproduced yet.
"""

_base_ = "../_base_/finetune_384.py"

model = dict(
    arch="hornet_large_7x7",
    backbone=dict(drop_path_rate=0.4),
    mixing=None,
    init_cfg=dict(checkpoint="checkpoints/hornet_large_7x7_22k.safetensors", rows="data/in1k_to_21k_map.txt"),
)
train_dataloader = dict(batch_size=16)
auto_scale_lr = dict(base_batch_size=512)
# As published: one layer a stage, but pairs of blocks in the third; the downsampling before it counts with them.
layers_above = {
    **{"downsample_layers.0": 13, "stages.0": 12, "downsample_layers.1": 11, "stages.1": 11, "downsample_layers.2": 10},
    **{f"stages.2.{block}": 10 - block // 2 for block in range(18)},
    **{"downsample_layers.3": 1, "stages.3": 1, "norm": 0},
}
optim_wrapper = dict(
    optimizer=dict(lr=5e-5),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(layer_decay_rate=0.7, layers_above=layers_above),
)
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=0)]
custom_hooks = [dict(type="EMAHook", momentum=1 - 0.9999)]
