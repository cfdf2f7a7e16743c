"""The rows of a sweep in batches that fit into memory, and in two precisions: fast where that is good enough, exact for the others.

The error of a fast row grows with its distance from the base run (see `products.on_differences`). A random sample of rows, run both ways,
says by how much; rows whose expected error is too large are run exactly. Another sample, of rows that were left fast, says what came of it.
"""

def batch(iterable, bsize=1):
    """Yield slices of at most `bsize` items of anything with a length and slices."""
    for start in range(0, len(iterable), bsize):
        yield iterable[start:start + bsize]


import zlib
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

SAMPLED = 0.01  # share of the rows in a sample
AT_LEAST, AT_MOST = 16, 64
AIM = 6e-4  # in a log-probability: rows whose expected error is larger are run exactly
BOUND = 1e-3  # in a log-probability: a sweep whose sample shows a larger error is run again exactly
DEVIATIONS = 3  # of the errors of a sample, to be on the safe side with one row


@dataclass
class FastRows:
    """What became of the rows that were to be run fast.

    `rows`: how many there were; `exact`: how many of them were run exactly; `sampled`: how many fast ones were run again exactly;
    `repeated`: how many sweeps were run again exactly as a whole, because they were off by more than is accepted;
    `largest_deviation`: the largest error in the samples of the others, in a log-probability (in the log odds where only these are known).
    """

    rows: float = 0
    exact: float = 0
    sampled: float = 0
    repeated: float = 0
    largest_deviation: float = 0.0

    def __str__(self):
        again = ("" if not self.repeated else
                 f"; {self.repeated:.0f} sweeps that were off by more than is accepted, in their sample or against full passes, were run again exactly")
        return (f"fast: {self.rows - self.exact:.0f} of {self.rows:.0f} interventions in bfloat16 on the difference to the base run, the others exactly; "
                f"{self.sampled:.0f} random ones of them again exactly: log-probabilities differ by at most {self.largest_deviation:.1e}{again}")

    def __add__(self, other):
        return FastRows(self.rows + other.rows, self.exact + other.exact, self.sampled + other.sampled, self.repeated + other.repeated,
                        max(self.largest_deviation, other.largest_deviation))

    def add(self, other):
        """Count another one in."""
        self.__dict__.update(asdict(self + other))

    def take(self):
        """What was counted so far, and begin again."""
        taken = replace(self)
        self.__init__()
        return taken

    def run_again(self):
        """The sweep that was just counted is run again exactly."""
        self.exact, self.sampled, self.largest_deviation = self.rows, 0, 0.0
        self.repeated += 1

    def shared(self, parts):
        """[5] to be kept with each of `parts` equal parts of a sweep, as `FastRows(*array)` takes it; the sum over the parts is the whole."""
        return np.array([*(count / parts for count in (self.rows, self.exact, self.sampled, self.repeated)), self.largest_deviation])


def in_batches(run, todo, size, result, progress=None):
    """Fill the rows `todo` of `result` by `run`, `size` of them at once, half as many from where memory does not suffice."""
    while len(todo):
        rows = todo[:size]
        try:
            result[rows] = run(rows)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if size == 1 or not _is_out_of_memory(error):
                raise
            size //= 2
            continue
        todo = todo[size:]
        if progress:
            progress(len(rows))


def _is_out_of_memory(error):
    """True for CUDA's error, and for the plain RuntimeError of the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def in_two_precisions(run_exact, run_fast, todo, layers, size, result, fast, progress=None, odds_only=False):
    """Fill the rows `todo` of `result`, by `run_fast` where that is within AIM.

    Args:
        run_exact: function of rows to float64 [rows, P]; run_fast: the same with one more column, a row's distance from the base run.
        layers: [len(result)], where each row begins; result: [rows, P], filled with the base run's; fast: FastRows, to which this adds.
        odds_only: columns are two candidates' in turn, and only their differences are known.

    Where a row of the second sample is off by more than BOUND, all rows are run exactly.
    """
    approximate = torch.empty(len(result), result.shape[1] + 1, dtype=result.dtype)
    generator = torch.Generator().manual_seed(zlib.crc32(result[:1].numpy().tobytes()))  # other rows in every sweep, the same in every run

    def draw(rows):
        count = min(len(rows), max(AT_LEAST, min(AT_MOST, int(SAMPLED * len(rows)))))
        return rows[torch.randperm(len(rows), generator=generator)[:count]].sort().values

    def error(rows):
        apart = approximate[rows, :-1] - result[rows]
        return (apart[:, 0::2] - apart[:, 1::2] if odds_only else apart).abs().amax(dim=1)

    sample = draw(todo)
    in_batches(run_fast, sample, size, approximate)
    in_batches(run_exact, sample, size, result, progress)
    slope = DEVIATIONS * error(sample).norm() / approximate[sample, -1].norm().clamp_min(1e-9)  # expected error a unit of distance
    far, of_layer = ~(slope * approximate[sample, -1] <= AIM), layers[sample]  # what is not a number is far
    # a layer most of whose sampled rows are far is not tried
    hopeless = [layer for layer in of_layer.unique().tolist() if far[of_layer == layer].double().mean() > 0.5]
    rest = todo[~torch.isin(todo, sample)]
    untried = torch.isin(layers[rest], torch.tensor(hopeless, dtype=layers.dtype))
    tried = rest[~untried]
    in_batches(run_fast, tried, size, approximate, progress)
    far = ~(slope * approximate[tried, -1] <= AIM)
    left = tried[~far]
    result[left] = approximate[left, :-1]
    checked = draw(left)
    in_batches(run_exact, torch.cat([rest[untried], tried[far], checked]).sort().values, size, result)
    if progress:
        progress(int(untried.sum()))
    deviation = float(error(checked).max()) if len(checked) else 0.0
    counted = FastRows(len(todo), len(todo) - len(left), len(checked), 0, deviation)
    if not deviation <= BOUND:
        in_batches(run_exact, left, size, result)
        counted.run_again()
    fast.add(counted)



