"""Statistics of a study: two spreads that are never merged, and differences paired by seed.

*Between seeds*: the standard deviation over trainings that differ in the seed. *Over images*: the bootstrap's, images
drawn with replacement and the metric computed anew from what was counted in them (Efron and Tibshirani, An Introduction
to the Bootstrap, 1993, section 6). The first is about training again, the second about testing on other images of the
same kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

__all__ = ["Difference", "Summary", "draws", "paired", "pixel_scores", "summary", "visible_difference"]

#: Draws of the bootstrap, and the seed of their generator: the same records give the same interval.
REPLICATES, SEED = 2000, 0
#: Level of tests and intervals, and how often a difference is to be found that is said to be visible.
LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Summary:
    """Trainings that differ in the seed.

    Attributes:
        mean: over the seeds.
        seeds: the standard deviation between seeds; None of one.
        images: the standard deviation over images of the mean; None where images were not counted.
        values: the metric by seed.
    """

    mean: float
    seeds: float | None
    images: float | None
    values: Mapping[int, float]


@dataclass(frozen=True)
class Difference:
    """The mean difference of trainings with the same seeds.

    Attributes:
        mean: of the differences, seed by seed.
        low, high: its t interval; None of one seed.
        visible: the true difference that as many seeds show four times in five; None of one seed.
        images: the bootstrap's interval over images, low and high; None where images were not counted.
        values: the difference by seed.
    """

    mean: float
    low: float | None
    high: float | None
    visible: float | None
    images: tuple[float, float] | None
    values: Mapping[int, float]


def summary(values: Mapping[int, float], drawn: np.ndarray | None = None) -> Summary:
    """Summarize a metric by seed; ``drawn`` is its mean over seeds in every draw of the bootstrap."""
    found = np.array(list(values.values()))
    deviation = float(found.std(ddof=1)) if len(found) > 1 else None
    images = None if drawn is None else float(drawn.std(ddof=1))
    return Summary(float(found.mean()), deviation, images, dict(values))


def paired(
    values: Mapping[int, float],
    reference: Mapping[int, float],
    drawn: tuple[np.ndarray, np.ndarray] | None = None,
) -> Difference | None:
    """Compare trainings with the reference's of the same seeds; None where no seed is in both.

    Args:
        values, reference: the metric by seed.
        drawn: the mean over these seeds in every draw of the bootstrap, of both, with the same images drawn.
    """
    both = {seed: values[seed] - reference[seed] for seed in sorted(set(values) & set(reference))}
    if not both:
        return None
    found = np.array(list(both.values()))
    images = None
    if drawn is not None:
        low, high = np.quantile(drawn[0] - drawn[1], (LEVEL / 2, 1 - LEVEL / 2))
        images = float(low), float(high)
    mean, count = float(found.mean()), len(found)
    if count == 1:
        return Difference(mean, None, None, None, images, both)
    deviation = float(found.std(ddof=1))
    half = float(stats.t.ppf(1 - LEVEL / 2, count - 1)) * deviation / math.sqrt(count)
    return Difference(mean, mean - half, mean + half, visible_difference(deviation, count), images, both)


def visible_difference(deviation: float, count: int) -> float:
    """Return the true mean difference that a paired t test at :data:`LEVEL` finds with probability :data:`POWER`.

    Args:
        deviation: the standard deviation of the differences, taken as known.
        count: of pairs, from 2.
    """
    if deviation == 0:
        return 0.0
    freedom = count - 1
    critical = stats.t.ppf(1 - LEVEL / 2, freedom)

    def missing(shift: float) -> float:
        # The other side's share is nothing long before it cannot be computed.
        other = stats.nct.cdf(-critical, freedom, shift) if shift < 5 else 0.0
        return float(stats.nct.sf(critical, freedom, shift) + other) - POWER

    most = 1.0
    while missing(most) < 0:
        most *= 2
    return float(optimize.brentq(missing, 0.0, most)) * deviation / math.sqrt(count)


def draws(images: int) -> np.ndarray:
    """Return how often each image is drawn, (draws, images); the same for every training on as many."""
    rng = np.random.default_rng(SEED)
    return rng.multinomial(images, np.full(images, 1 / images), size=REPLICATES)


def pixel_scores(counts: np.ndarray, times: np.ndarray, metric: str) -> np.ndarray:
    """Return a segmentor's metric, in percent, in every draw.

    Args:
        counts: (images, K, 3), the pixels [right, predicted, labeled] of each class.
        times: from :func:`draws`.
        metric: "mIoU", "mAcc" or "aAcc".
    """
    total = np.tensordot(times, counts, axes=(1, 0)).astype(np.float64)
    right, predicted, labeled = np.moveaxis(total, 2, 0)
    if metric == "aAcc":
        return 100 * right.sum(1) / labeled.sum(1)
    below = labeled if metric == "mAcc" else predicted + labeled - right
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * np.nanmean(np.where(below > 0, right / below, np.nan), axis=1)


def order(values: Sequence[float]) -> tuple[int, ...]:
    """Return the places of values, the largest first."""
    return tuple(sorted(range(len(values)), key=lambda k: -values[k]))
