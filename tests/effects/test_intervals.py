"""Bootstrap intervals over clusters."""

import numpy as np
import pytest

from mediation.effects import intervals


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_the_interval_of_a_mean_is_that_of_cluster_means(generator):
    """Rows of one cluster are one draw: ten copies of every row change nothing."""
    effects = generator.normal(1, 2, (40, 3))
    clusters = [str(number) for number in range(40)]
    low, high = intervals.of_means(effects, clusters)
    error = effects.std(axis=0, ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(high - low, 2 * 1.96 * error, rtol=.15)
    assert (low < effects.mean(axis=0)).all() and (effects.mean(axis=0) < high).all()
    copies = intervals.of_means(np.repeat(effects, 10, axis=0), np.repeat(clusters, 10).tolist())
    np.testing.assert_allclose(copies, (low, high), rtol=1e-12)


def test_a_ratio_has_no_interval_where_its_denominator_may_be_zero(generator):
    clusters = [str(number) for number in range(30)]
    totals = generator.normal(5, 1, 30)
    low, high = intervals.of_ratio(totals[:, None] * [.5, 1], totals, clusters)
    assert low == pytest.approx([.5, 1]) and high == pytest.approx([.5, 1])
    around_0 = totals - totals.mean()
    assert np.isnan(intervals.of_ratio(totals[:, None], around_0, clusters)).all()
    assert np.isnan(intervals.of_means(totals[:1, None], clusters[:1])).all()
    assert np.isnan(intervals.of_ratio(totals[:1, None], totals[:1], clusters[:1])).all()
