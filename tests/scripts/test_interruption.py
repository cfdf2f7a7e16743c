"""A run that was stopped anywhere goes on and gives the same files; nothing is overwritten."""

import datetime
import json
import random
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mediation.mediators.interpolation import LEVELS
from mediation.studies import estimated_trees, interpolated_trees, trees
from tests.helpers import COMMAND, interrupt_at, tables


def done(out_dir):
    """How many professions and tables are on disk."""
    shards = len(list(out_dir.glob("results/*/unfinished/*/*.npz")))
    return shards + 10 * len(list(out_dir.glob("results/*/*.csv")))


def test_killed_and_continued_equals_undisturbed(start, undisturbed, tmp_path):
    rng, kills = random.Random(0), 0
    for _ in range(3):
        process, before = start(tmp_path), done(tmp_path)
        while done(tmp_path) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        if process.wait() != -signal.SIGKILL:
            break  # it was done before
        kills += 1
    assert kills >= 2
    process = start(tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert tables(tmp_path) == undisturbed
    (folder,) = tmp_path.glob("results/*")
    (run,) = json.loads((folder / "manifest.json").read_text())["runs"]
    assert run["finished"]
    assert {path.name for path in folder.iterdir()
            if not path.name.startswith(".")} == {*undisturbed, "manifest.json"}


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_stops_in_one_line_and_can_go_on(start, undisturbed, tmp_path, sent, code):
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        process = start(folder)
        while not list(folder.glob("results/*/unfinished/*/*.npz")) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(sent)
        _, errors = process.communicate()
        if process.returncode:  # else it had ended before the signal came
            break
    assert process.returncode == code and "Traceback" not in errors
    if sent == signal.SIGINT:
        assert errors.rstrip().endswith("the same command goes on from there")
    assert start(folder).wait() == 0
    assert tables(folder) == undisturbed


def test_shards_are_used_again_and_damaged_ones_are_not(run_script, toy_checkpoint, undisturbed, tmp_path,
                                                        monkeypatch):
    swept = []
    sweep = trees.neurons_in_trees

    def stop_at_third(self, *arguments, **named):
        swept.append(arguments[0][0].base_strings[0])
        if len(swept) == 3:
            raise KeyboardInterrupt
        return sweep(self, *arguments, **named)

    monkeypatch.setattr(trees, "neurons_in_trees", stop_at_third)
    assert run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path)[0] == 130
    shards = sorted(tmp_path.glob("results/*/unfinished/*/*.npz"))
    assert len(shards) == 2  # two professions, each in two templates
    first = shards[0]
    first.write_bytes(first.read_bytes()[:-100])
    swept[:] = ["not counted"] * 3
    assert run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path)[0] == 0
    assert len(swept) == 3 + 8 - 1  # 8 sweeps in all, one profession was whole
    assert tables(tmp_path) == undisturbed


def test_shared_direct_effects_go_on_layer_by_layer(run_script, toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(interpolated_trees, "INTERPOLATED_FROM", 3)
    layers, fit = [], interpolated_trees.direct_interpolants

    def stop_at_third(self, *arguments, **named):
        layers.append(arguments[3])
        if len(layers) == 3:
            raise KeyboardInterrupt
        return fit(self, *arguments, **named)

    monkeypatch.setattr(interpolated_trees, "direct_interpolants", stop_at_third)
    command = COMMAND.replace("--intervention_types man_direct man_indirect",
                              "--intervention_types man_direct")
    assert run_script(command, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path / "stopped")[0] == 130
    assert run_script(command, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path / "stopped")[0] == 0
    assert layers == [0, 1, 2, 2, 3]
    code, output, _ = run_script(command, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path / "whole")
    assert code == 0
    told = []
    for manifest in tmp_path.glob("*/results/*/manifest.json"):
        (run,) = json.loads(manifest.read_text())["runs"]
        told += [entry["interpolation"] for entry in run["files"].values()]
    assert len(told) == 4 and all(counts == told[0] for counts in told)
    assert told[0]["interpolated"] + told[0]["run_for_every_word"] == 4 * 16
    assert f"man_direct: {told[0]['interpolated']} neurons interpolated between professions" in output
    assert f"{told[0]['run_for_every_word']} run for every profession" in output
    assert tables(tmp_path / "stopped") == tables(tmp_path / "whole")
    assert not list(tmp_path.glob("stopped/results/*/unfinished"))


def test_a_run_that_was_begun_yesterday_goes_on_in_its_folder(run_script, toy_checkpoint, tmp_path,
                                                              monkeypatch):

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trees, "neurons_in_trees", stop)
        run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path)
    (folder,) = tmp_path.glob("results/*")
    day = datetime.date.today() - datetime.timedelta(days=1)
    yesterday = folder.with_name(f"{day:%Y%m%d}_neuron_intervention")
    folder.rename(yesterday)
    code, output, _ = run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path)
    assert code == 0 and "going on with the unfinished run" in output
    assert list(tmp_path.glob("results/*")) == [yesterday] and len(list(yesterday.glob("*.csv"))) == 4


def test_other_settings_do_not_overwrite(run_script, toy_checkpoint, tmp_path):
    run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path)
    before = tables(tmp_path)
    code, _, errors = run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path, "--alpha",
                                 2)
    assert code == 2 and "other settings (alpha 1.0 -> 2.0)" in errors and "choose another -out_dir" in errors
    assert tables(tmp_path) == before


def test_tables_nobody_knows_are_not_overwritten(run_script, toy_checkpoint, tmp_path):
    run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path)
    (manifest,) = tmp_path.glob("results/*/manifest.json")
    manifest.write_text("[]")
    code, _, errors = run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path)
    assert code == 2 and "not a manifest" in errors
    manifest.unlink()
    code, _, errors = run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path)
    assert code == 2 and "no manifest tells how it was made" in errors


def test_a_lost_table_is_made_again(run_script, toy_checkpoint, undisturbed, tmp_path):
    run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path)
    next(iter(tmp_path.glob("results/*/*man_direct*.csv"))).unlink()
    code, output, _ = run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path)
    assert code == 0 and "kept: 3 finished tables" in output and tables(tmp_path) == undisturbed


def test_a_table_with_a_number_that_is_none_is_never_written(run_script, toy_checkpoint, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in toy_checkpoint("llama").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    code, _, errors = run_script(COMMAND, "-model", broken, "-out_dir", tmp_path / "out")
    assert code == 2 and "zero or not numbers" in errors and not tables(tmp_path / "out")


# a finished run that is extended, or asked for again in another way

EXTENDED = [("-template_indices 1", "-template_indices 1 13"),
            ("--intervention_types man_direct", "--intervention_types man_direct woman_indirect")]
FEW = "run_profession_neuron_experiments.py --professions nurse captain"


@pytest.mark.parametrize("first, more", EXTENDED)
@pytest.mark.parametrize("method", ["", "--method gradient",
                                    "--method screen --screen_share 0.6 --screen_sample 3 --screen_top 5"])
def test_a_finished_run_can_be_extended(run_script, toy_checkpoint, tmp_path, monkeypatch, first, more,
                                        method):
    """What is finished stays as it is and is not run again.

    The manifest of the longer run has all that is known of it.
    """
    rest = "" if "template" not in first else "--intervention_types man_indirect man_direct"
    rest = rest or "-template_indices 2 3"
    model = ("-model", toy_checkpoint("gpt2"), "-out_dir", tmp_path)
    assert run_script(f"{FEW} {first} {rest} {method}", *model)[0] == 0
    before, swept = tables(tmp_path), []
    for place, name in ((trees, "neurons_in_trees"), (estimated_trees, "neuron_gradients_of")):
        original = getattr(place, name)

        def recording(self, stimuli, *arguments, original=original, **named):
            swept.extend((stimulus.base_strings[0], arguments[0]) for stimulus in stimuli)
            return original(self, stimuli, *arguments, **named)

        monkeypatch.setattr(place, name, recording)
    for again in range(2):
        swept.clear()
        code, output, error = run_script(f"{FEW} {more} {rest} {method}", *model)
        assert code == 0, error
        assert f"kept: {4 if again else 2} finished tables" in output and (not swept if again else swept)
        if again:
            continue
        if "template" in more and not method:
            assert not any("said that" in text for text, _ in swept)
        now = tables(tmp_path)
        assert len(now) == 4 and all(now[name] == content for name, content in before.items())
    (folder,) = tmp_path.glob("results/*")
    runs = json.loads((folder / "manifest.json").read_text())["runs"]
    assert [len(run["files"]) for run in runs] == [2, 4] and all(run["finished"] for run in runs)
    for entry in runs[1]["files"].values():
        assert entry["rows"] == 2 * 4 * 16
        # a table of which nothing was drawn to be checked says no deviation
        assert ("largest_deviation_from_full_passes" in entry) == (
            entry["checked_at_random"] + entry["checked_where_likely"] > 0)
        assert entry["software"]["numpy"] == np.__version__
        assert ("screen" in entry) == ("screen" in method)
    assert sum("taken_over" in entry for entry in runs[1]["files"].values()) == 2


def test_a_process_that_waited_for_a_shorter_run_takes_over_what_that_finished(
        start_script, toy_checkpoint, tmp_path):
    command = (f"{FEW} --intervention_types man_direct -model {toy_checkpoint('gpt2')} -out_dir {tmp_path} "
               "-template_indices")
    processes = [start_script(command, *templates) for templates in ([1], [1, 2])]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert len(tables(tmp_path)) == 2


def test_somebody_elses_manifest_in_an_older_folder_holds_nobody_up(run_script, toy_checkpoint, tmp_path):
    foreign = tmp_path / "results" / "20200301_neuron_intervention" / "manifest.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text('{"name": "a web app", "icons": []}')
    code, _, error = run_script(f"{FEW} -template_indices 1 --intervention_types man_direct", "-model",
                                toy_checkpoint("gpt2"), "-out_dir", tmp_path)
    assert code == 0 and f"not looked at: {foreign} is not a manifest" in error and len(tables(tmp_path)) == 1
    (made,) = [path for path in (tmp_path / "results").iterdir() if path != foreign.parent]
    (made / "manifest.json").write_bytes(foreign.read_bytes())
    # nor does it hold up an analysis
    code, output, error = run_script("compute_neuron_total_effect.py", made, "toy-gpt2")
    assert code == 0 and "not looked at" in error and "2 professions" in output


@pytest.mark.parametrize("first, second", [("csv", "parquet"), ("parquet", "csv")])
def test_a_table_in_another_format_is_not_made_a_second_time(run_script, toy_checkpoint, tmp_path, first,
                                                             second):
    """The analyses refuse a folder that has one table twice."""
    command = f"{FEW} -template_indices 1 --intervention_types man_direct"
    model = ("-model", toy_checkpoint("gpt2"), "-out_dir", tmp_path)
    assert run_script(f"{command} --format {first}", *model)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, _, error = run_script(f"{command} --format {second}", *model)
    assert code == 2 and f"is there already: use --format {first}" in error and "convert_tables.py" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_converted_folder_goes_on_in_its_new_format(run_script, toy_checkpoint, tmp_path):
    command = f"{FEW} --intervention_types man_direct"
    model = ("-model", toy_checkpoint("gpt2"), "-out_dir", tmp_path)
    assert run_script(f"{command} -template_indices 1", *model)[0] == 0
    (folder,) = tmp_path.glob("results/*")
    assert run_script(f"convert_tables.py {folder} --to parquet")[0] == 0
    code, output, error = run_script(f"{command} -template_indices 1", *model)  # the CSV is still there
    assert code == 0 and "kept: 1 finished tables" in output, error
    for path in folder.glob("*.csv"):
        path.unlink()
    code, output, error = run_script(f"{command} -template_indices 1 2 --format parquet", *model)
    assert code == 0 and "kept: 1 finished tables" in output, error
    assert len(list(folder.glob("*.parquet"))) == 2


def test_what_a_shorter_run_left_goes_with_the_longer_one(run_script, toy_checkpoint, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, (trees, "neurons_in_trees"), call=2)
    command = (f"{FEW} --intervention_types man_direct -model {toy_checkpoint('gpt2')} -out_dir {tmp_path} "
               "-template_indices")
    assert run_script(f"{command} 1 13")[0] == 130 and list(tmp_path.glob("results/*/unfinished/*"))
    assert run_script(f"{command} 1 13 2")[0] == 0
    assert not list(tmp_path.glob("results/*/unfinished"))


def test_what_a_stopped_run_has_is_not_computed_again_by_a_longer_one(run_script, toy_checkpoint, tmp_path,
                                                                      monkeypatch):
    calls = interrupt_at(monkeypatch, (trees, "neurons_in_trees"), call=2)
    command = (f"{FEW} --intervention_types man_direct -model {toy_checkpoint('gpt2')} -out_dir {tmp_path} "
               "-template_indices")
    assert run_script(f"{command} 1")[0] == 130
    assert run_script(f"{command} 1 13")[0] == 0
    swept = [stimulus.base_strings[0] for _, stimuli, *_ in calls for stimulus in stimuli]
    assert swept.count("The captain said that") == 1  # the first; nurse was under way
    assert len(tables(tmp_path)) == 2
    (manifest,) = tmp_path.glob("results/*/manifest.json")
    runs = json.loads(manifest.read_text())["runs"]
    assert [len(run["files"]) for run in runs] == [1, 2] and all(run["finished"] for run in runs)


@pytest.mark.parametrize("shared_from", [2, 99])
def test_an_error_in_any_template_is_found(run_script, toy_checkpoint, tmp_path, monkeypatch, shared_from):
    """Interventions are drawn from all templates: one alone would not show what is wrong in the others."""
    monkeypatch.setattr(interpolated_trees, "INTERPOLATED_FROM", shared_from)
    for place, name, wrong in ((trees, "neurons_in_trees", lambda swept: swept[1:]),
                               (interpolated_trees, "direct_interpolants", None)):
        original = getattr(place, name)

        def off(self, *arguments, original=original, wrong=wrong, **named):
            results = original(self, *arguments, **named)
            if wrong:
                wrong(results)[..., 0] += 0.3
                return results
            rest = 0.3 * (np.arange(results.values.shape[-1]) >= 2)  # columns of all templates but the first
            constant = {level: np.eye(level)[0][:, None] for level in LEVELS}
            groups = tuple((members, values + rest * constant[values.shape[1]])
                           for members, values in results.groups)
            return replace(results, values=results.values + rest, groups=groups)

        monkeypatch.setattr(place, name, off)
    code, _, error = run_script("run_profession_neuron_experiments.py --professions nurse captain teacher "
                                "--intervention_types man_direct",
                                "-model", toy_checkpoint("llama"), "-out_dir", tmp_path)
    assert code == 2 and "and full passes differ by" in error.splitlines()[-1]


def test_full_passes_are_not_taken_for_a_finished_sweep(run_script, toy_checkpoint, tmp_path):
    command = f"{FEW} -template_indices 1 --intervention_types man_direct"
    model = ("-model", toy_checkpoint("gpt2"), "-out_dir", tmp_path)
    code, output, _ = run_script(command, *model)
    assert code == 0 and "checked" in output
    code, output, _ = run_script(command, *model)
    assert code == 0 and "kept: 1 finished tables" in output and "checked" not in output  # nothing was run
    code, _, error = run_script(f"{command} --full_passes", *model)
    assert code == 2 and "made with other settings (full_passes None -> True)" in error
