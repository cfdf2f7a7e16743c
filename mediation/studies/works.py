"""What a run has still to compute, and what it then writes: of which a plan is made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mediation.files.storage import RunFolder
from mediation.studies.engine import StudyOptions, Task


@dataclass(frozen=True)
class Output:
    """The table, JSON or pickle that a sweep ends in.

    `rows`: that are to be written; `write`: writes some typical ones into a file and returns how many, None
    where `bytes_a_row` is known; `ending`: of the file, where the user cannot choose it;
    `kind`: outputs of one kind have rows of one size.
    """

    rows: int
    write: Callable[[Path], int] | None = None
    bytes_a_row: float = 0.0
    ending: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Work:
    """Tasks that are still to be computed, in their order, and what they end in.

    `passes`: tokens of prompts that are run without intervention besides; `finished`: tasks that have a shard
    already; `of_all`: whether its shards stay until all works are done, else they go before the next begins.
    """

    tasks: Sequence[Task]
    outputs: Sequence[Output] = ()
    passes: int = 0
    finished: int = 0
    of_all: bool = False

    @classmethod
    def ahead(cls, tasks: Sequence[Task], run_folder: RunFolder, outputs: Sequence[Output] = (),
              **more: Any) -> "Work":
        """Of tasks without those that have a shard in this folder (after `claim`)."""
        every = {task.key: task for task in tasks}
        ahead = [task for key, task in every.items() if not run_folder.shard_path(*key).exists()]
        return cls(ahead, outputs, finished=len(every) - len(ahead), **more)


Works = Callable[[StudyOptions], list[Work]]


def tasks_of(works: Sequence[Work]) -> list[Task]:
    """Their tasks, each once: works may share some."""
    return list({task.key: task for work in works for task in work.tasks}.values())
