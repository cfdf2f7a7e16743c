"""Bootstrap over clusters: what is drawn again is never a row.

A cluster is what is independent of the others: a profession, a pair of occupations, a stimulus. Rows that
are crossed in two ways (professions x templates) are drawn in both: a row's weight is the product of how
often its levels were drawn (the pigeonhole bootstrap, Owen 2007, arXiv:0709.2202). One set of draws serves
all units, groups and models, so that their differences and ranks have intervals, too.

Symbols in shapes: N rows, U units, D draws.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped

DRAWS = 2000
LEVEL = (2.5, 97.5)  # percentiles: a 95% interval
FEW = 10  # clusters: of fewer, an interval holds the truth in under 90 of 100 studies
AT_ONCE = 4096  # units: as many columns of draws as fit into memory

Interval = tuple[Float64[np.ndarray, "U"], Float64[np.ndarray, "U"]]


class Resampling:
    """How often each of N rows is drawn, in each of `draws` draws of its clusters with replacement.

    A factor with one level, such as the only template of a run, is not drawn: the interval is then one for
    that level.

    Args:
        factors: {what the clusters are: the cluster of each row}; the first is the one that tests and splits
            are over.

    Attributes:
        clusters: {name of a factor: number of its clusters}.
        weights: [draws, N].
    """

    def __init__(self, factors: Mapping[str, Sequence[str]], draws: int = DRAWS, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        rows = len(next(iter(factors.values())))
        self.clusters: dict[str, int] = {}
        self.labels: dict[str, np.ndarray] = {}  # of rows, as numbers
        self.weights = np.ones((draws, rows))
        for name, of_rows in factors.items():
            levels, number = np.unique(np.asarray(of_rows, str), return_inverse=True)
            self.clusters[name], self.labels[name] = len(levels), number
            if len(levels) > 1:
                chances = np.full(len(levels), 1 / len(levels))
                self.weights *= generator.multinomial(len(levels), chances, draws)[:, number]

    def of(self, rows: Bool[np.ndarray, "N"] | Int[np.ndarray, "M"]) -> "Resampling":
        """The same draws of some of the rows, such as those of one group; a row may come several times."""
        part = object.__new__(Resampling)
        part.weights = self.weights[:, rows]
        part.labels = {name: labels[rows] for name, labels in self.labels.items()}
        part.clusters = {name: len(np.unique(labels)) for name, labels in part.labels.items()}
        return part

    @property
    def first(self) -> np.ndarray:
        """The cluster of each row by the first factor, as a number."""
        return self.labels[next(iter(self.labels))]

    @property
    def varies(self) -> bool:
        """Whether there is anything to draw: two clusters of the first factor."""
        return next(iter(self.clusters.values())) > 1

    def means(self, values: Float64[np.ndarray, "N U"]) -> Float64[np.ndarray, "D U"]:
        """Mean of every unit in every draw; NaN in a draw that has none of these rows."""
        sums = self.weights @ values
        with np.errstate(invalid="ignore", divide="ignore"):
            sums /= self.weights.sum(axis=1)[:, None]
        return sums

    def of_means(self, values: Float64[np.ndarray, "N U"]) -> Interval:
        """Low and high end of the interval of every unit's mean; NaN for one cluster."""
        return self.of_ratio(values, np.ones(len(values)))

    def of_ratio(self, numerators: Float64[np.ndarray, "N U"],
                 denominators: Float64[np.ndarray, "N"]) -> Interval:
        """The same of a ratio of means, such as the proportion mediated.

        NaN for one cluster, and where the denominator's own interval holds 0: the ratio can then be
        anything.
        """
        if not self.varies:
            unknown = np.full(numerators.shape[1], np.nan)
            return unknown, unknown
        ends = [np.zeros((2, 0))]
        for start in range(0, numerators.shape[1], AT_ONCE):
            ratios = self.ratios(numerators[:, start:start + AT_ONCE], denominators)
            ends.append(np.stack(interval(ratios.T)))
        low, high = np.concatenate(ends, axis=1)
        return low, high

    def ratios(self, numerators: Float64[np.ndarray, "N U"],
               denominators: Float64[np.ndarray, "N"]) -> Float64[np.ndarray, "U D"]:
        """Ratio of the means of every unit in every draw; NaN in a draw that has none of these rows, and in
        all where the interval of the mean below holds 0."""
        drawn = self.weights.any(axis=1)
        if drawn.any():
            below: np.ndarray = self.weights @ denominators
            lowest, highest = np.percentile(below[drawn], LEVEL)
            if not lowest <= 0 <= highest:
                below[~drawn] = np.nan
                return numerators.T @ self.weights.T / below
        return np.full((numerators.shape[1], len(self.weights)), np.nan)


def interval(draws: Shaped[np.ndarray, "D U"]) -> Interval:
    """Low and high end of every unit's 95% percentile interval; draws that are NaN for all units do not
    count."""
    known, ends = ~np.isnan(draws).all(axis=1), [np.zeros((2, 0))]
    for start in range(0, draws.shape[1], AT_ONCE):
        of_units = draws[:, start:start + AT_ONCE].T
        ends.append(_ends_of(np.array(of_units if known.all() else of_units[:, known], order="C")))
    low, high = np.concatenate(ends, axis=1)
    return low, high


def _ends_of(draws):
    """[2, U] of draws [U, D], which are put in order: `np.percentile` by sorting, in half of its time."""
    number = draws.shape[1]
    if not number:
        return np.full((2, len(draws)), np.nan)
    draws.sort(axis=1)  # NaN comes last
    place = np.array(LEVEL) / 100 * (number - 1)
    below = place.astype(int)
    lower, upper = draws[:, below], draws[:, np.minimum(below + 1, number - 1)]
    return np.where(np.isnan(draws[:, -1]), np.nan, (lower + (upper - lower) * (place - below)).T)
