"""UPerNet, HorNet-T (7×7), ADE20K 512×512.

    tools/convert.py weights://hornet_tiny_7x7 checkpoints/hornet_tiny_7x7.safetensors --arch hornet_tiny_7x7
    tools/train.py configs/seg/upernet_hornet.py

Hardware: 8 GPUs × 2 images, as published. Recipe: raoyongming/HorNet,
semantic_segmentation/configs/hornet/upernet_hornet_tiny_7x7_512_160k_ade20k.py: AdamW 1e-4, learning rates by stage,
160k iterations, tested on windows. Published: 48.1 mIoU, 48.9 with flips and scales, 52 M parameters, 926 G
MACs (there, README). Not reproduced yet.
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

# As published: one layer a stage, all downsampling at the bottom, and two layers between the last stage and the heads.
layers_above = {
    "downsample_layers": 7,
    **{f"stages.{stage}": 6 - stage for stage in range(4)},
    **{f"norm{stage}": 0 for stage in range(4)},
}
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(decay_biases=False, layer_decay_rate=0.9, layers_above=layers_above),
)

# Other sizes (--arch) as their published files have them: all but T count 12 layers, so the heads lie higher;
# global filters are those of 384 pixels.
higher = {key: layers + 6 if layers else 0 for key, layers in layers_above.items()}
sizes = dict(
    hornet_tiny_gf=dict(img_size=384, clip=1.0),
    hornet_small_7x7=dict(drop_path=0.3, layers_above=higher),
    hornet_small_gf=dict(img_size=384, drop_path=0.3, layers_above=higher, clip=1.0),
    hornet_base_7x7=dict(layers_above=higher),
    hornet_base_gf=dict(img_size=384, drop_path=0.5, layers_above=higher, clip=1.0),
    # From ImageNet-22k.
    hornet_large_7x7=dict(layers_above=higher, layer_decay=0.8, crop=640),
    hornet_large_gf=dict(img_size=384, layers_above=higher, layer_decay=0.8, crop=640, clip=0.1),
)
