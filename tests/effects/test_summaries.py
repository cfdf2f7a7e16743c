"""Summaries of effects, checked by hand and against NumPy and pandas."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from mediation.effects.summaries import (
    Moments,
    NeuronAggregate,
    largest_and_median,
    means_of_units,
    over_orders,
    ranked_units,
    sample_deviation,
    standard_error,
    strongest_means,
    top_of_layer,
)


@given(arrays(float, st.tuples(st.integers(2, 20), st.integers(1, 5)), elements=st.floats(-1e6, 1e6)))
def test_moments_that_come_one_by_one(values):
    moments = Moments()
    for row in values:
        moments.add(row)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(moments.deviation, values.std(0, ddof=1), rtol=1e-6, atol=1e-6)


def test_the_deviation_of_one_array_is_not_a_number():
    moments = Moments()
    moments.add(np.ones(3))
    assert np.isnan(moments.deviation).all()


def test_layer_profile_takes_at_least_one_neuron():
    table = pd.DataFrame({"layer_direct_mean": [0.0] * 30, "odds_ratio_indirect_mean": np.arange(30.0),
                          "odds_ratio_indirect_std": np.ones(30)})
    assert top_of_layer(table, 0.025)["neurons"].tolist() == [1]
    assert top_of_layer(table, 0.1)["odds_ratio_indirect_mean"].tolist() == [28.0]


def test_neuron_aggregate_by_hand(rated):
    aggregate = NeuronAggregate()
    aggregate.check_units("x", np.array([0]), np.array([0]))
    base = 0.5
    for word, indirect, direct in (("nurse", "man_indirect", "man_direct"),
                                   ("doctor", "woman_indirect", "woman_direct")):
        aggregate.add(word, "The {} said", rated[word], 1.5,
                      {indirect: (base, np.array([0.7])), direct: (base, np.array([0.2]))})
    row = aggregate.effects().iloc[0]
    toward_he, toward_she = np.exp(0.2), np.exp(-0.2)
    assert row["odds_ratio_indirect_mean"] == pytest.approx((toward_he + toward_she) / 2)
    assert row["odds_ratio_direct_mean"] == pytest.approx((np.exp(-0.3) + np.exp(0.3)) / 2)
    total = row["odds_ratio_indirect_mean"] + row["odds_ratio_direct_mean"] - 1
    assert row["total_causal_effect_mean"] == pytest.approx(total)
    assert aggregate.contrast.count == 0 and (aggregate.prompts, aggregate.female_biased) == (2, 1)


def test_deviations_and_errors_are_of_samples():
    """Divided by n - 1 everywhere: NumPy's default is n."""
    effects = np.array([[1.0, 2.0], [3.0, 2.0], [8.0, 2.0]])
    np.testing.assert_allclose(sample_deviation(effects), [np.sqrt((9 + 1 + 16) / 2), 0])
    assert standard_error(sample_deviation(effects), 3)[0] == pytest.approx(stats.sem(effects[:, 0]))
    np.testing.assert_allclose(standard_error([6.0, 1.0], [9, 4]), [2, .5])
    assert np.isnan(sample_deviation(effects[:1])).all() and means_of_units(effects).tolist() == [4, 2]


def test_units_are_ranked_by_their_mean():
    effects = np.array([[1.0, -2.0, 5.0], [3.0, 0.0, 5.0]])
    table = ranked_units(effects, {"layer": np.array([0, 0, 1]), "head": np.array([0, 1, 0])})
    assert list(table) == ["layer", "head", "mean", "standard deviation", "share above 0"]
    assert table["mean"].tolist() == [5, 2, -1] and table["share above 0"].tolist() == [1, 1, 0]
    assert (table["layer"].tolist() == [1, 0, 0]
            and table["standard deviation"][1] == pytest.approx(np.sqrt(2)))


def test_the_strongest_part_of_each_layer_is_by_size():
    means = pd.DataFrame({"layer": [0] * 4 + [1] * 4, "effect": [1, -9, 3, 0, 2, 2, 2, -2.0]})
    assert strongest_means(means, "effect", .5).tolist() == [6, 2]
    assert strongest_means(means, "effect", .01).tolist() == [9, 2]  # one unit at the least
    assert strongest_means(means, "effect", None).tolist() == [1, 2]


def test_random_orders_after_each_number_of_units():
    table = over_orders([[1.0, 2.0, 9.0], [3.0, 2.0, 9.0]], 2)
    assert table.index.tolist() == [1, 2] and table["mean"].tolist() == [2, 2]
    assert table["smallest"].tolist() == [1, 2] and table["largest"].tolist() == [3, 2]


def test_largest_and_median_of_deviations():
    table = largest_and_median(pd.DataFrame({"total": [1.0, 2.0, 9.0]}))
    assert table.loc["total"].tolist() == [9, 2]
