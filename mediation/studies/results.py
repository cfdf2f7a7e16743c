"""What a sweep gave for one stimulus, and what a manifest says of many of them.

Symbols in shapes: U units, P prompts of a stimulus.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from mediation.effects.screening import agreement, misses
from mediation.model.fast_rows import FastRows
from mediation.studies.engine import Arrays
from mediation.studies.error_budget import NOTHING_CHECKED, Check


@dataclass(frozen=True)
class Sample:
    """What the units that screening drew at random say for one stimulus.

    `draw`: name of the task that drew them, once for all stimuli that it ran together; `label`: what these
    are called; `missed`: those of the `drawn` units that belong to the exact top of this stimulus; `rest`:
    how many units were left out; `estimates`, `exact`: changes in log odds of those that were drawn.
    """

    draw: str
    label: str
    drawn: int
    missed: tuple[int, ...]
    rest: int
    estimates: Float64[np.ndarray, " drawn"]
    exact: Float64[np.ndarray, " drawn"]


@dataclass(frozen=True)
class Swept:
    """A sweep's numbers for one stimulus and one kind of effect.

    `log_probabilities`: of both candidates under each intervention; `base`: without, of each prompt;
    `exact`: which units were run, None for all of them; `seconds`: this stimulus' share; `check`: where
    stimuli were run together, the number of interventions that were checked stands with the first; `fast`:
    this stimulus' share in the counts of the fast precision; `source`: what tells these numbers from all
    others of the study, so that they are counted once; `sample`: of a screening.
    """

    log_probabilities: Float64[np.ndarray, "U 2"]
    base: Float64[np.ndarray, "P 2"]
    exact: Bool[np.ndarray, "U"] | None
    seconds: float
    check: Check
    fast: FastRows | None
    source: tuple
    sample: Sample | None = None


def sample_of(arrays: Arrays, position: int, run_on: int, draw: str, label: str, top: int) -> Sample:
    """The Sample of one stimulus of a screened tree of prompts.

    Args:
        arrays: what the task gave; position: of the stimulus in the tree; run_on: the prompt that was
            intervened upon; draw, label: as in a Sample; top: size of the top of which screening must miss
            nothing.
    """
    swept, base = arrays["log_probabilities"][position], arrays["base"][position, run_on]
    effects = swept[:, 1] - swept[:, 0] - (base[1] - base[0])
    drawn = arrays["drawn"]
    missed = drawn[misses(effects, arrays["chosen"], drawn, top)]
    return Sample(draw, label, len(drawn), tuple(missed.tolist()), int(arrays["rest"]),
                  arrays["estimates"][position], effects[drawn])


@dataclass
class Account:
    """What a manifest says of a table, added up over the sweeps whose numbers it holds.

    `interpolation`: what was interpolated between words (see `NeuronResults.interpolation`), where anything
    was.
    """

    seconds: float = 0.0
    check: Check = NOTHING_CHECKED
    fast: FastRows = field(default_factory=FastRows)
    samples: list[Sample] = field(default_factory=list)
    counted: set[tuple] = field(default_factory=set)
    interpolation: dict[str, Any] | None = None

    def add(self, swept: Swept) -> None:
        """Count in what gave one stimulus' numbers; once, where the same comparison stands twice in a
        file."""
        if swept.source in self.counted:
            return
        self.counted.add(swept.source)
        self.seconds += swept.seconds
        self.check += swept.check
        if swept.fast:
            self.fast += swept.fast
        if swept.sample:
            self.samples.append(swept.sample)

    def entry(self, rows: int) -> dict[str, Any]:
        """Plain values."""
        entry: dict[str, Any] = {"rows": rows, "sweep_seconds": self.seconds, **self.check.entry()}
        if self.fast.rows:
            entry["fast"] = asdict(self.fast)
        if self.samples:
            entry["screen"] = self._screen()
        if self.interpolation:
            entry["interpolation"] = self.interpolation
        return entry

    def _screen(self) -> dict[str, Any]:
        """A unit is drawn once for all stimuli of a tree: it is one draw, and missed when one of them misses
        it."""
        drawn = {sample.draw: sample.drawn for sample in self.samples}
        missed = {(sample.draw, unit): [sample.label, unit]
                  for sample in self.samples for unit in sample.missed}
        estimates, exact = (np.concatenate(parts) for parts in
                            zip(*((sample.estimates, sample.exact) for sample in self.samples)))
        return {"drawn": sum(drawn.values()), "rest": max(sample.rest for sample in self.samples),
                "missed": list(missed.values()), **agreement(estimates, exact)}
