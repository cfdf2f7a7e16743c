"""Studies by gradients and screening: tables, reports, stopping, whose file is whose."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mediation.mediators.neurons import INTERVENTION_TYPES
from mediation.results.neuron_tables import read_pieces
from mediation.studies import estimated_trees, trees
from mediation.studies.heads import Heads
from tests.helpers import assert_refused, contents, interrupt_at

RUN = "run_profession_neuron_experiments.py -template_indices 1 13 --professions nurse captain teacher doctor"
SCREEN = "--method screen --screen_share 0.625 --screen_sample 3 --screen_top 8"


def test_one_backward_pass_per_prompt_serves_all_types(run_script, toy_checkpoint, tmp_path, monkeypatch):
    taken, gradients = [], estimated_trees.neuron_gradients_of

    def count(model, interventions, prompt):
        taken.append((prompt, len(interventions)))
        return gradients(model, interventions, prompt)

    monkeypatch.setattr(estimated_trees, "neuron_gradients_of", count)
    assert run_script(f"{RUN} --method gradient", "-model", toy_checkpoint("gpt2"), "-out_dir",
                      tmp_path)[0] == 0
    assert sorted(taken) == [(0, 8), (1, 2), (2, 2)]


# what is kept on the way

@pytest.mark.parametrize("method", ["gradient", "screen"])
def test_a_disk_without_room_is_told_before_the_run(run_script, toy_checkpoint, tmp_path, monkeypatch,
                                                    method):
    command = [RUN, "--method", method, "--screen_share", 0.7, "-model", toy_checkpoint("llama"),
               "-out_dir", tmp_path / "out"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    code, _, error = run_script(*command)
    assert code == 2 and error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert re.search(r"take \S+ GB on the way, 1e-07 GB are free: ", error)


# tables

@pytest.fixture(scope="module")
def made(start_script, toy_checkpoint, tmp_path_factory):
    """{method: folder with the tables of the same study}, not to be changed."""
    folders = {}
    for method in ("--method exact", "--method gradient", SCREEN):
        out_dir = tmp_path_factory.mktemp("methods")
        assert start_script(f"{RUN} {method}", "-model", toy_checkpoint("llama"), "-out_dir",
                            out_dir).wait() == 0
        (folders[method.split()[1]],) = out_dir.glob("results/*")
    return folders


def tables(made, method):
    return {path.name: pd.read_csv(path, index_col=0) for path in sorted(made[method].glob("*.csv"))}


def log_odds_of(table):
    return np.log(table["candidate1_prob"] / table["candidate2_prob"])


def test_a_last_column_tells_estimates_from_exact_numbers(made):
    exact = tables(made, "exact")
    for method in ("gradient", "screen"):
        for name, table in tables(made, method).items():
            assert list(table.columns) == [*exact[name].columns, "method"]
            assert set(table["method"]) == ({"gradient"} if method == "gradient" else {"gradient", "exact"})
            units = ["word", "layer", "neuron"]
            assert (table[units] == exact[name][units]).all(axis=None)
            pd.testing.assert_frame_equal(table.iloc[:, 6:12], exact[name].iloc[:, 6:12], rtol=1e-4)
    settings = {method: json.loads((folder / "manifest.json").read_text())["runs"][0]["settings"]
                for method, folder in made.items()}
    assert "method" not in settings["exact"] and settings["gradient"]["method"] == "gradient"
    assert settings["screen"]["screen_share"] == 0.625 and settings["screen"]["screen_sample"] == 3


def test_exact_rows_of_a_screening_are_those_of_the_exact_run(made):
    exact = tables(made, "exact")
    for name, table in tables(made, "screen").items():
        run = table["method"] == "exact"
        # embedding, first block; the last layer cannot reach the output
        assert run[table["layer"].isin([0, 1, 3])].all()
        # and of layer 2 the 8 strongest and 3 drawn
        assert (run.groupby(table["word"]).sum() == 3 * 16 + 8 + 3).all()
        np.testing.assert_allclose(log_odds_of(table)[run], log_odds_of(exact[name])[run], atol=1e-5)
    deviations = [np.abs(log_odds_of(table) - log_odds_of(exact[name])).max()
                  for name, table in tables(made, "gradient").items()]
    assert max(deviations) > 1e-3  # estimates are no exact numbers


def test_the_last_layer_has_exactly_no_effect_to_first_order(made):
    for name, table in tables(made, "gradient").items():
        kind = next(kind for kind in INTERVENTION_TYPES if f"_{kind}_" in name)
        prompt = {"man_direct": "alt1", "woman_direct": "alt2"}.get(kind, "base")
        last = table[table["layer"] == 3]
        assert (last["candidate1_prob"] == last[f"candidate1_{prompt}_prob"]).all()
        assert (last["candidate2_prob"] == last[f"candidate2_{prompt}_prob"]).all()


def test_estimated_probabilities_are_probabilities(run_script, toy_checkpoint, tmp_path):
    assert run_script(f"{RUN} --method gradient --alpha 40", "-model", toy_checkpoint("llama"), "-out_dir",
                      tmp_path)[0] == 0
    largest = 0
    for path in tmp_path.glob("results/*/*.csv"):
        list(read_pieces(path, "man_indirect"))  # refuses what is no probability
        table = pd.read_csv(path)
        largest = max(largest, (table["candidate1_prob"] + table["candidate2_prob"]).max())
    assert largest == pytest.approx(1)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("method, words, finding", [
    ("gradient", "method gradient, first-order estimates", "These are first-order estimates"),
    ("screen", "method screen, the strongest neurons run", "the others are first-order estimates.")])
def test_analyses_say_which_method_made_the_numbers(run_script, made, tmp_path, method, words, finding):
    folder = shutil.copytree(made[method], tmp_path / "results")
    for script in ("compute_neuron_total_effect.py", "compute_and_save_neuron_agg_effect.py",
                   "compute_neuron_effect_per_layer.py"):
        code, output, errors = run_script(script, folder, *([] if "per_layer" in script else ["toy-llama"]))
        assert code == 0, errors
        # base probabilities only: always exact
        assert words in output or script == "compute_neuron_total_effect.py"
    code, output, errors = run_script("make_report.py", folder, "toy-llama")
    assert code == 0 and finding in output, errors
    assert ("the recall of that top" in (folder / "report.md").read_text()) == (method == "screen")


# stopping, and whose file is whose

@pytest.mark.parametrize("options, function, calls",
                         [("--method gradient", (estimated_trees, "neuron_gradients_of"), 4),
                          (SCREEN, (trees, "neurons_in_trees"), 16)])
def test_a_run_that_was_stopped_goes_on(run_script, toy_checkpoint, tmp_path, monkeypatch, options, function,
                                        calls):
    monkeypatch.setattr(estimated_trees, "WORDS_AT_ONCE", 2)
    command = f"{RUN} {options}"
    assert run_script(command, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path / "whole")[0] == 0
    done = interrupt_at(monkeypatch, function, call=3)
    assert run_script(command, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path / "stopped")[0] == 130
    assert list(tmp_path.glob("stopped/results/*/unfinished"))
    assert run_script(command, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path / "stopped")[0] == 0
    whole, stopped = ({path.name: values for path, values in contents(tmp_path / name).items()
                       if path.suffix == ".csv"} for name in ("whole", "stopped"))
    assert whole == stopped and len(whole) == 8
    assert len(done) <= calls + 3  # what was done is not done again
    assert not list(tmp_path.glob("stopped/results/*/unfinished"))


def test_another_method_does_not_overwrite(run_script, toy_checkpoint, made, tmp_path):
    for first, second in (("--method gradient", "--method exact"), ("--method exact", SCREEN),
                          (SCREEN, f"{SCREEN} --screen_sample 7")):
        out_dir = tmp_path / first.replace(" ", "")
        command = f"{RUN} --intervention_types man_indirect"
        assert run_script(f"{command} {first}", "-model", toy_checkpoint("llama"), "-out_dir",
                          out_dir)[0] == 0
        before = contents(out_dir)
        assert_refused(run_script(f"{command} {second}", "-model", toy_checkpoint("llama"), "-out_dir",
                                  out_dir), "other settings", "choose another -out_dir")
        assert contents(out_dir) == before


@pytest.mark.parametrize("options, words", [
    ("--method guess", ["invalid choice: 'guess'"]), ("--method screen --screen_share 0", ["above 0"]),
    ("--method screen --screen_share 1.5", ["at most 1"]),
    ("--method screen --screen_sample 0", ["from 1 on"]),
    ("--method screen", ["--screen_share 0.1", "0.500 of this model's neurons"]),
    ("--method gradient --full_passes", ["--method gradient does not go with --full_passes"]),
    ("--method screen --total_effects_only", ["does not go with --total_effects_only"])])
def test_bad_options_are_refused_in_one_line(run_script, toy_checkpoint, tmp_path, options, words):
    assert_refused(run_script(f"{RUN} {options}", "-model", toy_checkpoint("llama"), "-out_dir", tmp_path),
                   *words)
    assert not list(tmp_path.iterdir())


# what screening may claim

def test_the_manifest_says_how_sure_a_screening_is(made):
    (run,) = json.loads((made["screen"] / "manifest.json").read_text())["runs"]
    said = run["screening"]
    assert said["drawn"] == 4 * 4 * 3 and said["rest"] == 8 and said["top"] == 8
    assert 0 <= said["recall_at_least"] <= 1
    samples = [entry["screen"] for entry in run["files"].values()]
    assert len(samples) == 8 and all(sample["largest_difference"] > 0 for sample in samples)


# attention

def study(run_script, toy_checkpoint, out_dir, *options):
    return run_script("attention_intervention_winobias.py --do-filter False --split dev", "-model",
                      toy_checkpoint("gpt2"), "-out_dir", out_dir, *options)


def test_the_attention_study_by_every_method(run_script, toy_checkpoint, data, tmp_path):
    results = {}
    for method in ("exact", "gradient", "screen"):
        code, output, errors = study(run_script, toy_checkpoint, tmp_path / method, "--method", method)
        assert code == 0, errors
        assert (f"method {method}" in output) == (method != "exact")
        path = tmp_path / method / "winobias_data" / "attention_intervention_toy-gpt2_unfiltered_dev.json"
        results[method] = json.loads(path.read_text())
    assert "method" not in results["exact"] and "indirect_exact_head" not in results["exact"]["results"][0]
    heads = []
    for method in ("gradient", "screen"):
        assert results[method]["method"] == method
        for entry, exact in zip(results[method]["results"], results["exact"]["results"]):
            for kind in ("indirect", "direct"):
                run = np.array(entry[f"{kind}_exact_head"])
                assert run.shape == (3, 4) and run.sum() == (method == "screen")
                for level in ("layer", "model"):
                    np.testing.assert_allclose(entry[f"{kind}_effect_{level}"],
                                               exact[f"{kind}_effect_{level}"], rtol=1e-4, atol=1e-6)
                ours, theirs = (np.array(of[f"{kind}_effect_head"]) for of in (entry, exact))
                np.testing.assert_allclose(ours[run], theirs[run], rtol=1e-4, atol=1e-6)
                heads.append(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1])
    assert np.median(heads) > 0.8
    code, _, errors = study(run_script, toy_checkpoint, tmp_path / "exact", "--method", "gradient")
    assert code == 2 and "other settings (method None -> 'gradient')" in errors


def test_an_attention_study_that_was_stopped_goes_on(run_script, toy_checkpoint, data, tmp_path, monkeypatch):
    assert study(run_script, toy_checkpoint, tmp_path / "whole", "--method", "gradient")[0] == 0
    swept = interrupt_at(monkeypatch, (Heads, "compute"), call=2)
    assert study(run_script, toy_checkpoint, tmp_path / "stopped", "--method", "gradient")[0] == 130
    assert study(run_script, toy_checkpoint, tmp_path / "stopped", "--method", "gradient")[0] == 0
    one, other = (path.read_bytes() for path in sorted(tmp_path.glob("*/winobias_data/attention*.json")))
    assert one == other and len(swept) == 4


def test_attention_scripts_refuse_what_means_nothing(run_script, toy_checkpoint, data, tmp_path):
    assert_refused(study(run_script, toy_checkpoint, tmp_path, "--method", "screen", "--full_passes"),
                   "does not go with --full_passes")
    assert_refused(run_script("attention_intervention_subset_selection.py --method gradient", "-model",
                              toy_checkpoint("gpt2")), "unrecognized arguments")


def test_an_extended_run_takes_only_the_gradients_that_it_needs(run_script, toy_checkpoint, tmp_path,
                                                                monkeypatch):
    taken, gradients = [], estimated_trees.neuron_gradients_of

    def recording(self, stimuli, prompt):
        taken.extend(stimulus.base_strings[prompt] for stimulus in stimuli)
        return gradients(self, stimuli, prompt)

    monkeypatch.setattr(estimated_trees, "neuron_gradients_of", recording)
    command = ("run_profession_neuron_experiments.py --professions nurse captain --method gradient "
               f"-model {toy_checkpoint('gpt2')} -out_dir {tmp_path}")
    assert run_script(f"{command} -template_indices 1")[0] == 0
    taken.clear()
    assert run_script(f"{command} -template_indices 1 13")[0] == 0
    assert taken and not any("said that" in text for text in taken)
