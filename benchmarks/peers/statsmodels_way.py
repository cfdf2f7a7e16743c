"""The statistics of units by statsmodels, scipy and plain Python: what `benchmarks.peers.inference` compares.

    python benchmarks/peers/statsmodels_way.py TASK.npz RESULT.npz

Nothing of the project is imported here: the file runs in an environment of its own.

A task has `p` [U], p values; `means` [K, U], of clusters; `exposure` [2N], `mediator`, `outcome`, of a study
whose models are linear; `values` [N] with `words` and `templates` [N], rows crossed in two ways, of equally
many rows a word, and `draws`, `seed` of their bootstrap. The result has the names that `inference` looks for.
"""

import importlib.metadata
import sys

import numpy as np
import pandas as pd
import scipy.stats
import statsmodels.api
from statsmodels.stats.mediation import Mediation
from statsmodels.stats.multitest import multipletests

RESAMPLES, STUDIES = 10_000, 500  # of the Monte Carlo methods; a simulated study takes 20 ms


def corrected(p):
    """Holm's p values, and the rates of Benjamini and Hochberg, and Benjamini and Yekutieli."""
    return {name: multipletests(p, method=method)[1]
            for name, method in (("holm", "holm"), ("bh", "fdr_bh"), ("by", "fdr_by"))}


def flipped(means):
    """p of every unit alone, over all sign flips."""
    tests = (scipy.stats.permutation_test((unit,), np.mean, permutation_type="samples", n_resamples=np.inf)
             for unit in means.T)
    return {"flips": np.array([test.pvalue for test in tests])}


def mediated(exposure, mediator, outcome):
    """Means of the parts of the total effect over simulated studies, and the Monte Carlo errors of these."""
    table = pd.DataFrame({"x": exposure, "m": mediator, "y": outcome})
    outcome_model = statsmodels.api.OLS.from_formula("y ~ x * m", table)
    mediator_model = statsmodels.api.OLS.from_formula("m ~ x", table)
    mediation = Mediation(outcome_model, mediator_model, "x", "m")
    found = mediation.fit(n_rep=STUDIES, rng=np.random.default_rng(0))
    parts = np.array([found.total_effect, found.ADE_ctrl, found.ACME_tx, found.ACME_ctrl])
    return {"parts": parts.mean(axis=1), "parts_error": parts.std(axis=1, ddof=1) / STUDIES ** .5}


def written_out(values, factors, draws, seed):
    """The 95% interval of a mean from rows repeated as often as their levels were drawn."""
    generator, counts = np.random.default_rng(seed), []
    for factor in factors:
        levels = sorted(set(factor.tolist()))
        of_levels = generator.multinomial(len(levels), [1 / len(levels)] * len(levels), draws)
        counts.append([dict(zip(levels, drawn)) for drawn in of_levels.tolist()])
    means = []
    for draw in range(draws):
        repeated = []
        for row, value in enumerate(values.tolist()):
            times = 1
            for factor, drawn in zip(factors, counts):
                times *= drawn[draw][factor[row]]
            repeated += [value] * times
        means.append(sum(repeated) / len(repeated))
    means.sort()
    ends = []
    for share in (.025, .975):
        place = share * (draws - 1)
        below, part = int(place), place - int(place)
        ends.append(means[below] * (1 - part) + means[min(below + 1, draws - 1)] * part)
    return ends


def intervals(values, words, templates, draws, seed):
    """One-way and two-way: by hand from the same draws, by scipy's own draws, and the clustered standard
    errors of a regression on a constant."""
    of_words = pd.Series(values).groupby(words).mean().to_numpy()
    by_scipy = scipy.stats.bootstrap((of_words,), np.mean, n_resamples=RESAMPLES, method="percentile",
                                     rng=np.random.default_rng(0)).confidence_interval
    regression = statsmodels.api.OLS(values, np.ones(len(values)))
    numbers = [np.unique(factor, return_inverse=True)[1] for factor in (words, templates)]
    one_way, two_way = (regression.fit(cov_type="cluster", cov_kwds={"groups": groups}).bse[0]
                        for groups in (numbers[0], np.stack(numbers, axis=1)))
    return {"one_way": written_out(values, [words], draws, seed),
            "two_way": written_out(values, [words, templates], draws, seed),
            "one_way_scipy": list(by_scipy), "one_way_error": one_way, "two_way_error": two_way}


if __name__ == "__main__":
    with np.load(sys.argv[1]) as task:
        found = {**corrected(task["p"]), **flipped(task["means"]),
                 **mediated(task["exposure"], task["mediator"], task["outcome"]),
                 **intervals(task["values"], task["words"], task["templates"], int(task["draws"]),
                             int(task["seed"]))}
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("statsmodels", "scipy"))
    np.savez(sys.argv[2], versions=versions, **{name: np.asarray(value) for name, value in found.items()})
