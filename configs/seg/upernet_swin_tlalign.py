"""UPerNet, Swin-T pretrained with TL-Align, ADE20K 512×512, token-level mixing while fine-tuning.

    tools/convert.py best_checkpoint.pth checkpoints/swin_tiny_tlalign.safetensors --arch swin_tiny
    tools/train.py configs/seg/upernet_swin_tlalign.py

Hardware: 8 GPUs × 2 images, as published. Recipe: Swin's, as upernet_swin.py; the mixing is ours. Published: 44.51 mIoU
with ImageNet-1k weights, without mixing (SwinTransformer/Swin-Transformer-Semantic-Segmentation, README). Not
reproduced yet.
"""

_base_ = ["./upernet_swin.py", "../_base_/token_mix_hook.py"]

model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint="checkpoints/swin_tiny_tlalign.safetensors"),
        token_classifier=dict(num_classes=150, stages=(3,)),
    )
)
