"""Selected heads and neurons against the oracle's choices."""

import json
import shutil

import numpy as np
import pytest

from experiment import Intervention, Model
from mediation.files.storage import read_pickle, write_pickle
from mediation.studies import selection
from tests.helpers import HEAD_SELECTION, NEURON_SELECTION, pickles


def test_heads_of_the_oracle(golden, golden_model, head_files, mean_effects):
    model = Model(gpt2_version=str(golden_model))
    every = json.loads((golden / "attention" / "inputs.json").read_text())["winobias_dev"]
    interventions = []
    for wanted in json.loads((golden / "head_selection" / "inputs.json").read_text())["interventions"]:
        example = next(e for e in every if e["base_strings"] == wanted["base_strings"]
                       and e["candidates_tok"] == wanted["candidates_tok"])
        interventions.append(Intervention(model.tokenizer, example["base_string"],
                                          (example["female_pronoun"], example["male_pronoun"]),
                                          (example["female_occupation_continuation"],
                                           example["male_occupation_continuation"])))
    files = head_files(model, interventions)
    oracle = {kind: read_pickle(golden / "head_selection" / f"{kind}_gpt2-toy_wb.pickle")
              for kind in ("mean_effect", "topk", "greedy", "greedy_intermediate")}
    means = mean_effects(files)
    for key, value in oracle["mean_effect"].items():
        np.testing.assert_allclose(means[key], value, atol=1e-5)
    top = files.top_k(selection.best_first(means["mean_effect_head"]).tolist(), 4)
    files.greedy(2)
    greedy = files.greedy(4)
    for selected, expected in ((top, oracle["topk"]), (greedy, oracle["greedy"])):
        assert selected["head"] == [tuple(map(int, head)) for head in expected["head"]]
        np.testing.assert_allclose(selected["val"], expected["val"], atol=1e-5)
    tables = read_pickle(files.run_folder.folder / "greedy_intermediate.pickle")
    assert list(tables) == [0, 1, 2, 3]
    for step, table in tables.items():
        open_cells = np.ones((4, 4), bool)
        for layer, head in greedy["head"][:step]:
            open_cells[layer, head] = False
        np.testing.assert_allclose(table[:, open_cells], oracle["greedy_intermediate"][step][:, open_cells],
                                   rtol=1e-5, atol=1e-5)


def test_files_of_2020_are_read(golden, run_script, tmp_path):
    for path in (golden / "head_selection").glob("*.pickle"):
        shutil.copy(path, tmp_path)
    arguments = (HEAD_SELECTION, "--model_type", "gpt2-toy", "--figures_only", "--out_dir", tmp_path, "--k",
                 4)
    code, output, errors = run_script(*arguments)
    assert code == 0 and "all heads together: 0.637250\n" in output and "0.490457" in output, errors
    assert "no intervals of top-k, greedy: these files hold no objectives per example" in output
    assert (tmp_path / "sparsity_gpt2-toy_winobias.pdf").exists()
    code, _, errors = run_script(*arguments, "--data", "winogender")
    assert code == 2 and "has no mean_effect_gpt2-toy_winogender.pickle, nor one named wg" in errors
    write_pickle(tmp_path / "greedy_gpt2-toy_wb.pickle", {"val": [0.1, 0.2], "head": [(0, 1)]})
    code, _, errors = run_script(*arguments)
    assert code == 2 and "greedy_gpt2-toy_wb.pickle is no selection of heads" in errors


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """A folder for all layers: the effects of single neurons are computed once."""
    return tmp_path_factory.mktemp("selected")


@pytest.mark.parametrize("layer", [None, 0, 4])
def test_neurons_of_the_oracle(golden, golden_model, run_script, selected, layer):
    inputs = json.loads((golden / "neuron_selection" / "inputs.json").read_text())
    words = [word for word, *_ in inputs["female_list"] + inputs["male_list"]]
    end = "gpt2-toy" if layer is None else f"gpt2-toy_{layer}"
    oracle = {path.name: read_pickle(path)
              for path in (golden / "neuron_selection" / "corrected").glob("*.pickle")}
    top, greedy = oracle[f"topk_{end}.pickle"], oracle.get(f"greedy_{end}.pickle")
    for algo, values in (("topk", top), ("greedy", greedy["val"] if greedy else None)):
        if values is not None:
            options = ["--algo", algo, "--k", len(values), *(["--layer", layer] if layer is not None else [])]
            code, _, errors = run_script(NEURON_SELECTION, "-model", golden_model, "--out_dir", selected,
                                         "-template_indices", 1, 13, "--professions", *words,
                                         # in float32 a value of 3.79 is 1.2e-5 off
                                         "--dtype", "float64", *options)
            assert code == 0, errors
    ours_by_name = pickles(selected)
    np.testing.assert_allclose(ours_by_name[f"topk_{end}.pickle"], top, atol=1e-5)
    alone, expected = ours_by_name["marg_contrib.pickle"], oracle["marg_contrib_gpt2-toy.pickle"]
    np.testing.assert_allclose(alone["val"], expected["val"], atol=1e-5)
    ours, theirs = ({(x, y): v for x, y, v in zip(table["layer"], table["neuron"], table["val"])}
                    for table in (alone, expected))
    assert ours.keys() == theirs.keys() and max(abs(ours[unit] - theirs[unit]) for unit in ours) < 1e-5
    if greedy:
        np.testing.assert_allclose(ours_by_name[f"greedy_{end}.pickle"]["val"], greedy["val"], atol=1e-5)
        if layer != 4:  # in the last layer every effect is exactly 0, and the oracle repeats its neuron
            for key in greedy.keys() - {"val"}:
                assert ours_by_name[f"greedy_{end}.pickle"][key] == [int(value) for value in greedy[key]]
