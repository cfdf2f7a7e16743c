"""The total effect taken apart, exactly, on the scale of log odds ratios.

    TE = NDE + TIE            total = natural direct + total indirect
    TIE = NIE + interaction   total indirect = natural indirect + interaction

(Pearl 2001; VanderWeele 2013, the mediated interaction.) TE is of the two prompts alone, NDE the alternative
with the mediator held at the null prompt's value, NIE the null prompt with the mediator at the alternative's
value. Odds ratios minus 1 do not add up so.

Symbols in shapes: N comparisons, U units.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mediation.effects.resampling import Interval, Resampling


@dataclass(frozen=True)
class Decomposition:
    """Log odds ratios of every comparison and unit; `total` [N], the others [N, U]."""

    total: Float64[np.ndarray, "N"]
    direct: Float64[np.ndarray, "N U"]
    indirect: Float64[np.ndarray, "N U"]

    @property
    def total_indirect(self) -> Float64[np.ndarray, "N U"]:
        """TE - NDE: what is gone when the mediator is held."""
        return self.total[:, None] - self.direct

    @property
    def interaction(self) -> Float64[np.ndarray, "N U"]:
        """TIE - NIE: what the mediator does only together with the rest of the alternative's run."""
        return self.total_indirect - self.indirect


@dataclass(frozen=True)
class Proportions:
    """Shares of the mean total effect, ratios of means over comparisons, of every unit, with 95% intervals.

    `total_indirect`: mean TIE / mean TE, the proportion mediated; `indirect`: mean NIE / mean TE.
    """

    total_indirect: Float64[np.ndarray, "U"]
    total_indirect_interval: Interval
    indirect: Float64[np.ndarray, "U"]
    indirect_interval: Interval


def proportions(of: Decomposition, resampling: Resampling) -> Proportions:
    """Both from the same draws. An interval is NaN where that of the mean total effect holds 0."""
    total = of.total.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [part.mean(axis=0) / total for part in (of.total_indirect, of.indirect)]
    return Proportions(shares[0], resampling.of_ratio(of.total_indirect, of.total),
                       shares[1], resampling.of_ratio(of.indirect, of.total))
