"""UPerNet, MixMIM-B, ADE20K 512×512.

    tools/convert.py mixmim_base.pth checkpoints/mixmim_base.safetensors --arch mixmim_base
    tools/train.py configs/seg/upernet_mixmim.py

Hardware: 8 GPUs × 2 images. Recipe: ours, that of Swin's UPerNet (arXiv 2103.14030, appendix A2.3) with a layer-wise
learning rate, as its fine-tuning on ImageNet has. Published: 51.1 mIoU (MixMAE, arXiv 2205.13137; not confirmed here)
with settings that the code does not hold. Not reproduced yet.
"""

_base_ = "../_base_/upernet_160k.py"

model = dict(
    backbone=dict(
        type="mixtransfer.MixMIMEncoder",
        arch="mixmim_base",
        # What the published sizes would have at 512 pixels; the last two maps see the whole of any image.
        window=(16, 16, 32, 16),
        shift_windows=True,
        output_norm="layer",
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint="checkpoints/mixmim_base.safetensors"),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)

optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9))
