"""A classifier for CIFAR-100, enlarged to 224 pixels, from weights of ImageNet: the data set by mmpretrain's class,
augmentation and schedule as timm's train.py on ImageNet.
"""

_base_ = "./imagenet_timm_310e.py"

# The images come as arrays, and as RGB.
data_preprocessor = dict(num_classes=100, to_rgb=False)
train_pipeline = [step for step in _base_.train_pipeline if step.type != "LoadImageFromFile"]
test_pipeline = [step for step in _base_.test_pipeline if step.type != "LoadImageFromFile"]
model = dict(num_classes=100, backbone=dict(init_cfg=dict(type="mixtransfer.Pretrained")))
train_dataloader = dict(
    dataset=dict(_delete_=True, type="CIFAR100", data_root="data/cifar100", split="train", pipeline=train_pipeline)
)
val_dataloader = dict(
    dataset=dict(_delete_=True, type="CIFAR100", data_root="data/cifar100", split="test", pipeline=test_pipeline)
)
test_dataloader = val_dataloader
