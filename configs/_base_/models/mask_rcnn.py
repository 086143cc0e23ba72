"""Mask R-CNN with FPN; the recipe adds the backbone."""

_base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"

# Another size: --arch NAME, which takes checkpoints/NAME.safetensors; channels follow from it.
# From random weights: --cfg-options model.backbone.init_cfg=None
model = dict(
    backbone=dict(_delete_=True, init_cfg=dict(type="mixtransfer.Pretrained")),
    # mmdet's targets without a full-size mask for every proposal.
    roi_head=dict(mask_head=dict(type="mixtransfer.FCNMaskHead")),
)
