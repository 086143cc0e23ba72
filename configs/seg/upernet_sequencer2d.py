"""UPerNet, Sequencer2D-S, ADE20K 512×512.

    tools/convert.py weights://sequencer2d_s checkpoints/sequencer2d_s.safetensors --arch sequencer2d_s
    tools/train.py configs/seg/upernet_sequencer2d.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of pretraining; the paper (arXiv 2205.01972) has no UPerNet. A neck rescales the strides 7, 14, 14 and 14 to 4, 8, 16
and 32. Not reproduced yet.
"""

_base_ = "../_base_/upernet_levels_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.Sequencer2D",
        arch="sequencer2d_s",
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/sequencer2d_s.safetensors"),
    ),
    neck=dict(in_channels=[192, 384, 384, 384], out_channels=384, scales=[7 / 4, 14 / 8, 14 / 16, 14 / 32]),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
