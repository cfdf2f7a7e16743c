"""The scripts as a user runs them: what they write, and one clear line for what they cannot do."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mediation.results.neuron_tables import read_pieces, read_probabilities
from tests.helpers import assert_refused, contents

SCRIPTS = ("run_profession_neuron_experiments.py", "compute_neuron_total_effect.py",
           "compute_neuron_split_total_effect.py", "compute_and_save_neuron_agg_effect.py",
           "compute_neuron_effect_per_layer.py", "make_report.py")
ANALYSES = SCRIPTS[1:4]
RUN = "run_profession_neuron_experiments.py -template_indices 1 13 --professions nurse captain teacher"


@pytest.fixture(scope="module")
def finished(start_script, toy_checkpoint, tmp_path_factory):
    """A finished run with all types on two templates and three professions; not to be changed."""
    out_dir = tmp_path_factory.mktemp("finished")
    assert start_script(RUN, "-model", toy_checkpoint("gpt2"), "-out_dir", out_dir).wait() == 0
    (folder,) = out_dir.glob("results/*_neuron_intervention")
    return folder


@pytest.fixture
def results(finished, tmp_path):
    """A copy of a finished run, to be changed at will."""
    return Path(shutil.copytree(finished, tmp_path / "results"))


# what is written

def test_help_explains(run_script):
    for script in SCRIPTS:
        code, output, _ = run_script(script, "--help")
        assert code == 0 and "usage:" in output and f"python {script}" in output
    assert "--template_indices" in run_script(SCRIPTS[0], "--help")[1]


def test_a_run_leaves_tables_and_a_manifest(finished, toy_checkpoint):
    names = {f"The_X_{template}_{gender}_{effect}_toy-gpt2.csv"
             for template in ("said_that", "went_home_because") for gender in ("man", "woman")
             for effect in ("direct", "indirect")}
    assert {path.name for path in finished.iterdir()} == {*names, "manifest.json"}
    (run,) = json.loads((finished / "manifest.json").read_text())["runs"]
    assert run["settings"]["model"] == "toy-gpt2" and len(run["settings"]["weights_sha256"]) == 64
    assert run["settings"]["professions"] == ["captain", "nurse", "teacher"]
    assert set(run["files"]) == names and run["finished"] >= run["started"] and run["wall_time_seconds"] > 0
    assert run["machine"]["torch"].startswith("2.13.0") and "-template_indices 1 13" in run["command"]
    assert {entry["rows"] for entry in run["files"].values()} == {3 * 4 * 16}
    drawn = [entry["largest_deviation_from_full_passes"] for entry in run["files"].values()
             if "largest_deviation_from_full_passes" in entry]
    assert drawn and max(drawn) < 1e-4
    table = pd.read_csv(finished / min(names), index_col=0)
    assert table.index.tolist() == list(range(192))
    assert table["word"].unique().tolist() == ["captain", "nurse", "teacher"]


def test_every_spelling_of_2020_works(run_script, toy_checkpoint, tmp_path):
    """One dash or two, - or _, with = or a blank: the second and third run find their tables finished."""
    model = toy_checkpoint("gpt2")
    for options in (["-model", model, "-out_dir", tmp_path, "-template_indices", 2],
                    ["--model_type", model, "--out-dir", tmp_path, "--template-indices", 2],
                    [f"--gpt2-version={model}", f"-out_dir={tmp_path}", "--template_indices=2"]):
        code, output, _ = run_script("run_profession_neuron_experiments.py --professions nurse "
                                     "--intervention-types man_indirect", *options)
        assert code == 0 and "finished: 1 tables" in output
    assert "kept: 1 finished tables" in output


def test_total_effects_need_no_intervention(run_script, finished, toy_checkpoint, tmp_path):
    code, _, _ = run_script(RUN, "-model", toy_checkpoint("gpt2"), "-out_dir", tmp_path,
                            "--total_effects_only")
    (folder,) = tmp_path.glob("results/*")
    assert code == 0 and len(list(folder.glob("*_no_intervention_toy-gpt2.csv"))) == 2
    ours, swept = (read_probabilities(where, "toy-gpt2").set_index("base_string").sort_index()
                   for where in (folder, finished))
    assert ours.index.equals(swept.index)
    for column in ours.columns[:6]:
        np.testing.assert_allclose(ours[column], swept[column], rtol=1e-5)


def assert_alike(path, other, kind):
    """The same comparisons and log odds in two tables of an intervention type, as far as float32 goes."""
    for piece, expected in zip(read_pieces(path, kind), read_pieces(other, kind), strict=True):
        assert piece.comparison == expected.comparison
        assert piece.log_odds_base == pytest.approx(expected.log_odds_base, abs=1e-5)
        np.testing.assert_allclose(piece.log_odds, expected.log_odds, atol=1e-4)


def test_full_passes_give_the_same_tables(run_script, finished, toy_checkpoint, tmp_path):
    assert run_script(RUN, "-model", toy_checkpoint("gpt2"), "-out_dir", tmp_path, "--full_passes",
                      "--intervention_types", "woman_direct")[0] == 0
    (path,) = tmp_path.glob("results/*/The_X_said_that_woman_direct_toy-gpt2.csv")
    assert_alike(path, finished / path.name, "woman_direct")


def test_random_weights_have_their_own_folder_and_name(run_script, toy_checkpoint, tmp_path):
    code, _, _ = run_script("run_profession_neuron_experiments.py -template_indices 1 --professions nurse "
                            "--intervention_types man_indirect --randomize",
                            "-model", toy_checkpoint("gpt2"), "-out_dir", tmp_path)
    assert code == 0
    name = "The_X_said_that_man_indirect_toy-gpt2_random.csv"
    assert list(tmp_path.glob(f"results/*_neuron_intervention/random/{name}"))


def test_analyses_write_and_print(run_script, results):
    for script in ANALYSES:
        code, output, _ = run_script(script, results, "toy-gpt2")
        assert code == 0
        for path in re.findall(r"^wrote (.+)$", output, re.MULTILINE):
            assert Path(path).stat().st_size > 0
    code, output, _ = run_script("compute_neuron_effect_per_layer.py", results)
    assert code == 0 and (results / "neuron_layer_effect_toy-gpt2.pdf").exists()
    code, output, _ = run_script("make_report.py", results, "toy-gpt2")
    assert code == 0 and "What was found:" in output
    report = (results / "report.md").read_text()
    assert "Which neurons carry it?" in report and "odds(he) man/null - 1" in report
    assert "bias with log she effect" in report
    # what is left is told with its cost; selections are of the same prompts
    assert re.search(r"24 of 204 prompts .*, in 2 of 17 templates: .* take .* GB in a folder", report)
    assert "selection --template_indices 1 13 --professions captain nurse teacher\n" in report
    assert f"compute_and_save_neuron_agg_effect.py {results} toy-gpt2\n" in report
    assert "make_report.py" in report and "whose heads are in attention layer i - 1" in report


def test_what_a_later_run_kept_is_not_counted_twice(run_script, toy_checkpoint, tmp_path):
    for templates in ("1", "1 2"):
        code, _, error = run_script(f"run_profession_neuron_experiments.py -template_indices {templates} "
                                    f"--professions nurse captain -out_dir {tmp_path}",
                                    "-model", toy_checkpoint("gpt2"))
        assert code == 0, error
    code, _, error = run_script("make_report.py", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert code == 0 and "neurons were run for 16 of 136 prompts" in text, error
    assert "selection --template_indices 1 2 --professions captain nurse\n" in text


def test_a_report_of_an_out_dir_has_its_newest_neuron_study(run_script, results, tmp_path):
    """Read twice, or with an older one beside it, it would be two results of one model."""
    for day in ("20200229", "20200301"):
        shutil.copytree(results, tmp_path / "results" / f"{day}_neuron_intervention")
    newest = tmp_path / "results" / "20200301_neuron_intervention"
    (tmp_path / "results" / "old_neuron_intervention").write_text("a file")
    (tmp_path / "results" / "latest_neuron_intervention").symlink_to(newest)
    code, output, error = run_script("make_report.py", tmp_path, newest, "-out_dir", tmp_path / "page")
    assert code == 0 and "What was found:\n1. " in output, error
    text = (tmp_path / "page" / "report.md").read_text()
    assert f"read from `{newest}`" in text and text.count("20200229") == 1
    assert "other runs of this study beside it, each a folder of its own: 20200229_neuron_interv" in text


@pytest.mark.parametrize("key, value", [("alpha", 2.0), ("weights_sha256", "0" * 64)])
def test_tables_of_another_alpha_or_other_weights_are_not_averaged(run_script, results, key, value):
    """One template with these, one with those: nothing was overwritten, but a mean would be of neither."""
    manifest = json.loads((results / "manifest.json").read_text())
    (run,) = manifest["runs"]
    other = {**run, "settings": run["settings"] | {key: value}, "files": {}}
    for name in [name for name in run["files"] if "said_that" in name]:
        other["files"][name] = run["files"].pop(name)
    (results / "manifest.json").write_text(json.dumps({"runs": [run, other]}))
    for script in ANALYSES:
        outcome = run_script(script, results, "toy-gpt2")
        assert_refused(outcome, key[:5], str(value), "keep them in separate folders")


def test_the_contrast_table_needs_both_indirect_types(run_script, results):
    for path in results.glob("*_man_*.csv"):
        path.unlink()
    code, output, _ = run_script("compute_and_save_neuron_agg_effect.py", results, "toy-gpt2")
    assert code == 0 and "no man_direct of The_X_said_that: nurse, teacher" in output
    assert not (results / "toy-gpt2_neuron_gender_contrast.csv").exists()
    assert pd.read_csv(results / "toy-gpt2_neuron_effects.csv").shape[0] == 64


def test_an_aggregate_of_indirect_effects_alone_is_refused(run_script, results):
    for path in results.glob("*_direct_*.csv"):
        path.unlink()
    assert_refused(run_script("compute_and_save_neuron_agg_effect.py", results, "toy-gpt2"),
                   "_direct of The_X_said_that", "the direct and the indirect effect")


def test_figures_of_several_models_and_random_ones(run_script, results):
    run_script("compute_and_save_neuron_agg_effect.py", results, "toy-gpt2")
    (results / "random").mkdir()
    effects = (results / "toy-gpt2_neuron_effects.csv").read_bytes()
    (results / "random" / "toy-gpt2_random_neuron_effects.csv").write_bytes(effects)
    code, output, _ = run_script("compute_neuron_effect_per_layer.py", results, "--shares", 0.5)
    assert code == 0 and "toy-gpt2_random" in output
    models = pd.read_csv(results / "neuron_layer_effect.csv")["model"].unique().tolist()
    assert models == ["toy-gpt2", "toy-gpt2_random"]


@pytest.mark.usefixtures("undrawn")
def test_summaries_say_how_sure_the_neurons_and_layers_are(run_script, results):
    """Beside the columns of 2020, of the same effects; the report tells them."""
    code, output, error = run_script("compute_and_save_neuron_agg_effect.py", results, "toy-gpt2")
    assert code == 0 and "the strongest neurons by the size of the mean log odds ratio" in output, error
    effects = pd.read_csv(results / "toy-gpt2_neuron_effects.csv").set_index("neuron_")
    summary = pd.read_csv(results / "toy-gpt2_neurons_summary.csv")
    kinds = {"indirect", "direct", "total_indirect", "interaction", "gender_contrast"}
    assert set(summary["effect"]) == kinds
    assert set(summary["group"]) == {"all", "female-biased", "others"}
    whole = summary[summary["group"] == "all"]
    whole = whole.assign(neuron_=whole["layer"].astype(str) + "-" + whole["unit"].astype(str))
    for kind in ("indirect", "direct"):
        rows = whole[whole["effect"] == kind].set_index("neuron_")
        expected = effects.loc[rows.index].filter(like=f"odds_ratio_{kind}_m").iloc[:, 0] - 1
        np.testing.assert_allclose(rows["effect_mean"], expected, rtol=1e-4, atol=1e-6)
        assert ((rows["low"] <= rows["mean"]) & (rows["mean"] <= rows["high"])).all()
    contrast = pd.read_csv(results / "toy-gpt2_neuron_gender_contrast.csv")["gender_contrast_mean"]
    np.testing.assert_allclose(whole.loc[whole["effect"] == "gender_contrast", "mean"], contrast, rtol=1e-4,
                               atol=1e-6)
    means = whole.pivot(index="neuron_", columns="effect", values="mean")
    total = (means["direct"] + means["total_indirect"]).to_numpy()
    np.testing.assert_allclose(total, total[0], rtol=1e-4)
    np.testing.assert_allclose(means["indirect"] + means["interaction"], means["total_indirect"], atol=1e-6)

    code, output, error = run_script("compute_neuron_effect_per_layer.py", results)
    assert code == 0 and "no interval" not in output, error
    layers = pd.read_csv(results / "neuron_layer_effect.csv")
    low, mean, high = (layers[f"odds_ratio_indirect_{name}"] for name in ("low", "mean", "high"))
    assert ((low <= mean) & (mean <= high)).all()
    code, output, _ = run_script("compute_neuron_effect_per_layer.py", results, "--shares", 0.5)
    assert code == 0 and "--shares 0.5 writes it" in output
    code, output, error = run_script("make_report.py", results, "toy-gpt2")
    assert code == 0 and "has the strongest indirect effect" in output, error
    text = (results / "report.md").read_text()
    assert "has the strongest gender contrast" in text and "Where is the gender contrast of neurons?" in text
    assert text.count("first-order") == 0 and "above 0 where man's favours “he”" in text


def test_a_layer_summary_of_other_effects_is_refused(run_script, results):
    run_script("compute_and_save_neuron_agg_effect.py", results, "toy-gpt2")
    path = results / "toy-gpt2_neuron_layer_summary.csv"
    table = pd.read_csv(path)
    table.assign(odds_ratio_indirect_mean=table["odds_ratio_indirect_mean"] + 1).to_csv(path, index=False)
    assert_refused(run_script("compute_neuron_effect_per_layer.py", results), path.name, "again")


# which candidate is which

def exchange(path):
    """Rewrite a table as `--candidates she he` would have written it."""
    table = pd.read_csv(path, index_col=0)
    other = {"candidate1": "candidate2", "candidate2": "candidate1"}
    names = {name: other[name[:10]] + name[10:] for name in table if name[:10] in other}
    table.rename(columns=names)[table.columns].to_csv(path)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("pattern", ["*.csv", "*said_that_man_*.csv"], ids=["all tables", "some of them"])
def test_analyses_read_which_candidate_is_which(run_script, results, tmp_path, pattern):
    """The same numbers for `--candidates she he`, and where tables of both orders are united."""
    made = {}
    for name in ("as they are", "exchanged"):
        for script in ANALYSES:
            code, printed, error = run_script(script, results, "toy-gpt2", "-out_dir", tmp_path / name)
            assert code == 0, error
            made.setdefault(name, []).append(printed.split("wrote")[0])
        for path in results.glob(pattern) if name == "as they are" else ():
            exchange(path)
    assert made["exchanged"] == made["as they are"]
    for path in (tmp_path / "as they are").glob("*.csv"):
        one, other = (pd.read_csv(tmp_path / name / path.name) for name in made)
        pd.testing.assert_frame_equal(one, other, rtol=1e-12)


def test_a_run_with_exchanged_candidates_reads_the_same(run_script, finished, toy_checkpoint, tmp_path):
    code, _, error = run_script(RUN, "-model", toy_checkpoint("gpt2"), "-out_dir", tmp_path,
                                "--candidates", "she", "he", "--intervention_types", "man_indirect",
                                "--odds_only")
    assert code == 0, error
    (path,) = tmp_path.glob("results/*/The_X_said_that_man_indirect_toy-gpt2.csv")
    assert_alike(path, finished / path.name, "man_indirect")


@pytest.mark.parametrize("script", [*ANALYSES, "make_report.py"])
def test_other_candidates_are_refused_by_name(run_script, results, script):
    path = results / "The_X_said_that_man_direct_toy-gpt2.csv"
    table = pd.read_csv(path, index_col=0)
    table.assign(candidate1="['Ġthey']", candidate2="['▁one']").to_csv(path)
    before = contents(results)
    assert_refused(run_script(script, results, "toy-gpt2"), path.name, "'they' and 'one'", "'he' and 'she'")
    assert contents(results) == before


# what is refused

@pytest.mark.parametrize("options, words", [
    ("-template_indices 0", ["template index 0", "1 to 17"]),
    ("-template_indices 99", ["template index 99", "1 to 17"]),
    ("-template_indices one", ["invalid int value: 'one'"]),
    ("--professions plumbr", ["'plumbr'", "320 words"]),
    ("--professions violinist soloist", ["no usable profession", "tokens", "--professions"]),
    ("--candidates he he", ["same token"]),
    ("--candidates he themselves", ["'themselves'", "tokens", "choose another word"]),
    ("--intervention_types both", ["'both'", "man_direct"]),
    ("--max_examples 0", ["--max_examples 0"]),
    ("--batch_size 0", ["0 is not a whole number"]),
    ("--device gpu", ["'gpu' is unknown"]),
    ("--device cuda:99", ["'cuda:99' is not there", "CUDA devices", "--device cpu"]),
    ("--device cuda:99 --precision fast", ["'cuda:99' is not there", "--device cpu"]),
    ("--device mps", ["'mps' is not supported", "cpu or cuda"]),
    ("--device meta", ["'meta' is not supported", "cpu or cuda"]),
    ("--dtype int8", ["int8", "float32"]),
])
def test_what_cannot_be_run(run_script, toy_checkpoint, tmp_path, options, words):
    assert_refused(run_script(f"run_profession_neuron_experiments.py {options}", "-model",
                              toy_checkpoint("gpt2"), "-out_dir", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_none(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for model in ("no-such-model", "nobody/no-such-model", tmp_path / "empty"):
        assert_refused(run_script(RUN, "-model", model, "-out_dir", tmp_path / "out"), "cannot load model",
                       "smollm2-135m")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out_dir", ["/proc/results", "/dev/null/results"])
def test_an_out_dir_that_cannot_be_written(run_script, toy_checkpoint, finished, out_dir):
    assert_refused(run_script(RUN, "-model", toy_checkpoint("gpt2"), "-out_dir", out_dir), out_dir,
                   "choose another -out_dir")
    assert_refused(run_script("compute_neuron_total_effect.py", finished, "toy-gpt2", "-out_dir", out_dir),
                   out_dir, "choose another -out_dir")


@pytest.mark.parametrize("script", SCRIPTS[1:])
def test_a_folder_without_tables(run_script, tmp_path, script):
    (tmp_path / "empty").mkdir()
    model = [] if "per_layer" in script else ["toy-gpt2"]
    assert_refused(run_script(script, tmp_path / "empty", *model), "empty", "first")
    assert_refused(run_script(script, tmp_path / "missing", *model), "missing")
    assert not contents(tmp_path)


def test_the_models_that_are_there_are_named(run_script, results):
    assert_refused(run_script("compute_neuron_total_effect.py", results, "gpt2"), "'gpt2'",
                   "models there: toy-gpt2")


def column_missing(path):
    pd.read_csv(path, index_col=0).drop(columns="candidate1_base_prob").to_csv(path)


def not_a_number(path):
    table = pd.read_csv(path, index_col=0)
    table.loc[70, "candidate1_base_prob"] = np.nan
    table.to_csv(path)


def a_zero_probability(path):
    table = pd.read_csv(path, index_col=0)
    table.loc[70, "candidate2_base_prob"] = 0.0
    table.to_csv(path)


def words_for_numbers(path):
    path.write_text(path.read_text().replace("0.0", "zero.", 5))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-3000])


def bytes_at_random(path):
    path.write_bytes(np.random.default_rng(0).bytes(500))


def nothing(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [column_missing, not_a_number, a_zero_probability, words_for_numbers,
                                    bytes_at_random, nothing])
@pytest.mark.parametrize("script", ANALYSES)
def test_a_damaged_table(run_script, results, script, damage):
    path = results / "The_X_said_that_man_indirect_toy-gpt2.csv"
    damage(path)
    before = contents(results)
    assert_refused(run_script(script, results, "toy-gpt2"), path.name,
                   "write" if damage in (bytes_at_random, nothing) else "candidate")
    assert contents(results) == before


def test_a_table_without_a_column_that_is_not_even_read(run_script, results):
    path = results / "The_X_said_that_man_indirect_toy-gpt2.csv"
    pd.read_csv(path, index_col=0).drop(columns="candidate2_alt2_prob").to_csv(path)
    assert_refused(run_script("compute_and_save_neuron_agg_effect.py", results, "toy-gpt2"), path.name,
                   "'candidate2_alt2_prob' is missing")


def test_a_table_that_was_cut_short(run_script, results):
    cut_short(results / "The_X_said_that_man_indirect_toy-gpt2.csv")
    before = contents(results)
    assert_refused(run_script("compute_and_save_neuron_agg_effect.py", results, "toy-gpt2"), "write")
    assert contents(results) == before


def test_tables_of_different_runs_in_one_folder(run_script, results):
    path = results / "The_X_said_that_man_indirect_toy-gpt2.csv"
    table = pd.read_csv(path, index_col=0)
    table["candidate1_base_prob"] *= 0.9
    table.to_csv(path)
    assert_refused(run_script("compute_neuron_total_effect.py", results, "toy-gpt2"), "tables disagree",
                   "separate folders")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_half_precision_tables_may_differ_by_what_float16_rounds(run_script, results, dtype):
    """The same prompt in trees of different templates: 0.17% apart on SmolLM2-135M in float16."""
    path, manifest = results / "The_X_said_that_man_indirect_toy-gpt2.csv", results / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"dtype": "float32"', f'"dtype": "{dtype}"'))
    table = pd.read_csv(path, index_col=0)
    table["candidate1_base_prob"] *= 1.003
    table.to_csv(path)
    outcome = run_script("compute_neuron_total_effect.py", results, "toy-gpt2")
    if dtype == "float16":
        assert outcome[0] == 0
    else:
        assert_refused(outcome, "tables disagree")


def test_neurons_that_are_not_those_of_the_other_tables(run_script, results):
    path = results / "The_X_went_home_because_woman_direct_toy-gpt2.csv"
    table = pd.read_csv(path, index_col=0)
    table[table["layer"] < 3].to_csv(path)
    assert_refused(run_script("compute_and_save_neuron_agg_effect.py", results, "toy-gpt2"), path.name,
                   "same neurons")


def test_shares_outside_a_layer(run_script, results):
    assert_refused(run_script("compute_neuron_effect_per_layer.py --shares 0", results), "0 is not above 0")
    assert_refused(run_script("compute_neuron_effect_per_layer.py --shares 1.5", results), "at most 1")


def test_an_effects_table_with_a_missing_column(run_script, results):
    (results / "x_neuron_effects.csv").write_text("neuron_,layer_direct_mean\n0-0,0.0\n")
    assert_refused(run_script("compute_neuron_effect_per_layer.py", results), "x_neuron_effects.csv",
                   "'neuron_direct_mean'")
