"""Which units have an effect other than 0: sign flips of cluster means, for a family that is named.

Under the hypothesis that a unit's cluster means lie symmetrically around 0, their signs are as good as
drawn. The signs of a cluster are flipped for all units at once, so that the units' dependence stays.

Symbols in shapes: K clusters, U units.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int
from scipy import stats

LEAST_FLIPS, MOST_FLIPS = 10_000, 100_000
ALPHA = 0.05
LEAST_CLUSTERS = 6  # of fewer, all the ways to flip give no p up to ALPHA
AT_ONCE = 8_000_000  # statistics in memory
EQUAL = 1 - 1e-9  # sums of the same numbers in another order


@dataclass(frozen=True)
class SignFlips:
    """Tests of a family of units.

    Attributes:
        p: two-sided, of each unit alone.
        family_wise: the same, adjusted by the maximum statistic, step-down (Westfall and Young 1993,
            algorithm 4.1): with .05, no unit at all is called wrongly in 95% of studies.
        rate: false discovery rate at which the unit is called (Benjamini and Hochberg 1995).
        flips: how many; `all_of_them`: every way to flip K clusters, none drawn.

    NaN where a unit's effect is 0 in every cluster, which needs no test, and where `resolves` says that the
    flips cannot tell.
    """

    p: Float64[np.ndarray, "U"]
    family_wise: Float64[np.ndarray, "U"]
    rate: Float64[np.ndarray, "U"]
    flips: int
    all_of_them: bool
    clusters: int
    tested: int

    @property
    def smallest(self) -> float:
        """The smallest p that so many flips can give."""
        return smallest_p(self.flips, self.all_of_them)

    def describe(self) -> str:
        """What the flips can resolve, in a sentence or two."""
        how = (f"all {self.flips:,} ways to flip the signs of {self.clusters} cluster means"
               if self.all_of_them else f"{self.flips:,} sign flips of {self.clusters} cluster means")
        lines = [f"family of {self.tested:,} units tested by {how}; the smallest possible p is "
                 f"{self.smallest:.2g}"]
        if self.smallest > ALPHA:
            lines.append(f"too few clusters to call any unit at {ALPHA}: p and q are not given")
        elif self.smallest > ALPHA / max(1, self.tested):
            needed = int(np.ceil(self.tested / ALPHA))
            lines.append(f"a false discovery rate needs {needed:,} flips: q is not given"
                         + (", and so few clusters have no more" if self.all_of_them else ""))
        return "; ".join(lines)


def smallest_p(flips: int, all_of_them: bool) -> float:
    """With drawn flips the observed signs count as one more."""
    return 1 / flips if all_of_them else 1 / (flips + 1)


def cluster_means(values: Float64[np.ndarray, "N U"], clusters: Int[np.ndarray, "N"],
                  ) -> Float64[np.ndarray, "K U"]:
    """Mean of the rows of each cluster; `clusters`: of the rows, as numbers, not necessarily without gaps."""
    _, number = np.unique(clusters, return_inverse=True)
    member = np.zeros((number.max(initial=-1) + 1, len(values)))
    member[number, np.arange(len(values))] = 1
    return (member @ values) / member.sum(axis=1, keepdims=True)


def enough_flips(units: int) -> int:
    """What a false discovery rate of a family needs, 20 per unit; without one where that is too many."""
    needed = int(np.ceil(units / ALPHA))
    return max(LEAST_FLIPS, needed) if needed <= MOST_FLIPS else LEAST_FLIPS


def sign_flips(means: Float64[np.ndarray, "K U"], flips: int | None = None, seed: int = 0) -> SignFlips:
    """Tests of every unit of a family.

    The statistic is the size of the sum of cluster means over the root of the sum of their squares, which
    orders flips as Student's t does.

    Args:
        means: of clusters; 0 where a cluster does not have a unit.
        flips: how many are drawn, by default `enough_flips`; where there are no more ways than that, all.
    """
    number, units = means.shape
    squares = np.sqrt((means ** 2).sum(axis=0))
    tested = np.flatnonzero(squares > 0)
    flips = enough_flips(len(tested)) if flips is None else flips
    # the first sign need not be flipped: the statistic has no sign
    all_of_them = number - 1 < 63 and 2 ** max(0, number - 1) <= flips
    flips = 2 ** max(0, number - 1) if all_of_them else flips
    scaled = means[:, tested] / squares[tested]
    observed = np.abs(scaled.sum(axis=0))
    order = np.argsort(-observed, kind="stable")
    alone, largest = np.zeros(len(tested)), np.zeros(len(tested))
    for signs in _signs(number, flips, all_of_them, max(1, AT_ONCE // max(1, len(tested))), seed):
        flipped = np.abs(signs @ scaled[:, order])
        alone += (flipped >= observed[order] * EQUAL).sum(axis=0)
        # of each unit and all that are weaker than it
        np.maximum.accumulate(flipped[:, ::-1], axis=1, out=flipped[:, ::-1])
        largest += (flipped >= observed[order] * EQUAL).sum(axis=0)
    counted, of = (0, flips) if all_of_them else (1, flips + 1)
    p, family_wise, rate = (np.full(units, np.nan) for _ in range(3))
    smallest = smallest_p(flips, all_of_them)
    if len(tested) and smallest <= ALPHA:
        p[tested[order]] = (alone + counted) / of
        family_wise[tested[order]] = np.maximum.accumulate((largest + counted) / of)
        if smallest <= ALPHA / len(tested):
            rate[tested] = stats.false_discovery_control(p[tested], method="bh")
    return SignFlips(p, family_wise, rate, flips, all_of_them, number, len(tested))


def _signs(clusters, flips, all_of_them, at_once, seed):
    """Arrays of signs [flips, clusters], some at a time; the first are the observed ones where it is all of
    them."""
    generator = np.random.default_rng(seed)
    for start in range(0, flips, at_once):
        size = min(at_once, flips - start)
        if all_of_them:
            bits = np.arange(start, start + size)[:, None] >> np.arange(clusters) & 1
        else:
            bits = generator.integers(0, 2, (size, clusters), np.int8)
        yield 1.0 - 2.0 * bits


def holm(p: Float64[np.ndarray, "U"]) -> Float64[np.ndarray, "U"]:
    """p values adjusted by Holm (1979), which needs no assumption on the units' dependence; NaN stays."""
    adjusted, known = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


def benjamini_yekutieli(p: Float64[np.ndarray, "U"]) -> Float64[np.ndarray, "U"]:
    """False discovery rates that hold whatever the units' dependence (2001), larger than `SignFlips.rate`;
    NaN stays. To call one unit of a family of m, they need 1 + 1/2 + ... + 1/m times as many flips."""
    rate, known = np.full(len(p), np.nan), ~np.isnan(p)
    rate[known] = stats.false_discovery_control(p[known], method="by")
    return rate
