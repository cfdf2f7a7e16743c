"""What a run will cost on this machine, told before it begins.

    stages of tasks -> counted (`costs`) -> a probe of some seconds -> operations times seconds per operation

The tasks are the run's own: a plan knows nothing of a study but what the study would compute. The probe runs
some of these tasks, or parts of them, on the model; nothing is written but a few rows in a temporary folder.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from mediation.errors import InputError
from mediation.files.storage import RunFolder, check_space, free_space
from mediation.mediators.head_sweeps import heads_in_sets
from mediation.mediators.heads import heads_layers_model
from mediation.mediators.neuron_sweeps import SweepOptions, neurons_in_trees
from mediation.mediators.neurons import INTERVENTION_TYPES
from mediation.mediators.sweeps import automatic_batch_size
from mediation.model.language_model import LanguageModel, families
from mediation.model.products import fixed_weights, multiplies_bfloat16, packed
from mediation.stimuli.interventions import Intervention
from mediation.studies.costs import Cost, Form, Sizes, cost, total
from mediation.studies.engine import BYTES_IN_MEMORY, Arrays, Key, StudyOptions, Task
from mediation.studies.estimated_trees import EstimatedTree, PromptGradients
from mediation.studies.heads import Heads
from mediation.studies.interpolated_trees import InterpolatedLayer, InterpolatedTree, Values
from mediation.studies.selection import NeuronExample, Objectives
from mediation.studies.sites import Sites, sites_of
from mediation.studies.trees import Tree

PROBE = 10.0  # seconds
LONG = 600.0  # seconds from which on a run tells its plan without being asked
GRADIENTS_TRIED = 16  # prompts
SAMPLED_LAYERS = 6  # of which a probe runs some neurons
SLOWEST = 1e9  # operations per second of the slowest machine: what is short on it is not looked at
SWEEP_SHARE = 0.6  # of the speed of one large product that a sweep reaches, for the estimate without a probe
FAST_TIME = 0.7  # of --precision fast, of the time in full precision (docs/performance.md)


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


class TimeUp(Exception):
    """The probe has run long enough."""


class Clock:
    """Takes the place of a progress bar: when how many interventions were done."""

    def __init__(self, seconds: float) -> None:
        self.started = time.perf_counter()
        self.deadline = self.started + seconds
        self.marks: list[tuple[int, float]] = []

    def __call__(self, count: int) -> None:
        if count:  # what needs no run is told as nothing
            self.marks.append((self.done + count, time.perf_counter()))
        if time.perf_counter() > self.deadline and len(self.marks) > 2:
            raise TimeUp

    @property
    def done(self) -> int:
        """Interventions so far."""
        return self.marks[-1][0] if self.marks else 0

    @property
    def first(self) -> int:
        """Interventions of the first batch, 0 where there was no second."""
        return self.marks[0][0] if len(self.marks) > 1 else 0


@dataclass
class Speeds:
    """Seconds per operation that a probe saw.

    `passes`: of single forward passes; `classes`: of each class of tasks, of all its operations, or, where
    `in_part`, of its sweep alone; `packing`: seconds once per run; `seconds`, `tried`: of the probe, and how
    many interventions it ran.
    """

    passes: float
    classes: dict[str, float] = field(default_factory=dict)
    in_part: set[str] = field(default_factory=set)
    packing: float = 0.0
    seconds: float = 0.0
    tried: int = 0

    def of(self, task: Task, of_task: Cost) -> float:
        """Seconds of a task."""
        name = class_of(task)
        known = [each for each in self.classes.values() if each]
        sweep = self.classes.get(name) or (float(np.median(known)) if known else self.passes)
        if name in self.classes and name not in self.in_part:
            return sweep * of_task.operations
        gradients = self.classes.get("PromptGradients", self.passes)
        return sweep * of_task.sweep + gradients * of_task.gradients + self.passes * of_task.passes


def class_of(task: Task) -> str:
    """Tasks of one class take as long for an operation."""
    compared = " compared" if getattr(task, "compared", False) else ""
    method = " exact" if isinstance(task, EstimatedTree) and task.options.method == "screen" else ""
    return f"{type(task).__name__}{compared}{method}"


def stimuli_of(task: Task) -> Sequence[Intervention]:
    """The stimuli that a task runs."""
    if isinstance(task, Tree | PromptGradients):
        return task.stimuli
    if isinstance(task, InterpolatedLayer):
        return task.templates
    if isinstance(task, Values):
        return task.words[:1]
    one: Any = task.example if isinstance(task, Objectives) else task
    return [one.intervention] if hasattr(one, "intervention") else one.stimuli


# the probe

def probe(model: LanguageModel, tasks: Sequence[Task], sizes: Sizes, seconds: float = PROBE) -> Speeds:
    """Run some of these tasks, or parts of them, the costliest classes first, for about so many seconds."""
    started = time.perf_counter()
    costs = {task.key: cost(task, sizes, model) for task in tasks}
    with fixed_weights():
        if not model.full_passes and any(each.sweep for each in costs.values()):
            packed([*model.parts.blocks, model.parts.head])
        packing = time.perf_counter() - started
        speeds = Speeds(_pass_speed(model, stimuli_of(tasks[0])[0], sizes), packing=packing)
        classes: dict[str, list[Task]] = {}
        for task in tasks:
            classes.setdefault(class_of(task), []).append(task)
        share = {name: sum(costs[task.key].operations for task in members)
                 for name, members in classes.items()}
        for name in sorted(classes, key=lambda name: -share[name]):
            left = seconds - (time.perf_counter() - started - packing)
            if left < 0.5 and speeds.classes:
                break
            # the middle one is as costly as most
            members = sorted(classes[name], key=lambda task: costs[task.key].operations)
            of_class = max(1.0, left * (0.3 + 0.7 * share[name] / sum(share.values())))
            _try(model, members[len(members) // 2], sizes, of_class, speeds)
    speeds.seconds = time.perf_counter() - started
    return speeds


@torch.no_grad()
def _pass_speed(model: LanguageModel, stimulus: Intervention, sizes: Sizes) -> float:
    """Seconds per operation of single passes of a study's prompts: mostly of reading the weights."""
    tokens, taken = stimulus.base_strings_tok[0], []
    for _ in range(3):
        started = time.perf_counter()
        model.continuation_probabilities(stimulus)
        taken.append(time.perf_counter() - started)
    length = len(tokens) + sum(len(ids) - 1 for ids in stimulus.candidates_tok)
    operations = sizes.full_pass(length, 1 + length - len(tokens))
    return float(np.median(taken)) / len(stimulus.prompts) / operations


def _try(model: LanguageModel, task: Task, sizes: Sizes, seconds: float, speeds: Speeds) -> None:
    """Run a task, or a part of it, and keep its speed."""
    clock, name, of_task = Clock(seconds), class_of(task), cost(task, sizes, model)
    if isinstance(task, InterpolatedTree | Values) or (isinstance(task, InterpolatedLayer)
                                                       and not of_task.sweep):
        return  # single passes, or nothing
    if isinstance(task, Tree | InterpolatedLayer) and of_task.sweep and not model.full_passes:
        operations, taken = _try_neurons(model, task, sizes, clock)
        speeds.in_part.add(name)
    elif isinstance(task, Heads) and not task.options.estimates:
        operations, taken = _try_heads(model, task, of_task, clock)
        speeds.in_part.add(name)
    else:
        operations, taken = _try_whole(model, task, sizes, of_task, clock)
    speeds.tried += clock.done
    if operations > 0:
        speeds.classes[name] = taken / operations


def _try_neurons(model: LanguageModel, task: Any, sizes: Sizes, clock: Clock) -> tuple[float, float]:
    """Some neurons of some layers, in batches of one layer as in the run: (operations, seconds)."""
    every, odds_only = stimuli_of(task), task.options.odds_only
    stimuli = [every[member] for member in families(every)[0]]  # an interpolation's may be of several words
    form = _form(stimuli, task.kind)
    whole = task.options.batch_size or automatic_batch_size(model.parts, model.device, form.changing)
    layers = [task.layer] if isinstance(task, InterpolatedLayer) else _spread(sizes.layers)
    # more rows than the hidden size, or the normaliser is not the run's
    size = min(whole, sizes.width, max(sizes.width // max(2, len(layers)) + 1, whole // 4))
    if isinstance(task, InterpolatedLayer):
        layers = layers * (sizes.width // size + 1)
    units = np.concatenate([layer * sizes.width + np.arange(size) for layer in layers])
    options = SweepOptions(task.options.alpha, size, odds_only)
    with suppress(TimeUp):
        neurons_in_trees(model, stimuli, task.kind, options, torch.from_numpy(units), clock)
    of_rows = np.repeat(layers, size)
    # what is made once for a prompt lies before the first batch's end, and rows of two precisions come in
    # another order
    begun = 0 if model.fast_rows else clock.first
    rows = of_rows[begun // len(stimuli):clock.done // len(stimuli)]
    joined = [(int(layer), float(count)) for layer, count in zip(*np.unique(rows, return_counts=True))]
    operations = sizes.descents(joined, form, odds_only=True)
    operations += len(rows) * sizes.read_out(form.predicted, len(units), odds_only)
    return operations, clock.marks[-1][1] - (clock.marks[0][1] if begun else clock.started)


def _form(stimuli: Sequence[Intervention], kind: str) -> Form:
    run_on, one = INTERVENTION_TYPES[kind].run_on, stimuli[0]
    return Form.of([stimulus.prompts[run_on].tokens for stimulus in stimuli], one.candidates_tok,
                   one.places[run_on][0])


def _spread(layers: int) -> list[int]:
    """Layers of neurons from all depths but the last, late and early in turns: a probe that is stopped has
    seen both."""
    count = min(SAMPLED_LAYERS, layers)
    middle = [int((number + 0.5) * layers / count) for number in range(count)]
    return [middle[-1], *[layer for pair in zip(middle[:count // 2], [*middle[count // 2:-1], -1])
                          for layer in pair if layer >= 0]]


def _try_heads(model: LanguageModel, task: Heads, of_task: Cost, clock: Clock) -> tuple[float, float]:
    """All sets of one effect, as far as time goes: (operations, seconds)."""
    sets = heads_layers_model(model.num_layers, model.num_heads)
    with suppress(TimeUp):
        heads_in_sets(model, task.intervention, "indirect", sets, task.options.batch_size, clock)
    blocks = model.num_layers - sets.any(dim=2).int().argmax(dim=1).double()
    share = float(blocks[:clock.done].sum() / blocks.sum())
    return of_task.sweep / 2 * share, time.perf_counter() - clock.started


def _try_whole(model: LanguageModel, task: Task, sizes: Sizes, of_task: Cost,
               clock: Clock) -> tuple[float, float]:
    """A task that takes seconds, or as much of it as there is time for: (operations, seconds)."""
    if isinstance(task, Objectives) and isinstance(task.example, NeuronExample):
        task = replace(task, sets=task.sets[::max(1, len(task.sets) // (2 * sizes.width))])
        of_task = cost(task, sizes, model)
    if isinstance(task, PromptGradients):
        task = replace(task, stimuli=task.stimuli[:GRADIENTS_TRIED])
        of_task = cost(task, sizes, model)
    done = 1.0
    try:
        # what is estimated from no gradients is compared with full passes all the same
        task.compute(model, _nothing_earlier(model, sizes, task), clock)
    except TimeUp:
        done = min(1.0, clock.done / max(1, task.interventions))
    return of_task.operations * done, time.perf_counter() - clock.started


def _nothing_earlier(model: LanguageModel, sizes: Sizes, task: Task) -> Callable[[Key], Arrays]:
    """Arrays of zeros where a task asks for what earlier ones gave."""
    shape = (len(stimuli_of(task)[0].places[0]), sizes.layers + 1, sizes.width)
    every = 1_000_000  # stimuli: no memory is taken for them
    arrays: Arrays = {name: np.broadcast_to(np.zeros(of_one, np.float32), (every, *of_one))
                      for name, of_one in (("gradients", (2, *shape)), ("values", shape))}
    if isinstance(task, Sites):
        arrays |= {f"site_{index}": np.zeros(int(site.columns.max()) + 1)
                   for index, site in enumerate(sites_of(model, task.request))}
    return lambda key: arrays


# what is planned

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
    speeds = probe(model, tasks, sizes) if tasks else Speeds(_quick_speed(model) / SWEEP_SHARE)
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
        ("", f"{size_of(psutil.virtual_memory().available)} are free"),
        ("disk", f"{size_of(plan.shards)} of shards at most on the way, {size_of(plan.tables)} of tables in "
                 f"the end (figures and reports aside)"),
        ("", f"{size_of(free_space(folder))} are free in {folder}"),
        ("time", f"{in_words(plan.seconds)} ({plan.seconds:.0f} s) on {model.where}, {threads(model)}"),
        ("", f"from a probe of {speeds.seconds:.0f} seconds, {speeds.tried} interventions"),
    ]
    return [f"plan for {model.name}: nothing is run, nothing is written",
            *(f"  {name:14}{text}" for name, text in rows)]


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
    return ["what would be saved (time of the sweep, bytes on disk):",
            *(f"  {name:22}{'' if np.isnan(seconds) else in_words(seconds):14}{size_of(size):10}{what}"
              for name, seconds, size, what in lines)]
