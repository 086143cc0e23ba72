"""UPerNet with the heads of Swin's segmentors: 512 channels, an FCN of weight 0.4 on the third map; the recipe adds the
backbone. Checkpoints of mixtransfer.UPerHead are those of mmseg's UPerHead, and the other way round.
"""

_base_ = "mmseg::_base_/models/upernet_swin.py"

model = dict(
    type="mixtransfer.EncoderDecoder",
    data_preprocessor=dict(size=(512, 512)),
    # Another size: --arch NAME, which takes checkpoints/NAME.safetensors; channels follow from it.
    # From random weights: --cfg-options model.backbone.init_cfg=None
    backbone=dict(_delete_=True, init_cfg=dict(type="mixtransfer.Pretrained")),
    decode_head=dict(type="mixtransfer.UPerHead", num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
