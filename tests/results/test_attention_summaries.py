"""What a JSON of the attention study is worth: clusters, exact parts, a family of heads and layers."""

import numpy as np
import pandas as pd
import pytest

from mediation.effects.resampling import Resampling
from mediation.errors import InputError
from mediation.results.attention_results import EFFECTS, label_of, read_results
from mediation.results.attention_summaries import (
    log_effects,
    log_totals,
    shared_resampling,
    summarise_study,
    write_summaries,
)

OCCUPATIONS = ("developer", "designer", "nurse", "guard", "cook", "baker", "chief", "clerk")
LAYERS, HEADS = 2, 3


def entry(generator, context):
    """An example of 2 layers and 3 heads, as a JSON of 2020 has it: without odds under interventions."""
    base, total = generator.uniform(.1, 2), generator.normal(.3, .1)
    effects = {}
    for kind, size in zip(EFFECTS, (.2, .1)):
        effects |= {f"{kind}_effect_head": np.expm1(generator.normal(size, .1, (LAYERS, HEADS))).tolist(),
                    f"{kind}_effect_layer": np.expm1(generator.normal(size, .1, LAYERS)).tolist(),
                    f"{kind}_effect_model": float(np.expm1(generator.normal(size, .1)))}
    return {"base_string1": f"{context} she", "base_string2": f"{context} he", "candidate1": "a",
            "candidate2": "b", "odds_base": base, "odds_alt": base * np.exp(total),
            "total_effect": np.expm1(total), **effects}


@pytest.fixture
def results():
    """Twelve examples about eight pairs of occupations."""
    generator = np.random.default_rng(0)
    pairs = [(OCCUPATIONS[number % 8], OCCUPATIONS[(number + 1) % 8]) for number in range(12)]
    return [entry(generator, f"The {first} met the {second} because") for first, second in pairs]


def test_total_effects_are_their_parts_in_every_example(results):
    parts = summarise_study(results).decomposition
    np.testing.assert_allclose(parts.total, [np.log1p(each["total_effect"]) for each in results])
    np.testing.assert_allclose(parts.direct[:, 0],
                               [np.log1p(each["direct_effect_model"]) for each in results])
    np.testing.assert_allclose(parts.total[:, None], parts.direct + parts.indirect + parts.interaction,
                               atol=1e-12)


def test_pairs_of_occupations_are_drawn_not_examples(results):
    """The last four examples are about the pairs of the first four."""
    study = summarise_study(results)
    assert study.clusters == 8 and study.unnamed == 0
    weights = study.resampling.weights
    np.testing.assert_array_equal(weights[:, :4], weights[:, 8:])
    results[0]["base_string1"] = "Nobody came because she"
    study = summarise_study(results)
    assert study.clusters == 9 and study.unnamed == 1


def test_a_table_has_a_row_per_unit_and_kind_on_both_scales(results):
    study = summarise_study(results)
    heads, layers = study.table("heads"), study.table("layers")
    assert len(heads) == 3 * LAYERS * HEADS and len(layers) == 3 * (LAYERS + 1)
    assert list(heads)[:5] == ["group", "effect", "layer", "unit", "position"]
    assert list(heads["effect"].unique()) == ["indirect", "direct", "total_indirect"]
    of_head = np.array([each["indirect_effect_head"][1][2] for each in results])
    row = heads[(heads["effect"] == "indirect") & (heads["layer"] == 1) & (heads["unit"] == 2)].iloc[0]
    assert row["mean"] == pytest.approx(np.log1p(of_head).mean())
    assert row["effect_mean"] == pytest.approx(of_head.mean())
    low, high = study.resampling.of_means(of_head[:, None])
    assert (row["effect_low"], row["effect_high"]) == (pytest.approx(low[0]), pytest.approx(high[0]))
    assert row["family"] == "indirect effects of heads and layers: 9 units"
    model = layers[(layers["effect"] == "total_indirect") & (layers["layer"] == "all")].iloc[0]
    assert model["mean"] == pytest.approx(study.decomposition.total_indirect.mean())
    assert model["share"] == pytest.approx(model["mean"] / log_totals(results).mean())
    assert pd.isna(model["unit"]) and model["position"] == "context" and model["clusters"] == 8


def test_an_odds_ratio_of_nothing_is_told(results):
    results[3]["direct_effect_layer"][1] = -1.0
    with pytest.raises(InputError, match=r"^results\[3\]: a direct effect is -1, .*--dtype float64$"):
        summarise_study(results)


def test_several_files_share_their_draws(results):
    """An example is drawn as often in every file that has it, so that differences are paired."""
    first, second = shared_resampling([results[:8], results[4:]])
    np.testing.assert_array_equal(first.weights[:, 4:8], second.weights[:, :4])
    assert (first.clusters["occupations"], second.clusters["occupations"]) == (8, 8)
    assert isinstance(first, Resampling) and first.weights.shape == (2000, 8)


@pytest.mark.parametrize("name, statistic, label", [
    ("attention_intervention_gpt2_filtered_dev.json", None, "gpt2_filtered_dev"),
    ("attention_intervention_gpt2_unfiltered_test_4.json", None, "gpt2_unfiltered_test_4"),
    ("attention_intervention_bls_gpt2_random_filtered.json", "bls", "gpt2_random_filtered_bls"),
    ("of_mine.json", "bls", "of_mine")])
def test_tables_are_named_as_their_file(tmp_path, results, name, statistic, label):
    """The options that made a file are in its name, so that no table is written over another."""
    path = tmp_path / name
    assert label_of(path, statistic) == label
    content = {"stat": statistic} if statistic else {"split": "dev"}
    written = write_summaries(path, content, summarise_study(results))
    assert [path.name for path in written] == [f"{label}_heads_summary.csv", f"{label}_layers_summary.csv"]
    assert len(pd.read_csv(written[0])) == 3 * LAYERS * HEADS


def test_the_means_of_the_paper_with_their_intervals(shared):
    """GPT-2 small, WinoBias dev, filtered: each lies in its interval, each of its parts is above 0."""
    path = shared / "published" / "winobias_data" / "attention_intervention_gpt2_filtered_dev.json"
    content = read_results(path)
    study = summarise_study(content["results"])
    assert study.clusters == 87 and study.unnamed == 0
    of_model = study.table("layers").query("layer == 'all'").set_index("effect")
    for kind, mean in (("indirect", .182031), ("direct", .079363)):
        row = of_model.loc[kind]
        assert row["effect_mean"] == pytest.approx(mean, abs=1e-6)
        assert 0 < row["effect_low"] < row["effect_mean"] < row["effect_high"]
    strong = study.table("heads", ["indirect"]).query("p <= .05")
    assert {(5, 8), (5, 10), (4, 6), (5, 9), (6, 0)} <= set(zip(strong["layer"], strong["unit"]))


def test_log_effects_of_the_model_stand_behind_the_layers(results):
    units = log_effects(results, "layers", "indirect")
    assert list(units.layer) == [0, 1, "all"]
    np.testing.assert_allclose(np.expm1(units.effects[:, -1]),
                               [each["indirect_effect_model"] for each in results])
