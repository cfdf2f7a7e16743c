"""How stable a map of units is: ranks and top-k sets under the bootstrap, halves of the clusters, and what a
selection promises on stimuli that it was not made on.

Units are ordered by the size of their mean effect, log odds ratio. Symbols in shapes: N rows, U units, D
draws.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from mediation.effects.resampling import Resampling, interval
from mediation.effects.sign_flips import cluster_means

ROUNDING = 1e-5  # log odds: about what float32 leaves of a difference of equal numbers
SPLITS = 100
AT_ONCE = 250_000  # ranks in memory
TOP = 10


@dataclass(frozen=True)
class Ranks:
    """Ranks of units, 1 the strongest; those that are equal to five decimals (`ROUNDING`) share the first of
    their ranks.

    `low`, `high`: 95% interval over draws; `in_top`: share of draws in which the unit is among the `top`
    strongest; `jaccard`: of a draw's top set and the observed one, mean over draws.
    """

    rank: Int[np.ndarray, "U"]
    low: Float64[np.ndarray, "U"]
    high: Float64[np.ndarray, "U"]
    in_top: Float64[np.ndarray, "U"]
    jaccard: float
    top: int


def ranks(means: Float64[np.ndarray, "U"], draws: Float64[np.ndarray, "D U"], top: int = TOP) -> Ranks:
    """Of observed means, and of the means in every draw."""
    top, rank, drawn = min(top, len(means)), _ranked(means[None])[0], np.empty(draws.shape, np.int32)
    step = max(1, AT_ONCE // max(1, len(means)))
    for start in range(0, len(draws), step):
        drawn[start:start + step] = _ranked(draws[start:start + step])
    in_top, observed = drawn <= top, rank <= top
    low, high = interval(drawn)
    shared, either = (in_top & observed).sum(axis=1), (in_top | observed).sum(axis=1)
    return Ranks(rank, low, high, in_top.mean(axis=0), float((shared / either).mean()), top)


def _ranked(means):
    """As `scipy.stats.rankdata(sizes, method="min", axis=1)`, in a fraction of its time: a size and its unit
    are one whole number, for numbers are sorted much faster than orders are found."""
    units = means.shape[1]
    bits = units.bit_length()
    sizes = np.minimum(np.round(np.abs(np.nan_to_num(means)) / ROUNDING), 2.0 ** (62 - bits))
    both = (-sizes.astype(np.int64) << bits) + np.arange(units)
    both.sort(axis=1)
    order, ordered = both & (1 << bits) - 1, both >> bits
    as_before = np.diff(ordered, axis=1, prepend=1) == 0
    places = np.where(as_before, 0, np.arange(1, means.shape[1] + 1, dtype=np.int32))
    ranked = np.empty(means.shape, np.int32)
    np.put_along_axis(ranked, order, np.maximum.accumulate(places, axis=1), axis=1)
    return ranked


def strongest(means: Float64[np.ndarray, "*maps U"], top: int) -> Int[np.ndarray, "*maps top"]:
    """Indices of the `top` units of the largest size, strongest first; equal ones in their order."""
    return np.argsort(-np.abs(means), kind="stable")[..., :top]


@dataclass(frozen=True)
class Halves:
    """What two random halves of the clusters say of one map, mean over splits.

    `correlation`: Pearson's of the two maps, where it is above 0 stepped up to the whole set of clusters by
    Spearman and Brown's formula (1910); `overlap`: share of one half's `top` strongest units among the
    other's; `selected`, `held_out`: mean effect of these in the direction that the first half gives them,
    there and in the other half. NaN for fewer than four clusters.
    """

    correlation: float
    overlap: float
    selected: float
    held_out: float
    top: int
    clusters: int

    @property
    def optimism(self) -> float:
        """By how much a selection's own mean is above that on other stimuli, log odds."""
        return self.selected - self.held_out


def halves(values: Float64[np.ndarray, "N U"], resampling: Resampling, top: int = TOP, seed: int = 0,
           splits: int = SPLITS) -> Halves:
    """Split the clusters of the first factor; a half's map is the mean over its rows."""
    clusters = resampling.first
    numbers, of_rows = np.unique(clusters, return_inverse=True)
    top, rng = min(top, values.shape[1]), np.random.default_rng(seed)
    if len(numbers) < 4:
        return Halves(np.nan, np.nan, np.nan, np.nan, top, len(numbers))
    means, rows = cluster_means(values, clusters), np.bincount(of_rows)
    chosen = np.zeros((splits, len(numbers)))
    for each in chosen:
        each[rng.permutation(len(numbers))[:len(numbers) // 2]] = 1
    step = max(1, AT_ONCE // values.shape[1])
    found = np.concatenate([_of_splits(chosen[start:start + step], rows, means, top)
                            for start in range(0, splits, step)])
    r, overlap, selected, other = map(float, found.mean(axis=0))
    return Halves(2 * r / (1 + r) if r > 0 else r, overlap, selected, other, top, len(numbers))


def _of_splits(chosen, rows, means, top):
    """[splits, 4]: correlation, overlap, mean effect of the strongest where they were chosen, and in the
    other half."""
    first, second = ((weights @ means) / weights.sum(axis=1, keepdims=True)
                     for weights in (chosen * rows, (1 - chosen) * rows))
    around = [half - half.mean(axis=1, keepdims=True) for half in (first, second)]
    varied = (np.ptp(first, axis=1) > 0) & (np.ptp(second, axis=1) > 0)
    sizes = np.prod([np.linalg.norm(half, axis=1) for half in around], axis=0)
    r = np.divide((around[0] * around[1]).sum(axis=1), sizes, out=np.full(len(sizes), np.nan), where=varied)
    best, others = (strongest(half, top) for half in (first, second))
    overlap = (best[:, :, None] == others[:, None]).any(axis=2).mean(axis=1)
    effects, elsewhere = (np.take_along_axis(half, best, axis=1) for half in (first, second))
    signs = np.sign(effects)
    return np.column_stack([r, overlap, (signs * effects).mean(axis=1), (signs * elsewhere).mean(axis=1)])


@dataclass(frozen=True)
class HeldOut:
    """Units chosen on one set of stimuli, reported on another, mean log effect in the direction that the
    first gives them; with the 95% interval of the second."""

    units: Int[np.ndarray, " top"]
    selected: float
    held_out: float
    low: float
    high: float


def held_out(chosen_on: Float64[np.ndarray, "N U"], other: Float64[np.ndarray, "M U"],
             resampling: Resampling, top: int = TOP) -> HeldOut:
    """`resampling`: of the rows of `other`."""
    means = chosen_on.mean(axis=0)
    units = strongest(means, min(top, len(means)))
    signs = np.sign(means[units])
    of_rows = (other[:, units] * signs).mean(axis=1)
    low, high = resampling.of_means(of_rows[:, None])
    return HeldOut(units, float((signs * means[units]).mean()), float(of_rows.mean()), float(low[0]),
                   float(high[0]))
