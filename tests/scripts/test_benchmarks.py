"""The benchmarks on a toy."""

import json
import re
import runpy
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from mediation.effects.resampling import Resampling
from mediation.effects.sign_flips import benjamini_yekutieli, holm, sign_flips
from mediation.results.attention_results import EFFECTS, MEANS, SCALARS


@pytest.fixture(params=[True, False], ids=["bfloat16", "no-bfloat16"])
def has_bfloat16(request, monkeypatch):
    """Whether the benchmarks are told that the processor multiplies bfloat16; else that is emulated."""
    monkeypatch.setattr("benchmarks.has_bfloat16", lambda device: request.param)
    return request.param


def test_benchmark_of_the_study_takes_its_turns(toy_checkpoint, monkeypatch, capsys, has_bfloat16):
    monkeypatch.setattr("sys.argv", ["study", "-model", str(toy_checkpoint("gpt2")), "--rounds", "2"])
    runpy.run_module("benchmarks.study", run_name="__main__")
    output = capsys.readouterr().out
    row = r"\| (2020 algorithm|exact|fast|gradient) \| [\d.]+ \| ([\d.]+) \([\d.]+ to [\d.]+\) \|"
    ratios = re.findall(row, output)
    assert [way for way, _ in ratios] == ["2020 algorithm", "exact", *["fast"] * has_bfloat16, "gradient"]
    assert float(ratios[0][1]) == 1
    assert ("not measured: the fast precision" in output) != has_bfloat16


@pytest.mark.parametrize("study", ["neuron_sweep --interventions 8", "attention_sweep"])
def test_benchmarks_compare_before_they_time(toy_checkpoint, monkeypatch, capsys, study, has_bfloat16):
    name, *options = study.split()
    monkeypatch.setattr("sys.argv", [name, *options, "-model", str(toy_checkpoint("gpt2")), "--rounds", "1"])
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    output = capsys.readouterr().out
    rows = re.findall(r"\| (exact|fast)[^|]* \| \d+ \| [\d.]+ \| [\d.]+ \([\d.]+ to [\d.]+\) \| (\S+) \|",
                      output)
    assert [way for way, _ in rows] == (["exact", "fast"] * 2 if has_bfloat16 else ["exact"] * 2)
    assert all(float(deviation) < (1e-4 if way == "exact" else 1e-3) for way, deviation in rows)
    assert ("not measured: the fast precision" in output) != has_bfloat16


def test_maps_are_compared_with_full_passes_and_what_is_not_installed_is_named(
    toy_checkpoint, monkeypatch, capsys, tmp_path,
):
    """Ours in processes of their own; another library's environment cannot be made where a file is."""
    (tmp_path / "file").touch()
    monkeypatch.setattr("benchmarks.peers.compare.ENVIRONMENTS", tmp_path / "file")
    monkeypatch.setattr("sys.argv", [
        "sites", "-model", str(toy_checkpoint("llama")), "--rounds", "1", "--base", "The {} said that",
        "--substitutes", "nurse", "man", "--candidates", "he", "she", "--only", "invokes"])
    runpy.run_module("benchmarks.peers.sites", run_name="__main__")
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if "|" in line]
    header, _, ours, nnsight = rows
    assert [column.split()[0] for column in header[1:7]] == ["residuals", "attentions", "mlps",
                                                             "head_outputs", "values", "all"]
    assert all(float(seconds) > 0 for seconds in ours[1:7])
    assert 0 < float(ours[7]) < 1e-4
    assert (ours[0], nnsight[0]) == ("this project exact", "nnsight invokes")
    assert nnsight[1].startswith("not measured: could not be installed: ") and "Not a directory" in nnsight[1]


def test_a_benchmark_that_fails_is_told_by_the_exit_code(tmp_path, monkeypatch):
    """Parts that end badly and well, in processes of their own; then one that does nothing and ends well."""
    import benchmarks.__main__ as every
    good = ("A part", "coverage", "--help", "")
    bad = ("A part of no studies", "coverage", "--studies 0", "")
    options = SimpleNamespace(out_dir=str(tmp_path), only=None, quick=False)
    monkeypatch.setattr(every, "PARTS", [bad, good])
    with pytest.raises(SystemExit) as ended:
        every.main(options)
    report = (tmp_path / "report.md").read_text()
    assert ended.value.code == 1 and report.count("failed with exit code 2") == 1
    assert "usage:" in report.split("## A part\n")[1]
    monkeypatch.setattr(every, "PARTS", [good])
    monkeypatch.setattr("sys.executable", shutil.which("true"))
    every.main(options)
    assert "failed" not in (tmp_path / "report.md").read_text()


def run_benchmark(monkeypatch, capsys, name, *options):
    """(exit code, standard output, standard error) of a module."""
    monkeypatch.setattr("sys.argv", [name, *map(str, options)])
    code = 0
    try:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


def test_coverage_of_intervals_and_levels_of_tests():
    from benchmarks import coverage
    generator = np.random.default_rng(0)
    study = coverage.one_way(20, coverage.SHAPES["normal"], equal=True)
    ours, wider, widest, rows = coverage.coverage(study, 200, generator)
    assert rows < .85 < ours <= wider <= widest
    wrong, rate, power, power_of_rate = coverage.levels(12, coverage.SHAPES["normal"], 20, generator)
    assert wrong < .3 and rate < .3 and power <= power_of_rate
    for name, data, of_row in coverage.intervals():
        values, factors = of_row(generator)
        counts = [len(np.unique(of_rows)) for of_rows in factors.values()]
        assert name == " x ".join(map(str, counts)) and data and abs(values.mean()) < .2


def test_more_stimuli_give_shorter_intervals_and_find_more_of_the_strongest_units(
        monkeypatch, capsys, tmp_path):
    generator = np.random.default_rng(0)
    heads = generator.normal(np.linspace(0, 1, 24).reshape(4, 6), .5, (30, 4, 6))
    results = [{"base_string1": f"The person saw {number} and she", "base_string2": "and he",
                "candidate1": "ran", "candidate2": "fell", **dict.fromkeys(SCALARS, 1.0),
                "total_effect": float(np.expm1(total)),
                **{f"{kind}_effect_head": np.expm1(of_heads).tolist() for kind in EFFECTS},
                **{f"{kind}_effect_layer": [0.0] * 4 for kind in EFFECTS}}
               for number, (of_heads, total) in enumerate(zip(heads, generator.normal(1, .3, 30)))]
    path = tmp_path / "attention_intervention_toy_unfiltered_dev.json"
    path.write_text(json.dumps({
        "model_version": "toy", "do_filter": False, "split": "dev", "num_examples_analyzed": 30,
        **dict.fromkeys(MEANS, 0.0), "results": results}))
    options = [path, "--sizes", 8, 128, "--studies", 20]
    code, output, _ = run_benchmark(monkeypatch, capsys, "how_many", *options)
    assert code == 0 and "30 examples in 30 clusters" in output and "24 units (heads, indirect)" in output
    few, many = ([float(cell.strip(" %")) for cell in line.strip("| ").split("|")]
                 for line in output.splitlines() if line.startswith(("| 8 ", "| 128 ")))
    assert few[0] == 8 and many[0] == 128
    assert few[1] > many[1] and few[2] > many[2] and few[4] < many[4] and few[5] < many[5]
    code, _, errors = run_benchmark(monkeypatch, capsys, "how_many", *options, "--units", "mlps, indirect")
    assert code == 2 and "there are heads, indirect" in errors


def test_a_linear_study_is_taken_apart_as_its_coefficients_say():
    from benchmarks.peers import inference
    task = inference.draw_task(np.random.default_rng(0), 0)
    total, direct, total_indirect, indirect = inference.linear_parts(task["exposure"], task["mediator"],
                                                                     task["outcome"])
    assert total == pytest.approx(direct + total_indirect)
    assert direct == pytest.approx(.3, abs=.15) and indirect == pytest.approx(.7 * .8, abs=.15)
    assert total_indirect == pytest.approx(.7 * (.8 + .4), abs=.15)


def test_statistics_are_compared_with_other_software_or_that_is_said(monkeypatch, capsys, tmp_path):
    """Without the other environment, as pip finds nothing: right results, and one that is wrong."""
    from benchmarks.peers import compare, inference
    monkeypatch.setattr(compare, "ENVIRONMENTS", tmp_path)
    for name, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(name, value)
    code, _, errors = run_benchmark(monkeypatch, capsys, "peers.inference")
    assert code == 1 and "not compared: could not be installed: ERROR: " in errors
    task = inference.draw_task(np.random.default_rng(0), 0)
    right = {"holm": holm(task["p"]), "bh": false_discovery_control(task["p"]),
             "flips": sign_flips(task["means"]).p, "by": benjamini_yekutieli(task["p"]),
             "parts_error": np.full(4, 1e-9), "parts": inference.linear_parts(
                 task["exposure"], task["mediator"], task["outcome"])}
    for name, factors in (("one_way", ["words"]), ("two_way", ["words", "templates"])):
        resampling = Resampling({each: task[each].tolist() for each in factors})
        ends = np.ravel(resampling.of_means(task["values"][:, None]))
        right |= {name: ends, f"{name}_error": np.ptp(ends) / 3.92}
    within = [(np.abs(differences) <= allowed).all()
              for _, _, differences, allowed in inference.compared(task, right)]
    wrong = [(np.abs(differences) <= allowed).all() for _, _, differences, allowed in inference.compared(
        task, right | {"holm": right["holm"] * 1.001})]
    assert all(within) and wrong.count(False) == 1


@pytest.mark.usefixtures("data")
def test_costs_of_other_sizes_are_counted(toy_checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["costs", "-model", str(toy_checkpoint("llama"))])
    runpy.run_module("benchmarks.costs", run_name="__main__")
    output = capsys.readouterr().out
    prompts = int(re.search(r"--method exact: (\d+) prompts", output)[1])
    rows = [line for line in output.splitlines() if line.startswith("| GPT-2 XL ")]
    assert len(rows) == 4 and all(f" {49 * 1600 * 4 * prompts:,} " in row for row in rows[:3])
    assert f" {(48 * 25 + 48 + 1) * 2 * 3:,} " in rows[3]
