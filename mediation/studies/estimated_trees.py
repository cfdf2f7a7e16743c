"""First-order estimates of every neuron's effect, and screening: the strongest by estimate run exactly.

The gradients of each prompt are taken once, for all intervention types (docs/methods.md).

Symbols in shapes: N stimuli of a tree, U units, P prompts of a stimulus, L layers, D neurons per layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64

from mediation.effects.screening import screened_units
from mediation.mediators.batches import Progress, batch
from mediation.mediators.neuron_sweeps import neuron_gradients_of
from mediation.mediators.neurons import INTERVENTION_TYPES
from mediation.model.language_model import LanguageModel, families
from mediation.stimuli.interventions import Intervention
from mediation.studies.checks import check_finite, hash_of
from mediation.studies.engine import Arrays, Earlier, Key, Task
from mediation.studies.error_budget import NOTHING_CHECKED
from mediation.studies.trees import Tree, digest, reaches_output

WORDS_AT_ONCE = 4  # trees whose null prompts go together: with 17 templates about 64 prompts of equal shape
COMPARED = 64  # estimates of a tree that are compared with full passes
TREES_COMPARED = 4  # at least so many trees of an intervention type, where only estimates are made


@dataclass(frozen=True)
class PromptGradients(Task):
    """What the first order needs of one prompt of N stimuli whose neurons are changed at equally many places.

    Gives `log_probabilities` [N, 2], `gradients` [N, 2, places, L + 1, D] and `values` [N, places, L + 1, D].
    """

    stimuli: tuple[Intervention, ...]
    prompt: int

    def compute(self, model: LanguageModel, earlier: Earlier, progress: Progress) -> Arrays:
        """See `Task`."""
        names = ("log_probabilities", "gradients", "values")
        return dict(zip(names, neuron_gradients_of(model, list(self.stimuli), self.prompt)))


class Gradients:
    """The tasks that take the gradients of every different prompt of a study's stimuli.

    A few trees at once, always the same ones, so that a run that was stopped gives the same numbers.

    Args:
        table: of the shards; types: how many intervention types they serve.
    """

    def __init__(self, stimuli: Sequence[Intervention], table: str, types: int) -> None:
        self.table, self.types = table, types
        self.tasks: list[PromptGradients] = []
        self._where: dict[tuple, tuple[tuple[str, str], int]] = {}
        for trees in batch(families(stimuli), WORDS_AT_ONCE):
            of_trees = [stimuli[member] for members in trees for member in members]
            for prompt in range(max(len(stimulus.prompts) for stimulus in of_trees)):
                self._add([stimulus for stimulus in of_trees if len(stimulus.prompts) > prompt], prompt)

    def _add(self, stimuli: Sequence[Intervention], prompt: int) -> None:
        """One task per number of places, of the prompts that no task has yet."""
        new: dict[int, dict[tuple, Intervention]] = {}
        for stimulus in stimuli:
            if self._key(stimulus, prompt) not in self._where:
                new.setdefault(len(stimulus.places[prompt]), {})[self._key(stimulus, prompt)] = stimulus
        for places, different in new.items():
            of_task = tuple(different.values())
            task = PromptGradients(self.table, f"prompt_{prompt}_{places}_{digest(of_task)}",
                                   f"gradients of {len(of_task)} prompts", 0, of_task, prompt)
            self.tasks.append(task)
            self._where |= {key: (task.key, position) for position, key in enumerate(different)}

    @staticmethod
    def _key(stimulus: Intervention, prompt: int) -> tuple:
        return stimulus.prompts[prompt].tokens, str(stimulus.places[prompt]), str(stimulus.candidates_tok)

    def where(self, stimulus: Intervention) -> tuple[tuple[tuple[str, str], int], ...]:
        """For each prompt of a stimulus (key of its PromptGradients, position there)."""
        return tuple(self._where[self._key(stimulus, prompt)] for prompt in range(len(stimulus.prompts)))


def trees_to_compare(trees: Sequence[Sequence[Intervention]]) -> set[int]:
    """Numbers of the trees whose estimates are compared with full passes: as many as the largest has stimuli,
    always the same ones."""
    count = max(TREES_COMPARED, *map(len, trees))
    return set(sorted(range(len(trees)),
                      key=lambda number: hash_of("\n".join(trees[number][0].base_strings)))[:count])


@dataclass(frozen=True)
class EstimatedTree(Tree):
    """The same to first order; with method screen the strongest units run exactly, and a few drawn at random.

    Word embedding and first block are always among those that are run: there estimates are poor. Gives
    `exact` bool [U] as well, which units were run; with screening `chosen` and `drawn` (units), `rest` (how
    many were left out) and `estimates` [N, drawn] (changes in log odds).

    `gradients`: for each stimulus and prompt (key of a PromptGradients, position there); `compared`: whether
    estimates are compared with full passes.
    """

    gradients: tuple = ()
    compared: bool = False

    @property
    def needs(self) -> Sequence[Key]:
        """See `Task`."""
        return tuple(dict.fromkeys(key for prompts in self.gradients for key, _ in prompts))

    def compute(self, model: LanguageModel, earlier: Earlier, progress: Progress) -> Arrays:
        """See `Task`."""
        base = self.base(model)
        moved = np.stack([self.first_order(position, earlier, of_stimulus)
                          for position, of_stimulus in enumerate(base)])
        screened = self.options.method == "screen"
        return self.screen(model, moved, base) if screened else self.estimate(model, moved, base)

    def first_order(self, position: int, earlier: Earlier,
                    base: Float64[np.ndarray, "P 2"]) -> Float64[np.ndarray, "U 2"]:
        """Log-probabilities of one stimulus under each intervention, to first order from those without."""
        run_on, values_of, minus = INTERVENTION_TYPES[self.kind]

        def of_prompt(prompt: int, name: str) -> np.ndarray:
            key, number = self.gradients[position][prompt]
            return earlier(key)[name][number]

        def values(prompt: int) -> np.ndarray:
            return of_prompt(prompt, "values").astype(float)  # [places, L + 1, D]

        alpha = self.options.alpha
        step = alpha * values(values_of) - (values(run_on) if minus is None else alpha * values(minus))
        gained = (of_prompt(run_on, "gradients") * step).sum(axis=1)  # [2, L + 1, D]
        moved = base[run_on][:, None, None] + gained
        return capped(moved.reshape(2, -1), self.stimuli[position].candidates_tok).T

    def estimate(self, model: LanguageModel, moved: Float64[np.ndarray, "N U 2"],
                 base: Float64[np.ndarray, "N P 2"]) -> Arrays:
        """Estimates alone; nothing is run but what they are compared with."""
        check_finite(self.stimuli, self.kind, moved, base)
        check = self.check(model, moved, sample=COMPARED) if self.compared else NOTHING_CHECKED
        return self.arrays(model, check, moved, base, exact=np.zeros(moved.shape[1], bool))

    def screen(self, model: LanguageModel, moved: Float64[np.ndarray, "N U 2"],
               base: Float64[np.ndarray, "N P 2"]) -> Arrays:
        """The strongest units run, the same ones in all stimuli of the tree; `moved` is changed in place."""
        options, width, run_on = self.options, model.num_neurons, INTERVENTION_TYPES[self.kind].run_on
        without = base[:, run_on]  # [N, 2]
        estimates = moved[:, :, 1] - moved[:, :, 0] - (without[:, 1] - without[:, 0])[:, None]
        # a last layer that cannot reach the output: no effect, as it is
        silent = np.zeros(moved.shape[1], bool)
        silent[-width:] = not any(reaches_output(stimulus, run_on) for stimulus in self.stimuli)
        rng = np.random.default_rng([options.seed, hash_of(self.label),
                                     list(INTERVENTION_TYPES).index(self.kind)])
        count = int(options.screen_share * len(silent))
        chosen, drawn, rest = screened_units(np.abs(estimates), silent, 2 * width, count,
                                             options.screen_sample, rng)
        units = np.concatenate([chosen, drawn])

        def sweep():
            moved[:, units] = self.by_descent(model, torch.from_numpy(units))
            moved[:, silent] = without[:, None]
            check_finite(self.stimuli, self.kind, moved, base)
            return moved, base

        _, check = self.within_budget(model, sweep, units)
        exact = silent.copy()
        exact[units] = True
        return self.arrays(model, check, moved, base, exact=exact, chosen=chosen, drawn=drawn,
                           rest=np.int64(rest), estimates=estimates[:, drawn])


def capped(log_probabilities: Float[np.ndarray, "2 *U"],
           candidates: Sequence[Sequence[int]]) -> Float[np.ndarray, "2 *U"]:
    """Estimates of two candidates, both lowered alike where they would be no log-probabilities: odds stay.

    Two single tokens' probabilities add up to at most 1; means over several tokens (`candidates`: lists of
    ids) are at most 1 each.
    """
    if all(len(ids) == 1 for ids in candidates):
        return log_probabilities - np.maximum(np.logaddexp(*log_probabilities), 0)
    return log_probabilities - np.maximum(log_probabilities.max(axis=0), 0)
