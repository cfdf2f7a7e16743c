"""`FastRows`: what a model that was asked for the fast precision did with the rows of its sweeps."""

from dataclasses import asdict, dataclass, replace

import numpy as np
from jaxtyping import Float64


@dataclass
class FastRows:
    """What became of the rows that were to be run fast.

    `rows`: how many there were; `exact`: how many of them were run exactly; `sampled`: how many fast ones
    were run again exactly; `repeated`: how many sweeps were run again exactly as a whole, because they were
    off by more than is accepted; `largest_deviation`: the largest error in the samples of the others, in a
    log-probability (in the log odds where only these are known).
    """

    rows: float = 0
    exact: float = 0
    sampled: float = 0
    repeated: float = 0
    largest_deviation: float = 0.0

    def __str__(self) -> str:
        again = (f"; {self.repeated:.0f} sweeps that were off by more than is accepted, in their sample or "
                 "against full passes, were run again exactly" if self.repeated else "")
        return (f"fast: {self.rows - self.exact:.0f} of {self.rows:.0f} interventions in bfloat16 on the "
                f"difference to the base run, the others exactly; {self.sampled:.0f} random ones of them "
                f"again exactly: log-probabilities differ by at most {self.largest_deviation:.1e}{again}")

    def __add__(self, other: "FastRows") -> "FastRows":
        return FastRows(self.rows + other.rows, self.exact + other.exact, self.sampled + other.sampled,
                        self.repeated + other.repeated, max(self.largest_deviation, other.largest_deviation))

    def add(self, other: "FastRows") -> None:
        """Count another one in."""
        self.__dict__.update(asdict(self + other))

    def take(self) -> "FastRows":
        """What was counted so far, and begin again."""
        taken = replace(self)
        self.__dict__.update(asdict(FastRows()))
        return taken

    def run_again(self) -> None:
        """The sweep that was just counted is run again exactly."""
        self.exact, self.sampled, self.largest_deviation = self.rows, 0, 0.0
        self.repeated += 1

    def shared(self, parts: int) -> Float64[np.ndarray, "5"]:
        """To be kept with each of `parts` equal parts of a sweep, as `FastRows(*array)` takes it.

        The sum over the parts is the whole.
        """
        counts = (self.rows, self.exact, self.sampled, self.repeated)
        return np.array([*(count / parts for count in counts), self.largest_deviation])
