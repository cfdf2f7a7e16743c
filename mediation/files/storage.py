"""Files that are whole or not there: atomic writes, a folder's manifest, shards of an unfinished sweep."""

import datetime
import fcntl
import glob
import hashlib
import importlib.metadata
import io
import json
import os
import pickle
import platform
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mediation.errors import InputError
from mediation.version import VERSION

if TYPE_CHECKING:  # a table is written by its own method
    import pandas

MANIFEST = "manifest.json"
SHARDS = "unfinished"
LOCKS = ".locks"
DIGEST = hashlib.sha256().digest_size  # bytes behind a shard's archive, by which damage is seen
# the part of the aligned examples, the smallest odds ratios first, that the attention study leaves out: where
# a command line names none, and in files of 2020, which do not say it
FILTER_QUANTILE = 0.25

PACKAGES = ("torch", "transformers", "tokenizers", "numpy")  # their versions decide a number's last digits


@contextmanager
def whole_file(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`, which is renamed to `path` when the block ends well.

    When it does not, the temporary file goes.

    Raises:
        InputError: the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    except OSError as error:
        raise InputError(f"{path.parent} cannot be written ({error.strerror}): choose another "
                         "folder") from error
    try:
        # no translation of line ends: a table has the same bytes on every system
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
        with open(handle, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before it is renamed, or a power cut could leave an empty file
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner reads
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is told without a name
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        target = Path(temporary) / path.name
        target.mkdir()
        yield target
        target.rename(path)


def write_json(path: Path, content: Any, indent: int | None = 1) -> Path:
    """Write JSON, whole or not at all; returns the path."""
    with whole_file(path) as file:
        json.dump(content, file, indent=indent, ensure_ascii=False)
        file.write("\n")
    return path


def write_csv(path: Path, table: "pandas.DataFrame", index: bool = False) -> Path:
    """Write a pandas table, whole or not at all; returns the path."""
    with whole_file(path) as file:
        table.to_csv(file, index=index)
    return path


def write_pickle(path: Path, content: Any) -> Path:
    """Write a pickle of plain Python and NumPy values, whole or not at all; returns the path."""
    with whole_file(path, "wb") as file:
        pickle.dump(content, file, protocol=4)
    return path


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain Python and NumPy values; any other name in a file is refused, for it could run code."""

    NUMPY = ("_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer")

    def find_class(self, module: str, name: str) -> Any:
        of_numpy = module.split(".")[0] == "numpy" and name in self.NUMPY
        if of_numpy or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise InputError(f"it names {module}.{name}, which is neither plain Python nor NumPy")


def read_pickle(path: str | Path) -> Any:
    """Content of a pickle, built of plain Python and NumPy values only.

    Raises:
        InputError: a file that is not there, cut short, no pickle, or one that would run code; the offending
            name is told.
    """
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file).load()
    except InputError as error:
        raise InputError(f"{path} is refused: {error}: do not open it, and make it again") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise InputError(f"{path} cannot be read as a pickle ({type(error).__name__}): move it away, it is "
                         "made again then") from error


def free_space(folder: str | Path) -> int:
    """Bytes that are free on the disk of `folder`, which need not be there yet."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def check_space(folder: str | Path, needed: float, what: str) -> None:
    """Raises InputError when the disk of `folder` has no room for so many bytes of `what`; makes nothing."""
    free = free_space(folder)
    if needed > free:
        raise InputError(f"{folder}: {what} take {needed / 1e9:.3g} GB on the way, {free / 1e9:.3g} GB are "
                         "free: choose another -out_dir, or fewer templates or professions at once")


def check_writable(folder: str | Path) -> None:
    """Raises InputError when `folder` could not be made and written, without making it."""
    existing = Path(folder).absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({existing}: {error.strerror}): choose another "
                         "-out_dir") from error


@cache
def software() -> dict[str, str]:
    """{name: version} of the software that computes the numbers, this one first."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"causal-mediation": VERSION, **versions}


def python_command() -> str:
    """What a user types for the Python that runs here: "python" where that is this one, else its path from
    the current folder, such as .venv/bin/python; "python" again where it lies elsewhere."""
    path = Path(sys.executable or "python")
    if shutil.which("python") == str(path) or not path.is_relative_to(Path.cwd()):
        return "python"
    return shlex.quote(str(path.relative_to(Path.cwd())))


class RunFolder:
    """A results folder with its manifest: which run made which file, and with which settings.

    manifest.json is {"runs": [run, ...]}; a run holds its `settings`, `files` {name: what it holds},
    `started`, `finished` (null while it runs) and whatever the script adds. A finished file's entry has
    `rows` and `software`, the versions that made it; `taken_over`: another run had finished it. A folder may
    hold the files of many runs and models.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @contextmanager
    def _manifest(self) -> Iterator[dict[str, Any]]:
        """The manifest, to be read and changed while no other process does; written back whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self._remove_parts(MANIFEST)
            content = self.read()
            yield content
            write_json(self.folder / MANIFEST, content)
        finally:
            os.close(handle)

    def read(self) -> dict[str, list[dict[str, Any]]]:
        """The manifest's content; {"runs": []} where there is none.

        Raises:
            InputError: a file that is not a manifest.
        """
        path = self.folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            runs = [dict(run) for run in content["runs"]]
            for run in runs:
                entries = run["files"].values() if isinstance(run["files"], dict) else [None]
                if not all(isinstance(part, dict) for part in (run["settings"], *entries)):
                    raise TypeError("a run without settings and files")
            return {"runs": runs}
        except FileNotFoundError:
            return {"runs": []}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a manifest of this software ({error}): move it away") from error

    def settings_of(self, file_name: str) -> dict[str, Any] | None:
        """Settings of the run that made (or is making) a file; None for a file the manifest does not know."""
        owners = [run["settings"] for run in self.read()["runs"] if file_name in run["files"]]
        return owners[-1] if owners else None

    def is_finished(self, file_name: str) -> bool:
        """True for a file that is there and that its run in the manifest calls complete."""
        return bool(self.entry_of(file_name)) and (self.folder / file_name).exists()

    def entry_of(self, file_name: str) -> dict[str, Any]:
        """What the manifest says of a finished file; {} for others."""
        return _finished_entry(self.read()["runs"], file_name)

    def claim(self, files: Collection[str], settings: dict[str, Any]) -> None:
        """Make sure that a run with these settings may write these files, before it writes anything.

        Raises:
            InputError: one of them is there already, made with other settings or by nobody knows whom:
                nothing is overwritten.
        """
        self._claim = settings, list(files)
        for name in files:
            before = self.settings_of(name)
            if before is None and (self.folder / name).exists():
                raise InputError(f"{self.folder / name} is already there and no manifest tells how it was "
                                 "made: choose another -out_dir or move it away")
            if before is not None and before != settings:
                raise InputError(f"{self.folder / name} was made with other settings "
                                 f"({differences(before, settings)}): choose another -out_dir")

    def stopped_within(self, files: Collection[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
        """{file: its entry} of each shorter run of these files that was stopped and has shards.

        When it is finished first, nothing of them is computed again.
        """
        parts = (run["files"] for run in self.read()["runs"] if run["settings"] == settings)
        return [part for part in parts if set(part) < set(files)
                and any((self.folder / SHARDS).glob(f"*-{_run_name(settings, part)}/*"))]

    @contextmanager
    def claimed(self, files: Collection[str], settings: dict[str, Any]) -> Iterator[None]:
        """`claim`, and hold the files: another process that asks for one of them waits, and says for whom.

        Shards go when the block has ended: what was asked for is in files. The locks are the operating
        system's: they go with the process that holds them, however it ends.
        """
        self.claim(files, settings)
        with ExitStack() as locks:
            for name in sorted(files):  # in one order, so that two processes do not wait for each other
                locks.enter_context(self._only_process(name))
                self._remove_parts(name)
            self.claim(files, settings)  # the other process may have had other settings
            yield
            for run in self.read()["runs"]:
                # shorter runs that were stopped, too, where a longer one has made all their files
                own = set(run["files"]) == set(files) or all(map(self.is_finished, run["files"]))
                if run["settings"] == settings and own:
                    every_version = _run_name(settings, run["files"], "*")
                    for leftover in (self.folder / SHARDS).glob(f"*-{every_version}"):
                        shutil.rmtree(leftover, ignore_errors=True)
            with suppress(OSError):  # other runs are under way, or there is none
                (self.folder / SHARDS).rmdir()

    def _remove_parts(self, name: str) -> None:
        """Remove what a process that was killed had written of a file; only for the holder of its lock."""
        for part in self.folder.glob(f".{glob.escape(name)}-*"):
            part.unlink(missing_ok=True)

    @contextmanager
    def _only_process(self, file_name: str) -> Iterator[None]:
        path = self.folder / LOCKS / f"{file_name}.lock"
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(path, os.O_CREAT | os.O_RDWR)
            except FileNotFoundError:  # the process before us has just tidied up
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(handle, 200).decode(errors="replace") or "another process"
                print(f"{self.folder / file_name} is being made by {holder}: waiting for it", file=sys.stderr)
                fcntl.flock(handle, fcntl.LOCK_EX)
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                break
            os.close(handle)  # the lock of a file that its holder has removed
        try:
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # locks of other files are there
                path.parent.rmdir()
            os.close(handle)

    def begin(self, run: dict[str, Any]) -> int:
        """Add a run to the manifest, or go on with the one that has the same settings and files.

        Returns the run's index.

        What another run finished is taken over, with all that the manifest says of it.
        """
        with self._manifest() as content:
            return self._joined(content, run)

    def _joined(self, content: dict[str, Any], run: dict[str, Any]) -> int:
        """Add a run to the manifest's content, as `begin` says."""
        same = [index for index, before in enumerate(content["runs"])
                if before["settings"] == run["settings"] and list(before["files"]) == list(run["files"])]
        if not same:
            content["runs"].append(run)
        index = same[0] if same else len(content["runs"]) - 1
        files = content["runs"][index]["files"]
        for name, entry in files.items():
            finished = _finished_entry(content["runs"], name)
            if "rows" not in entry and finished and (self.folder / name).exists():
                files[name] = entry | finished | {"taken_over": True}
        return index

    def open_files(self, index: int) -> dict[str, dict[str, Any]]:
        """{name: entry} of the files that a run has to compute.

        These are all but those that it took over, as long as they are there.
        """
        return self._open(self.read()["runs"][index]["files"])

    def files_ahead(self, files: Mapping[str, dict[str, Any]],
                    settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What `open_files` would say if a run of these files began now; nothing is written."""
        content = self.read()
        run = {"settings": settings, "files": {name: dict(entry) for name, entry in files.items()}}
        return self._open(content["runs"][self._joined(content, run)]["files"])

    def _open(self, files: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: entry for name, entry in files.items()
                if not (entry.get("taken_over") and (self.folder / name).exists())}

    def update(self, index: int, **entries: Any) -> None:
        """Change entries of a run in the manifest."""
        with self._manifest() as content:
            content["runs"][index].update(entries)

    def finish_file(self, index: int, name: str, **entries: Any) -> None:
        """Say in the manifest that a file of a run is whole; `entries` have its number of `rows`."""
        with self._manifest() as content:
            entry = content["runs"][index]["files"][name]
            entry.pop("taken_over", None)
            entry.update(entries, software=software())

    def shard_path(self, file_name: str, word: str) -> Path:
        """Where the results for one word of an unfinished file are kept, after `claim`.

        Other settings, other files of a run and other versions of the software have other places: nothing of
        theirs is taken up.
        """
        return self.folder / SHARDS / f"{Path(file_name).stem}-{_run_name(*self._claim)}" / f"{word}.npz"

    def save_shard(self, file_name: str, word: str, **arrays: Any) -> None:
        """Keep arrays for one word; the file is whole or not there."""
        archive = io.BytesIO()
        np.savez(archive, **arrays)
        content = archive.getvalue()
        with whole_file(self.shard_path(file_name, word), "wb") as file:
            file.write(content + hashlib.sha256(content).digest())

    def load_shard(self, file_name: str, word: str) -> dict[str, np.ndarray] | None:
        """What was kept for one word, or None when there is nothing usable: it is then computed again."""
        try:
            content = self.shard_path(file_name, word).read_bytes()
        except OSError:
            return None
        archive, digest = content[:-DIGEST], content[-DIGEST:]
        # an archive's own checksums do not see that a member is missing
        if hashlib.sha256(archive).digest() != digest:
            return None
        with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
            return dict(arrays)

    def remove_shards(self, file_name: str) -> None:
        """Forget the shards of a file that is finished."""
        shutil.rmtree(self.shard_path(file_name, "any").parent, ignore_errors=True)
        with suppress(OSError):  # other files are still under way
            (self.folder / SHARDS).rmdir()


def _run_name(settings: dict[str, Any], files: Collection[str], version: str = "") -> str:
    """How the shards of a run are named, with this software's versions."""
    return f"{_short_hash([settings, sorted(files)])}-{version or _short_hash(software())}"


def _short_hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _finished_entry(runs: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The entry of a finished file in the latest run that finished it; {} when none calls it finished."""
    entries = (run["files"].get(name, {}) for run in reversed(runs))
    return next((entry for entry in entries if "rows" in entry), {})


def not_default(options: Any, **defaults: Any) -> dict[str, Any]:
    """Those settings that are not the default: runs from before there were these options are gone on with."""
    return {name: getattr(options, name) for name, default in defaults.items()
            if getattr(options, name) != default}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, in words: "alpha 1.0 -> 2.0, dtype 'float32' -> 'float64'"."""
    def short(value: Any) -> str:
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "..."
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {short(before.get(name))} -> {short(now.get(name))}" for name in names)


def describe_machine(model: Any) -> dict[str, str]:
    """What a manifest tells of the machine and the versions."""
    packages = ("torch", "transformers", "tokenizers", "numpy", "pandas")
    return {"device": model.where, "python": platform.python_version(), "processor": platform.machine(),
            **{package: importlib.metadata.version(package) for package in packages}}


def now() -> str:
    """The time of a manifest's entry, with its zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
