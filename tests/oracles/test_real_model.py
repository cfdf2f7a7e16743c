"""SmolLM2-135M: the contract's figures for it, and sweeps against full passes."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch

from experiment import Intervention, Model
from mediation.effects.estimands import strong_examples
from mediation.effects.odds import effect, log_odds
from mediation.errors import InputError
from mediation.files import assets
from mediation.mediators.head_sweeps import head_edits, heads_in_sets
from mediation.mediators.heads import heads_layers_model
from mediation.mediators.neuron_sweeps import runs_and_edits
from mediation.mediators.sweeps import by_full_passes, heads_by_full_passes
from mediation.stimuli import winobias
from mediation.studies.attention import build_interventions, odds_ratios
from tests.helpers import PROJECT


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
def test_descent_equals_full_passes(model, nurse, kind, layer):
    """The 16 neurons of a layer with the largest effects, and every 36th."""
    arguments = {"layers_to_adj": layer, "intervention_loc": "layer"}
    swept = np.concatenate(model.neuron_intervention_single_experiment(nurse, kind, **arguments)[6:])
    odds = log_odds(*swept)
    strongest = np.abs(odds - np.median(odds)).argsort()[-16:]
    checked = np.concatenate([strongest, np.arange(0, model.num_neurons, 36)])
    _, run_on, edits = runs_and_edits(model, nurse, kind, **arguments)
    with torch.no_grad():
        reference = by_full_passes(model.model, model.parts, nurse.base_strings_tok[run_on],
                                   edits[torch.from_numpy(checked)], nurse.candidates_tok)
    np.testing.assert_allclose(swept[:, checked], reference.T.exp(), rtol=1e-4)


# in every template and all examples: MEDIATION_WHOLE=1 (`make soak` does so)
WHOLE = bool(os.environ.get("MEDIATION_WHOLE"))


@pytest.mark.parametrize("options, prompts, rated, r, he_effect, skewed", [
    pytest.param("", 2601, 2482, "0.334", 3.777, 4, id="every template",
                 marks=pytest.mark.skipif(not WHOLE, reason="a minute of the real model: MEDIATION_WHOLE=1")),
    pytest.param("-template_indices 1 8 14", 459, 438, "0.385", 4.664, 1.9, id="three templates")])
def test_total_effects_of_all_professions(smollm2, run_script, tmp_path, options, prompts, rated, r,
                                          he_effect, skewed):
    """The contract's figures; for three templates those of their prompts in the run of all.

    `skewed`: how many times as large as its median the mean of the other effect is at least.
    """
    code, output, _ = run_script(f"run_profession_neuron_experiments.py --total_effects_only {options}",
                                 "-model", smollm2, "-out_dir", tmp_path)
    assert code == 0
    assert f"prompts: {prompts}; professions used in each template: 153 of 320" in output
    (folder,) = tmp_path.glob("results/*")
    code, output, _ = run_script("compute_neuron_total_effect.py", folder, "smollm2-135m")
    assert code == 0 and f"r = {r} ({prompts} prompts)" in output
    table = pd.read_csv(folder / "smollm2-135m_total_effects.csv").set_index("name")
    assert table.loc["male (he) effect", "value"] == pytest.approx(he_effect, abs=5e-4)
    assert table.loc["male (he) effect", "prompts"] == rated
    assert table.loc["female (she) effect", "value"] > skewed * table.loc["female (she) effect", "median"]


@pytest.fixture(scope="module")
def winobias_dev(model):
    try:
        examples = winobias.load("dev")
    except InputError as error:
        pytest.skip(f"no data set: {error}")
    return [Intervention(model.tokenizer, example.base_string, example.substitutes, example.candidates)
            for example in examples]


@pytest.mark.skipif(not WHOLE, reason="half a minute of the real model: MEDIATION_WHOLE=1")
def test_filter_of_winobias(model, winobias_dev):
    indices, aligned, threshold = strong_examples(odds_ratios(winobias_dev, model), 0.25)
    assert (len(indices), aligned) == (87, 116) and threshold == pytest.approx(1.061123, abs=5e-6)


def test_odds_ratios_that_the_filter_orders(model, winobias_dev):
    """Of the first examples, those of the results that come along, which were swept one by one."""
    path = PROJECT / "winobias_data" / "attention_intervention_smollm2-135m_unfiltered_dev.json"
    stored = json.loads(path.read_text(encoding="utf-8"))["results"][:24]
    np.testing.assert_allclose(odds_ratios(winobias_dev[:24], model),
                               [entry["odds_alt"] / entry["odds_base"] for entry in stored], rtol=1e-4)


@pytest.mark.parametrize("number, total, indirect, direct, kind, layer",
                         [(22, 0.087088, 0.010081, 0.070794, "indirect", 5),
                          (129, 0.256000, 0.288198, 0.037242, "direct", 14)])
def test_single_examples_of_winobias(model, winobias_dev, number, total, indirect, direct, kind, layer):
    """Effects of the contract, and a layer's heads by descent against full passes."""
    example = winobias_dev[number]
    base, alternative = (log_odds(c2, c1) for c1, c2 in model.continuation_probabilities(example))
    everything = heads_layers_model(model.num_layers, model.num_heads)
    chosen = torch.cat([everything[layer * model.num_heads:][: model.num_heads], everything[-1:]])
    swept = {name: heads_in_sets(model, example, name, chosen).numpy() for name in ("indirect", "direct")}
    odds = [alternative, *(of_sets[-1, 1] - of_sets[-1, 0] for of_sets in swept.values())]
    np.testing.assert_allclose(effect(odds, base), [total, indirect, direct], atol=1e-5)
    context, edits = head_edits(model, example, kind, chosen)
    with torch.no_grad():
        reference = heads_by_full_passes(model.model, model.parts, context, example.candidates_tok, edits)
    np.testing.assert_allclose(swept[kind], reference, rtol=0, atol=1e-4)
    assert np.ptp(reference[:-1].numpy(), axis=0).max() > 1e-3, "these heads do nothing"


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
    ratios = odds_ratios(interventions, model)
    indices, aligned, threshold = strong_examples(ratios, 0.25)
    assert (len(indices), aligned) == (57, 76) and threshold == pytest.approx(1.045438, abs=1e-4)
    assert np.mean([ratios[index] - 1 for index in indices]) == pytest.approx(0.298722, abs=1e-4)
