"""Models on the same examples: what is lined up, shared draws, the trend, the strongest units."""

import numpy as np
import pandas as pd
import pytest

from mediation.effects.model_comparison import (
    LOG,
    ODDS,
    SHARE,
    Comparison,
    Measured,
    UnitMap,
    check_comparable,
    of_studies,
    trend_places,
)
from mediation.effects.resampling import Resampling
from mediation.errors import InputError

SIZES = {"small": 1.0, "middle": 2.0, "large": 4.0}


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def measured(model, total, examples=None, **parts):
    names = [f"example {number}" for number in (range(len(total)) if examples is None else examples)]
    groups = parts.pop("groups", [""] * len(total))
    return Measured("a study", model, names, {"clusters": names}, groups, np.asarray(total, float), **parts)


def rows(table, **columns):
    for name, value in columns.items():
        table = table[table[name] == value]
    return table


def test_examples_are_lined_up_by_what_they_are_and_differences_are_of_those_that_both_have(generator):
    base = generator.normal(size=30)
    order = generator.permutation(30)[:20]
    table = Comparison([measured("small", base), measured("large", base[order] + 1, order)], SIZES).table()
    (difference,) = rows(table, what="difference", scale=LOG).itertuples()
    assert (difference.model, difference.other, difference.examples) == ("large", "small", 20)
    # the same draws: what both have in common is gone, the interval has no width
    assert [difference.value, difference.low, difference.high] == pytest.approx([1, 1, 1])
    means = rows(table, what="mean", scale=LOG).set_index("model")["value"]
    assert list(means[["small", "large"]]) == pytest.approx([base.mean(), base[order].mean() + 1])


def test_the_interval_of_a_difference_is_that_of_the_differences(generator):
    base = generator.normal(size=(25, 2))
    compared = Comparison([measured("small", base[:, 0]), measured("large", base[:, 1])], SIZES, seed=4)
    (difference,) = rows(compared.table(), what="difference", scale=LOG).itertuples()
    expected = Resampling({"clusters": [str(number) for number in range(25)]}, seed=4)
    # clusters are sorted by their names, and so are these
    order = np.argsort([f"example {number}" for number in range(25)])
    back = np.argsort([str(number) for number in range(25)])
    values = np.empty((25, 1))
    values[back] = (base[:, 1] - base[:, 0])[order][:, None]
    low, high = expected.of_means(values)
    assert (difference.low, difference.high) == pytest.approx((low[0], high[0]))


def test_a_trend_is_the_slope_over_the_logarithm_of_size_on_what_all_have_and_controls_are_not_in_it(
        generator):
    base = generator.normal([0, .5, 1, 0], 1, (40, 4))
    models = [measured("large", base[10:, 2], range(10, 40)), measured("small_random", base[:, 3]),
              measured("small", base[:30, 0], range(30)), measured("middle", base[:, 1])]
    places, step = trend_places([each.model for each in models], SIZES)
    compared = Comparison(models, places)
    assert list(compared.measured) == ["small", "middle", "large", "small_random"] and "doubling" in step
    table = compared.table()
    (trend,) = rows(table, what="trend", scale=LOG).itertuples()
    assert (trend.model, trend.examples, compared.common) == ("small, middle, large", 20, 20)
    means = base[10:30, :3].mean(axis=0)
    assert trend.value == pytest.approx(np.polyfit([0, 1, 2], means, 1)[0])
    assert list(rows(table, what="mean, common", scale=LOG)["value"]) == pytest.approx(list(means))
    pairs = {(row.model, row.other) for row in rows(table, what="difference").itertuples()}
    assert pairs == {("middle", "small"), ("large", "small"), ("large", "middle"), ("small", "small_random")}


def test_the_share_of_growing_draws_is_that_of_every_step():
    """Two models that are equal: no step grows in any draw, though the third is far above."""
    flat = np.linspace(-1, 1, 12)
    table = Comparison([measured(name, flat + shift) for name, shift in zip(SIZES, (0, 0, 5))],
                       trend_places(list(SIZES), SIZES)[0]).table()
    (trend,) = rows(table, what="trend", scale=LOG).itertuples()
    assert trend.low > 0 and trend.above_0 == 0


def test_without_any_known_size_models_stand_in_the_order_given():
    places, step = trend_places(["one", "two", "one_random"], SIZES)
    assert places == {"one": 0, "two": 1} and "in the order given" in step
    assert trend_places(["one", "large", "small"], SIZES)[0] == {"large": 2, "small": 0}


def test_proportions_are_ratios_of_means_and_have_no_interval_where_the_total_may_be_zero(generator):
    total = generator.normal(1, .1, 30)
    parts = {"indirect": .6 * total, "direct": .3 * total}
    around_0 = measured("large", total - total.mean(), **parts)
    table = Comparison([measured("small", total, **parts), around_0], SIZES).table()
    shares = rows(table, what="mean", scale=SHARE).set_index(["model", "quantity"])
    assert shares.loc[("small", "proportion mediated"), "value"] == pytest.approx(.7)
    assert shares.loc[("small", "indirect / total"), ["low", "high"]].tolist() == pytest.approx([.6, .6])
    assert shares.loc["large", ["low", "high"]].isna().all(axis=None)
    odds = rows(table, what="mean", scale=ODDS, quantity="total effect", model="small")["value"].item()
    assert odds == pytest.approx(np.expm1(total).mean())


def test_groups_of_one_model_are_compared_with_the_others(generator):
    total, groups = generator.normal(size=20), ["one"] * 8 + ["two"] * 12
    table = Comparison([measured("small", total, groups=groups)], {}).table()
    differences = rows(table, what="difference of groups", scale=LOG).set_index("group")["value"]
    assert differences["one"] == pytest.approx(total[:8].mean() - total[8:].mean()) == -differences["two"]
    assert list(rows(table, what="mean", scale=LOG)["examples"]) == [20, 8, 12]


def heads(values, layers, units):
    layer, unit = (index.ravel() for index in np.indices((layers, units)))
    return {"heads, indirect": UnitMap(values, pd.DataFrame({"layer": layer, "unit": unit}))}


def test_strongest_units_overlap_as_units_where_models_have_the_same_else_by_depth(generator):
    strong = generator.normal([5.0] * 10 + [0.0] * 30, .1, (20, 40))  # in the first layers
    moved = np.roll(strong, 10, axis=1)
    total = np.zeros(20)
    small = measured("small", total, maps=heads(strong, 4, 10))
    for other, layers, expected, scale in ((strong, 4, 1, "share of units"), (moved, 4, 0, "share of units"),
                                           (strong, 8, 1, "share, by quarter of the depth"),
                                           (moved, 8, 0, "share, by quarter of the depth")):
        large = measured("large", total, maps=heads(other, layers, 40 // layers))
        table = Comparison([small, large], SIZES).table()
        (overlap,) = rows(table, what="overlap").itertuples()
        assert (overlap.value, overlap.low, overlap.high) == (expected,) * 3 and overlap.scale == scale
        assert overlap.by_chance == .25 if layers == 4 else .7 < overlap.by_chance < .8
        correlations = rows(table, what="correlation of maps")
        assert len(correlations) == (layers == 4)
        assert layers != 4 or correlations["value"].item() == pytest.approx(
            np.corrcoef(strong.mean(axis=0), other.mean(axis=0))[0, 1])


def test_maps_of_means_alone_have_no_interval():
    values = np.arange(40.0)[None]
    models = [measured(name, [0.1, 0.2], maps=heads(values, 4, 10)) for name in ("small", "large")]
    table = rows(Comparison(models, SIZES).table(), other="small")
    maps = table[table["what"].isin(["overlap", "correlation of maps"])]
    assert list(maps["value"]) == pytest.approx([1, 1]) and maps[["low", "high"]].isna().all(axis=None)


def test_one_model_without_groups_and_a_model_twice_are_refused():
    one = measured("small", [1.0, 2.0])
    with pytest.raises(InputError, match="only small and no groups"):
        check_comparable(of_studies([one]))
    with pytest.raises(InputError, match="two results of small"):
        of_studies([one, one])
