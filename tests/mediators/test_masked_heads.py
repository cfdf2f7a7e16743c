"""Masked models: descent against full passes, and what cannot be asked of them."""


import numpy as np
import pytest

from attention_utils import perform_intervention
from experiment import Intervention, Model
from mediation.errors import InputError
from mediation.mediators.head_sweeps import head_estimates
from mediation.studies.checks import check_heads
from tests.helpers import MASKED


@pytest.fixture(params=MASKED)
def architecture(request):
    return request.param


def test_descent_equals_full_passes(masked_model, stimulus, architecture, in_double, monkeypatch):
    model, _ = masked_model(architecture, 5)
    fast = model.attention_intervention_experiment(stimulus(model), "indirect")
    monkeypatch.setattr(model, "full_passes", True)
    for a, b in zip(fast, model.attention_intervention_experiment(stimulus(model), "indirect")):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_an_entry_of_the_study(masked_model, stimulus):
    model, _ = masked_model("bert", 2)
    entry = perform_intervention(stimulus(model), model)
    assert np.shape(entry["indirect_effect_head"]) == (3, 4)
    swept = model.attention_intervention_experiment(stimulus(model), "indirect")
    assert check_heads(model, stimulus(model), "indirect", swept[:2], 3).deviation < 1e-6


def test_what_a_masked_model_cannot_do_is_said(masked_model, stimulus, toy_checkpoint):
    model, _ = masked_model("distilbert")
    neurons = Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"])
    with pytest.raises(InputError, match=r"masked model.*neurons need a causal model"):
        model.neuron_intervention_single_experiment(neurons, "man_indirect")
    with pytest.raises(InputError, match=r"masked model.*--method exact"):
        head_estimates(model, stimulus(model), "indirect")
    with pytest.raises(InputError, match="masking approach 7 is unknown: choose 1 to 6"):
        Model(gpt2_version=str(toy_checkpoint("distilbert")), masking_approach=7)
