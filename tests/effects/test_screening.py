"""What a screening may claim, and how far estimates agree."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from mediation.effects.screening import Screening, agreement, misses, strongest_in_any, upper_share


def test_the_strongest_in_any_prompt_in_turn():
    strength = np.array([[5.0, 1, 4, 3], [1, 9, 8, 2]])
    assert strongest_in_any(strength, 3).tolist() == [0, 1, 2]
    assert strongest_in_any(strength, 0).tolist() == []
    assert strongest_in_any(strength, 9).tolist() == [0, 1, 2, 3]


def test_the_upper_bound_is_clopper_and_pearsons():
    for missed, drawn in ((0, 64), (3, 200), (64, 64), (0, 1)):
        interval = stats.binomtest(missed, drawn, alternative="less").proportion_ci(0.95, method="exact")
        assert upper_share(missed, drawn) == pytest.approx(interval.high)
    assert upper_share(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59)) and upper_share(0, 0) == 1


def test_the_recall_holds_in_19_of_20_simulated_screenings():
    """Populations of 2,000 units left out, 12 of the top 50 among them."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(1000):
        missed = int((rng.permutation(2000)[:600] < 12).sum())
        held.append(Screening(600, missed, 2000, 50).recall <= 1 - 12 / 50)
    assert 0.95 <= np.mean(held) < 1


def test_few_draws_support_no_statement():
    weak, strong = Screening(64, 0, 16000, 50), Screening(64 * 612, 0, 16000, 50)
    assert weak.recall == 0 and weak.missed_a_prompt > 700
    assert strong.recall == pytest.approx(1 - (1 - 0.05 ** (1 / 39168)) * 16000 / 50)
    assert 0.97 < strong.recall < 0.98
    screenings = [Screening(5000, missed, 1000, 50) for missed in range(6)]
    assert all(a.recall >= b.recall for a, b in pairwise(screenings))


def test_misses_are_drawn_units_as_strong_as_the_top():
    effects = np.array([9, -8, 7, 1, 7.5, -6, 7])
    assert misses(effects, np.array([0, 1, 2, 3]), np.array([4, 5, 6]), 3).tolist() == [True, False, True]
    # fewer chosen than asked for
    assert misses(effects, np.array([0, 1]), np.array([4, 5]), 3).tolist() == [True, True]


def test_agreement():
    measures = agreement([1.0, 2, 4], [1.0, 2, 3])
    assert measures["spearman"] == pytest.approx(1) and measures["largest_difference"] == 1
    assert 0.9 < measures["pearson"] < 1
    assert agreement([1.0, 1], [1.0, 2])["pearson"] is None
