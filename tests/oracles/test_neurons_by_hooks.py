"""Single neurons against full passes under hooks written here, on every architecture of the table."""

import pytest
import torch

from mediation.mediators.neurons import INTERVENTION_TYPES
from tests.helpers import TOLERANCE, profession_stimulus


def probabilities_by_hooks(model, tokens, layer, neuron, value, position, candidates):
    """One intervention, one full eager pass, one hook written here: shares no code with the sweeps."""
    modules = [model.get_input_embeddings(),
               *(module for name, module in model.named_modules() if name.endswith((".mlp", ".fc2")))]

    def hook(_module, _inputs, output):
        output = output.clone()
        output.view(-1, output.shape[-1])[position, neuron] = value
        return output

    handle = modules[layer].register_forward_hook(hook)
    try:
        return model(tokens.unsqueeze(0), use_cache=False).logits[0, -1].softmax(-1)[candidates]
    finally:
        handle.remove()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["man_indirect", "woman_direct"])
def test_every_neuron_equals_a_full_pass_under_a_hook(toy_model, architecture, in_double, dtype, kind):
    model = toy_model(architecture, dtype)
    intervention = profession_stimulus(model)
    run_on, source, _ = INTERVENTION_TYPES[kind]
    # [L + 1, D, C]
    swept = torch.stack(model.neuron_intervention_single_experiment(intervention, kind)[6:], dim=-1)
    values = model.get_representations(intervention.base_strings_tok[source], intervention.position)
    candidates = [ids[0] for ids in intervention.candidates_tok]
    largest = 0.0
    for layer in range(model.num_layers + 1):
        for neuron in range(model.num_neurons):
            with torch.no_grad():
                expected = probabilities_by_hooks(model.model, intervention.base_strings_tok[run_on], layer,
                                                  neuron, values[layer - 1][neuron], intervention.position,
                                                  candidates).double()
            largest = max(largest, float((swept[layer, neuron] / expected - 1).abs().max()))
    assert largest < TOLERANCE[dtype]
    assert float((swept[0] / swept[-1] - 1).abs().max()) > 0.01  # the interventions did something
