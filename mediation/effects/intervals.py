"""Bootstrap intervals of means over clusters: what is drawn again is never a row.

A cluster is what is independent of the others: a stimulus, a profession. Intervals are 95% percentile
intervals over DRAWS draws of clusters with replacement; one set of draws serves all units, so that
differences between units could have intervals, too.

Symbols in shapes: N rows, U units, K clusters.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

DRAWS = 2000
AT_ONCE = 4096  # units: as many columns of draws as fit into memory


def draws(clusters: int, seed: int = 0) -> Int[np.ndarray, "draws {clusters}"]:
    """How often each cluster is drawn, in each of DRAWS draws."""
    return np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), DRAWS)


def of_means(
    effects: Float64[np.ndarray, "N U"], clusters: Sequence[str], seed: int = 0,
) -> tuple[Float64[np.ndarray, "U"], Float64[np.ndarray, "U"]]:
    """Low and high end of the interval of every unit's mean over N rows; NaN for one cluster.

    Args:
        clusters: of each row.
    """
    return of_ratio(effects, np.ones(len(effects)), clusters, seed)


def of_ratio(
    numerators: Float64[np.ndarray, "N U"], denominators: Float64[np.ndarray, "N"], clusters: Sequence[str],
    seed: int = 0,
) -> tuple[Float64[np.ndarray, "U"], Float64[np.ndarray, "U"]]:
    """The same of a ratio of means, such as the proportion mediated.

    NaN for one cluster, and where the denominator's own interval holds 0: the ratio can then be anything.
    """
    names, of_row = np.unique(np.asarray(clusters, str), return_inverse=True)
    unknown = np.full(numerators.shape[1], np.nan)
    if len(names) < 2:
        return unknown, unknown
    weights = draws(len(names), seed)
    below = weights @ np.bincount(of_row, denominators)  # in each draw
    lowest, highest = np.percentile(below, [2.5, 97.5])
    if lowest <= 0 <= highest:
        return unknown, unknown
    ends = [np.zeros((2, 0))]
    for start in range(0, numerators.shape[1], AT_ONCE):
        piece = numerators[:, start:start + AT_ONCE]
        sums = np.zeros((len(names), piece.shape[1]))
        np.add.at(sums, of_row, piece)
        ends.append(np.percentile(weights @ sums / below[:, None], [2.5, 97.5], axis=0))
    low, high = np.concatenate(ends, axis=1)
    return low, high
