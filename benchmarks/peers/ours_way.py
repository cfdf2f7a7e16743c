"""The interventions by this project: its sweeps, and the 2020 algorithm that they are measured against.

    python -m benchmarks.peers.ours_way TASK.npz exact            # one descent through the layers
    python -m benchmarks.peers.ours_way TASK.npz fast             # bfloat16 on the difference to the base run
    python -m benchmarks.peers.ours_way TASK.npz algorithm_2020   # full passes under hooks

The ways for heads are heads_exact, heads_fast and heads_algorithm_2020, for maps of sites maps_exact and
maps_full_passes. Prints the lines that `benchmarks.peers.worker` describes.
"""

import torch

from benchmarks.neuron_sweep import by_full_passes_2020
from benchmarks.peers.worker import ROWS, cells_of, serve
from experiment import Intervention, Model
from mediation.mediators.catalogue import Request
from mediation.mediators.heads import HeadEdits
from mediation.mediators.neurons import NeuronEdits
from mediation.mediators.site_sweeps import sweep_sites_by_full_passes
from mediation.mediators.sweeps import sweep, sweep_heads
from mediation.model.fast_rows import FastRows
from mediation.model.forward import run_base
from mediation.model.products import fixed_weights
from mediation.studies.engine import StudyOptions
from mediation.studies.sites import ALTERNATIVE, NULL, Run, Sites, sites_of


def load(task):
    """The project's model."""
    return Model(device="cpu", gpt2_version=task.model)


def neuron_edits(task):
    """The task as the sweeps take it."""
    columns = (column.unsqueeze(1) for column in (task.layers, task.neurons, task.values))
    return NeuronEdits(*columns, task.position.item())


def exact(model, task, counted=None):
    """The prompt's base run is timed, too."""
    predictions = tuple(([len(task.tokens) - 1], [candidate]) for candidate in task.candidates.tolist())
    base = run_base(model.model, model.parts, task.tokens, linear_maps=counted is not None)
    return sweep(model.parts, base, predictions, neuron_edits(task), fast=counted)


def fast(model, task):
    """bfloat16 on the difference to the base run."""
    return exact(model, task, FastRows())


def algorithm_2020(model, task):
    """Full passes in batches, softmax over the logits of the last position."""
    return by_full_passes_2020(model, task.tokens, neuron_edits(task), task.candidates.tolist(), ROWS)


def heads_exact(model, task, **settings):
    """Every head alone."""
    chosen = torch.zeros(len(task.layers), model.num_layers, model.num_heads, dtype=torch.bool)
    chosen[torch.arange(len(chosen)), task.layers, task.heads] = True
    candidates = [task.candidate1.tolist(), task.candidate2.tolist()]
    edits = HeadEdits(chosen, task.weights, task.first.item())
    return sweep_heads(model.model, model.parts, task.tokens, candidates, edits, **settings)


def heads_fast(model, task):
    """bfloat16 on the difference to the base run."""
    return heads_exact(model, task, fast=FastRows())


def heads_algorithm_2020(model, task):
    """One full pass per head and continuation."""
    return heads_exact(model, task, full_passes=True)


def map_edits(model, task):
    """(the Sites of a map, the null prompt's run, the indirect effects' edits); both prompts are run."""
    stimulus = Intervention(model.tokenizer, task.prompt, task.substitutes, task.words)
    positions = "all" if (cells_of(task)[2] < 0).all() else "each"
    of_map = Sites("", "", "", 0, stimulus, Request.of(task.map, positions), StudyOptions())
    sites = sites_of(model, of_map.request)
    runs = Run.of_each(model, stimulus, (NULL, ALTERNATIVE), sites)
    values = of_map.put_in(model, sites, runs, NULL, earlier=None)
    return of_map, runs[NULL], of_map.edits(sites, runs[NULL].length, NULL, values)


def maps_exact(model, task):
    """As mediate.py computes a map, without its check against full passes."""
    of_map, run, edits = map_edits(model, task)
    return torch.from_numpy(of_map.by_descent(model, run, edits))


def maps_full_passes(model, task):
    """Every cell in a full pass under plain hooks, in batches; the logits at the last position only."""
    of_map, run, edits = map_edits(model, task)
    return sweep_sites_by_full_passes(model.model, model.parts, task.tokens, edits,
                                      of_map.intervention.candidates_tok, run.log_probabilities, ROWS)


if __name__ == "__main__":
    ways = (exact, fast, algorithm_2020, heads_exact, heads_fast, heads_algorithm_2020, maps_exact,
            maps_full_passes)
    with fixed_weights():  # as the engine of the studies opens it
        serve(("torch", "transformers"), load, {way.__name__: way for way in ways})
