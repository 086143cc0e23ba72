"""UPerNet, HorNet-T (7×7), ADE20K 512×512.

    tools/convert.py hornet_tiny_7x7.pth checkpoints/hornet_tiny_7x7.safetensors --arch hornet_tiny_7x7
    tools/train.py configs/seg/upernet_hornet.py

Hardware: 8 GPUs × 2 images, as published. Recipe: raoyongming/HorNet, semantic_segmentation: AdamW 1e-4, 160k
iterations, tested on windows. Published: 48.1 mIoU, 48.9 with flips and scales (there, README). Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.HorNet",
        arch="hornet_tiny_7x7",
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint="checkpoints/hornet_tiny_7x7.safetensors"),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)

# Published: factors by stage, from 0.9^7 for the stem to 0.9^3 for the last stage, and 1 for the heads. Here the same
# ends, with the steps between the 25 blocks.
optim_wrapper = dict(
    optimizer=dict(lr=1e-4 * 0.9**3, weight_decay=0.05),
    paramwise_cfg=dict(decay_biases=False, layer_decay_rate=0.9 ** (4 / 26), head_lr_mult=0.9**-3),
)
