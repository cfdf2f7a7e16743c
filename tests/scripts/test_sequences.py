"""Any sequence of runs in one folder: other options, more templates or words, killed runs, another day.

Each run ends with exit code 0, or with 2, one line and nothing changed. What is finished stays as it is, and
equals what the same command writes into an empty folder.

MEDIATION_TURNS=2000 python -m pytest tests/scripts/test_sequences.py  as many per script, others every time
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

from mediation.model import checkpoints
from mediation.stimuli import stimulus_files
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies import interpolated_trees
from tests.helpers import PROJECT, damaged_checkpoint, undrawn_figures

TURNS = int(os.environ.get("MEDIATION_TURNS", "0"))
NEURONS = {  # option: its values, the usual one first
    "-model": ("{toy}", "{retrained}"),
    "-template_indices": ("1", "1 13", "13 1", "13"),
    "--professions": ("nurse captain", "nurse captain teacher", "nurse electrician", "teacher"),
    "--intervention_types": ("man_direct", "man_direct man_indirect", "woman_indirect",
                             "man_indirect man_direct man_minus_woman"),
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
STUDY, MEDIATE = "run_profession_neuron_experiments.py", "mediate.py"
CHOICES = {STUDY: NEURONS, MEDIATE: OWN}
OF_THE_FOLDER = ["p", "q", "family"]  # units of all tables there are tested together
OF_DRAWN = ("largest_deviation_from_full_passes", "largest_share_off")  # which of a run's tables have any?
ANALYSES = ("compute_neuron_total_effect.py", "compute_neuron_split_total_effect.py",
            "compute_and_save_neuron_agg_effect.py", "compute_neuron_effect_per_layer.py", "make_report.py")
STIMULI = [Stimulus("1", "The {} said that", ("nurse", "man", "woman"), ("she", "he"), "short"),
           Stimulus("2", "The {} went home because", ("teacher", "man"), ("he", "she"), "long"),
           Stimulus("3", "The {} ran because", ("electrician", "man"), ("he", "she"), "long")]


@dataclass(frozen=True)
class Step:
    """A command; where it is stopped ("killed" or "interrupted", number of a write, after it?); the day."""

    command: str
    stopped: tuple | None = None
    day: int = 0


def command(script, **chosen):
    """A script with the usual values but those chosen (names of options without dashes; None: left out)."""
    values = {option: chosen.get(option.lstrip("-"), values[0]) for option, values in CHOICES[script].items()}
    given = [f"{option} {value}" for option, value in values.items() if value is not None]
    return " ".join([script, *given, "--screen_share .6 --screen_top 8"])


@st.composite
def sequences(draw, script, longest=4):
    """Commands that have most options in common, for only then do they meet in the same files."""
    choices = CHOICES[script]
    chosen, steps, day = {}, [], 0
    for _ in range(draw(st.integers(2, longest))):
        for _ in range(draw(st.sampled_from((1, 2, 0)))):
            option = draw(st.sampled_from([*choices, *3 * list(choices)[1:5]]))  # often what extends a run
            now = chosen.get(option.lstrip("-"), choices[option][0])
            others = [value for value in choices[option] if value != now]
            chosen[option.lstrip("-")] = draw(st.sampled_from(others))
        how = draw(st.sampled_from((None, None, "killed", "interrupted")))
        stopped = how and (how, draw(st.integers(1, 20)), draw(st.booleans()))
        day += draw(st.sampled_from((0, 0, 0, 0, 0, 1)))
        steps.append(Step(command(script, **chosen), stopped, day))
    return steps


class Workplace:
    """Commands as from the shell, in this process, on toys loaded once; what each writes when it is alone."""

    def __init__(self, root, names):
        self.root, self.names, self.results, self.folders = root, names, {}, 0

    def empty(self):
        """A new folder."""
        self.folders += 1
        (self.root / str(self.folders)).mkdir()
        return self.root / str(self.folders)

    def run(self, command, folder, day=0, stopped=None):
        """(exit code, standard output, standard error); a killed run leaves what was on disk just then."""
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
        with (pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output),
              contextlib.redirect_stderr(errors)):
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
        if command not in self.results:
            folder = self.empty()
            code, _, _ = self.run(f"{command} -out_dir {folder}", folder)
            self.results[command] = code, contents(folder)
        return self.results[command]


@pytest.fixture(scope="module")
def workplace(toy_checkpoint, tmp_path_factory):
    """A Workplace with a toy, a toy of the same name and other weights, and two files of stimuli."""
    root, load, loaded = tmp_path_factory.mktemp("sequences"), checkpoints.load_model, {}
    toy = toy_checkpoint("gpt2")
    retrained = damaged_checkpoint(toy, root / "retrained" / toy.name, c_proj__weight=lambda old: 1.01 * old)
    names = {"toy": toy, "retrained": retrained, "one": stimulus_files.write(root / "one.jsonl", STIMULI),
             "other": stimulus_files.write(root / "other.jsonl", STIMULI[:2])}

    def load_once(*arguments):
        if arguments not in loaded:
            loaded[arguments] = load(*arguments)
        return loaded[arguments]

    with pytest.MonkeyPatch.context() as patch, undrawn_figures():
        patch.setattr(checkpoints, "load_model", load_once)
        patch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug
        patch.setattr(interpolated_trees, "INTERPOLATED_FROM", 3)  # so that few words are interpolated
        yield Workplace(root, names)


def contents(folder):
    """{path in the folder: bytes} of all files but locks."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("**/*"))
            if path.is_file() and ".locks" not in path.parts}


def tables(files):
    """{name: bytes} of the tables, wherever in the folder they are."""
    return {Path(path).name: content for path, content in files.items()
            if path.endswith((".csv", ".parquet")) and not Path(path).name.startswith(".")}


def runs(files):
    """All runs of all manifests."""
    return [run for path, content in files.items() if Path(path).name == "manifest.json"
            for run in json.loads(content)["runs"]]


def finished(folder):
    """{path: bytes} of what a manifest calls finished, and the means that belong to it."""
    contents_of = {}
    for manifest in folder.glob("**/manifest.json"):
        for run in json.loads(manifest.read_text())["runs"]:
            for name in (name for name, entry in run["files"].items() if "rows" in entry):
                mediator, _, model = name.rpartition(".")[0].partition("_")
                paths = manifest.parent / name, manifest.parent / f"{mediator}_mean_{model}.csv"
                contents_of |= {path: path.read_bytes() for path in paths if path.exists()}
    return contents_of


def meets_others(files, expected):
    """Whether a table of the runs `expected` was begun with other settings or in another format."""
    def tables_of(run):
        return {name.rpartition(".")[0] for name in run["files"]}
    return any(tables_of(before) & tables_of(run)
               and (before["settings"] != run["settings"] or before["files"].keys().isdisjoint(run["files"]))
               for before in files for run in expected)


def assert_same_numbers(name, table, expected):
    """Equal up to the order of sums; a screening's rows where both ran the unit, or neither did."""
    read = pd.read_csv if name.endswith(".csv") else pd.read_parquet
    table, expected = read(io.BytesIO(table)), read(io.BytesIO(expected))
    assert list(table) == list(expected) and len(table) == len(expected), name
    for column in table.columns.difference(OF_THE_FOLDER):
        if table[column].dtype.kind == "f":
            how = f"{column.removesuffix('_effect')}_method" if column.endswith("_effect") else "method"
            alike = table[how] == expected[how] if how in table else slice(None)
            np.testing.assert_allclose(table[column][alike], expected[column][alike], rtol=1e-4, atol=1e-5,
                                       err_msg=f"{name}, {column}")
        elif "method" not in column:
            assert (table[column] == expected[column]).all(), f"{name}, {column}"


def check(workplace, steps):
    """Run a sequence in one folder; after each run look at what is there."""
    folder = workplace.empty()
    begun = set()  # commands that have run
    for step in steps:
        before, good = contents(folder), finished(folder)
        command = f"{step.command} -out_dir {folder}"
        code, output, errors = workplace.run(command, folder, step.day, step.stopped)
        lost = [path for path, content in good.items() if not path.exists() or path.read_bytes() != content]
        assert not lost, f"{step}: {lost}"
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
        held = {name for run in runs(fresh) for name in (*run["files"], "manifest.json")}
        parts = [path for path in now if Path(path).name[1:].rpartition("-")[0] in held]
        assert not parts, f"{step}: {parts}"
    for results in folder.glob("**/manifest.json"):
        analyse(workplace, results.parent)
    shutil.rmtree(folder)


def compare(step, now, fresh, alone):
    """What a command finished against what it writes into an empty folder; `alone`: byte by byte."""
    tables_now = tables(now)
    for name, expected in tables(fresh).items():
        assert name in tables_now, f"{step}: no {name}"
        if alone:
            assert tables_now[name] == expected, f"{step}: {name} is not the same"
        assert_same_numbers(name, tables_now[name], expected)
    for expected in runs(fresh):
        (run,) = [run for run in runs(now) if run["settings"] == expected["settings"]
                  and list(run["files"]) == list(expected["files"])]
        assert run["finished"] and run.keys() == expected.keys(), f"{step}: {run.keys() ^ expected.keys()}"
        for name, entry in run["files"].items():
            alike = expected["files"][name]
            assert entry.keys() ^ alike.keys() <= {"taken_over", *OF_DRAWN}, f"{step}: {name}"
            assert entry["rows"] == alike["rows"], f"{step}: {name}"


def analyse(workplace, folder):
    """The analyses of whatever lies in a results folder."""
    models = dict.fromkeys(run["settings"]["model"] for run in runs(contents(folder)))
    for script in ANALYSES:
        for model in models:
            before = contents(folder)
            code, _, errors = workplace.run(f"{script} {folder} {'' if 'layer' in script else model}", folder)
            assert code in (0, 2), f"{script}: {errors}"
            if code == 2:
                assert "error: " in errors.splitlines()[-1], f"{script}: {errors}"
                assert contents(folder) == before, f"{script}: {errors}"


def drawn(examples):
    """For a property test: a few sequences, always the same; or as many others as MEDIATION_TURNS says."""
    return settings(max_examples=TURNS or examples, derandomize=not TURNS, deadline=None, database=None,
                    print_blob=False, suppress_health_check=list(HealthCheck))


@drawn(5)
@given(steps=sequences(STUDY))
def test_a_sequence_of_runs_of_the_neuron_study(workplace, steps):
    check(workplace, steps)


@drawn(2)
@given(steps=sequences(MEDIATE))
def test_a_sequence_of_runs_on_stimuli_of_ones_own(workplace, steps):
    check(workplace, steps)


THREE = {"professions": "nurse captain teacher"}
BOTH = command(STUDY, **THREE, template_indices="1 13")
FOUND = {  # what drawn sequences found
    "templates in another order after a kill": [
        Step(BOTH, ("killed", 4, True)), Step(command(STUDY, **THREE, template_indices="13 1"))],
    "one of two templates finished by another run": [
        Step(BOTH, ("killed", 4, True)), Step(command(STUDY, **THREE)), Step(BOTH)],
    "more templates": [
        Step(command(STUDY)), Step(command(STUDY, template_indices="1 13"))],
    "another format": [
        Step(command(STUDY)), Step(command(STUDY, format="parquet"))],
    "another method and format": [
        Step(command(MEDIATE, mediators="heads")),
        Step(command(MEDIATE, mediators="heads", method="gradient", format="parquet"))],
    "killed while it wrote a table": [
        Step(command(STUDY), ("killed", 4, False)), Step(command(STUDY))],
    "killed between a table and the end of its run": [
        Step(command(MEDIATE), ("killed", 3, True)), Step(command(MEDIATE))],
}


@pytest.mark.parametrize("steps", FOUND.values(), ids=FOUND)
def test_a_sequence_that_was_found(workplace, steps):
    check(workplace, steps)
