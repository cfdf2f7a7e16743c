"""Chebyshev interpolation with nested nodes: functions whose values are known everywhere."""

import itertools

import numpy as np
import pytest

from mediation.interpolation import LEVELS, Interpolants, coefficients, evaluate, fit, nodes


def test_polynomials_come_back_exactly():
    for level in LEVELS[:3]:
        truth = np.random.default_rng(0).normal(size=(4, level, 2))
        x = nodes(level)
        values = np.stack([evaluate(truth, np.full(4, point)) for point in x], axis=1)
        np.testing.assert_allclose(coefficients(values), truth, atol=1e-12)


def test_nodes_are_nested():
    for smaller, larger in itertools.pairwise(LEVELS):
        np.testing.assert_allclose(nodes(larger)[::2], nodes(smaller), atol=1e-15)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
def test_functions_are_refined_as_they_need(tolerance):
    functions = [lambda x: x, lambda x: np.exp(x / 2), lambda x: np.tanh(2 * x), lambda x: 0 * x, lambda x: 1 / (1 + 4 * x**2), lambda x: x**2]
    low, high = np.linspace(-1.0, -0.5, 6), np.linspace(0.5, 1.5, 6)
    asked = []

    def run(members, points):
        asked.append(points.size)
        return np.stack([np.stack([functions[m](row), 2 * functions[m](row)], axis=-1) for m, row in zip(members, points)])

    found = fit(run, low, high, tolerance)
    assert found.evaluations == sum(asked) < 6 * LEVELS[-1]
    x = np.linspace(0, 1, 23)
    for share in x:
        points = low + share * (high - low)
        expected = np.array([[f(p), 2 * f(p)] for f, p in zip(functions, points)])
        np.testing.assert_allclose(found(points), expected, atol=10 * tolerance)
    again = Interpolants.from_arrays(found.to_arrays())
    assert (again(low) == found(low)).all() and again.error == found.error


def test_a_function_of_one_point():
    found = fit(lambda members, points: np.sin(points)[..., None], np.array([0.3, 0.0]), np.array([0.3, 1.0]), 1e-8)
    np.testing.assert_allclose(found(np.array([0.3, 0.7]))[:, 0], np.sin([0.3, 0.7]), atol=1e-7)
