"""Sweeps of sites: other values, estimates, screening, precision, sets, against plain references."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from experiment import Model
from mediation.errors import InputError
from mediation.mediators import sites
from mediation.mediators.catalogue import CATALOGUE, Request, requests_at
from mediation.mediators.neuron_sweeps import neurons_in_trees
from mediation.mediators.site_sweeps import (
    estimate_sites,
    groups,
    sites_by_full_passes,
    sweep_sites,
)
from mediation.model.fast_rows import FastRows
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies.comparisons import applicable, build_comparisons
from mediation.studies.engine import StudyOptions
from mediation.studies.own_question import SWEEPS
from mediation.studies.sites import Run, Sites
from tests.helpers import TINY, swept_by

SITES = [name for name, mediator in CATALOGUE.items() if mediator.sites]
MINE = [Stimulus("one", "The {} went home because", ("nurse", "man"), ("he was", "she")),
        Stimulus("two", "The {} said that", ("captain", "woman"), ("he was", "she")),
        Stimulus("three", "The {} went home because", ("teacher", "man"), ("he", "she"))]


def comparisons_of(model, *stimuli, multi_token="last"):
    return build_comparisons(model, "x", stimuli or MINE, multi_token)


def edits_of(model, comparison, name, positions=None, run_on=0):
    """(Run, SiteEdits) of the alternative's values, without a task's bookkeeping."""
    task = Sites("table", "name", "title", 0, comparison.intervention, Request.of(name, positions),
                 StudyOptions())
    modules = CATALOGUE[name].sites(model.parts)
    with torch.no_grad():
        runs = [Run.of(model, comparison.intervention, prompt, modules) for prompt in (0, 1)]
        values = task.put_in(model, modules, runs, run_on, lambda key: {})
    return runs[run_on], task.edits(modules, runs[run_on].length, run_on, values)


@pytest.mark.parametrize("name", SITES)
def test_full_passes_and_batches_of_any_size_give_the_same(toy_model, in_double, name):
    model = toy_model("gemma3_text", torch.float64)
    comparison = comparisons_of(model)[0]
    for positions in CATALOGUE[name].positions:
        request = Request.of(name, positions)
        swept = swept_by(model, comparison, request)
        for options in ({"batch_size": 3}, {"full_passes": True}):
            other = swept_by(model, comparison, request, **options)
            for kind, expected in swept.items():
                np.testing.assert_allclose(other[kind], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["neurons", "mlps"])
def test_what_stands_in_both_sweeps_is_the_same(toy_model, in_double, name):
    """Neurons at the slot, one by one and all of a layer: the sweep over trees of prompts gives the same."""
    model = toy_model("llama", torch.float64)
    comparison = comparisons_of(model)[0]
    units = torch.arange(4 * 16) if name == "neurons" else torch.arange(4 * 16).reshape(4, 16)
    for kind, swept in swept_by(model, comparison, Request.of(name, "slot")).items():
        trees = neurons_in_trees(model, [comparison.intervention], kind, units=units)[0]
        np.testing.assert_allclose(swept, trees, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "gemma3_text"])
def test_sets_of_any_sites_together(toy_model, in_double, kind):
    """Rows that change several sites at several positions at once, against full passes under hooks."""
    model = toy_model(kind, torch.float64)
    comparison = comparisons_of(model)[0]
    names = ("residuals", "head_outputs", "values", "mlps", "inner_neurons", "keys")
    modules = [site for name in names for site in CATALOGUE[name].sites(model.parts)]
    with torch.no_grad():
        null, other = (Run.of(model, comparison.intervention, prompt, modules) for prompt in (0, 1))
    length, random = null.length, np.random.default_rng(1)
    single = [(index, unit, position) for index, site in enumerate(modules)
              for unit in range(len(site.columns)) for position in range(length)]
    chosen = [single[number] for number in random.choice(len(single), 60, replace=False)]
    at = torch.zeros(60, length, dtype=torch.bool)
    for row, (_, _, position) in enumerate(chosen):
        at[row, position] = True
    site, unit = (torch.tensor([each[part] for each in chosen]) for part in (0, 1))
    alone = sites.SiteEdits(modules, [values[:length] for values in other.own], torch.arange(60), site, unit,
                            at, 60)
    sets = alone.sets([random.choice(60, size, replace=False).tolist() for size in (1, 2, 3, 5, 8, 20, 60)])
    candidates = comparison.intervention.candidates_tok
    with torch.no_grad():
        swept = sweep_sites(model.parts, null.base, null.own, null.tree, sets)
        reference = sites_by_full_passes(model.model, null.tree.tokens[:length], sets, candidates)
    np.testing.assert_allclose(swept, reference, rtol=0, atol=1e-10)
    assert np.ptp(swept.numpy(), axis=0).min() > 1e-3, "the sets did something"


@pytest.mark.parametrize("name", SITES)
def test_the_first_order_is_the_derivative(toy_model, in_double, name):
    """A step of a millionth of the way to the alternative's value, times a million."""
    model = toy_model("qwen3", torch.float64)
    for positions in CATALOGUE[name].positions:
        for run_on in (0, 1):
            run, edits = edits_of(model, comparisons_of(model)[0], name, positions, run_on)
            own = [values[: run.length] for values in run.own]
            small = replace(edits, values=[mine + 1e-6 * (other - mine)
                                           for mine, other in zip(own, edits.values)])
            with torch.no_grad():
                base = run.log_probabilities
                moved = sweep_sites(model.parts, run.base, run.own, run.tree, small) - base
                estimates = estimate_sites(model.model, model.parts, run.own, run.tree, edits,
                                           base) - base
            np.testing.assert_allclose(1e6 * moved, estimates, rtol=1e-3, atol=1e-6)


def test_screening_runs_the_strongest_and_says_what_it_drew(toy_model, in_double):
    model = toy_model("llama", torch.float64)
    comparison, request = comparisons_of(model)[0], Request.of("inner_neurons", "each")
    task = Sites("table", "name", "title", 0, comparison.intervention, request,
                 StudyOptions(method="screen", screen_share=.5, screen_sample=7))
    arrays = task.compute(model, lambda key: {}, lambda count: None)
    for kind, exact in swept_by(model, comparison, request).items():
        run, drawn, chosen = (arrays[f"{kind}_{name}"] for name in ("exact", "drawn", "chosen"))
        np.testing.assert_allclose(arrays[kind][run], exact[run], rtol=0, atol=1e-10)
        assert len(drawn) == 7 and run[drawn].all() and run[chosen].all() and not set(drawn) & set(chosen)
        assert not run.all() and np.abs(arrays[kind][~run] - exact[~run]).max() > 0
        # every neuron of the first block is run, wherever it can change anything
        length = len(comparison.intervention.prompts[0].tokens)
        assert run[: 24 * length].all()
        left = np.flatnonzero(~run)
        assert int(arrays[f"{kind}_rest"]) == len(left) + 7


def test_other_values_change_the_null_prompt_alone(toy_model, in_double):
    """Zero, the file's mean and another stimulus' value, against hooks written here."""
    model = toy_model("gpt2", torch.float64)
    comparisons, block = comparisons_of(model), model.parts.mlps[1]

    def values_at_slot(comparison):
        seen = []
        handle = block.register_forward_hook(lambda _, __, output: seen.append(output[0]))
        with torch.no_grad():
            model.model(comparison.intervention.base_strings_tok[0][None])
        handle.remove()
        return seen[0][comparison.intervention.position]

    def log_odds_with(comparison, value):
        def put(_module, _inputs, output):
            output = output.clone()
            output[0, comparison.intervention.position] = value
            return output

        handle = block.register_forward_hook(put)
        means = []
        for ids in comparison.intervention.candidates_tok:
            tokens = [*comparison.intervention.prompts[0].tokens, *ids[:-1]]
            with torch.no_grad():
                logits = model.model(torch.tensor([tokens])).logits[0, -len(ids):].log_softmax(-1)
            means.append(logits[range(len(ids)), ids].mean())
        handle.remove()
        return float(means[1] - means[0])

    every = torch.stack([values_at_slot(comparison) for comparison in comparisons])
    for values in ("zero", "mean", "resample"):
        request = Request.of("mlps", "slot", values)
        fitting, left_out = applicable(model, comparisons, request, seed=5)
        assert len(fitting) == 3 and not left_out
        sweep = SWEEPS["sites"](model, fitting, request, "table", StudyOptions())
        means = {task.key: task.compute(model, lambda key: {}, lambda count: None)
                 for task in sweep.stages[0]}
        for number, (comparison, task) in enumerate(zip(fitting, sweep.tasks)):
            arrays = task.compute(model, means.get, lambda count: None)
            put_in = {"zero": torch.zeros(16, dtype=torch.float64), "mean": every.mean(dim=0),
                      "resample": None}[values]
            if values == "resample":
                (drawn,) = (other for other in comparisons if other.stimulus.id == comparison.alternative)
                assert drawn.stimulus.id != comparison.stimulus.id
                put_in = values_at_slot(drawn)
            swept = arrays["ablation"][2]  # layer 2: the MLP of block 1
            assert swept[1] - swept[0] == pytest.approx(log_odds_with(comparisons[number], put_in), abs=1e-10)
            assert "indirect" not in arrays and "direct" not in arrays


def test_stimuli_of_several_alternatives_are_ablated_once(toy_model):
    model = toy_model()
    stimuli = [Stimulus("one", "The {} said that", ("nurse", "man", "woman"), ("he", "she"))]
    fitting, _ = applicable(model, comparisons_of(model, *stimuli), Request.of("mlps", "slot", "zero"))
    assert [comparison.alternative for comparison in fitting] == ["zero"]
    fitting, left_out = applicable(model, comparisons_of(model, *stimuli),
                                   Request.of("mlps", "slot", "resample"))
    assert not fitting and list(left_out.values()) == [["one", "one"]]  # both comparisons of the file


def test_an_ablation_asks_nothing_of_an_alternative(toy_model, in_double):
    """It takes a stimulus whose alternatives have other numbers of tokens, and gives the same numbers."""
    model = toy_model("llama", torch.float64)
    twins = [Stimulus("one", "The {} went home because", ("nurse", word), ("he", "she"))
             for word in ("electrician", "man")]
    for positions, multi_token in (("all", None), ("each", None), ("slot", None), ("slot", "all")):
        request, swept = Request.of("head_outputs", positions, "zero"), []
        for stimulus in twins:
            comparisons = comparisons_of(model, stimulus, multi_token=multi_token)
            (fitting,), left_out = applicable(model, comparisons, request)
            assert not left_out and fitting.alternative == "zero"
            swept.append(swept_by(model, fitting, request)["ablation"])
        np.testing.assert_array_equal(*swept)
    stimuli = [twins[0], replace(twins[1], id="two", substitutes=("teacher", "man"))]
    drawn, left_out = applicable(model, comparisons_of(model, *stimuli),
                                 Request.of("values", "all", "resample"))
    assert [comparison.alternative for comparison in drawn] == ["two", "one"] and not left_out
    several = replace(twins[0], substitutes=("electrician", "man", "woman"))  # at the slot, one token
    fitting, left_out = applicable(model, comparisons_of(model, several, multi_token=None),
                                   Request.of("mlps", "slot", "zero"))
    assert not fitting and list(left_out.values()) == [["one", "one"]]


def test_candidates_that_begin_alike_share_a_full_pass(toy_model, in_double):
    model = toy_model("llama", torch.float64)
    run, edits = edits_of(model, comparisons_of(model)[0], "values")
    passes, context = [], run.tree.tokens[: run.length]
    handle = model.model.register_forward_hook(lambda *_: passes.append(None))
    with torch.no_grad():
        for candidates, count in (([[5], [6]], 1), ([[5, 7, 9], [5, 7, 8]], 1), ([[5], [6, 7], [6, 8]], 2)):
            passes.clear()
            together = sites_by_full_passes(model.model, context, edits, candidates)
            assert len(passes) == count
            alone = [sites_by_full_passes(model.model, context, edits, [each]) for each in candidates]
            np.testing.assert_allclose(together, torch.cat(alone, dim=1), rtol=0, atol=1e-12)
    handle.remove()


def test_what_changes_nothing_has_exactly_no_effect_in_full_passes_too(toy_model):
    model = toy_model("llama")
    comparison = comparisons_of(model)[0]
    task = Sites("table", "name", "title", 0, comparison.intervention, Request.of("residuals", "each"),
                 StudyOptions(full_passes=True))
    counted = []
    arrays = task.compute(model, lambda key: {}, counted.append)
    length = len(comparison.intervention.prompts[0].tokens)
    for kind, base in zip(("indirect", "direct"), arrays["base"]):
        np.testing.assert_array_equal(arrays[kind][::length], np.tile(base, (4, 1)))
    assert sum(counted) == 2 * 4 * length


def test_prompts_of_unequal_length(toy_model, in_double):
    """At the slot and at the last token they have places, elsewhere they do not."""
    model = toy_model("llama", torch.float64)
    stimulus = Stimulus("one", "The {} went home because", ("electrician", "man"), ("he was", "she"))
    (comparison,) = comparisons_of(model, stimulus)
    lengths = [len(prompt.tokens) for prompt in comparison.intervention.prompts]
    assert lengths[0] != lengths[1]
    for name in SITES:
        for positions in CATALOGUE[name].positions:
            fitting, left_out = applicable(model, [comparison], Request.of(name, positions))
            assert bool(fitting) == (positions in ("slot", "last")), left_out
            if fitting:
                reference = swept_by(model, comparison, Request.of(name, positions), full_passes=True)
                for kind, swept in swept_by(model, comparison, Request.of(name, positions)).items():
                    np.testing.assert_allclose(swept, reference[kind], rtol=0, atol=1e-10)


@pytest.mark.parametrize("words, base", [
    (("nurse", "nurses"), "The {} went home because"), (("nurses", "nurse"), "The {} went home because"),
    (("nurse", "nurses"), "The {}"), (("nurses", "nurse"), "The {}")])
def test_a_word_that_begins_another_takes_the_values_of_its_last_token(toy_model, in_double, words, base):
    """The slot's last token stands before the first difference in one prompt, behind it in the other."""
    model = toy_model("llama", torch.float64)
    (comparison,) = comparisons_of(model, Stimulus("one", base, words, ("he was", "she")))
    stimulus = comparison.intervention
    assert sorted(len(range(*prompt.slot)) for prompt in stimulus.prompts) == [1, 2]
    for kind, swept in swept_by(model, comparison, Request.of("neurons", "slot")).items():
        trees = neurons_in_trees(model, [stimulus], kind, units=torch.arange(4 * 16))[0]
        np.testing.assert_allclose(swept, trees, rtol=0, atol=1e-10)
    if base == "The {}":  # behind the last block, all that the last token predicts is the other prompt's
        (alone,) = comparisons_of(model, Stimulus("one", base, words, ("he", "she")))
        behind = {kind: np.diff(swept[-1]) for kind, swept in
                  swept_by(model, alone, Request.of("residuals", "last")).items()}
        with torch.no_grad():
            null, alternative = (
                np.diff(Run.of(model, alone.intervention, prompt, []).log_probabilities)
                for prompt in (0, 1))
        np.testing.assert_allclose([behind["indirect"], behind["direct"]], [alternative, null], atol=1e-10)


def test_screening_where_nothing_can_reach_the_output(toy_tokenizer, tmp_path):
    """The only MLP, before the token that predicts."""
    config = AutoConfig.for_model("llama", **TINY | {"num_hidden_layers": 1})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    toy_tokenizer.save_pretrained(tmp_path)
    model = Model(gpt2_version=str(tmp_path))
    comparison = comparisons_of(model)[0]
    swept = swept_by(model, comparison, Request.of("inner_neurons", "slot"), method="screen")
    assert np.ptp(swept["indirect"], axis=0).max() == 0


def test_the_fast_precision_keeps_its_promise(toy_model):
    model = toy_model("llama")
    comparison = comparisons_of(model)[0]
    model.fast_rows = FastRows()
    try:
        for name in ("residuals", "head_outputs", "inner_neurons", "values"):
            fast = swept_by(model, comparison, Request.of(name))
            with model.exactly():
                exact = swept_by(model, comparison, Request.of(name))
            for kind, swept in fast.items():
                assert np.abs(swept - exact[kind]).max() < 1e-3
    finally:
        model.fast_rows = None


def test_both_prompts_of_a_comparison_are_run_at_once(toy_model):
    model = toy_model("llama")
    calls = []
    handle = model.parts.blocks[0].mlp.register_forward_hook(
        lambda _module, given, _output: calls.append(tuple(given[0].shape[:2])))
    try:
        stimulus = comparisons_of(model)[0].intervention
        with torch.no_grad():
            runs = Run.of_each(model, stimulus, (0, 1), CATALOGUE["mlps"].sites(model.parts))
    finally:
        handle.remove()
    assert calls == [(2, len(runs[0].tree.tokens))]


def test_mlps_are_run_where_a_row_differs_and_in_the_last_block_where_something_is_read(toy_model):
    model = toy_model("llama")
    comparison = comparisons_of(model, MINE[2])[0]
    run, edits = edits_of(model, comparison, "residuals", "each")
    calls = []
    handles = [output.register_forward_hook(
        lambda _module, given, _output: calls.append(given[0].shape[:-1].numel()))
        for output in model.parts.mlp_outputs]
    try:
        with torch.no_grad():
            sweep_sites(model.parts, run.base, run.own, run.tree, edits)
    finally:
        for handle in handles:
            handle.remove()
    # before the first block the slot alone differs, before the others all positions from it on
    count = run.length - comparison.intervention.prompts[0].slot[0]
    tails = sum(range(count + 1))
    assert len(run.tree.tokens) == run.length and calls == [count, count + tails, 1 + 2 * count]


def test_groups_of_positions_are_the_cheapest_cut():
    random = np.random.default_rng(0)
    for _ in range(50):
        counts, nodes = random.integers(0, 60, 7).tolist(), 7 + int(random.integers(0, 5))
        firsts = [position for position, count in enumerate(counts) if count]

        def cost(ranges, counts=counts, nodes=nodes):
            return sum(64 + sum(counts[start:end]) * (nodes - start) for start, end in ranges)

        every = [[(firsts[start], firsts[end - 1] + 1)
                  for start, end in zip((0, *cuts), (*cuts, len(firsts)))]
                 for size in range(len(firsts)) for cuts in combinations(range(1, len(firsts)), size)]
        ranges = groups(counts, nodes)
        assert ranges in every if firsts else not ranges
        assert cost(ranges) == min(map(cost, every), default=0)


@pytest.mark.parametrize("name, positions, values, words", [
    ("heads", "each", "alternative", "attention weights are replaced"),
    ("heads", None, "zero", "attention weights are replaced"),
    ("queries", "slot", "alternative", "cannot be changed at positions 'slot'"),
    ("mlps", "all", "alternative", "cannot be changed at positions 'all'"),
    ("residuals", "each", "mean", "a mean over prompts needs one place"),
    ("residuals", None, "mean", "a mean over prompts needs one place"),
    ("nobody", None, "alternative", "mediator 'nobody' is unknown"),
    ("mlps", "slot", "median", "values 'median' are unknown")])
def test_what_does_not_go_together_is_refused(name, positions, values, words):
    with pytest.raises(InputError, match=words):
        Request.of(name, positions, values)


def test_without_names_all_that_can_be_changed_so_are_asked_for():
    assert {request.mediator_name for request in requests_at("last", "alternative")} == {
        "residuals", "attentions", "mlps", "head_outputs", "neurons"}
    assert {request.name for request in requests_at(None, "mean")} == {
        "mlps_mean_ablation", "neurons_mean_ablation"}
    assert "heads" in {request.name for request in requests_at(None, "alternative")}
