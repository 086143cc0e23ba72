"""SMMix: its published training steps, the squares that it pastes, its second head."""

import pytest
import torch
from parity_records import assert_matches, both_precisions, img_size, published_state, record, record_input, records
from published_steps import Step
from toys import build_toy

import mixtransfer
from mixtransfer.errors import UserError
from mixtransfer.mixing import AttendedSquare, FineGrained, SMMix, TokenBox
from mixtransfer.mixing.draws import step_generator
from mixtransfer.mixing.losses import soft_cross_entropy
from mixtransfer.mixing.smmix import PendingSquare, allowed_sides, place_square, square_scores
from mixtransfer.pretrain import DynamicClassifier
from mixtransfer.pretrain.classifier import region_means
from mixtransfer.transfer import TokenMixHook


@both_precisions
@pytest.mark.parametrize(("system", "name"), records("smmix train", lambda r: r["given"]["use_smmix"]))
def test_a_step_with_squares_equals_published(system, name, dtype, tolerance):
    step = Step(system, name, dtype, mixing=dict(type="SMMix"))
    given, net = step.given, step.net
    square = square_of_side(given["rectangle_size"][0], given["candidate_square_sides"])
    unmixed = net.collect_unmixed(step.images, step.labels, square)
    draw = square.resolve(unmixed)
    assert list(allowed_sides(given["side"], 0.25, 0.75)) == given["candidate_square_sides"]
    assert draw.mask.flatten(1).int().tolist() == given["source_mask"]
    mixed = net.mixing.apply(step.images, draw)
    seen = unmixed | net.collect(mixed, draw)
    target_region, source_region = seen["region_logits"].unbind(1)
    area = draw.ratio[:, None]
    scores = square_scores(unmixed["image_attention"], given["rectangle_size"][0])
    cells = draw.mask.flatten(1).nonzero()[:, 1].view(step.batch, -1)
    own = torch.arange(step.batch)[:, None] * draw.mask[0].numel()
    moved = cells + (draw.shift * torch.tensor([draw.mask.size(2), 1])).sum(1, keepdim=True)
    step.check(
        tolerance,
        unmixed_logits=unmixed["unmixed_logits"],
        image_attention=unmixed["image_attention"].flatten(1),
        region_scores=scores.flatten(1),
        min_region_window=scores.flatten(1).argmin(1),
        max_region_window=scores.flatten(1).argmax(1),
        min_region_token_index_into_flat_batch=(cells + own).flatten(),
        max_region_token_index_into_flat_flipped_batch=(moved + own).flatten(),
        lambda_area_of_target_image=draw.ratio[:1],
        source_mask=draw.mask.flatten(1),
        target_mask=~draw.mask.flatten(1),
        mixed_image=mixed,
        y_target=step.targets,
        y_source=step.targets.flip(0),
        target_area=net.mixing.relabel(step.targets, draw, seen),
        mixed_reference_logits=area * unmixed["unmixed_logits"] + (1 - area) * unmixed["unmixed_logits"].flip(0),
        logits=seen["logits"],
        target_region_logits=target_region,
        source_region_logits=source_region,
        loss_fine_target=soft_cross_entropy(target_region, step.targets)[None],
        loss_fine_source=soft_cross_entropy(source_region, step.targets.flip(0))[None],
    )
    step.replay(square)
    losses = net.loss(step.images, step.labels)
    sum(losses.values()).backward()
    step.check(
        tolerance,
        loss_cls=losses["loss_class"][None],
        loss_fine=losses["loss_fine"][None],
        loss_consistency=losses["loss_consistency"][None],
        loss=sum(losses.values())[None],
    )
    step.check_gradients(tolerance)


def square_of_side(side, allowed):
    return PendingSquare((allowed.index(side) + 0.5) / len(allowed), 0.25, 0.75)


@both_precisions
@pytest.mark.parametrize(("system", "name"), records("smmix train", lambda r: not r["given"]["use_smmix"]))
def test_a_step_of_mixup_equals_published(system, name, dtype, tolerance):
    step = Step(system, name, dtype, mixing=dict(type="SMMix"))
    draw = step.even_draw(step.given["lambda_drawn"])
    step.replay(draw)
    mixed = step.net.mixing.apply(step.images, draw)
    target = step.net.mixing.relabel(step.targets, draw, {})
    step.check(tolerance, mixed_image=mixed, target_area=target, logits=step.net.collect(mixed, draw)["logits"])
    losses = step.net.loss(step.images, step.labels)
    sum(losses.values()).backward()
    assert losses["loss_fine"] == losses["loss_consistency"] == 0
    step.check(tolerance, loss=losses["loss_class"][None])
    # Part of the graph for the sake of distributed training, but not trained.
    assert not step.net.region_head.weight.grad.any()
    step.check_gradients(tolerance)


@both_precisions
@pytest.mark.parametrize(("system", "name"), records("classify", lambda r: "image_attention" in r["outputs"]))
def test_the_attention_to_an_image_equals_published(system, name, dtype, tolerance):
    expected = record(system, name)
    arch, classes = expected["arch"], expected["outputs"]["logits"]["shape"][1]
    net = mixtransfer.build_classifier(arch, classes, backbone=img_size(expected)).to(dtype).eval()
    net.load_state_dict(mixtransfer.convert_state_dict(published_state(expected, dtype), arch))
    seen = net.backbone.embed_with_evidence(record_input(expected).to(dtype), ("image_attention",))
    found = seen["image_attention"].flatten(1)
    assert_matches(found, expected["outputs"]["image_attention"], tolerance, "attention")


@pytest.mark.parametrize(("batch", "grid", "side"), [(1, (2, 2), 1), (3, (5, 3), 2), (4, (7, 9), 5)])
def test_the_most_attended_square_covers_the_least_attended_one(batch, grid, side):
    """Pasted cell by cell, the way one would write it down."""
    attention = torch.rand(batch, *grid)
    images = torch.randn(batch, 2, 4 * grid[0], 4 * grid[1])
    before = images.clone()
    draw = place_square(attention, side)
    corners = [(r, c) for r in range(grid[0] - side + 1) for c in range(grid[1] - side + 1)]

    def mass(i, corner):
        return attention[i, corner[0] : corner[0] + side, corner[1] : corner[1] + side].sum()

    expected = images.clone()
    for i in range(batch):
        j = int(draw.partner[i])
        (r, c), (u, v) = min(corners, key=lambda at: mass(i, at)), max(corners, key=lambda at: mass(j, at))
        square = images[j, :, 4 * u : 4 * (u + side), 4 * v : 4 * (v + side)]
        expected[i, :, 4 * r : 4 * (r + side), 4 * c : 4 * (c + side)] = square
        assert draw.mask[i, r : r + side, c : c + side].all() and draw.mask[i].sum() == side**2
    assert torch.equal(SMMix().apply(images, draw), expected)
    assert torch.equal(images, before)
    assert draw.ratio.tolist() == [1 - side**2 / (grid[0] * grid[1])] * batch


@pytest.mark.parametrize("size", [(64, 64), (70, 101), (33, 17)])
def test_a_square_is_pasted_whole_where_tokens_do_not_divide_the_image(size):
    """Pixels of the partner come from the image itself, as many as the mask says."""
    images = torch.arange(2 * size[0] * size[1]).view(2, 1, *size).float()
    draw = place_square(torch.rand(2, 5, 7), 3)
    mixed, inside = draw.mix(images), draw.pixels(size)
    assert torch.equal(mixed[:, 0][~inside], images[:, 0][~inside])
    for i in range(2):
        values = mixed[i, 0][inside[i]]
        assert ((values // images[0].numel()) == 1 - i).all() and values.unique().numel() == values.numel()


def test_sides_are_from_a_quarter_to_three_quarters():
    assert list(allowed_sides(14, 0.25, 0.75)) == list(range(3, 11))
    assert list(allowed_sides(7, 0.25, 0.75)) == list(range(1, 6))
    assert list(allowed_sides(2, 0.25, 0.75)) == [1]
    region, sides = AttendedSquare(), set()
    for step in range(100):
        square = region.draw((2, 3, 64, 96), (4, 6), step_generator(0, 0, step))
        sides.add(int(square.resolve({"image_attention": torch.rand(2, 4, 6)}).mask[0].sum() ** 0.5))
    assert sides == {1, 2, 3}


def test_a_grid_of_one_token_is_not_mixed():
    draw = PendingSquare(0.5, 0.25, 0.75).resolve({"image_attention": torch.ones(2, 1, 1)})
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(SMMix().apply(images, draw), images)


def test_the_unmixed_pass_is_one_of_evaluation_and_leaves_the_network_as_it_was():
    net = mixtransfer.build_classifier("deit_tiny", 3, mixing=dict(type="SMMix"), backbone=dict(drop_path_rate=0.9))
    net.train()
    net.backbone.blocks[0].eval()
    modes = [module.training for module in net.modules()]
    images, square = torch.randn(2, 3, 64, 64), PendingSquare(0.5, 0.25, 0.75)
    state = torch.random.get_rng_state()
    first, second = (net.collect_unmixed(images, torch.tensor([0, 1]), square) for _ in range(2))
    assert torch.equal(first["unmixed_logits"], second["unmixed_logits"])
    torch.testing.assert_close(first["unmixed_logits"], net.eval()(images))
    net.train()
    net.backbone.blocks[0].eval()
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)


def test_region_means_are_over_either_sides_tokens():
    draw = place_square(torch.rand(2, 4, 4), 2)
    tokens = torch.randn(2, 5, 4, 4)
    own, pasted = region_means(tokens, draw).unbind(1)
    for i in range(2):
        torch.testing.assert_close(own[i], tokens[i][:, ~draw.mask[i]].mean(1))
        torch.testing.assert_close(pasted[i], tokens[i][:, draw.mask[i]].mean(1))


def test_a_region_of_no_token_has_no_loss():
    draw = TokenBox().draw_at(2, (4, 4), 1.0, (2, 2))
    logits, targets = torch.randn(2, 2, 3), torch.eye(3)[:2]
    evidence = {"region_logits": logits, "unmixed_logits": logits[:, 0], "logits": logits[:, 0]}
    losses = FineGrained().losses(targets, draw, evidence)
    torch.testing.assert_close(losses["loss_fine"], soft_cross_entropy(logits[:, 0], targets) / 2)
    assert losses["loss_consistency"].abs() < 1e-6


@pytest.mark.parametrize("switch_prob", [0.0, 1.0])
@pytest.mark.parametrize("family", ["deit", "cait", "pvt"])
def test_a_step_reaches_every_parameter_in_both_branches(family, switch_prob, monkeypatch):
    cls = type(build_toy(family)).__mro__[1]
    (toy,) = build_toy(family).archs.values()
    monkeypatch.setattr(cls, "archs", {**cls.archs, "toy": toy})
    mixing, backbone = dict(type="SMMix", switch_prob=switch_prob), dict(drop_path_rate=0.3)
    net = mixtransfer.build_classifier("toy", 3, mixing=mixing, backbone=backbone).train()
    losses = net.loss(torch.randn(5, 3, 75, 96), torch.tensor([0, 1, 2, 1, 0]))
    assert list(losses) == ["loss_class", "loss_fine", "loss_consistency"]
    sum(losses.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    assert all(value.isfinite() for value in losses.values())


def test_a_step_runs_in_half_precision():
    net = mixtransfer.build_classifier("deit_tiny", 3, mixing=dict(type="SMMix", switch_prob=1.0)).train()
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 1])
    full = net.loss(images, labels)
    net.step = 0
    with torch.autocast("cpu", torch.bfloat16):
        half = net.loss(images, labels)
    for name, value in full.items():
        torch.testing.assert_close(half[name].float(), value, rtol=0.02, atol=0.02)


def test_what_cannot_be_built_is_refused():
    with torch.device("meta"), pytest.raises(UserError, match=r"SMMix: needs image_attention, .* without attention"):
        mixtransfer.build_classifier("hornet_tiny_7x7", mixing=dict(type="SMMix"))
    with pytest.raises(UserError, match="rising shares above 0, below 1"):
        AttendedSquare(0.5, 1.0)
    with torch.device("meta"), pytest.raises(UserError, match="activation_map, which DynamicClassifier cannot collect"):
        DynamicClassifier("dynamicvit_deit_s_07", mixing=dict(type="TokenMix"))
    with pytest.raises(UserError, match="AttendedSquare does not cut pixels out by itself"):
        TokenMixHook(dict(type="AttendedSquare"))
