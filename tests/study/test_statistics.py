"""Numbers that a study says: paired intervals, the visible difference by simulation, images drawn with multiplicity."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mixtransfer.evaluation.records import percentages
from mixtransfer.study.statistics import draws, paired, pixel_scores, summary, visible_difference


def test_the_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(50, 2, 6), rng.normal(49, 2, 6)
    found = paired(dict(enumerate(a)), dict(enumerate(b)))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(a - b)) and found.images is None


def test_only_common_seeds_are_compared_and_one_has_no_interval():
    found = paired({0: 1.0, 1: 3.0}, {1: 2.0, 5: 9.0})
    assert found.values == {1: 1.0} and found.low is None and found.visible is None
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert summary({3: 2.0}).seeds is None and summary({3: 2.0}).images is None


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_visible_difference_is_found_four_times_in_five(count):
    shift = visible_difference(2.0, count)
    found = np.random.default_rng(0).normal(shift, 2.0, (200_000, count))
    t = found.mean(1) / (found.std(1, ddof=1) / np.sqrt(count))
    assert np.mean(np.abs(t) > stats.t.ppf(0.975, count - 1)) == pytest.approx(0.8, abs=0.005)


def test_images_drawn_twice_count_twice():
    counts = np.random.default_rng(0).integers(1, 50, (4, 3, 3))
    counts[..., 1:] += counts[..., :1]
    times = np.array([[2, 0, 1, 1], [1, 1, 1, 1]])
    for metric in ("mIoU", "mAcc", "aAcc"):
        twice = percentages(np.concatenate([counts[[0, 0]], counts[2:]]).sum(0))[metric]
        assert pixel_scores(counts, times, metric) == pytest.approx([twice, percentages(counts.sum(0))[metric]])


def test_the_spread_over_images_is_that_of_other_images():
    """The bootstrap's deviation of a share comes near to the binomial one; drawing without multiplicity would not."""
    rng = np.random.default_rng(1)
    right = (rng.random(400) < 0.7).astype(int)
    counts = np.stack([np.stack([right, right, np.ones_like(right)], 1)], 1)
    drawn = pixel_scores(counts, draws(400), "aAcc")
    share = right.mean()
    assert drawn.std() == pytest.approx(100 * np.sqrt(share * (1 - share) / 400), rel=0.06)
    assert np.array_equal(draws(7), draws(7)) and (draws(7).sum(1) == 7).all()


def test_a_class_that_does_not_occur_has_no_part_in_the_mean():
    counts = np.array([[8, 10, 10], [0, 0, 0], [0, 4, 0]])
    found = percentages(counts)
    assert found["mIoU"] == pytest.approx(100 * (8 / 12 + 0) / 2) and found["mAcc"] == pytest.approx(80)
