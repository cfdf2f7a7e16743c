"""Models side by side, as a user compares them."""

import json

import pandas as pd
import pytest

from mediation.stimuli.stimulus_files import Stimulus
from tests.helpers import PROJECT, assert_refused, no_report, write_stimuli

PUBLISHED = PROJECT / "experiment_data" / "published" / "attention_intervention_gpt2_filtered_dev.json"


@pytest.fixture
def published(tmp_path):
    """The published figures of GPT-2 small, with texts of our own: the file names its examples by number."""
    content = json.loads(PUBLISHED.read_text())
    for entry in content["results"]:
        entry |= {"base_string1": f"The clerk saw {entry['example']} and she", "base_string2": "and he",
                  "candidate1": "ran.", "candidate2": "fell."}
    path = tmp_path / PUBLISHED.name
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def compare(run_script, tmp_path):
    """compare(paths ...) -> (output, model_comparison.csv)."""
    def run(*arguments):
        out_dir = tmp_path / "compared"
        code, output, errors = run_script("compare_models.py", *arguments, "-out_dir", out_dir)
        assert code == 0, errors
        assert (out_dir / "model_comparison.pdf").read_bytes().startswith(b"%PDF")
        assert (out_dir / "model_comparison.md").read_text() in output
        assert "<table" in (out_dir / "model_comparison.html").read_text()
        return output, pd.read_csv(out_dir / "model_comparison.csv", keep_default_na=False, na_values=[""])
    return run


def test_the_attention_study_of_two_models_and_a_control(compare, run_script, toy_checkpoint, data, tmp_path):
    for kind, options in (("gpt2", []), ("llama", []), ("gpt2", ["--randomize"])):
        code, _, errors = run_script("attention_intervention_winobias.py --do-filter False -model",
                                     toy_checkpoint(kind), "-out_dir", tmp_path, *options)
        assert code == 0, errors
    output, table = compare(tmp_path, "--sizes", "toy-gpt2=2", "toy-llama=1")
    assert set(table["study"]) == {"WinoBias dev, unfiltered"}
    means = table[(table["what"] == "mean") & (table["scale"] == "odds ratio - 1")]
    assert list(means["model"].unique()) == ["toy-llama", "toy-gpt2", "toy-gpt2_random"]
    for row in means.itertuples():
        path = tmp_path / "winobias_data" / f"attention_intervention_{row.model}_unfiltered_dev.json"
        key = {"total effect": "mean_total_effect", "indirect, model": "mean_model_indirect_effect",
               "direct, model": "mean_model_direct_effect"}[row.quantity]
        assert row.value == pytest.approx(json.loads(path.read_text())[key])
        assert row.low <= row.value <= row.high
    trend = table[table["what"] == "trend"]
    assert set(trend["model"]) == {"toy-llama, toy-gpt2"} and set(trend["examples"]) == {3}
    assert "Trend per doubling" in output and "toy-gpt2_random (control)" in output
    assert compare(tmp_path / "winobias_data", "--sizes", "toy-gpt2=2", "toy-llama=1")[1].equals(table)


def test_the_published_figures_against_others_of_which_some_examples_are_the_same(
        compare, published, tmp_path):
    """The second file has the last 60 examples, in another order, with the first ones' total effects doubled
    on the log scale."""
    content = json.loads(published.read_text())
    entries = content["results"][27:][::-1]
    for entry in entries:
        ratio = (entry["total_effect"] + 1) ** 2
        entry |= {"odds_alt": entry["odds_base"] * ratio, "total_effect": ratio - 1}
    name = "attention_intervention_gpt2-medium_filtered_dev.json"
    (tmp_path / name).write_text(json.dumps(content | {"model_version": "gpt2-medium", "results": entries}))
    output, table = compare(published, tmp_path / name)
    assert "87 examples in all, 60 in all of gpt2, gpt2-medium; 27 are not common" in output
    assert "unfiltered files (--do-filter False) have all" in output
    chosen = table[(table["quantity"] == "total effect") & (table["scale"] == "log odds ratio")]
    common = chosen[chosen["what"] == "mean, common"].set_index("model")["value"]
    difference = chosen[chosen["what"] == "difference"].iloc[0]
    assert difference["value"] == pytest.approx(common["gpt2"]) == pytest.approx(common["gpt2-medium"] / 2)
    overlap = table[table["what"] == "overlap"].iloc[0]
    assert (overlap["quantity"], overlap["value"]) == ("strongest 10 of heads, indirect", 1)
    trend = chosen[chosen["what"] == "trend"].iloc[0]
    told = f"Over gpt2, gpt2-medium the mean total effect changes by **{trend['value']:.3f}** per doubling"
    assert f"{told} of the parameters." in output and "nan" not in output  # one cluster has no interval


def test_professions_of_two_models_by_group(compare, run_script, toy_checkpoint, tmp_path):
    for kind in ("gpt2", "llama"):
        code, _, errors = run_script("run_profession_neuron_experiments.py --total_effects_only "
                                     "-template_indices 1 13 --professions nurse captain teacher doctor maid",
                                     "-model", toy_checkpoint(kind), "-out_dir", tmp_path)
        assert code == 0, errors
    (folder,) = tmp_path.glob("results/*")
    output, table = compare(folder)
    assert "Means by group" in output and "per step in the order given, over toy-gpt2, toy-llama" in output
    assert set(table["study"]) == {"professions"}
    assert set(table["group"]) == {"all", "female-biased", "male-biased"}
    whole = table[(table["what"] == "mean") & (table["group"] == "all")]
    assert set(whole["examples"]) == {10} and set(whole["clusters"]) == {5}


def test_stimuli_of_ones_own_with_their_mediators(compare, run_script, toy_checkpoint, tmp_path):
    stimuli = write_stimuli(tmp_path, [
        Stimulus(str(number), f"The {{}} {verb} that", (word, "man"), ("she", "he"),
                 "heard" if number % 2 else "thought")
        for number, (word, verb) in enumerate((word, verb) for word in ("nurse", "captain", "teacher")
                                              for verb in ("said", "wanted"))])
    for kind in ("gpt2", "llama"):
        with no_report():
            code, _, errors = run_script("mediate.py", stimuli, "-model", toy_checkpoint(kind), "-out_dir",
                                         tmp_path / "mine", "--mediators", "layers,neurons")
        assert code == 0, errors
    output, table = compare(tmp_path / "mine" / "total_effects_toy-gpt2.csv", tmp_path / "mine" /
                            "total_effects_toy-llama.csv")
    assert {"heard - the others", "thought - the others"} <= {
        line.split(" | ")[0].split(", ")[1] for line in output.splitlines() if " - the others" in line}
    assert {"total effect", "indirect, model", "direct, model"} <= set(table["quantity"])
    overlap = table[table["what"] == "overlap"]
    assert list(overlap["quantity"]) == ["strongest 10 of neurons, indirect"]
    assert set(overlap["scale"]) == {"share of units"} and overlap["low"].notna().all()


def test_what_cannot_be_compared_is_said_in_a_line(run_script, published, tmp_path):
    def run(*arguments):
        return run_script("compare_models.py", *arguments, "-out_dir", tmp_path)

    assert_refused(run(published), "only gpt2", "name the results of two models")
    assert_refused(run(tmp_path / "nowhere"), "nowhere is not there")
    other = tmp_path / "other"
    other.mkdir()
    assert_refused(run(other), "holds no results", "run_profession_neuron_experiments.py")
    (other / published.name).write_text(published.read_text())
    assert_refused(run(published, other), "two results of gpt2")
    (tmp_path / "notes.txt").write_text("no results")
    assert_refused(run(tmp_path / "notes.txt"), "no file of results")
    assert_refused(run(published, "--sizes", "gpt2:124"), "is not NAME=MILLIONS")
    totals = tmp_path / "total_effects_gpt2.csv"
    totals.write_text("id,total_effect\n1,.5\n")
    assert_refused(run(totals), "column 'group' is missing")
