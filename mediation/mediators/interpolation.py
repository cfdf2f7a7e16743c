"""Smooth functions of one number, known at a few Chebyshev nodes (Clenshaw and Curtis 1960; Trefethen 2013, chapters 3, 4 and 7).

In the direct effects of the profession study the prompt is the same for all professions, and only the number put into a neuron differs: the
log-probabilities are mostly smooth functions of that number, so a few nodes a neuron serve every profession. Where they are not, the neuron is run
for every profession.

Shapes: n functions, m nodes or coefficients, q values of a function (predictions), W words.
"""

from dataclasses import dataclass

import numpy as np

# in a log-probability, estimated and seen; float32 runs are as far from each other
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
NARROWED = 1e-6  # of float64 models that compute in float32 on the way, as most norms of the library do: their rounding is 2e-7
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
    even or odd). Where they hardly fall, they are taken for those of a kink, 1/k^2, which add up to m times the last. An estimate, no bound.
    """
    count = coefficients.shape[1]
    size = np.abs(coefficients).max(axis=2)  # [n, m]
    last, before = size[:, -2:].max(axis=1), size[:, -4:-2].max(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        fall = np.clip(np.nan_to_num(np.sqrt(last / before), nan=0.1, posinf=1.0), 0.1, count / (count + 1))
    return 2 * last * fall / (1 - fall)


@dataclass(frozen=True)
class Interpolants:
    """n functions of one number each, at the W words' numbers: interpolated between `low` and `high` [n], or run where that does not serve.

    `groups`: (indices of functions [k], their coefficients [k, m, q]); `run`: indices of the others [r], `values` of these [r, W, q];
    `evaluations`: how many values of the functions were computed, `error`: the largest that was seen or estimated of an interpolated one.
    """

    low: np.ndarray
    high: np.ndarray
    groups: tuple
    run: np.ndarray
    values: np.ndarray
    evaluations: int
    error: float

    def __call__(self, points, word):
        """Values at the numbers [n] of one word (its index) -> [n, q]."""
        x = _scaled(points, self.low, self.high)
        result = np.empty((len(points), self.values.shape[2]))
        for members, found in self.groups:
            result[members] = evaluate(found, x[members])
        result[self.run] = self.values[:, word]
        return result

    def to_arrays(self):
        """{name: array} to be kept in a file."""
        groups = {f"{part}_{found.shape[1]}": array for members, found in self.groups for part, array in (("members", members), ("coefficients", found))}
        return {"low": self.low, "high": self.high, "run": self.run, "values": self.values, "evaluations": np.int64(self.evaluations),
                "error": np.float64(self.error), **groups}

    @classmethod
    def from_arrays(cls, arrays):
        """The other way round."""
        groups = tuple((arrays[f"members_{level}"], arrays[f"coefficients_{level}"]) for level in LEVELS if f"members_{level}" in arrays)
        return cls(arrays["low"], arrays["high"], groups, arrays["run"], arrays["values"], int(arrays["evaluations"]), float(arrays["error"]))


def _scaled(points, low, high):
    """From between low and high to between -1 and 1; where these are one number, -1."""
    return (points - low) / np.where(high > low, high - low, 1.0) * 2 - 1


def words_to_check(x):
    """Three words for each function, [3, n]: where the polynomial of the first level can be worst, on either side of the middle and near it.

    The error of a smooth function's polynomial is its next derivative times the product of the distances to the nodes: it is largest where that is.
    A kink shows on all of its far side, up to the end; near the middle most words are.

    Args:
        x: [W, n], the words' points from -1 to 1.
    """
    product = np.abs(np.prod(x[:, :, None] - nodes(LEVELS[0]), axis=2))
    return np.stack([np.where(part, product, -1).argmax(axis=0) for part in (x < 0, x >= 0, np.abs(x) < 0.5)])  # a part without words: the first word


def fit(run, points, tolerance):
    """Interpolants of n functions that are wanted at W points each, refined as they need it.

    A function is interpolated where two things agree: its coefficients fall to below `tolerance`, by `estimated_error`, and its polynomial is as near
    to the function at three of its own points, which are run for that. The first alone would be fooled: the coefficients of a function with a kink
    (ReLU) fall slowly and unevenly, and may by accident be small. The others are run at all their points: those that have not
    converged at the last level, and all that is left when a finer level would cost more than that.

    Args:
        run: function (indices of functions [k], points [k, m]) to their values [k, m, q]; points: [W, n].
    """
    low, high = points.min(axis=0), points.max(axis=0)
    x = _scaled(points, low, high)
    checked = words_to_check(x)
    todo, values, truth, groups, error, evaluations = np.arange(len(low)), None, None, [], 0.0, 0  # truth: [n, 3, q] at the points that are checked

    def evaluated(members, at):
        nonlocal evaluations
        evaluations += at.size
        return run(members, at)

    for level in LEVELS:
        if not len(todo) or level + len(checked) > len(points):
            break
        new = nodes(level) if values is None else nodes(level)[1::2]
        found = evaluated(todo, low[todo, None] + (new + 1) / 2 * (high - low)[todo, None])
        if values is None:
            values, truth = found, np.full((len(low), len(checked), found.shape[2]), np.nan)
        else:
            nested = np.empty((len(todo), level, found.shape[2]))
            nested[:, ::2], nested[:, 1::2] = values, found
            values = nested
        fitted = coefficients(values)
        apart = estimated_error(fitted)
        hopeful = np.flatnonzero(apart < tolerance)
        members = todo[hopeful]
        unseen = members[np.isnan(truth[members]).any(axis=(1, 2))]
        if len(unseen):
            truth[unseen] = evaluated(unseen, points[checked[:, unseen], unseen].T)
        for index, word in enumerate(checked[:, members]):
            off = 2 * np.abs(evaluate(fitted[hopeful], x[word, members]) - truth[members, index]).max(axis=1)  # other points may be worse
            apart[hopeful] = np.maximum(apart[hopeful], off)
        done = apart < tolerance  # false for what is not a number
        if done.any():
            groups.append((todo[done], fitted[done]))
            error = max(error, float(apart[done].max()))
        todo, values = todo[~done], values[~done]
    left = evaluated(todo, points[:, todo].T) if len(todo) else np.empty((0, len(points), truth.shape[2]))
    return Interpolants(low, high, tuple(groups), todo, left, evaluations, error)
