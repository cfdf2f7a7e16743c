"""SmolLM2-135M: the contract's figures for it, and sweeps against full passes."""

import os

import numpy as np
import pandas as pd
import pytest

from attention_utils import get_odds_ratio
from experiment import Intervention, Model
from mediation.effects.estimands import strong_examples
from mediation.effects.odds import effect, log_odds
from mediation.errors import InputError
from mediation.files import assets
from mediation.stimuli import winobias
from mediation.studies.attention import EFFECTS, build_interventions, result_entry
from mediation.studies.checks import check_heads


@pytest.fixture(scope="module")
def model(smollm2):
    return Model(gpt2_version=str(smollm2))


@pytest.fixture(scope="module")
def nurse(model):
    return Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"])


def test_sizes(model):
    assert (model.num_layers, model.num_neurons, model.num_heads) == (30, 576, 9)


def test_base_odds_and_the_effect_of_embedding_neuron_31(model, nurse):
    result = model.neuron_intervention_single_experiment(nurse, "man_indirect", layers_to_adj=[-1],
                                                         neurons_to_adj=[31], intervention_loc="neuron")
    base = log_odds(result[0], result[1])
    assert base == pytest.approx(-1.5974, abs=5e-5)
    assert log_odds(result[2], result[3]) == pytest.approx(0.1110, abs=5e-5)
    # the contract: .940
    assert effect(log_odds(result[6], result[7]), base).item() == pytest.approx(0.9395, abs=1e-4)


@pytest.mark.parametrize("kind, layer", [("man_indirect", -1), ("woman_direct", 9), ("man_direct", 28)])
def test_descent_equals_full_passes(model, nurse, monkeypatch, kind, layer):
    arguments = {"layers_to_adj": layer, "intervention_loc": "layer"}
    swept = model.neuron_intervention_single_experiment(nurse, kind, **arguments)[6:]
    monkeypatch.setattr(model, "full_passes", True)
    reference = model.neuron_intervention_single_experiment(nurse, kind, **arguments, bsize=64)[6:]
    for a, b in zip(swept, reference):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_total_effects_over_all_templates_and_professions(smollm2, run_script, tmp_path):
    code, output, _ = run_script("run_profession_neuron_experiments.py --total_effects_only", "-model",
                                 smollm2, "-out_dir", tmp_path)
    assert code == 0 and "prompts: 2601; professions used in each template: 153 of 320" in output
    (folder,) = tmp_path.glob("results/*")
    code, output, _ = run_script("compute_neuron_total_effect.py", folder, "smollm2-135m")
    assert code == 0 and "r = 0.334" in output
    table = pd.read_csv(folder / "smollm2-135m_total_effects.csv").set_index("name")
    assert table.loc["male (he) effect", "value"] == pytest.approx(3.777, abs=5e-4)
    assert table.loc["male (he) effect", "prompts"] == 2482
    assert table.loc["female (she) effect", "value"] > 4 * table.loc["female (she) effect", "median"]


@pytest.fixture(scope="module")
def winobias_dev(model):
    try:
        examples = winobias.load("dev")
    except InputError as error:
        pytest.skip(f"no data set: {error}")
    return [Intervention(model.tokenizer, example.base_string, example.substitutes, example.candidates)
            for example in examples]


def test_filter_of_winobias(model, winobias_dev):
    indices, aligned, threshold = strong_examples([get_odds_ratio(intervention, model)
                                                   for intervention in winobias_dev], 0.25)
    assert (len(indices), aligned) == (87, 116) and threshold == pytest.approx(1.061123, abs=5e-6)


@pytest.mark.parametrize("number, total, indirect, direct",
                         [(22, 0.087088, 0.010081, 0.070794), (129, 0.256000, 0.288198, 0.037242)])
def test_single_examples_of_winobias(model, winobias_dev, number, total, indirect, direct):
    """Effects of the contract, and heads by descent against full passes."""
    example = winobias_dev[number]
    swept = {kind: model.attention_intervention_experiment(example, kind) for kind in EFFECTS}
    entry = result_entry(example, model.continuation_probabilities(example), swept)
    effects = [entry["total_effect"], entry["indirect_effect_model"], entry["direct_effect_model"]]
    np.testing.assert_allclose(effects, [total, indirect, direct], atol=1e-5)
    kind = {22: "indirect", 129: "direct"}[number]
    assert check_heads(model, example, kind, swept[kind][:2], sample=12).deviation < 1e-4


def test_gemma_gives_the_base_probabilities_of_the_contract():
    """Gemma 3 270M with its begin token on WinoBias test: the filtered examples and their total effect."""
    folder = assets.cache_folder() / "models" / "gemma3-270m"
    if not folder.is_dir() or not os.environ.get("MEDIATION_GEMMA"):
        pytest.skip("takes over a minute, and gemma3-270m comes under terms of use: "
                    "python -m mediation.assets gemma3-270m; MEDIATION_GEMMA=1 make test")
    model = Model(gpt2_version="gemma3-270m")
    try:
        examples = winobias.load("test")
    except InputError as error:
        pytest.skip(str(error))
    interventions = build_interventions(model, examples)
    assert interventions[0].base_strings_tok[0][0] == model.tokenizer.bos_token_id
    ratios = [get_odds_ratio(intervention, model) for intervention in interventions]
    indices, aligned, threshold = strong_examples(ratios, 0.25)
    assert (len(indices), aligned) == (57, 76) and threshold == pytest.approx(1.045438, abs=1e-4)
    assert np.mean([ratios[index] - 1 for index in indices]) == pytest.approx(0.298722, abs=1e-4)
