"""Mask R-CNN with HorFPN, HorNet-S (7×7), COCO, 12 epochs with multi-scale training and crops.

    tools/convert.py weights://hornet_small_7x7 checkpoints/hornet_small_7x7.safetensors --arch hornet_small_7x7
    tools/train.py configs/det/mask_rcnn_hornet_horfpn.py

Hardware: 8 GPUs × 2 images, as published. Recipe: raoyongming/HorNet,
object_detection/configs/horfpn/horfpn_7x7_mask_rcnn_hornet_small_7x7_1x_coco_in1k.py: that of mask_rcnn_hornet.py with
gated convolutions of 7 × 7 behind the levels. horfpn_gf_mask_rcnn_hornet_small_7x7_1x_coco_in1k.py is this one with
--cfg-options model.neck.global_filter=True. No score is published with the code. Not reproduced yet.
"""

_base_ = "./mask_rcnn_hornet.py"

model = dict(neck=dict(type="mixtransfer.HorFPN", kernel_size=7, global_filter=False))
