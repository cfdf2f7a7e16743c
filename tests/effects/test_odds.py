"""Odds ratios and effects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediation.effects.odds import effect, gender_contrast, log_odds, odds_ratio

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
