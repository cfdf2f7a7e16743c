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
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from mediation.effects.resampling import AT_ONCE, Resampling, interval
from mediation.effects.sign_flips import SignFlips, cluster_means, sign_flips
from mediation.effects.stability import ROUNDING, TOP, Halves, Ranks, halves, ranks

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
    """`table`: a row per unit of every map; `tests`: of the family; `ranks`, `halves`: of maps with the same
    labels, in their order; halves are of the map that most clusters have."""

    table: pd.DataFrame
    tests: SignFlips
    ranks: list[Ranks]
    halves: list[Halves]


def summarise(maps: Sequence[EffectMap], family: str, flips: int | None = None, seed: int = 0) -> UnitSummary:
    """What several maps say of their units, which are tested as one family.

    A unit that has no effect beyond `ROUNDING` in any comparison is not tested.

    Args:
        maps: whose resampling come from one `Resampling`, so that clusters have the same numbers; those with
            the same labels, one after the other, are ranked together (the positions that all prompts have,
            and those that long ones have). family: what the table calls the units that are tested together.
    """
    none = np.concatenate([np.maximum(one.values.max(axis=0), -one.values.min(axis=0)) <= ROUNDING
                           for one in maps])
    tests = sign_flips(np.where(none, 0, _side_by_side(maps)), flips, seed)
    tables, of_ranks, of_halves, start = [], [], [], 0
    for _, group in groupby(maps, key=lambda one: one.labels):
        alike = list(group)
        draws = [one.resampling.means(one.values) for one in alike]
        mean = np.concatenate([one.values.mean(axis=0) for one in alike])
        low, high = np.concatenate([_ends(one.resampling, each) for one, each in zip(alike, draws)], axis=1)
        # a draw without any comparison that has a unit says nothing of it: it comes last there
        of_all = draws[0] if len(draws) == 1 else np.concatenate(draws, axis=1)
        ranked = ranks(mean, np.nan_to_num(of_all, copy=False))
        del draws, of_all  # as large as the effects themselves
        drawn = np.repeat([one.resampling.varies for one in alike], [len(one.units) for one in alike])
        stop = start + len(mean)
        table = pd.concat([_columns(one) for one in alike], ignore_index=True).assign(
            mean=mean, low=low, high=high, geometric_mean=np.expm1(mean), rank=ranked.rank,
            rank_low=np.where(drawn, ranked.low, np.nan), rank_high=np.where(drawn, ranked.high, np.nan),
            in_top=np.where(drawn, ranked.in_top, np.nan), p=tests.family_wise[start:stop],
            q=tests.rate[start:stop], family=f"{family}: {tests.tested} units")
        tables.append(table[[name for name in table if name not in NUMBERS] + list(NUMBERS)])
        of_ranks.append(ranked)
        largest = max(alike, key=lambda one: next(iter(one.resampling.clusters.values())))
        of_halves.append(halves(largest.values, largest.resampling, TOP, seed))
        start = stop
    return UnitSummary(pd.concat(tables, ignore_index=True), tests, of_ranks, of_halves)


def _columns(one):
    """What a map's own comparisons say of its units."""
    return pd.DataFrame({**one.labels, **{name: one.units[name].to_numpy() for name in one.units},
                         **_medians_and_odds(one), **_shares(one), "comparisons": len(one.values),
                         "clusters": next(iter(one.resampling.clusters.values())),
                         "draws": len(one.resampling.weights)})


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
