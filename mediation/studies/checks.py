"""Which interventions of a sweep are run again as full passes, and the check of them."""

from hashlib import sha256

import numpy as np

from mediation.errors import InputError
from mediation.mediators.neurons import INTERVENTION_TYPES
from mediation.studies.error_budget import CHECKED, NOTHING_CHECKED, draws


def hash_of(word):
    """A number that a word has on every machine and in every run."""
    return int.from_bytes(sha256(word.encode()).digest()[:8], "big")


def seed_of(stimulus, kind, options):
    """Other random units for every stimulus and intervention type, the same ones in every run."""
    return [options.seed, hash_of("\n".join(stimulus.base_strings)), list(INTERVENTION_TYPES).index(kind)]


def check_finite(stimuli, kind, log_probabilities, base):
    """Raises InputError when a model gave what is no probability above 0; log-probabilities of each stimulus, with and without intervention."""
    for stimulus, intervened, without in zip(stimuli, log_probabilities, base):
        if not (np.isfinite(intervened).all() and np.isfinite(without).all()):
            raise InputError(f"{stimulus.base_strings[0]!r}, {kind}: the model gave probabilities that are zero or not numbers: "
                             "try --dtype float32 or float64, or check the model's weights")


def check_all(model, stimuli, kind, log_probabilities, options, units=None, sets=None, sample=CHECKED):
    """Check of a sweep over n stimuli: of its random interventions each is as likely, in any of the stimuli.

    Those where an error is likely are chosen in one of the stimuli.

    Args:
        log_probabilities: [n, 2, U]; units: indices of the units that were run (None: all); sets: int64 [U, K], where units are sets of neurons.
        sample: how many are drawn at random.
    """
    total, seed = NOTHING_CHECKED, seed_of(stimuli[0], kind, options)
    random = draws(len(stimuli), sample, seed)
    likely = seed[1] % len(stimuli)
    for number in sorted({*np.flatnonzero(random).tolist(), likely}):
        total += model.check_against_full_passes(stimuli[number], kind, log_probabilities[number], options.alpha, int(random[number]),
                                                 seed_of(stimuli[number], kind, options), options.odds_only, units, sets)
    return total
