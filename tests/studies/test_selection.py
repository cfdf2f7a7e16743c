"""Greedy selection, lazy and not, and sets against single effects."""

import numpy as np
import pytest

from attention_utils import perform_intervention
from mediation.effects.summaries import smallest_reaching
from mediation.results.selections import KINDS
from mediation.studies import selection


def test_all_heads_equal_the_model_level_effect(toy_model, stimulus, head_files, mean_effects):
    model = toy_model()
    files = head_files(model, [stimulus(model)])
    entry = perform_intervention(stimulus(model), model)
    assert mean_effects(files)["mean_effect_model"] == pytest.approx(entry["indirect_effect_model"], abs=1e-6)
    assert files.greedy(12)["val"][-1] == pytest.approx(entry["indirect_effect_model"], abs=1e-6)


def test_top_k_and_greedy_agree_on_the_first(toy_model, stimulus, head_files, mean_effects):
    model = toy_model("llama")
    files = head_files(model, [stimulus(model)])
    top = files.top_k(selection.best_first(mean_effects(files)["mean_effect_head"]).tolist(), 1)
    greedy = files.greedy(1)
    assert top["head"] == greedy["head"] and top["val"] == pytest.approx(greedy["val"], rel=1e-5)


# greedy, lazy and not

def coverage(rng, cells):
    """A submodular objective: how much of a ground set the units cover together; and a way to use it."""
    covers = rng.random((cells, 60)) < 0.15

    class Files(selection.SelectionFiles):
        def __init__(self):
            self.shape, self.label, self.first_layer, self.cells = (1, cells), "head", 0, cells
            self.examples = {}
            self.stored = {}

        def read(self, kind):
            return self.stored.get(kind)

        def write(self, kind, content, rows):
            self.stored[kind] = content

        def objectives(self, kind, step, sets, evaluate=None):
            return np.array([[covers[list(units)].any(axis=0).sum() for units in sets]], float)

        run_folder = type("Folder", (), {"remove_shards": staticmethod(lambda name: None)})
        names = dict.fromkeys(KINDS)
    return Files


def test_lazy_greedy_equals_greedy_where_gains_do_not_grow():
    for seed in range(10):
        files = coverage(np.random.default_rng(seed), 64)()
        plain, lazy = files.greedy(6), files.lazy_greedy(6)
        assert lazy["val"] == plain["val"] and lazy["grown"] == 0
        by_example = files.stored["by_example"]
        assert by_example["greedy"].tolist() == by_example["lazy"].tolist() == [plain["val"]]
        assert lazy["saved"] > 0 and not lazy["certified"]
        assert lazy["evaluations"] + lazy["saved"] == sum(64 - step for step in range(6))


def test_lazy_greedy_that_left_nothing_out_is_certified():
    lazy = coverage(np.random.default_rng(0), 10)().lazy_greedy(2)
    assert lazy["saved"] == 0 and lazy["certified"]


def test_greedy_never_repeats_a_unit():
    assert selection.greedy_step(np.array([[5.0, 4.0], [3.0, 6.0]]), [3]) == (0, 5.0)
    assert selection.best_first([1.0, 2.0, 2.0, 0.0]).tolist() == [1, 2, 0, 3]
    assert smallest_reaching([0.1, 0.3, 0.2], 0.25) == 2 and smallest_reaching([0.1], 1) is None
