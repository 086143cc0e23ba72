"""Merged values of recipes against the published files that their headers name, so that no library can move them.

Tables hold what the files say; rates and decays are computed from their rules and compared for every parameter.
"""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from recipes import build, dataset, recipe

SIDES = [(side, 1333) for side in range(480, 801, 32)]
#: DETR's augmentation as (resize, crop, resize) or one resize, each by chance.
DETR = [[SIDES], [[(400, 1333), (500, 1333), (600, 1333)], (384, 600), SIDES]]


def steps(loader):
    """Return the steps of a loader's pipeline by their types."""
    pipeline = dataset(loader).pipeline
    assert len({step.type for step in pipeline}) == len(pipeline)
    return {step.type.rpartition(".")[2]: step for step in pipeline}


def values(cfg, **wanted):
    """Return the values of a config that stand at dotted paths ("__" for a dot)."""
    found = {}
    for path in wanted:
        part = cfg
        for key in path.split("__"):
            part = part[int(key) if key.isdigit() else key]
        found[path] = part
    return found


def schedule(cfg):
    """Return the schedulers' settings by type, without what mmengine adds."""
    return {x.type: {k: v for k, v in x.items() if k not in ("type", "_scope_")} for x in cfg.param_scheduler}


# Detectors -----------------------------------------------------------------------------------------------------------

ADAMW = dict(optim_wrapper__optimizer__type="AdamW", optim_wrapper__optimizer__betas=(0.9, 0.999))
HEADS = dict(model__neck__out_channels=256, model__neck__num_outs=5, model__roi_head__mask_head__num_convs=4)
RETINANET = dict(model__neck__add_extra_convs="on_input", model__neck__num_outs=5, model__bbox_head__stacked_convs=4)
HORFPN = dict(model__neck__type="mixtransfer.HorFPN", model__neck__kernel_size=7, model__neck__global_filter=False)
TWO_FC = dict(model__roi_head__bbox_head__type="Shared2FCBBoxHead", model__roi_head__bbox_head__fc_out_channels=1024)


def epochs(length, *drops):
    return {
        "LinearLR": dict(start_factor=0.001, by_epoch=False, begin=0, end=500),
        "MultiStepLR": dict(begin=0, end=length, by_epoch=True, milestones=list(drops), gamma=0.1),
    }


ONE, THREE = (12, epochs(12, 8, 11)), (36, epochs(36, 27, 33))
#: Recipes that the papers do not have, after Swin's.
AFTER_SWIN = (
    "cait convmixer deit dynamicvit dynamicvit_convnext dynamicvit_swin fan fan_swin hire_mlp mixmim mlp_mixer"
    " msg_transformer posmlp pyramid_tnt sequencer2d sret swin_mlp tnt"
).split()
#: Recipe -> (rate, decay, drop path, images a GPU, schedule, scales, further values).
DETECTORS = {
    "mask_rcnn_swin": (1e-4, 0.05, 0.1, 2, ONE, DETR, {**HEADS, **TWO_FC}),
    "mask_rcnn_swin_tlalign": (1e-4, 0.05, 0.1, 2, ONE, DETR, {**HEADS, **TWO_FC}),
    "mask_rcnn_swin_3x": (1e-4, 0.05, 0.2, 2, THREE, DETR, {**HEADS, **TWO_FC}),
    "mask_rcnn_swin_tlalign_3x": (1e-4, 0.05, 0.2, 2, THREE, DETR, {**HEADS, **TWO_FC}),
    "mask_rcnn_hornet": (1e-4, 0.05, 0.6, 2, ONE, DETR, {**HEADS, **TWO_FC}),
    "mask_rcnn_fcvit": (2e-4, 1e-4, 0.0, 4, ONE, (1333, 800), {**HEADS, **TWO_FC}),
    "mask_rcnn_pvt": (2e-4, 1e-4, 0.1, 2, ONE, (1333, 800), {**HEADS, **TWO_FC}),
    "mask_rcnn_pvt_v2": (2e-4, 1e-4, 0.1, 2, ONE, (1333, 800), {**HEADS, **TWO_FC}),
    "mask_rcnn_raft_mlp": (1e-4, 1e-4, 0.0, 2, ONE, (1333, 800), {**HEADS, **TWO_FC}),
    "retinanet_pvt": (1e-4, 1e-4, 0.1, 2, ONE, (1333, 800), RETINANET),
    "retinanet_pvt_v2": (1e-4, 1e-4, 0.1, 2, ONE, (1333, 800), RETINANET),
    "retinanet_raft_mlp": (1e-4, 1e-4, 0.0, 2, ONE, (1333, 800), RETINANET),
    "cascade_mask_rcnn_swin": (1e-4, 0.05, 0.2, 2, THREE, DETR, {}),
    "cascade_mask_rcnn_swin_1x": (1e-4, 0.05, 0.0, 2, ONE, DETR, {}),
    "mask_rcnn_hornet_horfpn": (1e-4, 0.05, 0.6, 2, ONE, DETR, {**HEADS, **HORFPN}),
    "cascade_mask_rcnn_hornet": (2e-4, 0.05, 0.4, 2, THREE, DETR, {}),
    "cascade_mask_rcnn_fan": (1e-4, 0.05, 0.3, 1, THREE, DETR, {}),
    **{f"mask_rcnn_{name}": (1e-4, 0.05, None, 2, ONE, DETR, {}) for name in AFTER_SWIN},
}


def detr(step):
    """Return a RandomChoice of resizes and crops as DETR's augmentation is written above."""
    branches = []
    for transforms in step.transforms:
        branch = []
        for part in transforms:
            if part.type == "RandomCrop":
                assert (part.crop_type, part.allow_negative_crop) == ("absolute_range", True)
                branch.append(part.crop_size)
            else:
                assert (part.type, part.keep_ratio) == ("RandomChoiceResize", True)
                branch.append(part.scales)
        branches.append(branch)
    return branches


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors(name):
    rate, decay, drop_path, images, (length, lr_schedule), scales, more = DETECTORS[name]
    cfg = recipe(f"det/{name}.py")
    wanted = {
        **ADAMW,
        "optim_wrapper__optimizer__lr": pytest.approx(rate),
        "optim_wrapper__optimizer__weight_decay": decay,
        "train_cfg__max_epochs": length,
        "train_dataloader__batch_size": images,
        **more,
    }
    assert values(cfg, **wanted) == wanted
    if drop_path is not None:
        assert cfg.model.backbone.get("drop_path_rate", 0.0) == drop_path
    assert schedule(cfg) == lr_schedule
    assert cfg.optim_wrapper.get("clip_grad") is None
    train, test = steps(cfg.train_dataloader), steps(cfg.test_dataloader)
    assert train["RandomFlip"].prob == 0.5
    if scales == DETR:
        assert list(train) == ["LoadImageFromFile", "LoadAnnotations", "RandomFlip", "RandomChoice", "PackDetInputs"]
        assert detr(train["RandomChoice"]) == DETR
    else:
        assert (train["Resize"].scale, train["Resize"].keep_ratio) == (scales, True)
    assert (test["Resize"].scale, test["Resize"].keep_ratio) == ((1333, 800), True)


@pytest.mark.parametrize("name", ["cascade_mask_rcnn_swin", "cascade_mask_rcnn_hornet", "cascade_mask_rcnn_fan"])
def test_cascades_have_heads_of_four_convolutions_and_one_layer(name):
    heads = recipe(f"det/{name}.py").model.roi_head.bbox_head
    assert [head.bbox_coder.target_stds for head in heads] == [
        [0.1, 0.1, 0.2, 0.2],
        [0.05, 0.05, 0.1, 0.1],
        [0.033, 0.033, 0.067, 0.067],
    ]
    for head in heads:
        assert (head.type, head.num_shared_convs, head.num_shared_fcs) == ("ConvFCBBoxHead", 4, 1)
        assert (head.conv_out_channels, head.fc_out_channels, head.norm_cfg.type) == (256, 1024, "SyncBN")
        assert (head.reg_class_agnostic, head.reg_decoded_bbox) == (False, True)
        assert (head.loss_bbox.type, head.loss_bbox.loss_weight) == ("GIoULoss", 10.0)


@pytest.mark.parametrize("name", ["mask_rcnn_regionvit", "retinanet_regionvit"])
def test_regionvit_trains_for_detectron2s_iterations(name):
    cfg = recipe(f"det/{name}.py")
    wanted = {
        **ADAMW,
        "optim_wrapper__optimizer__lr": 1e-4,
        "optim_wrapper__optimizer__weight_decay": 0.05,
        "train_cfg__type": "IterBasedTrainLoop",
        "train_cfg__max_iters": 90000,
        "train_dataloader__batch_size": 2,
        "train_dataloader__sampler__type": "InfiniteSampler",
        "model__backbone__drop_path_rate": 0.2,
    }
    assert values(cfg, **wanted) == wanted
    assert schedule(cfg) == {
        "LinearLR": dict(start_factor=0.001, by_epoch=False, begin=0, end=1000),
        "MultiStepLR": dict(by_epoch=False, begin=0, end=90000, milestones=[60000, 80000], gamma=0.1),
    }
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        assert steps(loader)["Resize"].scale == (1120, 672)


@pytest.mark.parametrize(("head", "large"), [(h, x) for h in ("mask_rcnn", "retinanet") for x in (False, True)])
def test_regionvits_long_schedules(head, large):
    """Short sides of 480 to 896, the long ones below 1120 or, with a dagger, 1344; the rate falls twice."""
    cfg = recipe(f"det/{head}_regionvit_3x{'_large' * large}.py")
    longest = 1344 if large else 1120
    sides = [(longest, side) for side in range(480, 897, 32)]
    assert cfg.train_cfg.max_iters == 270000 and cfg.model.backbone.drop_path_rate == 0.2
    assert schedule(cfg) == {
        "LinearLR": dict(start_factor=0.001, by_epoch=False, begin=0, end=1000),
        "MultiStepLR": dict(by_epoch=False, begin=0, end=270000, milestones=[210000, 250000], gamma=0.1),
    }
    train, test = steps(cfg.train_dataloader), steps(cfg.test_dataloader)
    assert detr(train["RandomChoice"]) == [[sides], [[(1333, 400), (1333, 500), (1333, 600)], (384, 600), sides]]
    assert test["Resize"].scale == ((1344, 896) if large else (1120, 672))


def test_vitdets_rates_decays_and_images():
    cfg = recipe("det/mask_rcnn_deit_vitdet.py")
    found, _ = settings(cfg)

    def layer(name):
        block = number(r"backbone\.blocks\.(\d+)", name)
        return block[0] + 1 if block else 0 if name.startswith("backbone.p") else 13

    rate = lambda key: 1e-4 * 0.7 ** (13 - layer(key)) if key.startswith("backbone.") else 1e-4  # noqa: E731
    spared = ("norm", ".ln.", "pos_embed")
    assert found == {
        key: (pytest.approx(rate(key)), 0.0 if any(word in key for word in spared) else 0.1) for key in found
    }
    assert {"roi_head.mask_head.convs.0.ln.weight", "neck.outputs.0.norm1.weight"} <= found.keys()
    assert cfg.model.backbone.window == 14 and cfg.train_cfg.max_iters == 184375
    train, test = steps(cfg.train_dataloader), steps(cfg.test_dataloader)
    assert (train["RandomResize"].scale, train["RandomResize"].ratio_range) == ((1024, 1024), (0.1, 2.0))
    assert train["RandomCrop"].crop_size == train["Pad"].size == test["Resize"].scale == (1024, 1024)


# Segmentors ----------------------------------------------------------------------------------------------------------

FAN_HEAD = dict(model__decode_head__type="mixtransfer.SegFormerHead", model__decode_head__channels=768)
UPERNET = dict(model__decode_head__channels=512, model__auxiliary_head__channels=256)
HORUPER = dict(model__decode_head__type="mixtransfer.HorUPerHead", model__decode_head__kernel_size=7)
#: Recipe -> rate, decay, drop path, images a GPU, iterations, warm-up, power; then further values.
SEGMENTORS = {
    "upernet_hornet": (1e-4, 0.05, 0.4, 2, 160000, 1500, 1.0, UPERNET),
    "upernet_hornet_horfpn": (1e-4, 0.05, 0.3, 2, 160000, 1500, 1.0, {**UPERNET, **HORUPER}),
    "upernet_swin": (6e-5, 0.01, 0.3, 2, 160000, 1500, 1.0, UPERNET),
    "upernet_swin_tlalign": (6e-5, 0.01, 0.3, 2, 160000, 1500, 1.0, UPERNET),
    "upernet_hire_mlp": (1.2e-4, 0.01, 0.2, 4, 80000, 800, 1.0, UPERNET),
    "semantic_fpn_pvt": (2e-4, 1e-4, 0.1, 4, 40000, 0, 0.9, dict(model__decode_head__channels=128)),
    "semantic_fpn_fcvit": (2e-4, 1e-4, 0.0, 4, 40000, 0, 0.9, dict(model__decode_head__channels=128)),
    "semantic_fpn_hire_mlp": (2e-4, 0.05, 0.1, 4, 40000, 0, 0.9, dict(model__decode_head__channels=128)),
    "semantic_fpn_raft_mlp": (2e-4, 1e-4, 0.0, 4, 40000, 0, 0.9, dict(model__decode_head__channels=128)),
    "segformer_fan": (6e-5, 0.01, 0.0, 1, 160000, 1500, 1.0, FAN_HEAD),
}
#: Short side and step of the windows, or None for whole images.
WINDOWS = {"upernet_hornet": (512, 341), "upernet_hornet_horfpn": (512, 341), "segformer_fan": (1024, 768)}
#: Recipes that round the sides of tested images up to 32.
ALIGNED = {"semantic_fpn_fcvit", "semantic_fpn_pvt"}


@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentors(name):
    rate, decay, drop_path, images, length, warmup, power, more = SEGMENTORS[name]
    cfg = recipe(f"seg/{name}.py")
    wanted = {
        "optim_wrapper__optimizer__type": "AdamW",
        "optim_wrapper__optimizer__lr": rate,
        "optim_wrapper__optimizer__weight_decay": decay,
        "train_cfg__max_iters": length,
        "train_dataloader__batch_size": images,
        "model__decode_head__dropout_ratio": 0.1,
        "model__decode_head__norm_cfg__type": "SyncBN",
        **more,
    }
    assert values(cfg, **wanted) == wanted
    assert cfg.model.backbone.get("drop_path_rate", 0.0) == drop_path
    poly = {"PolyLR": dict(eta_min=0.0, power=power, by_epoch=False, begin=warmup, end=length)}
    warm = {"LinearLR": dict(start_factor=1e-6, by_epoch=False, begin=0, end=warmup)} if warmup else {}
    assert schedule(cfg) == {**warm, **poly}
    crop = 1024 if name == "segformer_fan" else 512
    train, test = steps(cfg.train_dataloader), steps(cfg.test_dataloader)
    assert (train["RandomResize"].scale, train["RandomResize"].ratio_range) == ((2048, crop), (0.5, 2.0))
    assert (tuple(train["RandomCrop"].crop_size), train["RandomCrop"].cat_max_ratio) == ((crop, crop), 0.75)
    assert (test["Resize"].scale, test["Resize"].keep_ratio) == ((2048, crop), True)
    assert ("ResizeToMultiple" in test) == (name in ALIGNED)
    if name in WINDOWS:
        side, stride = WINDOWS[name]
        assert cfg.model.test_cfg == dict(mode="slide", crop_size=(side, side), stride=(stride, stride))
    else:
        assert cfg.model.test_cfg.mode == "whole"


# Classifiers ---------------------------------------------------------------------------------------------------------

#: Recipe -> crop in training and testing, resize before the latter, interpolations, epochs, end of the cosine, last
#: rate, warm-up, rate, decay, random erasing.
CLASSIFIERS = {
    "fan": (224, 224, 310, 300, 1e-6, 5, 1e-3, 0.05, 0.3),
    "fan_swin": (224, 248, 310, 300, 1e-6, 5, 5e-4, 0.05, 0.25),
    "fan_token_labeler": (224, 224, 360, 350, 1e-6, 5, 2e-3, 0.05, 0.3),
    "fan_token": (224, 224, 360, 350, 1e-6, 5, 2e-3, 0.05, 0.3),
    "fcvit": (224, 248, 310, 300, 1e-6, 5, 1e-3, 0.05, 0.25),
    "tnt": (224, 248, 310, 300, 1e-5, 5, 1e-3, 0.05, 0.25),
    "pyramid_tnt": (192, 213, 310, 300, 1e-5, 20, 1e-3, 0.05, 0.25),
    "posmlp": (224, 248, 310, 300, 1e-6, 10, 2e-3, 0.067, None),
    "sequencer2d": (224, 256, 310, 300, 1e-6, 20, 2e-3, 0.05, 0.25),
    "deit_transmix": (224, 248, 310, 300, 1e-5, 20, 1e-3, 0.03, None),
    "cmt": (160, 182, 800, None, 1e-5, 20, 3.2e-3, 0.05, 0.25),
}
BICUBIC_ONLY = {"cmt"}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name):
    crop, edge, length, end, last, warmup, rate, decay, erase = CLASSIFIERS[name]
    cfg = recipe(f"pretrain/{name}.py")
    wanted = {
        "optim_wrapper__optimizer__type": "AdamW",
        "optim_wrapper__optimizer__lr": pytest.approx(rate),
        "optim_wrapper__optimizer__weight_decay": decay,
        "train_cfg__max_epochs": length,
    }
    assert values(cfg, **wanted) == wanted
    warm, cosine = (schedule(cfg)[kind] for kind in ("LinearLR", "CosineAnnealingLR"))
    assert (warm["end"], cosine["begin"], cosine.get("end"), cosine["eta_min"]) == (warmup, warmup, end, last)
    train, test = steps(cfg.train_dataloader), steps(cfg.test_dataloader)
    assert (test["ResizeEdge"].scale, test["ResizeEdge"].edge) == (edge, "short")
    assert test["CenterCrop"].crop_size == crop
    crops = [train["RandomResizedCrop"]] if name in BICUBIC_ONLY else [x for [x] in train["RandomChoice"].transforms]
    kinds = ["bicubic"] if name in BICUBIC_ONLY else ["bilinear", "bicubic"]
    assert [(x.type, x.scale, x.interpolation) for x in crops] == [("RandomResizedCrop", crop, kind) for kind in kinds]
    if name == "posmlp":
        assert {x.aspect_ratio_range for x in crops} == {(0.67, 1.5)}
    assert (train["RandomErasing"].erase_prob if "RandomErasing" in train else None) == erase


#: Recipe -> rate, decay, epochs, warm-up, last rate, images a GPU, gradients' norm, drop path, side of the images.
FINETUNED = {
    "swin_384": (4e-5, 1e-8, 30, 5, 4e-7, 128, 5.0, 0.5, 384),
    "swin_22k": (4e-5, 1e-8, 30, 5, 4e-7, 128, 5.0, 0.2, 224),
    "hornet_22k_384": (5e-5, 1e-8, 30, 0, 1e-6, 16, 1.0, 0.4, 384),
    "sequencer2d_392": (5e-5, 1e-8, 30, 0, 1e-6, 64, None, 0.4, 392),
    "sequencer2d_cifar10": (1e-4, 1e-4, 210, 5, 1e-6, 128, 1.0, 0.1, 224),
    "raft_mlp_cars": (1e-4, 1e-4, 50, 10, 1e-5, 128, None, 0.0, 224),
}


@pytest.mark.parametrize("name", FINETUNED)
def test_fine_tuned_classifiers(name):
    rate, decay, length, warmup, last, images, norm, drop_path, side = FINETUNED[name]
    cfg = recipe(f"finetune/{name}.py")
    wanted = {
        "optim_wrapper__optimizer__lr": rate,
        "optim_wrapper__optimizer__weight_decay": decay,
        "train_cfg__max_epochs": length,
        "train_dataloader__batch_size": images,
        "model__backbone__drop_path_rate": drop_path,
    }
    assert values(cfg, **wanted) == wanted
    assert (cfg.optim_wrapper.get("clip_grad") or {}).get("max_norm") == norm
    parts = schedule(cfg)
    assert parts.get("LinearLR", {}).get("end", 0) == warmup == parts["CosineAnnealingLR"]["begin"]
    assert parts["CosineAnnealingLR"]["eta_min"] == last
    train, test = steps(cfg.train_dataloader), steps(cfg.test_dataloader)
    crops = [x for [x] in train["RandomChoice"].transforms] if "RandomChoice" in train else [train["RandomResizedCrop"]]
    assert {crop.scale for crop in crops} == {side}
    if side == 384:
        assert test["Resize"].scale == (384, 384) and "CenterCrop" not in test
    else:
        assert test["CenterCrop"].crop_size == side
    assert ("RandomErasing" in train) == (side != 224 or name == "swin_22k")


def test_deit_is_fine_tuned_at_a_constant_rate():
    cfg = recipe("finetune/deit_384.py")
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay) == (5e-6, 1e-8)
    assert {kind: part["end"] for kind, part in schedule(cfg).items()} == {"LinearLR": 5}
    assert (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size) == (30, 32)
    train, test = steps(cfg.train_dataloader), steps(cfg.test_dataloader)
    assert (train["RandomResizedCrop"].scale, test["ResizeEdge"].scale, test["CenterCrop"].crop_size) == (384, 438, 384)


def test_convmixer_rises_falls_and_ends_at_nothing():
    cfg = recipe("pretrain/convmixer.py")
    wanted = {
        "optim_wrapper__optimizer__lr": 1e-2,
        "optim_wrapper__optimizer__weight_decay": 2e-5,
        "optim_wrapper__optimizer__eps": 1e-3,
        "optim_wrapper__clip_grad__max_norm": 1.0,
        "train_cfg__max_epochs": 150,
        "train_dataloader__batch_size": 64,
    }
    assert values(cfg, **wanted) == wanted
    assert [(x.get("begin", 0), x.end, x.get("end_factor", 1.0)) for x in cfg.param_scheduler] == [
        (0, 60, 1.0),
        (60, 120, 0.05),
        (120, 150, 0.0),
    ]
    train, test = steps(cfg.train_dataloader), steps(cfg.test_dataloader)
    assert [crop.interpolation for [crop] in train["RandomChoice"].transforms] == ["bilinear", "bicubic"]
    assert (test["ResizeEdge"].scale, test["CenterCrop"].crop_size) == (233, 224)


# Rates and decays of every parameter ---------------------------------------------------------------------------------


def settings(cfg):
    """Return parameter name -> (learning rate, weight decay) of a recipe's optimizer, and name -> number of axes."""
    with torch.device("meta"):
        model = build(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    of = {parameter: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    named = {name: parameter for name, parameter in model.named_parameters() if parameter in of}
    return {name: of[parameter] for name, parameter in named.items()}, {name: p.ndim for name, p in named.items()}


def number(pattern, name):
    """Return the integers that a pattern finds in a name, or None."""
    found = re.match(pattern, name)
    return found and [int(x) for x in found.groups()]


def hornet_layer(name, top):
    """Return HorNet's layer of a parameter in its ``layer_wise`` counting; ``top`` is that of norms and heads."""
    if found := number(r"backbone\.downsample_layers\.(\d)", name):
        return (0, 2, 3, 12)[found[0]]
    if found := number(r"backbone\.stages\.(\d)\.(\d+)", name):
        return (1, 2, min(3 + found[1] // 2, 11), 12)[found[0]]
    return top


def hornet_stage(name):
    """Return the power of the rate that a parameter has in HorNet's ``stage_wise`` counting with six layers."""
    if "backbone.downsample_layers." in name:
        return 7
    found = number(r"backbone\.stages\.(\d)", name)
    return 6 - found[0] if found else 0


@pytest.mark.parametrize(
    ("name", "rate", "factor", "ends"),
    [
        ("det/mask_rcnn_hornet.py", 1e-4, lambda x: 0.95 ** (7 - hornet_layer(x, 7)), (0.698, 1.292)),
        ("det/cascade_mask_rcnn_hornet.py", 2e-4, lambda x: 0.7 ** (13 - hornet_layer(x, 13)), (0.0097, 0.7)),
        ("seg/upernet_hornet.py", 1e-4, lambda x: 0.9 ** hornet_stage(x), (0.478, 0.729)),
        # With 12 layers there are six more between the last stage and the heads.
        (
            "seg/upernet_hornet_horfpn.py",
            1e-4,
            lambda x: 0.9 ** (hornet_stage(x) and hornet_stage(x) + 6),
            (0.254, 0.387),
        ),
    ],
)
def test_hornets_rates_by_layer(name, rate, factor, ends):
    found, axes = settings(recipe(name))
    assert {key: lr / rate for key, (lr, _) in found.items()} == pytest.approx({key: factor(key) for key in found})
    # No vector decays, as timm and the published constructor have it.
    assert {key: decay for key, (_, decay) in found.items()} == {key: 0.05 * (axes[key] > 1) for key in found}
    probes = "backbone.downsample_layers.0.0.weight", "backbone.stages.3.1.pwconv1.weight"
    assert [found[key][0] / rate for key in probes] == pytest.approx(ends, rel=2e-3)


def test_mixmims_rates_by_layer():
    """The norm and the head belong to layer 24 of 25, as the last block."""
    cfg = recipe("pretrain/mixmim.py")
    found, axes = settings(cfg)
    depths = (2, 2, 18, 2)

    def layer(name):
        if name.startswith("backbone.patch_embed"):
            return 0
        if got := number(r"backbone\.layers\.(\d)\.blocks\.(\d+)", name):
            return sum(depths[: got[0]]) + got[1] + 1
        if got := number(r"backbone\.layers\.(\d)\.downsample", name):
            return sum(depths[: got[0] + 1]) + 1
        return 24

    assert {key: lr for key, (lr, _) in found.items()} == pytest.approx(
        {key: 2e-3 * 0.7 ** (25 - layer(key)) for key in found}
    )
    assert {key: decay for key, (_, decay) in found.items()} == {key: 0.05 * (axes[key] > 1) for key in found}
    assert found["backbone.norm.weight"][0] == pytest.approx(1.4e-3)


@pytest.mark.parametrize(
    ("name", "rate", "decay"),
    [
        ("det/mask_rcnn_fcvit.py", 2e-4, 1e-4),
        ("seg/semantic_fpn_fcvit.py", 2e-4, 1e-4),
        ("det/mask_rcnn_pvt.py", 2e-4, 1e-4),
        ("det/retinanet_pvt_v2.py", 1e-4, 1e-4),
        ("det/retinanet_raft_mlp.py", 1e-4, 1e-4),
        ("seg/semantic_fpn_hire_mlp.py", 2e-4, 0.05),
        ("seg/upernet_hire_mlp.py", 1.2e-4, 0.01),
    ],
)
def test_plain_adamw_decays_everything(name, rate, decay):
    found, _ = settings(recipe(name))
    assert found and set(found.values()) == {(rate, decay)}


@pytest.mark.parametrize(
    ("name", "rate", "decay"),
    [
        ("det/mask_rcnn_swin.py", 1e-4, 0.05),
        ("det/cascade_mask_rcnn_swin.py", 1e-4, 0.05),
        ("seg/upernet_swin.py", 6e-5, 0.01),
    ],
)
def test_swins_dense_recipes_spare_norms_and_tables(name, rate, decay):
    found, _ = settings(recipe(name))
    spared = ("norm", "absolute_pos_embed", "relative_position_bias_table")
    assert found == {key: (rate, 0.0 if any(word in key for word in spared) else decay) for key in found}


@pytest.mark.parametrize(
    ("name", "rate", "decay", "heads"),
    [("det/cascade_mask_rcnn_fan.py", 1e-4, 0.05, 1), ("seg/segformer_fan.py", 6e-5, 0.01, 10)],
)
def test_fans_dense_recipes_spare_what_is_called_norm(name, rate, decay, heads):
    found, _ = settings(recipe(name))
    head = lambda key: rate * (heads if key.startswith("decode_head.") else 1)  # noqa: E731
    assert found == {key: (pytest.approx(head(key)), 0.0 if "norm" in key else decay) for key in found}
    assert found["backbone.blocks.0.mlp.mlp_v.dwconv.bn.weight"][1] == decay == found["backbone.blocks.0.gamma1"][1]
