"""Semantic FPN (Kirillov et al., arXiv 1901.02446) with the heads of PVT's segmentors; the recipe adds the backbone."""

_base_ = "mmseg::_base_/models/fpn_r50.py"

model = dict(
    type="mixtransfer.EncoderDecoder",
    pretrained=None,
    data_preprocessor=dict(size=(512, 512)),
    # Another size: --arch NAME, which takes checkpoints/NAME.safetensors; channels follow from it.
    # From random weights: --cfg-options model.backbone.init_cfg=None
    backbone=dict(_delete_=True, init_cfg=dict(type="mixtransfer.Pretrained")),
    decode_head=dict(type="mixtransfer.FPNHead", num_classes=150),
)
