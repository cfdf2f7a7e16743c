"""Exchanged products: packed weights against the library's own, bfloat16 on differences against exact sweeps, and what is run exactly."""

import copy
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from experiment import Intervention, Model
from mediation.errors import InputError
from mediation.mediators import batches, interpolation
from mediation.mediators.batches import in_two_precisions
from mediation.mediators.head_sweeps import head_edits
from mediation.mediators.heads import heads_layers_model
from mediation.mediators.neuron_sweeps import SweepOptions, neurons_in_trees
from mediation.mediators.neurons import INTERVENTION_TYPES, single_neuron_edits
from mediation.mediators.sweeps import sweep, sweep_heads
from mediation.model import language_model, products, readout
from mediation.model.fast_rows import FastRows
from mediation.model.forward import run_base
from mediation.model.products import exchanged, on_differences, packed, recorded
from mediation.studies import checks, error_budget, trees
from tests.conftest import PROJECT

TEMPLATES = ("The {} said that", "The {} yelled because", "The {} was fired because")


def stimulus(model, template="The {} went home because", word="nurse"):
    return Intervention(model.tokenizer, template, [word, "man", "woman"], ["he", "she"])


@pytest.fixture
def fast_model(toy_model, architecture):
    """The toy with its weights shared, so that it need not be loaded again."""
    model = copy.copy(toy_model(architecture))
    model.fast_rows = FastRows()
    return model


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
    fast = neurons_in_trees(fast_model, stimuli, kind)
    exact = neurons_in_trees(exact_model, stimuli, kind)
    assert float((fast - exact).abs().max()) < batches.BOUND
    assert fast_model.fast_rows.rows == fast_model.num_layers * fast_model.num_neurons  # the last layer's cannot reach the output


def test_small_interventions_are_run_fast(fast_model, toy_model, architecture):
    exact_model, stimuli = toy_model(architecture), [stimulus(fast_model, template) for template in TEMPLATES]
    fast = neurons_in_trees(fast_model, stimuli, "man_minus_woman", SweepOptions(alpha=0.02))
    exact = neurons_in_trees(exact_model, stimuli, "man_minus_woman", SweepOptions(alpha=0.02))
    differs, counts = (fast != exact).any(dim=-1).any(dim=0).flatten(), fast_model.fast_rows
    assert 0 < float((fast - exact).abs().max()) < batches.BOUND
    assert 0 < int(differs.sum()) <= counts.rows - counts.exact
    assert 0 < counts.sampled <= counts.rows - counts.exact and 0 < counts.largest_deviation < batches.BOUND


@pytest.mark.parametrize("effect", ["indirect", "direct"])
def test_fast_sweeps_of_heads_are_within_their_bound(fast_model, toy_model, architecture, effect):
    model, sets = toy_model(architecture), heads_layers_model(3, 4)
    example = Intervention(model.tokenizer, "The captain told the nurse that {}", ["she", "he"], ["was here.", "said that the man went home."])
    with torch.no_grad():
        context, edits = head_edits(model, example, effect, sets)
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
        context, edits = head_edits(model, example, "indirect", sets)
        exact = sweep_heads(model.model, model.parts, context, example.candidates_tok, edits)
        fast = sweep_heads(model.model, model.parts, context, example.candidates_tok, edits, fast=fast_model.fast_rows)
    assert fast_model.fast_rows.rows - fast_model.fast_rows.exact >= len(sets) - 4
    assert 0 < float((fast - exact).norm()) < 0.02 * float((exact - exact.mean(dim=0)).norm())


def test_only_what_differs_is_bfloat16(toy_checkpoint, architecture):
    """The same interventions, all in plain bfloat16, are far off: the difference is what makes the fast precision usable."""
    model = Model(gpt2_version=str(toy_checkpoint(architecture)), precision="fast")  # its weights will be rounded
    tokens = stimulus(model).base_strings_tok[0]
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


def test_fast_is_refused_where_it_is_not_meant(toy_checkpoint):
    for settings in ({"dtype": torch.float64}, {"full_passes": True}):
        with pytest.raises(InputError, match="--precision exact"):
            Model(gpt2_version=str(toy_checkpoint("gpt2")), precision="fast", **settings)
    with pytest.raises(InputError, match="choose exact or fast"):
        Model(gpt2_version=str(toy_checkpoint("gpt2")), precision="quick")


def test_fast_is_refused_where_the_processor_does_not_multiply_bfloat16(toy_checkpoint, run_script, monkeypatch, tmp_path):
    monkeypatch.setattr(language_model, "check_bfloat16", products.check_bfloat16)
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device: True)
    Model(gpt2_version=str(toy_checkpoint("gpt2")), precision="fast")
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device: False)
    code, _, errors = run_script("run_profession_neuron_experiments.py --precision fast --device cpu", "-model", toy_checkpoint("gpt2"), "-out_dir", tmp_path)
    assert (code, errors) == (2, "error: --precision fast needs a processor that multiplies bfloat16, and cpu does not: use --precision exact\n")
    assert not any(tmp_path.iterdir())


def test_a_processor_multiplies_bfloat16_where_both_it_and_its_library_do(monkeypatch):
    """oneDNN's answer heeds ONEDNN_MAX_CPU_ISA, the processor's does not."""
    for in_hardware, in_the_library in itertools.product((False, True), repeat=2):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=in_hardware: able)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda able=in_the_library: able)
        assert products.multiplies_bfloat16(torch.device("cpu")) == (in_hardware and in_the_library)


def test_the_switch_that_takes_bfloat16_away_is_heeded():
    """What `make test-avx2` sets."""
    program = "import torch; from mediation.model.products import multiplies_bfloat16; print(multiplies_bfloat16(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def bfloat16_product(rows, width, out):
    """(input, weight, bias, their product in float64) of random bfloat16 numbers."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator).bfloat16() for shape in ((rows, width), (out, width), (out,)))
    return x, weight, bias, x.double() @ weight.double().T + bias.double()


SHAPES = [(3, 7, 5), (64, 576, 192), (2, 1536, 576)]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_emulated_product_is_the_true_one_rounded_to_bfloat16(monkeypatch, shape):
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device: False)
    x, weight, bias, exact = bfloat16_product(*shape)
    for given in (None, bias):
        found, expected = products.product(weight, given)(x), exact - (bias.double() if given is None else 0)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), expected, rtol=2**-8 + 1e-5, atol=1e-4)  # half of bfloat16's last digit, and float32's sum


@pytest.mark.parametrize("shape", SHAPES)
def test_this_machines_product_is_the_true_one_rounded_to_bfloat16(shape):
    """In hardware where it can, else emulated: the same within the last digit, which sums in another order may move."""
    x, weight, bias, exact = bfloat16_product(*shape)
    torch.testing.assert_close(products.product(weight, bias)(x).double(), exact, rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("script, options, result", [
    ("run_profession_neuron_experiments.py", "-template_indices 1 --professions nurse doctor --intervention_types man_indirect", "results/*/manifest.json"),
    ("attention_intervention_winobias.py", "--do-filter False", "winobias_data/manifest.json")])
def test_scripts_run_fast_and_say_so(toy_checkpoint, run_script, tmp_path, data, script, options, result):
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


STUDY = "run_profession_neuron_experiments.py -template_indices 1 13 --professions nurse doctor --intervention_types man_minus_woman --alpha 0.02"


def test_what_was_run_fast_survives_a_stop(toy_checkpoint, run_script, tmp_path, monkeypatch):
    """The manifest counts the rows of every sitting, not of the last process."""
    sweep, calls = trees.neurons_in_trees, []

    def stop_at_second(self, *arguments, **named):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sweep(self, *arguments, **named)

    command = f"{STUDY} --precision fast -model {toy_checkpoint('llama')} -out_dir"
    assert run_script(command, tmp_path / "whole")[0] == 0
    monkeypatch.setattr(trees, "neurons_in_trees", stop_at_second)
    assert run_script(command, tmp_path / "stopped")[0] == 130
    assert run_script(command, tmp_path / "stopped")[0] == 0
    whole, stopped = (json.loads(next(tmp_path.glob(f"{name}/results/*/manifest.json")).read_text())["runs"][0] for name in ("whole", "stopped"))
    assert whole["fast"] == stopped["fast"] and whole["fast"]["rows"] == 2 * 48 and whole["fast"]["sampled"] > 0
    assert [entry["fast"]["rows"] for entry in whole["files"].values()] == [48, 48]  # two templates share each sweep


def test_own_stimuli_keep_what_was_run_fast(toy_checkpoint, run_script, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"id": "1", "base": "The {} said that", "substitutes": ["nurse", "man"], "candidates": ["she", "he"]}) + "\n")
    command = f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {tmp_path / 'out'} --precision fast --mediators neurons,heads"
    assert run_script(command)[0] == 0
    runs = json.loads((tmp_path / "out" / "manifest.json").read_text())["runs"]
    assert [run["fast"]["rows"] for run in runs if "fast" in run] == [2 * 48, 2 * len(heads_layers_model(3, 4))]


@pytest.mark.parametrize("where", ["sample", "full passes"])
def test_a_fast_sweep_that_is_off_is_run_again_exactly(toy_checkpoint, run_script, tmp_path, monkeypatch, where):
    """Seen in the sweep's own sample, or only by the full passes: the study goes on, with the numbers of an exact one."""
    command = f"{STUDY} --alpha 1 -model {toy_checkpoint('llama')} -out_dir"
    assert run_script(command, tmp_path / "exact")[0] == 0
    monkeypatch.setattr(batches, "AIM", float("inf"))  # every row is left fast
    if where == "sample":
        monkeypatch.setattr(batches, "BOUND", 1e-12)
    else:
        monkeypatch.setattr(batches, "BOUND", 10.0)  # the sample accepts everything
        monkeypatch.setattr(checks, "draws", lambda stimuli, *_: np.full(stimuli, 64))  # every neuron is checked: a few may miss what is off
        others = batches.BOUND + interpolation.TOLERANCE["float32"] + readout.TOLERANCE
        monkeypatch.setitem(error_budget.ROUNDING, "float32", 5e-6 - others)
    code, output, error = run_script(f"{command} {tmp_path / 'fast'} --precision fast")
    assert code == 0, error
    assert "2 sweeps that were off by more than is accepted" in output
    tables = [pd.read_csv(path) for path in sorted(tmp_path.glob("*/results/*/The_X_said_that*.csv"))]
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)
    (run,) = json.loads(next(tmp_path.glob("fast/results/*/manifest.json")).read_text())["runs"]
    assert run["fast"]["repeated"] == 2 and run["fast"]["exact"] == run["fast"]["rows"] == 2 * 48
