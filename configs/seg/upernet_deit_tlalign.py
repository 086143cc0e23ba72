"""UPerNet, DeiT-S pretrained with TL-Align, ADE20K 512×512, token-level mixing while fine-tuning.

    tools/convert.py best_checkpoint.pth checkpoints/deit_small_tlalign.safetensors --arch deit_small
    tools/train.py configs/seg/upernet_deit_tlalign.py

Hardware: 8 GPUs × 2 images, as published. Recipe: mmseg's for DeiT, as upernet_deit.py; the mixing is ours. Published:
43.82 mIoU with DeiT's own weights, without mixing (open-mmlab/mmsegmentation, configs/vit). Not reproduced yet.
"""

_base_ = ["./upernet_deit.py", "../_base_/token_mix_hook.py"]

model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint="checkpoints/deit_small_tlalign.safetensors"),
        token_classifier=dict(num_classes=150, stages=(3,)),
    )
)
