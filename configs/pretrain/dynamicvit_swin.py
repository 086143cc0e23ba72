"""Dynamic spatial sparsification of Swin-T: 70, 50 and 30 % of the third stage slow, ImageNet-1k, 120 epochs.

    tools/train.py configs/pretrain/dynamicvit_swin.py

Starts from, and is taught by, Swin's ``swin_tiny_patch4_window7_224.pth``, put beside the data. Hardware: 32 GPUs × 128
images, as published, or 8 that accumulate 4 steps. Recipe: that of ``dynamicvit_convnext.py``
(raoyongming/DynamicViT, README; arXiv 2207.01580). Published: 80.9 top-1 at 4.0 GFLOPs (there, README); Swin-T has 81.2
at 4.5. Not reproduced yet.
"""

_base_ = "./dynamicvit_convnext.py"

model = dict(arch="dynamicvit_swin_t_07", teacher=dict(checkpoint="data/swin_tiny_patch4_window7_224.pth"))

# Other sizes (--arch) as the README has them.
sizes = dict(
    _delete_=True,
    dynamicvit_swin_s_07={"model.teacher.checkpoint": "data/swin_small_patch4_window7_224.pth"},
    dynamicvit_swin_b_07={"drop_path": 0.5, "model.teacher.checkpoint": "data/swin_base_patch4_window7_224.pth"},
)
