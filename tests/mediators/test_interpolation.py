"""Chebyshev interpolation with nested nodes: known functions, then direct effects of models."""

import itertools

import numpy as np
import pytest
import torch

from experiment import Intervention
from mediation.mediators.interpolation import (
    LEVELS,
    NARROWED,
    TOLERANCE,
    Interpolants,
    coefficients,
    evaluate,
    fit,
    nodes,
)
from mediation.mediators.neuron_sweeps import direct_interpolants, null_values
from mediation.mediators.neurons import INTERVENTION_TYPES, NeuronEdits
from mediation.mediators.sweeps import sweep
from mediation.model.forward import run_base
from tests.helpers import SINGLE_TOKEN_WORDS

TEMPLATES = ("The {} said that", "The {} went home because")


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
    functions = [lambda x: x, lambda x: np.exp(x / 2), lambda x: np.tanh(2 * x), lambda x: 0 * x,
                 lambda x: 1 / (1 + 4 * x**2), lambda x: x**2]
    low, high = np.linspace(-1.0, -0.5, 6), np.linspace(0.5, 1.5, 6)
    points = low + np.random.default_rng(0).permuted(np.linspace(0, 1, 40))[:, None] * (high - low)
    asked = []

    def run(members, points):
        asked.append(points.size)
        values = [np.stack([functions[m](row), 2 * functions[m](row)], axis=-1)
                  for m, row in zip(members, points)]
        return np.stack(values)

    interpolants = fit(run, points, tolerance)
    assert interpolants.evaluations == sum(asked) < 6 * LEVELS[-1]
    assert interpolants.run.tolist() == ([4] if tolerance < 1e-4 else [])  # a pole near the interval
    for word, of_word in enumerate(points):
        expected = np.array([[f(p), 2 * f(p)] for f, p in zip(functions, of_word)])
        np.testing.assert_allclose(interpolants(of_word, word), expected, atol=10 * tolerance)
    again = Interpolants.from_arrays(interpolants.to_arrays())
    assert (again(low, 0) == interpolants(low, 0)).all() and again.error == interpolants.error


def test_a_function_of_one_point():
    points = np.stack([np.full(40, 0.3), np.linspace(0, 1, 40)], axis=1)
    interpolants = fit(lambda members, points: np.sin(points)[..., None], points, 1e-8)
    for word in (0, 17, 39):
        np.testing.assert_allclose(interpolants(points[word], word)[:, 0], np.sin(points[word]), atol=1e-7)


@pytest.mark.parametrize("words", [12, 153])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_functions_with_kinks_are_run_at_every_point(words, size):
    """As a ReLU makes them, wherever the kink; a few of them are smooth where they are wanted."""
    rng = np.random.default_rng(1)
    kinks, points = rng.uniform(-1.1, 1.1, 300), rng.normal(0, 0.4, (words, 300))

    def run(members, at):
        kinked = size * np.maximum(at - kinks[members, None], 0)
        return np.stack([np.tanh(at / 3) + kinked, np.exp(at / 4) - kinked], axis=-1)

    interpolants = fit(run, points, 2e-5)
    expected = run(np.arange(300), points.T)
    assert (size < 1 or len(interpolants.run) > 100) and len(interpolants.run) < 300
    assert interpolants.error < 2e-5
    for word in range(words):
        np.testing.assert_allclose(interpolants(points[word], word), expected[:, word], rtol=0, atol=1e-4)
        assert (interpolants(points[word], word)[interpolants.run] == expected[interpolants.run, word]).all()
    assert interpolants.evaluations <= 300 * (LEVELS[-1] + 3 + words)
    again = Interpolants.from_arrays(interpolants.to_arrays())
    assert (again(points[3], 3) == interpolants(points[3], 3)).all()


def test_noise_that_does_not_converge_costs_no_more_than_a_level_beside_the_points():
    rng, points = np.random.default_rng(0), np.random.default_rng(1).normal(size=(13, 50))
    interpolants = fit(lambda members, at: rng.normal(size=(*at.shape, 1)), points, 1e-6)
    # the next level alone would have 17
    assert len(interpolants.run) == 50 and interpolants.evaluations == 50 * (9 + 13)


# the direct effects of models

def direct_effects(model, kind, words):
    """For each layer: values of the words, their Interpolants, and what the sweep gives, [words, D, q].

    The values lie between those of the toys' words.
    """
    rng = np.random.default_rng(0)
    stimuli = {word: [Intervention(model.tokenizer, template, [word, "man", "woman"], ["he", "she"])
                      for template in TEMPLATES] for word in SINGLE_TOKEN_WORDS}
    values = np.stack(null_values(model, [of_word[0] for of_word in stimuli.values()]))  # [words, L + 1, D]
    values = np.einsum("ws,sld->wld", rng.dirichlet(np.ones(len(values)) / 4, words), values)
    ((_, tree),) = model.trees(stimuli["nurse"], INTERVENTION_TYPES[kind][0])
    base = run_base(model.model, model.parts, tree.tokens, tree)
    (position,) = stimuli["nurse"][0].places[INTERVENTION_TYPES[kind][0]]
    for layer in range(model.num_layers + 1):
        interpolants = direct_interpolants(model, stimuli["nurse"], kind, values[:, layer], layer)
        neurons = torch.arange(model.num_neurons).repeat(words).unsqueeze(1)
        put_in = torch.as_tensor(values[:, layer], dtype=model.model.dtype).reshape(-1, 1)
        with torch.no_grad():
            run = sweep(model.parts, base, tree.predictions,
                        NeuronEdits(torch.full_like(neurons, layer), neurons, put_in, position))
        yield values[:, layer], interpolants, run.numpy().reshape(words, model.num_neurons, -1)


@pytest.mark.parametrize("words", [13, 60])
def test_interpolated_direct_effects_are_near_those_that_are_run_on_every_architecture(
        toy_model, architecture, words):
    """The checks at three points are a sample: between kinks of OPT's ReLU, another may be a little worse."""
    allowed = 2e-4 if architecture == "opt" else 1e-4
    for values, interpolants, expected in direct_effects(toy_model(architecture), "man_direct", words):
        assert interpolants.error < TOLERANCE["float32"]
        for word in range(words):
            np.testing.assert_allclose(interpolants(values[word], word), expected[word], rtol=0, atol=allowed)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_float64_is_interpolated_as_finely_as_the_model_computes(toy_model, architecture):
    """Llama's norms are float32 whatever the model is.

    Their rounding would pass for functions that do not converge.
    """
    tolerance = {"gpt2": TOLERANCE["float64"], "llama": NARROWED}[architecture]
    model = toy_model(architecture, torch.float64)
    # the last layer that is run
    *_, (values, interpolants, expected), _ = direct_effects(model, "woman_direct", 60)
    for word in range(60):
        np.testing.assert_allclose(interpolants(values[word], word), expected[word], rtol=0,
                                   atol=5 * tolerance)
    assert len(interpolants.run) <= 1 and interpolants.evaluations <= 16 * 22
