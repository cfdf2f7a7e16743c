"""What is checked of a sweep, and what that supports."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from mediation.model.fast_rows import FastRows
from mediation.studies.error_budget import (
    LIKELY,
    Check,
    draws,
    largest_share_off,
    units_to_check,
    within_budget,
)


def test_first_layers_and_largest_effects_are_always_checked():
    rng = np.random.default_rng(0)
    swept = np.log(rng.uniform(0.1, 0.2, (2, 1000)))
    swept[0, [400, 777]] += [3.0, -3.0]
    seen = set()
    for seed in range(50):
        drawn, likely = units_to_check(swept, np.arange(1000), 100, 4, seed)
        assert len(drawn) == 4 and {400, 777} <= {*drawn, *likely}
        assert sum(unit < 100 for unit in likely) >= LIKELY - sum(unit < 100 for unit in drawn)
        assert len({*drawn, *likely}) == len(drawn) + len(likely)
        seen |= {*drawn}
    assert len(seen) > 150  # others in every sweep


def test_only_what_was_run_is_checked():
    swept, among = np.zeros((2, 50)), np.array([3, 30, 31])
    drawn, likely = units_to_check(swept, among, 20, 64, 0)
    assert sorted(drawn) == [3, 30, 31] and not len(likely)


def test_the_share_is_clopper_and_pearsons():
    for number in (1, 59, 1000):
        interval = stats.binomtest(0, number, alternative="less").proportion_ci(0.95, method="exact")
        assert largest_share_off(number) == pytest.approx(interval.high)
    assert largest_share_off(0) == 1


def test_checks_add_up_and_survive_a_manifest():
    total = Check(1e-5, 4, 3) + Check(2e-5, 4, 2)
    assert total == Check(2e-5, 8,
                          5) == Check.from_entry(total.entry()) == Check.from_arrays(total.to_arrays())
    # a manifest of before
    assert Check.from_entry({"largest_deviation_from_full_passes": 1e-5}) == Check(1e-5, 0, 0)


def test_every_stimulus_of_a_sweep_is_drawn_from():
    drawn = sum(draws(17, 4, [0, seed, 0]) for seed in range(500))
    assert draws(17, 4, [0, 1, 2]).sum() == 4 and drawn.min() > 60  # 118 each, on average


def test_a_fast_sweep_that_is_repeated_does_not_touch_what_was_counted_before():
    model = SimpleNamespace(fast_rows=FastRows(48, 16, 16, 0, 7e-4), exactly=nullcontext)
    options = SimpleNamespace(dtype="float32", precision="fast", full_passes=False)

    def sweep():
        model.fast_rows.add(FastRows(48, 10, 16, 0, 9e-4))

    checks = iter([Check(0.1, 4, 2), Check(1e-6, 4, 2)])
    within_budget(model, sweep, lambda _: next(checks), options, "a sweep")
    assert model.fast_rows.exact >= 16 + 48 and model.fast_rows.repeated == 1
    assert model.fast_rows.sampled >= 16 and model.fast_rows.largest_deviation >= 7e-4
