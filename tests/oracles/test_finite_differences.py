"""First-order estimates against central differences of exact full passes."""


import numpy as np
import pytest
import torch

from mediation.mediators.head_sweeps import head_edits, head_estimates
from mediation.mediators.heads import HeadEdits, heads_layers_model
from mediation.mediators.neuron_sweeps import neuron_gradients_of, runs_and_edits
from mediation.mediators.neurons import INTERVENTION_TYPES, NeuronEdits, single_neuron_edits
from mediation.mediators.sweeps import by_full_passes, heads_by_full_passes
from mediation.model.attention import attention_weights
from mediation.studies.engine import StudyOptions
from tests.helpers import CAUSAL, multi_token_stimulus, profession_stimuli, results_of

STEP, TOLERANCE = 1e-5, 1e-6  # small enough that OPT's ReLU has no kink on the way


KINDS = list(INTERVENTION_TYPES)[:6]  # the others are the same for stimuli with one alternative


# each kind on models that differ in where an MLP stands and what it has; on the others one of each form
@pytest.mark.parametrize("architecture, kind", [
    (architecture, kind) for architecture in CAUSAL
    for kind in (KINDS if architecture in ("gpt2", "opt", "gemma3_text") else KINDS[:3:2])])
def test_neurons_equal_central_differences_of_full_passes(toy_model, architecture, in_double, kind, tmp_path):
    model, width, tolerance = toy_model(architecture, torch.float64), STEP, TOLERANCE
    every = [stimulus for words in profession_stimuli(model).values() for stimulus in words.values()]
    number, stimulus = next((number, one) for number, one in enumerate(every)
                            if one.base_strings[0] == "The captain went home because")
    swept = results_of(model, tmp_path, every, kind, StudyOptions("gradient", dtype="float64"))[1](number)
    moved, base = swept.log_probabilities.T.reshape(2, model.num_layers + 1, -1), swept.base
    with torch.no_grad():
        runs, run_on, edits = runs_and_edits(model, stimulus, kind)
        own = runs[run_on].representations(edits.position).reshape(-1, 1)
        step = edits.values if edits.add else edits.values - own
        ahead, behind = (by_full_passes(model.model, model.parts, stimulus.base_strings_tok[run_on],
                                        NeuronEdits(edits.layers, edits.neurons, own + sign * width * step,
                                                    edits.position), stimulus.candidates_tok)
                         for sign in (1, -1))
    expected = (ahead - behind).numpy().T / (2 * width)  # [2, units]
    slopes = moved[0] - moved[1] - (base[run_on, 0] - base[run_on, 1])
    np.testing.assert_allclose(slopes.ravel(), expected[0] - expected[1], rtol=tolerance, atol=tolerance)
    assert np.abs(slopes).max() > 0.01
    unscaled = np.logaddexp(*moved) < -1e-9  # where they would sum to more than 1 both are scaled
    assert unscaled.any()
    for candidate in (0, 1):
        np.testing.assert_allclose((moved[candidate] - base[run_on, candidate])[unscaled],
                                   expected[candidate].reshape(unscaled.shape)[unscaled], rtol=tolerance,
                                   atol=tolerance)
    assert (moved[:, -1] == base[run_on][:, None]).all()  # the last layer before the last position: exactly


@pytest.mark.parametrize("kind", ["indirect", "direct"])
def test_heads_equal_central_differences_of_full_passes(toy_model, architecture, in_double, stimulus, kind):
    model, width, tolerance = toy_model(architecture, torch.float64), STEP, TOLERANCE
    intervention = stimulus(model)
    estimates = head_estimates(model, intervention, kind).reshape(-1, 2)
    with torch.no_grad():
        single = heads_layers_model(model.num_layers, model.num_heads)[: len(estimates)]
        context, edits = head_edits(model, intervention, kind, single)
        own = attention_weights(model.model, model.parts, context)
        ahead, behind = (heads_by_full_passes(model.model, model.parts, context, intervention.candidates_tok,
                                              HeadEdits(edits.chosen,
                                                        own + sign * width * (edits.weights - own),
                                                        edits.first)) for sign in (1, -1))
        base = heads_by_full_passes(model.model, model.parts, context, intervention.candidates_tok,
                                    HeadEdits(edits.chosen[:1] & False, own, edits.first))
    expected = (ahead - behind) / (2 * width)
    torch.testing.assert_close(estimates - base, expected, rtol=tolerance, atol=tolerance)
    assert expected.abs().max() > 0.01


def test_first_order_of_several_tokens_is_the_slope(toy_model):
    model = toy_model("gpt2", torch.float64)
    one = multi_token_stimulus(model, words=("xqz", "zqx"), multi_token="all")
    null, alternative = (neuron_gradients_of(model, [one], prompt) for prompt in (0, 1))
    step = alternative[2][0] - null[2][0]  # [P, L + 1, D]
    slope = (null[1][0] * step).sum(axis=1)  # [2, L + 1, D]
    small = 1e-4
    with torch.no_grad():
        edits = single_neuron_edits(torch.tensor(null[2][0] + small * step), one.places[0])
        moved = by_full_passes(model.model, model.parts, one.base_strings_tok[0], edits,
                               one.candidates_tok).numpy()
    np.testing.assert_allclose((moved.T.reshape(slope.shape) - null[0][0][:, None, None]) / small, slope,
                               rtol=1e-2, atol=1e-4)
