"""Whole files, manifests and shards: what a stopped, doubled or damaged run leaves is right or not used."""

import os
import threading

import numpy as np
import pytest

from mediation.errors import InputError
from mediation.files import storage
from mediation.files.storage import RunFolder, whole_file
from tests import fuzz


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write("half")
        raise ZeroDivisionError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with whole_file(path) as file:
        file.write("after")
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_shards_of_other_settings_are_not_seen(tmp_path):
    one, two = RunFolder(tmp_path), RunFolder(tmp_path)
    one.claim([], {"alpha": 1})
    two.claim([], {"alpha": 2})
    one.save_shard("table.csv", "nurse", values=np.ones(3))
    assert two.load_shard("table.csv", "nurse") is None
    np.testing.assert_array_equal(one.load_shard("table.csv", "nurse")["values"], 1)


def test_two_runs_keep_each_others_manifest_entries(tmp_path):
    def work(number):
        folder = RunFolder(tmp_path)
        run = folder.begin({"settings": {"number": number}, "files": {f"{number}.csv": {}}, "finished": None})
        for step in range(20):
            folder.finish_file(run, f"{number}.csv", rows=step)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = RunFolder(tmp_path).read()["runs"]
    assert sorted(run["settings"]["number"] for run in runs) == list(range(8))
    assert all(run["files"][f"{run['settings']['number']}.csv"]["rows"] == 19 for run in runs)


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), whole_file(tmp_path / "file" / "table.csv"):
        pass


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


def test_a_flipped_bit_in_a_shard_is_seen(tmp_path):
    run_folder = RunFolder(tmp_path)
    run_folder.claim(["a.csv"], {})
    run_folder.save_shard("a.csv", "nurse", values=np.random.default_rng(0).normal(size=(4, 100)),
                          seconds=1.0)
    path = run_folder.shard_path("a.csv", "nurse")
    good = path.read_bytes()
    assert set(run_folder.load_shard("a.csv", "nurse")) == {"values", "seconds"}
    # where the archive names its members, too: one flip there loses a member
    for position in range(0, len(good), 7):
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


# what fuzzing found

@pytest.mark.parametrize("content", ['{"runs": [{"files": {}}]}', '{"runs": [{"settings": {}, "files": []}]}',
                                     '{"runs": [{"settings": {}, "files": {"a": 1}}]}'])
def test_manifests_without_settings_or_files_are_told(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="is not a manifest of this software"):
        RunFolder(tmp_path).read()


def test_shards_of_unknown_zip_versions_are_computed_again(tmp_path):
    path, _ = fuzz.readers(tmp_path)["shard"]
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 113  # the version that reading it needs
    path.write_bytes(content)
    run_folder = RunFolder(tmp_path / "shards")
    run_folder.claim(["a.csv"], {})
    assert run_folder.load_shard("a.csv", "nurse") is None
