"""Merged parameter groups: the settings of every parameter, and updates equal to those of one group each."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mixtransfer.backbones import SwinTransformer
from mixtransfer.errors import UserError

LR, DECAY = 1e-2, 0.1


class Model(nn.Module):
    def __init__(self, **backbone):
        super().__init__()
        self.backbone = SwinTransformer("swin_micro", token_classifier={"num_classes": 3, "stages": (3,)}, **backbone)
        self.decode_head = nn.Sequential(OrderedDict(conv=nn.Conv2d(256, 4, 1), bn=nn.BatchNorm2d(4)))


def build(model, optimizer=None, **paramwise):
    cfg = {
        "type": "OptimWrapper",
        "constructor": "mixtransfer.TransferOptimWrapperConstructor",
        "optimizer": {"type": "AdamW", "lr": LR, "weight_decay": DECAY, **(optimizer or {})},
        "paramwise_cfg": paramwise,
    }
    return build_optim_wrapper(model, cfg)


def settings(model, **paramwise):
    """Return parameter name -> (learning rate / LR, weight decay / DECAY)."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for group in build(model, **paramwise).optimizer.param_groups:
        for parameter in group["params"]:
            assert names[parameter] not in found
            found[names[parameter]] = (group["lr"] / LR, group["weight_decay"] / DECAY)
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    return found


BLOCK = "backbone.layers.1.blocks.1."


def test_the_dense_recipe_spares_norms_and_tables_of_the_backbone_only():
    found = settings(Model())
    assert found[BLOCK + "attn.qkv.weight"] == (1, 1)
    assert found[BLOCK + "attn.qkv.bias"] == (1, 1)
    assert found[BLOCK + "norm1.weight"] == found[BLOCK + "norm1.bias"] == (1, 0)
    assert found["backbone.patch_embed.norm.weight"] == found["backbone.norm3.bias"] == (1, 0)
    assert found[BLOCK + "attn.relative_position_bias_table"] == (1, 0)
    assert found["decode_head.bn.weight"] == found["decode_head.conv.bias"] == (1, 1)


def test_the_classifiers_recipe_decays_no_vector():
    found = settings(Model(), decay_biases=False)
    assert found[BLOCK + "attn.qkv.bias"] == found["decode_head.bn.weight"] == (1, 0)
    assert found[BLOCK + "attn.qkv.weight"] == (1, 1)


def test_norms_decay_when_asked_tables_never():
    found = settings(Model(), decay_norms=True)
    assert found[BLOCK + "norm1.weight"] == (1, 1)
    assert found[BLOCK + "attn.relative_position_bias_table"] == (1, 0)


def test_words_spare_what_has_them_in_its_name_and_nothing_else():
    found = settings(Model(), undecayed=["norm", "table"])
    assert found[BLOCK + "norm1.weight"] == found[BLOCK + "attn.relative_position_bias_table"] == (1, 0)
    assert found["decode_head.bn.weight"] == found[BLOCK + "attn.qkv.bias"] == (1, 1)
    assert {decay for _, decay in settings(Model(), undecayed=[]).values()} == {1}


def test_layers_counted_by_the_recipe_go_before_the_backbones():
    above = {"layers.1": 2, "layers.1.blocks.1": -1, "layers.1.blocks": 4, "norm3": 3}
    found = settings(Model(), layer_decay_rate=0.5, layers_above=above)
    assert found[BLOCK + "mlp.fc1.weight"][0] == 2
    assert found["backbone.layers.1.blocks.0.mlp.fc1.weight"][0] == 0.5**4
    assert found["backbone.layers.1.downsample.reduction.weight"][0] == 0.5**2
    assert found["backbone.norm3.weight"][0] == 0.5**3
    # Not named: as the backbone counts.
    assert found["backbone.patch_embed.proj.weight"][0] == 0.5**9
    assert found["decode_head.conv.weight"][0] == 1


@pytest.mark.parametrize("value", ["norm", [1], 3])
def test_words_must_be_a_list_of_words(value):
    with pytest.raises(UserError, match=r"paramwise_cfg\.undecayed=.*: give a list of words"):
        build(Model(), undecayed=value)


@pytest.mark.parametrize("value", [[1, 2], {"norm": "1"}, 3])
def test_layers_must_be_numbers_by_name(value):
    with pytest.raises(UserError, match=r"paramwise_cfg\.layers_above=.*: give a number of layers"):
        build(Model(), layer_decay_rate=0.5, layers_above=value)


def test_layer_decay_counts_blocks_from_the_top_and_heads_have_their_own_factor():
    found = settings(Model(), layer_decay_rate=0.5, head_lr_mult=10.0)
    assert found["backbone.norm3.weight"][0] == 1
    assert found["backbone.layers.3.blocks.1.mlp.fc1.weight"][0] == 0.5
    assert found[BLOCK + "mlp.fc1.weight"][0] == 0.5**5  # block 4 of 8
    assert found["backbone.patch_embed.proj.weight"][0] == 0.5**9
    assert found["decode_head.conv.weight"][0] == pytest.approx(10)
    assert found["backbone.token_classifier.heads.0.weight"][0] == pytest.approx(10)


def test_frozen_parameters_are_left_out_and_groups_are_few():
    model = Model(frozen_stages=1)
    assert "backbone.patch_embed.proj.weight" not in settings(model)
    assert len(build(model).optimizer.param_groups) == 2


def test_logged_rate_is_the_heads():
    groups = build(Model(), layer_decay_rate=0.5).optimizer.param_groups
    assert groups[0]["lr"] == LR == max(group["lr"] for group in groups)


@pytest.mark.parametrize("paramwise", [{}, {"layer_decay_rate": 0.9, "head_lr_mult": 3.0}])
def test_updates_equal_one_group_a_parameter_of_plain_adamw(paramwise):
    torch.set_default_dtype(torch.float64)
    ours, plain = Model(), Model()
    plain.load_state_dict(ours.state_dict())
    wanted = settings(ours, **paramwise)
    optimizer = build(ours, **paramwise).optimizer
    assert optimizer.param_groups[0]["fused"]
    reference = torch.optim.AdamW(
        [
            {"params": [p], "lr": LR * wanted[name][0], "weight_decay": DECAY * wanted[name][1]}
            for name, p in plain.named_parameters()
        ],
        foreach=False,
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


def test_a_chosen_implementation_is_kept():
    assert not build(Model(), {"foreach": True}).optimizer.param_groups[0]["fused"]


def test_unknown_settings_are_named():
    with pytest.raises(UserError, match=r"paramwise_cfg 'layer_decay'; did you mean layer_decay_rate"):
        build(Model(), layer_decay=0.9)


def test_layer_decay_needs_a_backbone_that_knows_its_layers():
    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    with pytest.raises(UserError, match="Linear cannot tell its layers"):
        build(model, layer_decay_rate=0.9)
