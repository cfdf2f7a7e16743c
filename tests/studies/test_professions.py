"""The profession study on words of several tokens."""

from itertools import permutations

import numpy as np
from tqdm import tqdm

from mediation.files.storage import RunFolder
from mediation.studies.engine import StudyOptions
from mediation.studies.interpolated_trees import INTERPOLATED_FROM
from mediation.studies.professions import ProfessionStudy
from tests.helpers import CANDIDATES, multi_token_stimulus


def test_a_study_of_words_of_several_tokens(toy_model, tmp_path):
    """An interpolant has one variable: slots of several tokens are swept word by word."""
    model, template, run_folder = toy_model(), "The {} said that", RunFolder(tmp_path)
    words = ["".join(pair) for pair in permutations("xqzj", 2)]
    stimuli = {word: multi_token_stimulus(model, template, (word, "xx", "qq"), CANDIDATES[0], "all")
               for word in words}
    run_folder.claim([], {})
    assert len(words) >= INTERPOLATED_FROM
    study = ProfessionStudy(model, run_folder, {template: stimuli},
                            {"t.csv": {"template": template, "intervention_type": "man_direct"}},
                            StudyOptions())
    with tqdm(disable=True) as progress:
        results, prompts = study.sweep("man_direct", progress)
    expected = model.neuron_intervention_single_experiment(stimuli[words[3]], "man_direct")[6:]
    log_probabilities = results(prompts.index((template, words[3]))).log_probabilities.T
    expected = np.log([part.numpy().ravel() for part in expected])
    np.testing.assert_allclose(log_probabilities, expected, atol=1e-5)
