"""RetinaNet with FPN; the recipe adds the backbone.

The backbone leaves out its first map, which no level reads: a norm on it would get no gradient.
"""

_base_ = "mmdet::_base_/models/retinanet_r50_fpn.py"

model = dict(
    # Another size: --arch NAME, which takes checkpoints/NAME.safetensors; channels follow from it.
    # From random weights: --cfg-options model.backbone.init_cfg=None
    backbone=dict(_delete_=True, out_indices=(1, 2, 3), init_cfg=dict(type="mixtransfer.Pretrained")),
    neck=dict(start_level=0),
)
