"""How often a 95% interval holds the truth, and how often tests call what is not there, in simulated studies.

    python -m benchmarks.coverage
    python -m benchmarks.coverage --studies 500

Data without any effect, clustered in one way (stimuli of several rows) or crossed in two (professions x
templates, of equal variances and with every cell's own noise). *heavy*: Student's t with 3 degrees of
freedom, for log effects have few large ones; *skewed*: exponentials of normals, as odds ratios are; *unequal
sizes*: 1 to 20 rows a cluster. Beside our intervals those that draw rows, and ours made wider around the mean
by sqrt(K / (K - 1)), K the clusters of the smaller factor, and by Student's over the normal quantile, too.
Then sign flips of dependent units: family-wise error and false discovery rate. Prints tables in Markdown; two
minutes on one core.
"""

import argparse
from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats

from mediation.effects.resampling import Resampling
from mediation.effects.sign_flips import sign_flips
from mediation.options import Parser, exit_on_bad_input, positive, seed

AT_ONCE = 100  # studies that share draws
ONE_WAY, TWO_WAY = (5, 10, 40, 150), ((40, 17), (150, 17), (40, 40), (150, 40))
ROWS = 5  # of a cluster
FLIPS, UNITS, REAL, SIZE = 1000, 30, 5, 1.2  # units of a family, some with effects of this many deviations

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
SHAPES: dict[str, Draw] = {
    "normal": lambda generator, size: generator.normal(size=size),
    "heavy": lambda generator, size: generator.standard_t(3, size=size) / 3 ** .5,
    "skewed": lambda generator, size: (np.exp(generator.normal(size=size)) - np.exp(.5))
    / ((np.e - 1) * np.e) ** .5}


def main(options: argparse.Namespace) -> None:
    """Tables of intervals, then of tests."""
    generator = np.random.default_rng(options.seed)
    print(f"{options.studies} simulated studies a row, seed {options.seed}\n")
    print("| clusters | data | our interval | sqrt(K / (K - 1)) | and t / z | rows drawn |\n"
          "| --- | --- | --- | --- | --- | --- |")
    for name, data, study in intervals():
        shares = coverage(study, options.studies, generator)
        print(f"| {name} | {data} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)
    print(f"\n{UNITS} units of equal correlation .5; power: share called of {REAL} units whose effects are "
          f"{SIZE} standard deviations of a cluster's\n")
    print("| clusters | data | family-wise error, no effects | false discovery rate | power, family-wise | "
          "power, rate |\n| --- | --- | --- | --- | --- | --- |")
    for clusters in (12, 40):
        for data in SHAPES:
            shares = levels(clusters, SHAPES[data], options.studies, generator)
            print(f"| {clusters} | {data} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)


def intervals() -> list[tuple]:
    """(clusters, data, function of a generator to values [rows, AT_ONCE] and factors) of every row."""
    rows: list[tuple] = []
    for clusters in ONE_WAY:
        for data in SHAPES:
            rows.append((str(clusters), data, one_way(clusters, SHAPES[data], equal=True)))
        unequal = one_way(clusters, SHAPES["normal"], equal=False)
        rows.append((str(clusters), "normal, unequal sizes", unequal))
    for words, templates in TWO_WAY:
        for data in ("normal", "heavy"):
            rows.append((f"{words} x {templates}", data, two_way(words, templates, SHAPES[data])))
    return rows


def one_way(clusters: int, draw: Draw, equal: bool) -> Callable:
    """A study of clusters whose rows have half of their variance in common."""
    def study(generator: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        sizes = np.full(clusters, ROWS) if equal else generator.integers(1, 21, clusters)
        of_rows = np.repeat(np.arange(clusters), sizes)
        common = draw(generator, (clusters, AT_ONCE))[of_rows]
        return common + draw(generator, common.shape), {"stimuli": of_rows}
    return study


def two_way(words: int, templates: int, draw: Draw) -> Callable:
    """A study of professions in templates."""
    def study(generator: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        word, template = (index.ravel() for index in np.indices((words, templates)))
        values = (draw(generator, (words, AT_ONCE))[word] + draw(generator, (templates, AT_ONCE))[template]
                  + draw(generator, (words * templates, AT_ONCE)))
        return values, {"professions": word, "templates": template}
    return study


def coverage(study: Callable, studies: int, generator: np.random.Generator) -> np.ndarray:
    """Share of studies whose mean, 0, is within our interval, the two wider ones, and that over rows."""
    held = []
    for _ in range(-(-studies // AT_ONCE)):
        values, factors = study(generator)
        mean = values.mean(axis=0)
        low, high = interval(values, factors, generator)
        fewest = min(len(np.unique(of_rows)) for of_rows in factors.values())
        root = (fewest / (fewest - 1)) ** .5
        wider = root, root * stats.t.ppf(.975, fewest - 1) / stats.norm.ppf(.975)
        ends = [*((mean + factor * (low - mean), mean + factor * (high - mean)) for factor in (1, *wider)),
                interval(values, {"rows": np.arange(len(values))}, generator)]
        held.append([((below <= 0) & (above >= 0)).mean() for below, above in ends])
    return np.mean(held, axis=0)


def interval(values: np.ndarray, factors: Mapping[str, np.ndarray],
             generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ours, from draws of its own."""
    names = {name: [str(level) for level in of_rows] for name, of_rows in factors.items()}
    return Resampling(names, seed=int(generator.integers(2**31))).of_means(values)


def levels(clusters: int, draw: Draw, studies: int, generator: np.random.Generator) -> np.ndarray:
    """Share of studies without effects that call a unit; mean share of wrong ones among those called; power
    of both rules."""
    found = []
    for _ in range(studies):
        means = (draw(generator, (clusters, 1)) + draw(generator, (clusters, UNITS))) / 2 ** .5
        nothing = sign_flips(means, FLIPS, seed=int(generator.integers(2**31)))
        means[:, :REAL] += SIZE
        tests = sign_flips(means, FLIPS, seed=int(generator.integers(2**31)))
        called = tests.rate <= .05
        found.append([(nothing.family_wise <= .05).any(), called[REAL:].sum() / max(1, called.sum()),
                      (tests.family_wise[:REAL] <= .05).mean(), called[:REAL].mean()])
    return np.mean(found, axis=0)


if __name__ == "__main__":
    command_line = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument("--studies", type=positive, default=1000, metavar="N",
                              help="simulated studies of every row (default: 1000)")
    command_line.add_argument("--seed", type=seed, default=0, help="of everything random (default: 0)")
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)
