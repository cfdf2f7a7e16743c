"""Interventions that are run again as full passes."""

import numpy as np

from mediation.studies.checks import check_neurons
from tests.helpers import profession_stimulus


def test_check_against_full_passes_sees_a_wrong_number(toy_model):
    model = toy_model()
    intervention = profession_stimulus(model)
    swept = model.neuron_intervention_single_experiment(intervention, "man_direct")
    right = np.log([p.numpy() for p in swept[6:]])
    assert check_neurons(model, intervention, "man_direct", right, sample=64).deviation < 1e-4
    wrong = np.stack([right[0], np.roll(right[1], 1)])
    assert check_neurons(model, intervention, "man_direct", wrong, sample=64).deviation > 1e-3
