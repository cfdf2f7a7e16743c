"""Whatever happens to a run: what is on disk is right, the rest can be continued, nothing is let in (docs/reliability.md says what is promised)."""

import datetime
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mediation
from experiment import Model
from mediation.errors import InputError
from mediation.files import storage
from mediation.files.storage import RunFolder
from mediation.results.neuron_tables import read_pieces, read_probabilities
from mediation.stimuli import professions
from tests import fuzz
from tests.conftest import COMMAND, PROJECT, tables
from tests.preloaded import new_process


def run_limited(model, out_dir, limit=None, **environment):
    """The command of `start`, in a new interpreter with a limit on the size of a file: what exceeds it fails as a full disk does."""
    def lower():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run([sys.executable, *COMMAND.split(), "-model", str(model), "-out_dir", str(out_dir)], cwd=PROJECT, capture_output=True, text=True,
                          preexec_fn=lower, env={**os.environ, **environment})


def test_damaged_files_end_in_one_line(tmp_path):
    """2,000 cases a reader are run by `make fuzz`; these are the first."""
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
    with folder._only_process("The_X_said_that_man_direct_toy-llama.csv"):
        process = start(tmp_path)
        said = next((line for line in process.stderr if "waiting for it" in line), "")
        assert f"is being made by process {os.getpid()} on " in said and not tables(tmp_path)
    process.communicate()
    assert process.returncode == 0 and tables(tmp_path) == undisturbed


def test_shards_that_were_left_behind_are_removed(tmp_path):
    """A process that was killed when its table was written but its shards not yet removed."""
    run_folder = RunFolder(tmp_path)
    run_folder.claim(["a.csv"], {})
    run_folder.begin({"settings": {}, "files": {"a.csv": {"rows": 1}}})
    run_folder.save_shard("a.csv", "nurse", values=np.ones(3))
    (tmp_path / "a.csv").touch()
    with run_folder.claimed(["a.csv"], {}):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "manifest.json"}


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


def test_a_full_disk_loses_nothing(start, toy_checkpoint, undisturbed, tmp_path):
    """Tables do not fit: one line, no part of a table; with room again the run goes on."""
    process = run_limited(toy_checkpoint("llama"), tmp_path, limit=20_000)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert ".csv: File too large: what was finished is kept" in process.stderr and not tables(tmp_path)
    shards = len(list(tmp_path.glob("results/*/unfinished/*/*.npz")))
    assert shards >= 4 and not [path for path in tmp_path.glob("results/*/.*") if path.name != ".locks"]
    assert start(tmp_path).wait() == 0
    assert tables(tmp_path) == undisturbed


def test_a_flipped_bit_in_a_shard_is_seen(tmp_path):
    run_folder = RunFolder(tmp_path)
    run_folder.claim(["a.csv"], {})
    run_folder.save_shard("a.csv", "nurse", values=np.random.default_rng(0).normal(size=(4, 100)), seconds=1.0)
    path = run_folder.shard_path("a.csv", "nurse")
    good = path.read_bytes()
    assert set(run_folder.load_shard("a.csv", "nurse")) == {"values", "seconds"}
    for position in range(0, len(good), 7):  # where the archive names its members, too: one flip there loses a member
        for bit in (0, 6):
            damaged = bytearray(good)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            assert run_folder.load_shard("a.csv", "nurse") is None


def test_a_shard_without_one_of_its_members_is_refused(tmp_path):
    """As an archive it is whole: only the digest behind it tells."""
    run_folder = RunFolder(tmp_path)
    run_folder.claim(["a.csv"], {})
    run_folder.save_shard("a.csv", "nurse", values=np.ones(3), seconds=1.0)
    path = run_folder.shard_path("a.csv", "nurse")
    digest = path.read_bytes()[-32:]
    with path.open("wb") as file:
        np.savez(file, values=np.ones(3))
        file.write(digest)
    with np.load(path) as archive:
        assert list(archive) == ["values"]
    assert run_folder.load_shard("a.csv", "nurse") is None


def test_shards_of_another_version_are_computed_again(tmp_path, monkeypatch):
    run_folder = RunFolder(tmp_path)
    run_folder.claim(["a.csv"], {})
    run_folder.save_shard("a.csv", "nurse", values=np.ones(3))
    assert run_folder.load_shard("a.csv", "nurse") is not None
    versions = storage.software()
    assert set(versions) == {"causal-mediation", "torch", "transformers", "tokenizers", "numpy"}
    monkeypatch.setattr(storage, "software", lambda: versions | {"torch": "9.9"})
    assert run_folder.load_shard("a.csv", "nurse") is None
    run = run_folder.begin({"settings": {}, "files": {"a.csv": {}}})
    run_folder.finish_file(run, "a.csv", rows=3)
    (tmp_path / "a.csv").touch()
    assert run_folder.entry_of("a.csv")["software"]["torch"] == "9.9"
    with run_folder.claimed(["a.csv"], {}):
        pass
    assert not (tmp_path / "unfinished").exists()  # the other version's are tidied up as well


def test_the_version_is_the_one_to_cite():
    citation = (PROJECT / "CITATION.cff").read_text()
    assert f"version: {mediation.__version__}\n" in citation


def damaged_checkpoint(folder, target, **changes):
    """A copy of a checkpoint with some of its weights changed by functions."""
    import shutil

    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    for name, change in changes.items():
        key = next(key for key in weights if key.endswith(name.replace("__", ".")))
        weights[key] = change(weights[key])
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_told(toy_checkpoint, run_script, tmp_path, value):
    folder = damaged_checkpoint(toy_checkpoint("llama"), tmp_path / "broken", down_proj__weight=lambda w: w.index_fill(0, torch.tensor([0]), value))
    code, _, error = run_script(COMMAND, "-model", folder, "-out_dir", tmp_path / "out")
    assert code == 2 and "zero or not numbers" in error and not tables(tmp_path / "out")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["cut", "changed", "empty"])
def test_damaged_checkpoints_end_in_one_line(toy_checkpoint, run_script, tmp_path, name, how):
    folder = damaged_checkpoint(toy_checkpoint("gpt2"), tmp_path / "broken")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes({"cut": content[: len(content) // 2], "changed": b"\x00\xff" + content[2:], "empty": b""}[how])
    code, _, error = run_script(COMMAND, "-model", folder, "-out_dir", tmp_path / "out")
    assert code == 2 and "cannot load model" in error.splitlines()[-1] and not (tmp_path / "out").exists()


def test_a_model_that_does_not_fit_into_memory(toy_checkpoint, run_script, tmp_path):
    """400 terabytes of word embedding: more than any process can address."""
    folder = damaged_checkpoint(toy_checkpoint("gpt2"), tmp_path / "large")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 10**7, "n_embd": 10**7}))
    code, _, error = run_script(COMMAND, "-model", folder, "-out_dir", tmp_path / "out", "--randomize", "--device", "cpu")
    assert code == 2 and not (tmp_path / "out").exists()
    assert re.fullmatch(r"error: out of memory while loading model '\S+large' on cpu: name a smaller .*\n", error)


def resized(folder, target, rows, tokenizer):
    """A copy of a checkpoint with so many rows in its word embedding, and this tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(rows)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def test_a_tokenizer_with_more_tokens_than_the_model(toy_checkpoint, toy_tokenizer, run_script, tmp_path):
    last = len(toy_tokenizer) - 1
    folder = resized(toy_checkpoint("gpt2"), tmp_path / "toy", last, toy_tokenizer)
    code, _, error = run_script(COMMAND, "-model", folder, "-out_dir", tmp_path / "out")
    (line,) = [line for line in error.splitlines() if line.startswith("error")]
    assert code == 2 and not (tmp_path / "out").exists()
    assert f"has the number {last}, and the word embedding ends at {last - 1}" in line


def test_a_special_token_without_a_row_does_no_harm(toy_checkpoint, toy_tokenizer, tmp_path):
    """As Gemma 3's placeholder for images does."""
    tokenizer, rows = type(toy_tokenizer).from_pretrained(toy_checkpoint("gpt2")), len(toy_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    folder = resized(toy_checkpoint("gpt2"), tmp_path / "toy", rows, tokenizer)
    assert len(Model(gpt2_version=str(folder)).tokenizer) == rows + 1


def test_a_clock_that_jumps_changes_nothing(toy_checkpoint, undisturbed, tmp_path):
    """The clock on the wall runs backwards, an hour a look."""
    (tmp_path / "sitecustomize.py").write_text("import itertools, time\nhours = itertools.count()\ntime.time = lambda: 1.7e9 - 3600 * next(hours)\n")
    process = run_limited(toy_checkpoint("llama"), tmp_path / "out", PYTHONPATH=str(tmp_path))
    assert process.returncode == 0 and tables(tmp_path / "out") == undisturbed, process.stderr
    (manifest,) = tmp_path.glob("out/results/*/manifest.json")
    assert json.loads(manifest.read_text())["runs"][0]["wall_time_seconds"] > 0


# what fuzzing found


def test_ratings_that_are_no_text_are_told(tmp_path):
    (tmp_path / "professions.csv").write_bytes(b"word,definitional,stereotypical\nnurse,\xff,0\n")
    with pytest.raises(InputError, match="cannot be read as a CSV"):
        professions.load(tmp_path / "professions.csv")


@pytest.mark.parametrize("change, message", [
    (lambda text: text.replace("\n0,nurse", "\n0,,,nurse"), "rows have more cells than there are columns"),
    (lambda text: text.replace(",nurse,", ",,"), "column 'word' is empty"),
    (lambda text: text.replace(",0,1\n", ",0.5,1\n"), "column 'layer' is not a number"),
    (lambda text: text.replace(",0,1\n", ",1e999,1\n"), "column 'layer' is not a number"),
    (lambda text: text.replace("0.1,0.2,0,1\n", f"{'A' * 5000},0.2,0,1\n"), "is not a probability above 0"),
], ids=["cells", "word", "half a layer", "infinity", "long cell"])
def test_damaged_tables_that_fuzzing_found(tmp_path, change, message):
    path, _ = fuzz.readers(tmp_path)["neuron table"]
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    with pytest.raises(InputError, match=message) as error:
        list(read_pieces(path, "man_indirect"))
    assert len(str(error.value)) < 1300


@pytest.mark.parametrize("content", ['{"runs": [{"files": {}}]}', '{"runs": [{"settings": {}, "files": []}]}',
                                     '{"runs": [{"settings": {}, "files": {"a": 1}}]}'])
def test_manifests_without_settings_or_files_are_told(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="is not a manifest of this software"):
        RunFolder(tmp_path).read()


def test_tables_without_rows_are_told(tmp_path):
    path, _ = fuzz.readers(tmp_path)["neuron table"]
    path.write_text(path.read_text().partition("\n")[0] + "\n")
    with pytest.raises(InputError, match="the tables have no rows"):
        read_probabilities(path.parent, "m")


def test_shards_of_unknown_zip_versions_are_computed_again(tmp_path):
    path, _ = fuzz.readers(tmp_path)["shard"]
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 113  # the version that reading it needs
    path.write_bytes(content)
    run_folder = RunFolder(tmp_path / "shards")
    run_folder.claim(["a.csv"], {})
    assert run_folder.load_shard("a.csv", "nurse") is None


# nobody let in


class Payload:
    """What a pickle would run."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_checkpoint_that_would_run_code_is_refused(toy_checkpoint, tmp_path):
    folder, marker = damaged_checkpoint(toy_checkpoint("gpt2"), tmp_path / "evil"), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(InputError, match="cannot load model"):
        Model(gpt2_version=str(folder))
    assert not marker.exists()


def test_code_that_comes_with_a_model_is_not_run(toy_checkpoint, tmp_path):
    folder, marker = damaged_checkpoint(toy_checkpoint("gpt2"), tmp_path / "evil"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    with pytest.raises(InputError, match="cannot load model"):
        Model(gpt2_version=str(folder))
    assert not marker.exists()


def test_no_network_is_asked(toy_checkpoint, undisturbed, tmp_path):
    """A whole run of a local model in a process whose every connection fails, and counts."""
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(f"""
        import socket
        def refuse(self, address, *_):
            if self.family != socket.AF_UNIX:
                open({str(tmp_path / "asked")!r}, "a").write(str(address) + "\\n")
            raise OSError("no network")
        socket.socket.connect = socket.socket.connect_ex = refuse
        socket.getaddrinfo = lambda *arguments, **_: refuse(socket.socket(), arguments[:2])
    """))
    process = run_limited(toy_checkpoint("llama"), tmp_path / "out", PYTHONPATH=str(tmp_path))
    assert process.returncode == 0 and not (tmp_path / "asked").exists(), process.stderr
    assert tables(tmp_path / "out") == undisturbed


def test_a_hub_name_offline_is_told(tmp_path):
    process = run_limited("nobody/no-such-model", tmp_path / "out", HF_HUB_OFFLINE="1")
    assert process.returncode == 2 and "cannot load model 'nobody/no-such-model'" in process.stderr and "Traceback" not in process.stderr


# determinism


def test_the_same_command_gives_the_same_bytes(start, toy_checkpoint, undisturbed, run_script, tmp_path):
    assert start(tmp_path / "again", new_process).wait() == 0
    assert tables(tmp_path / "again") == undisturbed
    assert run_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", tmp_path / "small", "--batch_size", 7)[0] == 0
    import pandas as pd
    for name in undisturbed:
        (one,), (other,) = ((tmp_path / folder).glob(f"results/*/{name}") for folder in ("again", "small"))
        columns = ["candidate1_prob", "candidate2_prob"]
        np.testing.assert_allclose(pd.read_csv(one)[columns], pd.read_csv(other)[columns], rtol=1e-5)


def test_a_termination_between_tables_keeps_them(start, undisturbed, tmp_path):
    process = start(tmp_path)
    while not list(tmp_path.glob("results/*/*.csv")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    found = tables(tmp_path)
    assert found and all(undisturbed[name] == content for name, content in found.items())
    assert start(tmp_path).wait() == 0 and tables(tmp_path) == undisturbed
