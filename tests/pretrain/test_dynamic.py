"""Sparsified networks train as published: loss terms, decisions and gradients; tokens are dropped as training says."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from parity_records import assert_matches, img_size, published_state, record, record_input, records, uniform
from published_steps import check_gradients
from tiny_runs import CONFIGS, small_scenes, train
from toys import TOYS, build_toy

from mixtransfer.backbones import backbone_class, dynamicvit
from mixtransfer.backbones.dynamicvit import DynamicViT
from mixtransfer.backbones.dynamicvit_convnext import DynamicConvNeXt
from mixtransfer.backbones.dynamicvit_swin import DynamicSwin
from mixtransfer.checkpoints.rename import convert_state_dict
from mixtransfer.errors import UserError
from mixtransfer.pretrain import DynamicClassifier
from mixtransfer.pretrain.classifier import smooth_one_hot
from mixtransfer.pretrain.dynamic import HoldPretrainedHook, token_distance


@pytest.fixture(autouse=True)
def toy_archs(monkeypatch):
    for family in (DynamicViT, DynamicSwin, DynamicConvNeXt):
        monkeypatch.setitem(family.archs, f"{family.family}_toy", TOYS[family.family])
    monkeypatch.setitem(DynamicViT.archs, "dynamicvit_lvvit_toy", TOYS["dynamicvit/lvvit"])


def save(path, net: DynamicClassifier) -> str:
    torch.save({"model": {key.removeprefix("backbone."): value for key, value in net.state_dict().items()}}, path)
    return str(path)


TINY = """
pipeline = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=64), dict(type="PackInputs")]
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=pipeline))
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2, val_interval=2)
"""


def recorded_noise(noise: list[dict]):
    """Return, call by call, the difference of the recorded Gumbel draws of keeping and dropping."""
    left = iter(noise)

    def draw(shape):
        entry = next(left)
        keep, drop = np.moveaxis(-np.log(-np.log(uniform(entry["key"], entry["shape"]))), entry["dim"], 0)
        return torch.from_numpy(keep - drop).view(shape)

    return draw


@pytest.mark.parametrize(("system", "name"), records("dynamicvit train"))
def test_training_step_equals_published(tmp_path, system, name):
    expected = record(system, name)
    given, outputs, arch = expected["given"], expected["outputs"], expected["arch"]
    settings, smoothing = given["loss"]["kwargs"], given["targets"]["smoothing"]
    state = published_state(expected)
    added = backbone_class(arch).added
    teacher = {key: value for key, value in state.items() if not any(part in key for part in added)}
    torch.save({"model": teacher}, tmp_path / "teacher.pth")
    net = DynamicClassifier(
        arch,
        outputs["logits"]["shape"][1],
        backbone=img_size(expected),
        teacher=dict(checkpoint=str(tmp_path / "teacher.pth")),
        label_smoothing=smoothing,
        **{key: settings[key] for key in ("ratio_weight", "distill_weight") if key in settings},
    )
    net.init_weights()
    net = net.double().train()
    net.load_state_dict(convert_state_dict(state, arch))
    # The published softmax over kept tokens adds an eps, which ours leaves out.
    tolerance = 1e-5 if net.backbone.drops_tokens else 1e-6

    images = record_input(expected)
    encoded = net.backbone.encode(images, noise=recorded_noise(given["noise"]))
    targets = smooth_one_hot(torch.tensor(given["targets"]["labels"]), net.num_classes, smoothing, torch.float64)
    losses = net.losses(images, encoded, targets)
    sum(losses.values()).backward()

    for number, decision in enumerate(encoded.decisions, 1):
        assert_matches(decision.view(outputs[f"decision{number}"]["shape"]), outputs[f"decision{number}"], 0)
    assert_matches(net.head(encoded.vector), outputs["logits"], tolerance, "logits")
    tokens = outputs.get("tokens", outputs.get("featmap"))
    assert_matches(encoded.tokens, tokens, tolerance, "tokens")
    predictors = len(encoded.decisions)
    terms = {
        "loss": sum(losses.values()),
        "loss_cls": losses["loss_class"],
        "loss_ratio_sum": losses["loss_ratio"] * predictors / settings["ratio_weight"],
        "loss_cls_kl": losses["loss_distill"] / net.distill_weight,
        "loss_token": losses["loss_token"] / net.distill_weight,
    }
    for key, value in terms.items():
        assert_matches(value, outputs[key], tolerance, key)
    check_gradients(net, outputs, tolerance)


def test_masked_attention_has_the_gradients_of_the_product():
    """The fused forward and its backward against A = e P / Σ e P, also for queries and keys that are hidden."""
    q, k, v = (torch.randn(2, 3, 7, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    keep = (torch.rand(2, 7) > 0.5).double()
    keep[0, 1], keep[1, 2] = 0, 1
    keep.requires_grad_()
    out = dynamicvit._MaskedAttention.apply(q, k, v, keep)
    own = torch.eye(7, dtype=torch.float64)
    policy = keep[:, None, None] + (1 - keep[:, None, None]) * own
    weights = (q @ k.transpose(-1, -2) / 8**0.5).exp() * policy
    plain = (weights / weights.sum(dim=-1, keepdim=True)) @ v
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-12)
    sides = torch.randn_like(out)
    found = torch.autograd.grad((out * sides).sum(), (q, k, v, keep))
    for a, b in zip(found, torch.autograd.grad((plain * sides).sum(), (q, k, v, keep)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_a_decision_far_below_a_hidden_key_stays_finite():
    q = torch.full((1, 1, 2, 4), 30.0, requires_grad=True)
    k = torch.tensor([[[[-30.0] * 4, [30.0] * 4]]]).requires_grad_()
    keep = torch.tensor([[1.0, 0.0]], requires_grad=True)
    dynamicvit._MaskedAttention.apply(q, k, torch.eye(2, 4).view(1, 1, 2, 4), keep).sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, keep))


@pytest.mark.parametrize("family", ["dynamicvit", "dynamicvit/lvvit"])
def test_dropping_tokens_equals_hiding_them(monkeypatch, family):
    """With the decisions of evaluation, the masked maps of training are those of the dropped tokens."""
    torch.manual_seed(0)
    net = build_toy(family, with_embedding=True).double()
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    images = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    labels = torch.rand(3, 2, 4, 6, dtype=torch.float64)
    net.eval()
    maps, aligned = net(images, labels)
    encoded = net.encode(images, labels)

    def best(score, noise):
        # Dropped tokens are scored too in training; those that the evaluation still has come first.
        present = left[-1] if left else torch.ones_like(score)
        count = max(int(score.size(1) * net.keep_ratios[len(left)]), 1)
        chosen = score.masked_fill(present == 0, -torch.inf).topk(count, dim=1).indices
        left.append(torch.zeros_like(score).scatter(1, chosen, 1.0))
        return left[-1]

    monkeypatch.setattr(dynamicvit, "decide", best)
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    left = []
    relaxed, moved = net(images, labels)
    for a, b in zip((*relaxed, *moved), (*maps, *aligned), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    assert [int(kept[0].sum()) for kept in left] == [int(24 * ratio) for ratio in net.keep_ratios]
    left = []
    hidden = net.encode(images, labels)
    torch.testing.assert_close(hidden.vector, encoded.vector, rtol=0, atol=1e-9)
    torch.testing.assert_close(hidden.label, encoded.label, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["dynamicvit", "dynamicvit_swin", "dynamicvit_convnext"])
def test_a_rate_of_one_is_the_network_before(family):
    """All weights of the plain network are the sparsified one's; with every position slow they compute the same."""
    sparse, plain = build_toy(family, keep_rate=0.999).eval(), build_toy(family, keep_rate=1.0).eval()
    result = plain.load_state_dict(sparse.state_dict(), strict=False)
    assert not result.missing_keys
    assert {key.split(".")[0] for key in result.unexpected_keys} <= {"score_predictor", "layers", "stages"}
    sparse.keep_ratios = (1.0,) * len(sparse.keep_ratios)
    images = torch.randn(2, 3, 64, 64)
    for a, b in zip(sparse(images), plain(images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="keep_rate=0"):
        build_toy(family, keep_rate=0.0)


@pytest.mark.parametrize("arch", ["dynamicvit_toy", "dynamicvit_lvvit_toy", "dynamicvit_swin_toy"])
def test_starts_from_its_teacher_and_learns_from_it(tmp_path, arch):
    torch.manual_seed(0)
    before = DynamicClassifier(arch, 5, backbone=dict(keep_rate=1.0))
    checkpoint = save(tmp_path / "teacher.pth", before)
    net = DynamicClassifier(arch, 5, teacher=dict(checkpoint=checkpoint), mixing=dict(type="CutMix"))
    net.init_weights()
    own = net.state_dict()
    assert all(torch.equal(own[key], value) for key, value in before.state_dict().items())
    assert not any(key.startswith("teacher") for key in own)
    images = torch.randn(2, 3, 64, 64)
    teacher = net.teacher.net
    torch.testing.assert_close(teacher(images), before.eval()(images), rtol=0, atol=1e-5)
    losses = net.train().loss(images, torch.tensor([1, 4]))
    assert set(losses) == {"loss_class", "loss_ratio", "loss_distill", "loss_token"}
    sum(losses.values()).backward()
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not teacher.training and all(p.grad is None for p in teacher.parameters())
    assert torch.equal(net.state_dict()["head.weight"], before.head.weight)


def test_a_teacher_without_all_weights_is_refused(tmp_path):
    before = DynamicClassifier("dynamicvit_lvvit_toy", 5, backbone=dict(keep_rate=1.0))
    del before.aux_head
    checkpoint = save(tmp_path / "teacher.pth", before)
    with pytest.raises(UserError, match=r"2 missing: aux_head\.weight, aux_head\.bias"):
        DynamicClassifier("dynamicvit_lvvit_toy", 5, teacher=dict(checkpoint=checkpoint)).init_weights()
    with pytest.raises(UserError, match="missing"):
        DynamicClassifier("dynamicvit_swin_toy", 5, teacher=dict(checkpoint=checkpoint)).init_weights()
    with pytest.raises(UserError, match="sparsified"):
        DynamicClassifier("deit_tiny")
    with pytest.raises(UserError, match="give checkpoint, and source or trust if needed"):
        DynamicClassifier("dynamicvit_toy", 5, teacher=dict(arch="deit_tiny", checkpoint=checkpoint))


def test_nothing_kept_costs_no_token_loss():
    tokens = torch.randn(2, 3, 4, requires_grad=True)
    loss = token_distance(tokens, torch.randn(2, 3, 4), torch.zeros(2, 3))
    loss.backward()
    assert loss == 0 and not tokens.grad.any()


def test_decisions_follow_the_number_of_the_step():
    net = DynamicClassifier("dynamicvit_toy", 3).train()
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    losses = []
    for step in (3, None, 3):
        net.step = net.step if step is None else step
        losses.append(net.loss(images, labels)["loss_ratio"].item())
    assert net.step == 4
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("arch", ["dynamicvit_toy", "dynamicvit_swin_toy", "dynamicvit_convnext_toy"])
def test_only_new_layers_move_at_first_and_at_full_rate(arch):
    net = DynamicClassifier(arch, 3)
    settings = dict(
        optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.05),
        constructor="mixtransfer.DynamicOptimWrapperConstructor",
    )
    wrapper = build_optim_wrapper(net, {**settings, "paramwise_cfg": dict(pretrained_lr_mult=0.01)})
    hook = HoldPretrainedHook(epochs=2)
    moved = {}
    for epoch in (1, 2):
        runner = SimpleNamespace(epoch=epoch, optim_wrapper=wrapper)
        before = copy.deepcopy(dict(net.named_parameters()))
        hook.before_train_iter(runner, 0)
        wrapper.update_params(sum(net.train().loss(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])).values()))
        hook.after_train_iter(runner, 0)
        moved[epoch] = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    new = {name for name in before if any(f".{part}" in name for part in net.backbone.added)}
    assert new and moved[1] <= new
    assert {"head.weight", "backbone.norm.weight"} < moved[2]
    assert not {"backbone.cls_token", "backbone.pos_embed"} & moved[2]
    assert sorted({group["lr"] for group in wrapper.param_groups}) == [pytest.approx(1e-4), pytest.approx(1e-2)]
    with pytest.raises(UserError, match="pretrained_lr_mult=1"):
        build_optim_wrapper(net, {**settings, "paramwise_cfg": dict(pretrained_lr_mult=1)})


@pytest.mark.parametrize("family", ["dynamicvit", "dynamicvit_swin", "dynamicvit_convnext"])
def test_the_recipe_trains_on_scenes(tmp_path, family):
    """A run of two epochs, in which the pretrained layers are held; what it saves is the student alone."""
    before = DynamicClassifier(f"{family}_toy", 12, backbone=dict(keep_rate=1.0))
    model = dict(arch=f"{family}_toy", num_classes=12, teacher=dict(checkpoint=save(tmp_path / "teacher.pth", before)))
    config = tmp_path / "tiny.py"
    recipe = str(CONFIGS / "pretrain" / f"{family}.py")
    config.write_text(f"_base_ = {recipe!r}\nmodel = {model!r}\n{TINY}", encoding="utf-8")
    assert train(config, small_scenes(tmp_path), tmp_path / "run") == 0
    saved = torch.load(tmp_path / "run" / "epoch_2.pth", weights_only=False)["state_dict"]
    student = DynamicClassifier(f"{family}_toy", 12)
    student.load_state_dict(saved)
    weights = dict(student.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in before.named_parameters())
    new = {name for name in weights if any(f".{part}" in name for part in student.backbone.added)}
    assert weights.keys() - dict(before.named_parameters()).keys() == new
