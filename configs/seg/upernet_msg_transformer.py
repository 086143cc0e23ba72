"""UPerNet, MSG-Transformer-T, ADE20K 512×512.

    tools/convert.py msg_transformer_tiny.pth checkpoints/msg_transformer_tiny.safetensors --arch msg_transformer_tiny
    tools/train.py configs/seg/upernet_msg_transformer.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with the drop path
of pretraining; the paper (arXiv 2105.15168) has no segmentor. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.MSGTransformer",
        arch="msg_transformer_tiny",
        # Those of the paper's detectors, from memory; the classifier's exchange nothing beyond 224 pixels.
        shuffles=(4, 4, 8, 4),
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/msg_transformer_tiny.safetensors"),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
