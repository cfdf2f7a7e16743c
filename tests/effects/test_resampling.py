"""Bootstrap over clusters: against plain Python, and how often an interval holds the truth."""

import numpy as np
import pytest

from mediation.effects.resampling import Resampling, interval


def texts(numbers):
    return [str(number) for number in numbers]


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_the_interval_of_a_mean_is_that_of_cluster_means(generator):
    """Rows of one cluster are one draw: ten copies of every row change nothing."""
    effects = generator.normal(1, 2, (40, 3))
    low, high = Resampling({"stimuli": texts(range(40))}).of_means(effects)
    error = effects.std(axis=0, ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(high - low, 2 * 1.96 * error, rtol=.15)
    assert (low < effects.mean(axis=0)).all() and (effects.mean(axis=0) < high).all()
    copied = Resampling({"stimuli": texts(np.repeat(range(40), 10))})
    np.testing.assert_allclose(copied.of_means(np.repeat(effects, 10, axis=0)), (low, high), rtol=1e-12)


def test_a_ratio_has_no_interval_where_its_denominator_may_be_zero(generator):
    totals = generator.normal(5, 1, 30)
    resampling = Resampling({"stimuli": texts(range(30))})
    low, high = resampling.of_ratio(totals[:, None] * [.5, 1], totals)
    assert low == pytest.approx([.5, 1]) and high == pytest.approx([.5, 1])
    assert np.isnan(resampling.of_ratio(totals[:, None], totals - totals.mean())).all()
    one = Resampling({"stimuli": ["only"]})
    assert np.isnan(one.of_means(totals[:1, None])).all()
    assert np.isnan(one.of_ratio(totals[:1, None], totals[:1])).all()


def test_two_way_draws_are_the_product_of_the_draws_of_both_factors(generator):
    """Written out in plain Python, from the same drawn counts."""
    words, templates = np.repeat(range(5), 3), np.tile(range(3), 5)
    values = generator.normal(size=15)
    resampling = Resampling({"professions": texts(words), "templates": texts(templates)}, draws=50, seed=3)
    again = np.random.default_rng(3)
    of_words = again.multinomial(5, [.2] * 5, 50)
    of_templates = again.multinomial(3, [1 / 3] * 3, 50)
    expected = []
    for draw in range(50):
        above = below = 0.0
        for word, template, value in zip(words, templates, values):
            weight = int(of_words[draw][word]) * int(of_templates[draw][template])
            above, below = above + weight * value, below + weight
        expected.append(above / below)
    np.testing.assert_allclose(resampling.means(values[:, None])[:, 0], expected, rtol=1e-12)
    low, high = resampling.of_means(values[:, None])
    assert (low[0], high[0]) == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])))


def test_a_factor_with_one_level_is_not_drawn(generator):
    values = generator.normal(size=(8, 2))
    words = texts(range(8))
    alone = Resampling({"professions": words})
    crossed = Resampling({"professions": words, "templates": ["only"] * 8})
    np.testing.assert_array_equal(alone.of_means(values), crossed.of_means(values))


def test_a_group_has_the_draws_of_the_whole(generator):
    """A difference between a group and all is of one draw."""
    values, group = generator.normal(size=(20, 1)), np.arange(20) < 8
    resampling = Resampling({"stimuli": texts(range(20))}, draws=200)
    of_group = resampling.of(group)
    np.testing.assert_array_equal(of_group.weights, resampling.weights[:, group])
    assert of_group.clusters == {"stimuli": 8}
    few = resampling.of(np.arange(20) < 2)  # some draws have neither of the two
    means = few.means(values[:2])
    assert np.isnan(means).any() and np.isfinite(interval(means)).all()
    np.testing.assert_allclose(interval(means), few.of_means(values[:2]))


def coverage(values, factors, truth=0.0):
    """Share of studies (columns) whose interval holds the truth."""
    low, high = Resampling({name: texts(of_rows) for name, of_rows in factors.items()}).of_means(values)
    return ((low <= truth) & (truth <= high)).mean()


@pytest.mark.parametrize("clusters", [40, 150])
def test_one_way_intervals_hold_the_truth_in_95_of_100_studies_and_intervals_over_rows_do_not(
        generator, clusters):
    studies, size = 2000, 5
    of_clusters = generator.normal(size=(clusters, studies))
    values = np.repeat(of_clusters, size, axis=0) + generator.normal(size=(clusters * size, studies))
    assert .93 <= coverage(values, {"stimuli": np.repeat(range(clusters), size)}) <= .97
    assert coverage(values, {"rows": range(clusters * size)}) < .85


@pytest.mark.parametrize("words,templates", [(40, 40), (150, 40)])
def test_two_way_intervals_hold_the_truth_in_95_of_100_studies_and_one_way_ones_do_not(
        generator, words, templates):
    studies = 600
    values = (generator.normal(size=(words, 1, studies)) + generator.normal(size=(1, templates, studies))
              + generator.normal(size=(words, templates, studies))).reshape(-1, studies)
    factors = {"professions": np.repeat(range(words), templates),
               "templates": np.tile(range(templates), words)}
    assert .93 <= coverage(values, factors) <= .97
    assert coverage(values, {"professions": factors["professions"]}) < .9
