"""The sweeps over neurons against full passes, and what must hold for any intervention."""


import numpy as np
import pytest
import torch

from experiment import Intervention
from mediation.mediators import sweeps
from mediation.mediators.neuron_sweeps import (
    SweepOptions,
    direct_interpolants,
    neuron_sets,
    neurons_in_trees,
    null_values,
)
from mediation.mediators.neurons import INTERVENTION_TYPES, NeuronEdits, edited, single_neuron_edits
from mediation.model.forward import run_base
from mediation.model.readout import ReadOut
from tests.helpers import CAUSAL, TOLERANCE, profession_stimulus

# the others are the same for stimuli with one alternative (scripts/test_mediate.py)
KINDS = list(INTERVENTION_TYPES)[:6]


def after(tokens, *candidates):
    """Predictions of single-token candidates after a prompt."""
    return tuple(([len(tokens) - 1], [candidate]) for candidate in candidates)


KINDS_OF_ALL = [*(("llama", kind) for kind in KINDS),
                *((architecture, "woman_minus_man") for architecture in CAUSAL)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("architecture, kind", KINDS_OF_ALL)
def test_descent_equals_full_passes_for_sets_of_neurons(toy_model, in_double, architecture, dtype, kind):
    model = toy_model(architecture, dtype)
    arguments = {"layers_to_adj": [1, -1, 2, 0], "neurons_to_adj": [3, 7, 0, 15], "alpha": 1.5}
    slow = toy_model(architecture, dtype)
    fast = model.neuron_intervention_single_experiment(profession_stimulus(model), kind, **arguments)
    slow.full_passes = True
    try:
        reference = slow.neuron_intervention_single_experiment(profession_stimulus(model), kind, **arguments)
    finally:
        slow.full_passes = False
    for a, b in zip(fast[6:], reference[6:]):
        torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=0)


def test_a_value_replaced_by_itself_changes_nothing(toy_model, architecture):
    model = toy_model(architecture)
    tokens = profession_stimulus(model).base_strings_tok[0]
    with torch.no_grad():
        base = run_base(model.model, model.parts, tokens)
        edits = single_neuron_edits(base.representations(1), position=1)
        predictions = after(tokens, 1, 2)
        result = sweeps.sweep(model.parts, base, predictions, edits)
        expected = ReadOut(model.parts, predictions)(base.residuals[-1].unsqueeze(0)).expand_as(result)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(result[-model.num_neurons:], expected[-model.num_neurons:])  # last layer: exactly


@pytest.mark.parametrize("kind", KINDS)
def test_last_layer_before_the_last_position_has_exactly_no_effect(toy_model, architecture, kind):
    model = toy_model(architecture)
    result = model.neuron_intervention_single_experiment(profession_stimulus(model), kind)
    run_on = INTERVENTION_TYPES[kind][0]
    for candidate in (0, 1):
        assert (result[6 + candidate][-1] == result[2 * run_on + candidate]).all()


def test_last_layer_at_the_last_position_is_run(toy_model):
    model = toy_model()
    result = model.neuron_intervention_single_experiment(profession_stimulus(model, "Who is the {}"),
                                                         "man_indirect")
    assert (result[6][-1] != result[0]).any()


def test_batch_size_does_not_matter(toy_model):
    model = toy_model("llama", torch.float64)
    one, many = (model.neuron_intervention_single_experiment(profession_stimulus(model), "man_indirect",
                                                             bsize=bsize) for bsize in (7, 1000))
    torch.testing.assert_close(one[6], many[6], rtol=1e-12, atol=0)


def test_a_batch_that_does_not_fit_is_halved(toy_model, monkeypatch):
    model = toy_model()
    whole = model.neuron_intervention_single_experiment(profession_stimulus(model), "man_indirect")
    sizes, descend = [], sweeps.by_descent

    def little_memory(parts, base, edits, read_out):
        sizes.append(len(edits))
        if len(edits) > 10:
            torch.empty(10**15)  # the allocator's own error
        return descend(parts, base, edits, read_out)

    monkeypatch.setattr(sweeps, "by_descent", little_memory)
    halved = model.neuron_intervention_single_experiment(profession_stimulus(model), "man_indirect", bsize=30)
    assert sizes[:3] == [30, 15, 7] and max(sizes[2:]) == 7
    torch.testing.assert_close(halved[6], whole[6], rtol=1e-5, atol=0)


def test_other_errors_are_not_taken_for_a_lack_of_memory(toy_model, monkeypatch):
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(sweeps, "by_descent", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        toy_model().neuron_intervention_single_experiment(profession_stimulus(toy_model()), "man_indirect")


def test_a_neuron_named_twice_is_changed_once(toy_model):
    model = toy_model(dtype=torch.float64)
    tokens = profession_stimulus(model).base_strings_tok[0]
    with torch.no_grad():
        base = run_base(model.model, model.parts, tokens)
        value = torch.full((1, 1), 2.0, dtype=torch.float64)
        for layer in (0, 2):
            once, twice = (NeuronEdits(torch.full((1, k), layer), torch.full((1, k), 5), value.expand(1, k),
                                       1, add=True) for k in (1, 2))
            results = [sweeps.by_descent(model.parts, base, edits, ReadOut(model.parts, after(tokens, 1)))
                       for edits in (once, twice)]
            assert torch.equal(*results)
            torch.testing.assert_close(sweeps.by_full_passes(model.model, model.parts, tokens, twice, [[1]]),
                                       results[0], rtol=1e-10, atol=0)


def test_rows_come_back_in_the_callers_order(toy_model):
    model = toy_model(dtype=torch.float64)
    tokens = profession_stimulus(model).base_strings_tok[0]
    shuffled = torch.randperm((model.num_layers + 1) * model.num_neurons,
                              generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = run_base(model.model, model.parts, tokens)
        edits = single_neuron_edits(base.representations(1) + 1, 1)
        straight = sweeps.sweep(model.parts, base, after(tokens, 1, 2), edits)
        mixed = sweeps.sweep(model.parts, base, after(tokens, 1, 2), edits[shuffled])
    torch.testing.assert_close(mixed, straight[shuffled], rtol=1e-12, atol=0)


def test_hooks_are_gone_after_an_error(toy_model):
    model = toy_model()
    edits = single_neuron_edits(torch.zeros(4, 16), 1)
    with pytest.raises(ZeroDivisionError), edited(model.parts, edits):
        raise ZeroDivisionError
    with pytest.raises(IndexError):
        run_base(model.model, model.parts, torch.tensor([10**6]))
    for module in model.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_sweep_counts_its_progress(toy_model):
    model, done = toy_model(), []
    model.neuron_intervention_single_experiment(profession_stimulus(model), "man_indirect",
                                                progress=done.append)
    assert sum(done) == (model.num_layers + 1) * model.num_neurons


# sharing between prompts and between values

TEMPLATES = ("The {} said that", "The {} yelled that", "The {} yelled because", "The {} was fired because",
             "The {} was promoted because")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_of_prompts_equals_each_prompt_alone(toy_model, architecture, in_double, dtype, kind):
    model = toy_model(architecture, dtype)
    stimuli = [profession_stimulus(model, template) for template in TEMPLATES]
    together = neurons_in_trees(model, stimuli, kind, SweepOptions(alpha=1.5))
    base = model.base_in_trees(stimuli)
    for number, one in enumerate(stimuli):
        alone = model.neuron_intervention_single_experiment(one, kind, alpha=1.5)
        for candidate in (0, 1):
            torch.testing.assert_close(together[number, ..., candidate].exp(), alone[6 + candidate],
                                       rtol=TOLERANCE[dtype], atol=0)
        assert base[number].exp().flatten().tolist() == pytest.approx(alone[:6], rel=TOLERANCE[dtype])
        run_on = INTERVENTION_TYPES[kind][0]
        # last layer before the last position: exactly no effect
        assert (together[number, -1] == base[number, run_on]).all()


def test_prompts_that_do_not_begin_alike_are_trees_of_their_own(toy_model):
    model = toy_model("gpt2", torch.float64)
    stimuli = [profession_stimulus(model, "The {} said that"),
               profession_stimulus(model, "Then the {} said that"),
               profession_stimulus(model, "The {} ran because")]
    assert [members for members, _ in model.trees(stimuli, 0)] == [[0, 2], [1]]
    together = neurons_in_trees(model, stimuli, "man_indirect")
    for number, one in enumerate(stimuli):
        torch.testing.assert_close(together[number, ..., 0].exp(),
                                   model.neuron_intervention_single_experiment(one, "man_indirect")[6],
                                   rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", ["man_direct", "woman_direct"])
def test_interpolated_direct_effects_equal_each_professions_own(toy_model, kind):
    model = toy_model("gpt2", torch.float64)
    words = {word: [profession_stimulus(model, template, word) for template in TEMPLATES]
             for word in ("nurse", "captain", "clerk", "doctor", "king")}
    values = dict(zip(words, null_values(model, [stimuli[0] for stimuli in words.values()])))
    halved = SweepOptions(alpha=0.5)
    for layer in range(model.num_layers + 1):
        of_words = np.stack([of_word[layer] for of_word in values.values()])
        shared = direct_interpolants(model, words["nurse"], kind, of_words, layer, halved)
        assert shared.error < 1e-9
        for number, (word, stimuli) in enumerate(words.items()):
            expected = neurons_in_trees(model, stimuli, kind, halved)[:, layer]  # [templates, D, 2]
            np.testing.assert_allclose(shared(values[word][layer], number).reshape(-1, len(TEMPLATES), 2),
                                       expected.movedim(0, 1), atol=1e-9)


# sets in one descent

def test_neuron_sets_equal_the_experiment(toy_model):
    model = toy_model("llama", torch.float64)
    intervention = Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"])
    swept, base = neuron_sets(model, intervention, "man_indirect", torch.tensor([[3 * 16 + 2, 5], [7, 7]]))
    pair = model.neuron_intervention_single_experiment(intervention, "man_indirect", [2, -1], [2, 5],
                                                       intervention_loc="neuron")
    one = model.neuron_intervention_single_experiment(intervention, "man_indirect", [-1], [7],
                                                      intervention_loc="neuron")
    np.testing.assert_allclose(swept.exp(),
                               [[pair[6].item(), pair[7].item()], [one[6].item(), one[7].item()]], rtol=1e-10)
    np.testing.assert_allclose(base.exp(), pair[:2], rtol=1e-10)
