"""TokenMix: its published masks and training step, label maps, and the teacher that stands in for them."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample
from parity_records import assert_matches, both_precisions, evaluate, image, record, records
from published_steps import Step
from torchvision.ops import roi_align

import mixtransfer
from mixtransfer.errors import UserError
from mixtransfer.mixing import ActivationMap, Draw, RandomTokens, TokenBlocks, TokenMix
from mixtransfer.mixing.draws import flip_partner, own_share, step_generator
from mixtransfer.mixing.tokenmix import random_tokens, token_blocks, visible
from mixtransfer.pretrain.activation_maps import class_map, crop_map, teacher_map
from mixtransfer.pretrain.classifier import soft_cross_entropy

#: Recorded loss by the one that a record's gradients are of.
LOSSES = {"bce": "loss_bce_use_bce", "soft_ce": "loss_soft_ce"}
CASES = [(s, n, case) for s, n in records("tokenmix mix") for case in record(s, n)["given"]]


@pytest.mark.parametrize(("system", "name", "case"), CASES)
def test_masks_equal_published(system, name, case):
    expected = record(system, name)
    given, recorded = expected["given"][case], expected["outputs"][f"{case}.mask"]
    grid = tuple(recorded["shape"][-2:])
    count = TokenBlocks(given["lam"], given["mask_token_num_start"]).count(grid)
    assert count == given["requested_tokens"]
    if given["mask_type"] == "block":
        mask = token_blocks(grid, count, random.Random(given["seed_python_random"]))
    else:
        mask = random_tokens(grid, count, np.random.RandomState(given["seed_numpy"]))
    assert mask.sum() == given["masked_tokens"]
    assert_matches(mask[None, None], recorded, 0, "mask")
    assert_matches(own_share(mask[None], 1), expected["outputs"][f"{case}.lambda_from_mask"], 1e-12, "ratio")


def recorded_step(system, name, dtype):
    """Return a record's step, in whose classifier the loss is the one that the recorded gradients are of."""
    binary = record(system, name)["given"]["gradients_of"] == "bce"
    return Step(system, name, dtype, mixing=dict(type="TokenMix"), binary_loss=binary)


def label_maps(step):
    """Return the record's label maps, by its formulas, and crops."""
    spec = step.given["label_maps"]
    formula = SimpleNamespace(image=image)
    scores = evaluate(spec["values"], formula=formula, abs=torch.abs, H=spec["H"], W=spec["W"], B=step.batch)
    b, k, i, j = torch.meshgrid(*map(torch.arange, scores.shape), indexing="ij")
    classes = step.given["num_classes"]
    numbers = evaluate(spec["index"], labels=step.labels, num_classes=classes, b=b, k=k, i=i, j=j)
    maps = torch.stack([scores, numbers.double()], dim=1).to(step.images.dtype)
    return maps, torch.tensor(step.given["crops_top_left_height_width"], dtype=step.images.dtype)


@both_precisions
@pytest.mark.parametrize(("system", "name"), records("tokenmix train", lambda r: r["given"]["use_token_mix"]))
def test_a_step_with_blocks_equals_published(system, name, dtype, tolerance):
    step = recorded_step(system, name, dtype)
    net, grid = step.net, step.net.cell_grid(step.images)
    mask = torch.tensor(step.given["mask"]).view(1, *grid).bool()
    draw = Draw(flip_partner(step.batch), mask, own_share(mask, step.batch))
    maps, crops = label_maps(step)
    # The published crop exchanges rows and columns.
    fields = dict(label_map=maps, crop=crops[:, [1, 0, 3, 2]])
    evidence = net.collect_unmixed(step.images, step.labels, draw, fields)
    own = evidence["activation_map"]
    stays, comes = visible(own, draw)
    mixed = net.mixing.apply(step.images, draw)
    logits = net.collect(mixed, draw)["logits"]
    target = net.mixing.relabel(step.targets, draw, evidence)
    smoothing, classes = step.given["label_smoothing"], step.given["num_classes"]
    off = smoothing / 2 - smoothing / 2 / classes
    every = [torch.full_like(step.labels, number) for number in range(classes)]
    dense = torch.stack([class_map(maps, labels) for labels in every], dim=1)
    cropped = [crop_map(maps_of_one, fields["crop"], grid) for maps_of_one in dense.unbind(1)]
    step.check(
        tolerance,
        mixed_image=mixed,
        lambda_from_mask=draw.ratio[:1],
        dense_label_maps=dense,
        cropped_label_maps=torch.stack(cropped, dim=1),
        own_class_map=own / (own.sum(dim=(1, 2), keepdim=True) + 1e-8),
        weight_target=stays,
        weight_source=comes,
        on_value_target=stays - off,
        on_value_source=comes - off,
        target_sum_per_sample=target.sum(1),
        target_final=target,
        logits=logits,
        loss_soft_ce=soft_cross_entropy(logits, target)[None],
    )
    step.replay(draw)
    (loss,) = net.loss(step.images, step.labels, fields).values()
    loss.backward()
    step.check(tolerance, **{LOSSES[step.given["gradients_of"]]: loss[None]})
    step.check_gradients(tolerance)


@both_precisions
@pytest.mark.parametrize(("system", "name"), records("tokenmix train", lambda r: not r["given"]["use_token_mix"]))
def test_a_step_of_mixup_equals_published(system, name, dtype, tolerance):
    step = recorded_step(system, name, dtype)
    draw = step.even_draw(step.given["lambda_drawn_by_beta"])
    step.replay(draw)
    mixed = step.net.mixing.apply(step.images, draw)
    target = step.net.mixing.relabel(step.targets, draw, {})
    logits = step.net.collect(mixed, draw)["logits"]
    step.check(tolerance, mixed_image=mixed, target_final=target, logits=logits)
    step.check(tolerance, loss_soft_ce=soft_cross_entropy(logits, target)[None])
    # Steps of Mixup need no label map.
    (loss,) = step.net.loss(step.images, step.labels).values()
    loss.backward()
    step.check(tolerance, **{LOSSES[step.given["gradients_of"]]: loss[None]})
    step.check_gradients(tolerance)


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 9), (14, 14), (20, 11)])
@pytest.mark.parametrize("region", [TokenBlocks, RandomTokens])
def test_a_mask_has_at_most_what_is_asked_for_on_any_grid(region, grid):
    region = region(0.5, 2)
    for step in range(20):
        draw = region.draw((3, 3, 64, 64), grid, step_generator(0, 0, step))
        assert draw.mask.dtype == torch.bool and draw.mask.sum() <= region.count(grid)
        torch.testing.assert_close(draw.ratio, (1 - draw.mask.double().mean()).expand(3))
    assert draw.mask.any() or grid == (1, 1)


def test_what_is_drawn_follows_the_generator_alone():
    for region in (TokenBlocks(), RandomTokens()):
        first, same, other = (region.draw((2, 3, 224, 224), (14, 14), step_generator(s, 0, 0)).mask for s in (1, 1, 2))
        assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_label_weighs_what_is_visible_of_its_own_map():
    mask = torch.tensor([[[True, False], [False, False]]])
    draw = Draw(flip_partner(2), mask, own_share(mask, 2))
    activation = torch.tensor([[[3.0, 1], [0, 0]], [[2, 0], [2, 4]]])
    found = ActivationMap().relabel(torch.eye(3)[:2], draw, {"activation_map": activation})
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.25, 0.0], [0.75, 0.75, 0.0]]))


def test_equal_labels_add_up_and_a_coarser_map_is_weighed_by_area():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2, :3] = True
    draw = Draw(flip_partner(2), mask, own_share(mask, 2))
    activation = torch.tensor([[[1.0, 1], [1, 1]], [[4, 0], [0, 0]]])
    targets = torch.eye(3)[[1, 1]]
    found = ActivationMap().relabel(targets, draw, {"activation_map": activation})
    # Of the first image 1 − 6/16 stays, of its partner's map all comes; the other way round 0 and 6/16.
    torch.testing.assert_close(found, torch.tensor([[0, 1.625, 0], [0, 0.375, 0]]))


def test_a_crop_shows_its_own_part_of_the_map():
    maps = torch.arange(36.0).view(1, 6, 6)
    # The lower left quarter: rows 3 to 5, columns 0 to 2.
    found = crop_map(maps, torch.tensor([[0.5, 0.0, 0.5, 0.5]]), (3, 3))
    torch.testing.assert_close(found, maps[:, 3:, :3])
    whole = crop_map(maps, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), (6, 6))
    torch.testing.assert_close(whole, maps)
    boxes = torch.tensor([[0, 1.1, 0.7, 4.3, 5.2]])
    found = crop_map(maps, torch.tensor([[0.7, 1.1, 4.5, 3.2]]) / 6, (4, 4))
    torch.testing.assert_close(found, roi_align(maps[None], boxes, (4, 4), aligned=True)[0])


def test_a_class_named_twice_counts_by_its_last_rank():
    maps = torch.tensor([[[5.0, 4, 3], [7, 8, 7]]])[..., None, None]
    assert class_map(maps, torch.tensor([7])).item() == 3
    assert class_map(maps, torch.tensor([9])).item() == 0


def test_a_teacher_says_where_it_sees_the_class(tmp_path):
    teacher = mixtransfer.build_classifier("pvt_v2_b0", 4)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    config = dict(arch="pvt_v2_b0", checkpoint=str(tmp_path / "teacher.pth"))
    mixing = dict(type="TokenMix", switch_prob=1.0)
    net = mixtransfer.build_classifier("deit_tiny", 4, mixing=mixing, teacher=config, binary_loss=True).train()
    net.init_weights()
    images, labels = torch.randn(3, 3, 96, 64), torch.tensor([0, 3, 1])
    samples = [DataSample().set_gt_label(int(label)) for label in labels]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    losses = net(images, samples, mode="loss")
    sum(losses.values()).backward()
    assert losses["loss"].isfinite()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    # Neither trained nor saved, and the same one that was written.
    assert set(before) == set(net.state_dict()) and not any("teacher" in name for name in before)
    loaded = net.teacher.net
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in teacher.state_dict().items())
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    # The map's mean token has the teacher's logits, as its embedding is the mean of its tokens.
    found = net.activation_map(images, labels, None)
    with torch.no_grad():
        seen = loaded.backbone.embed_with_evidence(images, ("tokens",))
        torch.testing.assert_close(loaded.head(seen["tokens"].mean(dim=(2, 3))), loaded(images))
        one = loaded.head(seen["tokens"][1, :, 2, 1]).softmax(0)[3]
    torch.testing.assert_close(found[1, 2, 1], one)
    assert net.to(torch.float64).teacher.net.head.weight.dtype == torch.float64


def test_samples_bring_their_label_maps():
    net = mixtransfer.build_classifier("deit_tiny", 4, mixing=dict(type="TokenMix", switch_prob=1.0)).train()
    maps, crop = torch.rand(2, 5, 18, 18), torch.tensor([0.1, 0.2, 0.5, 0.5])
    samples = [DataSample(label_map=maps.round(), crop=crop).set_gt_label(label) for label in (0, 1)]
    assert net(torch.randn(2, 3, 64, 64), samples, mode="loss")["loss"].isfinite()
    with pytest.raises(UserError, match=r"algorithm_keys=\['label_map', 'crop'\]"):
        net(torch.randn(1, 3, 64, 64), [DataSample().set_gt_label(0)], mode="loss")


def test_the_map_of_a_teacher_is_a_probability():
    head = torch.nn.Linear(5, 3)
    found = sum(teacher_map({"tokens": torch.ones(1, 5, 2, 2)}, head, torch.tensor([k])) for k in range(3))
    torch.testing.assert_close(found, torch.ones(1, 2, 2))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(mixing=dict(type="CutMix"), teacher=dict(arch="pvt_v2_b0", checkpoint="x")), "leave it out"),
        (dict(mixing=dict(type="TokenMix"), teacher=dict(arch="pvt_v2_b0")), "give arch and checkpoint"),
        (dict(mixing=dict(type="TokenMix", ratio=1.5)), "ratio=1.5"),
        (dict(mixing=dict(type="TokenMix", switch_prob=-0.5)), "switch_prob=-0.5"),
    ],
)
def test_what_cannot_be_trained_is_refused_when_built(options, text):
    with torch.device("meta"), pytest.raises(UserError, match=text):
        mixtransfer.build_classifier("deit_tiny", **options)


def test_the_switch_is_between_mixup_and_blocks():
    mixing = TokenMix(switch_prob=0.2)
    pastes = sum(mixing.draw((2, 3, 64, 64), (4, 4), step).pastes for step in range(400)) / 400
    # Binomial: 3.5 deviations around 0.2.
    assert pastes == pytest.approx(0.2, abs=0.07)
