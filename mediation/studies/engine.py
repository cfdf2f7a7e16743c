"""The engine: it computes a study's tasks, stage by stage, and keeps what each of them gives in a shard at
once.

    comparisons -> stages of tasks -> [engine] -> shards -> results

A study yields stages, which are lists of tasks. Tasks of one stage do not need each other; they may need
what tasks of earlier stages gave. A run that was stopped goes on with the first task that has no shard.
Another engine (`cluster.py`) replaces `run_here` and nothing else.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from mediation.errors import InputError
from mediation.files.storage import RunFolder
from mediation.mediators.batches import Progress
from mediation.mediators.neuron_sweeps import SweepOptions
from mediation.model.language_model import LanguageModel
from mediation.model.products import fixed_weights

# of shards that were read last: a tree of prompts needs the gradients of its own prompts and of two
# alternatives
BYTES_IN_MEMORY = 256_000_000

Arrays = dict[str, Any]  # {name: NumPy array}
Key = tuple[str, str]  # of a task
Earlier = Callable[[Key], Arrays]
Options = TypeVar("Options", bound="StudyOptions")


@dataclass(frozen=True)
class StudyOptions:
    """How a study's sweeps are run: what the scripts' options of these names say.

    `seed` starts all draws: of checks against full passes, and of what screening runs beside the strongest
    units.
    """

    method: str = "exact"
    precision: str = "exact"
    dtype: str = "float32"
    alpha: float = 1.0
    batch_size: int | None = None
    odds_only: bool = False
    full_passes: bool = False
    seed: int = 0
    screen_share: float = 0.1
    screen_sample: int = 64
    screen_top: int = 50

    @classmethod
    def of(cls: type[Options], options: Any) -> Options:
        """From a command line; what a script does not ask for is left at its default."""
        named = {field.name: getattr(options, field.name) for field in fields(cls)
                 if hasattr(options, field.name)}
        return cls(**named)

    @property
    def sweep(self) -> SweepOptions:
        """What a sweep over neurons is told."""
        return SweepOptions(self.alpha, self.batch_size, self.odds_only)

    @property
    def estimates(self) -> bool:
        """True for the methods by which not every unit is run."""
        return self.method != "exact"


@dataclass(frozen=True)
class Task:
    """One piece of a study's work, a plain record that names the shard of what it gives.

    `table`: file, or work for several files, whose shards are removed together; `name`: of the shard among
    these, from what the task computes, so that another run's shards are never taken for it; `title`: for the
    progress bar; `interventions`: how many it runs.
    """

    table: str
    name: str
    title: str
    interventions: int

    def compute(self, model: LanguageModel, earlier: Earlier, progress: Progress) -> Arrays:
        """A function of the model and of what earlier tasks gave, and of nothing else.

        Args:
            earlier: gives an earlier task's arrays by its key; progress: told of interventions as they are
                done, where they take long; the engine adds what was not told.
        """
        raise NotImplementedError

    @property
    def key(self) -> Key:
        """What tells this task's shard from all others of a run."""
        return self.table, self.name

    @property
    def needs(self) -> Sequence[Key]:
        """Keys of all earlier tasks that `compute` may ask for: their arrays travel to where it runs."""
        return ()


class Shards:
    """Reads what tasks gave, by their keys; as much as fits into BYTES_IN_MEMORY is not read again."""

    def __init__(self, run_folder: RunFolder) -> None:
        self.run_folder = run_folder
        self.in_memory: dict[Key, Arrays] = {}
        self.seconds: dict[Key, float] = {}  # that each task of the run took, whenever it was computed

    def __call__(self, key: Key) -> Arrays:
        """The arrays of the task with this key.

        Raises:
            InputError: its shard is damaged, or gone.
        """
        arrays = self.in_memory.pop(key, None) or self.run_folder.load_shard(*key)
        if arrays is None:
            raise InputError(f"{self.run_folder.shard_path(*key)} was damaged or removed while it was "
                             "needed: give the same command again, it is computed anew")
        self.in_memory[key] = arrays  # the one that was asked for last stands last
        while len(self.in_memory) > 1 and self._bytes() > BYTES_IN_MEMORY:
            del self.in_memory[next(iter(self.in_memory))]
        return arrays

    def _bytes(self) -> int:
        return sum(array.nbytes for arrays in self.in_memory.values() for array in arrays.values())


Engine = Callable[[Any, Iterable[Sequence[Task]], RunFolder, tqdm], Shards]
_chosen: list[Engine] = []  # the last one computes


@contextmanager
def computed_by(engine: Engine) -> Iterator[None]:
    """While open, this engine computes in place of `run_here`."""
    _chosen.append(engine)
    try:
        yield
    finally:
        _chosen.pop()


def run(model: Any, stages: Iterable[Sequence[Task]], run_folder: RunFolder,
        progress: tqdm) -> Shards:
    """Compute every task that has no shard yet.

    Args:
        run_folder: after `claim`; progress: a bar that counts interventions.

    Returns: the shards of all of them.
    """
    engine = _chosen[-1] if _chosen else run_here
    return engine(model, stages, run_folder, progress)


def run_here(model: Any, stages: Iterable[Sequence[Task]], run_folder: RunFolder,
             progress: tqdm) -> Shards:
    """`run` in this process, one task after the other."""
    shards = Shards(run_folder)
    needed: dict[Key, Arrays] = {}
    with fixed_weights():
        for task in (task for stage in stages for task in stage):
            progress.set_description(task.title)
            end = progress.n + task.interventions
            if task.key not in shards.seconds:  # else two sweeps share the task
                shard = run_folder.load_shard(*task.key)
                if shard is None:
                    shard, needed = _computed(model, task, run_folder, shards, needed, progress)
                shards.seconds[task.key] = float(shard["seconds"])
            progress.update(end - progress.n)
    return shards


def _computed(model: Any, task: Task, run_folder: RunFolder, shards: Shards, needed: dict[Key, Arrays],
              progress: tqdm) -> tuple[Arrays, dict[Key, Arrays]]:
    """What a task gives, which is kept in its shard, and the earlier arrays that it asked for.

    `needed`: those that the task before asked for. They are not read again, however large they are: of an
    interpolation every tree needs all layers.
    """
    asked: dict[Key, Arrays] = {}
    end = progress.n + task.interventions

    def earlier(key: Key) -> Arrays:
        asked[key] = needed[key] if key in needed else shards(key)
        return asked[key]

    def count(interventions: int) -> None:
        # what is run again, such as a fast sweep that was off, counts once
        progress.update(min(interventions, end - progress.n))

    started = time.perf_counter()
    arrays = task.compute(model, earlier, count)
    arrays = {**arrays, "seconds": np.float64(time.perf_counter() - started)}
    run_folder.save_shard(*task.key, **arrays)
    return arrays, asked
