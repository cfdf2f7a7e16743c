"""Attention interventions against full passes, and what must hold for any of them."""


import numpy as np
import pytest
import torch

from attention_utils import perform_intervention
from experiment import Intervention, Model
from mediation.errors import InputError
from mediation.mediators.head_sweeps import heads_in_sets
from mediation.mediators.heads import HeadEdits, heads_layers_model
from mediation.mediators.sweeps import sweep_heads
from mediation.model.attention import attention_weights
from mediation.results.attention_results import EFFECTS


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
        edits = HeadEdits(heads_layers_model(model.num_layers, model.num_heads),
                          attention_weights(model.model, model.parts, x), len(x) - 1)
        result = sweep_heads(model.model, model.parts, x, stimulus(model).candidates_tok, edits)
    base = np.log(model.continuation_probabilities(stimulus(model))[0])
    base = torch.tensor(base).expand_as(result)
    assert torch.equal(result, base) or float((result - base).abs().max()) < 1e-15
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
    together = model.attention_intervention_single_experiment(stimulus(model), kind,
                                                              [layer for layer, _ in every],
                                                              [head for _, head in every], False)
    np.testing.assert_allclose(together, swept[4:], rtol=1e-6)
    layer = model.attention_intervention_single_experiment(stimulus(model), kind, [1] * 4, [0, 1, 2, 3],
                                                           False)
    np.testing.assert_allclose(layer, (swept[2][1], swept[3][1]), rtol=1e-6)


def test_a_search_adds_every_head_to_the_set(toy_model, stimulus):
    model = toy_model("llama", torch.float64)
    c1, _ = model.attention_intervention_single_experiment(stimulus(model), "indirect", [0, 2], [1, 3], True)
    pair, _ = model.attention_intervention_single_experiment(stimulus(model), "indirect", [0, 2], [1, 3],
                                                             False)
    three, _ = model.attention_intervention_single_experiment(stimulus(model), "indirect", [0, 2, 1],
                                                              [1, 3, 2], False)
    assert c1.shape == (3, 4)
    assert c1[0, 1] == pytest.approx(pair, rel=1e-6) and c1[2, 3] == pytest.approx(pair, rel=1e-6)
    assert c1[1, 2] == pytest.approx(three, rel=1e-6)


def test_weights_given_by_hand(toy_model, stimulus):
    """2020's `attention_intervention`: one head's weights of the other context are its indirect effect."""
    model = toy_model()
    x, alternative = stimulus(model).base_strings_tok
    with torch.no_grad():
        weights = attention_weights(model.model, model.parts, alternative)
    mask = torch.zeros_like(weights[2:3], dtype=torch.uint8)
    mask[0, 1] = 1
    override = [{"layer": 2, "attention_override": weights[2:3], "attention_override_mask": mask}]
    probabilities = model.attention_intervention(x, stimulus(model).candidates_tok, override)
    swept = model.attention_intervention_experiment(stimulus(model), "indirect")
    np.testing.assert_allclose(probabilities, [swept[0][2, 1], swept[1][2, 1]], rtol=1e-5)
    with pytest.raises(InputError, match="the context needs"):
        model.attention_intervention(x[1:], stimulus(model).candidates_tok, override)


def test_stimuli_that_do_not_fit(toy_model):
    model = toy_model()
    for substitutes, message in ((["she", "the captain"], "not of equal length"),
                                 (["she", "she"], "are the same"), (["she", "he", "it"], "two substitutes")):
        intervention = Intervention(model.tokenizer, "The nurse said that {}", substitutes,
                                    ["was here", "ran"], any_length=True)
        with pytest.raises(InputError, match=message):
            model.attention_intervention_experiment(intervention, "indirect")
    good = Intervention(model.tokenizer, "The nurse said that {}", ["she", "he"], ["was here", "ran"])
    with pytest.raises(InputError, match="'total' is unknown"):
        model.attention_intervention_experiment(good, "total")
    with pytest.raises(InputError, match="head 3-0 is not in the model"):
        model.attention_intervention_single_experiment(good, "direct", [3], [0], False)


# sets in one descent

@pytest.mark.parametrize("kind", ["indirect", "direct"])
def test_sets_with_common_heads_equal_full_passes(toy_model, stimulus, architecture, kind, monkeypatch):
    """Heads that every set has are run once, by a leader.

    Rows without heads of their own, nested sets and single rows are among them.
    """
    model = toy_model(architecture, torch.float64)
    rng = np.random.default_rng(0)
    batches = [[[5, unit] for unit in range(12)], [[2, 9, 11]], [[0], [0, 7], [0, 7, 3]],
               [rng.permutation(12)[:4].tolist() for _ in range(5)], [[11, 10], [11, 9]]]
    for sets in batches:
        chosen = torch.zeros(len(sets), 12, dtype=torch.bool)
        for row, units in enumerate(sets):
            chosen[row, units] = True
        chosen = chosen.reshape(-1, 3, 4)
        fast = heads_in_sets(model, stimulus(model), kind, chosen)
        with monkeypatch.context() as patch:
            patch.setattr(model, "full_passes", True)
            slow = heads_in_sets(model, stimulus(model), kind, chosen)
        np.testing.assert_allclose(fast, slow, atol=1e-10 if architecture == "gpt2" else 1e-6)
