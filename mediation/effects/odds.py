"""Effects from probabilities: pure functions of arrays, in log space and float64.

Definitions follow Vig et al. 2020 (arXiv:2004.12265), section 3.
`odds = p(candidate of interest) / p(other)`; an *odds ratio* is odds under an intervention over odds without
it, and an *effect* is an odds ratio minus 1.
"""

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

Numbers = Float64[np.ndarray, "..."] | np.float64  # of the shape to which the arguments broadcast


def log_odds(probability: ArrayLike, other: ArrayLike) -> Numbers:
    """log(probability / other), elementwise; probabilities in (0, 1]."""
    return np.log(np.asarray(probability, np.float64)) - np.log(np.asarray(other, np.float64))


def odds_ratio(log_odds_intervened: ArrayLike, log_odds_base: ArrayLike) -> Numbers:
    """odds(intervened) / odds(base) from the two log odds; 1 = no effect.

    Vig et al. 2020, equations 1 to 3, before the minus 1.
    """
    return np.exp(np.asarray(log_odds_intervened, np.float64) - np.asarray(log_odds_base, np.float64))


def effect(log_odds_intervened: ArrayLike, log_odds_base: ArrayLike) -> Numbers:
    """odds(intervened) / odds(base) - 1: total, natural direct or natural indirect effect, as the run was.

    Vig et al. 2020, equations 1 (total), 2 (natural direct) and 3 (natural indirect). 0 = no effect.
    """
    return np.expm1(np.asarray(log_odds_intervened, np.float64) - np.asarray(log_odds_base, np.float64))


def gender_contrast(log_odds_under_man: ArrayLike, log_odds_under_woman: ArrayLike) -> Numbers:
    """(log effect under man - log effect under woman) / 2, both with the same orientation (he over she).

    Most of what a neuron does when a profession becomes a person word is common to man and woman; the half
    difference is the part that depends on the gender. The base odds cancel. Log units.
    """
    return (np.asarray(log_odds_under_man, np.float64) - np.asarray(log_odds_under_woman, np.float64)) / 2
