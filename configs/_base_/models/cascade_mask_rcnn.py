"""Cascade Mask R-CNN with the box heads of Swin's detectors (arXiv 2103.14030): four convolutions and one layer with
SyncBN, boxes of each class, GIoU loss; the recipe adds the backbone.
"""

_base_ = "mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py"

box_heads = [
    dict(
        type="ConvFCBBoxHead",
        num_shared_convs=4,
        num_shared_fcs=1,
        in_channels=256,
        conv_out_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=80,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=stds),
        reg_class_agnostic=False,
        reg_decoded_bbox=True,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=10.0),
    )
    for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
]

model = dict(
    # Another size: --arch NAME, which takes checkpoints/NAME.safetensors; channels follow from it.
    # From random weights: --cfg-options model.backbone.init_cfg=None
    backbone=dict(_delete_=True, init_cfg=dict(type="mixtransfer.Pretrained")),
    # mmdet's mask targets without a full-size mask for every proposal.
    roi_head=dict(bbox_head=box_heads, mask_head=dict(type="mixtransfer.FCNMaskHead")),
)
