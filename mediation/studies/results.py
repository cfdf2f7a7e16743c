"""What a sweep gave for one stimulus, and what a manifest says of many of them."""

from dataclasses import asdict, dataclass, field

import numpy as np

from mediation.effects.statistics import agreement, misses
from mediation.model.fast_rows import FastRows
from mediation.studies.error_budget import NOTHING_CHECKED, Check


@dataclass(frozen=True)
class Sample:
    """What the units that screening drew at random say for one stimulus.

    `draw`: a name of the task that drew them, once for all stimuli that it ran together; `label`: what these are called; `missed`: those of the `drawn` units that belong to the exact
    top of this stimulus; `rest`: how many units were left out; `estimates`, `exact` [drawn]: their changes in log odds.
    """

    draw: str
    label: str
    drawn: int
    missed: tuple
    rest: int
    estimates: np.ndarray
    exact: np.ndarray


@dataclass(frozen=True)
class Swept:
    """A sweep's numbers for one stimulus, one kind of effect and U units.

    `log_probabilities` [U, 2] of both candidates under each intervention, `base` [P, 2] without, of each prompt; `exact`: bool [U], which units were run
    (None: all of them); `seconds`: this stimulus' share; `check`: of a sweep over several stimuli the numbers of what was checked stand with
    the first; `fast`: the share in a sweep's FastRows, or None; `sample`: a Sample where there was one.
    """

    log_probabilities: np.ndarray
    base: np.ndarray
    exact: np.ndarray | None
    seconds: float
    check: Check
    fast: FastRows | None
    sample: Sample | None = None


def sample_of(arrays, position, run_on, draw, label, top):
    """The Sample of one stimulus of a screened tree of prompts.

    Args:
        arrays: what the task gave; position: of the stimulus in the tree; run_on: the prompt that was intervened upon; the others as in a Sample.
    """
    swept, base = arrays["log_probabilities"][position], arrays["base"][position, run_on]
    effects = swept[:, 1] - swept[:, 0] - (base[1] - base[0])
    drawn = arrays["drawn"]
    missed = drawn[misses(effects, arrays["chosen"], drawn, top)]
    return Sample(draw, label, len(drawn), tuple(missed.tolist()), int(arrays["rest"]), arrays["estimates"][position], effects[drawn])


@dataclass
class Account:
    """What a manifest says of a table, added up over the sweeps whose numbers it holds."""

    seconds: float = 0.0
    check: Check = NOTHING_CHECKED
    fast: FastRows = field(default_factory=FastRows)
    samples: list = field(default_factory=list)

    def add(self, swept):
        """Count in what gave one stimulus' numbers (a Swept)."""
        self.seconds += swept.seconds
        self.check += swept.check
        if swept.fast:
            self.fast += swept.fast
        if swept.sample:
            self.samples.append(swept.sample)

    def entry(self, rows):
        """Plain values."""
        return ({"rows": rows, "sweep_seconds": self.seconds, **self.check.entry()} | ({"fast": asdict(self.fast)} if self.fast.rows else {})
                | ({"screen": self._screen()} if self.samples else {}))

    def _screen(self):
        """A unit that was drawn is run in all stimuli of its tree at once: it is one draw, and missed when it is missed in one of them."""
        drawn = {sample.draw: sample.drawn for sample in self.samples}
        missed = {(sample.draw, unit): [sample.label, unit] for sample in self.samples for unit in sample.missed}
        return {"drawn": sum(drawn.values()), "rest": max(sample.rest for sample in self.samples), "missed": list(missed.values()),
                **agreement(*(np.concatenate([getattr(sample, part) for sample in self.samples]) for part in ("estimates", "exact")))}
