"""The rows of a sweep in batches that fit into memory, and in two precisions.

Fast where that is good enough, exact for the others. The error of a fast row grows with its distance from the
base run (see `products.on_differences`). A random sample of rows, run both ways, says by how much; rows whose
expected error is too large are run exactly. Another sample, of rows that were left fast, says what came of
it.

Symbols in shapes: B rows of a sweep, R of them that one call runs, P predictions.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from mediation.model.fast_rows import FastRows

Run = Callable[[Int[Tensor, "R"]], Float64[Tensor, "R P"]]  # numbers of the rows with these indices
Progress = Callable[[int], object]  # called with the number of interventions done

SAMPLED = 0.01  # share of the rows in a sample
AT_LEAST, AT_MOST = 16, 64
AIM = 6e-4  # in a log-probability: rows whose expected error is larger are run exactly
BOUND = 1e-3  # in a log-probability: a sweep whose sample shows a larger error is run again exactly
DEVIATIONS = 3  # of the errors of a sample, to be on the safe side with one row


def batch(iterable: Sequence, bsize: int = 1) -> Iterator[Any]:
    """Yield slices of at most `bsize` items."""
    for start in range(0, len(iterable), bsize):
        yield iterable[start:start + bsize]


def in_batches(run: Run, rows: Int[Tensor, "R"], size: int, result: Float64[Tensor, "B P"],
               progress: Progress | None = None) -> None:
    """Fill these rows of `result` by `run`, `size` at once; half as many where memory does not suffice."""
    while len(rows):
        together = rows[:size]
        try:
            result[together] = run(together)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if size == 1 or not _is_out_of_memory(error):
                raise
            size //= 2
            continue
        rows = rows[size:]
        if progress:
            progress(len(together))


def _is_out_of_memory(error):
    """True for CUDA's error, and for the plain RuntimeError of the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def in_two_precisions(run_exact: Run, run_fast: Run, rows: Int[Tensor, "R"], layers: Int[Tensor, "B"],
                      size: int, result: Float64[Tensor, "B P"], fast: FastRows,
                      progress: Progress | None = None, odds_only: bool = False) -> None:
    """Fill these rows of `result`, by `run_fast` where that is within AIM.

    Args:
        run_exact, run_fast: the latter with one more column, a row's distance from the base run.
        layers: where each row begins; result: filled with the base run's; fast: to which this adds.
        odds_only: columns are two candidates' in turn, and only their differences are known.

    Where a row of the second sample is off by more than BOUND, all rows are run exactly.
    """
    approximate = torch.empty(len(result), result.shape[1] + 1, dtype=result.dtype)
    # other rows in every sweep, the same in every run of it
    generator = torch.Generator().manual_seed(zlib.crc32(result[:1].numpy().tobytes()))

    def draw(rows):
        count = min(len(rows), max(AT_LEAST, min(AT_MOST, int(SAMPLED * len(rows)))))
        return rows[torch.randperm(len(rows), generator=generator)[:count]].sort().values

    def error(rows):
        difference = approximate[rows, :-1] - result[rows]
        of_columns = difference[:, 0::2] - difference[:, 1::2] if odds_only else difference
        return of_columns.abs().amax(dim=1)

    sample = draw(rows)
    in_batches(run_fast, sample, size, approximate)
    in_batches(run_exact, sample, size, result, progress)
    # expected error per unit of distance
    slope = DEVIATIONS * error(sample).norm() / approximate[sample, -1].norm().clamp_min(1e-9)

    def is_far(rows):
        return ~(slope * approximate[rows, -1] <= AIM)  # what is not a number is far

    # a layer most of whose sampled rows are far is not tried
    far, of_layer = is_far(sample), layers[sample]
    hopeless = [layer for layer in of_layer.unique().tolist() if far[of_layer == layer].double().mean() > 0.5]
    others = rows[~torch.isin(rows, sample)]
    is_hopeless = torch.isin(layers[others], torch.tensor(hopeless, dtype=layers.dtype))
    untried, tried = others[is_hopeless], others[~is_hopeless]
    in_batches(run_fast, tried, size, approximate, progress)
    far = is_far(tried)
    near = tried[~far]
    result[near] = approximate[near, :-1]
    second_sample = draw(near)
    in_batches(run_exact, torch.cat([untried, tried[far], second_sample]).sort().values, size, result)
    if progress:
        progress(len(untried))
    deviation = float(error(second_sample).max()) if len(second_sample) else 0.0
    counts = FastRows(len(rows), len(rows) - len(near), len(second_sample), 0, deviation)
    if not deviation <= BOUND:
        in_batches(run_exact, near, size, result)
        counts.run_again()
    fast.add(counts)
