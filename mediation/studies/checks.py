"""Interventions of a sweep run again as full passes under plain hooks, compared with what the sweep gave.

How many, and what their deviation supports: `mediation.studies.error_budget`.

Symbols in shapes: `layers` = L + 1 layers of D neurons, L layers of H heads, U units.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mediation.errors import InputError
from mediation.mediators.head_sweeps import head_edits, masked_heads_in_sets
from mediation.mediators.heads import heads_layers_model
from mediation.mediators.neuron_sweeps import runs_and_edits
from mediation.mediators.neurons import INTERVENTION_TYPES
from mediation.mediators.sweeps import by_full_passes, heads_by_full_passes
from mediation.model.language_model import LanguageModel
from mediation.model.readout import NOT_PROBABILITIES
from mediation.stimuli.interventions import Intervention
from mediation.studies.engine import StudyOptions
from mediation.studies.error_budget import CHECKED, NOTHING_CHECKED, Check, draws, units_to_check

Seed = int | Sequence[int]


@torch.no_grad()
def check_neurons(model: LanguageModel, intervention: Intervention, intervention_type: str,
                  log_probabilities: Float64[np.ndarray, "2 ..."], alpha: float = 1.0, sample: int = CHECKED,
                  seed: Seed = 0, odds_only: bool = False,
                  among: Int[np.ndarray, " ran"] | None = None) -> Check:
    """Run single-neuron interventions again: a random sample, and those where an error is likely.

    Args:
        log_probabilities: of both candidates, [2, L + 1, D], as a sweep gave them.
        among: units that the sample is drawn from, layer by layer; None takes all.

    Returns: Check; its deviation is the largest absolute difference in a candidate's log-probability; with
    `odds_only` in the log odds.
    """
    swept = log_probabilities.reshape(2, -1)
    among = np.arange(swept.shape[1]) if among is None else among
    first_layers = 2 * swept.shape[1] // (model.num_layers + 1)

    def run_again(units):
        _, run_on, edits = runs_and_edits(model, intervention, intervention_type, alpha)
        tokens = intervention.base_strings_tok[run_on].to(model.device)
        return by_full_passes(model.model, model.parts, tokens, edits[units.to(model.device)],
                              intervention.candidates_tok)

    return compared(swept, units_to_check(swept, among, first_layers, sample, seed), run_again, odds_only)


@torch.no_grad()
def check_heads(model: LanguageModel, intervention: Intervention, effect: str,
                probabilities: Sequence[Float[np.ndarray | Tensor, "*heads"]], sample: int = 1,
                seed: Seed = 0, among: Int[np.ndarray, " ran"] | None = None) -> Check:
    """Run single-head interventions again: a random sample, and the one with the largest effect.

    Args:
        probabilities: of both candidates, as `heads_layers_and_model` gave them.
        among: heads that the sample is drawn from, layer x H + head; None takes all.

    Returns: Check; its deviation is the largest absolute difference in a candidate's log-probability.
    """
    swept = np.log([np.asarray(of_candidate).reshape(-1) for of_candidate in probabilities])  # [2, L x H]
    among = np.arange(swept.shape[1]) if among is None else among

    def run_again(units):
        sets = heads_layers_model(model.num_layers, model.num_heads)[units]
        if model.masking:
            return masked_heads_in_sets(model, intervention, effect, sets, full_passes=True)
        context, edits = head_edits(model, intervention, effect, sets)
        return heads_by_full_passes(model.model, model.parts, context, intervention.candidates_tok, edits)

    return compared(swept, units_to_check(swept, among, 0, sample, seed, largest=1), run_again)


def compared(
    swept: Float[np.ndarray, "2 U"], chosen: tuple[Int[np.ndarray, " drawn"], Int[np.ndarray, " likely"]],
    run_again: Callable[[Int[Tensor, "C"]], Float[Tensor, "C 2"]], odds_only: bool = False,
) -> Check:
    """The Check of a sweep's log-probabilities of both candidates.

    Args:
        chosen: which units, as `units_to_check` chooses them; run_again: gives the log-probabilities of units
            as full passes do; odds_only: compare the log odds alone.
    """
    units = np.concatenate(chosen)
    difference = run_again(torch.from_numpy(units)).numpy().T - swept[:, units]
    deviation = np.abs(difference[0] - difference[1] if odds_only else difference).max()
    return Check(float(deviation), *map(len, chosen))


def hash_of(word: str) -> int:
    """A number that a word has on every machine and in every run."""
    return int.from_bytes(sha256(word.encode()).digest()[:8], "big")


def seed_of(stimulus: Intervention, kind: str, seed: int) -> list[int]:
    """Other random units for every stimulus and intervention type, the same ones in every run."""
    return [seed, hash_of("\n".join(stimulus.base_strings)), list(INTERVENTION_TYPES).index(kind)]


def check_finite(stimuli: Sequence[Intervention], kind: str, log_probabilities: Float[np.ndarray, "N U 2"],
                 base: Float[np.ndarray, "N P 2"]) -> None:
    """Raises InputError when a model gave what is no probability above 0, with or without intervention."""
    for stimulus, *of_both in zip(stimuli, log_probabilities, base):
        check_probabilities(f"{stimulus.base_strings[0]!r}, {kind}", *of_both)


def check_probabilities(what: str, *log_probabilities: Float[np.ndarray, "..."]) -> None:
    """Raises InputError when one sweep, `what` in words, gave such numbers."""
    if not all(np.isfinite(each).all() for each in log_probabilities):
        raise InputError(f"{what}: {NOT_PROBABILITIES}")


def check_all(model: LanguageModel, stimuli: Sequence[Intervention], kind: str,
              log_probabilities: Float[np.ndarray, "N 2 U"], options: StudyOptions,
              units: Int[np.ndarray, " ran"] | None = None, sample: int = CHECKED) -> Check:
    """Check of a sweep over N stimuli: of its random interventions each is as likely, in any of the stimuli.

    Those where an error is likely are chosen in one of the stimuli.

    Args:
        units: the units that were run (None: all); sample: how many are drawn at random.
    """
    total, seed = NOTHING_CHECKED, seed_of(stimuli[0], kind, options.seed)
    random = draws(len(stimuli), sample, seed)
    likely = seed[1] % len(stimuli)
    for number in sorted({*np.flatnonzero(random).tolist(), likely}):
        seed = seed_of(stimuli[number], kind, options.seed)
        total += check_neurons(model, stimuli[number], kind, log_probabilities[number], options.alpha,
                               int(random[number]), seed, options.odds_only, units)
    return total
