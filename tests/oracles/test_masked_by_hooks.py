"""Masked models by hooks on the library's own eager forward: all six ways to score."""


import numpy as np
import pytest
import torch

from mediation.model.masked import APPROACHES
from mediation.results.attention_results import EFFECTS
from tests.helpers import BEGIN, MASK, MASKED, SEPARATOR


@pytest.fixture(params=MASKED)
def architecture(request):
    return request.param


def sequence_by_hand(context, candidate, index, approach):
    """(token ids, position of the mask) by the words of the contract."""
    later = candidate[index + 1:]
    ids = list(context) + list(candidate[:index]) + [MASK]
    position = len(ids) - 1
    if approach in (2, 5):
        ids = ids + later
    if approach in (3, 6):
        ids = ids + [MASK for _ in later]
    return ([BEGIN, *ids, SEPARATOR], position + 1) if approach > 3 else (ids, position)


def override_by_hooks(eager, heads, new, length):
    """Handles of hooks that put weights `new` of `heads` {(layer, head)} into a run of `length` tokens."""
    modules = [module for name, module in eager.named_modules()
               if name.endswith(("attention.self", ".attention")) and hasattr(module, "dropout")
               and not hasattr(module, "self")]
    count, values, handles = eager.config.num_attention_heads, {}, []

    def keep(layer):
        def hook(_module, _inputs, output):
            values[layer] = output[0].reshape(length, count, -1)
        return hook

    def change(layer, outputs):
        whole = outputs[0].clone()
        for of_layer, head in heads:
            if of_layer == layer:
                whole.view(length, count, -1)[:, head] = new[layer][0, head] @ values[layer][:, head]
        return (whole, *outputs[1:])

    for layer, module in enumerate(modules):
        handles.append((getattr(module, "value", None) or module.v_lin).register_forward_hook(keep(layer)))
        if hasattr(module, "out_lin"):
            handles.append(module.out_lin.register_forward_pre_hook(
                lambda _module, inputs, layer=layer: change(layer, inputs)))
        else:
            handles.append(module.register_forward_hook(
                lambda _module, _inputs, outputs, layer=layer: change(layer, outputs)))
    return handles


def by_hooks(eager, intervention, effect, heads, approach):
    """Mean token log-probabilities of both candidates.

    The weights of `heads` {(layer, head)} are taken from the other prompt.
    """
    x, alternative = (tokens.tolist() for tokens in intervention.base_strings_tok)
    run_on, source = (x, alternative) if effect == "indirect" else (alternative, x)
    means = []
    for candidate in intervention.candidates_tok:
        each = []
        for index, token in enumerate(candidate):
            ids, position = sequence_by_hand(run_on, candidate, index, approach)
            other, _ = sequence_by_hand(source, candidate, index, approach)
            handles = override_by_hooks(eager, heads, eager(torch.tensor([other]),
                                                            output_attentions=True).attentions, len(ids))
            try:
                logits = eager(torch.tensor([ids])).logits[0, position]
            finally:
                for handle in handles:
                    handle.remove()
            each.append(float(logits.double().log_softmax(-1)[token]))
        means.append(np.mean(each))
    return means


@pytest.mark.parametrize("approach", APPROACHES)
@torch.no_grad()
def test_every_head_and_approach_equals_plain_hooks(masked_model, stimulus, architecture, in_double,
                                                    approach):
    if approach not in (1, 6) and architecture != "bert":
        pytest.skip("how masks are filled does not depend on the architecture")
    of_dtypes = [(torch.float64, 1e-10), (torch.float32, 1e-5)]
    for dtype, tolerance in of_dtypes[:None if approach in (1, 6) else 1]:
        model, eager = masked_model(architecture, approach, dtype)
        one = stimulus(model)
        kind = EFFECTS[approach % 2]
        swept = model.attention_intervention_experiment(one, kind)
        for layer, head in ((0, 3), (2, 1)):
            expected = by_hooks(eager, one, kind, {(layer, head)}, approach)
            np.testing.assert_allclose(np.log([swept[0][layer, head], swept[1][layer, head]]), expected,
                                       rtol=tolerance)
        whole = {(layer, head) for layer in range(3) for head in range(4)}
        np.testing.assert_allclose(np.log(swept[4:]), by_hooks(eager, one, kind, whole, approach),
                                   rtol=tolerance)
        np.testing.assert_allclose(np.log([swept[2][1], swept[3][1]]),
                                   by_hooks(eager, one, kind, {(1, head) for head in range(4)}, approach),
                                   rtol=tolerance)
        np.testing.assert_allclose(np.log(model.continuation_probabilities(one)[0]),
                                   by_hooks(eager, one, "indirect", set(), approach), rtol=tolerance)
        assert np.ptp(swept[0].numpy()) > 1e-3 * swept[0].mean()  # the interventions did something
