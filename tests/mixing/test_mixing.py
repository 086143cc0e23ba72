"""Regions, targets and the methods made of them; TL-Align's mixer against its authors' numbers."""

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from parity_records import assert_matches, image, record, records
from toys import build_toy

from mixtransfer.errors import UserError
from mixtransfer.mixing import AlignedTokens, Area, Box, CutMix, Mixing, Mixup, Region, TLAlign, TokenBox, methods
from mixtransfer.mixing.draws import draw_beta, flip_partner, no_mix, step_generator
from mixtransfer.mixing.regions import box_at
from mixtransfer.pretrain import MixingClassifier
from mixtransfer.registry import build

METHODS = [Mixup, CutMix, TLAlign]
every_method = pytest.mark.parametrize("method", METHODS)


def one_hot(labels, classes, smoothing):
    rows = torch.full((len(labels), classes), smoothing / classes, dtype=torch.float64)
    return rows.scatter_(1, torch.tensor(labels)[:, None], 1 - smoothing + smoothing / classes)


def plain_mix(images, draw):
    """Mix pixel by pixel, the way one would write it down."""
    mixed = images.clone()
    share = draw.pixels(tuple(images.shape[-2:])).expand(len(images), -1, -1)
    for i in range(len(images)):
        for y in range(images.shape[2]):
            for x in range(images.shape[3]):
                s = float(share[i, y, x])
                mixed[i, :, y, x] = (1 - s) * images[i, :, y, x] + s * images[draw.partner[i], :, y, x]
    return mixed


@pytest.mark.parametrize(
    ("system", "name", "case"), [(s, n, case) for s, n in records("tlalign mix") for case in record(s, n)["given"]]
)
def test_tl_align_mixer_reproduces_the_published_numbers(system, name, case):
    published = record(system, name)
    given = published["given"][case]
    size = given["input"]
    images = image(size["height"], size["width"], size["batch"])
    grid = size["height"] // given["patch_size"], size["width"] // given["patch_size"]

    region = TokenBox()
    draw = region.draw_at(len(images), grid, given["lambda_drawn"], tuple(given["box_center_yx_tokens"]))
    targets = one_hot(given["labels"], given["num_classes"], given["label_smoothing"])
    share = draw.label_map(images).flatten(2).transpose(1, 2)
    tokens = (1 - share) * targets[:, None] + share * targets[draw.partner, None]

    top, bottom, left, right = given["box_tokens_yl_yh_xl_xh"]
    assert draw.mask[0].nonzero().min(0).values.tolist() == [top, left]
    assert draw.mask[0].nonzero().max(0).values.tolist() == [bottom - 1, right - 1]
    for name, value in {
        "mixed_image": region.apply(images, draw),
        "lambda_corrected": draw.ratio[:1],
        "mask": draw.mask.flatten().double(),
        "target_class_token": Area().relabel(targets, draw, {}),
        "target_patch_tokens": tokens,
    }.items():
        assert_matches(value, published["outputs"][f"{case}.{name}"], 1e-12, name)


@pytest.mark.parametrize(
    ("lam", "center", "box"),
    [
        (0.0, (5, 8), (0, 10, 0, 16)),  # the whole image
        (1.0, (5, 8), (5, 5, 8, 8)),  # nothing
        (0.75, (0, 0), (0, 2, 0, 4)),  # cut at the upper left
        (0.75, (9, 15), (7, 10, 11, 16)),  # cut at the lower right
        (0.75, (5, 8), (3, 7, 4, 12)),  # inside: half of each side, rounded down to even
    ],
)
def test_a_box_is_clipped_at_the_border(lam, center, box):
    assert box_at((10, 16), lam, center) == box


def test_partners_come_by_flip_and_the_middle_one_takes_the_image_before_it():
    assert flip_partner(4).tolist() == [3, 2, 1, 0]
    assert flip_partner(5).tolist() == [4, 3, 1, 1, 0]
    assert flip_partner(3).tolist() == [2, 0, 0]
    assert flip_partner(1).tolist() == [0]


@every_method
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_images_are_mixed_as_the_draw_says_and_the_input_is_left_alone(method, batch):
    images = torch.randn(batch, 2, 12, 20, dtype=torch.float64)
    before = images.clone()
    mixing = method(seed=3)
    for step in range(4):
        draw = mixing.draw(images.shape, (3, 5), step)
        torch.testing.assert_close(mixing.apply(images, draw), plain_mix(images, draw), rtol=0, atol=1e-15)
    assert torch.equal(images, before)


@every_method
def test_the_ratio_is_the_share_of_pixels_that_stayed(method):
    images = torch.zeros(2, 1, 12, 20, dtype=torch.float64)
    images[0] = 1
    mixing, seen = method(seed=1), set()
    for step in range(20):
        draw = mixing.draw(images.shape, (3, 5), step)
        mixed = mixing.apply(images, draw)
        torch.testing.assert_close(mixed[0].mean(), draw.ratio[0])
        torch.testing.assert_close(1 - draw.mask.double().mean(), draw.ratio[0])
        seen.add(round(draw.ratio[0].item(), 6))
    assert len(seen) > 5


def test_a_box_of_pixels_covers_tokens_in_part():
    draw = Box().draw((2, 3, 12, 20), (3, 5), step_generator(0, 0, 5))
    pixels = draw.pixels((12, 20))[0].double()
    for i in range(3):
        for j in range(5):
            assert draw.mask[0, i, j] == pixels[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean()
    assert 0 < draw.mask[draw.mask > 0].min() < 1


@every_method
def test_labels_keep_their_sum_and_weigh_by_ratio(method):
    targets = torch.rand(3, 7, dtype=torch.float64)
    mixing = method(seed=2)
    draw = mixing.draw((3, 3, 32, 32), (8, 8), 0)
    share = 1 - draw.ratio
    mixed = mixing.relabel(targets, draw, {"token_labels": share[:, None]})
    for i in range(3):
        j = int(draw.partner[i])
        torch.testing.assert_close(mixed[i], draw.ratio[i] * targets[i] + share[i] * targets[j])


@pytest.mark.parametrize("family", ["deit", "swin"])
def test_one_channel_of_shares_gives_the_label_that_all_classes_would(family):
    backbone = build_toy(family, with_embedding=True).double().eval()
    mixing = TLAlign(seed=4)
    images, targets = torch.randn(3, 3, 64, 64, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    draws = (mixing.draw(images.shape, (4, 4), step) for step in range(100))
    draw = next(draw for draw in draws if 0 < draw.ratio[0] < 1)
    mixed = mixing.apply(images, draw)
    share = draw.label_map(images)
    whole = (1 - share) * targets[:, :, None, None] + share * targets[draw.partner][:, :, None, None]

    _, evidence = backbone.embed(mixed, token_labels=share)
    _, expected = backbone.embed(mixed, token_labels=whole)

    relabeled = mixing.relabel(targets, draw, {"token_labels": evidence})
    torch.testing.assert_close(relabeled, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(relabeled, Area().relabel(targets, draw, {}))


@every_method
def test_probability_zero_is_the_identity_bit_for_bit(method):
    images = torch.randn(4, 3, 16, 16)
    images[0, 0, 0, :3] = torch.tensor([-0.0, float("nan"), float("inf")])
    mixing = method(prob=0.0)
    draw = mixing.draw(images.shape, (4, 4), 0)
    mixed = mixing.apply(images, draw)
    assert torch.equal(mixed.view(torch.int32), images.view(torch.int32))
    targets = torch.rand(4, 3)
    share = draw.label_map(images).mean(dim=(2, 3))
    assert torch.equal(mixing.relabel(targets, draw, {"token_labels": share}), targets)


def test_probability_is_the_frequency_of_mixing():
    mixing = Mixup(prob=0.3)
    mixed = sum(mixing.draw((2, 3, 8, 8), (2, 2), step).ratio[0].item() < 1 for step in range(1000))
    assert 250 < mixed < 350


@every_method
def test_a_draw_follows_from_seed_rank_and_step(method, monkeypatch):
    def ratios(seed, run_seed=0):
        mixing = method(seed=seed)
        mixing.run_seed = run_seed
        return [mixing.draw((2, 3, 64, 64), (16, 16), step).ratio[0].item() for step in range(10)]

    first, again, other_seed = ratios(1), ratios(1), ratios(2)
    assert first == again and len(set(first)) > 5
    assert other_seed != first
    assert ratios(1, run_seed=0) == first and ratios(1, run_seed=3) not in (first, other_seed)
    monkeypatch.setattr(methods, "get_rank", lambda: 1)
    assert ratios(1) not in (first, other_seed)


def test_drawing_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    for method in METHODS:
        method().draw((2, 3, 8, 8), (2, 2), 0)
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_beta_has_its_moments(alpha):
    draws = np.array([draw_beta(alpha, step_generator(0, 0, step)) for step in range(3000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(draws.mean() - 0.5) < 4 * np.sqrt(variance / 3000)
    assert abs(draws.var() - variance) < 0.1 * variance


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_stay_half_and_their_labels_do_not(method, dtype):
    images = torch.randn(2, 3, 16, 16).to(dtype)
    mixing = method(seed=7)
    draw = mixing.draw(images.shape, (4, 4), 0)
    mixed = mixing.apply(images, draw)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.double(), plain_mix(images.double(), draw), rtol=0, atol=0.05)
    assert draw.label_map(images).dtype == torch.float32


def test_any_region_goes_with_any_target_whatever_the_default_scope():
    with DefaultScope.overwrite_default_scope("mmseg"):
        mixing = build(
            dict(type="Mixing", region=dict(type="mixtransfer.Box", alpha=0.5), target=dict(type="AlignedTokens")),
            Mixing,
        )
    assert isinstance(mixing.region, Box) and isinstance(mixing.target, AlignedTokens)
    assert (mixing.region.alpha, mixing.needs) == (0.5, ("token_labels",))
    assert CutMix().needs == ()


def test_a_draw_can_take_the_whole_partner():
    images = torch.randn(2, 3, 8, 8)
    region = TokenBox()
    draw = region.draw_at(2, (2, 2), 0.0, (1, 1))
    assert draw.ratio.tolist() == [0, 0]
    assert torch.equal(region.apply(images, draw), images.flip(0))
    assert no_mix(2, (2, 2)).ratio.tolist() == [1, 1]


def test_numbers_of_a_classifier_out_of_range_are_named():
    for options in (dict(label_smoothing=1.0), dict(label_smoothing=-0.1), dict(cell_size=0)):
        ((name, value),) = options.items()
        with pytest.raises(UserError, match=f"^{name}={value}: give"):
            MixingClassifier("swin_micro", 3, **options)


def test_mistakes_in_a_config_are_named():
    with pytest.raises(UserError, match="unknown mixing region 'TokenBax'; did you mean TokenBox"):
        build(dict(type="TokenBax"), Region)
    with pytest.raises(UserError, match="unknown mixing region 'Area'"):
        build(dict(type="Area"), Region)
    with pytest.raises(UserError, match="unknown mixing method 'CutMixx'; did you mean CutMix"):
        build(dict(type="CutMixx"), Mixing)
    with pytest.raises(UserError, match="TLAlign: seed=-1"):
        TLAlign(seed=-1)
    with pytest.raises(UserError, match=r"TokenBox: alpha=0"):
        TLAlign(alpha=0)
    with pytest.raises(UserError, match=r"CutMix: prob=1.5"):
        CutMix(prob=1.5)
