"""Words and candidates of several tokens against one full pass under plain hooks each."""


import numpy as np
import pytest
import torch

from mediation.mediators.neuron_sweeps import (
    neurons_in_trees,
)
from mediation.mediators.neurons import INTERVENTION_TYPES
from mediation.studies.checks import check_neurons
from tests.helpers import CANDIDATES, TOLERANCE, multi_token_stimulus


def by_hooks(model, intervention, kind, layer, neuron):
    """Log-probabilities of both candidates when one neuron is changed at all places.

    One full pass per candidate; shares no code with the sweeps.
    """
    run_on, source, minus = INTERVENTION_TYPES[kind]
    modules = [model.parts.embedding, *model.parts.mlps]
    outputs = {}
    for prompt in {run_on, source, minus} - {None}:
        handle = modules[layer].register_forward_hook(
            lambda _m, _i, output, prompt=prompt: outputs.__setitem__(prompt, output))
        model.model(intervention.base_strings_tok[prompt][None])
        handle.remove()

    def change(_module, _inputs, output):
        output = output.clone()
        rows = output.view(-1, output.shape[-1])
        for place, other in zip(intervention.places[run_on], intervention.places[source]):
            value = outputs[source].view(-1, output.shape[-1])[other, neuron]
            if minus is not None:
                third = intervention.places[minus][intervention.places[run_on].index(place)]
                value = rows[place, neuron] + value - outputs[minus].view(-1, output.shape[-1])[third, neuron]
            rows[place, neuron] = value
        return output

    handle = modules[layer].register_forward_hook(change)
    means = []
    try:
        for ids in intervention.candidates_tok:
            tokens = torch.cat([intervention.base_strings_tok[run_on],
                                torch.tensor(ids[:-1], dtype=torch.long)])
            logits = model.model(tokens[None]).logits[0, len(intervention.base_strings_tok[run_on]) - 1:]
            means.append(float(logits.double().log_softmax(-1)[range(len(ids)), ids].mean()))
    finally:
        handle.remove()
    return means


@pytest.mark.parametrize("kind", ["man_indirect", "woman_direct", "man_minus_woman"])
@pytest.mark.parametrize("multi_token, words",
                         [("last", ("electrician", "man", "woman")), ("all", ("xqz", "zqx", "qzx")),
                          ("last", ("nurse", "electrician", "school principal"))],
                         ids=["last", "all", "longer alternative"])
@torch.no_grad()
def test_several_tokens_equal_hooks(toy_model, in_double, kind, multi_token, words):
    for dtype in TOLERANCE:
        for architecture, candidates in (("gpt2", CANDIDATES[1]), ("llama", CANDIDATES[0]),
                                         ("gemma3_text", CANDIDATES[2]), ("opt", CANDIDATES[1])):
            model = toy_model(architecture, dtype)
            one = multi_token_stimulus(model, words=words, candidates=candidates, multi_token=multi_token)
            assert (len(one.places[0]) > 1) == (multi_token == "all")
            swept = model.neuron_intervention_single_experiment(one, kind)
            together = neurons_in_trees(model, [one], kind)[0]
            for layer, neuron in ((0, 0), (0, 7), (1, 3), (2, 15), (3, 2)):
                expected = by_hooks(model, one, kind, layer, neuron)
                np.testing.assert_allclose(np.log([swept[6][layer, neuron], swept[7][layer, neuron]]),
                                           expected, rtol=TOLERANCE[dtype])
                np.testing.assert_allclose(together[layer, neuron], expected, rtol=TOLERANCE[dtype])
            assert check_neurons(model, one, kind, together.movedim(-1, 0).numpy(),
                                 sample=8).deviation < 10 * TOLERANCE[dtype]
            assert np.ptp(together[1].numpy(), axis=0).min() > 1e-5  # the interventions did something


@pytest.mark.parametrize("template", ["{} said that", "Who is the {}", "\"The {},\" said the man, and"])
@torch.no_grad()
def test_slots_anywhere(toy_model, template):
    model = toy_model("llama", torch.float64)
    one = multi_token_stimulus(model, template)
    swept = neurons_in_trees(model, [one], "man_indirect")[0]
    for layer in (0, 3):
        np.testing.assert_allclose(swept[layer, 5], by_hooks(model, one, "man_indirect", layer, 5), rtol=1e-6)
