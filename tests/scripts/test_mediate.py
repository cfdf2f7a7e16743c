"""mediate.py on toys: a user's file to tables, figures and report."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

from mediation.files.storage import RunFolder
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies import estimated_trees, own_question, trees
from mediation.studies.comparisons import build_comparisons
from tests.helpers import no_report, read_own_table, write_stimuli

TOY = [Stimulus("1", "The {} said that", ("nurse", "man", "woman"), ("she", "he"), "short"),
       Stimulus("2", "The {} went home because", ("teacher", "man"), ("he", "she"), "long"),
       Stimulus("3", "The {} went home and", ("teacher", "man"), ("he", "she"), "long"),
       Stimulus("4", "The {} ran because", ("electrician", "man"), ("he was", "she"), "long")]


def test_total_effects_run_every_prompt_once_and_those_of_one_length_together(toy_model, tmp_path):
    model = toy_model("llama")
    comparisons = build_comparisons(model, "stimuli", TOY, None)
    runs = []
    with model.model.get_input_embeddings().register_forward_hook(
            lambda *call: runs.append(call[2].shape[:-1])):
        own_question.write_total_effects(tmp_path / "totals.csv", model, comparisons)
    single = [comparison.intervention for comparison in comparisons[:-1]]  # "he was" is several tokens
    prompts = {prompt.tokens for stimulus in single for prompt in stimulus.prompts}
    together = runs[:-2]  # the last are the two prompts of that one, in a tree, which asks twice
    assert sum(count for count, _ in together) == len(prompts) == 7
    assert sorted(length for _, length in together) == sorted(set(map(len, prompts)))
    table = pd.read_csv(tmp_path / "totals.csv")
    for row, comparison in zip(table.itertuples(), comparisons, strict=True):
        expected = np.ravel(model.continuation_probabilities(comparison.intervention))
        np.testing.assert_allclose([row.candidate1_base_prob, row.candidate2_base_prob,
                                    row.candidate1_alt_prob, row.candidate2_alt_prob], expected, rtol=1e-5)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("taken_away", ["mlps_toy-llama.csv", "mlps_mean_toy-llama.csv"])
def test_a_report_is_on_the_tables_that_are_there(toy_checkpoint, tmp_path, run_script, taken_away):
    path = write_stimuli(tmp_path, TOY)
    command = f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {tmp_path}"
    assert run_script(f"{command} --mediators mlps")[0] == 0
    (tmp_path / taken_away).unlink()
    code, printed, error = run_script(f"{command} --mediators layers")
    assert code == 0, error
    assert "Which attention layers" in printed and "Which MLPs" not in printed


def test_a_toy_study_from_file_to_report(toy_checkpoint, tmp_path, run_script):
    path, folder = write_stimuli(tmp_path, TOY), tmp_path / "out"
    command = f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {folder}"
    code, printed, error = run_script(command)
    assert code == 0, error
    assert ("neurons: 1 of 5 comparisons left out: word or candidate of several tokens; "
            "--multi_token last takes it (4)") in printed
    assert "heads: 1 of 5 comparisons left out" in printed and "## How large is the effect?" in printed
    assert re.search(r"\| total effect \| log odds ratio \| toy-llama \| long \| .* \| 3 \| 3 \|", printed)
    totals, neurons, mlps = (read_own_table(folder, f"{name}_toy-llama.csv")
                             for name in ("total_effects", "neurons", "mlps"))
    heads, layers = (read_own_table(folder, f"{name}_toy-llama.csv") for name in ("heads", "layers"))
    assert len(totals) == 5 and len(neurons) == 4 * 4 * 16 and len(mlps) == 4 * 4 and len(heads) == 4 * 12
    assert len(layers) == 4 * 4
    assert set(layers["layer"]) == {"0", "1", "2", "all"}
    # effects follow from the probabilities in the table
    row, base = neurons.iloc[77], totals.set_index(["id", "alternative"])
    one = base.loc[(row["id"], row["alternative"])]
    odds = one["candidate2_base_prob"] / one["candidate1_base_prob"]
    for kind in ("indirect", "direct"):
        intervened = row[f"candidate2_{kind}_prob"] / row[f"candidate1_{kind}_prob"]
        assert row[f"{kind}_effect"] == pytest.approx(intervened / odds - 1, rel=1e-5)
    # means are those of the rows
    means = pd.read_csv(folder / "heads_mean_toy-llama.csv", keep_default_na=False)
    expected = heads[(heads["layer"] == 1) & (heads["head"] == 2)]
    row = means[(means["group"] == "all") & (means["layer"] == 1) & (means["head"] == 2)].iloc[0]
    assert row["indirect_effect_mean"] == pytest.approx(expected["indirect_effect"].mean(), rel=1e-9)
    assert row["direct_effect_std"] == pytest.approx(expected["direct_effect"].std(), rel=1e-9)
    assert row["comparisons"] == 4
    for name in ("neurons_indirect", "mlps_indirect", "mlps_direct", "heads_indirect", "heads_direct",
                 "layers_direct", "neurons_by_group", "mlps_by_group"):
        assert (folder / f"{name}_toy-llama.pdf").stat().st_size > 1000
    written = (folder / "report_toy-llama.md").read_text()
    assert written.partition("## What was asked?")[0] in printed
    assert "<h2" in (folder / "report_toy-llama.html").read_text()
    runs = RunFolder(folder).read()["runs"]
    assert len(runs) == 8 and all(run["finished"] for run in runs) and runs[-1]["left_out"]["neurons"]
    assert not (folder / "unfinished").exists()
    # nothing is computed again, nothing is mixed
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*_toy-llama.csv")}
    with no_report():
        code, printed, error = run_script(command)
    assert code == 0 and printed.count("kept:") == 8
    assert before == {file: file.stat().st_mtime_ns for file in folder.glob("*_toy-llama.csv")}
    write_stimuli(tmp_path, TOY[:2])
    code, _, error = run_script(command)
    assert code == 2 and "was made with other settings (stimuli_sha256" in error


def test_mediators_come_one_after_the_other_into_one_report(toy_checkpoint, tmp_path, run_script):
    """Screened neurons beside exact heads, heads before layers: nothing is computed twice, one report."""
    path = write_stimuli(tmp_path,
                         [*TOY, Stimulus("5", "The {} ran because", ("nurse", "man"), ("he", "she"), "$x_")])
    command = f"mediate.py {path} -model {toy_checkpoint('gpt2')} -out_dir {tmp_path / 'out'} --mediators"
    for mediators in ("heads", "heads,layers", "neurons --method screen --screen_share 0.55"):
        with no_report():
            code, printed, error = run_script(f"{command} {mediators}")
        assert code == 0, error
    code, printed, error = run_script(f"{command} mlps")  # these figures name a group with signs of formulas
    assert code == 0, error
    headings = [line for line in printed.splitlines() if line.startswith("## ")]
    asked = [heading.split()[2] for heading in headings if heading.startswith("## Which")]
    assert asked == ["MLPs", "attention", "attention", "neurons"]
    assert headings[-3:] == ["## How sure is it?", "## What was left out?",
                             "## How was it made, and how is it run again?"]
    assert "method screen: " in printed
    code, _, error = run_script(f"{command} heads --method screen")
    assert code == 2
    assert "heads_toy-gpt2.csv was made with other settings (method 'exact' -> 'screen')" in error


@pytest.mark.usefixtures("undrawn")
def test_a_table_of_means_that_is_gone_is_named_and_stops_no_report(toy_checkpoint, tmp_path, run_script):
    path, folder = write_stimuli(tmp_path, TOY[:1]), tmp_path / "out"
    command = f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {folder}"
    with no_report():
        code, _, error = run_script(f"{command} --mediators mlps,heads")
    assert code == 0, error
    (folder / "mlps_mean_toy-llama.csv").unlink()
    code, printed, error = run_script(f"{command} --mediators mlps --values zero")
    assert code == 0, error
    named = ("not reported: mlps: its table of means mlps_mean_toy-llama.csv is not there: run this mediator "
             "again")
    assert printed.count(named) == 1 and "Which attention heads" in printed
    assert "Which MLPs (zero ablation) carry it?" in printed and "Which MLPs carry" not in printed
    code, printed, error = run_script(f"{command} --mediators mlps")
    assert code == 0 and "not reported" not in printed and "Which MLPs carry" in printed, error


@pytest.mark.usefixtures("undrawn")
def test_what_fits_nothing_is_left_out(toy_checkpoint, tmp_path, run_script):
    path = write_stimuli(tmp_path,
                         [Stimulus("1", "The {} said that", ("electrician", "electricians"), ("she", "he")),
                          Stimulus("2", "The {} said that", ("xqz", "zqx"), ("she", "he"))])
    code, printed, error = run_script(f"mediate.py {path} -model {toy_checkpoint('gpt2')} "
                                      f"-out_dir {tmp_path / 'out'}")
    assert code == 0 and "neurons: 2 of 2 comparisons left out" in printed, error
    assert "Which attention heads" in printed and "Which neurons" not in printed, error


@pytest.mark.usefixtures("undrawn")
def test_methods_and_formats(toy_checkpoint, tmp_path, run_script):
    path = write_stimuli(tmp_path, TOY)
    tables = {}
    for name, options in (("exact", ""), ("gradient", "--method gradient"),
                          ("screen", "--method screen --screen_share 0.55 --screen_sample 4 --screen_top 5"),
                          ("parquet", "--format parquet")):
        code, printed, error = run_script(f"mediate.py {path} -model {toy_checkpoint('gpt2')} "
                                          f"-out_dir {tmp_path / name} --multi_token last "
                                          f"--mediators neurons {options}")
        assert code == 0, error
        file = tmp_path / name / f"neurons_toy-gpt2.{'parquet' if name == 'parquet' else 'csv'}"
        tables[name] = (pd.read_parquet if name == "parquet" else pd.read_csv)(file)
        assert "| last |" in printed
        claims = "recall of a prompt's exact top 5" in printed or "too few draws" in printed
        assert claims == (name == "screen")
    assert len(tables["exact"]) == 5 * 4 * 16  # the words of several tokens are in
    np.testing.assert_allclose(tables["parquet"]["indirect_effect"], tables["exact"]["indirect_effect"],
                               rtol=1e-5, atol=1e-6)
    for kind in ("indirect", "direct"):
        run = tables["screen"][f"{kind}_method"] == "exact"
        assert 0.5 < run.mean() < 1 and (tables["gradient"][f"{kind}_method"] == "gradient").all()
        np.testing.assert_allclose(tables["screen"][f"{kind}_effect"][run],
                                   tables["exact"][f"{kind}_effect"][run], rtol=1e-4, atol=1e-5)
        estimated = tables["gradient"][f"{kind}_effect"]
        assert np.corrcoef(estimated, tables["exact"][f"{kind}_effect"])[0, 1] > 0.5


@pytest.mark.usefixtures("unreported")
def test_heads_are_estimated_by_gradients(toy_checkpoint, tmp_path, run_script):
    path = write_stimuli(tmp_path, TOY)
    for method in ("exact", "gradient"):
        code, _, error = run_script(f"mediate.py {path} -model {toy_checkpoint('gpt2')} --mediators heads "
                                    f"-out_dir {tmp_path / method} --method {method}")
        assert code == 0, error
    exact, estimated = (read_own_table(tmp_path / method, "heads_toy-gpt2.csv")
                        for method in ("exact", "gradient"))
    assert len(estimated) == len(exact) == 4 * 12
    for kind in ("indirect", "direct"):
        assert (estimated[f"{kind}_method"] == "gradient").all()
        values, expected = estimated[f"{kind}_effect"], exact[f"{kind}_effect"]
        assert np.corrcoef(values, expected)[0, 1] > 0.9 and np.abs(values - expected).max() > 1e-4


@pytest.mark.usefixtures("unreported")
def test_an_interrupted_run_goes_on(toy_checkpoint, tmp_path, run_script, monkeypatch):
    path = write_stimuli(tmp_path, TOY)
    command = (f"mediate.py {path} -model {toy_checkpoint('gpt2')} -out_dir {tmp_path / 'out'} "
               "--mediators neurons,heads")
    calls, sweep = [], trees.neurons_in_trees

    def stops(self, *arguments, **named):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return sweep(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(trees, "neurons_in_trees", stops)
        assert run_script(command)[0] == 130
    assert path.exists() and not (tmp_path / "out" / "neurons_toy-gpt2.csv").exists()

    def counting(*arguments, **named):
        calls.append(1)
        return sweep(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(trees, "neurons_in_trees", counting)
        assert run_script(command)[0] == 0
    assert len(calls) == 4 + 2 * 3 - 3  # three trees, two effects each; the first effect of all was kept
    assert run_script(command.replace("/out", "/whole"))[0] == 0
    for name in ("neurons", "heads", "neurons_mean"):
        pd.testing.assert_frame_equal(read_own_table(tmp_path / "out", f"{name}_toy-gpt2.csv"),
                                      read_own_table(tmp_path / "whole", f"{name}_toy-gpt2.csv"))


@pytest.mark.parametrize("rows, message", [
    ([{"base": "The {}" + " said" * 70}], r"line 1: \d+ tokens, the model takes 64: shorten the text"),
    ([{"substitutes": ["electrician", "man"]}],
     "line 1: no stimulus of the file fits neurons: 1 of 1 comparisons, such as '1': "
     "word or candidate of several tokens"),
    ([{"candidates": ["he", "he "]}], "line 1: field 'candidates': two of them are the same"),
], ids=["long", "nothing fits", "equal"])
def test_bad_input_ends_in_one_line(toy_checkpoint, tmp_path, run_script, rows, message):
    path = tmp_path / "mine.jsonl"
    good = {"id": "1", "base": "The {} said that", "substitutes": ["nurse", "man"],
            "candidates": ["she", "he"]}
    path.write_text("\n".join(json.dumps({**good, **row}) for row in rows))
    code, _, error = run_script(f"mediate.py {path} -model {toy_checkpoint('gpt2')} "
                                f"-out_dir {tmp_path / 'out'} --mediators neurons")
    assert code == 2 and re.search(message, error) and "\n" not in error.strip()
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unreported")
def test_masked_models_have_attention_only(toy_checkpoint, toy_tokenizer, tmp_path, run_script):
    folder = toy_checkpoint("roberta")
    names = toy_tokenizer.convert_ids_to_tokens([11, 12, 13])
    type(toy_tokenizer).from_pretrained(folder, mask_token=names[0], cls_token=names[1],
                                        sep_token=names[2]).save_pretrained(folder)
    path = write_stimuli(tmp_path, TOY[:3])
    code, printed, error = run_script(f"mediate.py {path} -model {folder} -out_dir {tmp_path / 'one'}")
    assert code == 0, error
    assert "neurons: 4 of 4 comparisons left out: toy-roberta is a masked model" in printed, error
    code, _, error = run_script(f"mediate.py {path} -model {folder} -out_dir {tmp_path / 'out'} "
                                "--mediators heads,layers --masking_approach 3")
    assert code == 0 and (tmp_path / "out" / "heads_toy-roberta_3.csv").exists(), error


@pytest.mark.usefixtures("unreported")
def test_exported_professions_give_the_same_numbers(toy_checkpoint, tmp_path, run_script):
    folder = toy_checkpoint("gpt2")
    assert run_script(f"run_profession_neuron_experiments.py -model {folder} -out_dir {tmp_path / 'old'} "
                      "-template_indices 1 12 "
                      "--professions nurse teacher")[0] == 0
    assert run_script(f"export_stimuli.py professions -out {tmp_path / 'p.jsonl'} --template_indices 1 12 "
                      "--words nurse teacher")[0] == 0
    code, _, error = run_script(f"mediate.py {tmp_path / 'p.jsonl'} -model {folder} "
                                f"-out_dir {tmp_path / 'new'} --mediators neurons")
    assert code == 0, error
    new = read_own_table(tmp_path / "new", "neurons_toy-gpt2.csv").set_index(["id", "layer", "neuron"])
    for template, number in (("The_X_said_that", 1), ("The_X_laughed_because", 12)):
        for kind in ("man_indirect", "woman_direct"):
            (table,) = (tmp_path / "old").glob(f"results/*/{template}_{kind}_toy-gpt2.csv")
            gender, effect = kind.split("_")
            for _, row in pd.read_csv(table).sample(20, random_state=0).iterrows():
                own = new.loc[(f"{number}_{row['word']}_{gender}", row["layer"], row["neuron"])]
                he, she = ("2", "1") if gender == "man" else ("1", "2")
                for ours, theirs in ((he, "candidate1_prob"), (she, "candidate2_prob")):
                    assert own[f"candidate{ours}_{effect}_prob"] == pytest.approx(row[theirs], rel=1e-5)
    # nothing is overwritten
    assert run_script(f"export_stimuli.py professions -out {tmp_path / 'p.jsonl'}")[0] == 2


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("study", ["winobias", "winogender"])
def test_exported_pronouns_give_the_same_numbers(toy_checkpoint, data, tmp_path, run_script, study):
    folder = toy_checkpoint("llama")
    option = "--split dev" if study == "winobias" else "--stat bls"
    assert run_script(f"attention_intervention_{study}.py -model {folder} --do-filter False {option} "
                      f"-out_dir {tmp_path / 'old'}")[0] == 0
    assert run_script(f"export_stimuli.py {study} -out {tmp_path / 'p.jsonl'} {option}")[0] == 0
    code, _, error = run_script(f"mediate.py {tmp_path / 'p.jsonl'} -model {folder} "
                                f"-out_dir {tmp_path / 'new'} --mediators layers,heads")
    assert code == 0, error
    (path,) = (tmp_path / "old" / f"{study}_data").glob("attention_intervention_*.json")
    results = json.loads(path.read_text())["results"]
    totals, heads, layers = (read_own_table(tmp_path / "new", f"{name}_toy-llama.csv")
                             for name in ("total_effects", "heads", "layers"))
    np.testing.assert_allclose(totals["total_effect"], [entry["total_effect"] for entry in results],
                               rtol=1e-5)
    for kind in ("indirect", "direct"):
        np.testing.assert_allclose(heads[f"{kind}_effect"],
                                   np.ravel([entry[f"{kind}_effect_head"] for entry in results]), rtol=1e-5,
                                   atol=1e-7)
        whole = layers[layers["layer"] == "all"][f"{kind}_effect"]
        np.testing.assert_allclose(whole, [entry[f"{kind}_effect_model"] for entry in results], rtol=1e-5,
                                   atol=1e-7)


FOUR = [Stimulus(f"{template}-{word}", template, (word, "man"), ("she", "he"))
        for word in ("nurse", "teacher", "captain", "doctor")
        for template in ("The {} said that", "The {} went home because")]
SCREEN = "--method screen --screen_share 0.625 --screen_sample 3 --screen_top 8"


@pytest.mark.usefixtures("undrawn")
def test_a_unit_drawn_for_a_tree_is_one_draw(toy_checkpoint, tmp_path, run_script):
    """Two templates of a word are one tree, whose units are drawn once: the profession study does so, too."""
    path, model = write_stimuli(tmp_path, FOUR), toy_checkpoint("llama")
    code, printed, error = run_script(f"mediate.py {path} -model {model} -out_dir {tmp_path / 'own'} "
                                      f"--mediators neurons {SCREEN}")
    assert code == 0, error
    (entry,) = [run["files"]["neurons_toy-llama.csv"] for run in RunFolder(tmp_path / "own").read()["runs"]
                if "neurons_toy-llama.csv" in run["files"]]
    assert entry["screen"]["drawn"] == 4 * 2 * 3
    assert f"{4 * 2 * 3} random neurons of the 8 a prompt" in printed
    study = ("run_profession_neuron_experiments.py -template_indices 1 13 "
             f"--professions nurse teacher captain doctor {SCREEN}")
    code, _, error = run_script(f"{study} --intervention_types man_direct man_indirect", "-model", model,
                                "-out_dir", tmp_path / "study")
    assert code == 0, error
    (folder,) = (tmp_path / "study").glob("results/*")
    assert RunFolder(folder).read()["runs"][0]["screening"]["drawn"] == entry["screen"]["drawn"]


@pytest.mark.usefixtures("unreported")
def test_trees_that_share_a_null_prompt_draw_their_own_units(toy_checkpoint, tmp_path, run_script,
                                                             monkeypatch):
    stimulus = Stimulus("1", "The {} said that", ("nurse", "man", "woman", "king"), ("she", "he"))
    path, draws = write_stimuli(tmp_path, [stimulus]), []
    screen = estimated_trees.screened_units
    monkeypatch.setattr(estimated_trees, "screened_units",
                        lambda *arguments: draws.append(arguments[-1].bit_generator.state)
                        or screen(*arguments))
    code, _, error = run_script(f"mediate.py {path} -model {toy_checkpoint('llama')} "
                                f"-out_dir {tmp_path / 'out'} --mediators neurons {SCREEN}")
    assert code == 0, error
    assert len(draws) == 6 and len({str(seed) for seed in draws}) == 6


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("method", ["", "--method gradient", SCREEN])
def test_what_cannot_reach_the_output_has_exactly_no_effect(toy_checkpoint, tmp_path, run_script, method):
    """The last layer's neurons before the last token, in the null prompt's run; the slot is one place."""
    path = write_stimuli(tmp_path, [*TOY[:3], *FOUR])
    for mediators in ("neurons", "mlps"):
        code, _, error = run_script(f"mediate.py {path} -model {toy_checkpoint('llama')} "
                                    f"-out_dir {tmp_path / 'out'} --mediators {mediators} {method}")
        assert code == 0, error
        table = read_own_table(tmp_path / "out", f"{mediators}_toy-llama.csv")
        last = table["layer"] == table["layer"].max()
        assert (table.loc[last, "indirect_effect"] == 0).all()
        assert (table.loc[~last, "indirect_effect"] != 0).any()


def test_an_error_in_one_place_is_found(toy_checkpoint, tmp_path, run_script, monkeypatch):
    """Four random neurons of 64 would mostly miss it: those with the largest effects are always run again."""
    sweep = trees.neurons_in_trees

    def wrong_at_the_strongest(self, *arguments, **named):
        swept = sweep(self, *arguments, **named)
        flat = swept.reshape(len(swept), -1, 2)
        odds = flat[..., 1] - flat[..., 0]
        strongest = (odds - odds.median(dim=1, keepdim=True).values).abs().argmax(dim=1)
        flat[torch.arange(len(flat)), strongest, 0] += 0.01
        return swept

    monkeypatch.setattr(trees, "neurons_in_trees", wrong_at_the_strongest)
    path = write_stimuli(tmp_path, FOUR[:1])
    code, _, error = run_script(f"mediate.py {path} -model {toy_checkpoint('llama')} "
                                f"-out_dir {tmp_path / 'out'} --mediators neurons")
    assert code == 2
    assert "the sweep and full passes differ by 1.0e-02 in a log-probability, more than the accepted" in error


@pytest.mark.usefixtures("unreported")
def test_the_manifest_has_the_error_budget_and_what_the_check_supports(toy_checkpoint, tmp_path, run_script):
    path = write_stimuli(tmp_path, FOUR)
    assert run_script(f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {tmp_path / 'out'} "
                      "--mediators neurons,heads")[0] == 0
    runs = {name: (run, entry) for run in RunFolder(tmp_path / "out").read()["runs"]
            for name, entry in run["files"].items()}
    run, entry = runs["neurons_toy-llama.csv"]
    budget = run["error_budget"]
    assert budget["total"] == sum(budget[step] for step in budget if step not in ("total", "estimates"))
    assert entry["checked_at_random"] == 4 * 2 * 4 and entry["checked_where_likely"] >= 4 * 2
    assert entry["largest_share_off"] == pytest.approx(1 - 0.05 ** (1 / 32))
    assert 0 < entry["largest_deviation_from_full_passes"] < budget["total"]
    assert runs["heads_toy-llama.csv"][1]["checked_at_random"] == 8 * 2
