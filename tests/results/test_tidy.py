"""The tidy table: what the writers wrote and what was published reads as the same effects; bad input ends in
one line."""

import json

import numpy as np
import pandas as pd
import pytest

from mediation.effects.odds import effect, log_odds
from mediation.errors import InputError
from mediation.results import attention_results, mediation_tables, neuron_tables
from mediation.results.mediation_tables import Row, write_effects
from mediation.results.tables import table_writer
from mediation.results.tidy import COLUMNS, side_by_side, tidy_table

LAYERS, NEURONS = 2, 3
WORDS = ("nurse", "captain")


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def write_neuron_table(path, probabilities, **more):
    """A table of the profession study as its script writes it; `probabilities` {word: [units, 2]}."""
    layer, neuron = (index.ravel() for index in np.indices((LAYERS, NEURONS)))
    with table_writer(path) as append:
        for word, values in probabilities.items():
            base = [word, f"The {word} said that", "The man said that", "The woman said that",
                    "['Ġhe']", "['Ġshe']", .1, .2, .3, .1, .1, .4]
            append({**dict(zip(neuron_tables.BASE_COLUMNS, base)), "candidate1_prob": values[:, 0],
                    "candidate2_prob": values[:, 1], "layer": layer, "neuron": neuron, **more})
    return path


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("kind, alternative", [("man_indirect", "The man said that"),
                                               ("woman_direct", "The woman said that")])
def test_a_neuron_table_reads_as_written(tmp_path, generator, ending, kind, alternative):
    written = {word: generator.uniform(.01, .5, (LAYERS * NEURONS, 2)) for word in WORDS}
    path = write_neuron_table(tmp_path / f"The_X_said_that_{kind}_m.{ending}", written)
    pieces = list(neuron_tables.pieces_in(tmp_path, "m"))
    assert [piece.cluster for piece in pieces] == list(WORDS)
    for piece, (word, values) in zip(pieces, written.items()):
        np.testing.assert_array_equal(piece.log_odds, log_odds(*values.T))  # he over she
        np.testing.assert_allclose(piece.effects, values[:, 0] / values[:, 1] / (.1 / .2) - 1)
        assert (piece.kind, piece.template, piece.method) == (kind, "The {} said that", "exact")
        assert piece.comparison == f"The {word} said that | {alternative}"
        assert list(zip(piece.layer, piece.unit)) == list(np.ndindex(LAYERS, NEURONS))
    assert path.exists()


def test_the_order_of_candidates_does_not_matter(tmp_path, generator):
    path = write_neuron_table(tmp_path / "t.csv",
                              {"nurse": generator.uniform(.01, .5, (LAYERS * NEURONS, 2))})
    (expected,) = neuron_tables.read_pieces(path, "man_indirect")
    table = pd.read_csv(path, index_col=0)
    other = {"candidate1": "candidate2", "candidate2": "candidate1"}
    names = {name: other[name[:10]] + name[10:] for name in table if name[:10] in other}
    table.rename(columns=names)[table.columns].to_csv(path)
    (piece,) = neuron_tables.read_pieces(path, "man_indirect")
    assert piece.log_odds_base == expected.log_odds_base == pytest.approx(np.log(.1 / .2))
    np.testing.assert_array_equal(piece.log_odds, expected.log_odds)


def test_rows_in_any_order_and_methods_stay_with_their_neurons(tmp_path, generator):
    methods = np.array(["exact", "gradient", "exact", "gradient", "gradient", "exact"])
    path = write_neuron_table(tmp_path / "t.csv",
                              {word: generator.uniform(.01, .5, (6, 2)) for word in WORDS}, method=methods)
    expected = list(neuron_tables.read_pieces(path, "man_direct"))
    pd.read_csv(path, index_col=0).sample(frac=1, random_state=1).reset_index(drop=True).to_csv(path)
    shuffled = {piece.cluster: piece for piece in neuron_tables.read_pieces(path, "man_direct")}
    for piece in expected:
        np.testing.assert_array_equal(piece.log_odds, shuffled[piece.cluster].log_odds)
        assert shuffled[piece.cluster].method.tolist() == methods.tolist()


def test_the_study_of_2020_without_a_manifest(golden):
    """Its tables are one row per word, layer and neuron of the tidy table."""
    folder = golden / "neuron_intervention"
    pieces = list(neuron_tables.pieces_in(folder, "gpt2-toy"))
    tables = neuron_tables.find_tables(folder, "gpt2-toy", neuron_tables.INTERVENTIONS)
    rows = {path: pd.read_csv(path, index_col=0) for path in tables}
    assert len(pieces) == sum(table["word"].nunique() for table in rows.values())
    assert sum(len(piece.log_odds) for piece in pieces) == sum(map(len, rows.values()))
    path, kind = next(iter(tables.items()))
    first = rows[path][rows[path]["word"] == pieces[0].cluster].sort_values(["layer", "neuron"])
    assert pieces[0].kind == kind
    np.testing.assert_allclose(pieces[0].effects, (first["candidate1_prob"] / first["candidate2_prob"])
                               / (first["candidate1_base_prob"] / first["candidate2_base_prob"]) - 1)


@pytest.fixture
def result():
    """A JSON of the attention study with two examples, 2 layers and 3 heads."""
    generator, entries = np.random.default_rng(1), []
    for number in range(2):
        base = generator.uniform(.1, 2)
        entry = {"base_string1": f"x{number} she", "base_string2": f"x{number} he",
                 "candidate1": "a", "candidate2": "b",
                 "candidate1_base_prob": .1, "candidate2_base_prob": .1 * base, "odds_base": base,
                 "candidate1_alt_prob": .1, "candidate2_alt_prob": .2, "odds_alt": 2.0,
                 "total_effect": 2 / base - 1}
        for kind in attention_results.EFFECTS:
            odds = generator.uniform(.5, 2, (2, 3)) * base
            entry |= {f"{kind}_odds_head": odds.tolist(), f"{kind}_effect_head": (odds / base - 1).tolist(),
                      f"{kind}_effect_layer": generator.uniform(-.5, 1, 2).tolist(),
                      f"{kind}_effect_model": .7}
        entries.append(entry)
    return {"model_version": "m", "do_filter": False, "split": "dev",
            "num_examples_loaded": 2, "num_examples_analyzed": 2,
            **attention_results.means(entries), "results": entries}


def read_attention(tmp_path, content):
    path = tmp_path / "attention.json"
    path.write_text(json.dumps(content))
    return list(attention_results.read_pieces(path))


@pytest.mark.parametrize("odds", [True, False], ids=["with odds", "effects alone"])
def test_a_json_reads_as_written(tmp_path, result, odds):
    for entry in result["results"]:
        for kind in attention_results.EFFECTS if not odds else ():
            del entry[f"{kind}_odds_head"]
    pieces = read_attention(tmp_path, result)
    assert len(pieces) == 2 * 2 * 2 and {piece.method for piece in pieces} == {"exact"}
    for piece in pieces:
        entry = result["results"][int(piece.cluster)]
        assert piece.log_odds_base == np.log(entry["odds_base"])
        np.testing.assert_allclose(effect(piece.log_odds, piece.log_odds_base), piece.stored,
                                   rtol=1e-12, atol=1e-15)
        assert piece.layer[-1] == ("all" if piece.unit is None else 1)
    units = side_by_side(pieces, "heads", "direct")
    np.testing.assert_array_equal([units.grid(row) for row in units.effects],
                                  [entry["direct_effect_head"] for entry in result["results"]])
    layers = attention_results.layer_effects(result["results"], "indirect")
    assert layers.layer.tolist() == [0, 1]
    np.testing.assert_array_equal(layers.effects,
                                  [entry["indirect_effect_layer"] for entry in result["results"]])


def test_examples_about_the_same_occupations_are_one_cluster(tmp_path, result):
    first, second = result["results"]
    first["base_string1"] = "The developer argued with the designer because she"
    second["base_string1"] = "The designer told the developer that her"
    assert {piece.cluster for piece in read_attention(tmp_path, result)} == {"designer, developer"}
    second["base_string1"] = "Nobody argued because she"
    assert {piece.cluster for piece in read_attention(tmp_path, result)} == {"designer, developer", "1"}


@pytest.mark.parametrize("method, exact, expected", [
    ("gradient", None, ["gradient"] * 6),
    ("screen", [[True, False, False]] * 2, ["exact", *["gradient"] * 2] * 2)])
def test_heads_that_were_estimated_say_so(tmp_path, result, method, exact, expected):
    """Layers and the whole model are run by every method."""
    result["method"] = method
    for entry in result["results"]:
        entry |= {f"{kind}_exact_head": exact for kind in attention_results.EFFECTS} if exact else {}
    table = tidy_table(read_attention(tmp_path, result))
    assert table[table["mediator"] == "heads"]["method"].tolist() == expected * 4
    assert set(table[table["mediator"] == "layers"]["method"]) == {"exact"}


@pytest.mark.parametrize("damage, message", [
    (lambda entry: entry.update(odds_base=0.0), r"results\[1\]: odds_base is not above 0"),
    (lambda entry: entry.update(indirect_effect_model=-1.5), r"results\[1\]: indirect effects are below -1"),
    (lambda entry: entry["direct_odds_head"].pop(), r"results\[1\]: direct_odds_head is not layers x heads"),
    (lambda entry: entry.update(indirect_odds_head=[["x"] * 3] * 2),
     "indirect_odds_head is not a table of numbers"),
    (lambda entry: entry.update(direct_exact_head="no"), "direct_exact_head is not")])
def test_a_json_with_other_odds_is_told_in_one_line(tmp_path, result, damage, message):
    damage(result["results"][1])
    with pytest.raises(InputError, match=message) as error:
        read_attention(tmp_path, result)
    assert "\n" not in str(error.value)


def test_published_files(shared):
    """Of heads, layers and models; those that lack odds have the base odds and effects to compute them
    from."""
    without_odds = 0
    for path in attention_results.find_results(shared / "published"):
        results = attention_results.read_results(path)["results"]
        without_odds += "indirect_odds_head" not in results[0]
        table = tidy_table(attention_results.pieces_of(results))
        layers, heads = np.shape(results[0]["indirect_effect_head"])
        assert len(table) == len(results) * 2 * (layers * heads + layers + 1) and list(table) == list(COLUMNS)
        assert np.isfinite(table["log_odds"]).all()
        effects = np.expm1(table["log_odds"] - table["log_odds_base"])
        for kind in attention_results.EFFECTS:
            rows = effects[(table["mediator"] == "heads") & (table["effect"] == kind)]
            np.testing.assert_allclose(rows, np.ravel([entry[f"{kind}_effect_head"] for entry in results]),
                                       rtol=1e-5, atol=1e-6)  # 2020 had odds in float32
    assert without_odds == 15


HEADS = {"layer": np.repeat([0, 1], 2), "head": np.tile([0, 1], 2)}
ALL_LAYERS = {"layer": np.array(["0", "1", "all"])}


def own_rows(generator, units, exact=None, places=None):
    """Rows of comparisons; the first unit has no effect."""
    rows, base = [], -.4
    count = len(units["layer"]) * len(places or [0])
    for name, group, alternative in (("1", "NA", "man"), ("1", "NA", "woman"), ("null", "", "man")):
        c1 = generator.uniform(.1, .5, count)
        probabilities = {kind: np.stack([c1, c1 * np.exp(base + change)], axis=1) for kind, change in
                         (("indirect", np.r_[0, generator.normal(0, .1, count - 1)]),
                          ("direct", np.full(count, .3)))}
        rows.append(Row({"id": name, "group": group, "alternative": alternative}, group, units, places, base,
                        probabilities, {} if exact is None else dict.fromkeys(probabilities, exact)))
    return rows


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_positions_stand_beside_layers_and_units(tmp_path, generator, ending):
    """Units one after the other, their positions fastest; tokens such as "NA" stay words."""
    places = [(0, "The"), (1, " NA"), (2, "null")]
    rows, path = own_rows(generator, HEADS, places=places), tmp_path / f"m.{ending}"
    count, means = write_effects(path, rows, ["NA"])
    table = tidy_table(mediation_tables.read_pieces(path, "m"))
    assert count == 3 * 4 * 3 and len(table) == 2 * count
    assert list(table["position"][:3]) == ["0", "1", "2"] and set(table["unit"]) == {0, 1}
    chosen = table[(table["effect"] == "indirect") & (table["layer"] == 1) & (table["unit"] == 0)
                   & (table["position"] == "2")]
    expected = [row.probabilities["indirect"][(2 * 3) + 2] for row in rows]
    np.testing.assert_allclose(chosen["log_odds"], [np.log(c2 / c1) for c1, c2 in expected], rtol=1e-12)
    mean = means[(means["group"] == "all") & (means["layer"] == 1) & (means["head"] == 0)
                 & (means["position"] == 2)].iloc[0]
    assert mean["token"] == "null" and mean["comparisons"] == 3
    assert mean["indirect_log_effect_mean"] == pytest.approx(chosen["log_odds"].mean() + .4, rel=1e-9)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("units", [HEADS, ALL_LAYERS], ids=["heads", "layers"])
@pytest.mark.parametrize("chunk", [2, 7, 500], ids="chunks of {}".format)
def test_a_table_of_ones_own_reads_as_written(tmp_path, monkeypatch, generator, ending, units, chunk):
    count = len(units["layer"])
    rows, path = own_rows(generator, units, np.arange(count) != 1), tmp_path / f"m.{ending}"
    write_effects(path, rows, ["NA"])
    monkeypatch.setattr("mediation.results.tables.CHUNK", chunk)
    pieces = list(mediation_tables.read_pieces(path, "sets", "context"))
    assert [(piece.cluster, piece.group, piece.kind) for piece in pieces] == [
        (row.columns["id"], row.group, kind) for row in rows for kind in attention_results.EFFECTS]
    for piece, (row, kind) in zip(pieces, [(row, kind) for row in rows
                                           for kind in attention_results.EFFECTS]):
        under = log_odds(row.probabilities[kind][:, 1], row.probabilities[kind][:, 0])
        np.testing.assert_array_equal(piece.log_odds, under)
        np.testing.assert_array_equal(piece.effects, effect(under, row.base))
        assert piece.log_odds_base == pytest.approx(row.base, abs=1e-15)
        assert list(map(str, piece.layer)) == list(map(str, units["layer"]))
        assert piece.unit is None or piece.unit.tolist() == HEADS["head"].tolist()
        assert piece.method.tolist() == ["exact", "gradient", *["exact"] * (count - 2)]


@pytest.mark.parametrize("change, message", [
    (lambda table: table.drop(columns="direct_effect"), "column 'direct_effect' is missing"),
    (lambda table: table.assign(indirect_effect="x"),
     "row 1, column 'indirect_effect' is not an odds ratio minus 1"),
    (lambda table: table.assign(candidate1_direct_prob=1.5),
     "column 'candidate1_direct_prob' is not a probability"),
    (lambda table: table.assign(layer="some"), "column 'layer' is neither a number nor 'all'"),
    (lambda table: table.assign(head=.5), "column 'head' is not a number"),
    (lambda table: table.iloc[[*range(4), *range(8, 12), *range(4, 8)]].assign(alternative="man"),
     "rows of '1', 'man' do not stand together"),
    (lambda table: table.iloc[:-1], "'null', 'man' does not have the same units"),
    (lambda table: table.iloc[[0, 0, 1, 2]],
     "'1', 'man' does not have the same units as the others, once each"),
    (lambda table: table.iloc[:0], "no rows"),
    (lambda table: pd.concat([table.iloc[:, :5], table[["head"]].rename(columns={"head": "more"}),
                              table.iloc[:, 5:]], axis=1), "columns head, more stand between")])
def test_a_damaged_table_of_ones_own_is_told_in_one_line(tmp_path, generator, change, message):
    path = tmp_path / "heads_m.csv"
    write_effects(path, own_rows(generator, HEADS), ["NA"])
    change(pd.read_csv(path, index_col=0, keep_default_na=False)).to_csv(path)
    with pytest.raises(InputError, match=message) as error:
        list(mediation_tables.read_pieces(path, "heads"))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_pieces_of_several_formats_make_one_table(tmp_path, result, generator):
    write_neuron_table(tmp_path / "The_X_said_that_man_indirect_m.csv",
                       {word: generator.uniform(.01, .5, (LAYERS * NEURONS, 2)) for word in WORDS})
    write_effects(tmp_path / "layers.csv", own_rows(generator, ALL_LAYERS), ["NA"])
    pieces = [*neuron_tables.pieces_in(tmp_path, "m"), *read_attention(tmp_path, result),
              *mediation_tables.read_pieces(tmp_path / "layers.csv", "layers", "context")]
    table = tidy_table(pieces)
    assert list(table) == list(COLUMNS) and len(table) == sum(len(piece.log_odds) for piece in pieces)
    assert table["unit"].isna().sum() == 2 * 2 * 3 + 3 * 2 * 3
    assert set(table["layer"]) == {0, 1, "all"} and not table.drop(columns="unit").isna().any().any()
    assert list(tidy_table([])) == list(COLUMNS)


def test_effects_side_by_side_are_of_what_is_there(tmp_path, result):
    with pytest.raises(ValueError, match="no indirect effects of neurons"):
        side_by_side(read_attention(tmp_path, result), "neurons", "indirect")
