"""Effects and their summaries: pure functions, checked by hand and against NumPy and pandas."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from mediation.effects import statistics
from mediation.effects.odds import effect, gender_contrast, log_odds, odds_ratio
from mediation.effects.statistics import strong_examples
from mediation.errors import InputError
from mediation.reports import report

probability = st.floats(1e-30, 1)


@given(probability, probability, probability, probability)
def test_effects_are_odds_ratios_minus_one(he, she, he_base, she_base):
    intervened, base = log_odds(he, she), log_odds(he_base, she_base)
    ratio = (he / she) / (he_base / she_base)
    assert odds_ratio(intervened, base) == pytest.approx(ratio, rel=1e-9)
    assert effect(intervened, base) == pytest.approx(ratio - 1, rel=1e-9, abs=1e-12)
    assert effect(base, base) == 0


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(-5, 5))
def test_the_contrast_does_not_see_what_man_and_woman_have_in_common(man, woman, common):
    contrast = pytest.approx(gender_contrast(man, woman), abs=1e-12)
    assert gender_contrast(man + common, woman + common) == contrast
    assert gender_contrast(man, woman) == -gender_contrast(woman, man)


@given(arrays(float, st.tuples(st.integers(2, 20), st.integers(1, 5)), elements=st.floats(-1e6, 1e6)))
def test_moments_that_come_one_by_one(values):
    moments = statistics.Moments()
    for row in values:
        moments.add(row)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(moments.deviation, values.std(0, ddof=1), rtol=1e-6, atol=1e-6)


def test_the_deviation_of_one_array_is_not_a_number():
    moments = statistics.Moments()
    moments.add(np.ones(3))
    assert np.isnan(moments.deviation).all()


def prompts(words, templates, effects):
    return pd.DataFrame({"word": words, "template": templates}), effects


def test_pooled_mean_and_mean_of_template_means():
    table, effects = prompts(["a", "b", "a"], [1, 1, 2], [1.0, 3.0, 10.0])
    assert statistics.estimand("", "", "", table, effects).value == pytest.approx(14 / 3)
    assert statistics.estimand("", "", "", table, effects,
                               by_template=True).value == pytest.approx((2 + 10) / 2)
    assert statistics.estimand("", "", "", table, effects).median == 3


def test_the_interval_is_of_professions_not_of_prompts():
    """Ten copies of each profession's prompt say no more than one."""
    rng = np.random.default_rng(0)
    per_word = rng.normal(5, 2, 40)
    once = statistics.estimand("", "", "", *prompts(range(40), [1] * 40, per_word))
    tenfold = statistics.estimand("", "", "",
                                  *prompts(list(range(40)) * 10, [1] * 400, np.tile(per_word, 10)))
    assert once.interval == pytest.approx(tenfold.interval)
    low, high = once.interval
    assert low < 5 < high and high - low == pytest.approx(4 * 2 / np.sqrt(40), rel=0.3)


def test_no_prompts_and_one_profession_have_no_interval():
    empty = statistics.estimand("", "", "", *prompts([], [], []))
    assert np.isnan(empty.value) and empty.prompts == 0
    one = statistics.estimand("", "", "", *prompts(["a", "a"], [1, 2], [1.0, 2.0]))
    assert one.value == 1.5 and np.isnan(one.interval).all()


def test_orientation_of_total_effects(rated):
    table = pd.DataFrame([
        {"word": "nurse", "template": 1, "candidate1_base_prob": .1, "candidate2_base_prob": .2,
         "candidate1_alt1_prob": .3, "candidate2_alt1_prob": .1,
         "candidate1_alt2_prob": .1, "candidate2_alt2_prob": .4},
        {"word": "nosuchword", "template": 1, "candidate1_base_prob": .1, "candidate2_base_prob": .2,
         "candidate1_alt1_prob": .3,
         "candidate2_alt1_prob": .1, "candidate1_alt2_prob": .1, "candidate2_alt2_prob": .4}])
    effects, unrated = statistics.prompt_effects(table, rated)
    assert unrated == ["nosuchword"] and len(effects) == 1
    assert effects["he_effect"][0] == pytest.approx((.3 / .1) / (.1 / .2) - 1)  # toward man: odds of he
    assert effects["she_effect"][0] == pytest.approx((.4 / .1) / (.2 / .1) - 1)  # toward woman: odds of she
    assert effects["log_she_effect"][0] == pytest.approx(np.log(4 / 2))


def test_the_p_value_is_of_professions_not_of_prompts(rated):
    """Templates that repeat what a profession says make no correlation surer."""
    rng = np.random.default_rng(0)
    words = [word for word in rated if not rated[word].is_definitional][:30]
    effects = {word: rng.normal() for word in words}

    def table(templates):
        rows = [{"word": word, "template": number, "definitional": False, "bias": rated[word].bias,
                 "log_she_effect": effects[word], "log_he_effect": -effects[word]}
                for word in words for number in range(templates)]
        return pd.DataFrame(rows)

    once, often = (statistics.bias_correlations(table(templates))[0] for templates in (1, 17))
    expected = stats.pearsonr([rated[word].bias for word in words], list(effects.values()))
    assert (often.prompts, often.professions) == (30 * 17, 30)
    for one in (once, often):
        assert (one.r, one.r_of_means, one.p) == pytest.approx((*expected[:1], *expected), rel=1e-9)
    text = report.describe_correlations([often])
    assert "30 professions)" in text and "takes the professions for independent" in text


def test_layer_profile_takes_at_least_one_neuron():
    table = pd.DataFrame({"layer_direct_mean": [0.0] * 30, "odds_ratio_indirect_mean": np.arange(30.0),
                          "odds_ratio_indirect_std": np.ones(30)})
    assert statistics.top_of_layer(table, 0.025)["neurons"].tolist() == [1]
    assert statistics.top_of_layer(table, 0.1)["odds_ratio_indirect_mean"].tolist() == [28.0]


def test_neuron_aggregate_by_hand(rated):
    aggregate = statistics.NeuronAggregate()
    aggregate.check_units("x", np.array([0]), np.array([0]))
    base = 0.5
    for word, indirect, direct in (("nurse", "man_indirect", "man_direct"),
                                   ("doctor", "woman_indirect", "woman_direct")):
        aggregate.add(rated[word], {indirect: (base, np.array([0.7])), direct: (base, np.array([0.2]))})
    row = aggregate.effects().iloc[0]
    toward_he, toward_she = np.exp(0.2), np.exp(-0.2)
    assert row["odds_ratio_indirect_mean"] == pytest.approx((toward_he + toward_she) / 2)
    assert row["odds_ratio_direct_mean"] == pytest.approx((np.exp(-0.3) + np.exp(0.3)) / 2)
    total = row["odds_ratio_indirect_mean"] + row["odds_ratio_direct_mean"] - 1
    assert row["total_causal_effect_mean"] == pytest.approx(total)
    assert aggregate.contrast.count == 0 and (aggregate.prompts, aggregate.female_biased) == (2, 1)


def test_filter():
    indices, aligned, threshold = strong_examples([0.5, 1.0, 1.1, 1.2, 1.3, 2.0, 0.9], 0.25)
    assert (indices, aligned) == ([3, 4, 5], 4) and threshold == pytest.approx(1.175)
    with pytest.raises(InputError, match="--do-filter False"):
        strong_examples([0.5, 1.0], 0.25)


# what reports and figures show


def test_deviations_and_errors_are_of_samples():
    """Divided by n - 1 everywhere: NumPy's default is n."""
    effects = np.array([[1.0, 2.0], [3.0, 2.0], [8.0, 2.0]])
    np.testing.assert_allclose(statistics.sample_deviation(effects), [np.sqrt((9 + 1 + 16) / 2), 0])
    np.testing.assert_allclose(statistics.errors_of_units(effects), [np.sqrt(13 / 3), 0])
    np.testing.assert_allclose(statistics.errors_of_units(effects)[0], stats.sem(effects[:, 0]))
    np.testing.assert_allclose(statistics.standard_error([6.0, 1.0], [9, 4]), [2, .5])
    assert np.isnan(statistics.errors_of_units(effects[:1])).all()


def test_means_of_units_and_their_sum():
    effects = np.array([[1.0, -2.0], [3.0, 0.0]])
    assert statistics.means_of_units(effects).tolist() == [2, -1] and statistics.sum_of_means(effects) == 1


def test_units_are_ranked_by_their_mean():
    effects = np.array([[1.0, -2.0, 5.0], [3.0, 0.0, 5.0]])
    table = statistics.ranked_units(effects, {"layer": np.array([0, 0, 1]), "head": np.array([0, 1, 0])})
    assert list(table) == ["layer", "head", "mean", "standard deviation", "share above 0"]
    assert table["mean"].tolist() == [5, 2, -1] and table["share above 0"].tolist() == [1, 1, 0]
    assert (table["layer"].tolist() == [1, 0, 0]
            and table["standard deviation"][1] == pytest.approx(np.sqrt(2)))


def test_the_strongest_part_of_each_layer_is_by_size():
    means = pd.DataFrame({"layer": [0] * 4 + [1] * 4, "effect": [1, -9, 3, 0, 2, 2, 2, -2.0]})
    assert statistics.strongest_means(means, "effect", .5).tolist() == [6, 2]
    assert statistics.strongest_means(means, "effect", .01).tolist() == [9, 2]  # one unit at the least
    assert statistics.strongest_means(means, "effect", None).tolist() == [1, 2]


def test_groups_have_rows_of_their_own_where_there_are_several():
    effects = pd.Series([1.0, 3.0, -.5])
    table = statistics.summary_of_groups(pd.Series(["a", "a", "b"]), effects).set_index("group")
    assert list(table.index) == ["all", "a", "b"] and table.loc["a", "comparisons"] == 2
    assert table.loc["a", "mean of logs"] == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert table.loc["all", "median"] == 1 and table.loc["all", "mean"] == pytest.approx(3.5 / 3)
    assert table.loc["all", "share above 0"] == pytest.approx(2 / 3)
    assert list(statistics.summary_of_groups(pd.Series(["a"] * 3), effects)["group"]) == ["all"]
    assert list(statistics.summary_of_groups(pd.Series(["", "a", ""]), effects)["group"]) == ["all", "a"]


def test_a_profession_counts_with_the_mean_over_its_prompts():
    table = pd.DataFrame({"word": ["a", "b", "a"], "bias": [1.0, 2, 1], "definitional": False,
                          "effect": [1.0, 5, 2]})
    assert statistics.means_of_professions(table, "effect")["effect"].tolist() == [1.5, 5]


def test_random_orders_after_each_number_of_units():
    table = statistics.over_orders([[1.0, 2.0, 9.0], [3.0, 2.0, 9.0]], 2)
    assert table.index.tolist() == [1, 2] and table["mean"].tolist() == [2, 2]
    assert table["smallest"].tolist() == [1, 2] and table["largest"].tolist() == [3, 2]


def test_largest_and_median_of_deviations():
    table = statistics.largest_and_median(pd.DataFrame({"total": [1.0, 2.0, 9.0]}))
    assert table.loc["total"].tolist() == [9, 2]
