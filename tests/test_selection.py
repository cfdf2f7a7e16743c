"""Selecting heads and neurons: the oracle's choices, resuming, lazy greedy, sets in one descent, and pickles that are not trusted."""

import json
import os
import pickle
import random
import runpy
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from attention_utils import perform_intervention
from experiment import Intervention
from mediation.effects.statistics import smallest_reaching
from mediation.errors import InputError
from mediation.files.storage import RunFolder, read_pickle, write_pickle
from mediation.mediators.head_sweeps import heads_in_sets
from mediation.mediators.neuron_sweeps import neuron_sets
from mediation.studies import selection
from tests.conftest import WINOBIAS_ROWS
from tests.preloaded import new_process

PROJECT = Path(__file__).parent.parent
HEADS, NEURONS = "attention_intervention_subset_selection.py", "neuron_intervention_subset_selection.py"
mean_effects = runpy.run_path(str(PROJECT / HEADS))["mean_effects"]


@pytest.fixture
def head_files(tmp_path):
    """head_files(model, interventions) -> SelectionFiles in a folder of its own."""
    def make(model, interventions):
        names = {kind: f"{kind}.pickle" for kind in ("mean_effect", *selection.KINDS)}
        folder = RunFolder(tmp_path / "heads")
        folder.claim(names.values(), {})
        run = folder.begin({"settings": {}, "files": {name: {} for name in names.values()}})
        examples = {index: selection.HeadExample(intervention, None) for index, intervention in enumerate(interventions)}
        return selection.SelectionFiles(model, folder, run, names, examples, "", " examples", (model.num_layers, model.num_heads), "head")
    return make


@pytest.fixture
def neurons(run_script, toy_checkpoint, tmp_path):
    """neurons(*options) runs the neuron selection on a toy; pickles in tmp_path / "out"."""
    def run(*options):
        return run_script(NEURONS, "-model", toy_checkpoint("gpt2"), "--out_dir", tmp_path / "out", "-template_indices", 1, "--professions", "nurse", "captain",
                          "teacher", "doctor", *options)
    return run


def pickles(folder):
    return {path.name: read_pickle(path) for path in Path(folder).glob("*.pickle")}


def same(one, other):
    """Equal, value by value, for nested lists, dictionaries and arrays."""
    return json.dumps(one, default=lambda value: value.tolist(), sort_keys=True) == json.dumps(other, default=lambda value: value.tolist(), sort_keys=True)


# the oracle


def test_heads_of_the_oracle(golden, golden_model, head_files):
    from experiment import Model
    model = Model(gpt2_version=str(golden_model))
    every = json.loads((golden / "attention" / "inputs.json").read_text())["winobias_dev"]
    interventions = []
    for wanted in json.loads((golden / "head_selection" / "inputs.json").read_text())["interventions"]:
        found = next(e for e in every if e["base_strings"] == wanted["base_strings"] and e["candidates_tok"] == wanted["candidates_tok"])
        interventions.append(Intervention(model.tokenizer, found["base_string"], (found["female_pronoun"], found["male_pronoun"]),
                                          (found["female_occupation_continuation"], found["male_occupation_continuation"])))
    files = head_files(model, interventions)
    oracle = {kind: read_pickle(golden / "head_selection" / f"{kind}_gpt2-toy_wb.pickle") for kind in ("mean_effect", "topk", "greedy", "greedy_intermediate")}
    means = mean_effects(files)
    for key, value in oracle["mean_effect"].items():
        np.testing.assert_allclose(means[key], value, atol=1e-5)
    top = files.top_k(selection.best_first(means["mean_effect_head"]).tolist(), 4)
    files.greedy(2)
    greedy = files.greedy(4)
    for found, expected in ((top, oracle["topk"]), (greedy, oracle["greedy"])):
        assert found["head"] == [tuple(map(int, head)) for head in expected["head"]]
        np.testing.assert_allclose(found["val"], expected["val"], atol=1e-5)
    tables = read_pickle(files.run_folder.folder / "greedy_intermediate.pickle")
    assert list(tables) == [0, 1, 2, 3]
    for step, table in tables.items():
        open_cells = np.ones((4, 4), bool)
        for layer, head in greedy["head"][:step]:
            open_cells[layer, head] = False
        np.testing.assert_allclose(table[:, open_cells], oracle["greedy_intermediate"][step][:, open_cells], rtol=1e-5, atol=1e-5)


def test_files_of_2020_are_read(golden, run_script, tmp_path):
    for path in (golden / "head_selection").glob("*.pickle"):
        shutil.copy(path, tmp_path)
    arguments = (HEADS, "--model_type", "gpt2-toy", "--figures_only", "--out_dir", tmp_path, "--k", 4)
    code, output, errors = run_script(*arguments)
    assert code == 0 and "all heads together: 0.637250" in output and "0.490457" in output, errors
    assert (tmp_path / "sparsity_gpt2-toy_winobias.pdf").exists()
    code, _, errors = run_script(*arguments, "--data", "winogender")
    assert code == 2 and "has no mean_effect_gpt2-toy_winogender.pickle, nor one named wg" in errors
    write_pickle(tmp_path / "greedy_gpt2-toy_wb.pickle", {"val": [0.1, 0.2], "head": [(0, 1)]})
    code, _, errors = run_script(*arguments)
    assert code == 2 and "greedy_gpt2-toy_wb.pickle is no selection of heads" in errors


@pytest.mark.parametrize("layer", [None, 0, 1, 4])
def test_neurons_of_the_oracle(golden, golden_model, run_script, tmp_path, layer):
    inputs = json.loads((golden / "neuron_selection" / "inputs.json").read_text())
    words = [word for word, *_ in inputs["female_list"] + inputs["male_list"]]
    end = "gpt2-toy" if layer is None else f"gpt2-toy_{layer}"
    oracle = {path.name: read_pickle(path) for path in (golden / "neuron_selection" / "corrected").glob("*.pickle")}
    top, greedy = oracle[f"topk_{end}.pickle"], oracle.get(f"greedy_{end}.pickle")
    for algo, values in (("topk", top), ("greedy", greedy["val"] if greedy else None)):
        if values is not None:
            options = ["--algo", algo, "--k", len(values), *(["--layer", layer] if layer is not None else [])]
            code, _, errors = run_script(NEURONS, "-model", golden_model, "--out_dir", tmp_path, "-template_indices", 1, 13, "--professions", *words,
                                         "--dtype", "float64", *options)  # in float32 a value of 3.79 is 1.2e-5 off
            assert code == 0, errors
    found = pickles(tmp_path)
    np.testing.assert_allclose(found[f"topk_{end}.pickle"], top, atol=1e-5)
    alone, expected = found["marg_contrib.pickle"], oracle["marg_contrib_gpt2-toy.pickle"]
    np.testing.assert_allclose(alone["val"], expected["val"], atol=1e-5)
    ours, theirs = ({(x, y): v for x, y, v in zip(table["layer"], table["neuron"], table["val"])} for table in (alone, expected))
    assert ours.keys() == theirs.keys() and max(abs(ours[unit] - theirs[unit]) for unit in ours) < 1e-5
    if greedy:
        np.testing.assert_allclose(found[f"greedy_{end}.pickle"]["val"], greedy["val"], atol=1e-5)
        if layer != 4:  # in the last layer every effect is exactly 0, and the oracle repeats its neuron
            for key in greedy.keys() - {"val"}:
                assert found[f"greedy_{end}.pickle"][key] == [int(value) for value in greedy[key]]


# sets in one descent


@pytest.mark.parametrize("kind", ["indirect", "direct"])
def test_sets_with_common_heads_equal_full_passes(toy_model, stimulus, architecture, kind, monkeypatch):
    """Heads that every set has are run once, by a leader; rows without heads of their own, nested sets and single rows included."""
    model = toy_model(architecture, torch.float64)
    rng = np.random.default_rng(0)
    batches = [[[5, unit] for unit in range(12)],
               [[2, 9, 11]], [[0], [0, 7], [0, 7, 3]], [rng.permutation(12)[:4].tolist() for _ in range(5)], [[11, 10], [11, 9]]]
    for sets in batches:
        chosen = torch.zeros(len(sets), 12, dtype=torch.bool)
        for row, units in enumerate(sets):
            chosen[row, units] = True
        chosen = chosen.reshape(-1, 3, 4)
        fast = heads_in_sets(model, stimulus(model), kind, chosen)
        with monkeypatch.context() as patch:
            patch.setattr(model, "full_passes", True)
            slow = heads_in_sets(model, stimulus(model), kind, chosen)
        np.testing.assert_allclose(fast, slow, atol=1e-10 if architecture == "gpt2" else 1e-6)


def test_all_heads_equal_the_model_level_effect(toy_model, stimulus, head_files):
    model = toy_model()
    files = head_files(model, [stimulus(model)])
    entry = perform_intervention(stimulus(model), model)
    assert mean_effects(files)["mean_effect_model"] == pytest.approx(entry["indirect_effect_model"], abs=1e-6)
    assert files.greedy(12)["val"][-1] == pytest.approx(entry["indirect_effect_model"], abs=1e-6)


def test_top_k_and_greedy_agree_on_the_first(toy_model, stimulus, head_files):
    model = toy_model("llama")
    files = head_files(model, [stimulus(model)])
    top = files.top_k(selection.best_first(mean_effects(files)["mean_effect_head"]).tolist(), 1)
    greedy = files.greedy(1)
    assert top["head"] == greedy["head"] and top["val"] == pytest.approx(greedy["val"], rel=1e-5)


def test_neuron_sets_equal_the_experiment(toy_model):
    model = toy_model("llama", torch.float64)
    intervention = Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"])
    swept, base = neuron_sets(model, intervention, "man_indirect", torch.tensor([[3 * 16 + 2, 5], [7, 7]]))
    pair = model.neuron_intervention_single_experiment(intervention, "man_indirect", [2, -1], [2, 5], intervention_loc="neuron")
    one = model.neuron_intervention_single_experiment(intervention, "man_indirect", [-1], [7], intervention_loc="neuron")
    np.testing.assert_allclose(swept.exp(), [[pair[6].item(), pair[7].item()], [one[6].item(), one[7].item()]], rtol=1e-10)
    np.testing.assert_allclose(base.exp(), pair[:2], rtol=1e-10)


# greedy, lazy and not


def coverage(rng, cells):
    """A submodular objective: how much of a ground set the units cover together; and a way to use it."""
    covers = rng.random((cells, 60)) < 0.15

    class Files(selection.SelectionFiles):
        def __init__(self):
            self.shape, self.label, self.first_layer, self.cells = (1, cells), "head", 0, cells
            self.stored = {}

        def read(self, kind):
            return self.stored.get(kind)

        def write(self, kind, content, rows):
            self.stored[kind] = content

        def objectives(self, kind, step, sets, evaluate=None):
            return np.array([[covers[list(units)].any(axis=0).sum() for units in sets]], float)

        run_folder = type("Folder", (), {"remove_shards": staticmethod(lambda name: None)})
        names = dict.fromkeys(selection.KINDS)
    return Files


def test_lazy_greedy_equals_greedy_where_gains_do_not_grow():
    for seed in range(10):
        files = coverage(np.random.default_rng(seed), 64)()
        plain, lazy = files.greedy(6), files.lazy_greedy(6)
        assert lazy["val"] == plain["val"] and lazy["grown"] == 0
        assert lazy["saved"] > 0 and not lazy["certified"] and lazy["evaluations"] + lazy["saved"] == sum(64 - step for step in range(6))


def test_lazy_greedy_that_left_nothing_out_is_certified():
    lazy = coverage(np.random.default_rng(0), 10)().lazy_greedy(2)
    assert lazy["saved"] == 0 and lazy["certified"]


def test_greedy_never_repeats_a_unit():
    assert selection.greedy_step(np.array([[5.0, 4.0], [3.0, 6.0]]), [3]) == (0, 5.0)
    assert selection.best_first([1.0, 2.0, 2.0, 0.0]).tolist() == [1, 2, 0, 3]
    assert smallest_reaching([0.1, 0.3, 0.2], 0.25) == 2 and smallest_reaching([0.1], 1) is None


# files


@pytest.fixture
def likely(monkeypatch):
    """The objective's filter on base probabilities is for real vocabularies: a toy's random head gives no word 1%."""
    monkeypatch.setattr("mediation.effects.statistics.LEAST_PROBABILITY", 0.0)


def test_a_larger_k_goes_on_and_a_smaller_one_keeps(neurons, likely, tmp_path):
    code, _, errors = neurons("--k", 2)
    assert code == 0, errors
    two = pickles(tmp_path / "out")
    assert neurons("--k", 4)[0] == 0
    four = pickles(tmp_path / "out")
    assert four["greedy_toy-gpt2.pickle"]["val"][:2] == two["greedy_toy-gpt2.pickle"]["val"] and len(four["greedy_toy-gpt2.pickle"]["val"]) == 4
    assert neurons("--k", 1)[0] == 0 and same(pickles(tmp_path / "out"), four)
    (tmp_path / "out").rename(tmp_path / "first")
    assert neurons("--k", 4)[0] == 0
    assert same(pickles(tmp_path / "out"), four)


def test_what_random_orders_and_lazy_greedy_write(neurons, likely, tmp_path):
    code, output, _ = neurons("--k", 3, "--algo", "greedy,random", "--orders", 4, "--lazy")
    assert code == 0 and "evaluations of sets" in output and "certified equal to plain greedy" in output
    found = pickles(tmp_path / "out")
    assert np.shape(found["random_toy-gpt2.pickle"]["val"]) == (4, 3) and len(found["lazy_toy-gpt2.pickle"]["val"]) == 3
    assert (tmp_path / "out" / "sparsity_toy-gpt2.pdf").read_bytes().startswith(b"%PDF")


def test_other_settings_are_refused(neurons, likely, tmp_path):
    neurons("--k", 1, "--algo", "topk")
    before = pickles(tmp_path / "out")
    code, _, errors = neurons("--k", 1, "--dtype", "float64")
    assert code == 2 and "dtype 'float32' -> 'float64'" in errors and same(pickles(tmp_path / "out"), before)


@pytest.mark.parametrize("options, message", [
    (["--k", "65"], "--k 65: there are 64 units"),
    (["--layer", "2", "--k", "17"], "there are 16 units"),
    (["--layer", "4"], "--layer 4: the model has layers 0 (word embedding) to 3"),
    (["--layer", "-2"], "--layer -2"),
    (["--algo", "topk,best"], "'best' is unknown: choose from topk, greedy, random"),
    (["--k", "0"], "0 is not a whole number"),
])
def test_what_cannot_be_selected(neurons, likely, tmp_path, options, message):
    code, _, errors = neurons(*options)
    assert code == 2 and message in errors and len(errors.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_no_prompt_that_counts(neurons, tmp_path):
    code, _, errors = neurons("--k", 1)
    assert code == 2 and "none of 4 professions counts" in errors and not (tmp_path / "out").exists()


def test_head_selection_needs_examples(run_script, toy_checkpoint, data, tmp_path):
    arguments = (HEADS, "-model", toy_checkpoint("gpt2"), "--out_dir", tmp_path / "out", "--k", 2)
    code, _, errors = run_script(*arguments, "--data", "winogender")  # one example is its own quantile
    assert code == 2 and "--do-filter False" in errors
    code, _, errors = run_script(*arguments, "--data", "crows")
    assert code == 2 and "'crows' is unknown" in errors
    (data / "winobias_data" / "pro_stereotyped_type1.txt.dev").write_text(WINOBIAS_ROWS.rsplit("\n", 2)[0])
    code, _, errors = run_script(*arguments)
    assert code == 2 and "has no partner" in errors and not list(tmp_path.glob("out/*.pickle"))


def test_head_selection_writes_what_the_contract_names(run_script, toy_checkpoint, data, tmp_path):
    code, _, errors = run_script(HEADS, "--model_type", toy_checkpoint("gpt2"), "--out_dir", tmp_path, "--k", 2, "--do-filter", "False",
                                      "--data", "winobias,winogender")
    assert code == 0, errors
    assert {path.name for path in tmp_path.glob("*.pickle")} == {
        f"{kind}_toy-gpt2_{name}.pickle" for kind in ("topk", "greedy", "greedy_intermediate", "mean_effect") for name in ("winobias", "winogender")}
    greedy = read_pickle(tmp_path / "greedy_toy-gpt2_winobias.pickle")
    assert list(greedy) == ["val", "head"] and all(isinstance(part, int) for head in greedy["head"] for part in head)
    assert {step: table.shape for step, table in read_pickle(tmp_path / "greedy_intermediate_toy-gpt2_winobias.pickle").items()} == {0: (3, 3, 4), 1: (3, 3, 4)}


def test_killed_and_continued_equals_undisturbed(start_script, golden_model, tmp_path):
    def start(out_dir, how=start_script):
        return how(f"{NEURONS} -template_indices 1 --k 4 --algo topk,greedy,random --professions actress nurse teacher doctor",
                   "-model", golden_model, "--out_dir", out_dir)

    def done(folder):
        return [len(list(folder.glob("unfinished/*/*.npz"))), [path.stat().st_mtime_ns for path in folder.glob("*.pickle")]]

    assert start(tmp_path / "undisturbed").wait() == 0
    rng = random.Random(0)
    kills = 0
    while kills < 4:  # `make soak` kills a hundred times
        process, before, seen = start(tmp_path / "killed"), done(tmp_path / "killed"), 0
        writes = rng.randint(1, 6)  # so that it is killed in all of its steps
        while seen < writes and process.poll() is None:
            time.sleep(0.002)
            now = done(tmp_path / "killed")
            seen, before = seen + (now != before), now
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        kills += 1
        if process.wait() != -signal.SIGKILL:
            break  # it was done before
    assert kills >= 3 and start(tmp_path / "killed", new_process).wait() == 0
    assert same(pickles(tmp_path / "killed"), pickles(tmp_path / "undisturbed"))


# pickles are not trusted


class Payload:
    def __reduce__(self):
        return os.system, ("touch /tmp/this-must-not-exist",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path, protocol):
    path = tmp_path / "greedy.pickle"
    path.write_bytes(pickle.dumps({"val": [1.0], "head": Payload()}, protocol))
    with pytest.raises(InputError, match=r"refused: it names (posix|nt|os)\.system"):
        read_pickle(path)
    assert not Path("/tmp/this-must-not-exist").exists()


def test_other_ways_to_code_are_refused_too(tmp_path):
    path = tmp_path / "x.pickle"
    for payload in (b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy.testing\nrun_module_suite\n.", b"cnumpy\nload\n.", b"cnumpy.f2py\ncompile\n."):
        path.write_bytes(payload)
        with pytest.raises(InputError, match="refused: it names"):
            read_pickle(path)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(tmp_path, protocol):
    content = {"val": [np.float64(0.5), 1], "head": [(np.int64(3), 2)], 0: np.arange(6.0).reshape(2, 3), "text": "she", "none": None, "yes": True}
    path = tmp_path / "plain.pickle"
    path.write_bytes(pickle.dumps(content, protocol))
    assert same({str(key): value for key, value in read_pickle(path).items()}, {str(key): value for key, value in content.items()})


def test_damaged_pickles(tmp_path):
    path = write_pickle(tmp_path / "greedy.pickle", {"val": list(np.arange(100.0)), "head": np.arange(50)})
    whole = path.read_bytes()
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="cannot be read as a pickle"):
            read_pickle(path)
    rng = np.random.default_rng(0)
    for _ in range(300):
        path.write_bytes(rng.bytes(40))
        with pytest.raises(InputError):
            read_pickle(path)


def test_a_truncated_file_of_a_finished_step_is_named(neurons, likely, tmp_path):
    neurons("--k", 2)
    path = tmp_path / "out" / "greedy_toy-gpt2.pickle"
    path.write_bytes(path.read_bytes()[:-20])
    before = path.read_bytes()
    code, _, errors = neurons("--k", 3)
    assert code == 2 and f"{path} cannot be read as a pickle" in errors and path.read_bytes() == before


def test_a_foreign_file_is_not_overwritten(neurons, likely, tmp_path):
    (tmp_path / "out").mkdir()
    write_pickle(tmp_path / "out" / "marg_contrib.pickle", {"layer": [0], "neuron": [0], "val": [1.0]})
    code, _, errors = neurons("--k", 2)
    assert code == 2 and "marg_contrib.pickle is already there and no manifest tells how it was made" in errors
