"""Every mixing method on every family: a training step that trains, or a refusal with its reason. And every pair."""

import itertools

import pytest
import torch
from toys import TOYS, build_toy

import mixtransfer
from mixtransfer.backbones import FAMILIES as EVERY_FAMILY
from mixtransfer.backbones.base import ATTENTION
from mixtransfer.errors import UserError
from mixtransfer.mixing import (
    ActivationMap,
    AlignedTokens,
    Area,
    AttendedSquare,
    AttentionWeighted,
    Box,
    Draw,
    FineGrained,
    FourierBlobs,
    GaussianBlobs,
    GridHoles,
    MaskedCells,
    Mixing,
    MixPro,
    ProgressiveAttention,
    RandomTokens,
    Region,
    ResizedImage,
    Target,
    TokenBlocks,
    TokenBox,
    WholeImage,
)
from mixtransfer.mixing.draws import flip_partner, own_share, step_generator
from mixtransfer.registry import MODELS

#: A pasting step of each method: those that switch to Mixup are told not to.
METHODS = {
    "Mixup": {},
    "CutMix": {},
    "MixupOrCutMix": {},
    "TLAlign": {},
    "TransMix": dict(switch_prob=1.0),
    "TokenMix": dict(switch_prob=1.0),
    "SMMix": dict(switch_prob=1.0),
    "MixPro": dict(switch_prob=1.0),
    "ResizeMix": {},
    "FMix": {},
    "GridMix": {},
    "CowMix": {},
}
ATTENTIVE = {"TransMix", "SMMix", "MixPro"}
#: The families of CONTRIBUTING's list; every row of a table is one of them.
FAMILIES = [family for family in TOYS if family != "posmlp/lrpe"]
WITHOUT_ATTENTION = {
    "hornet",
    "hire_mlp",
    "raft_mlp",
    "swin_mlp",
    "posmlp",
    "fcvit",
    "sequencer2d",
    "mlp_mixer",
    "convmixer",
    "convmixer/shared",
    "dynamicvit_convnext",
}
REGIONS = [
    AttendedSquare(),
    Box(),
    FourierBlobs(),
    GaussianBlobs(),
    GridHoles(),
    MaskedCells(side=1),
    RandomTokens(extra=0),
    ResizedImage(),
    TokenBlocks(extra=0),
    TokenBox(),
    WholeImage(),
]
#: Regions that follow ground truth, which classifiers have none of.
DENSE = {"ClassRegion", "InstanceRegion"}
TARGETS = [ActivationMap(), AlignedTokens(), Area(), AttentionWeighted(), FineGrained(), ProgressiveAttention()]
#: Fields of samples that bring their label maps, for four images.
MAPS = {
    "label_map": torch.stack([torch.rand(4, 3, 6, 6), torch.arange(3.0).view(3, 1, 1).expand(4, 3, 6, 6)], dim=1),
    "crop": torch.tensor([[0.1, 0.2, 0.5, 0.6]]).expand(4, -1),
}


@pytest.fixture
def classifier(monkeypatch):
    def build(family, mixing, **options):
        cls, toy = type(build_toy(family)).__mro__[1], TOYS[family]
        monkeypatch.setattr(cls, "archs", {**cls.archs, "toy": toy})
        return mixtransfer.build_classifier("toy", 3, mixing=mixing, **options).train()

    return build


def check_step(net):
    """Train for a step: losses are finite, and every parameter has a gradient."""
    losses = net.loss(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 1]), MAPS)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_lists_are_whole():
    """No cell of the tables is empty because its row or column is missing."""
    registered = {cls for cls in MODELS.module_dict.values() if cls.__module__.startswith("mixtransfer.mixing")}
    choice = {"Mixing", "RandomChoice"}
    assert set(METHODS) == {cls.__name__ for cls in registered if issubclass(cls, Mixing)} - choice
    regions, targets = ({type(part).__name__ for part in parts} for parts in (REGIONS, TARGETS))
    assert regions | DENSE == {cls.__name__ for cls in registered if issubclass(cls, Region)} - choice
    assert targets == {cls.__name__ for cls in registered if issubclass(cls, Target)}
    blind = {family for family in FAMILIES if not set(ATTENTION) <= set(build_toy(family).evidence)}
    assert blind == WITHOUT_ATTENTION
    assert {family.split("/")[0] for family in FAMILIES} == {cls.family for cls in EVERY_FAMILY}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_trains_a_family_or_says_why_not(family, classifier):
    torch.manual_seed(0)
    for method, options in METHODS.items():
        mixing = dict(type=method, **options)
        if method in ATTENTIVE and family in WITHOUT_ATTENTION:
            with pytest.raises(UserError, match=rf"mixing {method}: needs .*, a network without attention"):
                classifier(family, mixing)
        else:
            check_step(classifier(family, mixing, backbone=dict(drop_path_rate=0.3)))


@pytest.mark.parametrize("family", ["swin"])
@pytest.mark.parametrize(
    ("region", "target"), itertools.product(REGIONS, TARGETS), ids=lambda part: type(part).__name__
)
def test_any_region_goes_with_any_target(region, target, family, classifier):
    torch.manual_seed(0)
    net = classifier(family, dict(type="Mixing", region=region, target=target))
    check_step(net)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 1])
    mixed, draw, evidence = net.mixed(images, labels, MAPS)
    weights = net.mixing.relabel(torch.eye(4), draw, evidence)
    assert mixed.shape == images.shape and weights.isfinite().all()
    if not isinstance(target, ActivationMap) or not draw.pastes:
        torch.testing.assert_close(weights.sum(1), torch.ones(4))
    # What a label weighs beyond the two images that are mixed is nothing.
    both = torch.eye(4) + torch.eye(4)[draw.partner]
    assert (weights[both == 0] == 0).all()


@pytest.mark.parametrize("region", sorted(DENSE))
def test_a_region_that_follows_ground_truth_is_refused(region):
    mixing = dict(type="Mixing", region=dict(type=region), target=dict(type="Area"))
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=r"needs partner_.*, which MixingClassifier cannot collect"),
    ):
        mixtransfer.build_classifier("deit_tiny", mixing=mixing)


@pytest.mark.parametrize("region", REGIONS, ids=lambda region: type(region).__name__)
def test_what_a_region_shows_of_the_partner_is_what_the_label_map_says(region):
    """The share of each of the partner's tokens that is seen, by counting pixels that carry their own place."""
    torch.manual_seed(0)
    attention = {"image_attention": torch.rand(4, 4, 4)}
    for step in range(6):
        draw = region.draw((4, 3, 64, 64), (4, 4), step_generator(1, 0, step)).resolve(attention)
        if not draw.pastes:
            continue
        number = torch.arange(64 * 64.0).view(1, 1, 64, 64)
        images = torch.cat([number + 1e5 * i for i in range(4)]).double()
        mixed, shown = draw.mix(images), draw.shown((4, 4)).expand(4, -1, -1)
        for i in range(4):
            foreign = mixed[i, 0][(mixed[i, 0] - images[i, 0]).abs() > 0.5]
            if isinstance(region, ResizedImage):
                assert (shown[i] == float(draw.pixel_mask.any())).all()
                continue
            seen = torch.zeros(64 * 64, dtype=torch.float64)
            seen[(foreign - 1e5 * int(draw.partner[i])).long()] = 1
            counted = seen.view(4, 16, 4, 16).mean(dim=(1, 3))
            torch.testing.assert_close(shown[i], counted)


def test_progressive_attention_is_trusted_as_far_as_the_answer_fits():
    """MixPro's own share is s·attention + (1 − s)·area, with s the cosine of answer and label by area."""
    mask = torch.tensor([[[True, False], [False, False]]])
    draw = Draw(flip_partner(2), mask, own_share(mask, 2))
    targets, attention = torch.eye(2), torch.tensor([[[0.6, 0.1], [0.1, 0.0]], [[0.0, 0.5], [0.0, 0.0]]])
    logits = torch.tensor([[2.0, 0.5], [-1.0, 3.0]])
    evidence = {"class_attention": attention, "logits": logits, "targets": targets}
    found = ProgressiveAttention().relabel(targets, draw, evidence)
    area = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    for i, attended in enumerate((0.6 / 0.8, 0.0)):
        answer = logits[i].softmax(0)
        trust = float(area[i] @ answer / (area[i].norm() * answer.norm()))
        partner = trust * attended + (1 - trust) * 0.25
        torch.testing.assert_close(found[i, i], torch.tensor(1 - partner))
        torch.testing.assert_close(found[i, 1 - i], torch.tensor(partner))


def test_mixpro_weighs_cutmix_boxes_by_area():
    mixing = MixPro(switch_prob=0.0)
    draw = next(d for d in (mixing.draw((2, 3, 32, 32), (4, 4), step) for step in range(20)) if d.pastes)
    found = mixing.relabel(torch.eye(2), draw, {})
    torch.testing.assert_close(found[0], torch.stack([draw.ratio[0], 1 - draw.ratio[0]]).float())


@pytest.mark.parametrize("grid", [(14, 14), (7, 9), (1, 1)])
def test_masked_cells_are_squares_and_as_many_in_every_image(grid):
    for step in range(10):
        draw = MaskedCells(side=4).draw((5, 3, 64, 64), grid, step_generator(0, 0, step))
        assert draw.mask.shape == (5, *grid)
        corners = draw.mask[:, ::4, ::4]
        assert torch.equal(draw.mask, corners.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, : grid[0], : grid[1]])
        assert len(corners.sum(dim=(1, 2)).unique()) == 1
        torch.testing.assert_close(draw.ratio, 1 - draw.mask.double().mean(dim=(1, 2)))


def test_fourier_blobs_leave_the_brightest_share():
    shares = []
    for step in range(200):
        draw = FourierBlobs().draw((2, 3, 20, 31), (4, 6), step_generator(0, 0, step))
        shares.append(float(draw.ratio[0]))
        assert draw.pixel_mask.shape == (1, 20, 31)
    # Beta(1, 1) is even: mean 1/2, deviation 0.29.
    assert sum(shares) / 200 == pytest.approx(0.5, abs=0.08) and min(shares) < 0.05 and max(shares) > 0.95
    # Blobs and not noise: most neighbors are alike.
    alike = (draw.pixel_mask[:, 1:] == draw.pixel_mask[:, :-1]).double().mean()
    assert alike > 0.85


def test_gaussian_blobs_have_about_the_share_that_is_drawn():
    region = GaussianBlobs(share=(0.3, 0.3), width=(0.05, 0.05))
    draw = region.draw((64, 3, 48, 48), (3, 3), step_generator(0, 0, 0))
    assert draw.pixel_mask.shape == (64, 48, 48) and not torch.equal(draw.pixel_mask[0], draw.pixel_mask[1])
    assert float(draw.pixel_mask.double().mean()) == pytest.approx(0.3, abs=0.02)


def test_holes_of_a_grid_are_equal_and_in_equal_distances():
    for step in range(20):
        draw = GridHoles(cells=(3, 3)).draw((2, 3, 30, 60), (3, 6), step_generator(0, 0, step))
        rows, columns = draw.pixel_mask[0].any(dim=1), draw.pixel_mask[0].any(dim=0)
        assert torch.equal(draw.pixel_mask[0], rows[:, None] & columns)
        assert torch.equal(rows[10:], rows[:-10]) and torch.equal(columns[10:], columns[:-10])
        assert 1 <= int(rows[:10].sum()) <= 9


def test_a_resized_partner_is_whole():
    images = torch.stack([torch.zeros(3, 40, 60), torch.linspace(0, 1, 60).expand(3, 40, 60)]).double()
    for step in range(10):
        draw = ResizedImage((0.5, 0.5)).draw((2, 3, 40, 60), (4, 6), step_generator(0, 0, step))
        top, bottom, left, right = draw.box
        mixed = draw.mix(images)
        assert torch.equal(mixed[0, 0, ~draw.pixel_mask[0]], images[0, 0, ~draw.pixel_mask[0]])
        row = mixed[0, 0, top, left:right]
        # From the left border of the partner to its right one, however the box was cut.
        assert row[0] < 2.5 / (right - left) and row[-1] > 1 - 2.5 / (right - left)
        torch.testing.assert_close(mixed[0, 0, top], mixed[0, 0, bottom - 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: FourierBlobs(decay=-1), "FourierBlobs: alpha=1.0, decay=-1"),
        (lambda: GaussianBlobs(share=(0.5, 0.2)), "GaussianBlobs: share="),
        (lambda: GaussianBlobs(width=(0, 1)), "GaussianBlobs: width="),
        (lambda: GridHoles(cells=(0, 2)), "GridHoles: alpha=1.0, cells="),
        (lambda: MaskedCells(side=0), "MaskedCells: alpha=1.0, side=0"),
        (lambda: MixPro(switch_prob=2), "switch_prob=2"),
        (lambda: ResizedImage((0.5, 1.5)), "ResizedImage: scale="),
    ],
)
def test_numbers_out_of_range_are_named(build, text):
    with pytest.raises(UserError, match=text):
        build()
