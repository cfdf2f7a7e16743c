"""Estimated effects: what gradients take on disk, how draws of a screening are counted."""


import pytest
import torch

from mediation.effects.screening import Screening
from mediation.studies import estimated_trees
from mediation.studies import professions as professions_study
from mediation.studies.engine import StudyOptions
from tests.helpers import profession_stimuli, results_of


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_keep_twelve_bytes_per_neuron_and_prompt_and_seventeen_per_estimate(
        toy_model, tmp_path, dtype):
    model = toy_model("llama", getattr(torch, dtype))
    every = [stimulus for words in profession_stimuli(model).values() for stimulus in words.values()]
    run_folder, _ = results_of(model, tmp_path, every, "man_indirect", StudyOptions("gradient", dtype=dtype))
    needed = estimated_trees.bytes_of_gradients(model, every, "gradient")
    neurons, of_gradients = (model.num_layers + 1) * model.num_neurons, 12 if dtype == "float32" else 24
    assert needed == 6 * neurons * (of_gradients + 17)
    alternatives = 4 * neurons * of_gradients  # two prompts of two templates, for all words
    # names and sizes in each of six files
    assert 0 <= run_folder.shard_bytes() - needed - alternatives < 6 * 2000


def test_one_draw_is_counted_once_over_templates():
    samples = (("man_direct", [["nurse", 5]]), ("man_direct", [["nurse", 5], ["clerk", 5]]),
               ("man_indirect", []))
    entries = [{"intervention_type": kind, "screen": {"drawn": 12, "rest": 100, "missed": missed}}
               for kind, missed in samples]
    assert professions_study.screening(entries, 50) == Screening(24, 2, 100, 50)
