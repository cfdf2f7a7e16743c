"""Smooth functions of one number, known at a few Chebyshev nodes.

Clenshaw and Curtis 1960; Trefethen 2013, chapters 3, 4 and 7. In the direct effects of the profession study
the prompt is the same for all professions, and only the number put into a neuron differs: the
log-probabilities are mostly smooth functions of that number, so a few nodes per neuron serve every
profession. Where they are not, the neuron is run for every profession.

Symbols in shapes: N functions, K of them, M nodes or coefficients, Q values of a function (predictions),
W words, R functions that are run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int

Coefficients = Float64[np.ndarray, "N M Q"]
# indices of functions and points of each [K, M] to their values
Run = Callable[[Int[np.ndarray, "K"], Float64[np.ndarray, "K M"]], Float64[np.ndarray, "K M Q"]]

# in a log-probability, estimated and seen; float32 runs are as far from each other
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
# of float64 models that compute in float32 on the way, as most norms of the library do: these round to 2e-7
NARROWED = 1e-6
LEVELS = (5, 9, 17, 33)  # numbers of nodes; each level's nodes are every second one of the next


def nodes(count: int) -> Float64[np.ndarray, " {count}"]:
    """`count` Chebyshev points from 1 to -1."""
    return np.cos(np.pi * np.arange(count) / (count - 1))


def coefficients(values: Float64[np.ndarray, "N M Q"]) -> Coefficients:
    """Chebyshev coefficients of the polynomials through values at `nodes(M)`."""
    last = values.shape[1] - 1
    angles = np.pi * np.outer(np.arange(last + 1), np.arange(last + 1)) / last
    weights = np.cos(angles) * 2 / last
    weights[:, [0, -1]] /= 2
    weights[[0, -1]] /= 2
    return np.einsum("kj,njq->nkq", weights, values)


def evaluate(coefficients: Coefficients, x: Float64[np.ndarray, "N"]) -> Float64[np.ndarray, "N Q"]:
    """Polynomials at one point each, from -1 to 1."""
    basis = np.cos(np.arange(coefficients.shape[1]) * np.arccos(np.clip(x, -1, 1))[:, None])  # [N, M]
    return np.einsum("nm,nmq->nq", basis, coefficients)


def estimated_error(coefficients: Coefficients) -> Float64[np.ndarray, "N"]:
    """What the coefficients that are not there would add, if they went on to fall as the last ones did.

    The fall of a step is taken from the larger of the last two coefficients to the larger of the two before
    (functions may be nearly even or odd). Where they hardly fall, they are taken for those of a kink, 1/k^2,
    which add up to M times the last. An estimate, no bound.
    """
    count = coefficients.shape[1]
    size = np.abs(coefficients).max(axis=2)  # [N, M]
    last, before = size[:, -2:].max(axis=1), size[:, -4:-2].max(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        fall = np.clip(np.nan_to_num(np.sqrt(last / before), nan=0.1, posinf=1.0), 0.1, count / (count + 1))
    return 2 * last * fall / (1 - fall)


@dataclass(frozen=True)
class Interpolants:
    """N functions of one number each, at the W words' numbers.

    Interpolated between `low` and `high`, or run where that does not serve. `groups`: indices of functions,
    and their coefficients; `run`: indices of the others, `values`: of these; `evaluations`: how many values
    of the functions were computed; `error`: the largest that was seen or estimated of an interpolated one.
    """

    low: Float64[np.ndarray, "N"]
    high: Float64[np.ndarray, "N"]
    groups: tuple[tuple[Int[np.ndarray, " _"], Float64[np.ndarray, "_ _ Q"]], ...]
    run: Int[np.ndarray, "R"]
    values: Float64[np.ndarray, "R W Q"]
    evaluations: int
    error: float

    def __call__(self, points: Float64[np.ndarray, "N"], word: int) -> Float64[np.ndarray, "N Q"]:
        """Values at the numbers of one word (its index)."""
        x = _scaled(points, self.low, self.high)
        result = np.empty((len(points), self.values.shape[2]))
        for members, of_members in self.groups:
            result[members] = evaluate(of_members, x[members])
        result[self.run] = self.values[:, word]
        return result

    def to_arrays(self) -> dict[str, Any]:
        """{name: array} to be kept in a file."""
        arrays: dict[str, Any] = {
            "low": self.low, "high": self.high, "run": self.run, "values": self.values,
            "evaluations": np.int64(self.evaluations), "error": np.float64(self.error)}
        for members, of_members in self.groups:
            level = of_members.shape[1]
            arrays |= {f"members_{level}": members, f"coefficients_{level}": of_members}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "Interpolants":
        """The other way round."""
        groups = tuple((arrays[f"members_{level}"], arrays[f"coefficients_{level}"])
                       for level in LEVELS if f"members_{level}" in arrays)
        return cls(arrays["low"], arrays["high"], groups, arrays["run"], arrays["values"],
                   int(arrays["evaluations"]), float(arrays["error"]))


def _scaled(points, low, high):
    """From between low and high to between -1 and 1; where these are one number, -1."""
    return (points - low) / np.where(high > low, high - low, 1.0) * 2 - 1


def words_to_check(x: Float64[np.ndarray, "W N"]) -> Int[np.ndarray, "3 N"]:
    """Three words for each function, of the words' points from -1 to 1.

    Where the polynomial of the first level can be worst, on either side of the middle and near it. The error
    of a smooth function's polynomial is its next derivative times the product of the distances to the nodes:
    it is largest where that is. A kink shows on all of its far side, up to the end; near the middle most
    words are.
    """
    product = np.abs(np.prod(x[:, :, None] - nodes(LEVELS[0]), axis=2))
    parts = x < 0, x >= 0, np.abs(x) < 0.5
    # of a part without words this takes the first word
    return np.stack([np.where(part, product, -1).argmax(axis=0) for part in parts])


def fit(run: Run, points: Float64[np.ndarray, "W N"], tolerance: float) -> Interpolants:
    """Interpolants of N functions that are wanted at W points each, refined as they need it.

    A function is interpolated where two things agree: its coefficients fall to below `tolerance`, by
    `estimated_error`, and its polynomial is as near to the function at three of its own points, which are run
    for that. The first alone would be fooled: the coefficients of a function with a kink (ReLU) fall slowly
    and unevenly, and may by accident be small. The others are run at all their points: those that have not
    converged at the last level, and all that is left when a finer level would cost more than that.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    x = _scaled(points, low, high)
    words = words_to_check(x)
    rest, groups, error, evaluations = np.arange(len(low)), [], 0.0, 0  # rest: what has not converged so far
    # values [rest, level, Q] at the nodes; truth [N, 3, Q] at the words that are checked
    values = truth = np.empty((0, 0, 0))

    def evaluated(members, at):
        nonlocal evaluations
        evaluations += at.size
        return run(members, at)

    for level in LEVELS:
        if not len(rest) or level + len(words) > len(points):
            break
        is_first = level == LEVELS[0]
        new = nodes(level) if is_first else nodes(level)[1::2]  # the others are the level's before
        at_new = evaluated(rest, low[rest, None] + (new + 1) / 2 * (high - low)[rest, None])
        if is_first:
            values, truth = at_new, np.full((len(low), len(words), at_new.shape[2]), np.nan)
        else:
            nested = np.empty((len(rest), level, at_new.shape[2]))
            nested[:, ::2], nested[:, 1::2] = values, at_new
            values = nested
        fitted = coefficients(values)
        errors = estimated_error(fitted)
        hopeful = np.flatnonzero(errors < tolerance)
        members = rest[hopeful]
        unchecked = members[np.isnan(truth[members]).any(axis=(1, 2))]
        if len(unchecked):
            truth[unchecked] = evaluated(unchecked, points[words[:, unchecked], unchecked].T)
        for index, word in enumerate(words[:, members]):
            difference = evaluate(fitted[hopeful], x[word, members]) - truth[members, index]
            # twice what is seen: other points may be worse
            errors[hopeful] = np.maximum(errors[hopeful], 2 * np.abs(difference).max(axis=1))
        converged = errors < tolerance  # false for what is not a number
        if converged.any():
            groups.append((rest[converged], fitted[converged]))
            error = max(error, float(errors[converged].max()))
        rest, values = rest[~converged], values[~converged]
    at_points = np.empty((0, len(points), truth.shape[2]))
    if len(rest):
        at_points = evaluated(rest, points[:, rest].T)
    return Interpolants(low, high, tuple(groups), rest, at_points, evaluations, error)
