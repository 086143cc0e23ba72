"""TokenMixHook on real segmentors and detectors: what the model is given, what is added, and when nothing is."""

import copy

import pytest
import torch
from hooked_models import (
    CLASSES,
    HALF,
    SIZE,
    Recorder,
    attach,
    det_batch,
    detector,
    runner_of,
    seg_batch,
    segmentor,
    step,
)
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import DefaultScope
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import nn

from mixtransfer.errors import UserError
from mixtransfer.registry import HOOKS
from mixtransfer.transfer import TokenMixHook
from mixtransfer.transfer.dense_mixing import class_map, ground_truth
from mixtransfer.transfer.token_loss import token_loss, token_shares


def copied(batch):
    return batch[0].clone(), copy.deepcopy(batch[1])


def label_maps(samples):
    return torch.stack([sample.gt_sem_seg.data[0] for sample in samples])


def test_images_and_label_maps_are_mixed_alike_and_the_batch_is_left_alone():
    model, batch = Recorder(), seg_batch(4)
    original = copied(batch)
    step(model, batch, attach(model))
    images, samples, features = model.given

    expected = torch.cat([original[0][..., :32], original[0].flip(0)[..., 32:]], dim=-1)
    assert torch.equal(images, expected)
    before = label_maps(original[1])
    assert torch.equal(label_maps(samples), torch.cat([before[..., :32], before.flip(0)[..., 32:]], dim=-1))
    assert isinstance(features, tuple) and all(isinstance(x, torch.Tensor) for x in features)
    assert torch.equal(batch[0], original[0]) and torch.equal(label_maps(batch[1]), before)
    assert all(new is not old for new, old in zip(samples, batch[1], strict=True))


def test_the_token_loss_is_that_of_the_mixed_ground_truth():
    model, batch = Recorder(), seg_batch(2)
    losses = step(model, batch, attach(model, loss_weight=0.25))
    images, samples, _ = model.given

    maps = label_maps(samples)
    logits = model.backbone.token_classifier.conv(model.backbone(images)[1]).log_softmax(dim=1)
    loss = mass = 0.0
    for b in range(2):
        for y in range(SIZE):
            for x in range(SIZE):
                if maps[b, y, x] != 255:
                    loss = loss - logits[b, maps[b, y, x], y // 8, x // 8]
                    mass += 1
    torch.testing.assert_close(losses["loss_token"], 0.25 * loss / mass)
    assert set(losses) == {"loss_head", "loss_token"}


def test_labels_travel_through_the_attention_of_the_mixed_images():
    model, batch = segmentor().train(), seg_batch(2)
    losses = step(model, batch, attach(model, loss_weight=1.0))
    mixed = torch.cat([batch[0][..., :32], batch[0].flip(0)[..., 32:]], dim=-1)
    maps = label_maps(batch[1])
    maps = torch.cat([maps[..., :32], maps.flip(0)[..., 32:]], dim=-1)
    shares, classes = token_shares(torch.where(maps == 255, -1, maps), 4, CLASSES)
    features, aligned = type(model.backbone).forward(model.backbone, mixed, shares)
    expected = token_loss(model.backbone.token_classifier(features), aligned[2:], classes)
    torch.testing.assert_close(losses["loss_token"], expected)
    pooled = [nn.functional.adaptive_avg_pool2d(shares, x.shape[-2:]) for x in aligned[2:]]
    assert not torch.isclose(expected, token_loss(model.backbone.token_classifier(features), pooled, classes))


def test_padding_is_neither_mixed_nor_labeled():
    model, (images, samples) = Recorder(), seg_batch(2)
    samples[0].set_metainfo(dict(img_shape=(40, 64)))
    samples[1].set_metainfo(dict(img_shape=(64, 48)))
    step(model, (images, samples), attach(model, dict(type="FixedRegion", start=0.0)))
    mixed, truth, _ = model.given
    both = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    both[:40, :48] = True
    assert torch.equal(mixed, torch.where(both, images.flip(0), images))
    assert torch.equal(label_maps(truth), torch.where(both, label_maps(samples).flip(0), label_maps(samples)))


def test_the_middle_image_of_an_odd_batch_takes_the_one_before_it():
    model, batch = Recorder(), seg_batch(3)
    step(model, batch, attach(model, dict(type="FixedRegion", start=0.0)))
    assert torch.equal(model.given[0], batch[0][[2, 0, 0]])


def test_a_batch_of_one_is_mixed_with_the_one_before_it():
    model = Recorder()
    hook = attach(model)
    first, second, third = seg_batch(1, seed=1), seg_batch(1, 48, 80, seed=2), seg_batch(1, seed=3)
    assert torch.equal(step(model, first, hook) and model.given[0], first[0])
    step(model, second, hook, 1)
    pasted = second[0].clone()
    pasted[..., 32:64] = first[0][..., :48, 32:64]
    assert torch.equal(model.given[0], pasted)
    # What is kept is the image as it was loaded.
    step(model, third, hook, 2)
    pasted = third[0].clone()
    pasted[..., :48, 32:] = second[0][..., 32:64]
    assert torch.equal(model.given[0], pasted)
    labels = label_maps(third[1])
    labels[:, :48, 32:] = label_maps(second[1])[..., 32:64]
    assert torch.equal(label_maps(model.given[1]), labels)


@pytest.mark.parametrize("kind", ["segmentation", "detection"])
def test_a_resumed_run_goes_on_with_the_image_before_it(kind, tmp_path):
    def batch(seed):
        return seg_batch(1, seed=seed) if kind == "segmentation" else det_batch((3,), seed=seed)

    model = Recorder()
    hook = attach(model, dict(type="TokenBox"), seed=3)
    losses = [step(model, batch(i), hook, i) for i in range(4)]
    again = attach(model, dict(type="TokenBox"), seed=3)
    hook.after_train(None)
    for i in range(2):
        step(model, batch(i), again, i)
    checkpoint = {}
    again.before_save_checkpoint(None, checkpoint)
    again.after_train(None)
    torch.save(checkpoint, tmp_path / "checkpoint.pth")

    resumed = TokenMixHook(dict(type="TokenBox"), prob=1.0, cell_size=8, seed=3)
    resumed.after_load_checkpoint(runner_of(model), torch.load(tmp_path / "checkpoint.pth", weights_only=True))
    resumed.before_train(runner_of(model))
    assert [step(model, batch(i), resumed, i) for i in (2, 3)] == losses[2:]


@pytest.mark.parametrize("place", [(), ("image",), ("truth",), ("truth", "valid"), ("truth", "maps", "gt_sem_seg")])
@pytest.mark.parametrize("value", [None, 3, "x", {}, (), (9, "x"), torch.ones(3), torch.full((3, 4, 4), torch.nan)])
def test_an_image_that_the_hook_does_not_write_is_refused(place, value):
    model, checkpoint = Recorder(), {}
    hook = attach(model, dict(type="TokenBox"), seed=3)
    step(model, seg_batch(1), hook, 0)
    hook.before_save_checkpoint(None, checkpoint)
    hook.after_load_checkpoint(runner_of(model), checkpoint)
    around, last = checkpoint, "token_mix_hook"
    for key in place:
        around, last = around[last], key
    around[last] = {"data": value} if last == "gt_sem_seg" else value
    with pytest.raises(UserError, match="no image with its ground truth"):
        hook.after_load_checkpoint(runner_of(model), checkpoint)


def test_draws_follow_from_seed_rank_and_iteration(monkeypatch):
    model, batch = Recorder(), seg_batch(2)

    def mixed(iteration, seed=0, run_seed=0):
        hook = attach(model, dict(type="TokenBox"), seed=seed)
        step(model, batch, hook, iteration, seed=run_seed)
        hook.after_train(None)
        return model.given[0]

    assert torch.equal(mixed(5), mixed(5))
    assert not torch.equal(mixed(5), mixed(6)) and not torch.equal(mixed(5), mixed(5, seed=1))
    assert not torch.equal(mixed(5), mixed(5, run_seed=1))
    here = mixed(5)
    monkeypatch.setattr("mixtransfer.transfer.token_mix_hook.get_rank", lambda: 1)
    assert not torch.equal(mixed(5), here)


def test_a_region_of_no_token_changes_nothing_and_one_of_all_swaps_the_images():
    model, batch = Recorder(), seg_batch(2)
    hook = attach(model, dict(type="FixedRegion", start=0.5, stop=0.5))
    plain = step(model, batch, hook)
    assert torch.equal(model.given[0], batch[0]) and model.given[1] == batch[1]
    hook.after_train(None)
    swapped = step(model, batch, attach(model, dict(type="FixedRegion", start=0.0)))
    assert torch.equal(model.given[0], batch[0].flip(0))
    torch.testing.assert_close(swapped["loss_token"], plain["loss_token"])


def test_unmixed_steps_train_the_tokens_too():
    model, batch = Recorder(), seg_batch(2)
    hook = attach(model, prob=1e-9)
    losses = step(model, batch, hook)
    assert model.given[0] is batch[0] and losses["loss_token"] > 0


def test_probability_zero_is_the_identity_bit_for_bit():
    model, batch = segmentor(), seg_batch(2)
    plain = step(model, batch)
    hook = attach(model, prob=0.0)
    hooked = step(model, batch, hook)
    assert plain.keys() == hooked.keys()
    assert all(torch.equal(plain[key], hooked[key]) for key in plain)
    assert not model._forward_pre_hooks and not model.backbone._forward_hooks


def test_nothing_changes_outside_training():
    model, batch = segmentor().eval(), seg_batch(2)
    metas = [dict(sample.metainfo, ori_shape=(SIZE, SIZE)) for sample in batch[1]]
    for sample, meta in zip(batch[1], metas, strict=True):
        sample.set_metainfo(meta)

    def outputs():
        with torch.no_grad():
            logits = model(*copied(batch), mode="tensor")
            predictions = [sample.seg_logits.data for sample in model(*copied(batch), mode="predict")]
            losses = model(*copied(batch), mode="loss")
        return [logits, *predictions, *losses.values()]

    plain = outputs()
    hook = attach(model)
    attached = outputs()
    hook.after_train(None)
    assert len(plain) == len(attached) and all(map(torch.equal, plain, attached))
    assert not model._forward_hooks and not model.backbone._forward_pre_hooks


def test_the_last_iterations_are_left_alone_but_for_a_loss_of_zero():
    model, batch = segmentor(), seg_batch(2)
    plain = step(model, batch)
    hook = attach(model, stop_iters=10)
    assert step(model, batch, hook, 89, 100)["loss_token"] > 0
    stopped = step(model, batch, hook, 90, 100)
    assert all(torch.equal(plain[key], stopped[key]) for key in plain)
    assert stopped["loss_token"] == 0
    sum(value for key, value in stopped.items() if "loss" in key).backward()
    assert all(p.grad is not None for p in model.backbone.token_classifier.parameters())


def test_a_batch_without_labels_has_token_loss_zero_and_gradients():
    model, (images, samples) = Recorder(), seg_batch(2)
    for sample in samples:
        sample.gt_sem_seg.data[:] = 255
    loss = step(model, (images, samples), attach(model))["loss_token"]
    loss.backward()
    assert loss == 0 and all(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.parametrize("options", [dict(), dict(with_cp=True), dict(drop_path_rate=0.3)])
def test_a_segmentor_trains_every_parameter(options):
    model = segmentor(**options)
    losses = step(model, seg_batch(2, 70, 90), attach(model, dict(type="TokenBox")))
    sum(value for key, value in losses.items() if "loss" in key).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_activation_checkpointing_changes_no_gradient():
    models = [segmentor(), segmentor(with_cp=True), segmentor()]
    turn_on_activation_checkpointing(models[2], "backbone.layers.0.blocks.1")
    gradients = []
    for model in models:
        model.load_state_dict(models[0].state_dict())
        losses = step(model, seg_batch(2), attach(model))
        (losses["loss_token"] + losses["decode.loss_ce"]).backward()
        gradients.append([p.grad for p in model.parameters()])
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", ["mask-rcnn_r50_fpn", "retinanet_r50_fpn"])
def test_detectors_train_every_parameter(name):
    # RetinaNet reads no map of stride 4.
    few = dict(out_indices=(1, 2, 3), token_classifier=dict(num_classes=CLASSES, stages=(2,)))
    model = detector(name, **(few if "retina" in name else {}))
    hook = attach(model)
    batches = [det_batch((2, 3), "mask" in name), det_batch((0, 2), "mask" in name), det_batch((1, 0, 4), True)]
    for i, batch in enumerate(batches):
        losses = step(model, batch, hook, i)
        assert losses["loss_token"] > 0
        total = sum(x.sum() for value in losses.values() for x in (value if isinstance(value, list) else [value]))
        total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_a_detectors_tokens_are_labeled_with_things_and_background():
    model, batch = Recorder(), det_batch((3, 2))
    losses = step(model, batch, attach(model, loss_weight=1.0))
    maps = torch.stack([class_map(ground_truth(s, (SIZE, SIZE)), (SIZE, SIZE), CLASSES, 255) for s in batch[1]])
    maps = torch.cat([maps[..., :32], maps.flip(0)[..., 32:]], dim=-1)
    shares, classes = token_shares(maps, 4, CLASSES)
    assert CLASSES - 1 in classes
    features = model.backbone(model.given[0])
    expected = token_loss(model.backbone.token_classifier(features), [nn.functional.avg_pool2d(shares, 2)], classes)
    torch.testing.assert_close(losses["loss_token"], expected)


def test_a_dropped_instance_keeps_its_pixels_class():
    sample = det_batch((1, 0))
    sample[1][0].gt_instances.bboxes[:] = torch.tensor([28, 0, 36, 64])
    bitmap = sample[1][0].gt_instances.masks.masks
    bitmap[:] = 0
    bitmap[0, :, 28:36] = 1
    model = Recorder()
    hook = attach(model, min_share=0.6)
    recorded = []
    original = hook._class_maps
    hook._class_maps = lambda *args: recorded.append(original(*args)) or recorded[-1]
    step(model, sample, hook)
    recorded = [torch.from_numpy(maps).long() - 1 for maps in recorded]
    assert [len(x.gt_instances) for x in model.given[1]] == [0, 0]
    assert (recorded[0][0, :, 28:36] != CLASSES - 1).all()


def test_without_token_loss_any_backbone_is_mixed():
    class Plain(nn.Module):
        def forward(self, images):
            return (images,)

    model, batch = Recorder(Plain()), seg_batch(2)
    losses = step(model, batch, attach(model, loss_weight=0.0))
    assert set(losses) == {"loss_head"}
    assert torch.equal(model.given[0][..., 32:], batch[0].flip(0)[..., 32:])


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_under_autocast_labels_and_loss_stay_float32(dtype):
    model, batch = segmentor(), seg_batch(2)
    hook = attach(model)
    full = step(model, batch, hook)["loss_token"]
    with torch.autocast("cpu", dtype=dtype):
        half = step(model, batch, hook)["loss_token"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.02, atol=0.02)


def test_a_compiled_training_step_has_the_same_losses():
    model, batch = Recorder(), seg_batch(2)
    hook = attach(model)
    plain = step(model, batch, hook)
    nodes = []

    def backend(graph, inputs):
        nodes.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(lambda: model(*batch, mode="loss"), backend=backend)
    compiled_losses = compiled()
    for key, value in plain.items():
        torch.testing.assert_close(compiled_losses[key], value)
    assert nn.functional.avg_pool2d in nodes  # the network was compiled, not left out


def test_distributed_training_misses_no_parameter(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, batch = Recorder(), seg_batch(2)
        wrapped = MMDistributedDataParallel(model)
        hook = attach(wrapped, stop_iters=2)
        # An unused parameter shows in the step after.
        for iteration in range(94, 100):
            losses = step(wrapped, batch, hook, iteration)
            (losses["loss_head"] + losses["loss_token"]).backward()
    finally:
        torch.distributed.destroy_process_group()


def test_training_twice_attaches_once():
    model, batch = Recorder(), seg_batch(2)
    hook = attach(model)
    once = step(model, batch, hook)
    hook.before_train(runner_of(model))
    assert step(model, batch, hook)["loss_token"] == once["loss_token"]
    assert len(model._forward_pre_hooks) == 1


def test_other_hooks_on_the_backbone_see_its_plain_maps():
    model, seen = Recorder(), []
    model.backbone.register_forward_hook(lambda module, args, output: seen.append(output))
    step(model, seg_batch(2), attach(model))
    assert [x.shape[1:] for x in seen[0]] == [(8, 16, 16), (8, 8, 8)]


def test_the_hook_is_built_from_a_config_in_any_scope():
    with DefaultScope.overwrite_default_scope("mmseg"):
        hook = HOOKS.build(
            dict(type="mixtransfer.TokenMixHook", region=dict(type="TokenBox", alpha=0.5), _scope_="mmseg")
        )
    assert hook.region.alpha == 0.5


def test_models_that_cannot_be_worked_on_are_named():
    with pytest.raises(UserError, match="Recorder has no backbone"):
        model = Recorder()
        del model.backbone
        attach(model)
    with pytest.raises(UserError, match=r"backbone Conv2d carries no token labels; use one of mixtransfer's"):
        attach(Recorder(nn.Conv2d(3, 3, 1)))
    with pytest.raises(UserError, match=r"give it token_classifier=dict\(num_classes=5, stages=\(3,\)\)"):
        attach(segmentor(token_classifier=None))
    with pytest.raises(UserError, match=r"num_classes=7, but the model's head needs 5"):
        attach(segmentor(token_classifier=dict(num_classes=7, stages=(3,))))
    with pytest.raises(UserError, match=r"num_classes=4, but the model's head needs 5 \(a detector's classes plus"):
        attach(detector("retinanet_r50_fpn", token_classifier=dict(num_classes=4, stages=(3,))))
    with pytest.raises(UserError, match="given dict"):
        step(model := Recorder(), ({}, []), attach(model))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(prob=2), "prob=2; give a probability"),
        (dict(cell_size=0), "cell_size=0"),
        (dict(min_share=-1), "min_share=-1"),
        (dict(stop_iters=-5), "stop_iters=-5"),
        (dict(loss_weight=-0.1), "loss_weight=-0.1"),
        (dict(min_pixels=-1), "min_pixels=-1"),
        (dict(seed=-1), "seed=-1"),
        (dict(region=dict(type="WholeImage")), "region WholeImage does not cut pixels out"),
        (dict(region=dict(type="Blob")), "unknown mixing region 'Blob'"),
    ],
)
def test_options_out_of_range_are_named(options, text):
    with pytest.raises(UserError, match=text):
        TokenMixHook(**{"region": HALF, **options})
