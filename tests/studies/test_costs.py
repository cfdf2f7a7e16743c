"""Operations are counted as PyTorch counts them when the tasks run."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from mediation.mediators import sweeps
from mediation.mediators.catalogue import Request
from mediation.studies.costs import cost
from mediation.studies.engine import StudyOptions
from mediation.studies.estimated_trees import Gradients
from mediation.studies.heads import head_task
from mediation.studies.neurons import plan
from mediation.studies.selection import HeadExample, NeuronExample, Objectives
from mediation.studies.sites import Sites
from mediation.studies.sizes import Sizes
from tests.helpers import profession_stimuli, profession_stimulus


def of_trees(model, _):
    stimuli = [of_words["nurse"] for of_words in profession_stimuli(model).values()]
    return plan(model, stimuli, "man_indirect", StudyOptions(), "table").stages[-1][0]


def of_gradients(model, _):
    stimuli = [profession_stimulus(model), profession_stimulus(model, word="maid")]
    return Gradients(stimuli, "table", 1).tasks[0]


def of_heads(model, stimulus):
    return head_task(model, stimulus(model), StudyOptions(), "table", "title")


def of_sites(model, stimulus):
    one = stimulus(model)
    return Sites("table", "name", "title", 0, one, Request.of("mlps", "each"), StudyOptions())


def of_head_sets(model, stimulus):
    sets = [[0, 1, unit] for unit in range(2, 12)]
    return Objectives("table", "name", "title", 1, HeadExample(stimulus(model), None), tuple(sets))


def of_neuron_sets(model, _):
    example = NeuronExample(profession_stimulus(model), "man_indirect", 1, None)
    return Objectives("table", "name", "title", 1, example, tuple([20, unit] for unit in range(21, 60)))


TASKS = {"neurons": of_trees, "gradients": of_gradients, "heads": of_heads, "sites": of_sites,
         "sets of heads": of_head_sets, "sets of neurons": of_neuron_sets}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", TASKS)
def test_operations_are_those_that_run(toy_model, stimulus, monkeypatch, name, kind):
    monkeypatch.setattr(sweeps, "packed", lambda modules: {})  # PyTorch does not count oneDNN's products
    model = toy_model(kind)
    task = TASKS[name](model, stimulus)
    with FlopCounterMode(display=False) as counter:
        task.compute(model, lambda key: {}, lambda count: None)
    counted = cost(task, Sizes.of(model), model).operations
    # sites at neighbouring positions are run from the first of them on, which is counted as from their own
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.3 if name == "sites" else 0.2)
