"""Smooth functions of one number, known at a few Chebyshev nodes (Clenshaw and Curtis 1960; Trefethen 2013, chapters 3, 4 and 7).

In the direct effects of the profession study the prompt is the same for all professions, and only the number put into a neuron differs: the
log-probabilities are smooth functions of that number, so a few nodes a neuron serve every profession.

Shapes: n functions, m nodes or coefficients, q values of a function (predictions).
"""

from dataclasses import dataclass

import numpy as np

LEVELS = (5, 9, 17, 33)  # numbers of nodes; each level's nodes are every second one of the next


def nodes(count):
    """`count` Chebyshev points from 1 to -1."""
    return np.cos(np.pi * np.arange(count) / (count - 1))


def coefficients(values):
    """Chebyshev coefficients of the polynomials through values at `nodes(m)`: [n, m, q] -> [n, m, q]."""
    last = values.shape[1] - 1
    angles = np.pi * np.outer(np.arange(last + 1), np.arange(last + 1)) / last
    weights = np.cos(angles) * 2 / last
    weights[:, [0, -1]] /= 2
    weights[[0, -1]] /= 2
    return np.einsum("kj,njq->nkq", weights, values)


def evaluate(coefficients, x):
    """Polynomials [n, m, q] at one point each, x [n] from -1 to 1 -> [n, q]."""
    basis = np.cos(np.arange(coefficients.shape[1]) * np.arccos(np.clip(x, -1, 1))[:, None])  # [n, m]
    return np.einsum("nm,nmq->nq", basis, coefficients)


def estimated_error(coefficients):
    """What the coefficients that are not there would add, if they went on to fall as the last ones did: [n, m, q] -> [n].

    The fall of a step is taken from the larger of the last two coefficients to the larger of the two before (functions may be nearly
    even or odd), and between 0.1 and 0.6: past that it is rounding that is seen. An estimate, no bound.
    """
    size = np.abs(coefficients).max(axis=2)  # [n, m]
    last, before = size[:, -2:].max(axis=1), size[:, -4:-2].max(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        fall = np.clip(np.nan_to_num(np.sqrt(last / before), nan=0.1, posinf=1.0), 0.1, 0.6)
    return 2 * last * fall / (1 - fall)


@dataclass(frozen=True)
class Interpolants:
    """n functions of one number each, between `low` and `high` [n]. `groups`: (indices of functions [k], their coefficients [k, m, q]).

    `error`: the largest estimated error of any.
    """

    low: np.ndarray
    high: np.ndarray
    groups: tuple
    error: float

    def __call__(self, points):
        """Values at one point each, points [n] -> [n, q]."""
        width = np.where(self.high > self.low, self.high - self.low, 1.0)
        x = (points - self.low) / width * 2 - 1
        result = np.empty((len(points), self.groups[0][1].shape[2]))
        for members, found in self.groups:
            result[members] = evaluate(found, x[members])
        return result

    @property
    def evaluations(self):
        """How many values of the functions were computed."""
        return sum(len(members) * found.shape[1] for members, found in self.groups)

    def to_arrays(self):
        """{name: array} to be kept in a file."""
        groups = {f"{part}_{found.shape[1]}": array for members, found in self.groups for part, array in (("members", members), ("coefficients", found))}
        return {"low": self.low, "high": self.high, "error": np.float64(self.error), **groups}

    @classmethod
    def from_arrays(cls, arrays):
        """The other way round."""
        groups = tuple((arrays[f"members_{level}"], arrays[f"coefficients_{level}"]) for level in LEVELS if f"members_{level}" in arrays)
        return cls(arrays["low"], arrays["high"], groups, float(arrays["error"]))


def fit(run, low, high, tolerance):
    """Interpolants of n functions, refined where the estimated error is above `tolerance`.

    Args:
        run: function (indices of functions [k], points [k, m]) to their values [k, m, q]; low, high: [n].
    """
    todo, values, groups, error = np.arange(len(low)), None, [], 0.0
    for level in LEVELS:
        new = nodes(level) if values is None else nodes(level)[1::2]
        found = run(todo, low[todo, None] + (new + 1) / 2 * (high - low)[todo, None])
        if values is None:
            values = found
        else:
            nested = np.empty((len(todo), level, found.shape[2]))
            nested[:, ::2], nested[:, 1::2] = values, found
            values = nested
        fitted = coefficients(values)
        estimate = estimated_error(fitted)
        done = (estimate < tolerance) | (level == LEVELS[-1])
        if done.any():
            groups.append((todo[done], fitted[done]))
            error = max(error, float(estimate[done].max()))
        todo, values = todo[~done], values[~done]
        if not len(todo):
            break
    return Interpolants(low, high, tuple(groups), error)
