"""Segmenter with a mask transformer, DeiT-S, ADE20K 512×512.

    tools/convert.py weights://deit_small checkpoints/deit_small.safetensors --arch deit_small
    tools/train.py configs/seg/segmenter_deit.py

Hardware: 8 GPUs × 1 image, as published. Recipe: mmseg's (open-mmlab/mmsegmentation,
configs/segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k-512x512.py; arXiv 2105.05633), which starts from weights of
ImageNet-21k at 384 pixels: SGD 1e-3, 160k iterations, tested on windows, a norm on the one map. No score is published
for DeiT's weights. Not reproduced yet.
"""

_base_ = [
    "mmseg::segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k-512x512.py",
    "../_base_/runtime.py",
]

model = dict(
    # DeiT's, where Segmenter's weights want images scaled to [-1, 1].
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="mixtransfer.VisionTransformer",
        arch="deit_small",
        output_norm="layer",
        drop_path_rate=0.1,
        out_indices=(11,),
        init_cfg=dict(type="mixtransfer.Pretrained", checkpoint="checkpoints/deit_small.safetensors"),
    ),
)

# Widths and heads as in mmseg's files for ViT-T and ViT-B.
sizes = {
    "deit_tiny": {f"model.decode_head.{name}": 192 for name in ("channels", "embed_dims")}
    | {"model.decode_head.num_heads": 3},
    "deit_base": {f"model.decode_head.{name}": 768 for name in ("channels", "embed_dims")}
    | {"model.decode_head.num_heads": 12},
}
