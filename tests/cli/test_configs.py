"""Every recipe: it says how to run it, at full size its parts fit, and shrunken it trains for a step and predicts."""

from __future__ import annotations

import ast
import copy
import math
import re
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, PARAM_SCHEDULERS, TRANSFORMS
from mmengine.structures import PixelData
from recipes import CONFIGS, build, dataset, read, recipe
from toys import NETWORKS, TOYS

from mixtransfer.backbones import FOREIGN, backbone_class
from mixtransfer.engine.cfg_options import READ_BY_RUNNER
from mixtransfer.engine.config import task_of
from mixtransfer.engine.fit_channels import fit_channels
from mixtransfer.transfer import TokenMixHook

FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.py"))
RECIPES = [name for name in FILES if not name.startswith("_base_")]
every_recipe = pytest.mark.parametrize("name", RECIPES)
#: Recipes of models that do not take any backbone; tests/pretrain/test_dynamic.py trains them.
OWN_MODELS = [name for name in RECIPES if name.startswith("pretrain/dynamicvit")]
every_backbone = pytest.mark.parametrize("name", [name for name in RECIPES if name not in OWN_MODELS])
#: One recipe of each kind, which every run of the suite trains for a step; ``-m long`` trains all others.
OF_EACH_KIND = {
    *("finetune/sequencer2d_cifar10.py", "finetune/swin_384.py"),
    *("pretrain/swin_tlalign.py", "pretrain/deit_smmix.py", "pretrain/fan_token.py", "pretrain/mixmim_pretrain.py"),
    "pretrain/deit_oamixer.py",
    *("seg/upernet_swin_tlalign.py", "seg/upernet_sequencer2d.py", "seg/semantic_fpn_pvt.py", "seg/segformer_fan.py"),
    *("det/mask_rcnn_swin_tlalign.py", "det/mask_rcnn_deit.py", "det/mask_rcnn_msg_transformer.py"),
    *("det/cascade_mask_rcnn_hornet.py", "det/retinanet_regionvit.py", "det/mask_rcnn_hornet_horfpn.py"),
    *("seg/upernet_timm.py", "seg/upernet_timm_vit.py", "det/mask_rcnn_timm_vit.py"),
    *("det/mask_rcnn_deit_vitdet.py", "det/detr_tnt.py", "seg/segmenter_deit.py", "seg/upernet_hornet_horfpn.py"),
}
trained = pytest.mark.parametrize(
    "name",
    [
        name if name in OF_EACH_KIND else pytest.param(name, marks=pytest.mark.long)
        for name in RECIPES
        if name not in OWN_MODELS
    ],
)
FAMILIES = (
    "deit cait pvt pvt_v2 swin swin_mlp tnt pyramid_tnt hornet cmt msg_transformer fan fan_swin mixmim fcvit hire_mlp"
    " posmlp raft_mlp regionvit sret sequencer2d mlp_mixer convmixer dynamicvit dynamicvit_swin dynamicvit_convnext"
).split()
#: Side of full-size images: 7, 14 and 64 divide it.
FULL = 448
TINY = 96
#: Sizes of necks, heads and proposals, wherever they stand; fit_channels then sets what the backbone decides.
SMALL = {
    **dict.fromkeys(("channels", "in_channels", "out_channels", "feat_channels", "conv_out_channels"), 16),
    **dict.fromkeys(("fc_out_channels", "num"), 16),
    **dict.fromkeys(("stacked_convs", "num_convs", "num_shared_convs"), 1),
    **dict.fromkeys(("nms_pre", "max_per_img"), 20),
    # Transformers of DETR and Segmenter; a position code has half of its channels an axis.
    **dict(embed_dims=16, feedforward_channels=16, num_heads=2, num_layers=1, num_feats=8),
}
LOADER = set(
    "_scope_ batch_size num_workers persistent_workers drop_last sampler batch_sampler dataset collate_fn".split()
)
LOOP = set("_scope_ type by_epoch max_epochs max_iters val_interval val_begin".split())


@pytest.mark.parametrize("name", FILES)
def test_every_name_that_a_file_sets_is_read(name):
    tree = ast.parse((CONFIGS / name).read_text(encoding="utf-8"))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    loaded = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    assert stored - loaded <= {"_base_", "custom_imports", "sizes", *READ_BY_RUNNER}


@every_recipe
def test_the_file_says_how_to_run_it(name):
    text = ast.get_docstring(ast.parse((CONFIGS / name).read_text(encoding="utf-8")))
    assert f"tools/train.py configs/{name}" in text
    assert "Hardware: " in text and "Recipe: " in text
    model = read(name).model
    start = model.get("backbone", {}).get("init_cfg")
    if start:
        arch = model.backbone.arch if "arch" in model.backbone else model.arch
        if backbone_class(arch) in FOREIGN:
            assert start.checkpoint == arch.replace("timm/", "timm://")
        else:
            assert f" {start.checkpoint} --arch {arch}\n" in text
    if model.get("init_cfg") and "checkpoint" in model.init_cfg:
        # Of another size, maybe.
        assert f" {model.init_cfg.checkpoint} --arch " in text


@every_recipe
def test_what_is_as_published_names_the_file(name):
    """The file that the values were read in, or the recipe of ours that names it."""
    text = " ".join(ast.get_docstring(ast.parse((CONFIGS / name).read_text(encoding="utf-8"))).split())
    said = text.partition(f"tools/train.py configs/{name}")[2]
    if "as published" in said:
        assert re.search(r"[\w./-]+\.(py|yaml|sh|md)\b", said) is not None


@pytest.mark.parametrize("kind", ["pretrain/", "seg/upernet_", "det/mask_rcnn_"])
def test_every_family_has_a_recipe_of_each_kind(kind):
    assert [family for family in FAMILIES if f"{kind}{family}.py" not in RECIPES] == []


@every_backbone
@torch.no_grad()
def test_the_parts_fit_at_full_size(name):
    cfg = recipe(name)
    written = cfg.model.to_dict()
    written["backbone"].setdefault("token_classifier", None)
    fit_channels(cfg)
    cfg.model.backbone.setdefault("token_classifier", None)
    # The numbers written for other tools are those that the backbone declares.
    assert cfg.model.to_dict() == written
    # Segmenter's head reads numbers off tensors while it is made.
    with torch.device("cpu" if "SegmenterMask" in str(cfg.model.get("decode_head")) else "meta"):
        model = build(cfg).eval()
        if task_of(cfg) == "cls":
            return
        net = model.backbone
        maps = [torch.empty(1, c, FULL // s, FULL // s) for c, s in zip(net.out_channels, net.strides, strict=True)]
        maps = model.neck(maps) if model.with_neck else maps
        with DATASETS.switch_scope_and_registry(cfg.default_scope) as datasets:
            data = dataset(cfg.train_dataloader)
            classes = len((data.get("metainfo") or datasets.get(data.type).METAINFO)["classes"])
        if task_of(cfg) == "seg":
            heads = [model.decode_head, *([model.auxiliary_head] if model.with_auxiliary_head else [])]
            assert all(head(maps).shape[1] == classes for head in heads)
            return
        if cfg.model.type == "DETR":
            assert [m.shape[1] for m in maps] == [cfg.model.bbox_head.embed_dims]
            return
        two_stages = "rpn_head" in cfg.model
        boxes = model.rpn_head if two_stages else model.bbox_head
        boxes(maps)
        strides = [stride for stride, _ in boxes.prior_generator.strides]
        assert [m.shape[2] for m in maps] == [math.ceil(FULL / stride) for stride in strides]
        if not two_stages:
            assert boxes.num_classes == classes
            return
        roi = model.roi_head
        listed = lambda part: list(part) if isinstance(part, torch.nn.ModuleList) else [part]  # noqa: E731
        masks = [*listed(roi.mask_roi_extractor), *listed(roi.mask_head)] if roi.with_mask else []
        for part in [*listed(roi.bbox_roi_extractor), *listed(roi.bbox_head), *masks]:
            if hasattr(part, "featmap_strides"):
                assert part.featmap_strides == strides[: part.num_inputs]
            else:
                assert part.num_classes == classes


@trained
def test_a_shrunken_one_trains_and_predicts(name, monkeypatch):
    cfg = recipe(name)
    shrink(cfg, monkeypatch)
    fit_channels(cfg)
    model = build(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    build_the_rest(cfg, wrapper)
    runner = SimpleNamespace(model=model, iter=0, max_iters=100)
    for hook in map(HOOKS.build, cfg.get("custom_hooks", [])):
        if isinstance(hook, TokenMixHook):
            hook.before_train(runner)
            hook.before_train_iter(runner, 0)

    data = tiny_batch(task_of(cfg))
    for sample in data["data_samples"]:
        # What LoadMap reads.
        if cfg.model.type == "mixtransfer.OAMixer":
            sample.patch_labels = torch.rand(cfg.model.get("patch_classes", 1000), 6, 6)
        elif (cfg.model.get("mixing") or {}).get("type") == "mixtransfer.TokenMix":
            sample.activation_map = torch.rand(6, 6)
    model.train()
    loss, _ = model.parse_losses(model(**model.data_preprocessor(copy.deepcopy(data), True), mode="loss"))
    assert loss.isfinite()
    wrapper.backward(loss)
    # Distributed training stops at a parameter that takes no part.
    assert [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None] == []
    wrapper.step()

    first, _ = model.eval().test_step(copy.deepcopy(data))
    found = {"seg": "pred_sem_seg", "det": "pred_instances", "cls": "pred_score"}
    assert ("restored" if cfg.model.type == "mixtransfer.MixMIM" else found[task_of(cfg)]) in first


def shrink(cfg: Config, monkeypatch) -> None:
    """Give a recipe a toy of its backbone's family, narrow heads and small images."""
    backbone = cfg.model.backbone
    named = backbone if "arch" in backbone else cfg.model
    cls = backbone_class(named.arch)
    if cls in FOREIGN:
        plain = cls.archs[named.arch].plain
        backbone.arch = "timm/vit_base_patch16_dinov3" if plain else "timm/convnext_tiny"
        backbone.network = NETWORKS[backbone.arch]
        backbone.out_indices = (3,) if plain else None
    toy = None if cls in FOREIGN else TOYS[cls.family]
    if toy is not None:
        monkeypatch.setitem(cls.archs, "toy", toy)
        named.arch = "toy"
        if "out_indices" in backbone and hasattr(toy, "depth"):
            # The last block.
            backbone.out_indices = (toy.depth - 1,)
    for key, part in cfg.model.items():
        if key != "backbone":
            narrow(part)
    if task_of(cfg) == "seg":
        cfg.model.data_preprocessor.size = (TINY, TINY)


def narrow(part) -> None:
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key in SMALL:
                part[key] = [SMALL[key]] * len(value) if isinstance(value, list) else SMALL[key]
            else:
                narrow(value)
    elif isinstance(part, list):
        for item in part:
            narrow(item)


def build_the_rest(cfg: Config, wrapper) -> None:
    """Build what a runner would build of the schedule and the data, the images aside."""
    assert set(cfg.train_cfg) <= LOOP
    epochs = "max_epochs" in cfg.train_cfg
    length = cfg.train_cfg.max_epochs if epochs else cfg.train_cfg.max_iters
    for scheduler in cfg.param_scheduler:
        whole = {"end": length, **scheduler}
        assert whole["end"] <= length or scheduler.get("by_epoch", True) != epochs
        PARAM_SCHEDULERS.build(whole, default_args=dict(optimizer=wrapper, epoch_length=10))
    for key, hook in cfg.default_hooks.items():
        # The commands leave this one out.
        if key != "visualization":
            HOOKS.build(hook)
    for loader in filter(None, map(cfg.get, ("train_dataloader", "val_dataloader", "test_dataloader"))):
        assert set(loader) <= LOADER
        DATA_SAMPLERS.build(loader.sampler, default_args=dict(dataset=range(8), seed=0))
        for transform in dataset(loader).pipeline:
            TRANSFORMS.build(transform)


def tiny_batch(task: str) -> dict:
    """Return two packed samples of small images."""
    if task == "det":
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(2, (3, TINY, TINY), num_items=[2, 3], num_classes=80, with_mask=True)
    samples = []
    for label in range(2):
        if task == "seg":
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=dict(img_shape=(TINY, TINY), ori_shape=(TINY, TINY)))
            sample.gt_sem_seg = PixelData(data=torch.randint(19, (1, TINY, TINY)))
        else:
            from mmpretrain.structures import DataSample

            sample = DataSample().set_gt_label(label)
        samples.append(sample)
    images = torch.randint(256, (2, 3, TINY, TINY), dtype=torch.uint8)
    return {"inputs": list(images), "data_samples": samples}


def test_necks_that_rescale_maps_stay_as_wide_as_the_maps():
    """As mmseg's recipes for ViT-B have it; a detector's pyramid keeps its own width."""
    cfg = recipe("seg/upernet_deit.py")
    cfg.model.backbone.arch = "deit_base"
    fit_channels(cfg)
    assert (cfg.model.neck.in_channels, cfg.model.neck.out_channels) == ([768] * 4, 768)
    assert (cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels) == ([768] * 4, 768)
    cfg = recipe("det/mask_rcnn_deit.py")
    cfg.model.backbone.arch = "deit_base"
    fit_channels(cfg)
    assert (cfg.model.neck.in_channels, cfg.model.neck.out_channels) == ([768], 256)
