"""Comparisons built from a user's stimuli, and the trees that they share."""

import random

import numpy as np
import torch

from mediation.effects.screening import Screening
from mediation.errors import InputError
from mediation.model.language_model import families
from mediation.results.mediation_tables import screening_of
from mediation.stimuli import stimulus_files
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies.comparisons import build_comparisons
from mediation.studies.results import Account, sample_of
from tests.helpers import malformed


def test_slots_of_other_lengths_do_not_share_a_tree(toy_model):
    """Alike up to the slot's end, but with one token changed or two: estimates are not shared."""
    model = toy_model()
    stimuli = [Stimulus("a", "The {} said that", ("nurse doctor", "nurse captain"), ("she", "he")),
               Stimulus("b", "The nurse {} said that", ("doctor", "captain"), ("she", "he"))]
    comparisons = build_comparisons(model, "x", stimuli, "all")
    assert families([comparison.intervention for comparison in comparisons]) == [[0], [1]]


def test_long_families_are_run_in_parts(toy_model):
    stimuli = [Stimulus(str(number), "The {} said" + " that" * 40 + f" {number}", ("nurse", "man"),
                        ("she", "he")) for number in range(60)]
    model = toy_model()
    interventions = [comparison.intervention for comparison in build_comparisons(model, "x", stimuli, None)]
    groups = families(interventions)
    assert [index for members in groups for index in members] == list(range(60))
    assert 1 < len(groups) < 10
    # a model's trees are the same parts, and a part is not parted again
    assert [members for members, _ in model.trees(interventions, 0)] == groups
    assert all(len(families([interventions[index] for index in members])) == 1 for members in groups)
    torch.testing.assert_close(model.base_in_trees(interventions)[-1:],
                               model.base_in_trees(interventions[-1:]), rtol=1e-5, atol=0)


def test_three_hundred_malformed_files_end_in_one_line(toy_model, tmp_path):
    """What the reader lets through either fits the model or is refused with file and line.

    Emoji, other scripts, strange words are among it.
    """
    model, path, run = toy_model(), tmp_path / "mine.jsonl", 0
    for number in range(300):
        path.write_bytes(malformed(random.Random(1000 + number)))
        try:
            comparisons = build_comparisons(model, path, stimulus_files.read(path), "last")
            log_probabilities = model.base_in_trees([comparisons[-1].intervention])
            assert torch.isfinite(log_probabilities).all() and (log_probabilities < 0).all()
            run += 1
        except InputError as error:
            assert str(error).startswith(f"{path}, line ") and "\n" not in str(error)
    assert run > 10


def test_a_unit_missed_in_several_comparisons_of_a_tree_is_one_miss():
    """Unit 3 was drawn; it is among the strongest of the second and the third comparison."""
    effects = np.array([[5.0, 4, 3, 1, 0], [5, 4, 3, 9, 0], [5, 4, 3, 9, 0]])
    arrays = {"base": np.zeros((3, 2, 2)),
              "log_probabilities": np.stack([np.zeros_like(effects), effects], axis=2),
              "chosen": np.array([0, 1, 2]), "drawn": np.array([3, 4]), "rest": np.int64(2),
              "estimates": effects[:, 3:]}
    account = Account(samples=[sample_of(arrays, position, 0, "tree_0", "nurse", 3) for position in range(3)])
    screen = account.entry(3)["screen"]
    assert (screen["drawn"], screen["missed"], screen["rest"]) == (2, [["nurse", 3]], 2)
    assert screening_of({"screen": screen}, 3) == Screening(2, 1, 2, 3) and screen["largest_difference"] == 0
