"""Estimands and correlations: pure functions, checked by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mediation.effects.estimands import (
    bias_correlations,
    estimand,
    means_of_professions,
    prompt_effects,
    split_total_effects,
    strong_examples,
    total_effects,
)
from mediation.errors import InputError
from mediation.reports import report


def prompts(words, templates, effects):
    return pd.DataFrame({"word": words, "template": templates}), effects


def test_pooled_mean_and_mean_of_template_means():
    table, effects = prompts(["a", "b", "a"], [1, 1, 2], [1.0, 3.0, 10.0])
    assert estimand("", "", "", table, effects).value == pytest.approx(14 / 3)
    assert estimand("", "", "", table, effects,
                               by_template=True).value == pytest.approx((2 + 10) / 2)
    assert estimand("", "", "", table, effects).median == 3


def test_the_interval_is_of_professions_not_of_prompts():
    """Ten copies of each profession's prompt say no more than one."""
    rng = np.random.default_rng(0)
    per_word = rng.normal(5, 2, 40)
    once = estimand("", "", "", *prompts(range(40), [1] * 40, per_word))
    tenfold = estimand("", "", "",
                                  *prompts(list(range(40)) * 10, [1] * 400, np.tile(per_word, 10)))
    assert once.interval == pytest.approx(tenfold.interval)
    low, high = once.interval
    assert low < 5 < high and high - low == pytest.approx(4 * 2 / np.sqrt(40), rel=0.3)


def test_no_prompts_and_one_profession_have_no_interval():
    empty = estimand("", "", "", *prompts([], [], []))
    assert np.isnan(empty.value) and empty.prompts == 0
    one = estimand("", "", "", *prompts(["a", "a"], [1, 2], [1.0, 2.0]))
    assert one.value == 1.5 and np.isnan(one.interval).all()


def test_orientation_of_total_effects(rated):
    table = pd.DataFrame([
        {"word": "nurse", "template": 1, "candidate1_base_prob": .1, "candidate2_base_prob": .2,
         "candidate1_alt1_prob": .3, "candidate2_alt1_prob": .1,
         "candidate1_alt2_prob": .1, "candidate2_alt2_prob": .4},
        {"word": "nosuchword", "template": 1, "candidate1_base_prob": .1, "candidate2_base_prob": .2,
         "candidate1_alt1_prob": .3,
         "candidate2_alt1_prob": .1, "candidate1_alt2_prob": .1, "candidate2_alt2_prob": .4}])
    effects, unrated = prompt_effects(table, rated)
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

    once, often = (bias_correlations(table(templates))[0] for templates in (1, 17))
    expected = stats.pearsonr([rated[word].bias for word in words], list(effects.values()))
    assert (often.prompts, often.professions) == (30 * 17, 30)
    for one in (once, often):
        assert (one.r, one.r_of_means, one.p) == pytest.approx((*expected[:1], *expected), rel=1e-9)
    text = report.describe_correlations([often])
    assert "30 professions)" in text and "takes the professions for independent" in text


def test_filter():
    indices, aligned, threshold = strong_examples([0.5, 1.0, 1.1, 1.2, 1.3, 2.0, 0.9], 0.25)
    assert (indices, aligned) == ([3, 4, 5], 4) and threshold == pytest.approx(1.175)
    with pytest.raises(InputError, match="--do-filter False"):
        strong_examples([0.5, 1.0], 0.25)


def test_a_profession_counts_with_the_mean_over_its_prompts():
    table = pd.DataFrame({"word": ["a", "b", "a"], "bias": [1.0, 2, 1], "definitional": False,
                          "effect": [1.0, 5, 2]})
    assert means_of_professions(table, "effect")["effect"].tolist() == [1.5, 5]


def test_intervals_are_of_the_rows_that_are_given_whatever_their_index(rated):
    rng, words = np.random.default_rng(0), [word for word in rated if not rated[word].is_definitional][:20]
    columns = [f"candidate{number}_{prompt}_prob" for prompt in ("base", "alt1", "alt2") for number in (1, 2)]
    table, _ = prompt_effects(pd.DataFrame(
        [{"word": word, "template": number, **dict(zip(columns, rng.uniform(.05, .4, 6)))}
         for word in words for number in range(4)]), rated)
    shuffled = table.iloc[::2]
    for of in (total_effects, split_total_effects):
        for one, again in zip(of(shuffled), of(shuffled.reset_index(drop=True))):
            np.testing.assert_array_equal([one.value, *one.interval], [again.value, *again.interval])
            assert np.isnan(one.interval[0]) or one.interval[0] <= one.value <= one.interval[1]


def test_the_difference_of_groups_is_drawn_together(rated):
    """Its interval is not that of two means that know nothing of each other: templates move both."""
    words = [word for word in rated if not rated[word].is_definitional]
    female, male = ([word for word in words if (rated[word].bias < 0) == wanted and rated[word].bias][:12]
                    for wanted in (True, False))
    rng = np.random.default_rng(1)
    rows = []
    for number in range(8):
        shift = rng.normal(0, 2)  # of a template, in both groups alike
        for word in female + male:
            man, woman = np.exp(shift + rng.normal(0, .1)), np.exp(-shift + rng.normal(0, .1))
            if word in male:
                man, woman = 1.0, np.exp(-(shift + rng.normal(0, .1)))
            rows.append({"word": word, "template": number, "candidate1_base_prob": .1,
                         "candidate2_base_prob": .1, "candidate1_alt1_prob": .1 * man / (1 + man),
                         "candidate2_alt1_prob": .1 / (1 + man),
                         "candidate1_alt2_prob": .1 * woman / (1 + woman),
                         "candidate2_alt2_prob": .1 / (1 + woman)})
    table, _ = prompt_effects(pd.DataFrame(rows), rated)
    found = {each.name.strip(): each for each in total_effects(table)}
    low, high = found["female- less male-biased, log"].interval
    assert high - low < .5 and low < 0.2 and high > -0.2
    whole = found["total effect, log"].interval
    assert whole[1] - whole[0] > 1
