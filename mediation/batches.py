"""The rows of a sweep in batches that fit into memory, and in two precisions: fast where that is good enough, exact for the others.

The error of a fast row grows with its distance from the base run (see `products.on_differences`). A random sample of rows, run both ways,
says by how much; rows whose expected error is too large are run exactly. Another sample, of rows that were left fast, says what came of it.
"""

import zlib
from dataclasses import dataclass

import torch

from .errors import InputError

SAMPLED = 0.01  # share of the rows in a sample
AT_LEAST, AT_MOST = 16, 64
AIM = 6e-4  # in a log-probability: rows whose expected error is larger are run exactly
BOUND = 1e-3  # in a log-probability: a larger error in the sample stops the run
DEVIATIONS = 3  # of the errors of a sample, to be on the safe side with one row


@dataclass
class FastRows:
    """What became of the rows that were to be run fast.

    `rows`: how many there were; `exact`: how many of them were run exactly; `sampled`: how many fast ones were run again exactly;
    `largest_deviation`: the largest error among these, `of` log-probabilities or log odds.
    """

    rows: int = 0
    exact: int = 0
    sampled: int = 0
    largest_deviation: float = 0.0
    of: str = "log-probabilities"

    def __str__(self):
        return (f"fast: {self.rows - self.exact} of {self.rows} interventions in bfloat16 on the difference to the base run, the others exactly; "
                f"{self.sampled} random ones of them again exactly: {self.of} differ by at most {self.largest_deviation:.1e}")


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

    Raises:
        InputError: the error of a sampled row is above BOUND.
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
    fast.rows += len(todo)
    fast.exact += len(todo) - len(left)
    fast.sampled += len(checked)
    deviation = float(error(checked).max()) if len(checked) else 0.0
    fast.largest_deviation = max(fast.largest_deviation, deviation)
    fast.of = "log odds" if odds_only else "log-probabilities"
    if not deviation <= BOUND:
        raise InputError(f"--precision fast is off by {deviation:.1e} in {fast.of}, above the bound of {BOUND:.0e}: use --precision exact and another -out_dir")
