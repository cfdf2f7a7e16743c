"""The summary of units: every column against what it is defined as."""

import numpy as np
import pandas as pd
import pytest

from mediation.effects.resampling import Resampling
from mediation.effects.unit_summaries import NUMBERS, EffectMap, summarise


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def effect_map(values, resampling, kind, totals=None):
    units = pd.DataFrame({"layer": 0, "unit": np.arange(values.shape[1])})
    return EffectMap(values, resampling, units, {"group": "all", "effect": kind}, totals)


def test_every_column_is_what_it_is_defined_as(generator):
    values, totals = generator.normal(.5, 1, (30, 4)), generator.normal(4, 1, 30)
    resampling = Resampling({"stimuli": [str(number) for number in range(30)]})
    found = summarise([effect_map(values, resampling, "indirect", totals)], "heads")
    table = found.table
    assert list(table) == ["group", "effect", "layer", "unit", *NUMBERS]
    np.testing.assert_allclose(table["mean"], values.mean(axis=0))
    np.testing.assert_allclose(table["median"], np.median(values, axis=0))
    np.testing.assert_allclose(table[["low", "high"]].T, resampling.of_means(values))
    np.testing.assert_allclose(table["effect_mean"], np.expm1(values).mean(axis=0))
    np.testing.assert_allclose(table[["effect_low", "effect_high"]].T,
                               resampling.of_means(np.expm1(values)))
    np.testing.assert_allclose(table["geometric_mean"], np.expm1(values.mean(axis=0)))
    np.testing.assert_allclose(table["share"], values.mean(axis=0) / totals.mean())
    np.testing.assert_allclose(table[["share_low", "share_high"]].T, resampling.of_ratio(values, totals))
    assert sorted(table["rank"]) == [1, 2, 3, 4]
    assert (table["rank_low"] <= table["rank"]).all() and (table["rank"] <= table["rank_high"]).all()
    assert (table["family"] == "heads: 4 units").all() and (table["draws"] == 2000).all()
    assert (table["clusters"] == 30).all() and (table["comparisons"] == 30).all()


def test_several_maps_are_one_family_whatever_clusters_they_have(generator):
    """A unit that half of the clusters have is tested on that half."""
    resampling = Resampling({"stimuli": [str(number) for number in range(24)]})
    values, half = generator.normal(1, 1, (24, 3)), np.arange(24) % 2 == 0
    found = summarise([effect_map(values, resampling, "indirect"),
                       effect_map(values[half], resampling.of(half), "direct")], "all")
    assert found.tests.tested == 6 and len(found.ranks) == len(found.halves) == 2
    alone = summarise([effect_map(values, resampling, "indirect")], "all")
    assert (found.table["p"][:3].to_numpy() >= alone.table["p"].to_numpy()).all()
    half_alone = summarise([effect_map(values[half], resampling.of(half), "direct")], "all")
    np.testing.assert_allclose(found.tests.p[3:], half_alone.tests.p, atol=.02)
    assert found.table["clusters"].tolist() == [24] * 3 + [12] * 3


def test_what_rounding_leaves_is_no_effect(generator):
    """A total effect minus an equal direct one: the sign of what is left is the same in every comparison."""
    values = generator.normal(1, 1, (24, 4))
    values[:, 1] = generator.uniform(1e-7, 9e-6, 24)
    values[:, 2] = 0
    table = summarise([effect_map(values, Resampling({"stimuli": [str(number) for number in range(24)]}),
                                  "total_indirect")], "heads").table
    assert (table["family"] == "heads: 2 units").all()
    assert table["p"].isna().tolist() == [False, True, True, False]
    assert table["rank"][1] == table["rank"][2] == 3 and table["mean"][1] > 0


def test_one_cluster_has_a_mean_and_nothing_that_says_how_sure_it_is(generator):
    table = summarise([effect_map(generator.normal(size=(3, 2)), Resampling({"stimuli": ["only"] * 3}),
                                  "indirect")], "heads").table
    unsure = ["low", "high", "effect_low", "effect_high", "rank_low", "rank_high", "in_top", "p", "q"]
    assert table[unsure].isna().all().all() and table[["mean", "rank"]].notna().all().all()
