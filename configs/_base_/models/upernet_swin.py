"""UPerNet on Swin-T: the published heads (512 channels, FCN on stage 3), our backbone."""

_base_ = "mmseg::_base_/models/upernet_swin.py"
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_delete_=True, type="mixtransfer.SwinTransformer", arch="swin_tiny", drop_path_rate=0.3),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes=150),
    auxiliary_head=dict(in_channels=384, num_classes=150),
)
