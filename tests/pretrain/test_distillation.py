"""Losses of DeiT, SReT and DynamicViT against a teacher of any family, alone and under mixing methods."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from recipes import CONFIGS
from tiny_runs import small_scenes
from toys import TOYS

from mixtransfer.backbones.deit import VisionTransformer
from mixtransfer.backbones.mlp_mixer import MLPMixer
from mixtransfer.cli import run_command
from mixtransfer.errors import UserError
from mixtransfer.pretrain.classifier import MixingClassifier, smooth_one_hot, soft_cross_entropy
from mixtransfer.pretrain.distillation import DistilledClassifier, hard_loss, soft_loss


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """A student and teachers of three families, of other grids and channels."""
    for name, family in (("student", "deit"), ("mixer", "mlp_mixer")):
        cls = {"deit": VisionTransformer, "mlp_mixer": MLPMixer}[family]
        monkeypatch.setattr(cls, "archs", {**cls.archs, name: TOYS[family]})


def distilled(tmp_path, teacher="mixer", mixing=None, classes=5, **options):
    path = tmp_path / "teacher.pth"
    torch.manual_seed(1)
    torch.save(MixingClassifier(teacher, classes).state_dict(), path)
    net = DistilledClassifier(
        "student", classes, mixing=mixing, distill=dict(arch=teacher, checkpoint=str(path)), **options
    )
    net.init_weights()
    return net.train()


def test_the_losses_are_those_of_the_published_codes():
    logits, expected = torch.randn(6, 9).double(), torch.randn(6, 9).double()
    assert hard_loss(logits, expected) == pytest.approx(F.cross_entropy(logits, expected.argmax(1)).item())
    tau = 3.0
    pair = (F.log_softmax(logits / tau, dim=1), F.log_softmax(expected / tau, dim=1))
    deit = F.kl_div(*pair, reduction="sum", log_target=True) * tau**2 / logits.numel()
    assert soft_loss(logits, expected, tau, per_class=True) == pytest.approx(deit.item())
    dynamicvit = F.kl_div(
        F.log_softmax(logits, -1), F.log_softmax(expected, -1), reduction="batchmean", log_target=True
    )
    assert soft_loss(logits, expected, 1.0, per_class=False) == pytest.approx(dynamicvit.item())
    # SReT's cross-entropy with the teacher's distribution has the same gradient.
    logits.requires_grad_()
    sret = -(expected.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    ours = soft_loss(logits, expected, 1.0, per_class=False)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (sret, ours)))


def test_a_step_is_the_sum_that_the_options_say(tmp_path):
    net = distilled(tmp_path, "swin_micro", weight=0.3, temperature=2.0, token_weight=0.7)
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    made = net.loss(images, labels)
    losses = {name: value.item() for name, value in made.items()}
    logits = net.classify(images)[0]
    teacher = net.distill.net
    expected = teacher.classify(images)[0]
    assert losses["loss_class"] == pytest.approx(
        0.7 * soft_cross_entropy(logits, smooth_one_hot(labels, 5, 0.1)).item(), rel=1e-5
    )
    assert losses["loss_distill"] == pytest.approx(0.3 * soft_loss(logits, expected, 2.0, False).item(), rel=1e-5)
    own = net.backbone.embed_with_evidence(images, ("tokens",))["tokens"]
    theirs = teacher.backbone.embed_with_evidence(images, ("tokens",))["tokens"]
    mapped = torch.einsum("bdhw,ed->behw", own, net.token_map.weight) + net.token_map.bias[:, None, None]
    # 2 × 2 tokens of the teacher stand for 4 × 4 of the student.
    theirs = theirs.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert losses["loss_distill_tokens"] == pytest.approx(0.7 * F.mse_loss(mapped, theirs).item(), rel=1e-4)
    sum(made.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    assert all(p.grad is None for p in teacher.parameters())
    # The teacher is neither saved nor trained.
    assert not [key for key in net.state_dict() if "distill" in key] and not teacher.training


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(tmp_path):
    net = distilled(tmp_path, teacher="student", token_weight=0.5)
    net.load_state_dict(net.distill.net.state_dict())
    losses = net.eval().loss(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    assert net.token_map is None
    assert losses["loss_distill"].abs() < 1e-6 and losses["loss_distill_tokens"].abs() < 1e-9


@pytest.mark.parametrize("teacher", ["swin_micro", "mixer"])
@pytest.mark.parametrize("method", ["CutMix", "TLAlign", "TransMix", "SMMix", "MixPro"])
def test_any_method_and_the_teacher_of_any_family(method, teacher, tmp_path):
    net = distilled(tmp_path, teacher, dict(type=method), kind="hard", token_weight=0.5)
    losses = net.loss(torch.randn(4, 3, 64, 64), torch.arange(4))
    assert {"loss_class", "loss_distill", "loss_distill_tokens"} <= set(losses)
    total = sum(losses.values())
    total.backward()
    assert total.isfinite() and net.step == 1


def test_the_teacher_sees_the_mixed_images(tmp_path):
    net = distilled(tmp_path, mixing=dict(type="CutMix"))
    seen = []
    classify = net.distill.net.classify
    net.distill.net.classify = lambda images: seen.append(images) or classify(images)
    images = torch.randn(4, 3, 64, 64)
    net.loss(images, torch.arange(4))
    draw = net.mixing.draw(tuple(images.shape), net.cell_grid(images), 0)
    assert torch.equal(seen[0], draw.mix(images)) and not torch.equal(seen[0], images)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(kind="firm"), "unknown kind of distillation"),
        (dict(temperature=0.0), "temperature above 0"),
        (dict(weight=1.5), "weights from 0"),
        (dict(distill=dict(arch="deit_tiny")), "checkpoint"),
    ],
)
def test_what_makes_no_loss_is_one_line(options, text):
    with pytest.raises(UserError, match=text):
        DistilledClassifier("student", 5, **{"distill": dict(arch="mixer", checkpoint="x"), **options})


def test_a_config_trains_and_tests_with_two_entries_more(tmp_path):
    path = tmp_path / "teacher.pth"
    torch.save(MixingClassifier("swin_micro", 12).state_dict(), path)
    config = tmp_path / "distilled.py"
    config.write_text(
        f"_base_ = {str(CONFIGS / 'pretrain/swin_micro_scenes.py')!r}\n"
        "model = dict(type='mixtransfer.DistilledClassifier', token_weight=0.5,\n"
        f"    distill=dict(arch='swin_micro', checkpoint={str(path)!r}))\n"
        "train_dataloader = dict(batch_size=6, num_workers=0)\n"
        "train_cfg = dict(max_epochs=1)\n"
        "param_scheduler = []\n",
        encoding="utf-8",
    )
    argv = ["--data", str(small_scenes(tmp_path)), "--work-dir", str(tmp_path / "out")]
    assert run_command("train", [str(config), *argv]) == 0
    path.unlink()
    # A checkpoint brings all weights, and needs no teacher.
    assert run_command("test", [str(config), str(tmp_path / "out/epoch_1.pth"), *argv]) == 0
