"""Direct effects of many words: each neuron a function of the value put in, evaluated at each word's value.

In a direct effect the alternative's prompt is the same for all words, and only the value put into a neuron
differs: a few values of each neuron serve all of them (`mediators.interpolation`).

    values of the words -> one layer's functions after the other -> trees of prompts

Symbols in shapes: W words, L layers, D neurons per layer, N stimuli of a tree, templates: prompts of the
alternative.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mediation.errors import InputError
from mediation.mediators.batches import Progress
from mediation.mediators.interpolation import Interpolants
from mediation.mediators.neuron_sweeps import direct_interpolants, null_values
from mediation.mediators.neurons import INTERVENTION_TYPES, NULL
from mediation.model.architectures import has_kinks
from mediation.model.language_model import TOKENS_TOGETHER, LanguageModel
from mediation.stimuli.interventions import Intervention
from mediation.studies.checks import check_finite
from mediation.studies.engine import Arrays, Earlier, Key, StudyOptions, Task
from mediation.studies.error_budget import budget
from mediation.studies.trees import Tree, digest, reaches_output

INTERPOLATED_FROM = 12  # words from which on direct effects are interpolated: a neuron needs 8 to 12 runs
# part of the words x templates that are stimuli: an interpolant gives all of them, wanted or not
ASKED_FOR = 0.5


@dataclass(frozen=True)
class Alternative:
    """Stimuli whose alternative's prompts are alike up to the slot's end: many words in a few templates.

    `members`: indices of the stimuli; `word_of`, `template_of`: {member: number of its word, of its
    template}; `templates`, `words`: a stimulus that has each.
    """

    kind: str
    options: StudyOptions
    members: tuple[int, ...]
    word_of: dict[int, int]
    template_of: dict[int, int]
    templates: tuple[Intervention, ...]
    words: tuple[Intervention, ...]

    def serves(self, run_on: int) -> bool:
        """Whether interpolation costs less than to run all: many words, most of them in most of the
        templates.

        The prompts of all templates have to fit into one tree.
        """
        dense = len(self.members) >= ASKED_FOR * len(self.words) * len(self.templates)
        tokens = sum(len(stimulus.prompts[run_on].tokens) for stimulus in self.templates)
        return len(self.words) >= INTERPOLATED_FROM and dense and tokens <= TOKENS_TOGETHER

    def tasks(self, model: LanguageModel, table: str) -> tuple["Values", list["InterpolatedLayer"]]:
        """The task of the words' values, and one per layer."""
        name, words = f"{digest(self.words)}_{digest(self.templates, self.kind)}", f"{len(self.words)} words"
        values = Values(table, f"values_{name}", f"{self.kind}, values of {words}", 0, self.words)
        layers = [InterpolatedLayer(table, f"layer_{layer}_{name}",
                                    f"{self.kind}, layer {layer}, {words} at once",
                                    model.num_neurons * len(self.members), self.templates, self.kind,
                                    self.options, layer, values.key)
                  for layer in range(model.num_layers + 1)]
        return values, layers


def alike_in_alternative(model: LanguageModel, stimuli: Sequence[Intervention], kind: str,
                         options: StudyOptions) -> list[Alternative]:
    """The Alternatives of a direct effect that have enough words, where interpolation is exact up to
    rounding."""
    run_on, values_of, minus = INTERVENTION_TYPES[kind]
    direct = values_of == NULL and minus is None
    smooth = options.dtype in ("float32", "float64") and not has_kinks(model.model.config)
    if not direct or not smooth or options.full_passes:
        return []
    alike: dict[tuple, list[int]] = {}
    for index, stimulus in enumerate(stimuli):
        if all(len(places) == 1 for places in stimulus.places):  # an interpolant has one variable
            prompt = stimulus.prompts[run_on]
            beginning = (prompt.tokens[: prompt.slot[1]], str(stimulus.places[run_on]),
                         str(stimulus.candidates_tok))
            alike.setdefault(beginning, []).append(index)
    groups = (alternative_of(stimuli, members, kind, run_on, options) for members in alike.values())
    return [group for group in groups if group.serves(run_on)]


def alternative_of(stimuli: Sequence[Intervention], members: list[int], kind: str, run_on: int,
                   options: StudyOptions) -> Alternative:
    """Which of these stimuli have the same word, and which the same template."""
    words: dict[tuple, tuple[int, Intervention]] = {}  # by the null prompt's tokens up to the slot's end
    templates: dict[tuple, tuple[int, Intervention]] = {}  # by the alternative's tokens
    word_of, template_of = {}, {}
    for member in members:
        null, alternative = stimuli[member].prompts[NULL], stimuli[member].prompts[run_on]
        word_of[member] = words.setdefault(null.tokens[: null.slot[1]], (len(words), stimuli[member]))[0]
        template_of[member] = templates.setdefault(alternative.tokens, (len(templates), stimuli[member]))[0]
    return Alternative(kind, options, tuple(members), word_of, template_of,
                       *(tuple(stimulus for _, stimulus in each.values()) for each in (templates, words)))


@dataclass(frozen=True)
class Values(Task):
    """Values of all neurons at the slot of each word's null prompt: `values` float64 [W, L + 1, D]."""

    words: tuple[Intervention, ...]

    def compute(self, model: LanguageModel, earlier: Earlier, progress: Progress) -> Arrays:
        """See `Task`."""
        return {"values": np.stack(null_values(model, self.words))}


@dataclass(frozen=True)
class InterpolatedLayer(Task):
    """One layer's neurons in the alternative's prompts, as functions of the value put in.

    Gives the arrays of Interpolants, and `at` [W, D], the words' values.
    """

    templates: tuple[Intervention, ...]
    kind: str
    options: StudyOptions
    layer: int
    values: tuple[str, str]

    @property
    def needs(self) -> Sequence[Key]:
        """See `Task`."""
        return (self.values,)

    def compute(self, model: LanguageModel, earlier: Earlier, progress: Progress) -> Arrays:
        """See `Task`."""
        at = np.ascontiguousarray(earlier(self.values)["values"][:, self.layer])
        functions = direct_interpolants(model, list(self.templates), self.kind, at, self.layer,
                                        self.options.sweep)
        return {**functions.to_arrays(), "at": at}


@dataclass(frozen=True)
class InterpolatedTree(Tree):
    """The same numbers as a Tree's, each neuron's function evaluated at the word's value.

    `word`: its number among the words; `columns`: the number of each stimulus' template; `layers`: keys of
    the InterpolatedLayers.
    """

    word: int = 0
    columns: tuple[int, ...] = ()
    layers: tuple[tuple[str, str], ...] = ()

    @property
    def needs(self) -> Sequence[Key]:
        """See `Task`."""
        return self.layers

    def compute(self, model: LanguageModel, earlier: Earlier, progress: Progress) -> Arrays:
        """See `Task`.

        Raises:
            InputError: an intervention is off by more than is accepted of a sweep in full precision.
        """
        run_on, of_layers = INTERVENTION_TYPES[self.kind].run_on, []
        for key in self.layers:
            arrays = earlier(key)
            functions = Interpolants.from_arrays(arrays)
            of_layers.append(functions(arrays["at"][self.word], self.word))  # [D, 2 x templates]
        values = np.stack(of_layers)  # [L + 1, D, 2 x templates]
        swept = np.stack([values[:, :, 2 * column: 2 * column + 2]
                          for column in self.columns])  # [N, L + 1, D, 2]
        base = self.base(model)
        for position, stimulus in enumerate(self.stimuli):
            if not reaches_output(stimulus, run_on):
                swept[position, -1] = base[position, run_on]  # exactly no effect, past rounding
        swept = swept.reshape(len(self.stimuli), -1, 2)
        check_finite(self.stimuli, self.kind, swept, base)
        check, accepted = self.check(model, swept), budget(self.options).total - budget(self.options).fast
        if not check.deviation <= accepted:
            raise InputError(f"{self.stimuli[0].base_strings[0]!r}, {self.kind}: interpolation and full "
                             f"passes differ by {check.deviation:.1e} in a log-probability, more than the "
                             f"accepted {accepted:.1e}: use --full_passes with another -out_dir, and please "
                             f"report the model")
        return self.arrays(model, check, swept, base)
