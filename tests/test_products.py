"""Exchanged products: packed weights against the library's own, bfloat16 on differences against exact sweeps, and what is run exactly."""

import json
import re

import pytest
import torch

from experiment import INTERVENTION_TYPES, Intervention, Model
from mediation import batches
from mediation.attention import heads_layers_model
from mediation.batches import FastRows, in_two_precisions
from mediation.errors import InputError
from mediation.forward import run_base
from mediation.neurons import single_neuron_edits
from mediation.products import check_bfloat16, exchanged, on_differences, packed, recorded
from mediation.sweeps import sweep, sweep_heads

TEMPLATES = ("The {} said that", "The {} yelled because", "The {} was fired because")


def stimulus(model, template="The {} went home because", word="nurse"):
    return Intervention(model.tokenizer, template, [word, "man", "woman"], ["he", "she"])


@pytest.fixture
def fast_model(toy_checkpoint, architecture):
    try:
        return Model(gpt2_version=str(toy_checkpoint(architecture)), precision="fast")
    except InputError as error:
        pytest.skip(str(error))


def test_packed_products_equal_the_librarys(toy_model, architecture):
    model = toy_model(architecture)
    tokens = stimulus(model).base_strings_tok[0].unsqueeze(0)
    with torch.no_grad():
        plain = model.model(tokens).logits
        layers = packed(model.parts.blocks)
        assert len(layers) >= model.num_layers * 4
        with exchanged(layers):
            torch.testing.assert_close(model.model(tokens).logits, plain, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.model(tokens).logits, plain)  # nothing stays exchanged


def test_products_are_put_back_after_an_error(toy_model, architecture):
    model = toy_model(architecture)
    with pytest.raises(ZeroDivisionError), exchanged(packed(model.parts.blocks)):
        assert any("forward" in module.__dict__ for module in model.model.modules())
        raise ZeroDivisionError
    assert not any("forward" in module.__dict__ for module in model.model.modules())


@pytest.mark.parametrize("change", [lambda parameter: parameter.mul_(1.1), lambda parameter: parameter.data.mul_(1.1)], ids=["in place", "data"])
def test_changed_weights_are_packed_again(toy_checkpoint, change):
    model = Model(gpt2_version=str(toy_checkpoint("llama")))
    first = model.neuron_intervention_single_experiment(stimulus(model), "man_indirect")[6]
    with torch.no_grad():
        for parameter in model.parts.blocks.parameters():
            change(parameter)
    second = model.neuron_intervention_single_experiment(stimulus(model), "man_indirect")[6]
    model.full_passes = True
    torch.testing.assert_close(second, model.neuron_intervention_single_experiment(stimulus(model), "man_indirect")[6], rtol=1e-4, atol=0)
    assert not torch.allclose(first, second, rtol=1e-3)


def test_no_difference_to_the_base_run_changes_nothing(fast_model):
    tokens = stimulus(fast_model).base_strings_tok[0]
    with torch.no_grad():
        base = run_base(fast_model.model, fast_model.parts, tokens, linear_layers=True)
        with exchanged(on_differences(fast_model.parts.blocks, base.linear_layers, 0)):
            again = run_base(fast_model.model, fast_model.parts, tokens)
    torch.testing.assert_close(again.residuals[-1], base.residuals[-1], rtol=1e-5, atol=1e-5)


def test_a_record_holds_every_linear_layer_once(fast_model):
    with torch.no_grad(), recorded(fast_model.parts.blocks) as record:
        fast_model.model(stimulus(fast_model).base_strings_tok[0].unsqueeze(0))
    assert set(record) == {module for module in fast_model.parts.blocks.modules() if type(module).__name__ in ("Linear", "Conv1D")}
    assert len(record) >= 4 * fast_model.num_layers


@pytest.mark.parametrize("kind", list(INTERVENTION_TYPES)[:6])
def test_fast_sweeps_are_within_their_bound(fast_model, toy_model, architecture, kind):
    exact_model, stimuli = toy_model(architecture), [stimulus(fast_model, template) for template in TEMPLATES]
    fast = fast_model.neuron_intervention_in_templates(stimuli, kind)
    exact = exact_model.neuron_intervention_in_templates(stimuli, kind)
    assert float((fast - exact).abs().max()) < batches.BOUND
    assert fast_model.fast_rows.rows == fast_model.num_layers * fast_model.num_neurons  # the last layer's cannot reach the output


def test_small_interventions_are_run_fast(fast_model, toy_model, architecture):
    exact_model, stimuli = toy_model(architecture), [stimulus(fast_model, template) for template in TEMPLATES]
    fast = fast_model.neuron_intervention_in_templates(stimuli, "man_minus_woman", alpha=0.02)
    exact = exact_model.neuron_intervention_in_templates(stimuli, "man_minus_woman", alpha=0.02)
    differs, counts = (fast != exact).any(dim=-1).any(dim=0).flatten(), fast_model.fast_rows
    assert 0 < float((fast - exact).abs().max()) < batches.BOUND
    assert 0 < int(differs.sum()) <= counts.rows - counts.exact
    assert 0 < counts.sampled <= counts.rows - counts.exact and 0 < counts.largest_deviation < batches.BOUND


@pytest.mark.parametrize("effect", ["indirect", "direct"])
def test_fast_sweeps_of_heads_are_within_their_bound(fast_model, toy_model, architecture, effect):
    model, sets = toy_model(architecture), heads_layers_model(3, 4)
    example = Intervention(model.tokenizer, "The captain told the nurse that {}", ["she", "he"], ["was here.", "said that the man went home."])
    with torch.no_grad():
        context, edits = model._head_edits(example, effect, sets)
        exact = sweep_heads(model.model, model.parts, context, example.candidates_tok, edits)
        fast = sweep_heads(model.model, model.parts, context, example.candidates_tok, edits, fast=fast_model.fast_rows)
    assert float((fast - exact).abs().max()) < batches.BOUND


@pytest.mark.parametrize("common", [False, True])
def test_heads_on_differences_are_near_exact_ones(fast_model, toy_model, architecture, monkeypatch, common):
    """With next to no sample and no row too far, all rows stay in bfloat16: their errors are a hundredth of the effects."""
    monkeypatch.setattr(batches, "AT_LEAST", 2)
    monkeypatch.setattr(batches, "AIM", torch.inf)
    monkeypatch.setattr(batches, "BOUND", 1.0)
    model, sets = toy_model(architecture), heads_layers_model(3, 4)
    sets = (sets | sets[5])[[unit for unit in range(12) if unit != 5]] if common else sets
    example = Intervention(model.tokenizer, "The captain told the nurse that {}", ["she", "he"], ["was here.", "said that the man went home."])
    with torch.no_grad():
        context, edits = model._head_edits(example, "indirect", sets)
        exact = sweep_heads(model.model, model.parts, context, example.candidates_tok, edits)
        fast = sweep_heads(model.model, model.parts, context, example.candidates_tok, edits, fast=fast_model.fast_rows)
    assert fast_model.fast_rows.rows - fast_model.fast_rows.exact >= len(sets) - 4
    assert 0 < float((fast - exact).norm()) < 0.02 * float((exact - exact.mean(dim=0)).norm())


def test_only_what_differs_is_bfloat16(fast_model):
    """The same interventions, all in plain bfloat16, are far off: the difference is what makes the fast precision usable."""
    model, tokens = fast_model, stimulus(fast_model).base_strings_tok[0]
    predictions = tuple(([len(tokens) - 1], [token]) for token in (1, 2))
    with torch.no_grad():
        base = run_base(model.model, model.parts, tokens, linear_layers=True)
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
    return truth, lambda rows: truth[rows], lambda rows: torch.cat([truth[rows] + error(rows, distance[rows]), distance[rows]], dim=1)


def test_rows_far_from_the_base_run_are_exact():
    truth, exactly, approximately = two_ways(lambda rows, distance: batches.AIM * distance * (1 - 2 * (rows % 2)).unsqueeze(1))
    result, fast, done = torch.full((400, 1), torch.nan, dtype=torch.float64), FastRows(), []
    in_two_precisions(exactly, approximately, torch.arange(400), torch.arange(400) // 100, 50, result, fast, done.append)
    error = (result - truth).abs().squeeze(1)
    assert sum(done) == fast.rows == 400 and 267 <= fast.exact <= 300 + batches.AT_LEAST  # 267 are far, and three layers of four mostly
    assert (error[:200] == 0).all()  # the far half: three times their error is above the aim
    assert 0 < error.max() <= batches.AIM / batches.DEVIATIONS + 1e-12
    assert 0 < fast.largest_deviation <= batches.AIM / batches.DEVIATIONS + 1e-12


def test_a_sweep_with_an_error_that_the_first_sample_did_not_tell_is_run_again_exactly():
    seen = []
    truth, exactly, approximately = two_ways(lambda rows, distance: seen.append(rows) or (0.0 if len(seen) == 1 else 0.1))
    result, fast = torch.zeros(400, 1, dtype=torch.float64), FastRows(rows=100, exact=10, sampled=20, largest_deviation=1e-4)
    in_two_precisions(exactly, approximately, torch.arange(400), torch.zeros(400), 50, result, fast)
    assert (result == truth).all()
    assert fast == FastRows(rows=500, exact=410, sampled=20, repeated=1, largest_deviation=1e-4) and "1 sweeps" in str(fast)


def test_fast_is_refused_where_it_is_not_meant(toy_checkpoint, monkeypatch):
    for settings in ({"dtype": torch.float64}, {"full_passes": True}):
        with pytest.raises(InputError, match="--precision exact"):
            Model(gpt2_version=str(toy_checkpoint("gpt2")), precision="fast", **settings)
    with pytest.raises(InputError, match="choose exact or fast"):
        Model(gpt2_version=str(toy_checkpoint("gpt2")), precision="quick")
    for able in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, able, lambda: False)
    with pytest.raises(InputError, match="use --precision exact"):
        check_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize("script, options, result", [
    ("run_profession_neuron_experiments.py", "-template_indices 1 --professions nurse doctor --intervention_types man_indirect", "results/*/manifest.json"),
    ("attention_intervention_winobias.py", "--do-filter False", "winobias_data/manifest.json")])
def test_scripts_run_fast_and_say_so(toy_checkpoint, run_script, tmp_path, data, script, options, result):
    try:
        check_bfloat16(torch.device("cpu"))
    except InputError as error:
        pytest.skip(str(error))
    command = f"{script} {options} -model {toy_checkpoint('llama')} -out_dir {tmp_path} --precision"
    code, output, errors = run_script(command, "fast")
    assert code == 0, errors
    assert re.search(r"fast: \d+ of \d+ interventions in bfloat16.*differ by at most \d", output)
    (manifest,) = tmp_path.glob(result)
    (run,) = json.loads(manifest.read_text())["runs"]
    assert run["settings"]["precision"] == "fast" and run["fast"]["largest_deviation"] < batches.BOUND
    assert run["fast"]["rows"] == {"run": 2 * 48, "att": 2 * len(heads_layers_model(3, 4)) * 3}[script[:3]]
    code, _, errors = run_script(command, "exact")
    assert code == 2 and "made with other settings (precision 'fast' -> None)" in errors
    code, _, errors = run_script(command + " fast", "--full_passes")
    assert code == 2 and "--precision fast does not go with --full_passes" in errors
