"""TokenMixHook with every kind of head: Mask2Former and DINO by ``--token-mix``, and every region with each of five."""

from __future__ import annotations

import pytest
import torch
from hooked_models import CLASSES, HALF, attach, det_batch, detector, runner_of, seg_batch, segmentor, step
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope

from mixtransfer.engine.fit_channels import fit_channels
from mixtransfer.engine.mixing_options import use_token_mix
from mixtransfer.errors import UserError
from mixtransfer.transfer import TokenMixHook

#: Stock configs, made small by these entries.
CONFIGS = {
    "mask2former/mask2former_r50_8xb2-lsj-50e_coco": {
        "model.panoptic_head.num_queries": 10,
        "model.panoptic_head.pixel_decoder.encoder.num_layers": 1,
        "model.panoptic_head.transformer_decoder.num_layers": 1,
        "model.train_cfg.num_points": 64,
    },
    "dino/dino-4scale_r50_8xb2-12e_coco": {
        "model.num_queries": 10,
        "model.encoder.num_layers": 1,
        "model.decoder.num_layers": 1,
        "model.dn_cfg.group_cfg.num_dn_queries": 4,
    },
}


def small(name: str, region: str, **backbone) -> Config:
    cfg = get_config(f"mmdet::{name}.py")
    cfg.merge_from_dict(CONFIGS[name])
    cfg.model.pop("data_preprocessor")
    outputs = cfg.model.backbone.out_indices
    cfg.model.backbone = ConfigDict(
        type="mixtransfer.SwinTransformer", arch="swin_micro", out_indices=outputs, **backbone
    )
    use_token_mix(cfg, region, name)
    fit_channels(cfg)
    return cfg


def build(cfg: Config):
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(dict(cfg.model, _scope_="mmdet"))


@pytest.mark.long
@pytest.mark.parametrize("region", ["InstanceRegion", "TokenBox"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_is_mixed_and_trains_tokens_and_network(name, region):
    cfg = small(name, region)
    assert cfg.model.backbone.token_classifier.num_classes == 81
    model = build(cfg)
    (settings,) = (dict(hook) for hook in cfg.custom_hooks)
    settings.pop("type")
    hook = TokenMixHook(**{**settings, "prob": 1.0, "cell_size": 8, "min_pixels": 1})
    hook.before_train(runner_of(model))
    images, samples = det_batch()
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    losses = step(model, (images, samples), hook)
    assert losses["loss_token"] > 0
    total, _ = model.parse_losses(losses)
    total.backward()
    # Each image has pixels of its own and of its partner.
    own, other = ((seen[0] == source).all(dim=1).flatten(1).float().mean(dim=1) for source in (images, images.flip(0)))
    assert torch.allclose(own + other, torch.ones(2)) and (other > 0).any()
    assert all(p.grad is not None for p in model.backbone.token_classifier.parameters())
    assert model.backbone.patch_embed.proj.weight.grad.abs().sum() > 0


def test_a_classifier_of_other_classes_is_refused_in_mask2former():
    name = next(iter(CONFIGS))
    cfg = small(name, "TokenBox")
    assert cfg.model.panoptic_head.in_channels == [32, 64, 128, 256]
    assert cfg.model.panoptic_head.strides == [4, 8, 16, 32]
    cfg.model.backbone.token_classifier.num_classes = 7
    model = build(cfg)
    with pytest.raises(UserError, match="num_classes=7, but the model's head needs 81"):
        TokenMixHook(dict(type="TokenBox")).before_train(runner_of(model))


CELLS = ("TokenBox", "Box", "TokenBlocks", "RandomTokens", "MaskedCells", "FourierBlobs", "GaussianBlobs", "GridHoles")
#: One region only that follows ground truth, by what the head learns from.
FOLLOWING = {"seg": "ClassRegion", "det": "InstanceRegion"}
HEADS = {
    "fcn": ("seg", lambda: segmentor()),
    "mask_rcnn": ("det", lambda: detector("mask-rcnn_r50_fpn")),
    "retinanet": (
        "det",
        lambda: detector(
            "retinanet_r50_fpn", out_indices=(1, 2, 3), token_classifier=dict(num_classes=CLASSES, stages=(2,))
        ),
    ),
    "mask2former": ("det", lambda: build(small(next(iter(CONFIGS)), "TokenBox"))),
    "dino": ("det", lambda: build(small([*CONFIGS][1], "TokenBox"))),
}


@pytest.fixture(scope="module")
def models():
    return {}


@pytest.mark.long
@pytest.mark.parametrize("region", [*CELLS, "follows", "choice"])
@pytest.mark.parametrize("head", HEADS)
def test_every_region_trains_every_head(head, region, models):
    task, make = HEADS[head]
    model = models.get(head) or models.setdefault(head, make())
    settings = dict(type=FOLLOWING[task] if region == "follows" else region)
    if region == "choice":
        settings = dict(type="RandomChoice", regions=[dict(type="TokenBlocks"), dict(type=FOLLOWING[task]), HALF])
    images, samples = seg_batch(4) if task == "seg" else det_batch((2, 3, 1, 2))
    hook = attach(model, settings, min_pixels=1)
    seen = []
    handle = model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    losses = step(model, (images, samples), hook)
    handle.remove()
    hook.after_train(None)
    values = [x for value in losses.values() for x in (value if isinstance(value, list) else [value])]
    assert losses["loss_token"] > 0 and all(x.isfinite().all() for x in values)
    own, other = ((seen[0] == source).all(dim=1) for source in (images, images.flip(0)))
    assert (own | other).all() and other.any() and own.any()
