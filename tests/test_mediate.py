"""mediate.py: a user's file to tables, figures and report, on a toy and on the real model; effects recomputed by hand."""

import json
import random
import re

import numpy as np
import pandas as pd
import pytest
import torch

from mediation.effects.statistics import Screening
from mediation.errors import InputError
from mediation.files.storage import RunFolder
from mediation.results.mediation_tables import screening_of
from mediation.stimuli import stimulus_files
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies import estimated_trees, trees
from mediation.studies.comparisons import build_comparisons
from mediation.studies.results import Account, sample_of
from mediation.studies.trees import families
from tests.test_stimulus_files import malformed

TOY = [Stimulus("1", "The {} said that", ("nurse", "man", "woman"), ("she", "he"), "short"),
       Stimulus("2", "The {} went home because", ("teacher", "man"), ("he", "she"), "long"),
       Stimulus("3", "The {} went home and", ("teacher", "man"), ("he", "she"), "long"),
       Stimulus("4", "The {} ran because", ("electrician", "man"), ("he was", "she"), "long")]


def write(tmp_path, stimuli):
    return stimulus_files.write(tmp_path / "mine.jsonl", stimuli)


def read(folder, name):
    return pd.read_csv(folder / name, keep_default_na=False, dtype={"id": str})


def by_hooks(model, base, alternative, candidates, run_base_prompt, modules, change):
    """Log odds (second over first) after full passes; `change(layer, output)` is what a hook does to the output of `modules[layer]`."""
    odds = []
    prompt = base if run_base_prompt else alternative
    for ids in candidates:
        handles = [module.register_forward_hook(lambda _m, _i, output, layer=layer: change(layer, output)) for layer, module in modules.items()]
        try:
            tokens = torch.tensor([*prompt, *ids[:-1]])
            logits = model(tokens[None]).logits[0, len(prompt) - 1:].double().log_softmax(-1)
        finally:
            for handle in handles:
                handle.remove()
        odds.append(float(logits[range(len(ids)), ids].mean()))
    return odds[1] - odds[0]


def test_a_toy_study_from_file_to_report(toy_checkpoint, tmp_path, run_script):
    path, folder = write(tmp_path, TOY), tmp_path / "out"
    command = f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {folder}"
    code, printed, error = run_script(command)
    assert code == 0, error
    assert "neurons: 1 of 5 comparisons left out: word or candidate of several tokens; --multi_token last takes it (4)" in printed
    assert "heads: 1 of 5 comparisons left out" in printed and "## Total effects" in printed and "| long | 3 |" in printed
    totals, neurons, mlps = (read(folder, f"{name}_toy-llama.csv") for name in ("total_effects", "neurons", "mlps"))
    heads, layers = (read(folder, f"{name}_toy-llama.csv") for name in ("heads", "layers"))
    assert len(totals) == 5 and len(neurons) == 4 * 4 * 16 and len(mlps) == 4 * 4 and len(heads) == 4 * 12 and len(layers) == 4 * 4
    assert set(layers["layer"]) == {"0", "1", "2", "all"}
    # effects follow from the probabilities in the table
    row, base = neurons.iloc[77], totals.set_index(["id", "alternative"])
    one = base.loc[(row["id"], row["alternative"])]
    odds = one["candidate2_base_prob"] / one["candidate1_base_prob"]
    for kind in ("indirect", "direct"):
        assert row[f"{kind}_effect"] == pytest.approx(row[f"candidate2_{kind}_prob"] / row[f"candidate1_{kind}_prob"] / odds - 1, rel=1e-6)
    # means are those of the rows
    means = pd.read_csv(folder / "heads_mean_toy-llama.csv", keep_default_na=False)
    expected = heads[(heads["layer"] == 1) & (heads["head"] == 2)]
    found = means[(means["group"] == "all") & (means["layer"] == 1) & (means["head"] == 2)].iloc[0]
    assert found["indirect_effect_mean"] == pytest.approx(expected["indirect_effect"].mean(), rel=1e-9)
    assert found["direct_effect_std"] == pytest.approx(expected["direct_effect"].std(), rel=1e-9) and found["comparisons"] == 4
    for name in ("neurons_indirect", "mlps_indirect", "mlps_direct", "heads_indirect", "heads_direct", "layers_direct", "neurons_by_group", "mlps_by_group"):
        assert (folder / f"{name}_toy-llama.pdf").stat().st_size > 1000
    assert (folder / "report_toy-llama.md").read_text() in printed + "\n"
    runs = RunFolder(folder).read()["runs"]
    assert len(runs) == 4 and all(run["finished"] for run in runs) and runs[1]["left_out"]["neurons"] and not (folder / "unfinished").exists()
    # nothing is computed again, nothing is mixed
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*_toy-llama.csv")}
    code, printed, error = run_script(command)
    assert code == 0 and printed.count("kept:") == 4 and before == {file: file.stat().st_mtime_ns for file in folder.glob("*_toy-llama.csv")}
    write(tmp_path, TOY[:2])
    code, _, error = run_script(command)
    assert code == 2 and "was made with other settings (stimuli_sha256" in error


def test_mediators_come_one_after_the_other_into_one_report(toy_checkpoint, tmp_path, run_script):
    """Method screen for neurons beside exact heads, heads before layers: nothing is computed twice, and the report has all."""
    path = write(tmp_path, [*TOY, Stimulus("5", "The {} ran because", ("nurse", "man"), ("he", "she"), "$x_")])
    command = f"mediate.py {path} -model {toy_checkpoint('gpt2')} -out_dir {tmp_path / 'out'} --mediators"
    for mediators in ("heads", "heads,layers", "neurons --method screen --screen_share 0.55", "mlps"):
        code, printed, error = run_script(f"{command} {mediators}")
        assert code == 0, error
    assert [line for line in printed.splitlines() if line.startswith("## ")] == ["## Total effects", "## Neurons", "## MLPs", "## Heads", "## Layers",
                                                                                "## How it was made"]
    assert "method screen: " in printed
    code, _, error = run_script(f"{command} heads --method screen")
    assert code == 2 and "heads_toy-gpt2.csv was made with other settings (method 'exact' -> 'screen')" in error


def test_what_fits_nothing_is_left_out(toy_checkpoint, tmp_path, run_script):
    path = write(tmp_path, [Stimulus("1", "The {} said that", ("electrician", "electricians"), ("she", "he")),
                            Stimulus("2", "The {} said that", ("xqz", "zqx"), ("she", "he"))])
    code, printed, error = run_script(f"mediate.py {path} -model {toy_checkpoint('gpt2')} -out_dir {tmp_path / 'out'}")
    assert code == 0 and "neurons: 2 of 2 comparisons left out" in printed and "## Heads" in printed and "## Neurons" not in printed, error


def test_slots_of_other_lengths_do_not_share_a_tree(toy_model):
    """Alike up to the slot's end, but with one token changed or two: estimates of one are not those of the other."""
    model = toy_model()
    stimuli = [Stimulus("a", "The {} said that", ("nurse doctor", "nurse captain"), ("she", "he")),
               Stimulus("b", "The nurse {} said that", ("doctor", "captain"), ("she", "he"))]
    comparisons = build_comparisons(model, "x", stimuli, "all")
    assert families([comparison.intervention for comparison in comparisons]) == [[0], [1]]


def test_long_families_are_run_in_parts(toy_model):
    stimuli = [Stimulus(str(number), "The {} said" + " that" * 40 + f" {number}", ("nurse", "man"), ("she", "he")) for number in range(60)]
    found = families([comparison.intervention for comparison in build_comparisons(toy_model(), "x", stimuli, None)])
    assert sorted(index for members in found for index in members) == list(range(60)) and 1 < len(found) < 10


def test_methods_and_formats(toy_checkpoint, tmp_path, run_script):
    path = write(tmp_path, TOY)
    tables = {}
    for name, options in (("exact", ""), ("gradient", "--method gradient"), ("screen", "--method screen --screen_share 0.55 --screen_sample 4 --screen_top 5"),
                          ("parquet", "--format parquet")):
        code, printed, error = run_script(f"mediate.py {path} -model {toy_checkpoint('gpt2')} -out_dir {tmp_path / name} --multi_token last "
                                          f"--mediators neurons,heads {options}")
        assert code == 0, error
        file = tmp_path / name / f"neurons_toy-gpt2.{'parquet' if name == 'parquet' else 'csv'}"
        tables[name] = (pd.read_parquet if name == "parquet" else pd.read_csv)(file)
        assert ("multi-token words: last" in printed) and (("recall of a prompt's exact top 5" in printed or "too few draws" in printed) == (name == "screen"))
    assert len(tables["exact"]) == 5 * 4 * 16  # the words of several tokens are in
    np.testing.assert_allclose(tables["parquet"]["indirect_effect"], tables["exact"]["indirect_effect"], rtol=1e-5, atol=1e-6)
    for kind in ("indirect", "direct"):
        run = tables["screen"][f"{kind}_method"] == "exact"
        assert 0.5 < run.mean() < 1 and (tables["gradient"][f"{kind}_method"] == "gradient").all()
        np.testing.assert_allclose(tables["screen"][f"{kind}_effect"][run], tables["exact"][f"{kind}_effect"][run], rtol=1e-4, atol=1e-5)
        estimated = tables["gradient"][f"{kind}_effect"]
        assert np.corrcoef(estimated, tables["exact"][f"{kind}_effect"])[0, 1] > 0.5


def test_an_interrupted_run_goes_on(toy_checkpoint, tmp_path, run_script, monkeypatch):
    path = write(tmp_path, TOY)
    command = f"mediate.py {path} -model {toy_checkpoint('gpt2')} -out_dir {tmp_path / 'out'} --mediators neurons,heads"
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
    with monkeypatch.context() as patch:
        patch.setattr(trees, "neurons_in_trees", lambda *arguments, **named: calls.append(1) or sweep(*arguments, **named))
        assert run_script(command)[0] == 0
    assert len(calls) == 4 + 2 * 3 - 3  # three trees, two effects each; the first effect of all was kept
    assert run_script(command.replace("/out", "/whole"))[0] == 0
    for name in ("neurons", "heads", "neurons_mean"):
        pd.testing.assert_frame_equal(read(tmp_path / "out", f"{name}_toy-gpt2.csv"), read(tmp_path / "whole", f"{name}_toy-gpt2.csv"))


@pytest.mark.parametrize("rows, message", [
    ([{"base": "The {}" + " said" * 70}], r"line 1: \d+ tokens, the model takes 64: shorten the text"),
    ([{"substitutes": ["electrician", "man"]}],
     "line 1: no stimulus of the file fits neurons: 1 of 1 comparisons, such as '1': word or candidate of several tokens"),
    ([{"candidates": ["he", "he "]}], "line 1: field 'candidates': two of them are the same"),
], ids=["long", "nothing fits", "equal"])
def test_bad_input_ends_in_one_line(toy_checkpoint, tmp_path, run_script, rows, message):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"id": "1", "base": "The {} said that", "substitutes": ["nurse", "man"], "candidates": ["she", "he"], **row})
                              for row in rows))
    code, _, error = run_script(f"mediate.py {path} -model {toy_checkpoint('gpt2')} -out_dir {tmp_path / 'out'} --mediators neurons")
    assert code == 2 and re.search(message, error) and "\n" not in error.strip() and not (tmp_path / "out").exists()


def test_three_hundred_malformed_files_end_in_one_line(toy_model, tmp_path):
    """What the reader lets through (emoji, other scripts, strange words) either fits the model or is refused with file and line."""
    model, path, run = toy_model(), tmp_path / "mine.jsonl", 0
    for number in range(300):
        path.write_bytes(malformed(random.Random(1000 + number)))
        try:
            comparisons = build_comparisons(model, path, stimulus_files.read(path), "last")
            found = model.base_in_trees([comparisons[-1].intervention])
            assert torch.isfinite(found).all() and (found < 0).all()
            run += 1
        except InputError as error:
            assert str(error).startswith(f"{path}, line ") and "\n" not in str(error)
    assert run > 10


def test_masked_models_have_attention_only(toy_checkpoint, toy_tokenizer, tmp_path, run_script):
    folder = toy_checkpoint("roberta")
    names = toy_tokenizer.convert_ids_to_tokens([11, 12, 13])
    type(toy_tokenizer).from_pretrained(folder, mask_token=names[0], cls_token=names[1], sep_token=names[2]).save_pretrained(folder)
    path = write(tmp_path, TOY[:3])
    code, printed, error = run_script(f"mediate.py {path} -model {folder} -out_dir {tmp_path / 'one'}")
    assert code == 0 and "neurons: 4 of 4 comparisons left out: toy-roberta is a masked model" in printed, error
    code, _, error = run_script(f"mediate.py {path} -model {folder} -out_dir {tmp_path / 'out'} --mediators heads,layers --masking_approach 3")
    assert code == 0 and (tmp_path / "out" / "heads_toy-roberta_3.csv").exists(), error


def test_exported_professions_give_the_same_numbers(toy_checkpoint, tmp_path, run_script):
    folder = toy_checkpoint("gpt2")
    assert run_script(f"run_profession_neuron_experiments.py -model {folder} -out_dir {tmp_path / 'old'} -template_indices 1 12 "
                      "--professions nurse teacher")[0] == 0
    assert run_script(f"export_stimuli.py professions -out {tmp_path / 'p.jsonl'} --template_indices 1 12 --words nurse teacher")[0] == 0
    code, _, error = run_script(f"mediate.py {tmp_path / 'p.jsonl'} -model {folder} -out_dir {tmp_path / 'new'} --mediators neurons")
    assert code == 0, error
    new = read(tmp_path / "new", "neurons_toy-gpt2.csv").set_index(["id", "layer", "neuron"])
    for template, number in (("The_X_said_that", 1), ("The_X_laughed_because", 12)):
        for kind in ("man_indirect", "woman_direct"):
            (table,) = (tmp_path / "old").glob(f"results/*/{template}_{kind}_toy-gpt2.csv")
            gender, effect = kind.split("_")
            for _, row in pd.read_csv(table).sample(20, random_state=0).iterrows():
                found = new.loc[(f"{number}_{row['word']}_{gender}", row["layer"], row["neuron"])]
                he, she = ("2", "1") if gender == "man" else ("1", "2")
                assert found[f"candidate{he}_{effect}_prob"] == pytest.approx(row["candidate1_prob"], rel=1e-5)
                assert found[f"candidate{she}_{effect}_prob"] == pytest.approx(row["candidate2_prob"], rel=1e-5)
    assert run_script(f"export_stimuli.py professions -out {tmp_path / 'p.jsonl'}")[0] == 2  # nothing is overwritten


@pytest.mark.parametrize("study", ["winobias", "winogender"])
def test_exported_pronouns_give_the_same_numbers(toy_checkpoint, data, tmp_path, run_script, study):
    folder = toy_checkpoint("llama")
    option = "--split dev" if study == "winobias" else "--stat bls"
    assert run_script(f"attention_intervention_{study}.py -model {folder} --do-filter False {option} -out_dir {tmp_path / 'old'}")[0] == 0
    assert run_script(f"export_stimuli.py {study} -out {tmp_path / 'p.jsonl'} {option}")[0] == 0
    code, _, error = run_script(f"mediate.py {tmp_path / 'p.jsonl'} -model {folder} -out_dir {tmp_path / 'new'} --mediators layers,heads")
    assert code == 0, error
    (path,) = (tmp_path / "old" / f"{study}_data").glob("attention_intervention_*.json")
    results = json.loads(path.read_text())["results"]
    totals, heads, layers = (read(tmp_path / "new", f"{name}_toy-llama.csv") for name in ("total_effects", "heads", "layers"))
    np.testing.assert_allclose(totals["total_effect"], [entry["total_effect"] for entry in results], rtol=1e-5)
    for kind in ("indirect", "direct"):
        np.testing.assert_allclose(heads[f"{kind}_effect"], np.ravel([entry[f"{kind}_effect_head"] for entry in results]), rtol=1e-5, atol=1e-7)
        whole = layers[layers["layer"] == "all"][f"{kind}_effect"]
        np.testing.assert_allclose(whole, [entry[f"{kind}_effect_model"] for entry in results], rtol=1e-5, atol=1e-7)


# the real model

MIXED = [
    ("The {} said that", ["nurse", "man"], ["she", "he"]), ("The {} said that", ["electrician", "woman"], ["he", "she"]),
    ("The {} yelled because", ["registered nurse", "man"], ["she", "he"]), ("{} went home because", ["Mary", "John"], ["she", "he"]),
    ("{} went home, and then", ["Mary", "Christopher"], ["she", "he"]), ("In the garden, the {} near the trees", ["author", "authors"], ["is", "are"]),
    ("The {}", ["author", "authors"], ["was born", "were born"]), ("The {} that the guards like", ["pilot", "pilots"], ["has", "have"]),
    ("Paris is the capital of", ["", ""], ["France", "Italy"]), ("The capital of {} is", ["France", "Italy"], ["Paris", "Rome"]),
    ("The capital of {} is the city of", ["Germany", "Spain"], ["Berlin", "Madrid"]),
    ("She put the {} on the table because it", ["trophy", "book"], ["was", "is"]),
    ("My {} told me that", ["grandmother", "grandfather"], ["she", "he"]), ("My {} told me", ["mother-in-law", "father"], ["that she", "that he"]),
    ("The {} is", ["ice", "fire"], ["cold", "hot"]), ("Yesterday the {} was very", ["weather", "food"], ["cold", "delicious"]),
    ("A {} has", ["bicycle", "car"], ["two wheels", "four wheels"]), ("The {} barked", ["dog", "neighbour's dogs"], ["loudly", "at me"]),
    ("“{}” he said, and", ["Yes", "No"], ["smiled", "left"]), ("The queen gave the {} to the king because", ["crown", "ring"], ["he", "she"]),
]


def test_twenty_mixed_lines_on_the_real_model(smollm2, tmp_path, run_script):
    """A user's file of mixed lengths and words; five effects are recomputed by hand, with nothing of the project's own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stimuli = [Stimulus(f"q{number}", base, tuple(words), tuple(candidates), "mine") for number, (base, words, candidates) in enumerate(MIXED)
               if "{}" in base] + [Stimulus("q8", "Paris is the {} of", ("capital", "heart"), ("France", "Italy"), "mine")]
    assert len(stimuli) == 20
    path, folder = write(tmp_path, stimuli), tmp_path / "out"
    code, _, error = run_script(f"mediate.py {path} -model smollm2-135m -out_dir {folder} --multi_token last --mediators mlps")
    assert code == 0, error
    path = stimulus_files.write(tmp_path / "one.jsonl", [stimuli[8]])  # all heads of twenty would take minutes
    code, _, error = run_script(f"mediate.py {path} -model smollm2-135m -out_dir {folder}/one --mediators layers,heads")
    assert code == 0 and stimuli[8].id == "q9", error
    totals, mlps, heads = (read(folder, f"{name}_smollm2-135m.csv") for name in ("total_effects", "mlps", "one/heads"))
    assert len(totals) == 20 and len(mlps) == 20 * 31

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, attn_implementation="eager").eval()

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompts_of(number):
        stimulus = next(each for each in stimuli if each.id == f"q{number}")
        before = stimulus.base.split("{}")[0]
        filled = [ids(stimulus.base.replace("{}", word)) for word in stimulus.substitutes]
        last = [len(ids(before + word)) - 1 for word in stimulus.substitutes]  # these words end where a token ends
        return filled, last, [ids(" " + candidate) for candidate in stimulus.candidates]

    with torch.no_grad():
        (base, alternative), _, candidates = prompts_of(6)  # candidates of two tokens
        y = [by_hooks(model, prompt, None, candidates, True, {}, None) for prompt in (base, alternative)]
        assert totals.set_index("id").loc["q6", "total_effect"] == pytest.approx(np.expm1(y[1] - y[0]), rel=1e-4)

        for number, layer, kind in ((2, 0, "indirect"), (1, 5, "direct"), (13, 11, "indirect")):  # words of several tokens
            (base, alternative), places, candidates = prompts_of(number)
            modules = [model.model.embed_tokens, *(block.mlp for block in model.model.layers)]
            outputs = []
            for prompt in (base, alternative):
                handle = modules[layer].register_forward_hook(lambda _m, _i, output, outputs=outputs: outputs.append(output[0].clone()))
                model(torch.tensor([prompt]))
                handle.remove()
            run, source = (0, 1) if kind == "indirect" else (1, 0)

            def change(_layer, output, run=run, source=source, places=places, outputs=outputs):
                output = output.clone()
                output[0, places[run]] = outputs[source][places[source]]
                return output

            odds = by_hooks(model, base, alternative, candidates, run == 0, {layer: modules[layer]}, change)
            y = by_hooks(model, base, None, candidates, True, {}, None)
            row = mlps[(mlps["id"] == f"q{number}") & (mlps["layer"] == layer)].iloc[0]
            assert row[f"{kind}_effect"] == pytest.approx(np.expm1(odds - y), rel=1e-3, abs=1e-4)

        (base, alternative), _, candidates = prompts_of(9)  # attention weights of one head: the output projection is given the difference
        layer, head, size = 14, 3, model.config.hidden_size // model.config.num_attention_heads
        weights = [model(torch.tensor([prompt]), output_attentions=True).attentions[layer][0, head] for prompt in (base, alternative)]
        attention, values = model.model.layers[layer].self_attn, []
        handles = [attention.v_proj.register_forward_hook(lambda _m, _i, output: values.append(output[0]))]

        def project(_module, inputs):
            changed = inputs[0].clone()
            group = head // (model.config.num_attention_heads // model.config.num_key_value_heads)
            changed[0, : len(base), head * size:(head + 1) * size] += (weights[1] - weights[0]) @ values[-1][: len(base), group * size:(group + 1) * size]
            return (changed,)

        handles.append(attention.o_proj.register_forward_pre_hook(project))
        odds = by_hooks(model, base, None, candidates, True, {}, None)
        for handle in handles:
            handle.remove()
        y = by_hooks(model, base, None, candidates, True, {}, None)
        row = heads[(heads["id"] == "q9") & (heads["layer"] == layer) & (heads["head"] == head)].iloc[0]
        assert row["indirect_effect"] == pytest.approx(np.expm1(odds - y), rel=1e-3, abs=1e-5)


FOUR = [Stimulus(f"{template}-{word}", template, (word, "man"), ("she", "he")) for word in ("nurse", "teacher", "captain", "doctor")
        for template in ("The {} said that", "The {} went home because")]
SCREEN = "--method screen --screen_share 0.625 --screen_sample 3 --screen_top 8"


def test_a_unit_drawn_for_a_tree_is_one_draw(toy_checkpoint, tmp_path, run_script):
    """Two templates of a word are one tree, whose units are drawn once: as the profession study counts them."""
    path, model = write(tmp_path, FOUR), toy_checkpoint("llama")
    code, printed, error = run_script(f"mediate.py {path} -model {model} -out_dir {tmp_path / 'own'} --mediators neurons {SCREEN}")
    assert code == 0, error
    (entry,) = [run["files"]["neurons_toy-llama.csv"] for run in RunFolder(tmp_path / "own").read()["runs"] if "neurons_toy-llama.csv" in run["files"]]
    assert entry["screen"]["drawn"] == 4 * 2 * 3 and f"{4 * 2 * 3} random neurons of the 8 a prompt" in printed
    study = f"run_profession_neuron_experiments.py -template_indices 1 13 --professions nurse teacher captain doctor {SCREEN}"
    code, _, error = run_script(f"{study} --intervention_types man_direct man_indirect", "-model", model, "-out_dir", tmp_path / "study")
    assert code == 0, error
    (folder,) = (tmp_path / "study").glob("results/*")
    assert RunFolder(folder).read()["runs"][0]["screening"]["drawn"] == entry["screen"]["drawn"]


def test_a_unit_missed_in_several_comparisons_of_a_tree_is_one_miss():
    """Unit 3 was drawn; it is among the strongest of the second and the third comparison."""
    effects = np.array([[5.0, 4, 3, 1, 0], [5, 4, 3, 9, 0], [5, 4, 3, 9, 0]])
    arrays = {"base": np.zeros((3, 2, 2)), "log_probabilities": np.stack([np.zeros_like(effects), effects], axis=2), "chosen": np.array([0, 1, 2]),
              "drawn": np.array([3, 4]), "rest": np.int64(2), "estimates": effects[:, 3:]}
    account = Account(samples=[sample_of(arrays, position, 0, "tree_0", "nurse", 3) for position in range(3)])
    screen = account.entry(3)["screen"]
    assert (screen["drawn"], screen["missed"], screen["rest"]) == (2, [["nurse", 3]], 2)
    assert screening_of({"screen": screen}, 3) == Screening(2, 1, 2, 3) and screen["largest_difference"] == 0


def test_trees_that_share_a_null_prompt_draw_their_own_units(toy_checkpoint, tmp_path, run_script, monkeypatch):
    path, draws = write(tmp_path, [Stimulus("1", "The {} said that", ("nurse", "man", "woman", "king"), ("she", "he"))]), []
    screen = estimated_trees.screened_units
    monkeypatch.setattr(estimated_trees, "screened_units", lambda *arguments: draws.append(arguments[-1].bit_generator.state) or screen(*arguments))
    code, _, error = run_script(f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {tmp_path / 'out'} --mediators neurons {SCREEN}")
    assert code == 0, error
    assert len(draws) == 6 and len({str(seed) for seed in draws}) == 6


@pytest.mark.parametrize("method", ["", "--method gradient", SCREEN])
def test_what_cannot_reach_the_output_has_exactly_no_effect(toy_checkpoint, tmp_path, run_script, method):
    """The last layer's neurons before the last token, in the null prompt's run; the slot is the word's only place."""
    path = write(tmp_path, [*TOY[:3], *FOUR])
    for mediators in ("neurons", "mlps"):
        code, _, error = run_script(f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {tmp_path / 'out'} --mediators {mediators} {method}")
        assert code == 0, error
        table = read(tmp_path / "out", f"{mediators}_toy-llama.csv")
        last = table["layer"] == table["layer"].max()
        assert (table.loc[last, "indirect_effect"] == 0).all() and (table.loc[~last, "indirect_effect"] != 0).any()


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
    path = write(tmp_path, FOUR[:1])
    code, _, error = run_script(f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {tmp_path / 'out'} --mediators neurons")
    assert code == 2 and "the sweep and full passes differ by 1.0e-02 in a log-probability, more than the accepted" in error


def test_the_manifest_has_the_error_budget_and_what_the_check_supports(toy_checkpoint, tmp_path, run_script):
    path = write(tmp_path, FOUR)
    assert run_script(f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {tmp_path / 'out'} --mediators neurons,heads")[0] == 0
    runs = {name: (run, entry) for run in RunFolder(tmp_path / "out").read()["runs"] for name, entry in run["files"].items()}
    run, entry = runs["neurons_toy-llama.csv"]
    budget = run["error_budget"]
    assert budget["total"] == sum(budget[step] for step in budget if step not in ("total", "estimates"))
    assert entry["checked_at_random"] == 4 * 2 * 4 and entry["checked_where_likely"] >= 4 * 2
    assert entry["largest_share_off"] == pytest.approx(1 - 0.05 ** (1 / 32))
    assert 0 < entry["largest_deviation_from_full_passes"] < budget["total"]
    assert runs["heads_toy-llama.csv"][1]["checked_at_random"] == 8 * 2
