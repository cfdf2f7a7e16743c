"""What a run will cost on this machine, told before it begins.

    works -> counted (`costs`) -> a probe of some seconds (`speeds`) -> operations times seconds per operation

The tasks are the run's own: a plan knows nothing of a study but what the study would compute. Nothing is
written but a few rows in a temporary folder.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from mediation.errors import InputError
from mediation.files.storage import check_space, free_space
from mediation.model.language_model import LanguageModel
from mediation.model.products import multiplies_bfloat16
from mediation.studies.costs import Cost, cost, total
from mediation.studies.engine import BYTES_IN_MEMORY, StudyOptions
from mediation.studies.sizes import Sizes
from mediation.studies.speeds import Speeds, probe
from mediation.studies.works import Work, Works, tasks_of

PROBE = 10.0  # seconds for which tasks are tried
LONG = 600.0  # seconds from which on a run tells its plan without being asked
SLOWEST = 1e9  # operations per second of the slowest machine: what is short on it is not looked at
SWEEP_SHARE = 0.6  # of the speed of one large product that a sweep reaches, for the estimate without a probe
# operations per second of a sweep: of one core with AVX-512, what SmolLM2-135M reaches (with AVX2 a third of
# it); of a GPU, assumed
CORE, GPU = 9e10, 5e13
HARDWARE = {"8 cores with AVX-512": (8, CORE, "as one core was measured on SmolLM2-135M"),
            "one NVIDIA H100": (1, GPU, "assumed: nothing was run on a GPU"),
            "8 NVIDIA H100": (8, GPU, "assumed, a worker each")}
FAST_TIME = 0.7  # of --precision fast, of the time in full precision (docs/performance.md)


@dataclass(frozen=True)
class Memory:
    """Bytes in memory: `before` the run began, the weights among them; the others come on top."""

    before: float
    weights: float
    packed: float
    batch: float
    gradients: float
    arrays: float

    @property
    def peak(self) -> float:
        """At most."""
        return self.before + self.packed + max(self.batch, self.gradients) + self.arrays


@dataclass(frozen=True)
class Plan:
    """What a run will cost here. `seconds`: of everything, from the start of the command; `shards`: bytes on
    the way at most, `tables`: in the end."""

    cost: Cost
    tasks: int
    finished: int
    memory: Memory
    shards: int
    tables: float
    seconds: float


def memory_of(model: LanguageModel, of_all: Cost, sizes: Sizes, before: float) -> Memory:
    """By count, on top of what the process holds with the model loaded."""
    weights = sum(each.nbytes for each in model.model.parameters())
    # estimates alone run no descent
    in_float32 = model.parts.head.weight.dtype == torch.float32
    packs = model.device.type == "cpu" and in_float32 and not model.full_passes and of_all.sweep
    copies = sizes.weights if packs else 0
    if model.fast_rows:
        copies += sizes.layers * sizes.block * 2
    arrays = 4 * of_all.arrays + min(BYTES_IN_MEMORY, of_all.shards)
    return Memory(before, weights, copies, of_all.batch, of_all.gradients_at_once, arrays)


def shards_at_most(works: Sequence[Work], sizes: Sizes, model: LanguageModel) -> int:
    """Bytes of shards on the disk at once."""
    of_works = [(work, total(work.tasks, sizes, model).shards) for work in works]
    return (sum(each for work, each in of_works if work.of_all)
            + max((each for work, each in of_works if not work.of_all), default=0))


def tables_of(works: Sequence[Work], folder: Path, ending: str) -> tuple[float, float]:
    """(bytes, seconds) of the tables, from some typical rows that are written into a temporary folder."""
    size = seconds = 0.0
    of_kinds: dict[str, tuple[float, float]] = {}  # bytes and seconds of a row
    for output in (output for work in works for output in work.outputs if output.rows):
        size += output.rows * output.bytes_a_row
        if output.write is None:
            continue
        if output.kind not in of_kinds:
            path = folder / f"{len(of_kinds)}.{output.ending or ending}"
            started = time.perf_counter()
            rows = output.write(path)
            of_kinds[output.kind] = path.stat().st_size / rows, (time.perf_counter() - started) / rows
        of_row, taken = of_kinds[output.kind]
        size, seconds = size + output.rows * of_row, seconds + output.rows * taken
    return size, seconds


def passes_of(works: Sequence[Work], sizes: Sizes) -> float:
    """Operations of the prompts that are run without intervention besides."""
    return sum(sizes.blocks(sizes.layers, work.passes, 1) for work in works)


def make(model: LanguageModel, works: Sequence[Work], sizes: Sizes, speeds: Speeds,
         before: float, started: float, ending: str) -> Plan:
    """The Plan of these works at these speeds; `started`: seconds from the start of the command to here."""
    tasks = tasks_of(works)
    costs = [cost(task, sizes, model) for task in tasks]
    of_all = sum(costs, Cost(passes=passes_of(works, sizes)))
    with tempfile.TemporaryDirectory() as folder:
        tables, writing = tables_of(works, Path(folder), ending)
    packing = speeds.packing if tasks else 0.0
    seconds = (started + packing + writing + speeds.passes * passes_of(works, sizes)
               + sum(speeds.of(task, each) for task, each in zip(tasks, costs)))
    return Plan(of_all, len(tasks), sum(work.finished for work in works),
                memory_of(model, of_all, sizes, before), shards_at_most(works, sizes, model), tables, seconds)


def told(model: LanguageModel, works_of: Works, options: Any, folder: str | Path,
         more: Mapping[str, Callable[[], list[Work]]] | None = None) -> bool:
    """With --plan print what the run will cost, and return True: there is nothing more to be done.

    Without, print it in three lines where that is more than ten minutes' work, without a probe, and return
    False.

    Args:
        works_of: works of the study under some StudyOptions; options: the script's; folder: of the results;
        more: {what else would cost less: its works}.

    Raises:
        InputError: as `before_running`.
    """
    chosen = StudyOptions.of(options)
    works, sizes = works_of(chosen), Sizes.of(model)
    if not options.plan:
        before_running(model, works, folder)
        return False
    process = psutil.Process()
    started, before = time.time() - process.create_time(), float(process.memory_info().rss)
    tasks = tasks_of(works)
    speeds = probe(model, tasks, sizes, PROBE) if tasks else Speeds(_quick_speed(model) / SWEEP_SHARE)
    plan = make(model, works, sizes, speeds, before, started, getattr(options, "format", "csv"))
    here = replace(plan, seconds=plan.seconds - started)
    lines = [*describe(model, plan, speeds, folder),
             *savings(model, works_of, works, chosen, options, here, speeds, sizes, more or {})]
    print("\n".join(lines))
    return True


def _quick_speed(model: LanguageModel) -> float:
    """Seconds per operation of a product of the model's width, some milliseconds long."""
    width = model.num_neurons
    one, other = torch.ones(1024, width, device=model.device), torch.ones(width, 1024, device=model.device)
    taken = []
    for _ in range(4):
        begun = time.perf_counter()
        float((one @ other)[0, 0])
        taken.append(time.perf_counter() - begun)
    return min(taken[1:]) / (2 * 1024 * 1024 * width)


def before_running(model: LanguageModel, works: Sequence[Work], folder: str | Path) -> None:
    """Three lines on a run of more than LONG seconds; looks at the machine for some milliseconds, and only
    where that may be.

    Raises:
        InputError: the disk has no room for what the run keeps on the way.
    """
    sizes = Sizes.of(model)
    shards = shards_at_most(works, sizes, model)
    check_space(folder, shards, "the shards of the run")
    of_all = total(tasks_of(works), sizes, model)
    if of_all.operations < LONG * SLOWEST:
        return
    seconds = of_all.operations * _quick_speed(model) / SWEEP_SHARE
    if seconds < LONG:
        return
    memory = memory_of(model, of_all, sizes, float(psutil.Process().memory_info().rss))
    print(f"planned: {of_all.interventions:,} interventions, {of_all.operations:.2g} operations, about "
          f"{in_words(seconds)} (roughly; --plan measures, and says what would be faster)\n"
          f"memory at most {size_of(memory.peak)}, of which {size_of(psutil.virtual_memory().available)} "
          "more are free\n"
          f"on the way {size_of(shards)} in {folder}, where {size_of(free_space(folder))} are free; what is "
          "stopped goes on with the same command", flush=True)


# in words

def in_words(seconds: float) -> str:
    """A time for people."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.2g} {name}" if seconds < 100 * unit else f"{seconds / unit:,.0f} {name}"
    return f"{seconds:.0f} seconds"


def size_of(number: float) -> str:
    """Bytes for people."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f} bytes"


def describe(model: LanguageModel, plan: Plan, speeds: Speeds, folder: str | Path) -> list[str]:
    """The table of a plan."""
    of_all, memory = plan.cost, plan.memory
    finished = f"; {plan.finished} tasks are finished and not counted" if plan.finished else ""
    gradients = f", gradients {size_of(memory.gradients)}" if memory.gradients else ""
    rows = [
        ("interventions", f"{of_all.interventions:,}, of which {of_all.run:,.0f} are run, in {plan.tasks} "
                          f"tasks{finished}"),
        ("operations", f"{of_all.operations:.3g}: sweeps {of_all.sweep:.3g}, gradients "
                       f"{of_all.gradients:.3g}, single passes {of_all.passes:.3g}"),
        ("memory", f"{size_of(memory.peak)} at most: weights {size_of(memory.weights)}, packed copies "
                   f"{size_of(memory.packed)}, batch {size_of(memory.batch)}{gradients}, results "
                   f"{size_of(memory.arrays)}, the rest Python and its libraries"),
        *([("", f"of the weights {on_each(model)}; a batch, and what gradients need, come on top on the GPU "
                "whose block is run")] if len(model.devices) > 1 else []),
        ("", f"{size_of(psutil.virtual_memory().available)} are free"),
        ("disk", f"{size_of(plan.shards)} of shards at most on the way, {size_of(plan.tables)} of tables in "
                 f"the end (figures and reports aside)"),
        ("", f"{size_of(free_space(folder))} are free in {folder}"),
        ("time", f"{in_words(plan.seconds)} ({plan.seconds:.0f} s) on {model.where}, {threads(model)}"),
        ("", f"from a probe of {speeds.seconds:.0f} seconds, {speeds.tried} interventions"),
    ]
    return [f"plan for {model.name}: nothing is run, nothing is written",
            *(f"  {name:14}{text}" for name, text in rows)]


def on_each(model: LanguageModel) -> str:
    """Bytes of weights on each of several devices."""
    held = dict.fromkeys(model.devices, 0)
    for weight in model.model.parameters():
        held[weight.device] += weight.nbytes
    return ", ".join(f"{size_of(number)} on {device}" for device, number in held.items())


def threads(model: LanguageModel) -> str:
    """What computes."""
    if model.device.type == "cuda":
        return "one GPU at a time" if len(model.devices) > 1 else "one GPU"
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores"


def savings(model: LanguageModel, works_of: Works, works: Sequence[Work], chosen: StudyOptions, options: Any,
            here: Plan, speeds: Speeds, sizes: Sizes,
            more: Mapping[str, Callable[[], list[Work]]]) -> list[str]:
    """What the run would cost with other options, a line each.

    `here`: the plan of its `works` under the `chosen` options, without what lies before the sweep.
    """
    def of(others: Sequence[Work]) -> Plan:
        return make(model, others, sizes, speeds, 0.0, 0.0, getattr(options, "format", "csv"))

    lines = [("as asked for", here.seconds, here.shards + here.tables, "")]
    exact = not chosen.full_passes and not model.full_passes and not model.masking
    if hasattr(options, "method") and chosen.method == "exact" and exact:
        for method, what in (("screen", "the strongest run, the others estimated"),
                             ("gradient", "estimates of the first order")):
            with suppress(InputError):  # a study that has no estimates
                other = of(works_of(replace(chosen, method=method, precision="exact")))
                lines.append((f"--method {method}", other.seconds, other.shards + other.tables, what))
    runs = exact and chosen.method != "gradient"
    if hasattr(options, "precision") and chosen.precision == "exact" and runs:
        fits = multiplies_bfloat16(model.device) and chosen.dtype == "float32"
        text = "off by at most 1e-3, measured on other machines" if fits else "refused on this machine"
        lines.append(("--precision fast", here.seconds * FAST_TIME if fits else float("nan"),
                      here.shards + here.tables, text))
    if hasattr(options, "odds_only") and not chosen.odds_only and chosen.method != "gradient":
        other = of(works_of(replace(chosen, odds_only=True)))
        lines.append(("--odds_only", other.seconds, other.shards + other.tables, "no probabilities"))
    if getattr(options, "format", None) == "csv":
        other = make(model, works, sizes, speeds, 0.0, 0.0, "parquet")
        lines.append(("--format parquet", other.seconds, other.shards + other.tables, "the same numbers"))
    for name, fewer in more.items():
        other = of(fewer())
        lines.append((name, other.seconds, other.shards + other.tables, "fewer stimuli"))
    for workers in (2, 8):
        lines.append((f"{workers} such machines", here.seconds / min(workers, max(1, here.tasks)),
                      here.shards + here.tables, "at best: tasks shared out evenly"))
    for name, (workers, speed, what) in HARDWARE.items():
        seconds = here.cost.operations / speed / min(workers, max(1, here.tasks))
        lines.append((name, seconds, here.shards + here.tables, what))
    return ["what would be saved (time of the sweep, bytes on disk):",
            *(f"  {name:22}{'' if np.isnan(seconds) else in_words(seconds):14}{size_of(size):10}{what}"
              for name, seconds, size, what in lines)]
