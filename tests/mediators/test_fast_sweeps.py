"""Sweeps in bfloat16 on differences against exact ones, and which rows are run exactly."""


import pytest
import torch

from experiment import Intervention, Model
from mediation.mediators import batches
from mediation.mediators.batches import in_two_precisions
from mediation.mediators.head_sweeps import head_edits
from mediation.mediators.heads import heads_layers_model
from mediation.mediators.neuron_sweeps import SweepOptions, neurons_in_trees
from mediation.mediators.neurons import INTERVENTION_TYPES, single_neuron_edits
from mediation.mediators.sweeps import sweep, sweep_heads
from mediation.model.fast_rows import FastRows
from mediation.model.forward import run_base
from tests.helpers import profession_stimulus

TEMPLATES = ("The {} said that", "The {} yelled because", "The {} was fired because")


@pytest.mark.parametrize("kind", list(INTERVENTION_TYPES)[:6])
def test_fast_sweeps_are_within_their_bound(fast_model, toy_model, architecture, kind):
    exact_model = toy_model(architecture)
    stimuli = [profession_stimulus(fast_model, template) for template in TEMPLATES]
    fast = neurons_in_trees(fast_model, stimuli, kind)
    exact = neurons_in_trees(exact_model, stimuli, kind)
    assert float((fast - exact).abs().max()) < batches.BOUND
    # the last layer's cannot reach the output
    assert fast_model.fast_rows.rows == fast_model.num_layers * fast_model.num_neurons


def test_small_interventions_are_run_fast(fast_model, toy_model, architecture):
    exact_model = toy_model(architecture)
    stimuli = [profession_stimulus(fast_model, template) for template in TEMPLATES]
    fast = neurons_in_trees(fast_model, stimuli, "man_minus_woman", SweepOptions(alpha=0.02))
    exact = neurons_in_trees(exact_model, stimuli, "man_minus_woman", SweepOptions(alpha=0.02))
    differs, counts = (fast != exact).any(dim=-1).any(dim=0).flatten(), fast_model.fast_rows
    assert 0 < float((fast - exact).abs().max()) < batches.BOUND
    assert 0 < int(differs.sum()) <= counts.rows - counts.exact
    assert 0 < counts.sampled <= counts.rows - counts.exact and 0 < counts.largest_deviation < batches.BOUND


@pytest.mark.parametrize("effect", ["indirect", "direct"])
def test_fast_sweeps_of_heads_are_within_their_bound(fast_model, toy_model, architecture, effect):
    model, sets = toy_model(architecture), heads_layers_model(3, 4)
    example = Intervention(model.tokenizer, "The captain told the nurse that {}", ["she", "he"],
                           ["was here.", "said that the man went home."])
    with torch.no_grad():
        context, edits = head_edits(model, example, effect, sets)
        exact = sweep_heads(model.model, model.parts, context, example.candidates_tok, edits)
        fast = sweep_heads(model.model, model.parts, context, example.candidates_tok, edits,
                           fast=fast_model.fast_rows)
    assert float((fast - exact).abs().max()) < batches.BOUND


@pytest.mark.parametrize("common", [False, True])
def test_heads_on_differences_are_near_exact_ones(fast_model, toy_model, architecture, monkeypatch, common):
    """With next to no sample and no row too far, all rows stay in bfloat16.

    Their errors are a hundredth of the effects.
    """
    monkeypatch.setattr(batches, "AT_LEAST", 2)
    monkeypatch.setattr(batches, "AIM", torch.inf)
    monkeypatch.setattr(batches, "BOUND", 1.0)
    model, sets = toy_model(architecture), heads_layers_model(3, 4)
    sets = (sets | sets[5])[[unit for unit in range(12) if unit != 5]] if common else sets
    example = Intervention(model.tokenizer, "The captain told the nurse that {}", ["she", "he"],
                           ["was here.", "said that the man went home."])
    with torch.no_grad():
        context, edits = head_edits(model, example, "indirect", sets)
        exact = sweep_heads(model.model, model.parts, context, example.candidates_tok, edits)
        fast = sweep_heads(model.model, model.parts, context, example.candidates_tok, edits,
                           fast=fast_model.fast_rows)
    assert fast_model.fast_rows.rows - fast_model.fast_rows.exact >= len(sets) - 4
    assert 0 < float((fast - exact).norm()) < 0.02 * float((exact - exact.mean(dim=0)).norm())


def test_only_what_differs_is_bfloat16(toy_checkpoint, architecture):
    """The same interventions, all in plain bfloat16, are far off: only differences make bfloat16 usable."""
    # its weights will be rounded
    model = Model(gpt2_version=str(toy_checkpoint(architecture)), precision="fast")
    tokens = profession_stimulus(model).base_strings_tok[0]
    predictions = tuple(([len(tokens) - 1], [token]) for token in (1, 2))
    with torch.no_grad():
        base = run_base(model.model, model.parts, tokens, linear_maps=True)
        edits = single_neuron_edits(base.representations(1) + 0.01, 1)
        exact = sweep(model.parts, base, predictions, edits)
        counts = FastRows()
        fast = sweep(model.parts, base, predictions, edits, fast=counts)
        model.model.bfloat16()
        coarse_edits = single_neuron_edits((base.representations(1) + 0.01).bfloat16(), 1)
        coarse = sweep(model.parts, run_base(model.model, model.parts, tokens), predictions, coarse_edits)
        model.model.float()
    assert counts.exact < counts.rows
    assert float((fast - exact).abs().max()) < 0.1 * float((coarse - exact).abs().max())


# which rows are run exactly, on rows whose error is known

def two_ways(error):
    """Functions of rows as the sweeps have them: exact numbers, and ones that are off by error(rows)."""
    truth = torch.arange(400, dtype=torch.float64).unsqueeze(1)
    distance = torch.linspace(1, 0.01, 400, dtype=torch.float64).unsqueeze(1)

    def approximately(rows):
        return torch.cat([truth[rows] + error(rows, distance[rows]), distance[rows]], dim=1)

    return truth, lambda rows: truth[rows], approximately


def test_rows_far_from_the_base_run_are_exact():
    def error_of(rows, distance):
        return batches.AIM * distance * (1 - 2 * (rows % 2)).unsqueeze(1)

    truth, exactly, approximately = two_ways(error_of)
    result, fast, done = torch.full((400, 1), torch.nan, dtype=torch.float64), FastRows(), []
    in_two_precisions(exactly, approximately, torch.arange(400), torch.arange(400) // 100, 50, result, fast,
                      done.append)
    error = (result - truth).abs().squeeze(1)
    # 267 are far, and three layers of four mostly
    assert sum(done) == fast.rows == 400 and 267 <= fast.exact <= 300 + batches.AT_LEAST
    assert (error[:200] == 0).all()  # the far half: three times their error is above the aim
    assert 0 < error.max() <= batches.AIM / batches.DEVIATIONS + 1e-12
    assert 0 < fast.largest_deviation <= batches.AIM / batches.DEVIATIONS + 1e-12


def test_a_sweep_with_an_error_that_the_first_sample_did_not_tell_is_run_again_exactly():
    seen = []

    def error_of(rows, _distance):
        seen.append(rows)
        return 0.0 if len(seen) == 1 else 0.1

    truth, exactly, approximately = two_ways(error_of)
    result = torch.zeros(400, 1, dtype=torch.float64)
    fast = FastRows(rows=100, exact=10, sampled=20, largest_deviation=1e-4)
    in_two_precisions(exactly, approximately, torch.arange(400), torch.zeros(400, dtype=torch.long), 50,
                      result, fast)
    assert (result == truth).all()
    assert fast == FastRows(rows=500, exact=410, sampled=20, repeated=1, largest_deviation=1e-4)
    assert "1 sweeps" in str(fast)
