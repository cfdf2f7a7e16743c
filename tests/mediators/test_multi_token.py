"""Sweeps over words and candidates of several tokens, and over whole MLPs."""


import numpy as np
import pytest
import torch

from mediation.errors import InputError
from mediation.mediators.catalogue import Request
from mediation.mediators.neuron_sweeps import (
    SweepOptions,
    direct_interpolants,
    neurons_in_trees,
)
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies.comparisons import build_comparisons
from tests.helpers import CANDIDATES, multi_token_stimulus, swept_by


@torch.no_grad()
def test_whole_mlps_are_all_neurons_of_a_layer(toy_model, in_double):
    model = toy_model("gemma3_text", torch.float64)
    one, width = multi_token_stimulus(model), model.num_neurons
    sets = torch.arange(4 * width).reshape(4, width)
    swept = neurons_in_trees(model, [one], "man_indirect", units=sets)[0]  # [L + 1, 2]
    for layer in range(4):
        alone = model.neuron_intervention_single_experiment(one, "man_indirect", [layer - 1] * width,
                                                            list(range(width)), intervention_loc="neuron")
        np.testing.assert_allclose(swept[layer].exp(), [alone[6].item(), alone[7].item()], rtol=1e-10)
    one = build_comparisons(model, "x", [Stimulus("1", "The {} went home because", ("electrician", "man"),
                                                  tuple(CANDIDATES[1]))], "last")[0]
    sites = swept_by(model, one, Request.of("mlps"))["indirect"]
    np.testing.assert_allclose(sites, swept, rtol=1e-10)


def test_the_default_is_the_rule_of_2020(toy_model):
    model = toy_model()
    with pytest.raises(InputError, match=r"not of equal length.*multi_token"):
        multi_token_stimulus(model, candidates=CANDIDATES[0], multi_token=None)
    of_two = multi_token_stimulus(model, words=("xqz", "zqx", "qzx"), candidates=CANDIDATES[0],
                                  multi_token=None)
    with pytest.raises(InputError, match=r"differ in a single token.*multi_token"):
        model.neuron_intervention_single_experiment(of_two, "man_indirect")
    long_candidate = multi_token_stimulus(model, words=("nurse", "man", "woman"), multi_token=None)
    with pytest.raises(InputError, match=r"is 2 tokens.*--multi_token"):
        model.neuron_intervention_single_experiment(long_candidate, "man_indirect")
    unequal = multi_token_stimulus(model, multi_token="all")
    with pytest.raises(InputError, match="not as many: use multi_token last"):
        model.neuron_intervention_single_experiment(unequal, "man_indirect")


# without the normaliser

def test_odds_of_several_tokens_need_the_normaliser(toy_model, toy_checkpoint, run_script, tmp_path):
    model = toy_model()
    for candidates in CANDIDATES[1:]:
        one = multi_token_stimulus(model, candidates=candidates)
        with pytest.raises(InputError, match="odds_only is for candidates of one token each"):
            neurons_in_trees(model, [one], "man_indirect", SweepOptions(odds_only=True))
        with pytest.raises(InputError, match="odds_only is for candidates of one token each"):
            direct_interpolants(model, [one], "man_direct", np.zeros((2, 16)), 1,
                                SweepOptions(odds_only=True))
    code, _, error = run_script("run_profession_neuron_experiments.py --template_indices 1",
                                "--professions", "nurse",
                                "--odds_only", "--multi_token", "last", "--candidates", "he was", "she",
                                "-model", toy_checkpoint("gpt2"), "-out_dir", tmp_path / "out")
    assert code == 2 and error.count("\n") == 1
    assert error.startswith("error: odds_only is for candidates of one token each, one has 2")
    assert not (tmp_path / "out").exists()


def test_odds_of_single_tokens_after_words_of_several(toy_model):
    model = toy_model()
    one = multi_token_stimulus(model, candidates=CANDIDATES[0])
    full, odds = (neurons_in_trees(model, [one], "man_indirect", SweepOptions(odds_only=odds_only))
                  for odds_only in (False, True))
    np.testing.assert_allclose(odds[..., 0] - odds[..., 1], full[..., 0] - full[..., 1], atol=1e-5)
