"""Selecting heads and neurons as a user runs it: resuming, refusals, what is kept."""

import json
import random
import re
import signal
import time

import numpy as np
import pytest

from mediation.effects.resampling import Resampling
from mediation.files.storage import RunFolder, read_pickle, write_pickle
from tests.helpers import (
    HEAD_SELECTION,
    NEURON_SELECTION,
    WINOBIAS_ROWS,
    interrupt_at,
    pickles,
    same_values,
)


@pytest.fixture
def neurons(run_script, toy_checkpoint, tmp_path):
    """neurons(*options) runs the neuron selection on a toy; pickles in tmp_path / "out"."""
    def run(*options):
        return run_script(NEURON_SELECTION, "-model", toy_checkpoint("gpt2"), "--out_dir", tmp_path / "out",
                          "-template_indices", 1, "--professions", "nurse", "captain", "teacher", "doctor",
                          *options)
    return run


@pytest.fixture
def likely(monkeypatch):
    """The filter on base probabilities is for real vocabularies: a toy's random head gives no word 1%."""
    monkeypatch.setattr("mediation.effects.estimands.LEAST_PROBABILITY", 0.0)


def test_a_larger_k_goes_on_and_a_smaller_one_keeps(neurons, likely, tmp_path):
    code, _, errors = neurons("--k", 2)
    assert code == 0, errors
    two = pickles(tmp_path / "out")
    assert neurons("--k", 4)[0] == 0
    four = pickles(tmp_path / "out")
    assert four["greedy_toy-gpt2.pickle"]["val"][:2] == two["greedy_toy-gpt2.pickle"]["val"]
    assert len(four["greedy_toy-gpt2.pickle"]["val"]) == 4
    assert neurons("--k", 1)[0] == 0 and same_values(pickles(tmp_path / "out"), four)
    (tmp_path / "out").rename(tmp_path / "first")
    assert neurons("--k", 4)[0] == 0
    assert same_values(pickles(tmp_path / "out"), four)


def test_what_random_orders_and_lazy_greedy_write(neurons, likely, tmp_path):
    code, output, _ = neurons("--k", 3, "--algo", "greedy,random", "--orders", 4, "--lazy")
    assert code == 0 and "evaluations of sets" in output and "certified equal to plain greedy" in output
    contents = pickles(tmp_path / "out")
    assert np.shape(contents["random_toy-gpt2.pickle"]["val"]) == (4, 3)
    of_examples = contents["by_example_toy-gpt2.pickle"]["random"]  # mean over the orders
    np.testing.assert_allclose(np.mean(contents["random_toy-gpt2.pickle"]["val"], axis=0),
                               of_examples.mean(axis=0))
    assert "random low" in output
    assert len(contents["lazy_toy-gpt2.pickle"]["val"]) == 3
    assert (tmp_path / "out" / "sparsity_toy-gpt2.pdf").read_bytes().startswith(b"%PDF")


def test_other_settings_are_refused(neurons, likely, tmp_path):
    neurons("--k", 1, "--algo", "topk")
    before = pickles(tmp_path / "out")
    code, _, errors = neurons("--k", 1, "--dtype", "float64")
    assert code == 2 and "dtype 'float32' -> 'float64'" in errors
    assert same_values(pickles(tmp_path / "out"), before)


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
    assert code == 2 and message in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_no_prompt_that_counts(neurons, tmp_path):
    code, _, errors = neurons("--k", 1)
    assert code == 2 and "none of 4 professions counts" in errors and not (tmp_path / "out").exists()


def test_head_selection_needs_examples(run_script, toy_checkpoint, data, tmp_path):
    arguments = (HEAD_SELECTION, "-model", toy_checkpoint("gpt2"), "--out_dir", tmp_path / "out", "--k", 2)
    code, _, errors = run_script(*arguments, "--data", "winogender")  # one example is its own quantile
    assert code == 2 and "--do-filter False" in errors
    code, _, errors = run_script(*arguments, "--data", "crows")
    assert code == 2 and "'crows' is unknown" in errors
    (data / "winobias_data" / "pro_stereotyped_type1.txt.dev").write_text(WINOBIAS_ROWS.rsplit("\n", 2)[0])
    code, _, errors = run_script(*arguments)
    assert code == 2 and "has no partner" in errors and not list(tmp_path.glob("out/*.pickle"))


def test_head_selection_writes_what_the_contract_names(run_script, toy_checkpoint, data, tmp_path):
    code, _, errors = run_script(HEAD_SELECTION, "--model_type", toy_checkpoint("gpt2"), "--out_dir",
                                 tmp_path, "--k", 2, "--do-filter", "False", "--data", "winobias,winogender")
    assert code == 0, errors
    assert {path.name for path in tmp_path.glob("*.pickle")} == {
        f"{kind}_toy-gpt2_{name}.pickle"
        for kind in ("topk", "greedy", "greedy_intermediate", "mean_effect", "by_example")
        for name in ("winobias", "winogender")}
    greedy = read_pickle(tmp_path / "greedy_toy-gpt2_winobias.pickle")
    assert list(greedy) == ["val", "head"]
    assert all(isinstance(part, int) for head in greedy["head"] for part in head)
    steps = read_pickle(tmp_path / "greedy_intermediate_toy-gpt2_winobias.pickle")
    assert {step: table.shape for step, table in steps.items()} == {0: (3, 3, 4), 1: (3, 3, 4)}


def test_the_curve_of_heads_has_intervals_over_occupations(run_script, toy_checkpoint, data, tmp_path):
    """Also from the files alone; without the file that has examples, the report says that there are none."""
    arguments = (HEAD_SELECTION, "--model_type", toy_checkpoint("gpt2"), "--out_dir", tmp_path, "--k", 2,
                 "--data", "winobias")
    code, output, errors = run_script(*arguments, "--do-filter", "False", "--algo", "topk,greedy", "--lazy")
    assert code == 0, errors
    content = read_pickle(tmp_path / "by_example_toy-gpt2_winobias.pickle")
    assert content["clusters"] == {"occupations": ["carpenter, nurse", "driver, teacher", "driver, nurse"]}
    draws = Resampling(content["clusters"])
    for kind in ("topk", "lazy"):
        values = read_pickle(tmp_path / f"{kind}_toy-gpt2_winobias.pickle")["val"]
        np.testing.assert_allclose(content[kind].mean(axis=0), values)
        low, high = draws.of_means(content[kind])
        for number in (low[1], values[1], high[1]):
            assert f"{number:.6f}" in output
    (low,), (high,) = draws.of_means(content["all"])
    assert re.search(rf"all heads together: \S+ \[{low:.6f}, {high:.6f}\]", output)
    assert "bootstrap over the occupations" in output and "no intervals" not in output
    code, again, _ = run_script(*arguments, "--figures_only")
    assert code == 0 and again.splitlines()[1] in output
    (tmp_path / "by_example_toy-gpt2_winobias.pickle").unlink()
    code, output, _ = run_script(*arguments, "--figures_only")
    assert code == 0 and "no intervals of top-k, lazy greedy: these files hold no objectives" in output
    assert " low" not in output
    write_pickle(tmp_path / "by_example_toy-gpt2_winobias.pickle", {"topk": [[1.0]]})
    code, _, errors = run_script(*arguments, "--figures_only")
    assert code == 2 and "winobias.pickle has no objectives of examples" in errors


def test_neurons_are_resampled_over_professions_and_templates(neurons, likely, tmp_path):
    code, output, errors = neurons("--k", 2, "--algo", "topk,greedy,random")
    assert code == 0, errors
    content = read_pickle(tmp_path / "out" / "by_example_toy-gpt2.pickle")
    assert set(content["clusters"]["professions"]) <= {"nurse", "captain", "teacher", "doctor"}
    assert set(content["clusters"]["templates"]) == {"The {} said that"}
    np.testing.assert_allclose(content["topk"].mean(axis=0),
                               read_pickle(tmp_path / "out" / "topk_toy-gpt2.pickle"))
    np.testing.assert_allclose(content["greedy"].mean(axis=0),
                               read_pickle(tmp_path / "out" / "greedy_toy-gpt2.pickle")["val"])
    assert "bootstrap over professions and templates" in output and "greedy low" in output


def test_a_run_that_has_no_objectives_per_example_gets_them_from_its_intermediates(neurons, likely, tmp_path):
    """Files of an earlier version: greedy's steps are in greedy_intermediate, top-k's are gone."""
    neurons("--k", 2)
    expected = pickles(tmp_path / "out")["by_example_toy-gpt2.pickle"]
    (tmp_path / "out" / "by_example_toy-gpt2.pickle").unlink()
    manifest = tmp_path / "out" / "manifest.json"
    runs = json.loads(manifest.read_text())
    for run in runs["runs"]:
        run["files"].pop("by_example_toy-gpt2.pickle")
    manifest.write_text(json.dumps(runs))
    code, output, errors = neurons("--k", 2)
    assert code == 0, errors
    found = pickles(tmp_path / "out")["by_example_toy-gpt2.pickle"]
    assert found["greedy"].tolist() == expected["greedy"].tolist() and "topk" not in found
    assert "no intervals of top-k: these files" in output and "greedy low" in output
    assert neurons("--k", 3)[0] == 0  # top-k is computed again
    assert pickles(tmp_path / "out")["by_example_toy-gpt2.pickle"]["topk"].shape[1] == 3


def test_killed_and_continued_equals_undisturbed(start_script, golden_model, tmp_path):
    def start(out_dir):
        return start_script(f"{NEURON_SELECTION} -template_indices 1 --k 2 --algo topk,greedy,random "
                            "--professions actress nurse teacher",
                            "-model", golden_model, "--out_dir", out_dir)

    def done(folder):
        return [len(list(folder.glob("unfinished/*/*.npz"))),
                [path.stat().st_mtime_ns for path in folder.glob("*.pickle")]]

    assert start(tmp_path / "undisturbed").wait() == 0
    rng = random.Random(0)
    kills = 0
    while kills < 3:  # `make soak` kills a hundred times
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
    assert kills >= 2 and start(tmp_path / "killed").wait() == 0
    assert same_values(pickles(tmp_path / "killed"), pickles(tmp_path / "undisturbed"))


def test_what_a_killed_selection_left_goes_with_the_next_one(neurons, likely, tmp_path, monkeypatch):
    """It was killed when a file was written and its shards not yet removed."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, (RunFolder, "remove_shards"), call=1)
        assert neurons("--k", 1)[0] == 130 and list(tmp_path.glob("out/unfinished/*/*"))
    assert neurons("--k", 1)[0] == 0 and not (tmp_path / "out" / "unfinished").exists()


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
    assert code == 2
    assert "marg_contrib.pickle is already there and no manifest tells how it was made" in errors
