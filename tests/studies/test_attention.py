"""The numbers of one example of the attention study, recomputed from probabilities."""

import pytest

from attention_utils import get_odds_ratio, perform_intervention
from mediation.effects.odds import effect, log_odds
from mediation.results.attention_results import EFFECTS, SCALARS, STRINGS


def test_effects_of_one_example_by_hand(toy_model, stimulus):
    model = toy_model()
    intervention = stimulus(model)
    entry = perform_intervention(intervention, model)
    assert set(entry) == {*STRINGS, *SCALARS,
                          *(f"{kind}_{name}" for kind in EFFECTS
                            for name in ("odds_head", "effect_head", "effect_layer"))}
    (c1, c2), (a1, a2) = model.continuation_probabilities(intervention)
    assert entry["total_effect"] == pytest.approx((a2 / a1 - c2 / c1) / (c2 / c1))
    ratio = get_odds_ratio(intervention, model)
    assert entry["odds_alt"] / entry["odds_base"] == pytest.approx(ratio, rel=1e-12)
    direct = model.attention_intervention_experiment(intervention, "direct")
    direct_effect = effect(log_odds(direct[3][1], direct[2][1]), log_odds(c2, c1))
    assert entry["direct_effect_layer"][1] == pytest.approx(float(direct_effect))
    assert entry["candidate1"] == "w as h e re ." or entry["candidate1"].replace(" ", "") == "washere."
