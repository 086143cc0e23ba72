"""A classifier for Stanford's cars, enlarged to 224 pixels, from weights of ImageNet: the data set by mmpretrain's
class, augmentation and schedule as timm's train.py on ImageNet.
"""

_base_ = "./imagenet_timm_310e.py"

data_preprocessor = dict(num_classes=196)
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
model = dict(num_classes=196, backbone=dict(init_cfg=dict(type="mixtransfer.Pretrained")))
train_dataloader = dict(
    dataset=dict(
        _delete_=True, type="StanfordCars", data_root="data/Stanford_Cars", split="train", pipeline=train_pipeline
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True, type="StanfordCars", data_root="data/Stanford_Cars", split="test", pipeline=test_pipeline
    )
)
test_dataloader = val_dataloader
