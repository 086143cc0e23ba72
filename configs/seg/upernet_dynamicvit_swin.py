"""UPerNet, DySwin-T, ADE20K 512×512.

    tools/convert.py dynamic_swin-t.pth checkpoints/dynamicvit_swin_t_07.safetensors --arch dynamicvit_swin_t_07
    tools/train.py configs/seg/upernet_dynamicvit_swin.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of pretraining; the paper (arXiv 2207.01580) segments too, but publishes no code for it, and its scores were not read
here. In training both paths run everywhere and the decisions learn from the segmentor's losses alone; evaluation sends
70, 50 and 30 % of the third stage through the slow path. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.DynamicSwin",
        arch="dynamicvit_swin_t_07",
        output_norm="layer",
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint="checkpoints/dynamicvit_swin_t_07.safetensors"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
