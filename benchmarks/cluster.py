"""What the workers of `--engine dask` cost and bring, against this process.

    OMP_NUM_THREADS=1 python -m benchmarks.cluster -model smollm2-135m --tasks 12 --sets 8 --workers 1 2

The same tasks, so many heads of a WinoBias example, by the local engine and by 1, 2 ... workers in turns.
Loading the model in the workers is told apart. A task's own seconds are measured where it is computed: what
is left of the time on the wall is what the engine costs, whatever else the machine does. Prints a Markdown
table.
"""

import argparse
import time
from contextlib import AbstractContextManager, nullcontext
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from benchmarks import load, parser
from mediation.options import exit_on_bad_input, positive

if TYPE_CHECKING:
    from experiment import Model
    from mediation.studies.engine import Task


def main(options: argparse.Namespace) -> None:
    """The table."""
    model = load(options)
    ways = {"local": 1, **{f"{number} workers": number for number in options.workers}}
    print("| engine | start (s) | tasks | wall (s) | of a task (s) | engine, per task (ms) | overhead "
          "| speed-up |\n" + "| --- " * 8 + "|")
    for _ in range(options.rounds):
        local = 0.0
        for name, workers in ways.items():
            start, wall, seconds = measured(model, options, workers, name != "local")
            local = local or wall
            # of each worker's time, what was no task's
            lost = workers * wall - seconds.sum()
            print(f"| {name} | {start:.1f} | {len(seconds)} | {wall:.1f} | {seconds.mean():.2f} | "
                  f"{1000 * lost / len(seconds):.0f} | {lost / (workers * wall):.1%} | {local / wall:.2f} |",
                  flush=True)


def measured(model: "Model", options: argparse.Namespace, workers: int,
             cluster: bool) -> tuple[float, float, np.ndarray]:
    """Seconds until each worker has computed a task; of all others on the wall, and of each of them."""
    from mediation.files.storage import RunFolder
    from mediation.studies import engine
    from mediation.studies.engines import ClusterOptions, engine_of

    tasks = tasks_of(model, options.tasks + workers, options.sets)
    first, others = tasks[:workers], tasks[workers:]
    chosen: AbstractContextManager = (engine_of(ClusterOptions("dask", workers=workers)) if cluster
                                      else nullcontext())
    with TemporaryDirectory() as folder, chosen, tqdm(disable=True) as progress:
        run_folder = RunFolder(folder)
        run_folder.claim([], {})
        begun = time.perf_counter()
        engine.run(model, [first], run_folder, progress)
        started = time.perf_counter()
        shards = engine.run(model, [others], run_folder, progress)
        ended = time.perf_counter()
        return started - begun, ended - started, np.array([shards.seconds[task.key] for task in others])


def tasks_of(model: "Model", count: int, heads: int) -> "list[Task]":
    """So many heads of so many examples."""
    from experiment import Intervention
    from mediation.stimuli import winobias
    from mediation.studies.selection import HeadExample, Objectives

    stimuli = (Intervention(model.tokenizer, example.base_string, example.substitutes, example.candidates,
                            model.device) for example in winobias.load("dev")[:count])
    sets = tuple((head,) for head in range(heads))
    return [Objectives("heads", f"example_{number}", "", 1, HeadExample(stimulus, None), sets)
            for number, stimulus in enumerate(stimuli)]


if __name__ == "__main__":
    command = parser(__doc__)
    command.add_argument("--tasks", type=positive, default=12, metavar="N", help="examples (default: 12)")
    command.add_argument("--sets", type=positive, default=8, metavar="N",
                         help="heads of an example, how large a task is (default: 8)")
    command.add_argument("--workers", type=positive, nargs="+", default=[1, 2], metavar="N",
                         help="numbers of workers (default: 1 2)")
    with exit_on_bad_input():
        main(command.parse_args())
