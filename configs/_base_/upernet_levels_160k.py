"""UPerNet on ADE20K for backbones of stride 16: mmseg's neck rescales four maps to strides 4, 8, 16 and 32, as in its
recipes for ViT.
"""

_base_ = "./upernet_160k.py"

model = dict(neck=dict(type="MultiLevelNeck", scales=[4, 2, 1, 0.5]), auxiliary_head=dict(in_index=3))
