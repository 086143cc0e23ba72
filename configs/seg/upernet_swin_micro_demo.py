"""UPerNet on our smallest Swin, the demo's fine-tuning: classes of things count more, since they cover few pixels.

    mixtransfer demo  # pretrains the Swin, and runs:
    tools/convert.py CHECKPOINT work_dirs/demo/swin_micro_tlalign.safetensors --arch swin_micro
    tools/train.py configs/seg/upernet_swin_micro_demo.py --data scenes

Hardware: two CPU cores, about two minutes. Recipe: ours. Without weights a run this short learns the six classes of
stuff, not the six of things.
"""

_base_ = "./upernet_swin_micro_scenes.py"

CLASSES = ("sky", "grass", "water", "sand", "brick", "road", "ball", "box", "tree", "star", "ring", "fish")
WEIGHTS = [1.0] * 6 + [2.5] * 6
metainfo = dict(classes=CLASSES)
train_dataloader = dict(dataset=dict(metainfo=metainfo))
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = dict(dataset=dict(metainfo=metainfo))
model = dict(
    backbone=dict(token_classifier=dict(num_classes=len(CLASSES))),
    decode_head=dict(num_classes=len(CLASSES), loss_decode=dict(class_weight=WEIGHTS)),
    auxiliary_head=dict(num_classes=len(CLASSES), loss_decode=dict(class_weight=WEIGHTS)),
)
