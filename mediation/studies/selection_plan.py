"""What a selection has still to compute, for a plan.

Which units are chosen is known only when they are: sets of the first units of the table stand for them, which
are run from the first layer on. A greedy selection costs at most so much, a lazy one at most as much as it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mediation.studies.engine import Task
from mediation.studies.selection import Example, SelectionFiles
from mediation.studies.works import Output, Work


def works(files: SelectionFiles, alone: str, sets: Sequence[Sequence[int]], options: Any,
          examples: Mapping[Any, Example] | None = None) -> list[Work]:
    """All that is asked for and not in the files yet.

    Args:
        alone: the file of units alone, of these `sets`, of `examples` where they are not the selection's.
    """
    k, cells = options.k, files.cells
    ahead: list[Work] = []
    table = 8 * cells * len(files.examples)  # bytes of a greedy step

    def add(kind: str, tasks: Sequence[Task], rows: int, bytes_a_row: float, of_all: bool = True) -> None:
        ahead.append(Work.ahead(tasks, files.run_folder, [Output(rows, bytes_a_row=bytes_a_row)],
                                of_all=of_all))

    of_heads = alone == "mean_effect"
    begins = of_heads and (files.read(alone) is None and files.read("greedy_intermediate") is None)
    if files.read(alone) is None:
        # heads alone are the first greedy step, too; of neurons number, layer and value are kept
        size = 8 * len(sets) + table * begins if of_heads else 24 * len(sets)
        add(alone, files.tasks(alone, "single", sets, examples), 1, size, of_all=of_heads)
    if "topk" in options.algo:
        chosen = files.read("topk")
        if chosen is None or len(chosen["val"]) < k:
            add("topk", files.tasks("topk", k, [range(size) for size in range(1, k + 1)]), k,
                8 * len(files.examples))
    if "greedy" in options.algo:
        kind = "lazy" if options.lazy else "greedy"
        done = files.read(kind) or {"val": []}
        tables = {} if options.lazy else files.read("greedy_intermediate") or ({0: None} if begins else {})
        for step in range(len(done["val"]), k):
            if step not in tables:
                among = range(step, cells)  # what is in the set already is run, too, and not looked at
                step_sets = [[*range(step), unit] for unit in (*among, *among[:step])]
                add(kind, files.tasks(kind, step, step_sets), 1, 0 if options.lazy else table, of_all=False)
    if "random" in options.algo:
        drawn = files.read("random")
        if drawn is None or len(drawn["val"]) < options.orders or len(drawn["val"][0]) < k:
            step = max(1, cells // k)
            sets = [range(0, size * step, step) for size in range(1, k + 1)] * options.orders
            add("random", files.tasks("random", f"{options.orders}x{k}", sets), len(sets), 8)
    return ahead
