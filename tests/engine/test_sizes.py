"""``--arch``: another size takes the values that its published file has, visibly, and options still win."""

import copy

import pytest
import torch
from recipes import CONFIGS, build, read, recipe

from mixtransfer.backbones import backbone_class
from mixtransfer.engine.config import differences, load_config
from mixtransfer.engine.fit_channels import fit_channels
from mixtransfer.engine.sizes import FIELDS, apply_arch, steps
from mixtransfer.errors import UserError

TABLES = [
    str(path.relative_to(CONFIGS))
    for path in sorted(CONFIGS.rglob("*.py"))
    if "\nsizes = " in path.read_text(encoding="utf-8")
]


def sized(name, arch):
    cfg = copy.deepcopy(read(name))
    return cfg, apply_arch(cfg, arch, name)


def named(cfg):
    return cfg.model.backbone if "arch" in cfg.model.get("backbone", {}) else cfg.model


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_of_the_recipes_family_and_is_taken(name):
    before = read(name)
    family = backbone_class(named(before).arch)
    rows = {arch: row for arch, row in before.sizes.items() if arch in family.archs}
    assert named(before).arch not in rows and bool(rows) == bool(before.sizes)
    for arch, row in rows.items():
        cfg, remark = sized(name, arch)
        assert remark is None and named(cfg).arch == arch
        changed = differences(before.to_dict(), cfg.to_dict())
        assert len(changed) > len([field for field in row if field != "total"])
        assert set(row) <= {*FIELDS, *(field for field in row if "." in field)}


#: Recipe -> architecture -> millions of parameters of the whole model, as the papers' code prints them.
PARAMETERS = {
    "det/mask_rcnn_swin_3x.py": {"swin_tiny": 48, "swin_small": 69},
    "det/cascade_mask_rcnn_swin.py": {"swin_tiny": 86, "swin_small": 107, "swin_base": 145},
    "seg/upernet_swin.py": {"swin_tiny": 60, "swin_small": 81, "swin_base": 121, "swin_large_w12": 234},
    "det/cascade_mask_rcnn_hornet.py": {
        **{"hornet_tiny_7x7": 80, "hornet_small_7x7": 107, "hornet_base_7x7": 144, "hornet_large_7x7": 251},
        **{"hornet_tiny_gf": 80, "hornet_small_gf": 108, "hornet_base_gf": 146, "hornet_large_gf": 259},
    },
    "seg/upernet_hornet.py": {
        **{"hornet_tiny_7x7": 52, "hornet_small_7x7": 81, "hornet_base_7x7": 121, "hornet_large_7x7": 232},
        **{"hornet_tiny_gf": 55, "hornet_small_gf": 85, "hornet_base_gf": 126, "hornet_large_gf": 239},
    },
    "det/cascade_mask_rcnn_msg_transformer.py": {
        **{"msg_transformer_tiny": 83, "msg_transformer_small": 113, "msg_transformer_base": 142},
    },
    "det/mask_rcnn_regionvit.py": {
        **{"regionvit_small": 50.1, "regionvit_small_w14": 50.9, "regionvit_small_w14_peg": 50.9},
        **{"regionvit_base": 92.2, "regionvit_base_w14": 93.2, "regionvit_base_w14_peg": 93.2},
    },
    "det/retinanet_regionvit.py": {
        **{"regionvit_small": 40.8, "regionvit_small_w14": 41.5, "regionvit_small_w14_peg": 41.6},
        **{"regionvit_base": 83.4, "regionvit_base_w14": 84.4, "regionvit_base_w14_peg": 84.5},
    },
}
#: Those that every run of the suite builds.
BUILT = {("seg/upernet_swin.py", "swin_large_w12"), ("det/retinanet_regionvit.py", "regionvit_base_w14_peg")}


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        (name, arch) if (name, arch) in BUILT else pytest.param(name, arch, marks=pytest.mark.long)
        for name, archs in PARAMETERS.items()
        for arch in archs
    ],
)
def test_whole_models_have_the_papers_parameters(name, arch):
    cfg = recipe(name)
    apply_arch(cfg, arch, name)
    cfg.model.backbone.init_cfg = None
    fit_channels(cfg)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build(cfg).parameters())
    # A percent, or what the printed number was rounded by.
    printed = PARAMETERS[name][arch]
    assert count / 1e6 == pytest.approx(printed, rel=0.01, abs=0.5 if printed == int(printed) else 0.05)


def test_hornets_sizes_have_the_values_of_their_files():
    cfg, _ = sized("det/cascade_mask_rcnn_hornet.py", "hornet_base_7x7")
    assert cfg.model.backbone.drop_path_rate == 0.7
    assert cfg.optim_wrapper.paramwise_cfg.layer_decay_rate == 0.8
    assert cfg.optim_wrapper.optimizer.lr == 2e-4
    assert cfg.model.backbone.init_cfg.checkpoint == "checkpoints/hornet_base_7x7.safetensors"
    cfg, _ = sized("seg/upernet_hornet.py", "hornet_large_gf")
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=0.1)
    assert cfg.optim_wrapper.paramwise_cfg.layers_above["stages.0"] == 12
    assert cfg.optim_wrapper.paramwise_cfg.layers_above["norm3"] == 0
    assert cfg.model.test_cfg == dict(mode="slide", crop_size=(640, 640), stride=(426, 426))
    assert cfg.model.data_preprocessor.size == (640, 640)
    assert [step.crop_size for step in steps(cfg, "train", "RandomCrop")] == [(640, 640)]
    assert [step.scale for step in steps(cfg, "train", "RandomResize")] == [(2560, 640)]
    for split in ("val", "test"):
        assert [step.scale for step in steps(cfg, split, "Resize")] == [(2560, 640)]
    cfg, _ = sized("pretrain/hornet.py", "hornet_small_gf")
    assert [step.magnitude_level for step in steps(cfg, "train", "RandAugment")] == [12]
    assert (cfg.model.backbone.drop_path_rate, cfg.optim_wrapper.clip_grad.max_norm) == (0.4, 1.0)


def test_schedules_averages_and_batches_follow():
    cfg, _ = sized("pretrain/fan.py", "fan_hybrid_base")
    assert [(part.get("begin", 0), part.end) for part in cfg.param_scheduler] == [(0, 10), (10, 300)]
    assert cfg.param_scheduler[0].start_factor * cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-6)
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (64, 2048)
    cfg, _ = sized("pretrain/fan.py", "fan_vit_tiny")
    assert [step.erase_prob for step in steps(cfg, "train", "RandomErasing")] == [0.25]
    FIELDS["average"](cfg, None)
    assert cfg.custom_hooks == []


def test_a_classifiers_images_follow_the_size_that_it_is_made_for():
    """The resize before the crop keeps its proportion, as DeiT's and Swin's int(256 / 224 · side)."""
    cfg, _ = sized("pretrain/cmt.py", "cmt_b")
    assert [step.scale for step in steps(cfg, "train", "RandomResizedCrop")] == [256]
    assert [step.crop_size for step in steps(cfg, "test", "CenterCrop")] == [256]
    cfg, remark = sized("pretrain/swin.py", "swin_base_w12")
    assert [step.scale for step in steps(cfg, "val", "ResizeEdge")] == [438]
    assert "no values of its own for swin_base_w12; those of swin_tiny stay" in remark


def test_blocks_that_are_read_and_scales_follow_the_architecture():
    assert sized("det/mask_rcnn_cait.py", "cait_xxs36")[0].model.backbone.out_indices == (35,)
    cfg, _ = sized("det/mask_rcnn_convmixer.py", "convmixer_1536_20")
    assert cfg.model.neck.scales == [7 / 4, 7 / 8, 7 / 16, 7 / 32, 7 / 64]
    assert cfg.model.backbone.init_cfg.checkpoint == "checkpoints/convmixer_1536_20.safetensors"


def test_patches_that_a_pyramid_is_not_made_for_are_refused():
    with pytest.raises(UserError, match="vit_base_p8: has patches of 8, and the recipe's pyramid is made for 16"):
        sized("det/mask_rcnn_deit_vitdet.py", "vit_base_p8")


def test_what_changes_is_said_and_options_win(tmp_path, capsys):
    cfg = load_config(
        CONFIGS / "det/cascade_mask_rcnn_hornet.py",
        (),
        arch="hornet_large_7x7",
        options=["optim_wrapper.optimizer.lr=3e-4"],
        work_dir=tmp_path,
    )
    assert cfg.optim_wrapper.optimizer.lr == 3e-4
    said = capsys.readouterr().err
    assert "note: --arch hornet_large_7x7: model.backbone.drop_path_rate: 0.4 -> 0.7\n" in said
    assert "optim_wrapper.optimizer.lr: 0.0002 -> 0.0001\n" in said


def test_what_is_no_size_of_the_recipe_is_refused():
    cfg = copy.deepcopy(read("det/cascade_mask_rcnn_hornet.py"))
    with pytest.raises(UserError, match=r"unknown size of hornet, the backbone of x\.py, 'swin_base'"):
        apply_arch(cfg, "swin_base", "x.py")
    cfg.sizes = {"hornet_tiny_gf": {"drop": 0.1}, "hornet_base_gf": {"model.necks.x": 1}}
    with pytest.raises(UserError, match=r"unknown value in sizes of x\.py, 'drop'; did you mean crop, drop_path"):
        apply_arch(copy.deepcopy(cfg), "hornet_tiny_gf", "x.py")
    with pytest.raises(UserError, match=r"sizes: model\.necks\.x: there are 0 entries necks"):
        apply_arch(cfg, "hornet_base_gf", "x.py")


def test_a_recipe_for_timm_takes_any_network_of_its_kind():
    cfg, _ = sized("seg/upernet_timm.py", "timm/resnet50.a1_in1k")
    assert cfg.model.backbone.init_cfg.checkpoint == "timm://resnet50.a1_in1k"
    fit_channels(cfg)
    assert cfg.model.decode_head.in_channels == [256, 512, 1024, 2048]
    # Blocks that are read keep their share of the depth; only anchors are made for patches of 16.
    cfg, _ = sized("seg/upernet_timm_vit.py", "timm/vit_large_patch14_dinov2")
    fit_channels(cfg)
    assert cfg.model.backbone.out_indices == (23,) and cfg.model.neck.in_channels == [1024]
    with pytest.raises(UserError, match="has patches of 14, and the recipe's pyramid is made for 16"):
        sized("det/mask_rcnn_timm_vit.py", "timm/vit_large_patch14_dinov2")
    with pytest.raises(
        UserError, match=r"has one stride, and the recipe is made for maps of several strides; .*timm_vit"
    ):
        sized("det/mask_rcnn_timm.py", "timm/vit_small_patch16_dinov3")
    with pytest.raises(UserError, match="unknown network of timm 'resnet51'; did you mean resnet51q, resnet50,"):
        sized("seg/upernet_timm.py", "timm/resnet51")
