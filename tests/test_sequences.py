"""Any sequence of runs in one folder: other options, more templates or words, runs that were killed, another day, another method or format.

Each run ends with exit code 0, or with 2, one line and nothing changed. What is finished then equals what the same command writes into an empty folder.

MEDIATION_TURNS=2000 python -m pytest tests/test_sequences.py      draws that many sequences a script, other ones every time
"""

import contextlib
import datetime
import io
import json
import os
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import neuron_utils
from mediation import checkpoints, stimulus_files
from mediation.stimulus_files import Stimulus
from tests.conftest import PROJECT
from tests.test_reliability import damaged_checkpoint

TURNS = int(os.environ.get("MEDIATION_TURNS", "0"))
NEURONS = {  # option: its values, the usual one first
    "-model": ("{toy}", "{retrained}"),
    "-template_indices": ("1", "1 13", "13 1", "13"),
    "--professions": ("nurse captain", "nurse captain teacher", "nurse electrician", "teacher"),
    "--intervention_types": ("man_direct", "man_direct man_indirect", "man_indirect man_direct man_minus_woman", "woman_indirect"),
    "--method": ("exact", "gradient", "screen"),
    "--format": ("csv", "parquet"),
    "--screen_sample": ("3", "4"),
    "--alpha": ("1", "2"),
    "--candidates": ("he she", "she he"),
    "--dtype": ("float32", "float64"),
    "--multi_token": (None, "last"),
    "--odds_only": (None, ""),
    "--full_passes": (None, ""),
    "--total_effects_only": (None, ""),
    "--randomize": (None, ""),
    "--max_examples": ("9", "1"),
    "--batch_size": ("auto", "7"),
    "--seed": ("0", "1"),
}
OWN = {
    "": ("{one}", "{other}"),
    "--mediators": ("neurons", "heads", "neurons,mlps", "layers,heads", "neurons,mlps,heads,layers"),
    "--method": ("exact", "gradient", "screen"),
    "--format": ("csv", "parquet"),
    "-model": ("{toy}", "{retrained}"),
    "--screen_sample": ("3", "4"),
    "--dtype": ("float32", "float64"),
    "--multi_token": (None, "last"),
    "--randomize": (None, ""),
    "--batch_size": ("auto", "7"),
    "--seed": ("0", "1"),
}
FIXED = {"run_profession_neuron_experiments.py": "--screen_share .6 --screen_top 8", "mediate.py": "--screen_share .6 --screen_top 8"}
ANALYSES = ("compute_neuron_total_effect.py", "compute_neuron_split_total_effect.py", "compute_and_save_neuron_agg_effect.py",
            "compute_neuron_effect_per_layer.py", "make_report.py")
STIMULI = [Stimulus("1", "The {} said that", ("nurse", "man", "woman"), ("she", "he"), "short"),
           Stimulus("2", "The {} went home because", ("teacher", "man"), ("he", "she"), "long"),
           Stimulus("3", "The {} ran because", ("electrician", "man"), ("he", "she"), "long")]


@dataclass(frozen=True)
class Step:
    """A command of a sequence; where it is stopped: ("killed" or "interrupted", write, before or after it); how many days after the first."""

    command: str
    stopped: tuple | None = None
    day: int = 0


@st.composite
def sequences(draw, script, choices, longest=4):
    """Commands that have most options in common, for only then do they meet in the same files."""
    chosen = {option: values[0] for option, values in choices.items()}
    steps, day = [], 0
    for _ in range(draw(st.integers(2, longest))):
        for _ in range(draw(st.sampled_from((1, 2, 0)))):
            option = draw(st.sampled_from([*choices, *3 * list(choices)[1:5]]))  # often those that extend a run
            chosen[option] = draw(st.sampled_from([value for value in choices[option] if value != chosen[option]]))
        how = draw(st.sampled_from((None, None, "killed", "interrupted")))
        stopped = how and (how, draw(st.integers(1, 20)), draw(st.booleans()))
        day += draw(st.sampled_from((0, 0, 0, 0, 0, 1)))
        steps.append(Step(" ".join([script, *(f"{option} {value}" for option, value in chosen.items() if value is not None), FIXED[script]]), stopped, day))
    return steps


class Workplace:
    """Toys that are loaded once, commands as from the shell but in this process, and what each writes into an empty folder."""

    def __init__(self, root, names):
        self.root, self.names, self.kept, self.folders = root, names, {}, 0

    def empty(self):
        """A new folder."""
        self.folders += 1
        (self.root / str(self.folders)).mkdir()
        return self.root / str(self.folders)

    def run(self, command, folder, day=0, stopped=None):
        """(exit code, standard output, standard error); a run that was killed leaves what was on the disk at that moment."""
        script, *options = shlex.split(command.format(**self.names))
        writes, replace, at_that_moment = 0, os.replace, folder.with_name(f"{folder.name}-killed")

        def counting(source, target):
            nonlocal writes
            writes += 1
            how, number, after = stopped
            if writes == number and not after:
                stop(how)
            replace(source, target)
            if writes == number and after:
                stop(how)

        def stop(how):
            if how == "killed":
                shutil.copytree(folder, at_that_moment)
            raise KeyboardInterrupt

        class Today(datetime.date):
            @classmethod
            def today(cls):
                return datetime.date(2026, 1, 1 + day)

        output, errors = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            patch.setattr(sys, "argv", [script, *options])
            patch.setattr(datetime, "date", Today)
            if stopped:
                patch.setattr(os, "replace", counting)
            try:
                runpy.run_path(str(PROJECT / script), run_name="__main__")
                code = 0
            except SystemExit as end:
                code = end.code
        if at_that_moment.exists():
            shutil.rmtree(folder)
            at_that_moment.rename(folder)
        return code, output.getvalue(), errors.getvalue()

    def fresh(self, command):
        """(exit code, {file: bytes}) of a command in an empty folder."""
        if command not in self.kept:
            folder = self.empty()
            code, _, _ = self.run(f"{command} -out_dir {folder}", folder)
            self.kept[command] = code, contents(folder)
        return self.kept[command]


@pytest.fixture(scope="module")
def workplace(toy_checkpoint, tmp_path_factory):
    """A Workplace with a toy, a toy of the same name and other weights, and two files of stimuli."""
    root, load, loaded = tmp_path_factory.mktemp("sequences"), checkpoints.load_model, {}
    toy = toy_checkpoint("gpt2")
    names = {"toy": toy, "retrained": damaged_checkpoint(toy, root / "retrained" / toy.name, c_proj__weight=lambda weights: 1.01 * weights),
             "one": stimulus_files.write(root / "one.jsonl", STIMULI), "other": stimulus_files.write(root / "other.jsonl", STIMULI[:2])}

    def load_once(*arguments):
        if arguments not in loaded:
            loaded[arguments] = load(*arguments)
        return loaded[arguments]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "load_model", load_once)
        patch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug
        patch.setattr(Figure, "savefig", lambda _, file, **__: file.write(b"a figure"))  # drawing takes longer than all the rest
        patch.setattr(neuron_utils, "SHARED_FROM", 3)  # so that few words are interpolated
        yield Workplace(root, names)


def contents(folder):
    """{path in the folder: bytes} of all files but locks."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("**/*")) if path.is_file() and ".locks" not in path.parts}


def tables(files):
    """{name: bytes} of the tables, wherever in the folder they are."""
    return {path.rpartition("/")[2]: content for path, content in files.items() if path.endswith((".csv", ".parquet")) and "/." not in f"/{path}"}


def runs(files):
    """All runs of all manifests."""
    return [run for path, content in files.items() if path.endswith("manifest.json") for run in json.loads(content)["runs"]]


def finished(folder):
    """{path: bytes} of what a manifest calls finished, and the means that belong to it."""
    found = {}
    for manifest in folder.glob("**/manifest.json"):
        for run in json.loads(manifest.read_text())["runs"]:
            for name in (name for name, entry in run["files"].items() if "rows" in entry):
                means = f"{name.partition('_')[0]}_mean_{name.partition('_')[2].rpartition('.')[0]}.csv"
                found |= {path: path.read_bytes() for path in (manifest.parent / name, manifest.parent / means) if path.exists()}
    return found


def meets_others(files, expected):
    """Whether a table of the runs `expected` was begun with other settings: then they are refused."""
    def stems(run):
        return {name.rpartition(".")[0] for name in run["files"]}
    return any(stems(before) & stems(run) and (before["settings"] != run["settings"] or set(before["files"]).isdisjoint(run["files"]))
               for before in files for run in expected)


def assert_same_numbers(name, found, expected):
    """Equal up to the rounding of sums that are taken in another order; rows of a screening where both have run the neuron, or both have not."""
    read = pd.read_csv if name.endswith(".csv") else pd.read_parquet
    found, expected = read(io.BytesIO(found)), read(io.BytesIO(expected))
    assert list(found) == list(expected) and len(found) == len(expected), name
    for column in found:
        if found[column].dtype.kind == "f":
            how = f"{column.removesuffix('_effect')}_method" if column.endswith("_effect") else "method"
            alike = found[how] == expected[how] if how in found else slice(None)
            np.testing.assert_allclose(found[column][alike], expected[column][alike], rtol=1e-4, atol=1e-5, err_msg=f"{name}, {column}")
        elif "method" not in column:
            assert (found[column] == expected[column]).all(), f"{name}, {column}"


def check(workplace, steps):
    """Run a sequence in one folder; after each run look at what is there."""
    folder = workplace.empty()
    begun = set()  # commands that have run
    for step in steps:
        before, good = contents(folder), finished(folder)
        code, output, errors = workplace.run(f"{step.command} -out_dir {folder}", folder, step.day, step.stopped)
        assert not [path for path, content in good.items() if not path.exists() or path.read_bytes() != content], f"{step}: {errors}"
        if code == 130:
            begun.add(step.command)
            continue
        assert code in (0, 2), f"{step}: {errors}"
        fresh_code, fresh = workplace.fresh(step.command)
        now = contents(folder)
        if code == 2:
            assert errors.strip().count("\n") == 0 and "error: " in errors, f"{step}: {errors}"
            assert now == before, f"{step}: {now.keys() ^ before.keys()}"
            assert fresh_code == 2 or meets_others(runs(before), runs(fresh)), f"{step}: {errors}"
            continue
        assert fresh_code == 0, f"{step}: refused in an empty folder"
        begun.add(step.command)
        results = re.search(r"manifest.json in (.+)", output)  # of the day that the study was begun on
        compare(step, contents(Path(results[1])) if results else now, fresh, alone=begun == {step.command})
        assert not [path for path in folder.glob("**/*.lock") if not any(other.stopped for other in steps)]
    for results in folder.glob("**/manifest.json"):
        analyse(workplace, results.parent)
    shutil.rmtree(folder)


def compare(step, now, fresh, alone):
    """What a command has finished against what it writes into an empty folder; byte by byte where no other command has had a hand in it."""
    found = tables(now)
    for name, expected in tables(fresh).items():
        assert name in found, f"{step}: no {name}"
        if alone:
            assert found[name] == expected, f"{step}: {name} is not the same"
        assert_same_numbers(name, found[name], expected)
    for expected in runs(fresh):
        (run,) = [run for run in runs(now) if run["settings"] == expected["settings"] and list(run["files"]) == list(expected["files"])]
        assert run["finished"] and run.keys() == expected.keys(), f"{step}: {run.keys() ^ expected.keys()}"
        for name, entry in run["files"].items():
            assert entry.keys() == expected["files"][name].keys() and entry["rows"] == expected["files"][name]["rows"], f"{step}: {name}"


def analyse(workplace, folder):
    """The analyses of whatever lies in a results folder."""
    models = dict.fromkeys(run["settings"]["model"] for run in runs(contents(folder)))
    for script in ANALYSES:
        for model in models:
            before = contents(folder)
            code, _, errors = workplace.run(f"{script} {folder} {'' if 'layer' in script else model}", folder)
            assert code in (0, 2), f"{script}: {errors}"
            if code == 2:
                assert "error: " in errors.splitlines()[-1] and contents(folder) == before, f"{script}: {errors}"


def drawn(test):
    """A property test of a few sequences, always the same ones; as many others as MEDIATION_TURNS asks for."""
    return settings(max_examples=TURNS or 12, derandomize=not TURNS, deadline=None, database=None, print_blob=False,
                    suppress_health_check=list(HealthCheck))(test)


@drawn
@given(steps=sequences("run_profession_neuron_experiments.py", NEURONS))
def test_a_sequence_of_runs_of_the_neuron_study(workplace, steps):
    check(workplace, steps)


@drawn
@given(steps=sequences("mediate.py", OWN))
def test_a_sequence_of_runs_on_stimuli_of_ones_own(workplace, steps):
    check(workplace, steps)
