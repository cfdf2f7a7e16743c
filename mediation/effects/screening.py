"""Which units a screening runs, and what it may claim of those that it left out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from scipy import stats


def strongest_in_any(strength: Float[np.ndarray, "N U"], count: int) -> Int[np.ndarray, " chosen"]:
    """Units to be run for several prompts at once: the prompts' strongest in turn, each prompt's best first.

    Args:
        strength: what the units are ranked by, of N prompts; -inf for a unit that is not to be chosen.

    Returns: at most `count` different units, in the order in which they were chosen.
    """
    # best of every prompt, second of every prompt, ...
    ranked = np.argsort(-strength, axis=1, kind="stable").T.ravel()
    units, first = np.unique(ranked, return_index=True)
    chosen = units[np.argsort(first)][:count]
    return chosen[np.isfinite(strength[:, chosen]).any(axis=0)]


def screened_units(
    strength: Float[np.ndarray, "N U"], silent: Bool[np.ndarray, "U"], always: int, count: int, sampled: int,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, " chosen"], Int[np.ndarray, " drawn"], int]:
    """Which units of several prompts screening runs.

    Args:
        strength: what the units are ranked by, of N prompts; silent: units without effect as they are.
        always: the first so many units are run whatever their strength (word embedding and first block);
            count: units run in all, these included; sampled: others, drawn by `rng`.

    Returns: chosen units (sorted), drawn units (sorted), number of units left out.
    """
    candidates = np.flatnonzero(~silent)[always:]
    strongest = candidates[strongest_in_any(strength[:, candidates], max(0, count - always))]
    rest = np.setdiff1d(candidates, strongest)
    sample = np.sort(rng.choice(rest, min(sampled, len(rest)), replace=False))
    return np.concatenate([np.arange(always), np.sort(strongest)]), sample, len(rest)


def upper_share(found: int, drawn: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson's (1934) one-sided upper bound on a share: `found` of `drawn` random members belong
    to it; 1 where none was drawn."""
    return float(stats.beta.ppf(confidence, found + 1, drawn - found)) if found < drawn else 1.0


@dataclass(frozen=True)
class Screening:
    """How sure a screening is of its strongest units, from units drawn at random among those that it left
    out, and run.

    `drawn`: units drawn; `missed`: those that belong to the exact top of one of their prompts; `rest`: units
    left out per prompt; `top`: size of the top.
    """

    drawn: int
    missed: int
    rest: int
    top: int

    @property
    def missed_a_prompt(self) -> float:
        """Units of the exact top that were left out, mean over prompts: at most so many, with 95%
        confidence."""
        return upper_share(self.missed, self.drawn) * self.rest

    @property
    def recall(self) -> float:
        """Share of the exact top that was found, mean over prompts: at least that much, with 95% confidence;
        0 is no statement."""
        return max(0.0, 1 - self.missed_a_prompt / self.top)


def misses(
    effects: Float[np.ndarray, "U"], chosen: Int[np.ndarray, " chosen"], drawn: Int[np.ndarray, " drawn"],
    top: int,
) -> Bool[np.ndarray, " drawn"]:
    """Which of the drawn units belong to a prompt's exact top: as strong as the weakest of the `top`
    strongest that were chosen, or stronger.

    The true top's weakest is at least as strong as that one, so no miss goes uncounted.

    Args:
        effects: exact for the units of `chosen` and `drawn` (indices, apart from each other); only their size
            counts.
    """
    known = np.sort(np.abs(effects[chosen]))
    threshold = known[-top] if len(known) >= top else 0.0
    return np.abs(effects[drawn]) >= threshold


def agreement(estimates: ArrayLike, exact: ArrayLike) -> dict[str, float | None]:
    """"pearson", "spearman", "largest_difference" of estimated and exact effects, arrays of one shape; None
    for a correlation of constants."""
    estimates, exact = np.ravel(estimates), np.ravel(exact)
    varied = len(exact) > 1 and np.ptp(exact) > 0 and np.ptp(estimates) > 0
    return {"pearson": float(stats.pearsonr(estimates, exact).statistic) if varied else None,
            "spearman": float(stats.spearmanr(estimates, exact).statistic) if varied else None,
            "largest_difference": float(np.abs(estimates - exact).max()) if len(exact) else 0.0}
