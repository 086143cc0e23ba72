"""UPerNet whose levels are fused as HorFPN's, HorNet-S (7×7), ADE20K 512×512.

    tools/convert.py weights://hornet_small_7x7 checkpoints/hornet_small_7x7.safetensors --arch hornet_small_7x7
    tools/train.py configs/seg/upernet_hornet_horfpn.py

Hardware: 8 GPUs × 2 images, as published. Recipe: raoyongming/HorNet,
semantic_segmentation/configs/horfpn/horfpn_7x7_upernet_hornet_small_7x7_512_160k_ade20k.py: that of HorNet-S in
upernet_hornet.py with a gated convolution of 7 × 7 for the fusion.
horfpn_gf_upernet_hornet_small_7x7_512_160k_ade20k.py is this one with --cfg-options
model.decode_head.global_filter=True "optim_wrapper.clip_grad=dict(max_norm=0.1)". No score is published with the code.
Not reproduced yet.
"""

_base_ = "./upernet_hornet.py"

model = dict(
    backbone=dict(
        arch="hornet_small_7x7",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="checkpoints/hornet_small_7x7.safetensors"),
    ),
    decode_head=dict(
        type="mixtransfer.HorUPerHead", in_channels=[96, 192, 384, 768], kernel_size=7, global_filter=False
    ),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=dict(layers_above=_base_.higher))
# Published for this size only.
sizes = dict(_delete_=True)
