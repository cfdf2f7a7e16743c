"""Attention interventions against references, what must hold for any of them, and the readers of the data sets."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from attention_utils import get_odds_ratio, perform_intervention
from experiment import Intervention, Model
from mediation.effects.odds import effect, log_odds
from mediation.effects.statistics import strong_examples
from mediation.errors import InputError
from mediation.mediators.heads import HeadEdits, heads_layers_model
from mediation.mediators.sweeps import sweep_heads
from mediation.model import attention
from mediation.model.attention import attention_weights
from mediation.model.forward import pack
from mediation.results.attention_results import EFFECTS, SCALARS, STRINGS
from mediation.stimuli import winobias, winogender
from tests.conftest import WINOBIAS_ROWS

# interventions


def projected_values(attention, heads, key_value_heads):
    """(module that gives the values, function of its output [T, ...] to [T, key-value heads, d], output projection), as this architecture has them."""
    names = dict(attention.named_children())
    out = next(names[name] for name in ("o_proj", "c_proj", "out_proj", "dense", "out_lin") if name in names)
    if "v_proj" in names or "v_lin" in names:
        return names.get("v_proj", names.get("v_lin")), lambda output: output.reshape(len(output), key_value_heads, -1), out
    if "c_attn" in names:
        return names["c_attn"], lambda output: output.chunk(3, dim=-1)[2].reshape(len(output), heads, -1), out
    if "query_key_value" in names:
        return names["query_key_value"], lambda output: output.reshape(len(output), heads, 3, -1)[:, :, 2], out
    return names["qkv_proj"], lambda output: output.reshape(len(output), heads + 2 * key_value_heads, -1)[:, -key_value_heads:], out


def effect_by_hooks(model, eager, intervention, kind, layer, head):
    """One head by hooks on its projections, one full pass of the library's own eager attention a candidate: shares no code with the sweeps.

    Args:
        eager: the library's model of the same weights, with `attn_implementation="eager"`.
    """
    attention = [module for name, module in eager.named_modules() if name.endswith((".attn", ".self_attn", ".attention"))][layer]
    contexts = intervention.base_strings_tok if kind == "indirect" else intervention.base_strings_tok[::-1]
    own, new = (eager(context[None], output_attentions=True).attentions[layer][0, head] for context in contexts)
    groups = model.num_heads // getattr(eager.config, "num_key_value_heads", model.num_heads)
    values_module, of_heads, out = projected_values(attention, model.num_heads, model.num_heads // groups)
    length, values = len(contexts[0]), []

    def change(_module, inputs):
        changed = inputs[0].clone()
        changed.view(-1, model.num_heads, changed.shape[-1] // model.num_heads)[:length, head] += (new - own) @ values[-1][:length, head // groups]
        return (changed,)

    handles = [values_module.register_forward_hook(lambda _m, _i, output: values.append(of_heads(output[0]))), out.register_forward_pre_hook(change)]
    found = []
    try:
        for ids in intervention.candidates_tok:
            logits = eager(torch.cat([contexts[0], torch.tensor(ids[:-1], dtype=torch.long)])[None]).logits[0, length - 1:]
            found.append(float(logits.double().log_softmax(-1)[range(len(ids)), ids].mean()))
    finally:
        for handle in handles:
            handle.remove()
    return found


@pytest.mark.parametrize("kind", EFFECTS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@torch.no_grad()
def test_every_head_equals_hooks_on_its_projections(toy_model, toy_checkpoint, stimulus, architecture, in_double, dtype, tolerance, kind):
    model = toy_model(architecture, dtype)
    eager = AutoModelForCausalLM.from_pretrained(toy_checkpoint(architecture), dtype=dtype, attn_implementation="eager")
    swept = model.attention_intervention_experiment(stimulus(model), kind)
    expected = np.array([[effect_by_hooks(model, eager, stimulus(model), kind, layer, head) for head in range(model.num_heads)]
                         for layer in range(model.num_layers)])
    found = np.log([p.numpy() for p in swept[:2]])
    np.testing.assert_allclose(found, np.moveaxis(expected, -1, 0), rtol=tolerance)
    assert np.ptp(found[0]) > 1e-4  # the interventions did something


@pytest.mark.parametrize("kind", EFFECTS)
def test_descent_equals_full_passes(toy_model, stimulus, monkeypatch, architecture, in_double, kind):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = toy_model(architecture, dtype)
        fast = model.attention_intervention_experiment(stimulus(model), kind)
        with monkeypatch.context() as patch:
            patch.setattr(model, "full_passes", True)
            slow = model.attention_intervention_experiment(stimulus(model), kind)
        for a, b in zip(fast, slow):
            np.testing.assert_allclose(a, b, rtol=tolerance)
        assert np.ptp(fast[0].numpy()) > 1e-3 * fast[0].mean()  # the interventions did something


def test_overriding_with_the_runs_own_weights_changes_nothing(toy_model, stimulus, architecture):
    model = toy_model(architecture)
    x = stimulus(model).base_strings_tok[0]
    with torch.no_grad():
        edits = HeadEdits(heads_layers_model(model.num_layers, model.num_heads), attention_weights(model.model, model.parts, x), len(x) - 1)
        result = sweep_heads(model.model, model.parts, x, stimulus(model).candidates_tok, edits)
    base = np.log(model.continuation_probabilities(stimulus(model))[0])
    assert torch.equal(result, torch.tensor(base).expand_as(result)) or float((result - torch.tensor(base)).abs().max()) < 1e-15
    assert (result == result[0]).all()


def test_a_head_whose_rows_do_not_differ_has_exactly_no_effect(toy_checkpoint, stimulus):
    model = Model(gpt2_version=str(toy_checkpoint("llama")))
    attention, size = model.model.model.layers[1].self_attn, 4
    attention.q_proj.weight.data[2 * size:3 * size] = 0  # head 2 looks everywhere alike, whatever the pronoun
    entry = perform_intervention(stimulus(model), model)
    assert entry["indirect_effect_head"][1][2] == 0
    assert entry["direct_effect_head"][1][2] == pytest.approx(entry["total_effect"], rel=1e-12)
    assert min(abs(value) for row in (0, 2) for value in entry["indirect_effect_head"][row]) > 0


@pytest.mark.parametrize("kind", EFFECTS)
def test_all_heads_of_all_layers_equal_the_model(toy_model, stimulus, architecture, kind):
    model = toy_model(architecture)
    every = [divmod(unit, model.num_heads) for unit in range(model.num_layers * model.num_heads)]
    swept = model.attention_intervention_experiment(stimulus(model), kind)
    together = model.attention_intervention_single_experiment(stimulus(model), kind, [layer for layer, _ in every], [head for _, head in every], False)
    np.testing.assert_allclose(together, swept[4:], rtol=1e-6)
    layer = model.attention_intervention_single_experiment(stimulus(model), kind, [1] * 4, [0, 1, 2, 3], False)
    np.testing.assert_allclose(layer, (swept[2][1], swept[3][1]), rtol=1e-6)


def test_a_search_adds_every_head_to_the_set(toy_model, stimulus):
    model = toy_model("llama", torch.float64)
    c1, _ = model.attention_intervention_single_experiment(stimulus(model), "indirect", [0, 2], [1, 3], True)
    pair, _ = model.attention_intervention_single_experiment(stimulus(model), "indirect", [0, 2], [1, 3], False)
    three, _ = model.attention_intervention_single_experiment(stimulus(model), "indirect", [0, 2, 1], [1, 3, 2], False)
    assert c1.shape == (3, 4)
    assert c1[0, 1] == pytest.approx(pair, rel=1e-6) and c1[2, 3] == pytest.approx(pair, rel=1e-6) and c1[1, 2] == pytest.approx(three, rel=1e-6)


def test_weights_given_by_hand(toy_model, stimulus):
    """2020's `attention_intervention` with the other context's weights in one head is the indirect effect of that head."""
    model = toy_model()
    x, alternative = stimulus(model).base_strings_tok
    with torch.no_grad():
        weights = attention_weights(model.model, model.parts, alternative)
    mask = torch.zeros_like(weights[2:3], dtype=torch.uint8)
    mask[0, 1] = 1
    override = [{"layer": 2, "attention_override": weights[2:3], "attention_override_mask": mask}]
    found = model.attention_intervention(x, stimulus(model).candidates_tok, override)
    swept = model.attention_intervention_experiment(stimulus(model), "indirect")
    np.testing.assert_allclose(found, [swept[0][2, 1], swept[1][2, 1]], rtol=1e-5)
    with pytest.raises(InputError, match="the context needs"):
        model.attention_intervention(x[1:], stimulus(model).candidates_tok, override)


def test_changed_outputs_are_gone_after_an_error(toy_model):
    model = toy_model()
    with pytest.raises(ZeroDivisionError), attention.changed_outputs({model.parts.attentions[0]: lambda output, *_: output}):
        raise ZeroDivisionError
    assert not attention._changes


def test_packed_candidates_do_not_see_each_other(toy_model, stimulus, architecture):
    model = toy_model(architecture, torch.float64)
    packed = pack([[7, 8, 9]], [[1, 2, 3], [4], [5, 6]], "cpu")
    assert packed.tokens.tolist() == [7, 8, 9, 1, 2, 5] and packed.position_ids.tolist() == [0, 1, 2, 3, 4, 3]
    assert packed.predictions == (([2, 3, 4], [1, 2, 3]), ([2], [4]), ([2, 5], [5, 6]))
    intervention = stimulus(model)
    for context, found in zip(intervention.base_strings_tok, model.continuation_probabilities(intervention)):
        assert found == pytest.approx(model.get_probabilities_for_examples_multitoken(context, intervention.candidates_tok), rel=1e-6)


def test_stimuli_that_do_not_fit(toy_model):
    model = toy_model()
    for substitutes, message in ((["she", "the captain"], "not of equal length"), (["she", "she"], "are the same"), (["she", "he", "it"], "two substitutes")):
        intervention = Intervention(model.tokenizer, "The nurse said that {}", substitutes, ["was here", "ran"], any_length=True)
        with pytest.raises(InputError, match=message):
            model.attention_intervention_experiment(intervention, "indirect")
    good = Intervention(model.tokenizer, "The nurse said that {}", ["she", "he"], ["was here", "ran"])
    with pytest.raises(InputError, match="'total' is unknown"):
        model.attention_intervention_experiment(good, "total")
    with pytest.raises(InputError, match="head 3-0 is not in the model"):
        model.attention_intervention_single_experiment(good, "direct", [3], [0], False)


def test_effects_of_one_example_by_hand(toy_model, stimulus):
    model = toy_model()
    intervention = stimulus(model)
    entry = perform_intervention(intervention, model)
    assert set(entry) == {*STRINGS, *SCALARS, *(f"{kind}_{name}" for kind in EFFECTS for name in ("odds_head", "effect_head", "effect_layer"))}
    (c1, c2), (a1, a2) = model.continuation_probabilities(intervention)
    assert entry["total_effect"] == pytest.approx((a2 / a1 - c2 / c1) / (c2 / c1))
    assert entry["odds_alt"] / entry["odds_base"] == pytest.approx(get_odds_ratio(intervention, model), rel=1e-12)
    direct = model.attention_intervention_experiment(intervention, "direct")
    assert entry["direct_effect_layer"][1] == pytest.approx(float(effect(log_odds(direct[3][1], direct[2][1]), log_odds(c2, c1))))
    assert entry["candidate1"] == "w as h e re ." or entry["candidate1"].replace(" ", "") == "washere."


def test_filter():
    kept, aligned, threshold = strong_examples([0.5, 1.0, 1.1, 1.2, 1.3, 2.0, 0.9], 0.25)
    assert (kept, aligned) == ([3, 4, 5], 4) and threshold == pytest.approx(1.175)
    with pytest.raises(InputError, match="--do-filter False"):
        strong_examples([0.5, 1.0], 0.25)


# readers


def test_winobias_by_its_rules(data):
    first, second, third = winobias.load("dev")
    assert first.base_string == "The carpenter thanked the nurse because {}" and first.substitutes == ("she", "he")
    assert first.candidates == ("had helped in the night.", "was ill.") and first.referents == ("nurse", "carpenter")
    assert second.referents == ("teacher", "driver") and third.candidates == ("slept.", "left.")  # the pair with [him] is skipped


def test_winogender_by_its_rules(data):
    (bls,), (bergsma,) = winogender.load("bls"), winogender.load("bergsma")
    assert bls.base_string == "The teacher told the captain that {}" and bls.candidates == ("had to go home.", "could go.")  # above 50
    assert bergsma.candidates == bls.candidates[::-1]


@pytest.mark.parametrize("name, old, new, message", [
    ("winobias_data/pro_stereotyped_type1.txt.dev", WINOBIAS_ROWS.splitlines()[7], "", "line 7: the last row has no partner"),
    ("winobias_data/pro_stereotyped_type1.txt.dev", "[the teacher]", "[the preacher]", "line 4: .* does not mark one listed occupation"),
    ("winobias_data/pro_stereotyped_type1.txt.dev", "[she] had", "[it] had", "line 2: .* does not mark one pronoun"),
    ("winobias_data/female_occupations.txt", "teacher", "tailor", "line 4: .*listed occupation"),
    ("winobias_data/male_occupations.txt", "driver", "teacher", "listed occupation"),
    ("winogender_data/templates.tsv", "clerk\tcaptain\t0\tThe $OCCUPATION saw the $PARTICIPANT and $POSS_PRONOUN cat.", "",
     "line 4: the last row has no partner"),
    ("winogender_data/templates.tsv", "captain\t0\tThe $OCCUPATION told", "captain\t1\tThe $OCCUPATION told", "lines 2 and 3 are no pair"),
    ("winogender_data/templates.tsv", "\tsentence", "\ttext", "column 'sentence' is missing"),
    ("winogender_data/occupations-stats.tsv", "clerk", "cleric", "occupation 'clerk' has no bls statistic"),
    ("winogender_data/occupations-stats.tsv", "80.5", "most", "occupation 'teacher' has no bls statistic"),
])
def test_damaged_data(data, name, old, new, message):
    path = data / name
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new).encode())
    with pytest.raises(InputError, match=message):
        winobias.load("dev") if "winobias" in name else winogender.load("bls")


def test_unknown_parts_of_the_data(data):
    for load, name in ((winobias.load, "train"), (winogender.load, "census")):
        with pytest.raises(InputError, match=f"'{name}' is unknown: choose from"):
            load(name)
