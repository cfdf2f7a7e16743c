"""The total effect taken apart: identities, and a linear case whose parts are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mediation.effects.decomposition import Decomposition, proportions
from mediation.effects.resampling import Resampling

LOG_ODDS = st.floats(-30, 30)


@given(arrays(float, 6, elements=LOG_ODDS), arrays(float, (6, 4), elements=LOG_ODDS),
       arrays(float, (6, 4), elements=LOG_ODDS))
def test_the_parts_add_up_to_the_total_in_every_row(total, direct, indirect):
    of = Decomposition(total, direct, indirect)
    for parts in (of.direct + of.indirect + of.interaction, of.direct + of.total_indirect):
        np.testing.assert_allclose(parts, np.repeat(total[:, None], 4, axis=1), atol=1e-12)


def test_a_linear_model_has_the_product_of_its_coefficients_and_no_interaction():
    """m = a x, y = b m + c x: indirect a b, direct c (Baron and Kenny 1986), x from 0 to each of N values."""
    x, a, b, c = np.linspace(1, 2, 12), 1.5, .8, .3
    of = Decomposition((a * b + c) * x, (c * x)[:, None], (a * b * x)[:, None])
    np.testing.assert_allclose(of.interaction, 0, atol=1e-15)
    found = proportions(of, Resampling({"stimuli": [str(number) for number in range(12)]}))
    share = a * b / (a * b + c)
    for shares, (low, high) in ((found.total_indirect, found.total_indirect_interval),
                                (found.indirect, found.indirect_interval)):
        assert (shares[0], low[0], high[0]) == pytest.approx((share,) * 3)


def test_proportions_are_ratios_of_means_with_intervals_from_the_same_draws():
    generator = np.random.default_rng(1)
    total = generator.normal(3, 1, 25)
    of = Decomposition(total, generator.normal(1, .2, (25, 2)), generator.normal(.5, .2, (25, 2)))
    resampling = Resampling({"stimuli": [str(number) for number in range(25)]}, seed=2)
    found = proportions(of, resampling)
    np.testing.assert_allclose(found.indirect, of.indirect.mean(axis=0) / total.mean())
    draws = (resampling.weights @ of.total_indirect) / (resampling.weights @ total)[:, None]
    np.testing.assert_allclose(found.total_indirect_interval, np.percentile(draws, [2.5, 97.5], axis=0))
    none = proportions(Decomposition(total - total.mean(), of.direct, of.indirect), resampling)
    assert np.isnan(none.indirect_interval).all()
