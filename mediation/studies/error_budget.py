"""How far a log-probability of a sweep may be from its full pass: what each step may add, and what is
checked.

Each step keeps to its part where it works; no intervention that is checked against a full pass under plain
hooks may be off by more than the sum. What is checked: some interventions at random, which say how many of
all can be off, and some where an error is likely: in the first layers, whose error every later layer carries
on, and where the effect is largest.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from mediation.errors import InputError
from mediation.mediators import batches, interpolation
from mediation.model import readout

# in a log-probability; about ten times the largest that was seen on the models of the tests and on
# SmolLM2-135M
ROUNDING = {"float32": 5e-4, "float64": 1e-5, "bfloat16": 0.5, "float16": 0.1}
CHECKED = 4  # interventions of a sweep that are drawn at random
LIKELY = 2  # further ones of the first layers, and as many with the largest effects
CONFIDENCE = 0.95
REMEDY = "use --full_passes with another -out_dir, and please report the model"


@runtime_checkable
class Precision(Protocol):
    """What the error of a run depends on."""

    @property
    def dtype(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def full_passes(self) -> bool: ...


@dataclass(frozen=True)
class Budget:
    """What each step may add to the error of a log-probability that was run; estimates are not bounded."""

    rounding: float
    interpolation: float
    normaliser: float
    fast: float

    @property
    def total(self) -> float:
        """The largest deviation from a full pass that is accepted."""
        return sum(asdict(self).values())

    def describe(self) -> dict[str, float]:
        """For a manifest: {step: what it may add}, and their sum."""
        return {**asdict(self), "total": self.total}


def budget(options: Precision) -> Budget:
    """The Budget of a run with these options."""
    # the others sum the whole vocabulary
    normaliser = readout.TOLERANCE if options.dtype == "float32" else 0.0
    return Budget(ROUNDING[options.dtype], interpolation.TOLERANCE.get(options.dtype, 0.0), normaliser,
                  batches.BOUND if options.precision == "fast" else 0.0)


@dataclass(frozen=True)
class Check:
    """Interventions of a sweep that were run again as full passes.

    `deviation`: the largest difference in a log-probability; `random`, `likely`: how many were drawn at
    random, and chosen where an error is likely.
    """

    deviation: float
    random: int
    likely: int

    def to_arrays(self) -> dict[str, Any]:
        """{name: array} to be kept in a file."""
        return {"deviation": np.float64(self.deviation), "checked": np.array([self.random, self.likely])}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any]) -> "Check":
        """The other way round."""
        return cls(float(arrays["deviation"]), *map(int, arrays["checked"]))

    def __add__(self, other: "Check") -> "Check":
        deviation = max(self.deviation, other.deviation)
        return Check(deviation, self.random + other.random, self.likely + other.likely)

    def entry(self) -> dict[str, float]:
        """What a manifest says of it; nothing of a deviation where nothing was checked."""
        counts: dict[str, float] = {"checked_at_random": self.random, "checked_where_likely": self.likely}
        if not self.random + self.likely:
            return counts
        return {"largest_deviation_from_full_passes": self.deviation, **counts,
                "largest_share_off": largest_share_off(self.random)}

    @classmethod
    def from_entry(cls, entry: dict[str, Any]) -> "Check":
        """The other way round; files of before this was counted say only the deviation."""
        return cls(entry.get("largest_deviation_from_full_passes", 0.0), entry.get("checked_at_random", 0),
                   entry.get("checked_where_likely", 0))


NOTHING_CHECKED = Check(0.0, 0, 0)


def units_to_check(
    log_probabilities: Float[np.ndarray, "2 U"], among: Int[np.ndarray, " ran"], first_layers: int,
    random: int, seed: Any, largest: int = LIKELY,
) -> tuple[Int[np.ndarray, " drawn"], Int[np.ndarray, " likely"]]:
    """Units of a sweep to be run again, each once: those drawn at random, and those where an error is likely.

    Args:
        log_probabilities: of both candidates under the intervention on each unit.
        among: the units that were run; first_layers: how many of the U units lie in the first layers.
        random: how many are drawn at random; seed: of the draws; largest: how many with the largest effects.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.choice(among, size=min(random, len(among)), replace=False)
    log_odds = (log_probabilities[0] - log_probabilities[1])[among]
    effects = np.abs(log_odds - np.median(log_odds))  # most units have almost no effect
    strongest = np.argsort(-effects, kind="stable")[:largest]
    early = among[among < first_layers]
    early = rng.choice(early, size=min(LIKELY, len(early)), replace=False)
    return drawn, np.setdiff1d(np.concatenate([early, among[strongest]]), drawn)


def draws(stimuli: int, random: int, seed: Any) -> Int[np.ndarray, " stimuli"]:
    """How many of a sweep's random interventions are drawn from each stimulus: all interventions are as
    likely."""
    chosen = np.random.default_rng([*seed, 1]).integers(stimuli, size=random)
    return np.bincount(chosen, minlength=stimuli)


def largest_share_off(random: int) -> float:
    """With 95% confidence at most this share of the interventions is off, when none of so many random ones
    was."""
    return 1 - (1 - CONFIDENCE) ** (1 / random) if random else 1.0


def describe_check(check: Check, options: Precision, units: str) -> str:
    """One line for people on a run's Check; `units`: what was intervened upon, such as "neurons"."""
    if options.full_passes:
        return f"{units}: every intervention was a full pass of its own, there is nothing to check"
    return (f"checked {check.random} random {units} and {check.likely} in the first layers or with the "
            f"largest effects against full passes under plain hooks: log-probabilities differ by at most "
            f"{check.deviation:.1e} (accepted: {budget(options).total:.1e}); with 95% confidence "
            f"at most {largest_share_off(check.random):.1%} of the interventions on them are off by more")


def within_budget(model: Any, sweep: Callable[[], Any], check: Callable[[Any], Check],
                  options: Precision, what: str, remedy: str = REMEDY) -> tuple[Any, Check]:
    """What `sweep()` gives and its Check. A fast sweep that is off by more than the budget is run again
    exactly; full passes are not compared with themselves.

    Args:
        check: function of what the sweep gave; what: the sweep in words, for the message; remedy: what to do
            where it was in full precision.

    Raises:
        InputError: a sweep in full precision is off by more than the budget.
    """
    if options.full_passes:
        return sweep(), NOTHING_CHECKED
    # of other sweeps, to be counted beside this one
    before = model.fast_rows.take() if model.fast_rows else None
    result, accepted = sweep(), budget(options).total
    checked = check(result)
    if model.fast_rows and not checked.deviation <= accepted:  # what is not a number is off, too
        model.fast_rows.run_again()
        with model.exactly():
            result = sweep()
        checked = check(result)
    if model.fast_rows and before:
        model.fast_rows.add(before)
    if not checked.deviation <= accepted:
        raise InputError(f"{what}: the sweep and full passes differ by {checked.deviation:.1e} in a "
                         f"log-probability, more than the accepted {accepted:.1e}: {remedy}")
    return result, checked
