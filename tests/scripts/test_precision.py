"""`--precision fast` as a user runs it: what is said, what survives a stop, what is run again."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from mediation.mediators import batches, interpolation
from mediation.mediators.heads import heads_layers_model
from mediation.model import readout
from mediation.studies import checks, error_budget, trees
from tests.helpers import interrupt_at


@pytest.mark.parametrize("script, options, result", [
    ("run_profession_neuron_experiments.py",
     "-template_indices 1 --professions nurse doctor --intervention_types man_indirect",
     "results/*/manifest.json"),
    ("attention_intervention_winobias.py", "--do-filter False", "winobias_data/manifest.json")])
def test_scripts_run_fast_and_say_so(toy_checkpoint, run_script, tmp_path, data, script, options, result):
    command = f"{script} {options} -model {toy_checkpoint('llama')} -out_dir {tmp_path} --precision"
    code, output, errors = run_script(command, "fast")
    assert code == 0, errors
    assert re.search(r"fast: \d+ of \d+ interventions in bfloat16.*differ by at most \d", output)
    (manifest,) = tmp_path.glob(result)
    (run,) = json.loads(manifest.read_text())["runs"]
    assert run["settings"]["precision"] == "fast" and run["fast"]["largest_deviation"] < batches.BOUND
    assert run["fast"]["rows"] == {"run": 2 * 48, "att": 2 * len(heads_layers_model(3, 4)) * 3}[script[:3]]
    code, _, errors = run_script(command, "exact")
    assert code == 2 and "made with other settings (precision 'fast' -> None)" in errors
    code, _, errors = run_script(command + " fast", "--full_passes")
    assert code == 2 and "--precision fast does not go with --full_passes" in errors


STUDY = ("run_profession_neuron_experiments.py -template_indices 1 13 --professions nurse doctor "
         "--intervention_types man_minus_woman --alpha 0.02")


def test_what_was_run_fast_survives_a_stop(toy_checkpoint, run_script, tmp_path, monkeypatch):
    """The manifest counts the rows of every sitting, not of the last process."""
    command = f"{STUDY} --precision fast -model {toy_checkpoint('llama')} -out_dir"
    assert run_script(command, tmp_path / "whole")[0] == 0
    interrupt_at(monkeypatch, (trees, "neurons_in_trees"), call=2)
    assert run_script(command, tmp_path / "stopped")[0] == 130
    assert run_script(command, tmp_path / "stopped")[0] == 0
    manifests = [next(tmp_path.glob(f"{name}/results/*/manifest.json")) for name in ("whole", "stopped")]
    whole, stopped = (json.loads(path.read_text())["runs"][0] for path in manifests)
    assert whole["fast"] == stopped["fast"] and whole["fast"]["rows"] == 2 * 48
    assert whole["fast"]["sampled"] > 0
    # two templates share each sweep
    assert [entry["fast"]["rows"] for entry in whole["files"].values()] == [48, 48]


def test_own_stimuli_keep_what_was_run_fast(toy_checkpoint, run_script, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"id": "1", "base": "The {} said that", "substitutes": ["nurse", "man"],
                                "candidates": ["she", "he"]}) + "\n")
    command = (f"mediate.py {path} -model {toy_checkpoint('llama')} -out_dir {tmp_path / 'out'} "
               "--precision fast --mediators neurons,heads")
    assert run_script(command)[0] == 0
    runs = json.loads((tmp_path / "out" / "manifest.json").read_text())["runs"]
    rows = [run["fast"]["rows"] for run in runs if "fast" in run]
    assert rows == [2 * len(heads_layers_model(3, 4)), 2 * 48]


@pytest.mark.parametrize("where", ["sample", "full passes"])
def test_a_fast_sweep_that_is_off_is_run_again_exactly(toy_checkpoint, run_script, tmp_path, monkeypatch,
                                                       where):
    """Seen in the sweep's own sample, or only by the full passes: the study goes on with exact numbers."""
    command = f"{STUDY} --alpha 1 -model {toy_checkpoint('llama')} -out_dir"
    assert run_script(command, tmp_path / "exact")[0] == 0
    monkeypatch.setattr(batches, "AIM", float("inf"))  # every row is left fast
    if where == "sample":
        monkeypatch.setattr(batches, "BOUND", 1e-12)
    else:
        monkeypatch.setattr(batches, "BOUND", 10.0)  # the sample accepts everything
        # every neuron is checked: a few may miss what is off
        monkeypatch.setattr(checks, "draws", lambda stimuli, *_: np.full(stimuli, 64))
        others = batches.BOUND + interpolation.TOLERANCE["float32"] + readout.TOLERANCE
        monkeypatch.setitem(error_budget.ROUNDING, "float32", 5e-6 - others)
    code, output, error = run_script(f"{command} {tmp_path / 'fast'} --precision fast")
    assert code == 0, error
    assert "2 sweeps that were off by more than is accepted" in output
    tables = [pd.read_csv(path) for path in sorted(tmp_path.glob("*/results/*/The_X_said_that*.csv"))]
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)
    (run,) = json.loads(next(tmp_path.glob("fast/results/*/manifest.json")).read_text())["runs"]
    assert run["fast"]["repeated"] == 2 and run["fast"]["exact"] == run["fast"]["rows"] == 2 * 48
