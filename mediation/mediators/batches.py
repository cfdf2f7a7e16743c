"""The rows of a sweep in batches that fit into memory, and in two precisions: fast where that is good enough, exact for the others.

The error of a fast row grows with its distance from the base run (see `products.on_differences`). A random sample of rows, run both ways,
says by how much; rows whose expected error is too large are run exactly. Another sample, of rows that were left fast, says what came of it.
"""

import zlib
from collections.abc import Callable

import torch

from mediation.model.fast_rows import FastRows

Progress = Callable[[int], object]  # called with the number of interventions done

SAMPLED = 0.01  # share of the rows in a sample
AT_LEAST, AT_MOST = 16, 64
AIM = 6e-4  # in a log-probability: rows whose expected error is larger are run exactly
BOUND = 1e-3  # in a log-probability: a sweep whose sample shows a larger error is run again exactly
DEVIATIONS = 3  # of the errors of a sample, to be on the safe side with one row


def batch(iterable, bsize=1):
    """Yield slices of at most `bsize` items of anything with a length and slices."""
    for start in range(0, len(iterable), bsize):
        yield iterable[start:start + bsize]


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
