"""How many stimuli does a study need? Studies of other sizes, drawn from the effects of one that was run.

    python -m benchmarks.how_many winobias_data/attention_intervention_gpt2_filtered_dev.json
    python -m benchmarks.how_many mine/total_effects_gpt2.csv --sizes 10 50 --units "head_outputs, indirect"

FILE: a JSON of the attention study, or total_effects_*.csv of mediate.py with the mediators' tables beside
it. For every size, studies of so many clusters are drawn with replacement: new studies from a population like
the file's, also larger ones than it. Effects are log odds ratios. Prints a table in Markdown, means over
studies:

width of a 95% interval, in parts of the effect: of the total effect, and of the strongest 10 units (median);
beyond 0: share of these whose interval is; found: share of the file's strongest 10 among the study's; shared:
share of one study's strongest 10 among another's.
"""

import argparse

import numpy as np

from mediation.effects.resampling import Resampling
from mediation.effects.stability import TOP, strongest
from mediation.errors import InputError
from mediation.options import Parser, exit_on_bad_input, positive, seed
from mediation.results.model_results import measured_in

SIZES = (10, 20, 40, 80, 160, 320)
DRAWS = 500  # of each study's interval


def main(options: argparse.Namespace) -> None:
    """The file's effects, then a row per size."""
    (measured, *others) = measured_in(options.file, {})
    maps = {name: each for name, each in measured.maps.items() if len(each.units) > TOP}
    if others or not maps or (options.units and options.units not in maps):
        there = f"; there are {', '.join(maps)}" if maps else ""
        wanted = options.units or f"more than {TOP} units"
        raise InputError(f"{options.file} has not the effects of {wanted} in every example: name a file and "
                         f"units that it has{there}")
    name = options.units or next(iter(maps))
    units = maps[name].values
    known = ~np.isnan(units).any(axis=1)
    clusters = np.unique(np.array(next(iter(measured.factors.values())))[known], return_inverse=True)[1]
    values = np.column_stack([measured.total, units])[known]
    top = strongest(values[:, 1:].mean(axis=0), TOP)
    print(f"{measured.study}, {measured.model}: {len(values)} examples in {clusters.max() + 1} clusters, "
          f"mean total effect {values[:, 0].mean():.3f}; {units.shape[1]} units ({name}); {options.studies} "
          f"studies a row, seed {options.seed}\n")
    print(f"| clusters | total effect: width | strongest {TOP}: width | beyond 0 | found | shared |\n"
          "| --- | --- | --- | --- | --- | --- |")
    generator = np.random.default_rng(options.seed)
    for size in options.sizes:
        width, of_top, *shares = studies(values, clusters, top, size, options.studies, generator)
        print(f"| {size} | {width:.2f} | {of_top:.2f} | {' | '.join(f'{share:.0%}' for share in shares)} |",
              flush=True)


def studies(values: np.ndarray, clusters: np.ndarray, top: np.ndarray, size: int, number: int,
            generator: np.random.Generator) -> np.ndarray:
    """The numbers of a row.

    Args:
        values: [N, 1 + U], total effect and units; clusters: numbers of the rows' clusters; top: the
            strongest units of all rows.
    """
    rows_of = [np.flatnonzero(clusters == cluster) for cluster in range(clusters.max() + 1)]
    means, found, before = values.mean(axis=0), [], None
    for _ in range(number):
        drawn = generator.integers(0, len(rows_of), size)
        rows = np.concatenate([rows_of[cluster] for cluster in drawn])
        names = np.repeat(np.arange(size), [len(rows_of[cluster]) for cluster in drawn])
        low, high = Resampling({"clusters": [str(each) for each in names]}, DRAWS,
                               int(generator.integers(2**31))).of_means(values[rows][:, [0, *(1 + top)]])
        widths = (high - low) / np.abs(means[[0, *(1 + top)]])
        best = strongest(values[rows, 1:].mean(axis=0), TOP)
        shared = np.nan if before is None else len(np.intersect1d(best, before)) / TOP
        found.append((widths[0], np.median(widths[1:]), ((low > 0) | (high < 0))[1:].mean(),
                      len(np.intersect1d(best, top)) / TOP, shared))
        before = best
    return np.nanmean(found, axis=0)


if __name__ == "__main__":
    command_line = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument("file", metavar="FILE", help="results of one model")
    command_line.add_argument("--sizes", type=positive, nargs="+", default=SIZES, metavar="N",
                              help=f"clusters of a study (default: {' '.join(map(str, SIZES))})")
    command_line.add_argument("--units", metavar="NAME",
                              help="mediator and kind of effect (default: the file's first, such as "
                                   '"heads, indirect")')
    command_line.add_argument("--studies", type=positive, default=200, metavar="N",
                              help="drawn studies of every size (default: 200)")
    command_line.add_argument("--seed", type=seed, default=0, help="of the draws (default: 0)")
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)
