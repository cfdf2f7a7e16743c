"""What a task costs, counted from the task itself and the model's sizes, before anything runs.

How many runs an interpolation needs depends on the numbers that come out: it is taken as it was measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from io import BytesIO
from typing import Any

import numpy as np

from mediation.files.storage import DIGEST
from mediation.mediators.neurons import INTERVENTION_TYPES
from mediation.mediators.positions import first_difference, places
from mediation.model.language_model import PROMPTS_AT_ONCE, LanguageModel
from mediation.results.attention_results import EFFECTS
from mediation.stimuli.interventions import Intervention
from mediation.studies.engine import StudyOptions, Task
from mediation.studies.error_budget import CHECKED, LIKELY
from mediation.studies.estimated_trees import COMPARED, EstimatedTree, PromptGradients
from mediation.studies.heads import SCREENED, Heads
from mediation.studies.interpolated_trees import InterpolatedLayer, InterpolatedTree, Values
from mediation.studies.selection import HeadExample, NeuronExample, Objectives
from mediation.studies.sites import MANY, NULL, SiteMeans, Sites, kinds_of, sites_of
from mediation.studies.sizes import KEPT_LAYER, Form, Sizes
from mediation.studies.trees import Tree, reaches_output

EVALUATIONS = (12, 8.5)  # runs per neuron of an interpolation: first two layers, the others
BACKWARD = 3  # operations of a forward pass and two backward passes, in forward passes
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # {name of an array: (shape, dtype)}


@dataclass(frozen=True)
class Cost:
    """Of tasks.

    `interventions`: whose effects are wanted; `run`: those of them that are run, the others are estimated,
    interpolated, or known; `sweep`, `gradients`, `passes`: operations of the descents, of forward and
    backward passes, and of single forward passes (base runs, checks against full passes); `shards`: bytes;
    `batch`, `gradients_at_once`, `arrays`: bytes in memory, at most.
    """

    interventions: int = 0
    run: float = 0.0
    sweep: float = 0.0
    gradients: float = 0.0
    passes: float = 0.0
    shards: int = 0
    batch: float = 0.0
    gradients_at_once: float = 0.0
    arrays: float = 0.0

    @property
    def operations(self) -> float:
        """All of them."""
        return self.sweep + self.gradients + self.passes

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.interventions + other.interventions, self.run + other.run, self.sweep + other.sweep,
                    self.gradients + other.gradients, self.passes + other.passes, self.shards + other.shards,
                    max(self.batch, other.batch), max(self.gradients_at_once, other.gradients_at_once),
                    max(self.arrays, other.arrays))


def bytes_of_shard(arrays: Shapes) -> int:
    """Of a file as `RunFolder.save_shard` writes it, without making the arrays."""
    names = [*arrays, "seconds"]
    empty = BytesIO()
    np.savez(empty, **{name: np.zeros(0) for name in names})  # type: ignore[arg-type]  # names are no options
    content = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())
    return len(empty.getvalue()) + content + 8 + DIGEST


def _given(arrays: Shapes, fast: bool = False, check: bool = True) -> dict[str, Any]:
    """What tasks leave in a shard: these arrays, in the sizes in which a file has them."""
    more: dict[str, Any] = {"deviation": ((), float), "checked": ((2,), np.int64)} if check else {}
    if fast:
        more["fast"] = ((5,), float)
    size = bytes_of_shard({**arrays, **more})
    return {"shards": size, "arrays": float(size)}


@singledispatch
def cost(task: Task, sizes: Sizes, model: LanguageModel | None = None) -> Cost:
    """What a task costs.

    Args:
        model: asked where a mediator's units lie, for tasks on sites.
    """
    raise NotImplementedError(type(task).__name__)


# neurons in trees of prompts

def _tree_form(task: Tree | PromptGradients, prompt: int) -> Form:
    prompts = [stimulus.prompts[prompt].tokens for stimulus in task.stimuli]
    one = task.stimuli[0]
    return Form.of(prompts, one.candidates_tok, one.places[prompt][0])


def _checks(sizes: Sizes, stimuli: Sequence[Intervention], options: StudyOptions, sample: int) -> float:
    """Operations of a tree's interventions that are run again as full passes."""
    if options.full_passes:
        return 0.0
    one = stimuli[0]
    tokens, prompts = len(one.prompts[0].tokens), len(one.prompts)
    beginnings = {tuple(ids[:-1]) for ids in one.candidates_tok}
    drawn_from = len(stimuli) * (1 - (1 - 1 / len(stimuli)) ** sample) if len(stimuli) > 1 else 1
    passes = (sample + 2 * LIKELY) * len(beginnings) + prompts * min(len(stimuli), drawn_from + 1)
    return passes * sizes.full_pass(tokens)


def _base(sizes: Sizes, task: Tree) -> float:
    """Operations of the runs without intervention: all prompts, the one that is intervened upon once more."""
    form = _tree_form(task, NULL)
    return (len(task.stimuli[0].prompts) + 2) * sizes.full_pass(form.nodes, form.predicted)


def _log_probabilities(sizes: Sizes, task: Tree) -> dict[str, Any]:
    count, prompts = len(task.stimuli), len(task.stimuli[0].prompts)
    return {"log_probabilities": ((count, sizes.units, 2), float), "base": ((count, prompts, 2), float)}


def _reaching(sizes: Sizes, task: Tree) -> int:
    """Layers of neurons that can reach the output."""
    run_on = INTERVENTION_TYPES[task.kind].run_on
    return sizes.layers + any(reaches_output(stimulus, run_on) for stimulus in task.stimuli)


@cost.register
def _(task: Tree, sizes: Sizes, _model: Any = None) -> Cost:
    layers = [(layer, sizes.width) for layer in range(_reaching(sizes, task))]
    form = _tree_form(task, INTERVENTION_TYPES[task.kind].run_on)
    options, rows = task.options, sizes.width * len(layers)
    sweep = (len(task.stimuli) * rows * sizes.full_pass(len(task.stimuli[0].prompts[0].tokens))
             if options.full_passes else sizes.descents(layers, form, options.odds_only))
    return Cost(task.interventions, rows * len(task.stimuli), sweep,
                passes=_base(sizes, task) + _checks(sizes, task.stimuli, options, CHECKED),
                batch=sizes.batch_bytes(form, rows, options.batch_size, KEPT_LAYER),
                **_given(_log_probabilities(sizes, task), options.precision == "fast"))


@cost.register
def _(task: PromptGradients, sizes: Sizes, _model: Any = None) -> Cost:
    one, count = task.stimuli[0], len(task.stimuli)
    tokens = [len(stimulus.prompts[task.prompt].tokens) for stimulus in task.stimuli]
    behind = sum(len(ids) - 1 for ids in one.candidates_tok)
    predicted = 1 if not behind else 1 + behind
    operations = sum(BACKWARD * sizes.full_pass(length + behind, predicted) for length in tokens)
    number = np.float64 if sizes.element == 8 else np.float32
    shape = (len(one.places[task.prompt]), sizes.layers + 1, sizes.width)
    arrays = {"log_probabilities": ((count, 2), float), "gradients": ((count, 2, *shape), number),
              "values": ((count, *shape), number)}
    longest = max(tokens) + behind
    same = max(tokens.count(length) for length in set(tokens))
    return Cost(gradients=operations,
                gradients_at_once=sizes.graph_bytes(min(same, PROMPTS_AT_ONCE) * longest, longest),
                **_given(arrays, check=False))


@cost.register
def _(task: EstimatedTree, sizes: Sizes, _model: Any = None) -> Cost:
    options, arrays = task.options, _log_probabilities(sizes, task) | {"exact": ((sizes.units,), bool)}
    passes = _base(sizes, task)
    if options.method == "gradient":
        checked = _checks(sizes, task.stimuli, options, COMPARED) if task.compared else 0.0
        return Cost(task.interventions, passes=passes + checked, **_given(arrays))
    reaching = _reaching(sizes, task)
    wanted = int(options.screen_share * sizes.units)
    others = max(0, (reaching - 2) * sizes.width)
    chosen = 2 * sizes.width + min(max(0, wanted - 2 * sizes.width), others)
    drawn = min(options.screen_sample, 2 * sizes.width + others - chosen)
    spread = (chosen + drawn - 2 * sizes.width) / max(1, reaching - 2)
    layers = [(layer, sizes.width if layer < 2 else spread) for layer in range(reaching)]
    form = _tree_form(task, INTERVENTION_TYPES[task.kind].run_on)
    arrays |= {"chosen": ((chosen,), np.int64), "drawn": ((drawn,), np.int64), "rest": ((), np.int64),
               "estimates": ((len(task.stimuli), drawn), float)}
    return Cost(task.interventions, (chosen + drawn) * len(task.stimuli),
                sizes.descents(layers, form, options.odds_only),
                passes=passes + _checks(sizes, task.stimuli, options, CHECKED),
                batch=sizes.batch_bytes(form, chosen + drawn, options.batch_size, KEPT_LAYER),
                **_given(arrays, options.precision == "fast"))


@cost.register
def _(task: Values, sizes: Sizes, _model: Any = None) -> Cost:
    passes = sum(sizes.full_pass(stimulus.prompts[NULL].slot[1], 0) for stimulus in task.words)
    arrays = {"values": ((len(task.words), sizes.layers + 1, sizes.width), float)}
    return Cost(passes=passes, **_given(arrays, check=False))


@cost.register
def _(task: InterpolatedLayer, sizes: Sizes, _model: Any = None) -> Cost:
    run_on = INTERVENTION_TYPES[task.kind].run_on
    prompts = [stimulus.prompts[run_on].tokens for stimulus in task.templates]
    form = Form.of(prompts, task.templates[0].candidates_tok, task.templates[0].places[run_on][0])
    evaluations = EVALUATIONS[task.layer > 1] * sizes.width
    of_last = task.layer == sizes.layers and not any(
        reaches_output(stimulus, run_on) for stimulus in task.templates)
    rows = 0 if of_last else evaluations
    values, words = 2 * len(task.templates), task.interventions // sizes.width // len(task.templates)
    numbers = sizes.width * (2 + 9 * values + words)
    given: dict[str, Any] = {"shards": 8 * numbers + 3000, "arrays": 8.0 * sizes.layers * numbers}
    return Cost(task.interventions, rows * len(task.templates),
                sizes.descents([(task.layer, rows)], form, task.options.odds_only),
                passes=sizes.full_pass(form.nodes, form.predicted),
                batch=sizes.batch_bytes(form, int(evaluations), task.options.batch_size, KEPT_LAYER), **given)


@cost.register
def _(task: InterpolatedTree, sizes: Sizes, _model: Any = None) -> Cost:
    return Cost(task.interventions,
                passes=_base(sizes, task) + _checks(sizes, task.stimuli, task.options, CHECKED),
                **_given(_log_probabilities(sizes, task), task.options.precision == "fast"))


# attention weights

def _context_form(intervention: Intervention, prompt: int) -> Form:
    return Form.of([intervention.prompts[prompt].tokens], intervention.candidates_tok,
                   first_difference(intervention))


def _head_rows(sizes: Sizes, sets: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """(layer, how many) of sets of heads; what all of them have is one row's."""
    common = frozenset.intersection(*map(frozenset, sets)) if len(sets) > 1 else frozenset()
    starts = [min((head // sizes.heads for head in set(heads) - common), default=sizes.layers - 1)
              for heads in sets]
    led = [(min(head // sizes.heads for head in common), 1.0)] if common else []
    return [*led, *((int(layer), float(count)) for layer, count in zip(*np.unique(starts,
                                                                                   return_counts=True)))]


def _of_heads(sizes: Sizes, intervention: Intervention, prompt: int, rows: list[tuple[int, float]]) -> float:
    """Operations of a sweep of heads; of masked models, once per candidate token."""
    form = _context_form(intervention, prompt)
    if sizes.masked:
        tokens = sum(map(len, intervention.candidates_tok))
        form = Form(form.nodes, form.nodes, 1)
        return tokens * sizes.descents(rows, form)
    if sizes.full_passes:
        return sum(count for _, count in rows) * sum(
            sizes.full_pass(len(intervention.prompts[prompt].tokens) + len(ids) - 1, len(ids))
            for ids in intervention.candidates_tok)
    return sizes.descents(rows, form)


@cost.register
def _(task: Heads, sizes: Sizes, _model: Any = None) -> Cost:
    options, one = task.options, task.intervention
    form = _context_form(one, NULL)
    heads, count = sizes.layers * sizes.heads, sizes.layers * sizes.heads + sizes.layers + 1
    of_layers = [(layer, 1.0 + (layer == 0)) for layer in range(sizes.layers)]
    each = {"exact": float(sizes.heads), "gradient": 0.0,
            "screen": max(1, int(SCREENED * heads)) / sizes.layers}[options.method]
    rows = [(layer, several + each) for layer, several in of_layers]
    run = sum(several for _, several in rows)
    again = sizes.full_pass(form.nodes, form.predicted)
    gradients = BACKWARD * again * len(EFFECTS) if options.estimates else 0.0
    arrays: dict[str, Any] = {"probabilities": ((2, 2), float)}
    for kind in EFFECTS:
        arrays[kind] = ((count, 2), float)
        if options.estimates:
            arrays[f"{kind}_exact"] = ((count,), bool)
    checked = 0 if options.full_passes else 4
    return Cost(task.interventions, run * len(EFFECTS),
                sum(_of_heads(sizes, one, prompt, rows) for prompt in range(len(EFFECTS))), gradients,
                again * (2 + len(EFFECTS) * (3 + checked + 2 * options.estimates)),
                batch=sizes.batch_bytes(form, int(run), options.batch_size),
                gradients_at_once=sizes.graph_bytes(form.nodes, form.nodes) if options.estimates else 0.0,
                **_given(arrays, options.precision == "fast"))


# sites

@cost.register
def _(task: SiteMeans, sizes: Sizes, model: LanguageModel | None = None) -> Cost:
    assert model is not None, "sites lie in a model"
    passes = sum(sizes.full_pass(len(stimulus.prompts[NULL].tokens)) for stimulus in task.stimuli)
    arrays = {f"site_{index}": ((int(site.columns.max()) + 1,), float)
              for index, site in enumerate(sites_of(model, task.request))}
    return Cost(passes=passes, **_given(arrays, check=False))


@cost.register
def _(task: Sites, sizes: Sizes, model: LanguageModel | None = None) -> Cost:
    assert model is not None, "sites lie in a model"
    one, options, kinds = task.intervention, task.options, kinds_of(task.request)
    sites, at = sites_of(model, task.request), places(one, task.request.positions)
    units = sum(len(site.columns) for site in sites)
    screened = options.method == "screen" and task.request.mediator.screened
    run = 0.0
    sweep = passes = gradients = batch = 0.0
    arrays: dict[str, Any] = {"base": ((len(kinds), 2), float)}
    for kind in kinds:
        prompt = 1 if kind == "direct" else NULL
        same = first_difference(one) if task.request.values == "alternative" else 0
        tokens = one.prompts[prompt].tokens
        whole = Form.of([tokens], one.candidates_tok, 0)
        again = sizes.full_pass(whole.nodes, whole.predicted)
        rows = 0.0
        for place in at:
            changed = [position for position in (place.alternative if prompt else place.null)
                       if position >= same or task.request.values != "alternative"]
            if not changed:
                continue  # replaced by itself
            form = Form(whole.nodes, whole.nodes - min(changed), whole.predicted)
            reaching = [site for site in sites
                        if max(changed) == len(tokens) - 1 or not site.stays_in_place(sizes.layers)]
            share = options.screen_share if screened else 1.0
            joining = [(site.joins, share * len(site.columns)) for site in reaching]
            rows += sum(count for _, count in joining)
            if options.method != "gradient":
                sweep += sizes.descents(joining, form)
                batch = max(batch, sizes.batch_bytes(form, units, options.batch_size))
        if options.method == "gradient" or screened:
            gradients += BACKWARD * again
        run += rows if options.method != "gradient" else 0
        checks = 2 if units * len(at) < MANY else CHECKED + 2 * LIKELY
        passes += again * (2 + (0 if options.full_passes else checks))
        arrays[kind] = ((units * len(at), 2), float)
        if options.method == "gradient" or screened:
            arrays[f"{kind}_exact"] = ((units * len(at),), bool)
        if screened:
            chosen = int(options.screen_share * rows / share)
            arrays |= {f"{kind}_chosen": ((chosen,), np.int64), f"{kind}_rest": ((), np.int64),
                       f"{kind}_drawn": ((options.screen_sample,), np.int64),
                       f"{kind}_estimates": ((options.screen_sample,), float)}
    graph = sizes.graph_bytes(whole.nodes, whole.nodes) if gradients else 0.0
    return Cost(task.interventions, run, sweep, gradients, passes, batch=batch, gradients_at_once=graph,
                **_given(arrays, options.precision == "fast"))


# selections

@cost.register
def _(task: Objectives, sizes: Sizes, _model: Any = None) -> Cost:
    return _of_example(task.example, task.sets, sizes)


@singledispatch
def _of_example(example: Any, sets: Sequence[Sequence[int]], sizes: Sizes) -> Cost:
    raise NotImplementedError(type(example).__name__)


@_of_example.register
def _(example: HeadExample, sets: Sequence[Sequence[int]], sizes: Sizes) -> Cost:
    one = example.intervention
    form = _context_form(one, NULL)
    sweep = _of_heads(sizes, one, NULL, _head_rows(sizes, sets))
    return Cost(len(sets), len(sets), sweep, passes=5 * sizes.full_pass(form.nodes, form.predicted),
                batch=sizes.batch_bytes(form, len(sets), example.batch_size), **_objectives(sets))


@_of_example.register
def _(example: NeuronExample, sets: Sequence[Sequence[int]], sizes: Sizes) -> Cost:
    one, run_on = example.intervention, INTERVENTION_TYPES[example.kind].run_on
    form = Form.of([one.prompts[run_on].tokens], one.candidates_tok, one.places[run_on][0])
    starts = [(example.first + min(units)) // sizes.width for units in sets]
    reaching = sizes.layers + reaches_output(one, run_on)
    rows = [(int(layer), float(count)) for layer, count in zip(*np.unique(starts, return_counts=True))
            if layer < reaching]
    return Cost(len(sets), sum(count for _, count in rows), sizes.descents(rows, form),
                passes=len(one.prompts) * sizes.full_pass(form.nodes),
                batch=sizes.batch_bytes(form, len(sets), example.batch_size, KEPT_LAYER),
                **_objectives(sets))


def _objectives(sets: Sequence[Sequence[int]]) -> dict[str, Any]:
    return _given({"objectives": ((len(sets),), float)}, check=False)


def total(tasks: Iterable[Task], sizes: Sizes, model: LanguageModel | None = None) -> Cost:
    """Of many tasks, each counted once."""
    return sum((cost(task, sizes, model) for task in {task.key: task for task in tasks}.values()), Cost())
