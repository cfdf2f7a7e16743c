"""The statistics of units against statsmodels, scipy and plain Python, in an environment of their own.

    python -m benchmarks.peers.inference
    python -m benchmarks.peers.inference --seed 1

The environment is `.venv-bench/statsmodels`, made from `requirements-statsmodels.txt` the first time. Prints
a table in Markdown: what was compared, with what, the largest difference, and how much is allowed; a method
of Monte Carlo may differ by its own error. Exit code 1 where a difference is larger.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.peers.compare import HERE, WorkerError, environment
from mediation.effects.decomposition import Decomposition
from mediation.effects.resampling import Resampling
from mediation.effects.sign_flips import benjamini_yekutieli, holm, sign_flips
from mediation.options import Parser, exit_on_bad_input, seed

EXACT = 1e-9
ERRORS = 4  # Monte Carlo errors that are allowed
DRAWS = 2000
Z = float(stats.norm.ppf(.975))


def main(options: argparse.Namespace) -> int:
    """Draw the task, run both, compare; returns the exit code."""
    task = draw_task(np.random.default_rng(options.seed), options.seed)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("task.npz", "result.npz")]
        np.savez(paths[0], **task)
        command = [environment("statsmodels"), HERE / "statsmodels_way.py", *paths]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise WorkerError((process.stderr.strip().splitlines() or ["no message"])[-1])
        with np.load(paths[1]) as arrays:
            theirs = dict(arrays)
    print(f"{theirs['versions']}; seed {options.seed}\n")
    print("| what | compared with | numbers | largest difference | allowed |\n"
          "| --- | --- | --- | --- | --- |")
    beyond = False
    for what, by, differences, allowed in compared(task, theirs):
        largest = float(np.max(np.abs(differences)))
        beyond |= not largest <= allowed  # NaN is beyond, too
        print(f"| {what} | {by} | {np.size(differences)} | {largest:.1e} | {allowed:.1e} |")
    return int(beyond)


def draw_task(generator: np.random.Generator, seed: int) -> dict[str, np.ndarray]:
    """What `statsmodels_way` reads: p values with ties, 12 clusters of 6 units, a linear study in which the
    mediator's effect depends on the exposure, and 30 words in 12 templates."""
    p = np.concatenate([generator.uniform(0, .01, 8), generator.uniform(size=40)]).round(3)
    exposure = np.repeat([0.0, 1.0], 400)
    mediator = .7 * exposure + generator.normal(0, .5, 800)
    outcome = .3 * exposure + .8 * mediator + .4 * exposure * mediator + generator.normal(0, .5, 800)
    words, templates = (index.ravel() for index in np.indices((30, 12)))
    values = (.4 + generator.normal(size=30)[words] + .5 * generator.normal(size=12)[templates]
              + generator.normal(size=360))
    return dict(p=np.maximum(p, .001), means=generator.normal(.4, 1, (12, 6)), exposure=exposure,
                mediator=mediator, outcome=outcome, values=values,
                words=np.array([f"word {number}" for number in words]),
                templates=np.array([f"template {number}" for number in templates]),
                draws=np.array(DRAWS), seed=np.array(seed))


def compared(task: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> list[tuple]:
    """(what, with what, differences, how large they may be) of every comparison."""
    p, tests = task["p"], sign_flips(task["means"])
    rows = [("Holm's p", "statsmodels multipletests", holm(p) - theirs["holm"], EXACT),
            ("Benjamini-Hochberg", "statsmodels multipletests",
             stats.false_discovery_control(p, method="bh") - theirs["bh"], EXACT),
            ("Benjamini-Hochberg of sign flips", "statsmodels of the flips' p",
             tests.rate - stats.false_discovery_control(theirs["flips"]), EXACT),
            ("Benjamini-Yekutieli", "statsmodels multipletests",
             benjamini_yekutieli(p) - theirs["by"], EXACT),
            (f"all {tests.flips:,} sign flips", "scipy permutation_test", tests.p - theirs["flips"], EXACT)]
    parts = linear_parts(task["exposure"], task["mediator"], task["outcome"])
    rows += [(f"{name}, a linear study", "statsmodels Mediation", ours - part, ERRORS * error)
             for name, ours, part, error in zip(("TE", "NDE", "TIE", "NIE"), parts, theirs["parts"],
                                                theirs["parts_error"])]
    factors = {name: task[name].tolist() for name in ("words", "templates")}
    for name, chosen in (("one_way", ["words"]), ("two_way", ["words", "templates"])):
        resampling = Resampling({each: factors[each] for each in chosen}, DRAWS, int(task["seed"]))
        ends = np.ravel(resampling.of_means(task["values"][:, None]))
        title = f"{name.replace('_', '-')} interval"
        rows.append((title, "plain Python, the same draws", ends - theirs[name], EXACT))
        if f"{name}_scipy" in theirs:
            rows.append((title, "scipy bootstrap, its own draws", ends - theirs[f"{name}_scipy"],
                         error_of_ends(ends)))
        rows.append((f"width of the {title}, relative", "statsmodels OLS, clustered errors",
                     np.diff(ends) / (2 * Z * theirs[f"{name}_error"]) - 1, .1))
    return rows


def linear_parts(exposure: np.ndarray, mediator: np.ndarray, outcome: np.ndarray) -> list[float]:
    """Mean TE, NDE, TIE and NIE of the fitted study, whose rows are run under every exposure and mediator."""
    ones = np.ones_like(exposure)
    (start, shift), *_ = np.linalg.lstsq(np.stack([ones, exposure], axis=1), mediator)
    terms = np.stack([ones, exposure, mediator, exposure * mediator], axis=1)
    coefficients, *_ = np.linalg.lstsq(terms, outcome)
    noise = mediator - start - shift * exposure

    def outcome_under(x: float, x_of_mediator: float) -> np.ndarray:
        m = start + shift * x_of_mediator + noise
        return np.stack([ones, x * ones, m, x * m], axis=1) @ coefficients

    base = outcome_under(0, 0)
    parts = Decomposition(outcome_under(1, 1) - base, (outcome_under(1, 0) - base)[:, None],
                          (outcome_under(0, 1) - base)[:, None])
    return [float(part.mean()) for part in (parts.total, parts.direct, parts.total_indirect, parts.indirect)]


def error_of_ends(ends: np.ndarray) -> float:
    """Allowed for a percentile interval's ends: Monte Carlo errors of a normal's 2.5% quantile in so many
    draws."""
    spread = (ends[1] - ends[0]) / (2 * Z)
    return ERRORS * spread * (.025 * .975 / DRAWS) ** .5 / float(stats.norm.pdf(Z))


if __name__ == "__main__":
    command_line = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument("--seed", type=seed, default=0, help="of everything random (default: 0)")
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        try:
            raise SystemExit(main(chosen_options))
        except WorkerError as error:
            print(f"not compared: {error}", file=sys.stderr)
            raise SystemExit(1) from None
