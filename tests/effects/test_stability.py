"""Ranks, top-k sets, halves and held-out means of maps whose answers are known."""

import numpy as np
import pytest

from mediation.effects.resampling import Resampling
from mediation.effects.stability import halves, held_out, ranks, strongest


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def stimuli(number):
    return Resampling({"stimuli": [str(index) for index in range(number)]}, draws=400)


def test_ranks_are_by_size_and_equal_ones_share_theirs():
    found = ranks(np.array([0.0, -3, 2, 0]), np.array([[0.0, -3, 2, 0], [0, -1, 2, 0]]), top=1)
    assert found.rank.tolist() == [3, 1, 2, 3]
    assert found.in_top.tolist() == [0, .5, .5, 0]
    assert found.jaccard == .5 and found.top == 1
    assert found.low[3] == found.high[3] == 3


def test_strong_units_have_sure_ranks_and_noise_has_none(generator):
    values = generator.normal(size=(60, 12))
    values[:, 4] += 5
    values[:, 7] -= 3
    found = ranks(values.mean(axis=0), stimuli(60).means(values), top=2)
    assert (found.rank[4], found.low[4], found.high[4]) == (1, 1, 1)
    assert (found.rank[7], found.low[7], found.high[7]) == (2, 2, 2)
    assert found.jaccard == 1 and found.in_top[[4, 7]].tolist() == [1, 1]
    others = np.delete(np.arange(12), [4, 7])
    assert (found.high[others] - found.low[others]).min() >= 3


def test_halves_of_a_real_map_agree_and_those_of_noise_do_not(generator):
    noise = generator.normal(size=(40, 50))
    of_noise = halves(noise, stimuli(40), top=5)
    assert abs(of_noise.correlation) < 1 and of_noise.overlap < .4
    assert of_noise.selected > .2 and abs(of_noise.held_out) < .1 and of_noise.optimism > .2
    real = noise + generator.normal(0, 3, 50)
    of_real = halves(real, stimuli(40), top=5)
    assert of_real.correlation > .95 and of_real.overlap > .6
    assert of_real.optimism < of_noise.optimism
    too_few = halves(noise[:3], stimuli(3))
    assert np.isnan(too_few.correlation) and too_few.clusters == 3


def test_held_out_means_are_of_the_units_that_the_first_set_chose(generator):
    first, second = generator.normal(size=(30, 6)), generator.normal(size=(20, 6))
    first[:, 2] -= 4
    second[:, 2] -= 4
    found = held_out(first, second, stimuli(20), top=1)
    assert found.units.tolist() == [2]
    assert found.selected == pytest.approx(-first[:, 2].mean())
    assert found.held_out == pytest.approx(-second[:, 2].mean())
    assert found.low < found.held_out < found.high
    assert strongest(np.array([1.0, -1, 3]), 2).tolist() == [2, 0]
