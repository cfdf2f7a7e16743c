"""Single heads by hooks on the projections of the library's own eager attention; no code of the sweeps."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mediation.results.attention_results import EFFECTS


def projected_values(attention, heads, key_value_heads):
    """What gives an architecture's values: module, function of its output, output projection.

    The function takes an output [T, ...] to [T, key-value heads, d].
    """
    names = dict(attention.named_children())
    out = next(names[name] for name in ("o_proj", "c_proj", "out_proj", "dense", "out_lin") if name in names)

    def alone(output):
        return output.reshape(len(output), key_value_heads, -1)

    def last_third(output):
        return output.chunk(3, dim=-1)[2].reshape(len(output), heads, -1)

    def last_of_each_head(output):
        return output.reshape(len(output), heads, 3, -1)[:, :, 2]

    def behind_queries_and_keys(output):
        return output.reshape(len(output), heads + 2 * key_value_heads, -1)[:, -key_value_heads:]

    functions = {"v_proj": alone, "v_lin": alone, "c_attn": last_third, "query_key_value": last_of_each_head,
                 "qkv_proj": behind_queries_and_keys}
    name = next(name for name in functions if name in names)
    return names[name], functions[name], out


def effect_by_hooks(model, eager, intervention, kind, layer, head):
    """One head by hooks on its projections, one full pass of the library's own eager attention per candidate.

    Args:
        eager: the library's model of the same weights, with `attn_implementation="eager"`.
    """
    attention = [module for name, module in eager.named_modules()
                 if name.endswith((".attn", ".self_attn", ".attention"))][layer]
    contexts = intervention.base_strings_tok if kind == "indirect" else intervention.base_strings_tok[::-1]
    own, new = (eager(context[None], output_attentions=True).attentions[layer][0, head]
                for context in contexts)
    groups = model.num_heads // getattr(eager.config, "num_key_value_heads", model.num_heads)
    values_module, of_heads, out = projected_values(attention, model.num_heads, model.num_heads // groups)
    length, values = len(contexts[0]), []

    def change(_module, inputs):
        changed = inputs[0].clone()
        of_rows = changed.view(-1, model.num_heads, changed.shape[-1] // model.num_heads)
        of_rows[:length, head] += (new - own) @ values[-1][:length, head // groups]
        return (changed,)

    handles = [values_module.register_forward_hook(lambda _m, _i, output: values.append(of_heads(output[0]))),
               out.register_forward_pre_hook(change)]
    means = []
    try:
        for ids in intervention.candidates_tok:
            tokens = torch.cat([contexts[0], torch.tensor(ids[:-1], dtype=torch.long)])
            logits = eager(tokens[None]).logits[0, length - 1:]
            means.append(float(logits.double().log_softmax(-1)[range(len(ids)), ids].mean()))
    finally:
        for handle in handles:
            handle.remove()
    return means


@pytest.mark.parametrize("kind", EFFECTS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@torch.no_grad()
def test_every_head_equals_hooks_on_its_projections(toy_model, toy_checkpoint, stimulus, architecture,
                                                    in_double, dtype, tolerance, kind):
    model = toy_model(architecture, dtype)
    eager = AutoModelForCausalLM.from_pretrained(toy_checkpoint(architecture), dtype=dtype,
                                                 attn_implementation="eager")
    swept = model.attention_intervention_experiment(stimulus(model), kind)
    expected = np.array([[effect_by_hooks(model, eager, stimulus(model), kind, layer, head)
                          for head in range(model.num_heads)] for layer in range(model.num_layers)])
    log_probabilities = np.log([p.numpy() for p in swept[:2]])
    np.testing.assert_allclose(log_probabilities, np.moveaxis(expected, -1, 0), rtol=tolerance)
    assert np.ptp(log_probabilities[0]) > 1e-4  # the interventions did something
