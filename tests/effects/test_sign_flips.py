"""Tests of families of units: against plain Python, against scipy, and their levels under the null."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from mediation.effects.sign_flips import (
    LEAST_CLUSTERS,
    benjamini_yekutieli,
    cluster_means,
    holm,
    sign_flips,
)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def step_down(means):
    """Westfall and Young's step-down p values over all sign flips, in plain Python."""
    clusters, units = means.shape

    def statistics(signs):
        return [abs(sum(sign * row[unit] for sign, row in zip(signs, means)))
                / sum(row[unit] ** 2 for row in means) ** .5 for unit in range(units)]

    observed = statistics([1] * clusters)
    order = sorted(range(units), key=lambda unit: -observed[unit])
    flips = [statistics(signs) for signs in product([1, -1], repeat=clusters)]
    alone = [sum(flip[unit] >= observed[unit] - 1e-9 for flip in flips) / len(flips) for unit in range(units)]
    adjusted, before = [0.0] * units, 0.0
    for place, unit in enumerate(order):
        weaker = order[place:]
        count = sum(max(flip[other] for other in weaker) >= observed[unit] - 1e-9 for flip in flips)
        before = adjusted[unit] = max(before, count / len(flips))
    return alone, adjusted


def test_all_flips_give_what_plain_python_gives(generator):
    means = generator.normal(.5, 1, (8, 5))
    found = sign_flips(means)
    alone, adjusted = step_down(means)
    assert found.all_of_them and found.flips == 2 ** 7
    np.testing.assert_allclose(found.p, alone, rtol=1e-12)
    np.testing.assert_allclose(found.family_wise, adjusted, rtol=1e-12)


def test_a_unit_alone_has_the_p_of_scipy(generator):
    means = generator.normal(.6, 1, (12, 1))
    by_scipy = stats.permutation_test((means[:, 0],), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flips(means).p[0] == pytest.approx(by_scipy.pvalue, rel=1e-9)


def test_drawn_flips_are_near_all_of_them(generator):
    means = generator.normal(.4, 1, (14, 6))
    every, drawn = sign_flips(means, 2 ** 13), sign_flips(means, 8000)
    assert every.all_of_them and not drawn.all_of_them
    np.testing.assert_allclose(drawn.family_wise, every.family_wise, atol=.02)


def test_rates_are_those_of_benjamini_and_hochberg_and_holm_is_written_out(generator):
    means = generator.normal(.5, 1, (30, 7))
    found = sign_flips(means, 20_000)
    np.testing.assert_allclose(found.rate, stats.false_discovery_control(found.p))
    p = np.array([.01, .04, np.nan, .03, .5])
    np.testing.assert_allclose(holm(p), [.04, .09, np.nan, .09, .5])
    assert (holm(found.p) >= found.family_wise - .01).all()  # the maximum statistic uses the dependence


def test_too_few_clusters_and_too_few_flips_give_no_p_and_say_so(generator):
    few = sign_flips(generator.normal(5, .1, (4, 3)))
    assert np.isnan(few.p).all() and np.isnan(few.family_wise).all()
    assert "too few clusters" in few.describe() and few.smallest == 1 / 8
    for clusters in (LEAST_CLUSTERS - 1, LEAST_CLUSTERS):
        tested = sign_flips(generator.normal(5, .1, (clusters, 3)))
        assert np.isnan(tested.p).all() == (clusters < LEAST_CLUSTERS)
    means = generator.normal(1, 1, (20, 500))
    coarse, fine = sign_flips(means, 2000), sign_flips(means)
    assert np.isnan(coarse.rate).all() and "needs 10,000 flips: q is not given" in coarse.describe()
    assert np.isfinite(coarse.family_wise).all()
    assert fine.flips == 10_000 and np.isfinite(fine.rate).all() and "not given" not in fine.describe()


def test_what_is_0_in_every_cluster_is_not_in_the_family(generator):
    means = np.column_stack([generator.normal(1, 1, 10), np.zeros(10)])
    found = sign_flips(means)
    assert found.tested == 1 and np.isnan(found.p[1]) and np.isfinite(found.family_wise[0])
    nothing = sign_flips(np.zeros((10, 2)))
    assert nothing.tested == 0 and np.isnan(nothing.p).all() and "family of 0 units" in nothing.describe()


def test_cluster_means_count_every_cluster_once():
    values = np.array([[1.0], [3.0], [10.0]])
    np.testing.assert_array_equal(cluster_means(values, np.array([7, 7, 2])), [[10], [2]])


def test_no_more_than_one_study_in_twenty_calls_a_unit_where_there_is_nothing_and_effects_are_found(
        generator):
    """Units that depend on each other: the family-wise error keeps its level, the rate its own, and both
    find effects that are there."""
    studies, clusters, units, real = 400, 40, 30, 5
    wrong, share_wrong, power, power_of_rate = [], [], [], []
    for _ in range(studies):
        common = generator.normal(size=(clusters, 1))
        means = generator.normal(size=(clusters, units)) + common
        wrong.append((sign_flips(means, 1000, seed=1).family_wise <= .05).any())
        means[:, :real] += 1.2
        found = sign_flips(means, 1000, seed=1)
        power.append((found.family_wise[:real] <= .05).mean())
        called = found.rate <= .05
        share_wrong.append(called[real:].sum() / max(1, called.sum()))
        power_of_rate.append(called[:real].mean())
    assert np.mean(wrong) <= .05 + 2 * np.sqrt(.05 * .95 / studies)
    assert np.mean(share_wrong) <= .06
    assert np.mean(power) > .8 and np.mean(power_of_rate) > np.mean(power)


def test_rates_under_any_dependence_are_written_out():
    """Benjamini and Yekutieli's: those of Benjamini and Hochberg times 1 + 1/2 + 1/3 + 1/4."""
    p = np.array([.01, .04, np.nan, .03, .5])
    factor = 1 + 1 / 2 + 1 / 3 + 1 / 4
    np.testing.assert_allclose(benjamini_yekutieli(p), np.minimum(1, factor * np.array(
        [.04, .16 / 3, np.nan, .16 / 3, .5])))
