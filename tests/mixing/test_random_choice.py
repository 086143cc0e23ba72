"""The switch between Mixup and CutMix, and the region that draws one of several."""

import pytest
import torch

from mixtransfer.errors import UserError
from mixtransfer.mixing import Box, CutMix, MixupOrCutMix, PixelDraw, RandomChoice, TokenBox, WholeImage
from mixtransfer.mixing.draws import step_generator

SHAPE, GRID = (4, 3, 32, 48), (4, 6)


def draws(steps=400, **options):
    mixing = MixupOrCutMix(**options)
    return [mixing.draw(SHAPE, GRID, step) for step in range(steps)]


def test_each_step_mixes_by_one_of_the_two_as_often_as_asked():
    share = sum(isinstance(draw, PixelDraw) for draw in draws(switch_prob=0.8)) / 400
    # Binomial: 3.5 deviations around 0.8.
    assert share == pytest.approx(0.8, abs=0.07)
    assert not any(isinstance(draw, PixelDraw) for draw in draws(50, switch_prob=0.0))
    assert all(isinstance(draw, PixelDraw) for draw in draws(50, switch_prob=1.0))


def test_a_step_relabels_as_the_method_that_it_drew():
    mixing, images = MixupOrCutMix(), torch.rand(SHAPE)
    targets = torch.eye(4)
    for step in range(20):
        draw = mixing.draw(SHAPE, GRID, step)
        mixed, labels = mixing.apply(images, draw), mixing.relabel(targets, draw, {})
        own = draw.ratio.float()[:, None]
        torch.testing.assert_close(labels, own * targets + (1 - own) * targets.flip(0))
        if isinstance(draw, PixelDraw):
            torch.testing.assert_close(mixed, CutMix().apply(images, draw), rtol=0, atol=0)
        else:
            torch.testing.assert_close(
                mixed, own[..., None, None] * images + (1 - own[..., None, None]) * images.flip(0)
            )


def test_a_step_draws_the_same_in_whatever_order_steps_come():
    mixing, resumed = MixupOrCutMix(seed=3), MixupOrCutMix(seed=3)
    kept = [mixing.draw(SHAPE, GRID, step) for step in range(6)]
    for step in (4, 5, 0):
        found = resumed.draw(SHAPE, GRID, step)
        assert type(found) is type(kept[step]) and torch.equal(found.mask, kept[step].mask)


def test_regions_declare_what_their_members_do():
    assert RandomChoice([Box(), TokenBox()]).hard_mask
    assert not RandomChoice([dict(type="Box"), dict(type="WholeImage", alpha=0.8)]).hard_mask
    chosen = RandomChoice([WholeImage(), TokenBox()], [0, 2]).draw(SHAPE, GRID, step_generator(0, 0, 0))
    assert chosen.mask.dtype == torch.bool


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0]])
def test_weights_that_cannot_be_drawn_by(weights):
    with pytest.raises(UserError, match=r"RandomChoice: weights=.*give each of 2 regions a number from 0 up"):
        RandomChoice([Box(), TokenBox()], weights)


def test_a_switch_that_is_no_probability():
    with pytest.raises(UserError, match=r"switch_prob=1.5; give a probability from 0 to 1"):
        MixupOrCutMix(switch_prob=1.5)
