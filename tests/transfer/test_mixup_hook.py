"""MixupHook: images are blended where both are, and losses are those of the two label maps, weighted."""

from __future__ import annotations

import copy

import pytest
import torch
from hooked_models import CLASSES, SIZE, detector, runner_of, seg_batch, segmentor, step
from mmengine.registry import DefaultScope
from tiny_runs import ProbeHook, small_scenes, tiny_config, train

from mixtransfer.errors import UserError
from mixtransfer.mixing.draws import draw_beta, step_generator
from mixtransfer.registry import MODELS
from mixtransfer.transfer import MixupHook


def attached(model, **options):
    hook = MixupHook(**{"prob": 1.0, "alpha": 1.0, **options})
    hook.before_train(runner_of(model))
    return hook


def share(iteration, alpha=1.0):
    generator = step_generator(0, 0, iteration)
    torch.rand((), generator=generator)
    return draw_beta(alpha, generator)


@pytest.fixture(scope="module")
def model():
    return segmentor(token_classifier=None)


@pytest.mark.parametrize("batch", [2, 3])
def test_losses_are_those_of_both_label_maps_on_the_blended_images(model, batch):
    images, samples = seg_batch(batch)
    kept = images.clone(), copy.deepcopy(samples)
    hook = attached(model)
    losses = step(model, (images, samples), hook, iteration=3)
    hook.after_train(None)
    order, lam = ([1, 0], [2, 0, 0])[batch - 2], share(3)
    mixed = lam * images + (1 - lam) * images[order]
    # BatchNorm in training mode depends on the batch alone, and nothing else is random.
    own = step(model, (mixed, samples))
    other = step(model, (mixed, [samples[i] for i in order]))
    wanted = lam * own["decode.loss_ce"] + (1 - lam) * other["decode.loss_ce"]
    torch.testing.assert_close(losses["decode.loss_ce"], wanted)
    torch.testing.assert_close(losses["decode.acc_seg"], own["decode.acc_seg"])
    # The loader's samples are as they were.
    assert torch.equal(images, kept[0])
    assert all(torch.equal(a.gt_sem_seg.data, b.gt_sem_seg.data) for a, b in zip(samples, kept[1], strict=True))


def test_the_cross_entropy_is_that_of_the_mixed_label(model):
    """By brute force on the logits: −Σ of the mixed one-hot label times the logarithm, over all pixels."""
    images, samples = seg_batch(2)
    for sample in samples:
        sample.gt_sem_seg.data.clamp_(max=CLASSES - 1)
    hook = attached(model)
    seen = []
    handle = model.decode_head.conv_seg.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    loss = step(model, (images, samples), hook, iteration=1)["decode.loss_ce"]
    hook.after_train(None)
    handle.remove()
    logits = torch.nn.functional.interpolate(seen[0], (SIZE, SIZE), mode="bilinear", align_corners=False)
    one_hot = torch.stack([torch.eye(CLASSES)[s.gt_sem_seg.data[0]].permute(2, 0, 1) for s in samples])
    lam = share(1)
    label = lam * one_hot + (1 - lam) * one_hot.flip(0)
    torch.testing.assert_close(loss, -(label * logits.log_softmax(1)).sum(1).mean())


def test_padding_is_not_blended_and_ignored_in_the_partner_s_loss(model):
    images, samples = seg_batch(2)
    samples[1].set_metainfo(dict(img_shape=(SIZE, 40)))
    hook = attached(model)
    seen = []
    handle = model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    step(model, (images, samples), hook, iteration=2)
    lam, partners = hook._blend
    handle.remove()
    hook.after_train(None)
    assert torch.equal(seen[0][..., 40:], images[..., 40:])
    torch.testing.assert_close(seen[0][..., :40], (lam * images + (1 - lam) * images.flip(0))[..., :40])
    assert (partners[0].gt_sem_seg.data[..., 40:] == 255).all()
    assert torch.equal(partners[0].gt_sem_seg.data[..., :40], samples[1].gt_sem_seg.data[..., :40])


def test_our_segmentor_and_mmseg_s_have_the_same_losses():
    losses = []
    for kind in ("EncoderDecoder", "mixtransfer.EncoderDecoder"):
        torch.manual_seed(0)
        config = dict(
            type=kind,
            backbone=dict(type="mixtransfer.SwinTransformer", arch="swin_micro"),
            decode_head=dict(type="FCNHead", in_channels=256, in_index=3, channels=8, num_convs=1, num_classes=CLASSES,
                             dropout_ratio=0),
            auxiliary_head=[dict(type="FCNHead", in_channels=128, in_index=2, channels=8, num_convs=1,
                                 num_classes=CLASSES, dropout_ratio=0)],
            test_cfg=dict(mode="whole"),
        )  # fmt: skip
        with DefaultScope.overwrite_default_scope("mmseg"):
            net = MODELS.build(dict(config, _scope_="mmseg"))
        hook = attached(net)
        losses.append(step(net, seg_batch(2), hook, iteration=5))
        hook.after_train(None)
        plain = step(net, seg_batch(2))
        assert not torch.equal(plain["decode.loss_ce"], losses[-1]["decode.loss_ce"])
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name], rtol=1e-4, atol=1e-5)


def test_steps_that_do_not_mix_are_plain(model):
    batch = seg_batch(2)
    plain = step(model, batch)
    for options, iteration in ((dict(prob=0.0), 0), (dict(stop_iters=10), 95)):
        hook = attached(model, **options)
        losses = step(model, batch, hook, iteration=iteration)
        hook.after_train(None)
        assert all(torch.equal(losses[name], plain[name]) for name in plain)
    hook = attached(model)
    torch.testing.assert_close(step(model, seg_batch(1), hook), step(model, seg_batch(1)))
    hook.after_train(None)


def test_what_it_cannot_work_on_is_one_line():
    with pytest.raises(UserError, match="detectors take mmdet's MixUp"):
        MixupHook().before_train(runner_of(detector("retinanet_r50_fpn")))
    for options in (dict(alpha=0), dict(prob=2), dict(stop_iters=-1)):
        with pytest.raises(UserError, match="MixupHook: alpha="):
            MixupHook(**options)


def test_a_run_takes_it_from_the_command_line(tmp_path):
    ProbeHook.reset()
    config, data = tiny_config("seg", tmp_path), small_scenes(tmp_path)
    hooks = ("custom_hooks=[dict(type='mixtransfer.ProbeHook')]", "custom_hooks+=dict(type='mixtransfer.MixupHook')")
    short = ("train_cfg.max_iters=2", "train_cfg.val_interval=9", *hooks)
    assert train(config, data, tmp_path / "work", cfg_options=short) == 0
    assert len(ProbeHook.losses) == 2 and all(0 < losses["loss"] < 50 for losses in ProbeHook.losses)
