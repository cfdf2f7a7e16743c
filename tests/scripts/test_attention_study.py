"""The attention study as a user runs it."""

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from mediation.errors import InputError
from mediation.results.attention_results import STRINGS, example_key, read_results
from mediation.studies.heads import Heads
from tests.helpers import PROJECT, WINOBIAS_ROWS, undrawn_figures


@pytest.fixture
def study(run_script, toy_checkpoint, data, tmp_path):
    """study("winobias", *options) runs the script on a toy; results in tmp_path / "out"."""
    def run(name, *options):
        return run_script(f"attention_intervention_{name}.py", "-model", toy_checkpoint("gpt2"), "-out_dir",
                          tmp_path / "out", *options)
    return run


def test_a_study_writes_its_json(study, tmp_path):
    code, output, _ = study("winobias", "--do-filter", "False", "--split", "test")
    assert code == 0 and "total = direct + total indirect" in output
    path = tmp_path / "out" / "winobias_data" / "attention_intervention_toy-gpt2_unfiltered_test.json"
    content = json.loads(path.read_text())
    assert list(content) == ["model_version", "do_filter", "split", "num_examples_loaded",
                             "num_examples_analyzed", "mean_total_effect", "mean_model_indirect_effect",
                             "mean_model_direct_effect", "results"]
    assert (content["num_examples_loaded"], content["num_examples_analyzed"],
            content["do_filter"]) == (3, 3, False)
    assert np.shape(content["results"][0]["indirect_odds_head"]) == (3, 4)
    mean = np.mean([entry["total_effect"] for entry in content["results"]])
    assert content["mean_total_effect"] == pytest.approx(mean)
    summary = pd.read_csv(path.parent / "toy-gpt2_unfiltered_test_heads_summary.csv")
    assert summary["mean"].notna().all() and (summary["clusters"] == 3).all()
    assert f"{path.parent / 'toy-gpt2_unfiltered_test_layers_summary.csv'}" in output
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert manifest["runs"][0]["files"][path.name]["largest_deviation_from_full_passes"] < 1e-4
    before = path.read_bytes()
    code, output, _ = study("winobias", "--do-filter", "False", "--split", "test")
    assert code == 0 and f"kept: {path} is finished" in output and path.read_bytes() == before


def test_results_without_sentences_are_the_same_results(study, run_script, tmp_path):
    options = ["--split", "test", "--randomize", "--seed", 1]  # two of its three examples are aligned
    for filtering in ("True", "False"):
        assert study("winobias", "--do-filter", filtering, *options)[0] == 0
    run, shared = tmp_path / "out" / "winobias_data", tmp_path / "shared"
    unfiltered, filtered = (f"attention_intervention_toy-gpt2_random_{kind}_test.json"
                            for kind in ("unfiltered", "filtered"))
    command = f"remove_sentences.py {run / unfiltered} -out_dir {shared} --filtered"
    code, output, error = run_script(command)
    assert code == 0 and "test.json: 3 examples" in output, error
    for name in (unfiltered, filtered):
        text = (shared / name).read_text()
        assert STRINGS[0] in (run / name).read_text() and all(f'"{each}"' not in text for each in STRINGS)
        ours, known = read_results(shared / name), read_results(run / name)
        assert ours.keys() == known.keys() and len(ours["results"]) == len(known["results"])
        for entry, expected in zip(ours["results"], known["results"]):
            assert example_key(*map(entry.get, STRINGS)) == example_key(*map(expected.get, STRINGS))
            for key in ("total_effect", "indirect_effect_head", "direct_effect_layer"):
                np.testing.assert_allclose(entry[key], expected[key], rtol=1e-5)
        for key in known.keys() - {"results"}:
            assert ours[key] == (pytest.approx(known[key], rel=1e-5) if isinstance(known[key], float)
                                 else known[key])
    before = {path: path.read_bytes() for path in shared.iterdir()}
    shutil.copy(run / unfiltered, tmp_path / "mine.json")
    renamed = f"remove_sentences.py {tmp_path / 'mine.json'} -out_dir {tmp_path / 'other'} --filtered"
    for again, reason in ((command, "is already there"),
                          (renamed, "there would be two files"),
                          (f"remove_sentences.py {run / unfiltered} {shared / unfiltered} -out_dir "
                           f"{tmp_path / 'other'}", "there would be two files"),
                          (f"remove_sentences.py {run / filtered} -out_dir {shared} --filtered",
                           "is filtered already")):
        code, _, error = run_script(again)
        assert code == 2 and reason in error
    assert not (tmp_path / "other").exists()
    (run / "manifest.json").unlink()  # as where a file was brought along
    code, _, error = study("winobias", "--do-filter", "False", *options)
    assert code == 2 and "is already there and no manifest tells how it was made" in error
    content = json.loads((shared / unfiltered).read_text())
    content["results"][0]["example"] = 99
    (shared / "odd.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="example 99 is none of the data set's 3"):
        read_results(shared / "odd.json")
    assert {path: path.read_bytes() for path in before} == before


def test_filtering_that_leaves_nothing(study, tmp_path):
    """With one example its own odds ratio is the quantile, if it is above 1 at all."""
    for statistic in ("bls", "bergsma"):
        code, _, errors = study("winogender", "--stat", statistic, "--do-filter", "True")
        assert code == 2 and "--do-filter False" in errors
    assert not list((tmp_path / "out").rglob("*.json"))


def test_a_study_goes_on_where_it_was(study, tmp_path, monkeypatch):
    study("winobias", "--do-filter", "False")
    path = tmp_path / "out" / "winobias_data" / "attention_intervention_toy-gpt2_unfiltered_dev.json"
    undisturbed = path.read_bytes()
    path.unlink()
    swept, compute = [], Heads.compute

    def interrupted(task, *rest):
        swept.append(task.intervention.base_strings[0])
        if len(swept) == 3:
            raise KeyboardInterrupt
        return compute(task, *rest)

    monkeypatch.setattr(Heads, "compute", interrupted)
    code, _, errors = study("winobias", "--do-filter", "False")
    assert code == 130 and "goes on from there" in errors and not path.exists()
    assert study("winobias", "--do-filter", "False")[0] == 0
    assert len(swept) == 4 and swept[2] == swept[3] and path.read_bytes() == undisturbed


def test_nothing_is_overwritten(study, tmp_path):
    study("winobias", "--do-filter", "False")
    code, _, errors = study("winobias", "--do-filter", "False", "--max_examples", 1)
    assert code == 2 and "other settings (" in errors and "max_examples None -> 1" in errors
    stranger = tmp_path / "out" / "winobias_data" / "attention_intervention_toy-gpt2_unfiltered_test.json"
    stranger.write_text("{}")
    code, _, errors = study("winobias", "--do-filter", "False", "--split", "test")
    assert code == 2 and "no manifest tells how it was made" in errors and stranger.read_text() == "{}"


@pytest.mark.parametrize("options, message", [
    (["--split", "train"], "invalid choice: 'train'"),
    (["--do-filter", "perhaps"], "perhaps is neither True nor False"),
    (["--max_examples", "0"], "0 is not a whole number"),
    (["--filter-quantile", "2"], "2 is not from 0 on and below 1"),
    (["--filter-quantile", "nan"], "nan is not from 0 on"),
    (["--seed", "-1"], "-1 is not a whole number"),
])
def test_options_that_cannot_be(study, tmp_path, options, message):
    code, _, errors = study("winobias", *options)
    assert code == 2 and message in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_damaged_data_set(study, data, tmp_path):
    (data / "winobias_data" / "pro_stereotyped_type1.txt.dev").write_text(WINOBIAS_ROWS.rsplit("\n", 2)[0])
    code, _, errors = study("winobias")
    assert code == 2 and "has no partner" in errors and not (tmp_path / "out").exists()


def test_a_model_without_the_attention_interface(run_script, toy_checkpoint, data, tmp_path):
    bloom = tmp_path / "bloom"
    AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", hidden_size=8, n_layer=1, n_head=1,
                                                          vocab_size=420)).save_pretrained(bloom)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bloom / name).write_bytes((toy_checkpoint("gpt2") / name).read_bytes())
    code, _, errors = run_script("attention_intervention_winobias.py", "-model", bloom, "-out_dir",
                                 tmp_path / "out")
    assert code == 2 and "bloom" in errors.splitlines()[-1] and not (tmp_path / "out").exists()


def test_shell_sweeps_keep_finished_files(toy_checkpoint, tmp_path):
    """With stand-in files for every configuration but none to compute, the sweep only names them."""
    (tmp_path / "winobias_data").mkdir()
    for kind in ("filtered", "unfiltered"):
        for split in ("dev", "test"):
            name = f"attention_intervention_toy-gpt2_{kind}_{split}.json"
            (tmp_path / "winobias_data" / name).write_text("{}")
    done = subprocess.run([PROJECT / "attention_intervention_winobias.sh"], capture_output=True, text=True,
                          check=True, env={"PATH": "/usr/bin:/bin", "MODELS": str(toy_checkpoint("gpt2")),
                                           "OUT_DIR": str(tmp_path), "PYTHON": "false"})
    assert len(re.findall("^kept: ", done.stdout, re.MULTILINE)) == 4


def test_figures(study, run_script, toy_checkpoint, tmp_path):
    study("winobias", "--do-filter", "False")
    assert run_script("attention_figures1.py", "-out_dir", tmp_path / "out")[0] == 0
    figures = tmp_path / "out" / "results" / "attention_intervention"
    drawn = list(figures.rglob("*.pdf"))
    assert len(drawn) == 8 and all(path.read_bytes().startswith(b"%PDF") for path in drawn)
    study("winogender", "--do-filter", "False")
    source = tmp_path / "out" / "winobias_data" / "attention_intervention_toy-gpt2_unfiltered_dev.json"
    source.with_name("attention_intervention_other_filtered_dev.json").write_bytes(source.read_bytes())
    with undrawn_figures():
        code, output, _ = run_script("attention_figures1.py", "-out_dir", tmp_path / "out")
    assert code == 0 and "8 figures of each of 3" in output
    assert {path.name for path in figures.iterdir()} == {
        "stacked_bar_charts", "heat_maps_indirect", "heat_maps_direct", "layer_indirect", "layer_direct",
        "heat_maps_with_bar_indirect",
        "heat_maps_with_bar_direct", "heat_maps_with_bar_indirect_sorted"}
    for folder in figures.iterdir():
        assert {path.name for path in folder.iterdir()} == {
            "winobias_toy-gpt2_unfiltered_dev.pdf", "winobias_other_filtered_dev.pdf",
            "winogender_toy-gpt2_unfiltered_bergsma.pdf"}
    summary = pd.read_csv(source.with_name("other_filtered_dev_heads_summary.csv"))
    assert len(summary) == 3 * 12 and set(summary["effect"]) == {"indirect", "direct", "total_indirect"}
    source.with_name("attention_intervention_more_filtered_dev.json").write_bytes(source.read_bytes())
    code, output, _ = run_script("attention_figures2.py", "-out_dir", tmp_path / "out")
    assert code == 0 and "other" in output and (figures / "effects.pdf").read_bytes().startswith(b"%PDF")
    effects = pd.read_csv(figures / "effects.csv", index_col=0)
    assert list(effects)[:4] == ["TE", "NDE-all", "NIE-all", "NIE-sum"]
    for part in list(effects)[:4]:
        low, mean, high = (effects[name] for name in (f"{part} low", part, f"{part} high"))
        assert ((low < mean) & (mean < high)).all()
    assert effects.loc["other"].equals(effects.loc["more"])  # the same examples in the same draws
    code, output, _ = run_script("attention_figures3.py --do-filter False --examples 2", "-model",
                                 toy_checkpoint("gpt2"), "-out_dir", tmp_path / "out")
    assert code == 0 and (figures / "qualitative" / "winobias_toy-gpt2_unfiltered_dev_2.pdf").exists()
    file = figures / "qualitative" / "winobias_toy-gpt2_unfiltered_dev_attention.json"
    for each in json.loads(file.read_text()):
        for weights in each["heads"].values():
            np.testing.assert_allclose(np.sum(weights, axis=1), 1, atol=1e-3)
    own = tmp_path / "out" / "winobias_data" / "attention_intervention_toy-gpt2_unfiltered_dev.json"
    code, _, error = run_script("make_report.py", own, "-out_dir", tmp_path)
    assert code == 0 and (tmp_path / "report.md").read_text().count("Where do they look") == 2, error
    file.write_text('[{"heads": {"1-2": [[1], [2]]}}]')
    code, _, error = run_script("make_report.py", own, "-out_dir", tmp_path)
    assert code == 2 and "has no attention of heads" in error


@pytest.mark.parametrize("script", ["attention_figures1.py", "attention_figures2.py", "attention_figures3.py",
                                    "check_replication.py"])
def test_nothing_to_read(run_script, toy_checkpoint, tmp_path, script):
    code, _, errors = run_script(script, "-out_dir", tmp_path,
                                 *(["-model", toy_checkpoint("gpt2")] if "3" in script
                                   or "check" in script else []))
    assert code == 2 and len(errors.splitlines()) == 1 and str(tmp_path) in errors


@pytest.mark.parametrize("damage, message", [
    (lambda c: c.pop("mean_total_effect"), "key 'mean_total_effect' is missing"),
    (lambda c: c.update(results=[]), "no list of results"),
    (lambda c: c["results"][1].pop("odds_base"), r"results\[1\]: key 'odds_base' is missing"),
    (lambda c: c["results"][0].update(total_effect=float("nan")),
     r"results\[0\]: total_effect is not a number"),
    (lambda c: c["results"][2]["indirect_effect_head"].pop(), r"results\[2\]: indirect effects are \[2, 4\]"),
    (lambda c: c["results"][2]["direct_effect_layer"].append("x"), "not a table of numbers"),
])
def test_results_of_another_schema(study, run_script, tmp_path, damage, message):
    study("winobias", "--do-filter", "False")
    path = tmp_path / "out" / "winobias_data" / "attention_intervention_toy-gpt2_unfiltered_dev.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_results(path)
    assert run_script("attention_figures1.py", "-out_dir", tmp_path / "out")[0] == 2
    assert not (tmp_path / "out" / "results").exists()


def test_check_replication_of_our_own_file(study, run_script, toy_checkpoint, tmp_path):
    study("winobias", "--do-filter", "False")
    path = tmp_path / "out" / "winobias_data" / "attention_intervention_toy-gpt2_unfiltered_dev.json"
    arguments = ("check_replication.py --json", path, "-model", toy_checkpoint("gpt2"))
    code, output, _ = run_script(*arguments)
    assert code == 0 and "verdict: REPRODUCED" in output and "3 of 3 recomputed" in output
    assert len(re.findall(r"^(?:total|model_indirect|model_direct)_effect .* yes$", output, re.M)) == 3
    code, output, _ = run_script(*arguments, "--sample", 1)
    assert code == 0 and re.search(r"^total_effect .* - +- +-$", output, re.MULTILINE)  # one has no interval
    content = json.loads(path.read_text())
    content["mean_total_effect"] += 100
    path.write_text(json.dumps(content))
    code, output, _ = run_script(*arguments)  # the verdict is about deviations of examples
    assert code == 0 and re.search(r"^total_effect .* no$", output, re.MULTILINE)
    content["results"][1]["direct_effect_head"][2][3] += 0.1
    path.write_text(json.dumps(content))
    code, output, _ = run_script(*arguments)
    assert code == 1 and "NOT REPRODUCED: largest deviation 1.0e-01" in output
    content["results"][1]["candidate1"] = "danced."
    path.write_text(json.dumps(content))
    code, output, _ = run_script(*arguments)
    assert code == 1 and "examples only in the file: 1" in output and "examples only in ours: 1" in output
