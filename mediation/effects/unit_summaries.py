"""The summary of units: what every map of effects is worth, a row per unit.

| column | what it holds |
| --- | --- |
| group, effect | of the comparisons, "all" for every one; kind of effect |
| mean, low, high, median | log odds ratio, with the 95% bootstrap interval of the mean over clusters |
| effect_mean, effect_low, effect_high | odds ratio minus 1, the mean of 2020, which few prompts can drive |
| geometric_mean | odds ratio minus 1, of the mean log odds ratio |
| share, share_low, share_high | of the mean total effect, where that is known: a ratio of means |
| comparisons, clusters | how many rows, and how many clusters of the factor that tests are over |
| rank, rank_low, rank_high, in_top | by size of the mean, 1 the strongest; share of draws among the top 10 |
| p, q, family | family-wise p value, false discovery rate, and the units that were tested together |
| draws | bootstrap draws |
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from mediation.effects.resampling import AT_ONCE, Resampling, interval
from mediation.effects.sign_flips import SignFlips, cluster_means, sign_flips
from mediation.effects.stability import TOP, Halves, Ranks, halves, ranks

NUMBERS = ("mean", "low", "high", "median", "effect_mean", "effect_low", "effect_high", "geometric_mean",
           "share", "share_low", "share_high", "comparisons", "clusters", "rank", "rank_low", "rank_high",
           "in_top", "p", "q", "family", "draws")


@dataclass(frozen=True)
class EffectMap:
    """Log odds ratios of one kind of effect, of N comparisons (rows) and U units.

    `units`: columns that name the units; `labels`: what all of them share, such as group and effect;
    `totals`: log total effects of the comparisons, for the shares.
    """

    values: Float64[np.ndarray, "N U"]
    resampling: Resampling
    units: pd.DataFrame
    labels: dict[str, Any] = field(default_factory=dict)
    totals: Float64[np.ndarray, "N"] | None = None


@dataclass(frozen=True)
class UnitSummary:
    """`table`: a row per unit of every map; `tests`: of the family; `ranks`, `halves`: of every map, in
    their order."""

    table: pd.DataFrame
    tests: SignFlips
    ranks: list[Ranks]
    halves: list[Halves]


def summarise(maps: Sequence[EffectMap], family: str, flips: int | None = None, seed: int = 0) -> UnitSummary:
    """What several maps say of their units, which are tested as one family.

    Args:
        maps: whose resampling come from one `Resampling`, so that clusters have the same numbers;
        family: what the table calls the units that are tested together.
    """
    tests = sign_flips(_side_by_side(maps), flips, seed)
    tables, of_ranks, start = [], [], 0
    for one in maps:
        units = one.values.shape[1]
        draws = one.resampling.means(one.values)
        mean, (low, high) = one.values.mean(axis=0), _ends(one.resampling, draws)
        ranked = ranks(mean, draws)
        del draws  # as large as the effects themselves
        columns = {**one.labels, **{name: one.units[name].to_numpy() for name in one.units},
                   "mean": mean, "low": low, "high": high, **_medians_and_odds(one),
                   "geometric_mean": np.expm1(mean), **_shares(one)}
        counted = one.resampling.varies
        columns |= {"comparisons": len(one.values), "clusters": next(iter(one.resampling.clusters.values())),
                    "rank": ranked.rank, "rank_low": ranked.low if counted else np.nan,
                    "rank_high": ranked.high if counted else np.nan,
                    "in_top": ranked.in_top if counted else np.nan,
                    "p": tests.family_wise[start:start + units], "q": tests.rate[start:start + units],
                    "family": f"{family}: {tests.tested} units", "draws": len(one.resampling.weights)}
        tables.append(pd.DataFrame(columns))
        of_ranks.append(ranked)
        start += units
    return UnitSummary(pd.concat(tables, ignore_index=True), tests, of_ranks,
                       [halves(one.values, one.resampling, TOP, seed) for one in maps])


def _ends(resampling, draws):
    unknown = np.full(draws.shape[1], np.nan)
    return interval(draws) if resampling.varies else (unknown, unknown)


def _medians_and_odds(one):
    """Columns that need copies of the effects: of some units at a time."""
    parts = []
    for start in range(0, one.values.shape[1], AT_ONCE):
        values = one.values[:, start:start + AT_ONCE]
        effects = np.expm1(values)
        parts.append([np.median(values, axis=0), effects.mean(axis=0), *one.resampling.of_means(effects)])
    return dict(zip(("median", "effect_mean", "effect_low", "effect_high"), map(np.concatenate, zip(*parts))))


def _shares(one):
    """Columns of the parts of the mean total effect; none where that is not known."""
    if one.totals is None:
        return {"share": np.nan, "share_low": np.nan, "share_high": np.nan}
    low, high = one.resampling.of_ratio(one.values, one.totals)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"share": one.values.mean(axis=0) / one.totals.mean(), "share_low": low, "share_high": high}


def _side_by_side(maps):
    """Cluster means [K, units of all maps]; 0 where a cluster has no comparison with a unit."""
    clusters = np.unique(np.concatenate([one.resampling.first for one in maps]))
    means = []
    for one in maps:
        own = np.zeros((len(clusters), one.values.shape[1]))
        own[np.searchsorted(clusters, np.unique(one.resampling.first))] = cluster_means(
            one.values, one.resampling.first)
        means.append(own)
    return np.concatenate(means, axis=1)
