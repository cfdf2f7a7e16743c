"""Sweeps of neurons, and of sets of them, as stages of tasks.

What stimuli share is run once. Stimuli whose prompts are alike up to the slot's end are one tree of prompts. In the direct effects the
alternative's prompt is the same for many words, so a few values of each neuron serve all of them (`mediators.interpolation`).
Methods that estimate (docs/methods.md) take the gradients of each prompt once for all intervention types.

Shapes: n stimuli of a tree, U units, P prompts, L layers, D neurons per layer, W words.
"""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch

from mediation.effects.statistics import screened_units
from mediation.errors import InputError
from mediation.mediators.batches import batch
from mediation.mediators.interpolation import Interpolants
from mediation.mediators.neuron_sweeps import (
    direct_interpolants,
    neuron_experiment,
    neuron_gradients_of,
    neurons_in_trees,
    null_values,
)
from mediation.mediators.neurons import INTERVENTION_TYPES, NULL
from mediation.model.architectures import has_kinks
from mediation.model.fast_rows import FastRows
from mediation.studies.checks import check_all, check_finite, hash_of
from mediation.studies.engine import StudyOptions, Task
from mediation.studies.error_budget import CHECKED, Check, budget, within_budget
from mediation.studies.results import Swept, sample_of

TOKENS_TOGETHER = 1024  # of prompts that are run as one tree: its attention weights have to fit into memory
WORDS_AT_ONCE = 4  # trees whose null prompts' gradients are taken together: with 17 templates about 64 prompts of equal shape
INTERPOLATED_FROM = 12  # words from which on direct effects are interpolated: a neuron needs 8 to 12 runs
COMPARED = 64  # estimates of a tree that are compared with full passes
TREES_COMPARED = 4  # at least so many trees of an intervention type, where only estimates are made


@dataclass(frozen=True)
class Units:
    """What a sweep changes: every neuron in turn (`sets` None), or the sets of neurons int64 [U, K], each together."""

    sets: torch.Tensor | None
    count: int


@dataclass(frozen=True)
class Trees:
    """The sweep of one intervention type: its stages, and the tasks that hold its numbers.

    `stages`: lists of tasks, the last of which hold the numbers; `where`: for each stimulus of the study (its task, its position there);
    `types`: how many intervention types the tasks of the other stages serve.
    """

    kind: str
    stages: list
    where: list
    types: int


class TreeResults:
    """What a sweep gave, stimulus by stimulus.

    Args:
        trees: Trees whose tasks were computed; shards: of these; top: size of the top of which screening must not miss any.
    """

    def __init__(self, trees, shards, top):
        self.trees, self.shards, self.top = trees, shards, top
        before = sum(float(shards(task.key)["seconds"]) for stage in trees.stages[:-1] for task in stage)
        self.seconds_before = before / trees.types / len(trees.where)  # a stimulus' share of what the tasks before its own took

    def __call__(self, index):
        """The Swept of one stimulus, by its index in the study."""
        task, position = self.trees.where[index]
        arrays = self.shards(task.key)
        check, fast = Check.from_arrays(arrays), arrays.get("fast")
        sample = None
        if "drawn" in arrays:
            sample = sample_of(arrays, position, INTERVENTION_TYPES[task.kind][0], task.name, task.label, self.top)
        return Swept(arrays["log_probabilities"][position], arrays["base"][position], arrays.get("exact"),
                     float(arrays["seconds"]) / len(task.stimuli) + self.seconds_before,
                     check if not position else Check(check.deviation, 0, 0), None if fast is None else FastRows(*fast), sample)

    def interpolation(self):
        """For the manifest: how many neurons were interpolated between words, and how many run for every word; None where none could be."""
        layers = [Interpolants.from_arrays(self.shards(task.key)) for stage in self.trees.stages for task in stage if isinstance(task, InterpolatedLayer)]
        if not layers:
            return None
        neurons, run = sum(len(layer.low) for layer in layers), sum(len(layer.run) for layer in layers)
        return {"interpolated": neurons - run, "run_for_every_word": run, "evaluations_a_neuron": sum(layer.evaluations for layer in layers) / neurons,
                "largest_error": max(layer.error for layer in layers)}


def plan(model, stimuli, kind, units, options, table, labels=None, gradients=None):
    """The Trees of one intervention type over a study's stimuli.

    Args:
        stimuli: Interventions; kind: one of INTERVENTION_TYPES; units: Units; options: StudyOptions.
        table: of the shards, see `Task`; labels: what each stimulus is called in the progress bar and where screening is told (such as the
            word), the same for all of a tree; gradients: Gradients, for the methods that estimate.
    """
    trees, of_stimulus = families(stimuli), {}
    tasks: list[Tree] = []
    compared = set()
    if options.method == "gradient":  # one tree for each stimulus of the largest, by their hashes
        count = max(TREES_COMPARED, *map(len, trees))
        compared = set(sorted(range(len(trees)), key=lambda number: hash_of(stimuli[trees[number][0]].base_strings[0]))[:count])
    group_of: dict[int, tuple[Alternative, tuple]] = {}
    interpolated = [] if units.sets is not None or options.estimates else alike_in_alternative(model, stimuli, kind, options)
    values, layers = [], []
    for group in interpolated:
        of_words, of_layers = group.tasks(model, f"interpolated_{table}")
        values.append(of_words)
        layers += of_layers
        group_of |= {member: (group, tuple(task.key for task in of_layers)) for member in group.members}
    for number, members in enumerate(trees):
        of_tree = tuple(stimuli[member] for member in members)
        label = labels[members[0]] if labels else f"tree {number}"
        about = {"table": table, "name": f"tree_{number}_{digest(of_tree, kind)}", "title": f"{kind}, {label}",
                 "interventions": len(members) * units.count, "stimuli": of_tree, "kind": kind, "options": options, "label": label}
        if members[0] in group_of:  # then all of them are: their prompts are alike up to the slot's end
            group, keys = group_of[members[0]]
            columns = tuple(group.column_of[member] for member in members)
            task: Tree = InterpolatedTree(**about | {"interventions": 0}, word=group.word_of[members[0]], columns=columns, layers=keys)
        elif options.estimates and units.sets is None:
            task = EstimatedTree(**about, gradients=tuple(map(gradients.where, of_tree)), compared=number in compared)
        else:
            task = Tree(**about, sets=units.sets)
        tasks.append(task)
        for position, member in enumerate(members):
            of_stimulus[member] = task, position
    stages = [stage for stage in (gradients.tasks if gradients else [], values, layers, tasks) if stage]
    return Trees(kind, stages, [of_stimulus[member] for member in range(len(stimuli))], gradients.types if gradients else 1)


def digest(stimuli, *more):
    """A short name of these stimuli, the same in every run."""
    return sha256(repr([[(one.base_strings, one.candidates_tok, one.places) for one in stimuli], *more]).encode()).hexdigest()[:16]


def families(stimuli):
    """Indices of stimuli that are run together, in lists of at most TOKENS_TOGETHER tokens (or of one stimulus)."""
    members: dict[tuple, list[int]] = {}
    sizes: dict[tuple, int] = {}
    for index, stimulus in enumerate(stimuli):
        tokens = max(len(prompt.tokens) for prompt in stimulus.prompts) + sum(map(len, stimulus.candidates_tok))
        number = sizes.get(stimulus.beginning, 0) + tokens
        sizes[stimulus.beginning] = number
        members.setdefault((stimulus.beginning, number // TOKENS_TOGETHER), []).append(index)
    return list(members.values())


# every unit run


@dataclass(frozen=True)
class Tree(Task):
    """Every unit of a tree's stimuli run. Gives `log_probabilities` [n, U, 2], `base` [n, P, 2], a Check's arrays, FastRows' as `fast`."""

    stimuli: tuple
    kind: str
    options: StudyOptions
    label: str
    sets: torch.Tensor | None = None

    def compute(self, model, earlier, progress):
        """See `Task`."""
        options, stimuli = self.options, list(self.stimuli)

        def sweep():
            if options.full_passes:
                swept, base = self.by_full_passes(model, progress)
            else:
                swept = neurons_in_trees(model, stimuli, self.kind, options.sweep, self.sets, progress)
                swept, base = swept.reshape(len(stimuli), -1, 2).numpy(), model.base_in_trees(stimuli).numpy()
            check_finite(stimuli, self.kind, swept, base)
            return swept, base

        (swept, base), checked = self.within_budget(model, sweep, sets=self.sets)
        return self.arrays(model, checked, swept, base)

    def by_full_passes(self, model, progress):
        """The same by the slow reference."""
        single = [neuron_experiment(model, stimulus, self.kind, self.options.sweep, progress=progress) for stimulus in self.stimuli]
        prompts = len(self.stimuli[0].prompts)
        swept = np.log(np.stack([[np.ravel(candidate) for candidate in result[2 * prompts:]] for result in single]))  # [n, 2, U]
        return np.moveaxis(swept, 1, 2), np.log(np.array([result[:2 * prompts] for result in single], float)).reshape(-1, prompts, 2)

    def within_budget(self, model, sweep, units=None, sets=None):
        """What `sweep()` gives (log-probabilities first), and the Check of it, drawn among `units`."""
        return within_budget(model, sweep, lambda swept: self.check(model, swept[0], units, sets), self.options,
                             f"{self.stimuli[0].base_strings[0]!r}, {self.kind}")

    def check(self, model, swept, units=None, sets=None, sample=CHECKED):
        """Check of some interventions of these log-probabilities [n, U, 2]."""
        return check_all(model, self.stimuli, self.kind, np.moveaxis(swept, 2, 1), self.options, units, sets, sample)

    def arrays(self, model, checked, swept, base, **more):
        """What every kind of tree gives."""
        fast = {"fast": model.fast_rows.take().shared(len(self.stimuli))} if model.fast_rows else {}
        return {"log_probabilities": swept, "base": base, **checked.to_arrays(), **fast, **more}


# direct effects of many words, interpolated


@dataclass(frozen=True)
class Alternative:
    """Stimuli whose alternative's prompts are alike up to the slot's end: many words in a few templates, of which only the words' values differ.

    `members`: indices of the stimuli; `word_of`, `column_of`: {member: number of its word, of its template}; `templates`, `words`: one stimulus for each.
    """

    kind: str
    options: StudyOptions
    members: tuple
    word_of: dict
    column_of: dict
    templates: tuple
    words: tuple

    def tasks(self, model, table):
        """(the task of the words' values, one task per layer)."""
        name = f"{digest(self.words)}_{digest(self.templates, self.kind)}"
        values = Values(table, f"values_{name}", f"{self.kind}, values of {len(self.words)} words", 0, self.words)
        layers = [InterpolatedLayer(table, f"layer_{layer}_{name}", f"{self.kind}, layer {layer}, {len(self.words)} words at once",
                                    model.num_neurons * len(self.members), self.templates, self.kind, self.options, layer, values.key)
                  for layer in range(model.num_layers + 1)]
        return values, layers


def alike_in_alternative(model, stimuli, kind, options):
    """The Alternatives of a direct effect that have enough words, where interpolation is exact."""
    run_on, values_of, minus = INTERVENTION_TYPES[kind]
    if minus is not None or values_of != NULL or options.full_passes or options.dtype not in ("float32", "float64") or has_kinks(model.model.config):
        return []
    alike: dict[tuple, list[int]] = {}
    for index, stimulus in enumerate(stimuli):
        if all(len(places) == 1 for places in stimulus.places):  # an interpolant has one variable
            prompt = stimulus.prompts[run_on]
            alike.setdefault((prompt.tokens[: prompt.slot[1]], str(stimulus.places[run_on]), str(stimulus.candidates_tok)), []).append(index)
    groups = []
    for members in alike.values():
        words: dict[tuple, tuple] = {}  # {the null prompt up to the slot's end: (number, a stimulus that has it)}
        columns: dict[tuple, tuple] = {}  # {the alternative's prompt: the same}
        word_of, column_of = {}, {}
        for member in members:
            null, alternative = stimuli[member].prompts[NULL], stimuli[member].prompts[run_on]
            word_of[member] = words.setdefault(null.tokens[: null.slot[1]], (len(words), stimuli[member]))[0]
            column_of[member] = columns.setdefault(alternative.tokens, (len(columns), stimuli[member]))[0]
        tokens = sum(map(len, columns))
        if len(words) >= INTERPOLATED_FROM and tokens <= TOKENS_TOGETHER:
            groups.append(Alternative(kind, options, tuple(members), word_of, column_of, tuple(one for _, one in columns.values()),
                                      tuple(one for _, one in words.values())))
    return groups


@dataclass(frozen=True)
class Values(Task):
    """Values of all neurons at the slot of each word's null prompt: `values` float64 [W, L + 1, D]."""

    words: tuple

    def compute(self, model, earlier, progress):
        """See `Task`."""
        return {"values": np.stack(null_values(model, self.words))}


@dataclass(frozen=True)
class InterpolatedLayer(Task):
    """One layer's neurons in the alternative's prompts, as functions of the value put in: the arrays of Interpolants."""

    templates: tuple
    kind: str
    options: StudyOptions
    layer: int
    values: tuple

    def compute(self, model, earlier, progress):
        """See `Task`."""
        values = np.ascontiguousarray(earlier(self.values)["values"][:, self.layer])
        options = self.options
        layer = direct_interpolants(model, list(self.templates), self.kind, values, self.layer, options.sweep)
        progress(self.interventions)
        return {**layer.to_arrays(), "at": values}


@dataclass(frozen=True)
class InterpolatedTree(Tree):
    """The same numbers as a Tree's, each neuron's function evaluated at the word's value.

    `word`: its number among the words; `columns`: of each stimulus the number of its template; `layers`: keys of the InterpolatedLayers.
    """

    word: int = 0
    columns: tuple = ()
    layers: tuple = ()

    def compute(self, model, earlier, progress):
        """See `Task`.

        Raises:
            InputError: an intervention is off by more than the budget of an exact sweep, which this one always is.
        """
        stimuli, run_on = list(self.stimuli), INTERVENTION_TYPES[self.kind][0]
        layers = []
        for key in self.layers:
            arrays = earlier(key)
            layers.append(Interpolants.from_arrays(arrays)(arrays["at"][self.word], self.word))  # [D, 2 x templates]
        functions = np.stack(layers)  # [L + 1, D, 2 x templates]
        swept = np.stack([functions[:, :, 2 * column: 2 * column + 2] for column in self.columns])  # [n, L + 1, D, 2]
        base = model.base_in_trees(stimuli).numpy()
        for position, stimulus in enumerate(stimuli):
            if not reaches_output(stimulus, run_on):
                swept[position, -1] = base[position, run_on]  # exactly no effect, past rounding
        swept = swept.reshape(len(stimuli), -1, 2)
        check_finite(stimuli, self.kind, swept, base)
        checked, accepted = self.check(model, swept), budget(self.options).total - budget(self.options).fast
        if not checked.deviation <= accepted:
            raise InputError(f"{stimuli[0].base_strings[0]!r}, {self.kind}: interpolation and full passes differ by {checked.deviation:.1e} "
                             f"in a log-probability, more than the accepted {accepted:.1e}: use --full_passes with another -out_dir, "
                             "and please report the model")
        return self.arrays(model, checked, swept, base)


def reaches_output(stimulus, prompt):
    """False where the last layer's neurons at a prompt's slot cannot reach the output: a later position predicts the candidates."""
    return stimulus.places[prompt][-1] == len(stimulus.prompts[prompt].tokens) - 1


# first-order estimates, and the strongest units run


@dataclass(frozen=True)
class PromptGradients(Task):
    """Of one prompt of n stimuli: `log_probabilities` [n, 2], `gradients` [n, 2, places, L + 1, D], `values` [n, places, L + 1, D]."""

    stimuli: tuple
    prompt: int

    def compute(self, model, earlier, progress):
        """See `Task`."""
        return dict(zip(("log_probabilities", "gradients", "values"), neuron_gradients_of(model, list(self.stimuli), self.prompt)))


class Gradients:
    """The tasks that take the gradients of every different prompt of a study's stimuli once, for all intervention types.

    Null prompts go a few trees at once, always the same, so that a run that was stopped gives the same numbers; alternatives all together.
    `types`: how many intervention types they serve.
    """

    def __init__(self, stimuli, table, types):
        self.tasks, self._where = [], {}
        self.table, self.types = table, types
        for trees in batch(families(stimuli), WORDS_AT_ONCE):
            self._add([stimuli[member] for members in trees for member in members], NULL)
        for prompt in range(1, max((len(stimulus.prompts) for stimulus in stimuli), default=1)):
            self._add([stimulus for stimulus in stimuli if len(stimulus.prompts) > prompt], prompt)

    def _add(self, stimuli, prompt):
        """One task per number of places, of the prompts that no task has yet."""
        new: dict[int, dict] = {}  # {number of places: {key of a prompt: a stimulus that has it}}
        for stimulus in stimuli:
            if self._key(stimulus, prompt) not in self._where:
                new.setdefault(len(stimulus.places[prompt]), {})[self._key(stimulus, prompt)] = stimulus
        for places, different in new.items():
            of_task = tuple(different.values())
            task = PromptGradients(self.table, f"prompt_{prompt}_{places}_{digest(of_task)}", f"gradients of {len(of_task)} prompts", 0, of_task, prompt)
            self.tasks.append(task)
            self._where |= {key: (task.key, position) for position, key in enumerate(different)}

    @staticmethod
    def _key(stimulus, prompt):
        return stimulus.prompts[prompt].tokens, str(stimulus.places[prompt]), str(stimulus.candidates_tok)

    def where(self, stimulus):
        """For each prompt of a stimulus (key of a PromptGradients, position there)."""
        return tuple(self._where[self._key(stimulus, prompt)] for prompt in range(len(stimulus.prompts)))


def bytes_of_gradients(model, stimuli, method):
    """Bytes that the methods that estimate keep on disk on the way, about.

    Of each null prompt two gradients and a value of every neuron at each token that is changed; of each stimulus, for one intervention type at a
    time, two log-probabilities as well; with screening which neurons were chosen.
    """
    units = (model.num_layers + 1) * model.num_neurons
    places = [len(stimulus.places[NULL]) for stimulus in stimuli]
    number = 8 if model.model.dtype == torch.float64 else 4
    return units * (3 * number * sum(places) + (18 if method == "screen" else 17) * len(places))


@dataclass(frozen=True)
class EstimatedTree(Tree):
    """The same to first order; with method screen word embedding and first block run exactly, of the others the strongest, and a few drawn at random.

    Gives `exact` bool [U] as well: which units were run; with screening `chosen` and `drawn` (units), `rest` (how many were left out) and
    `estimates` [n, drawn] (changes in log odds).

    `gradients`: for each stimulus and prompt (key of a PromptGradients, position there); `compared`: whether estimates are compared with full passes.
    """

    gradients: tuple = ()
    compared: bool = False

    def compute(self, model, earlier, progress):
        """See `Task`."""
        options, width = self.options, model.num_neurons
        base = model.base_in_trees(list(self.stimuli)).numpy()
        moved = np.stack([self.first_order(position, earlier, base[position]) for position in range(len(self.stimuli))])  # [n, U, 2]
        if options.method == "gradient":
            check_finite(self.stimuli, self.kind, moved, base)
            checked = self.check(model, moved, sample=COMPARED) if self.compared else Check(0.0, 0, 0)
            progress(self.interventions)
            return self.arrays(model, checked, moved, base, exact=np.zeros(moved.shape[1], bool))

        run_on = INTERVENTION_TYPES[self.kind][0]
        estimates = moved[:, :, 1] - moved[:, :, 0] - (base[:, run_on, 1] - base[:, run_on, 0])[:, None]
        silent = np.zeros(moved.shape[1], bool)  # the last layer, where it cannot reach the output: exactly no effect as it is
        silent[-width:] = not any(reaches_output(stimulus, run_on) for stimulus in self.stimuli)
        rng = np.random.default_rng([options.seed, hash_of(self.label), list(INTERVENTION_TYPES).index(self.kind)])
        count = int(options.screen_share * len(silent))
        chosen, drawn, rest = screened_units(np.abs(estimates), silent, 2 * width, count, options.screen_sample, rng)
        units = np.concatenate([chosen, drawn])

        def sweep():
            moved[:, units] = neurons_in_trees(model, list(self.stimuli), self.kind, options.sweep, torch.from_numpy(units)).numpy()
            moved[:, silent] = base[:, run_on][:, None]
            check_finite(self.stimuli, self.kind, moved, base)
            return moved, base

        _, checked = self.within_budget(model, sweep, units)
        exact = silent.copy()
        exact[units] = True
        progress(self.interventions)
        return self.arrays(model, checked, moved, base, exact=exact, chosen=chosen, drawn=drawn, rest=np.int64(rest), estimates=estimates[:, drawn])

    def first_order(self, position, earlier, base):
        """Log-probabilities [U, 2] of one stimulus under each intervention, to first order from those of `base` [P, 2]."""
        run_on, values_of, minus = INTERVENTION_TYPES[self.kind]

        def of_prompt(prompt, name):
            key, number = self.gradients[position][prompt]
            return earlier(key)[name][number]

        def values(prompt):
            return of_prompt(prompt, "values").astype(float)  # [places, L + 1, D]

        alpha = self.options.alpha
        step = alpha * values(values_of) - (values(run_on) if minus is None else alpha * values(minus))
        moved = base[run_on][:, None, None] + (of_prompt(run_on, "gradients") * step).sum(axis=1)  # [2, L + 1, D]
        return capped(moved.reshape(2, -1), self.stimuli[position].candidates_tok).T


def capped(log_probabilities, candidates):
    """Estimates of two candidates' log-probabilities [2, ...], both lowered alike where they would be none: the odds stay as they are.

    Two single tokens' sum to at most 1; means over several tokens (`candidates`: lists of ids) are at most 1 each.
    """
    if all(len(ids) == 1 for ids in candidates):
        return log_probabilities - np.maximum(np.logaddexp(*log_probabilities), 0)
    return log_probabilities - np.maximum(log_probabilities.max(axis=0), 0)
