"""mediate.py at positions and with other values, and `mediation.mediate` in Python."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mediation
from mediation.errors import InputError
from mediation.files.storage import RunFolder
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies import sites
from tests.helpers import (
    assert_refused,
    contents,
    interrupt_at,
    no_report,
    read_own_table,
    undrawn_figures,
    write_stimuli,
)

MINE = [Stimulus("1", "The {} went home because", ("nurse", "man"), ("he", "she"), "a"),
        Stimulus("2", "The {} went home because", ("captain", "woman"), ("he", "she"), "b"),
        Stimulus("3", "The {} said that", ("electrician", "man"), ("he", "she"), "b")]


MEAN = "mean"  # in the names of tables of means


@pytest.fixture
def command(toy_checkpoint, tmp_path):
    path = write_stimuli(tmp_path, MINE)
    return f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {tmp_path / 'out'}"


def test_every_position_from_file_to_figure(command, tmp_path, run_script):
    code, printed, error = run_script(f"{command} --mediators residuals,values --positions each")
    assert code == 0, error
    assert "residuals: 1 of 3 comparisons left out: prompts of different numbers of tokens" in printed
    folder = tmp_path / "out"
    table, means = (read_own_table(folder, f"residuals{name}_toy-llama.csv") for name in ("", f"_{MEAN}"))
    length = table["position"].nunique()
    assert len(table) == 2 * 4 * length and list(table["position"][:length]) == list(range(length))
    assert list(table["token"][:2]) == ["The", " nurse"]
    at_slot = means[(means["group"] == "all") & (means["position"] == 1)]
    assert set(at_slot["token"]) == {" nurse/ captain"} and set(at_slot["comparisons"]) == {2}
    assert (table.loc[table["position"] == 0, "indirect_effect"] == 0).all()
    # the word embedding at the slot is all that differs between the two prompts
    totals = read_own_table(folder, "total_effects_toy-llama.csv").set_index("id")["total_effect"]
    first = table[(table["layer"] == 0) & (table["position"] == 1)].set_index("id")
    np.testing.assert_allclose(first["indirect_effect"], totals[first.index], rtol=1e-4)
    values = read_own_table(folder, "values_each_toy-llama.csv")
    assert list(values.columns[4:8]) == ["layer", "head", "position", "token"]
    assert len(values) == 2 * 3 * 2 * length  # two groups of heads share keys and values
    for name in ("residuals_indirect", "residuals_direct", "values_each_indirect"):
        assert (folder / f"{name}_toy-llama.pdf").stat().st_size > 1000
    assert "| 0, position 1" in printed and "Which values (each position) carry it?" in printed
    before = contents(folder)
    with undrawn_figures():
        code, printed, error = run_script(f"{command} --mediators residuals,values --positions each")
    assert code == 0 and printed.count("kept:") == 2
    assert {name: content for name, content in before.items() if name.suffix == ".csv"} == {
        name: content for name, content in contents(folder).items() if name.suffix == ".csv"}


def test_positions_and_values_stand_beside_each_other_in_one_folder(command, tmp_path, run_script):
    folder = tmp_path / "out"
    command = f"{command} --mediators mlps --multi_token last"
    for options in ("", "--positions last", "--values zero", "--values mean"):
        with no_report():
            code, printed, error = run_script(f"{command} {options}")
        assert code == 0, error
    code, printed, error = run_script(f"{command} --values resample --seed 3")  # draws all
    assert code == 0, error
    names = {path.name for path in folder.glob("mlps*_toy-llama.csv")}
    kinds = ("", "_last", "_zero_ablation", "_mean_ablation", "_resample_ablation")
    assert names == {f"mlps{kind}{mean}_toy-llama.csv" for kind in kinds for mean in ("", f"_{MEAN}")}
    table = read_own_table(folder, "mlps_zero_ablation_toy-llama.csv")
    assert "ablation_effect" in table and "indirect_effect" not in table
    assert set(table["alternative"]) == {"zero"} and list(table["id"].unique()) == ["1", "2", "3"]
    assert "Which MLPs (zero ablation) carry it?" in printed and "| ablation effect [low, high] |" in printed
    drawn = read_own_table(folder, "mlps_resample_ablation_toy-llama.csv").drop_duplicates("id")
    assert all(row.id != row.alternative for row in drawn.itertuples())
    runs = RunFolder(folder).read()["runs"]
    assert all(run["finished"] for run in runs)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("method", ["gradient", "screen"])
def test_estimates_of_sites(command, tmp_path, run_script, method):
    options = f"--method {method} --screen_share 0.8 --screen_sample 5 --positions each"
    code, printed, error = run_script(f"{command} --mediators inner_neurons,attentions {options}")
    assert code == 0, error
    inner = read_own_table(tmp_path / "out", "inner_neurons_each_toy-llama.csv")
    attentions = read_own_table(tmp_path / "out", "attentions_toy-llama.csv")
    if method == "gradient":
        assert set(inner["indirect_method"]) == set(attentions["indirect_method"]) == {"gradient"}
        assert "estimates compared with" in printed
    else:
        assert set(inner["indirect_method"]) == {"exact", "gradient"}
        assert "indirect_method" not in attentions, "so few units are all run"
        assert "method screen: " in printed


@pytest.mark.usefixtures("unreported")
def test_an_interrupted_map_goes_on(command, tmp_path, run_script, monkeypatch):
    whole, options = tmp_path / "whole", "--mediators residuals,head_outputs"
    code, _, error = run_script(f"{command} {options}".replace(str(tmp_path / "out"), str(whole)))
    assert code == 0, error
    with monkeypatch.context() as patch:
        interrupt_at(patch, (sites.Sites, "compute"), 2)
        code, _, _ = run_script(f"{command} {options}")
        assert code == 130
    calls = interrupt_at(monkeypatch, (sites.Sites, "compute"), 0)
    code, _, error = run_script(f"{command} {options}")
    assert code == 0 and len(calls) == 4 - 1, error  # one comparison of four was done
    for name in ("residuals", "head_outputs", "residuals_mean", "head_outputs_mean"):
        file = f"{name}_toy-llama.csv"
        assert (tmp_path / "out" / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize("options, words", [
    ("--mediators heads --positions each", ["attention weights are replaced", "--positions"]),
    ("--mediators queries --positions last", ["cannot be changed at positions 'last'"]),
    ("--mediators residuals --values mean", ["--positions slot or last"]),
    ("--mediators layers --values zero", ["leave layers out"]),
    ("--positions middle", ["invalid choice: 'middle'"]),
    ("--mediators residuals --values nothing", ["invalid choice: 'nothing'"]),
    ("--mediators hidden", ["'hidden' is unknown"])])
def test_bad_input_ends_in_one_line_and_writes_nothing(command, tmp_path, run_script, options, words):
    assert_refused(run_script(f"{command} {options}"), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unreported")
def test_prompts_without_such_positions(toy_checkpoint, tmp_path, run_script):
    path = write_stimuli(tmp_path, MINE[2:])
    command = f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {tmp_path / 'out'}"
    assert_refused(run_script(f"{command} --mediators residuals"), "different numbers of tokens", "line 1")
    code, _, error = run_script(f"{command} --mediators residuals --positions last")
    assert code == 0, error


def test_masked_models_have_no_sites(toy_checkpoint, masked_model, tmp_path, run_script):
    masked_model("bert")
    path = write_stimuli(tmp_path, MINE[:1])
    command = f"mediate.py {path} -model {toy_checkpoint('bert')} -out_dir {tmp_path / 'out'}"
    assert_refused(run_script(f"{command} --mediators residuals"), "masked")


# in Python

RECORDS = [{"id": stimulus.id, "base": stimulus.base, "substitutes": list(stimulus.substitutes),
            "candidates": list(stimulus.candidates), "group": stimulus.group} for stimulus in MINE]


@pytest.mark.usefixtures("unreported")
def test_python_gives_what_the_script_writes(command, toy_model, tmp_path, run_script):
    code, _, error = run_script(f"{command} --mediators residuals,head_outputs")
    assert code == 0, error
    model = toy_model("llama")
    for stimuli in (tmp_path / "mine.jsonl", RECORDS, pd.DataFrame(RECORDS), MINE):
        result = mediation.mediate(model, stimuli, mediators=("residuals", "head_outputs"), progress=False)
        table = read_own_table(tmp_path / "out", "residuals_toy-llama.csv")
        ours = result.effects[(result.effects["mediator"] == "residuals")
                              & (result.effects["effect"] == "indirect")]
        np.testing.assert_allclose(np.expm1(ours["log_effect"]), table["indirect_effect"], atol=1e-9)
        assert list(ours["position"].astype(str).astype(int)) == list(table["position"])
    assert len(result.total_effects) == 3
    summary = result.summary()
    top = summary[(summary["mediator"] == "residuals") & (summary["effect"] == "indirect")].iloc[0]
    assert top["low"] <= top["mean"] <= top["high"] and top["clusters"] == 2
    # all of the effect at the slot before the first block; the share is a ratio of means
    first = summary.query("mediator == 'residuals' and effect == 'indirect' and layer == 0 "
                          "and position == '1'")
    assert first["share"].item() == pytest.approx(1, abs=1e-3)
    assert "residuals, indirect: strongest layer" in repr(result)


def record(identity, base, substitutes, candidates=("he", "she")):
    return {"id": identity, "base": base, "substitutes": list(substitutes), "candidates": list(candidates)}


def test_a_table_with_arrays_and_numbers_of_numpy(toy_model):
    table = pd.DataFrame([each | {"id": number, "substitutes": np.array(each["substitutes"])}
                          for number, each in enumerate(RECORDS)])
    result = mediation.mediate(toy_model("llama"), table, "residuals", progress=False)
    assert list(result.total_effects["id"]) == ["0", "1", "2"]


def test_a_model_is_named_by_a_path_too(toy_checkpoint):
    checkpoint = Path(toy_checkpoint("llama"))
    result = mediation.mediate(checkpoint, [record("a", "The {} said that", ("nurse", "man"))], "mlps",
                               multi_token="last", progress=False)
    assert result.written.name == checkpoint.name


def test_a_summary_is_over_all_stimuli_though_their_slots_stand_elsewhere(toy_model):
    records = [record("a", "The {} said that", ("nurse", "man")),
               record("b", "Then the {} said that", ("nurse", "woman"))]
    for positions in ("slot", "last"):
        result = mediation.mediate(toy_model("llama"), records, "mlps", positions, multi_token="last",
                                   progress=False)
        assert result.effects["position"].nunique() == 2
        summary = result.summary()
        assert (summary["clusters"] == 2).all() and set(summary["position"]) == {positions}
        assert len(summary) == 4 * 4  # both effects, and what is left of the total effect
        (means,) = (of_mediator.means for of_mediator in result.written.mediators().values())
        for kind, rows in summary[summary["effect"].isin(["indirect", "direct"])].groupby("effect"):
            own = means[means["group"] == "all"].set_index(means["layer"].astype(int))
            np.testing.assert_allclose(rows["mean"], own.loc[rows["layer"], f"{kind}_log_effect_mean"],
                                       atol=1e-9)


def test_at_a_position_that_some_prompts_have_a_share_is_of_their_total_effects(toy_model):
    records = [record("a", "The {} said that", ("nurse", "man")),
               record("b", "The {} went home because", ("captain", "woman"))]
    result = mediation.mediate(toy_model("llama"), records, "residuals", progress=False)
    totals = result.total_effects.set_index("id")["log_effect"]
    effects = result.effects.query("effect == 'indirect'").assign(
        position=lambda table: table["position"].astype(str))
    counts = {}
    for _, row in result.summary().query("effect == 'indirect'").iterrows():
        own = effects[(effects["layer"] == row["layer"]) & (effects["position"] == row["position"])]
        assert row["mean"] == pytest.approx(own["log_effect"].mean())
        assert row["share"] == pytest.approx(own["log_effect"].mean() / totals[own["cluster"]].mean())
        counts[row["position"]] = row["clusters"]
    assert counts.pop(max(counts, key=int)) == 1 and set(counts.values()) == {2}
    # the last token behind the last block has all of the longer prompt's effect, which is the larger one
    assert re.search(r"strongest layer 3 at position \d: .*, 1 of 2 stimuli have it", repr(result))


def test_words_like_numbers_and_ids_with_strokes_keep_their_total_effects(toy_model):
    numbers = [record("1", "In {} it was", ("12", "05")), record("2", "In {} it was", ("12", "07"))]
    strokes = [record("a | b", "The {} said that", ("nurse", "man")),
               record("a", "The {} said that", ("nurse", "b | man"))]
    for records in (numbers, strokes):
        result = mediation.mediate(toy_model("llama"), records, "residuals", "slot", multi_token="last",
                                   progress=False)
        assert list(result.total_effects["alternative"]) == [each["substitutes"][1] for each in records]
        held = result.summary().query("effect == 'direct' and layer == 3")  # nothing comes through the slot
        assert held["share"].item() == pytest.approx(1, abs=1e-3) and held["clusters"].item() == 2


def test_values_of_no_alternative_have_no_share(toy_model):
    """Also where an alternative is called as the other stimulus, or as the values."""
    for values, records in (("resample", [record("man", "The {} said that", ("nurse", "woman")),
                                          record("woman", "The {} said that", ("teacher", "man"))]),
                            ("zero", [record("a", "The {} said that", ("nurse", "zero"))])):
        result = mediation.mediate(toy_model("llama"), records, "mlps", values=values, multi_token="last",
                                   progress=False)
        assert result.summary()["share"].isna().all()


def test_a_page_and_pictures(toy_model, tmp_path):
    result = mediation.mediate(toy_model("llama"), RECORDS, ("residuals", "heads"), progress=False)
    page = result.report(tmp_path / "page.html").read_text()
    assert "Which residual streams carry it?" in page and "<title>Causal mediation analysis" in page
    assert result.picture("residuals").startswith("<?xml") and "svg" in result.picture("heads", "direct")
    with pytest.raises(InputError, match="is there already"):
        result.report(tmp_path / "page.html")
    with pytest.raises(InputError, match="has no picture of 'ablation'"):
        result.picture("residuals", "ablation")
    with pytest.raises(InputError, match="'mlps' is not in the result"):
        result.picture("mlps")


def test_what_was_computed_in_a_folder_is_kept(toy_model, tmp_path, monkeypatch):
    model = toy_model("llama")
    first = mediation.mediate(model, RECORDS, "residuals", out_dir=tmp_path / "mine", progress=False)
    calls = interrupt_at(monkeypatch, (sites.Sites, "compute"), 0)
    again = mediation.mediate(model, RECORDS, "residuals", out_dir=tmp_path / "mine", progress=False)
    assert not calls and first.effects.equals(again.effects)
    assert json.loads((tmp_path / "mine" / "manifest.json").read_text())["runs"]


@pytest.mark.parametrize("arguments, words", [
    ({"mediators": ()}, "none is named"), ({"method": "guess"}, "method 'guess' is unknown"),
    ({"multi_token": "first"}, "multi_token 'first' is unknown"),
    ({"mediators": "attention"}, "mediator 'attention' is unknown"),
    ({"mediators": "heads", "positions": "each"}, "attention weights"),
    ({"stimuli": []}, "there is none"), ({"stimuli": "nowhere.jsonl"}, "cannot be read"),
    ({"stimuli": [{"id": "1"}]}, "line 1: field 'base' is missing"),
    ({"stimuli": RECORDS[:1] * 2}, "line 2: field 'id'"), ({"stimuli": None}, "stimuli are NoneType"),
    ({"stimuli": RECORDS[0]}, "stimuli are dict"), ({"stimuli": [5]}, "line 1: a number, not an object"),
    ({"stimuli": [RECORDS[0] | {"base": {1}}]}, "field 'base' is of type set"),
    ({"seed": -1}, "seed -1 is not a whole number from 0 on"), ({"seed": 1.5}, "seed 1.5"),
    ({"batch_size": 0}, "batch_size 0 is not a whole number from 1 on"), ({"batch_size": -3}, "batch_size"),
    ({"screen_sample": 0}, "screen_sample"), ({"screen_top": 0}, "screen_top"),
    ({"screen_share": -1}, "screen_share -1 is not above 0"), ({"screen_share": 5}, "screen_share"),
    ({"mediators": "neurons", "method": "screen"}, "screen_share 0.1: the word embedding"),
    ({"model": "nowhere"}, "nowhere")])
def test_python_refuses_in_one_line(toy_model, monkeypatch, arguments, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # nobody is asked for nowhere
    arguments = {"model": toy_model("llama"), "stimuli": RECORDS, "progress": False} | arguments
    with pytest.raises(InputError, match=words) as error:
        mediation.mediate(**arguments)
    assert "\n" not in str(error.value)
