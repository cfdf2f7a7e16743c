"""Whatever happens to a run: what is on disk is right, the rest can be continued, nothing is let in.

What is promised: docs/reliability.md.
"""

import datetime
import io
import json
import os
import re
import resource
import shlex
import signal
import textwrap
import time

import numpy as np
import pandas as pd
import pytest
import torch

import mediation
from mediation.files.storage import RunFolder
from tests import fuzz
from tests.helpers import COMMAND, PROJECT, damaged_checkpoint, resized, tables
from tests.preloaded import new_process


def test_damaged_files_end_in_one_line(tmp_path):
    """2,000 cases per reader are run by `make fuzz`; these are the first."""
    for name, (path, read) in fuzz.readers(tmp_path).items():
        refused = fuzz.run(name, path, read, 60, seed=1)
        assert refused > 10 or name in ("shard", "command line")  # damage that is seen


@pytest.mark.parametrize("turn", range(int(os.environ.get("MEDIATION_TURNS", "2"))))
def test_two_processes_at_once_make_each_file_once(start, undisturbed, tmp_path, turn):
    processes = [start(tmp_path) for _ in range(2)]
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert tables(tmp_path) == undisturbed
    (folder,) = tmp_path.glob("results/*")
    assert {path.name for path in folder.iterdir()} == {*undisturbed, "manifest.json"}  # no locks, no shards
    assert len(json.loads((folder / "manifest.json").read_text())["runs"]) == 1


def test_a_second_process_says_for_whom_it_waits(start, undisturbed, tmp_path):
    folder = RunFolder(tmp_path / "results" / f"{datetime.date.today():%Y%m%d}_neuron_intervention")
    with folder.claimed(["The_X_said_that_man_direct_toy-llama.csv"], {}):
        process = start(tmp_path)
        said = next((line for line in process.stderr if "waiting for it" in line), "")
        assert f"is being made by process {os.getpid()} on " in said and not tables(tmp_path)
    process.communicate()
    assert process.returncode == 0 and tables(tmp_path) == undisturbed


def test_a_lock_goes_with_its_process(start, undisturbed, tmp_path):
    """A killed process holds nobody up."""
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        process = start(folder)
        while not list(folder.glob("results/*/unfinished/*/*.npz")) and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.communicate()
        if process.returncode:  # else it had ended before it was killed
            break
    assert list(folder.glob("results/*/.locks/*.lock"))
    assert start(folder).wait(60) == 0
    assert tables(folder) == undisturbed and not list(folder.glob("results/*/.locks"))


def test_a_full_disk_loses_nothing(start, undisturbed, tmp_path):
    """Tables do not fit: one line, no part of a table; with room again the run goes on.

    What exceeds a limit on the size of a file fails as a full disk does.
    """
    process = start(tmp_path)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    _, errors = process.communicate()
    assert process.returncode == 2 and "Traceback" not in errors
    assert ".csv: File too large: what was finished is kept" in errors and not tables(tmp_path)
    shards = len(list(tmp_path.glob("results/*/unfinished/*/*.npz")))
    assert shards >= 4 and not [path for path in tmp_path.glob("results/*/.*") if path.name != ".locks"]
    assert start(tmp_path).wait() == 0
    assert tables(tmp_path) == undisturbed


def test_the_version_is_the_one_to_cite():
    citation = (PROJECT / "CITATION.cff").read_text()
    assert f"version: {mediation.__version__}\n" in citation


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_told(toy_checkpoint, run_script, tmp_path, value):
    folder = damaged_checkpoint(toy_checkpoint("llama"), tmp_path / "broken",
                                down_proj__weight=lambda w: w.index_fill(0, torch.tensor([0]), value))
    code, _, error = run_script(COMMAND, "-model", folder, "-out_dir", tmp_path / "out")
    assert code == 2 and "zero or not numbers" in error and not tables(tmp_path / "out")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["cut", "changed", "empty"])
def test_damaged_checkpoints_end_in_one_line(toy_checkpoint, run_script, tmp_path, name, how):
    folder = damaged_checkpoint(toy_checkpoint("gpt2"), tmp_path / "broken")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes({"cut": content[: len(content) // 2], "changed": b"\x00\xff" + content[2:],
                                 "empty": b""}[how])
    code, _, error = run_script(COMMAND, "-model", folder, "-out_dir", tmp_path / "out")
    assert code == 2 and "cannot load model" in error.splitlines()[-1] and not (tmp_path / "out").exists()


def test_a_model_that_does_not_fit_into_memory(toy_checkpoint, run_script, tmp_path):
    """400 terabytes of word embedding: more than any process can address."""
    folder = damaged_checkpoint(toy_checkpoint("gpt2"), tmp_path / "large")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 10**7, "n_embd": 10**7}))
    code, _, error = run_script(COMMAND, "-model", folder, "-out_dir", tmp_path / "out", "--randomize",
                                "--device", "cpu")
    assert code == 2 and not (tmp_path / "out").exists()
    assert re.fullmatch(r"error: out of memory while loading model '\S+large' on cpu: name a smaller .*\n",
                        error)


def test_a_tokenizer_with_more_tokens_than_the_model(toy_checkpoint, toy_tokenizer, run_script, tmp_path):
    last = len(toy_tokenizer) - 1
    folder = resized(toy_checkpoint("gpt2"), tmp_path / "toy", last, toy_tokenizer)
    code, _, error = run_script(COMMAND, "-model", folder, "-out_dir", tmp_path / "out")
    (line,) = [line for line in error.splitlines() if line.startswith("error")]
    assert code == 2 and not (tmp_path / "out").exists()
    assert f"has the number {last}, and the word embedding ends at {last - 1}" in line


def test_a_new_interpreter_a_clock_that_jumps_and_no_network_change_nothing(
        start, toy_checkpoint, undisturbed, tmp_path, monkeypatch):
    """A whole run of a local model, and the rest of one that was killed, with a hash seed of their own.

    The clock on the wall runs backwards, an hour per look. Every connection fails, and counts.
    """
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(f"""
        import itertools, socket, time
        hours = itertools.count()
        time.time = lambda: 1.7e9 - 3600 * next(hours)
        def refuse(self, address, *_):
            if self.family != socket.AF_UNIX:
                open({str(tmp_path / "asked")!r}, "a").write(str(address) + "\\n")
            raise OSError("no network")
        socket.socket.connect = socket.socket.connect_ex = refuse
        socket.getaddrinfo = lambda *arguments, **_: refuse(socket.socket(), arguments[:2])
        open({str(tmp_path / "changed")!r}, "w").close()
    """))
    (tmp_path / "both.py").write_text(textwrap.dedent("""
        import runpy, sys
        *command, whole, killed = sys.argv[1:]
        for folder in (whole, killed):
            sys.argv = [*command, folder]
            runpy.run_path(sys.argv[0], run_name="__main__")
    """))
    folders = tmp_path / "whole", tmp_path / "killed"
    killed = start(folders[1])
    while not list(folders[1].glob("results/*/unfinished/*/*.npz")):
        assert killed.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{PROJECT}")
    process = new_process(tmp_path / "both.py", *shlex.split(COMMAND), "-model", toy_checkpoint("llama"),
                          "-out_dir", *folders)
    _, errors = process.communicate()
    assert process.returncode == 0 and not (tmp_path / "asked").exists(), errors
    for folder in folders:
        assert tables(folder) == undisturbed
        (manifest,) = folder.glob("results/*/manifest.json")
        assert json.loads(manifest.read_text())["runs"][-1]["wall_time_seconds"] > 0
    assert (tmp_path / "changed").exists(), "that clock and those sockets were not there"


# determinism

def test_other_batches_give_the_same_numbers(toy_checkpoint, undisturbed, run_script, tmp_path):
    assert run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path, "--batch_size",
                      7)[0] == 0
    small = tables(tmp_path)
    assert small.keys() == undisturbed.keys()
    columns = ["candidate1_prob", "candidate2_prob"]
    for name, content in undisturbed.items():
        one, other = (pd.read_csv(io.BytesIO(each))[columns] for each in (content, small[name]))
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_termination_between_tables_keeps_them(start, undisturbed, tmp_path):
    process = start(tmp_path)
    while not list(tmp_path.glob("results/*/*.csv")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    finished = tables(tmp_path)
    assert finished and all(undisturbed[name] == content for name, content in finished.items())
    assert start(tmp_path).wait() == 0 and tables(tmp_path) == undisturbed
