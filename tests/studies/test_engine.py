"""One pipeline: what one study could do serves the others; the engine goes on where it was, and reads nothing
damaged."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from torch import nn
from tqdm import tqdm

from mediation.errors import InputError
from mediation.files.storage import RunFolder
from mediation.model.products import version_of
from mediation.studies import engine, estimated_trees, interpolated_trees

WORDS = ("nurse", "teacher", "doctor", "captain", "clerk")
TEMPLATES = ("The {} said that", "The {} went home because")
STIMULI = [{"id": f"{word}-{number}", "base": template, "substitutes": [word, "man"],
            "candidates": ["he", "she"]}
           for word in WORDS for number, template in enumerate(TEMPLATES)]


@pytest.fixture
def mediate(run_script, toy_checkpoint, tmp_path, unreported):
    """mediate(folder name, *options) -> (what was printed, {mediator: table}, the manifest's runs) on a
    toy."""
    def run(name, *options, stimuli=STIMULI):
        path, folder = tmp_path / f"{name}.jsonl", tmp_path / name
        path.write_text("".join(json.dumps(stimulus) + "\n" for stimulus in stimuli))
        code, printed, error = run_script("mediate.py", path, "-model", toy_checkpoint("llama"),
                                          "--out_dir", folder, *options)
        assert code == 0, error
        tables = {mediator: pd.read_csv(folder / f"{mediator}_toy-llama.csv")
                  for mediator in ("neurons", "mlps", "heads", "layers")
                  if (folder / f"{mediator}_toy-llama.csv").exists()}
        return printed, tables, RunFolder(folder).read()["runs"]
    return run


def assert_alike(table, other, tolerance):
    """Equal names, effects within a tolerance."""
    numbers = [column for column in table if column.endswith(("_effect", "_prob"))]
    pd.testing.assert_frame_equal(table.drop(columns=numbers), other.drop(columns=numbers))
    np.testing.assert_allclose(np.log1p(table[numbers]), np.log1p(other[numbers]), atol=tolerance)


def test_direct_effects_of_many_words_of_ones_own_are_interpolated(mediate, monkeypatch):
    _, exact, _ = mediate("run", "--mediators", "neurons")
    monkeypatch.setattr(interpolated_trees, "INTERPOLATED_FROM", 4)
    printed, tables, runs = mediate("interpolated", "--mediators", "neurons")
    assert_alike(tables["neurons"], exact["neurons"], 1e-4)
    counts = runs[-1]["files"]["neurons_toy-llama.csv"]["interpolation"]
    assert (list(counts) == ["direct"]
            and counts["direct"]["interpolated"] + counts["direct"]["run_for_every_word"] == 4 * 16)
    assert f"direct: {counts['direct']['interpolated']} neurons interpolated between words" in printed


def test_full_passes_of_every_mediator_equal_the_descent(mediate):
    stimuli = [*STIMULI[:2], {"id": "x", "base": "The captain told the nurse that {}",
                              "substitutes": ["she", "he"], "candidates": ["was", "had"]}]
    _, descent, _ = mediate("descent", stimuli=stimuli)
    _, reference, runs = mediate("reference", "--full_passes", stimuli=stimuli)
    assert set(reference) == {"neurons", "mlps", "heads", "layers"} and runs[-1]["settings"]["full_passes"]
    for mediator, table in reference.items():
        assert_alike(descent[mediator], table, 1e-5)


def test_gradients_of_slots_of_several_sizes_are_taken_apart(mediate):
    stimuli = [*STIMULI[:2], {"id": "two", "base": TEMPLATES[0], "substitutes": ["nurse clerk", "man man"],
                              "candidates": ["he", "she"]}]
    options = ("--mediators", "neurons", "--multi_token", "all", "--method")
    _, tables, _ = mediate("all", *options, "gradient", stimuli=stimuli)
    _, exact, _ = mediate("run", *options, "exact", stimuli=stimuli)
    of_two, ran = (table["neurons"].query("id == 'two'")["indirect_effect"] for table in (tables, exact))
    assert np.corrcoef(np.log1p(of_two), np.log1p(ran))[0, 1] > 0.8


def test_prompts_that_stimuli_share_have_their_gradients_taken_once(mediate, monkeypatch):
    taken, take = [], estimated_trees.neuron_gradients_of

    def count(model, stimuli, prompt):
        taken.extend(stimulus.base_strings[prompt] for stimulus in stimuli)
        return take(model, stimuli, prompt)

    monkeypatch.setattr(estimated_trees, "neuron_gradients_of", count)
    mediate("shared", "--mediators", "neurons", "--method", "gradient")
    assert len(taken) == len(set(taken)) == len(STIMULI) + len(TEMPLATES)


@dataclass(frozen=True)
class Doubled(engine.Task):
    """Twice what the task before gave, or 1."""

    before: tuple | None = None

    def compute(self, model, earlier, progress):
        model.append(self.name)
        return {"number": np.float64(2 * earlier(self.before)["number"] if self.before else 1)}


def test_the_engine_goes_on_with_the_first_task_that_has_no_shard(tmp_path):
    first = Doubled("table", "first", "", 1)
    second = Doubled("table", "second", "", 1, first.key)
    third = Doubled("table", "third", "", 1, second.key)
    run_folder = RunFolder(tmp_path)
    run_folder.claim([], {})
    computed = []
    for wanted in ([[first], [second]], [[first], [second], [third]]):
        with tqdm(disable=True) as progress:
            shards = engine.run(computed, wanted, run_folder, progress)
    assert computed == ["first", "second", "third"] and shards(third.key)["number"] == 4
    path = run_folder.shard_path(*second.key)
    path.write_bytes(path.read_bytes()[:-1])
    with tqdm(disable=True) as progress:
        engine.run(computed, [[first], [second], [third]], run_folder, progress)
    assert computed == ["first", "second", "third", "second"]
    path.unlink()
    with pytest.raises(InputError,
                       match="damaged or removed while it was needed: give the same command again"):
        engine.Shards(run_folder)(second.key)


@dataclass(frozen=True)
class Total(engine.Task):
    """The sum of what all tasks before gave."""

    before: tuple = ()

    def compute(self, model, earlier, progress):
        return {"number": sum(earlier(key)["number"] for key in self.before)}


def test_what_all_tasks_of_a_stage_need_is_read_once_however_large_it_is(tmp_path, monkeypatch):
    class Counting(RunFolder):
        """Says which shards were read."""

        def load_shard(self, *key):
            arrays = super().load_shard(*key)
            read.extend([key] if arrays else [])
            return arrays

    read, run_folder = [], Counting(tmp_path)
    run_folder.claim([], {})
    monkeypatch.setattr(engine, "BYTES_IN_MEMORY", 16)
    layers = [Doubled("table", f"layer_{number}", "", 1) for number in range(5)]
    keys = tuple(layer.key for layer in layers)
    trees = [Total("table", f"tree_{number}", "", 1, keys) for number in range(3)]
    with tqdm(disable=True) as progress:
        shards = engine.run([], [layers, trees], run_folder, progress)
    assert sorted(read) == sorted(keys)
    assert all(shards(tree.key)["number"] == 5 for tree in trees)


@dataclass(frozen=True)
class Repeated(engine.Task):
    """A sweep that is off and run again, or one that tells nothing."""

    times: int = 0

    def compute(self, model, earlier, progress):
        for _ in range(self.times):
            progress(2)
            progress(1)
        return {}


@dataclass(frozen=True)
class Versions(engine.Task):
    """What tells a weight from what it was, before and after it changed unseen."""

    def compute(self, model, earlier, progress):
        before = version_of(model)
        model.weight.data.mul_(2)
        return {"number": np.float64(version_of(model) == before)}


def test_weights_are_summed_up_once_in_a_run(tmp_path):
    run_folder, model = RunFolder(tmp_path), nn.Linear(4, 4)
    run_folder.claim([], {})
    task = Versions("table", "versions", "", 1)
    before = version_of(model)
    with tqdm(disable=True) as progress:
        assert engine.run(model, [[task]], run_folder, progress)(task.key)["number"] == 1
    assert version_of(model) != before


def test_what_a_task_runs_again_or_does_not_tell_counts_once_in_the_progress(tmp_path):
    run_folder = RunFolder(tmp_path)
    run_folder.claim([], {})
    for times in range(3):
        task = Repeated("table", f"{times}", "", 3, times)
        for _ in range(2):  # computed, and found computed
            with tqdm(total=3) as progress:
                engine.run(None, [[task]], run_folder, progress)
                assert progress.n == 3


def test_what_was_read_last_stays_in_memory_within_a_limit(tmp_path, monkeypatch):
    run_folder = RunFolder(tmp_path)
    run_folder.claim([], {})
    for name in "abc":
        run_folder.save_shard("table", name, values=np.zeros(100))
    monkeypatch.setattr(engine, "BYTES_IN_MEMORY", 1600)
    shards = engine.Shards(run_folder)
    for name in "abca":
        shards(("table", name))
    assert [name for _, name in shards.in_memory] == ["c", "a"]


def test_words_that_have_a_template_each_are_not_interpolated(mediate, monkeypatch):
    """An interpolant gives all words in all templates: where few of these are asked for, running them is
    cheaper."""
    monkeypatch.setattr(interpolated_trees, "INTERPOLATED_FROM", 3)
    stimuli = [{**STIMULI[0], "id": word, "base": f"The {{}} said that {word}", "substitutes": [word, "man"]}
               for word in WORDS]
    _, _, runs = mediate("diagonal", "--mediators", "neurons", stimuli=stimuli)
    assert "interpolation" not in runs[-1]["files"]["neurons_toy-llama.csv"]


def test_a_comparison_that_stands_twice_in_a_file_is_counted_once(mediate):
    pronoun = {"base": "The captain told the nurse that {}", "substitutes": ["she", "he"],
               "candidates": ["was", "had"]}
    entries = []
    for name, ids in (("once", ["a"]), ("twice", ["a", "b"])):
        _, tables, runs = mediate(name, "--mediators", "heads",
                                  stimuli=[{"id": each, **pronoun} for each in ids])
        entries.append(runs[-1]["files"]["heads_toy-llama.csv"])
        assert len(tables["heads"]) == len(ids) * 3 * 4
    assert entries[0]["checked_at_random"] == entries[1]["checked_at_random"] == 2


def test_alternatives_are_taken_a_few_trees_at_once(mediate, monkeypatch):
    """One task for all of them would grow with the study."""
    monkeypatch.setattr(estimated_trees, "WORDS_AT_ONCE", 2)
    sizes, take = [], estimated_trees.neuron_gradients_of
    monkeypatch.setattr(
        estimated_trees, "neuron_gradients_of",
        lambda model, stimuli, prompt: sizes.append(len(stimuli)) or take(model, stimuli, prompt))
    stimuli = [{**STIMULI[0], "id": word, "base": f"The {{}} said that {word}", "substitutes": [word, "man"]}
               for word in WORDS]
    mediate("alternatives", "--mediators", "neurons", "--method", "gradient", stimuli=stimuli)
    assert sorted(sizes) == [1, 1, 2, 2, 2, 2]
