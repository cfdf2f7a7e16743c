"""Gradients of many prompts at once."""


import numpy as np
import torch

from mediation.mediators.neuron_sweeps import neuron_gradients_of
from tests.helpers import profession_stimuli


def test_prompts_together_equal_prompts_alone(toy_model):
    model = toy_model("llama", torch.float64)
    every = [stimulus for words in profession_stimuli(model).values() for stimulus in words.values()]
    together = neuron_gradients_of(model, every, 1)
    for index, stimulus in enumerate(every):
        for part, alone in zip(together, neuron_gradients_of(model, [stimulus], 1)):
            np.testing.assert_allclose(part[index], alone[0], rtol=1e-10, atol=1e-12)
