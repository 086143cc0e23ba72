"""SegFormer's head, FAN-T-Hybrid, Cityscapes 1024×1024.

    tools/convert.py fan_tiny_8_p4_hybrid.pth.tar checkpoints/fan_hybrid_tiny_seg.safetensors --arch fan_hybrid_tiny_seg
    tools/train.py configs/seg/segformer_fan.py

Hardware: 8 GPUs × 1 image, as published. Recipe: NVlabs/FAN,
segmentation/local_configs/fan/fan_hybrid/fan_hybrid_tiny.1024x1024.city.160k.py: AdamW 6e-5, heads ten times that, 160k
iterations, no drop path, tested on windows. Published: 81.2 mIoU, 57.1 on Cityscapes-C (there, README). A published
segmentor's head is taken by model.decode_head.init_cfg=dict(type="Pretrained", checkpoint=FILE, prefix="decode_head.").
Not reproduced yet.
"""

_base_ = [
    "mmseg::_base_/models/segformer_mit-b0.py",
    "mmseg::_base_/datasets/cityscapes_1024x1024.py",
    "../_base_/schedules/adamw_160k.py",
    "mmseg::_base_/default_runtime.py",
    "../_base_/runtime.py",
]

model = dict(
    type="mixtransfer.EncoderDecoder",
    data_preprocessor=dict(size=(1024, 1024)),
    backbone=dict(
        _delete_=True,
        type="mixtransfer.FAN",
        arch="fan_hybrid_tiny_seg",
        init_cfg=dict(type="mixtransfer.Pretrained", checkpoint="checkpoints/fan_hybrid_tiny_seg.safetensors"),
    ),
    decode_head=dict(type="mixtransfer.SegFormerHead", in_channels=[128, 256, 192, 192], channels=768),
    test_cfg=dict(mode="slide", crop_size=(1024, 1024), stride=(768, 768)),
)
sync_bn = "torch"

train_dataloader = dict(batch_size=1)
# As published: exempt is what is called a norm, so the layer scales, the BatchNorms and the norms of the stem decay.
optim_wrapper = dict(paramwise_cfg=dict(undecayed=["norm"], head_lr_mult=10.0))

# Other sizes (--arch) as their published files have them.
sizes = dict(fan_hybrid_small_seg=dict(), fan_hybrid_base_seg=dict(), fan_hybrid_large_seg=dict())
