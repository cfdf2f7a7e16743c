"""Sweeps of neurons over a tree of prompts, as tasks: what the prompts share is run once.

Stimuli whose prompts are alike up to the slot's end are one tree: a profession in all templates, for one.

Symbols in shapes: N stimuli of a tree, U units, P prompts of a stimulus.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mediation.mediators.batches import Progress
from mediation.mediators.neuron_sweeps import neuron_experiment, neurons_in_trees
from mediation.model.language_model import LanguageModel
from mediation.stimuli.interventions import Intervention
from mediation.studies.checks import check_all, check_finite
from mediation.studies.engine import Arrays, Earlier, StudyOptions, Task
from mediation.studies.error_budget import CHECKED, Check, within_budget


def digest(stimuli: Sequence[Intervention], *more: str) -> str:
    """A short name of these stimuli, the same in every run."""
    content = [[(each.base_strings, each.candidates_tok, each.places) for each in stimuli], *more]
    return sha256(repr(content).encode()).hexdigest()[:16]


def reaches_output(stimulus: Intervention, prompt: int) -> bool:
    """False where a later position than the slot's predicts the candidates: the last layer cannot reach
    it."""
    return stimulus.places[prompt][-1] == len(stimulus.prompts[prompt].tokens) - 1


@dataclass(frozen=True)
class Tree(Task):
    """Every unit of a tree's stimuli run, under one intervention type.

    Gives `log_probabilities` [N, U, 2] of both candidates under each intervention, `base` [N, P, 2] without,
    the arrays of a Check, and `fast` (of FastRows) where that precision was asked for.

    `label`: what the stimuli are called.
    """

    stimuli: tuple[Intervention, ...]
    kind: str
    options: StudyOptions
    label: str

    def compute(self, model: LanguageModel, earlier: Earlier, progress: Progress) -> Arrays:
        """See `Task`."""

        def sweep():
            if self.options.full_passes:
                swept, base = self.by_full_passes(model, progress)
            else:
                swept, base = self.by_descent(model, None, progress), self.base(model)
            check_finite(self.stimuli, self.kind, swept, base)
            return swept, base

        (swept, base), check = self.within_budget(model, sweep)
        return self.arrays(model, check, swept, base)

    def by_descent(self, model: LanguageModel, units: Int[Tensor, " U"] | None,
                   progress: Progress | None = None) -> Float64[np.ndarray, "N U 2"]:
        """Log-probabilities under the interventions on these units (None: every neuron in turn)."""
        swept = neurons_in_trees(model, list(self.stimuli), self.kind, self.options.sweep, units, progress)
        return swept.reshape(len(self.stimuli), -1, 2).numpy()

    def base(self, model: LanguageModel) -> Float64[np.ndarray, "N P 2"]:
        """Log-probabilities without intervention, in the very runs that the interventions start from."""
        return model.base_in_trees(list(self.stimuli)).numpy()

    def by_full_passes(self, model: LanguageModel, progress: Progress) -> tuple[
            Float64[np.ndarray, "N U 2"], Float64[np.ndarray, "N P 2"]]:
        """Both by the slow reference."""
        results = [neuron_experiment(model, stimulus, self.kind, self.options.sweep, progress=progress)
                   for stimulus in self.stimuli]
        ends = 2 * len(self.stimuli[0].prompts)
        swept = np.log(np.stack([[np.ravel(candidate) for candidate in result[ends:]] for result in results]))
        base = np.log(np.array([result[:ends] for result in results], float))
        return np.moveaxis(swept, 1, 2), base.reshape(len(results), -1, 2)

    def within_budget(self, model: LanguageModel, sweep: Callable[[], tuple],
                      units: Int[np.ndarray, " ran"] | None = None) -> tuple[Any, Check]:
        """What `sweep()` gives, log-probabilities first, and the Check of it, drawn among `units`."""
        return within_budget(model, sweep, lambda swept: self.check(model, swept[0], units),
                             self.options, f"{self.stimuli[0].base_strings[0]!r}, {self.kind}")

    def check(self, model: LanguageModel, swept: Float[np.ndarray, "N U 2"],
              units: Int[np.ndarray, " ran"] | None = None,
              sample: int = CHECKED) -> Check:
        """Check of some interventions of these log-probabilities."""
        of_candidates = np.moveaxis(swept, 2, 1)
        return check_all(model, self.stimuli, self.kind, of_candidates, self.options, units, sample)

    def arrays(self, model: LanguageModel, check: Check, swept: Float[np.ndarray, "N U 2"],
               base: Float[np.ndarray, "N P 2"], **more: Any) -> Arrays:
        """What every kind of tree gives."""
        fast = {"fast": model.fast_rows.take().shared(len(self.stimuli))} if model.fast_rows else {}
        return {"log_probabilities": swept, "base": base, **check.to_arrays(), **fast, **more}
