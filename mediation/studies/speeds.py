"""How fast this machine computes the tasks of a run, seen in a probe of some seconds.

The probe runs some of the tasks, or parts of them, on the model. Nothing is written.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from mediation.mediators.head_sweeps import heads_in_sets
from mediation.mediators.heads import heads_layers_model
from mediation.mediators.neuron_sweeps import SweepOptions, neurons_in_trees
from mediation.mediators.neurons import INTERVENTION_TYPES
from mediation.mediators.sweeps import automatic_batch_size
from mediation.model.language_model import LanguageModel, families
from mediation.model.products import fixed_weights, packed
from mediation.stimuli.interventions import Intervention
from mediation.studies.costs import Cost, cost
from mediation.studies.engine import Arrays, Key, Task
from mediation.studies.estimated_trees import EstimatedTree, PromptGradients
from mediation.studies.heads import Heads
from mediation.studies.interpolated_trees import InterpolatedLayer, InterpolatedTree, Values
from mediation.studies.selection import NeuronExample, Objectives
from mediation.studies.sites import Sites, sites_of
from mediation.studies.sizes import Form, Sizes
from mediation.studies.trees import Tree

GRADIENTS_TRIED = 16  # prompts
SAMPLED_LAYERS = 6  # of which a probe runs some neurons


class TimeUp(Exception):
    """The probe has run long enough."""


class Clock:
    """Takes the place of a progress bar: when how many interventions were done."""

    def __init__(self, seconds: float) -> None:
        self.started = time.perf_counter()
        self.deadline = self.started + seconds
        self.marks: list[tuple[int, float]] = []

    def __call__(self, count: int) -> None:
        if count:  # what needs no run is told as nothing
            self.marks.append((self.done + count, time.perf_counter()))
        if time.perf_counter() > self.deadline and len(self.marks) > 2:
            raise TimeUp

    @property
    def done(self) -> int:
        """Interventions so far."""
        return self.marks[-1][0] if self.marks else 0

    @property
    def first(self) -> int:
        """Interventions of the first batch, 0 where there was no second."""
        return self.marks[0][0] if len(self.marks) > 1 else 0


@dataclass
class Speeds:
    """Seconds per operation that a probe saw.

    `passes`: of single forward passes; `classes`: of each class of tasks, of all its operations, or, where
    `in_part`, of its sweep alone; `packing`: seconds once per run; `seconds`, `tried`: of the probe, and how
    many interventions it ran.
    """

    passes: float
    classes: dict[str, float] = field(default_factory=dict)
    in_part: set[str] = field(default_factory=set)
    packing: float = 0.0
    seconds: float = 0.0
    tried: int = 0

    def of(self, task: Task, of_task: Cost) -> float:
        """Seconds of a task."""
        name = class_of(task)
        known = [each for each in self.classes.values() if each]
        sweep = self.classes.get(name) or (float(np.median(known)) if known else self.passes)
        if name in self.classes and name not in self.in_part:
            return sweep * of_task.operations
        gradients = self.classes.get("PromptGradients", self.passes)
        return sweep * of_task.sweep + gradients * of_task.gradients + self.passes * of_task.passes


def class_of(task: Task) -> str:
    """Tasks of one class take as long for an operation."""
    compared = " compared" if getattr(task, "compared", False) else ""
    method = " exact" if isinstance(task, EstimatedTree) and task.options.method == "screen" else ""
    return f"{type(task).__name__}{compared}{method}"


def stimuli_of(task: Task) -> Sequence[Intervention]:
    """The stimuli that a task runs."""
    if isinstance(task, Tree | PromptGradients):
        return task.stimuli
    if isinstance(task, InterpolatedLayer):
        return task.templates
    if isinstance(task, Values):
        return task.words[:1]
    one: Any = task.example if isinstance(task, Objectives) else task
    return [one.intervention] if hasattr(one, "intervention") else one.stimuli


def probe(model: LanguageModel, tasks: Sequence[Task], sizes: Sizes, seconds: float) -> Speeds:
    """Run some of these tasks, or parts of them, the costliest classes first, for about so many seconds."""
    started = time.perf_counter()
    costs = {task.key: cost(task, sizes, model) for task in tasks}
    with fixed_weights():
        if not model.full_passes and any(each.sweep for each in costs.values()):
            packed([*model.parts.blocks, model.parts.head])
        packing = time.perf_counter() - started
        speeds = Speeds(_pass_speed(model, stimuli_of(tasks[0])[0], sizes), packing=packing)
        classes: dict[str, list[Task]] = {}
        for task in tasks:
            classes.setdefault(class_of(task), []).append(task)
        share = {name: sum(costs[task.key].operations for task in members)
                 for name, members in classes.items()}
        for name in sorted(classes, key=lambda name: -share[name]):
            left = seconds - (time.perf_counter() - started - packing)
            if left < 0.5 and speeds.classes:
                break
            # the middle one is as costly as most
            members = sorted(classes[name], key=lambda task: costs[task.key].operations)
            of_class = max(1.0, left * (0.3 + 0.7 * share[name] / sum(share.values())))
            _try(model, members[len(members) // 2], sizes, of_class, speeds)
    speeds.seconds = time.perf_counter() - started
    return speeds


@torch.no_grad()
def _pass_speed(model: LanguageModel, stimulus: Intervention, sizes: Sizes) -> float:
    """Seconds per operation of single passes of a study's prompts: mostly of reading the weights."""
    tokens, taken = stimulus.base_strings_tok[0], []
    for _ in range(3):
        started = time.perf_counter()
        model.continuation_probabilities(stimulus)
        taken.append(time.perf_counter() - started)
    length = len(tokens) + sum(len(ids) - 1 for ids in stimulus.candidates_tok)
    operations = sizes.full_pass(length, 1 + length - len(tokens))
    return float(np.median(taken)) / len(stimulus.prompts) / operations


def _try(model: LanguageModel, task: Task, sizes: Sizes, seconds: float, speeds: Speeds) -> None:
    """Run a task, or a part of it, and keep its speed."""
    clock, name, of_task = Clock(seconds), class_of(task), cost(task, sizes, model)
    if isinstance(task, InterpolatedTree | Values) or (isinstance(task, InterpolatedLayer)
                                                       and not of_task.sweep):
        return  # single passes, or nothing
    if isinstance(task, Tree | InterpolatedLayer) and of_task.sweep and not model.full_passes:
        operations, taken = _try_neurons(model, task, sizes, clock)
        speeds.in_part.add(name)
    elif isinstance(task, Heads) and not task.options.estimates:
        operations, taken = _try_heads(model, task, of_task, clock)
        speeds.in_part.add(name)
    else:
        operations, taken = _try_whole(model, task, sizes, of_task, clock)
    speeds.tried += clock.done
    if operations > 0:
        speeds.classes[name] = taken / operations


def _try_neurons(model: LanguageModel, task: Any, sizes: Sizes, clock: Clock) -> tuple[float, float]:
    """Some neurons of some layers, in batches of one layer as in the run: (operations, seconds)."""
    every, odds_only = stimuli_of(task), task.options.odds_only
    stimuli = [every[member] for member in families(every)[0]]  # an interpolation's may be of several words
    form = _form(stimuli, task.kind)
    whole = task.options.batch_size or automatic_batch_size(model.parts, model.device, form.changing)
    layers = [task.layer] if isinstance(task, InterpolatedLayer) else _spread(sizes.layers)
    # more rows than the hidden size, or the normaliser is not the run's
    size = min(whole, sizes.width, max(sizes.width // max(2, len(layers)) + 1, whole // 4))
    if isinstance(task, InterpolatedLayer):
        layers = layers * (sizes.width // size + 1)
    units = np.concatenate([layer * sizes.width + np.arange(size) for layer in layers])
    options = SweepOptions(task.options.alpha, size, odds_only)
    with suppress(TimeUp):
        neurons_in_trees(model, stimuli, task.kind, options, torch.from_numpy(units), clock)
    of_rows = np.repeat(layers, size)
    # what is made once for a prompt lies before the first batch's end, and rows of two precisions come in
    # another order
    begun = 0 if model.fast_rows else clock.first
    rows = of_rows[begun // len(stimuli):clock.done // len(stimuli)]
    joined = [(int(layer), float(count)) for layer, count in zip(*np.unique(rows, return_counts=True))]
    operations = sizes.descents(joined, form, odds_only=True)
    operations += len(rows) * sizes.read_out(form.predicted, len(units), odds_only)
    return operations, clock.marks[-1][1] - (clock.marks[0][1] if begun else clock.started)


def _form(stimuli: Sequence[Intervention], kind: str) -> Form:
    run_on, one = INTERVENTION_TYPES[kind].run_on, stimuli[0]
    return Form.of([stimulus.prompts[run_on].tokens for stimulus in stimuli], one.candidates_tok,
                   one.places[run_on][0])


def _spread(layers: int) -> list[int]:
    """Layers of neurons from all depths but the last, late and early in turns: a probe that is stopped has
    seen both."""
    count = min(SAMPLED_LAYERS, layers)
    middle = [int((number + 0.5) * layers / count) for number in range(count)]
    return [middle[-1], *[layer for pair in zip(middle[:count // 2], [*middle[count // 2:-1], -1])
                          for layer in pair if layer >= 0]]


def _try_heads(model: LanguageModel, task: Heads, of_task: Cost, clock: Clock) -> tuple[float, float]:
    """All sets of one effect, as far as time goes: (operations, seconds)."""
    sets = heads_layers_model(model.num_layers, model.num_heads)
    with suppress(TimeUp):
        heads_in_sets(model, task.intervention, "indirect", sets, task.options.batch_size, clock)
    blocks = model.num_layers - sets.any(dim=2).int().argmax(dim=1).double()
    share = float(blocks[:clock.done].sum() / blocks.sum())
    return of_task.sweep / 2 * share, time.perf_counter() - clock.started


def _try_whole(model: LanguageModel, task: Task, sizes: Sizes, of_task: Cost,
               clock: Clock) -> tuple[float, float]:
    """A task that takes seconds, or as much of it as there is time for: (operations, seconds)."""
    if isinstance(task, Objectives) and isinstance(task.example, NeuronExample):
        task = replace(task, sets=task.sets[::max(1, len(task.sets) // (2 * sizes.width))])
        of_task = cost(task, sizes, model)
    if isinstance(task, PromptGradients):
        task = replace(task, stimuli=task.stimuli[:GRADIENTS_TRIED])
        of_task = cost(task, sizes, model)
    done = 1.0
    try:
        # what is estimated from no gradients is compared with full passes all the same
        task.compute(model, _nothing_earlier(model, sizes, task), clock)
    except TimeUp:
        done = min(1.0, clock.done / max(1, task.interventions))
    return of_task.operations * done, time.perf_counter() - clock.started


def _nothing_earlier(model: LanguageModel, sizes: Sizes, task: Task) -> Callable[[Key], Arrays]:
    """Arrays of zeros where a task asks for what earlier ones gave."""
    shape = (len(stimuli_of(task)[0].places[0]), sizes.layers + 1, sizes.width)
    every = 1_000_000  # stimuli: no memory is taken for them
    arrays: Arrays = {name: np.broadcast_to(np.zeros(of_one, np.float32), (every, *of_one))
                      for name, of_one in (("gradients", (2, *shape)), ("values", shape))}
    if isinstance(task, Sites):
        arrays |= {f"site_{index}": np.zeros(int(site.columns.max()) + 1)
                   for index, site in enumerate(sites_of(model, task.request))}
    return lambda key: arrays
