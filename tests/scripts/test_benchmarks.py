"""The benchmarks on a toy."""

import re
import runpy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest


@pytest.fixture(params=[True, False], ids=["bfloat16", "no-bfloat16"])
def has_bfloat16(request, monkeypatch):
    """Whether the benchmarks are told that the processor multiplies bfloat16; else that is emulated."""
    monkeypatch.setattr("benchmarks.multiplies_bfloat16", lambda device: request.param)
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
    """Ours in processes of their own; an environment in which pip finds nothing."""
    monkeypatch.setattr("benchmarks.peers.compare.ENVIRONMENTS", tmp_path)
    for name, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(name, value)
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
    assert nnsight[1].startswith("not measured: could not be installed: ERROR: ")


def test_a_benchmark_that_fails_is_told_by_the_exit_code(tmp_path, monkeypatch):
    """Parts that end well and badly, in processes of their own."""
    import benchmarks.__main__ as every
    good = ("A part", "growth", "--help", "")
    bad = ("A part without its model", "growth", f"-model {tmp_path}", "")
    for parts, code in (([good], 0), ([bad, good], 1)):
        monkeypatch.setattr(every, "PARTS", parts)
        options = SimpleNamespace(out_dir=str(tmp_path), only=None, quick=False)
        with pytest.raises(SystemExit) if code else nullcontext() as ended:
            every.main(options)
        assert not code or ended.value.code == 1
        report = (tmp_path / "report.md").read_text()
        assert ("failed with exit code 2" in report) == bool(code) and "usage:" in report
