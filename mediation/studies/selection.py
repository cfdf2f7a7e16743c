"""Choosing few units that together have a large effect: the best alone (top-k), or one after the other
(greedy).

A *unit* is a head or a neuron, addressed by its index in a table [layers, units of a layer]. The objective
of a set is its mean effect over examples.

Symbols in shapes: N examples, cells: units of the table.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from tqdm import tqdm

from mediation.effects.odds import effect, log_odds
from mediation.errors import InputError
from mediation.files.storage import RunFolder, read_pickle, write_pickle
from mediation.mediators.batches import Progress
from mediation.mediators.head_sweeps import heads_in_sets
from mediation.mediators.neuron_sweeps import neuron_sets
from mediation.model.language_model import LanguageModel
from mediation.results.selections import TITLES
from mediation.stimuli.interventions import Intervention
from mediation.stimuli.occupations import occupations_in
from mediation.stimuli.templates import split_base_string
from mediation.studies import engine
from mediation.studies.engine import Arrays, Earlier, Task

BATCH = 16  # units that lazy greedy evaluates at once


def check_size(k: int, units: int) -> None:
    """Raises InputError when more units are asked for than there are."""
    if k > units:
        raise InputError(f"--k {k}: there are {units} units: give a number up to {units}")


def best_first(values: Sequence | Float[np.ndarray, "*shape"]) -> Int[np.ndarray, " cells"]:
    """Indices of a table's cells by value, largest first; equal ones in the table's order."""
    return np.argsort(-np.asarray(values, np.float64).ravel(), kind="stable")


def greedy_step(values: Float[np.ndarray, "*shape"], chosen: Iterable[int]) -> tuple[int, float]:
    """The best unit that is not chosen yet, and its value: the objective of the set with the unit added."""
    open_values = np.array(values, np.float64).ravel()
    open_values[list(chosen)] = -np.inf
    best = int(open_values.argmax())
    return best, float(open_values[best])


@dataclass
class LazyGreedy:
    """Greedy that evaluates only units whose last gain can still win (Minoux 1978).

    A unit's last gain bounds its next one only if gains never grow as the set does. Nothing says that they
    do not here, so each growth that is seen is counted, and the result is certified equal to plain greedy
    only if no unit was left out in any step.

    `gains`: last known gain of every unit.
    """

    gains: Float64[np.ndarray, " cells"]
    evaluations: int = 0
    saved: int = 0
    grown: int = 0
    chosen: list[int] = field(default_factory=list)

    @property
    def certified(self) -> bool:
        """True when every step evaluated every open unit, which makes it plain greedy."""
        return self.saved == 0

    def step(self, evaluate: Callable[[list[int]], Float[np.ndarray, " cells"]],
             value: float) -> tuple[int, float]:
        """Choose one more unit.

        Args:
            evaluate: function of a list of units to their objectives, each added to the chosen set.
            value: objective of the chosen set.

        Returns: the unit, and its objective.
        """
        order = [unit for unit in best_first(self.gains).tolist() if unit not in self.chosen]
        fresh: dict[int, float] = {}
        for start in range(0, len(order), BATCH):
            if fresh and max(fresh.values()) - value > self.gains[order[start]]:
                break  # no unit that is left can win or draw, if its gain has not grown
            units = order[start:start + BATCH]
            for unit, objective in zip(units, evaluate(units)):
                fresh[unit] = float(objective)
                self.grown += fresh[unit] - value > self.gains[unit] + 1e-9
        self.evaluations += len(fresh)
        self.saved += len(order) - len(fresh)
        for unit, objective in fresh.items():
            self.gains[unit] = objective - value
        best = max(fresh, key=lambda unit: (fresh[unit], -unit))
        self.chosen.append(best)
        return best, fresh[best]


@runtime_checkable
class Example(Protocol):
    """What an objective is the mean over: a stimulus, and what is changed in it."""

    @property
    def clusters(self) -> dict[str, str]:
        """{what examples share: what this one has of it}, "" where it shares nothing."""

    def objectives(self, model: LanguageModel,
                   sets: Sequence[Sequence[int]]) -> Float64[np.ndarray, " sets"]: ...


@dataclass(frozen=True)
class HeadExample:
    """Indirect effects of sets of heads on one stimulus, replaced together; a head is layer x H + head."""

    intervention: Intervention
    batch_size: int | None

    @property
    def clusters(self) -> dict[str, str]:
        """The occupations that its context names."""
        return {"occupations": ", ".join(occupations_in(self.intervention.base_strings[0]))}

    def objectives(self, model: LanguageModel, sets: Sequence[Sequence[int]]) -> Float64[np.ndarray, " sets"]:
        """Of each set, relative to the odds of the run without intervention."""
        chosen = torch.zeros(len(sets), model.num_layers * model.num_heads, dtype=torch.bool)
        for row, heads in enumerate(sets):
            chosen[row, list(heads)] = True
        of_heads = chosen.reshape(len(sets), model.num_layers, model.num_heads)
        c1, c2 = model.continuation_probabilities(self.intervention)[0]
        swept = heads_in_sets(model, self.intervention, "indirect", of_heads, self.batch_size)
        return np.asarray(effect(swept[:, 1] - swept[:, 0], log_odds(c2, c1)))


@dataclass(frozen=True)
class NeuronExample:
    """Odds ratios minus 1 toward the anti-stereotypical gender, of sets of neurons changed together in one
    stimulus.

    `kind`: intervention type; `sign`: of the log odds he over she; a unit is `first` + its number, layer by
    layer.
    """

    intervention: Intervention
    kind: str
    sign: int
    batch_size: int | None
    first: int = 0

    @property
    def clusters(self) -> dict[str, str]:
        """Its profession, and its template."""
        template, word = split_base_string(self.intervention.base_strings[0])
        return {"professions": word, "templates": template}

    def objectives(self, model: LanguageModel, sets: Sequence[Sequence[int]]) -> Float64[np.ndarray, " sets"]:
        """Of each set."""
        longest = max(map(len, sets))
        # a neuron named twice is changed once, so the first one fills short rows
        padded = [[self.first + unit for unit in (*units, *[units[0]] * (longest - len(units)))]
                  for units in sets]
        swept, base = neuron_sets(model, self.intervention, self.kind, torch.tensor(padded), self.batch_size)
        intervened, without = swept[:, 0] - swept[:, 1], base[0] - base[1]
        return np.asarray(effect(self.sign * intervened, self.sign * without))


@dataclass(frozen=True)
class Objectives(Task):
    """Objectives of sets of units for one example: `objectives` float64 [sets]."""

    example: Example
    sets: tuple[Sequence[int], ...]

    def compute(self, model: LanguageModel, earlier: Earlier, progress: Progress) -> Arrays:
        """See `Task`.

        Raises:
            InputError: objectives that are no numbers.
        """
        objectives = self.example.objectives(model, self.sets)
        if not np.isfinite(objectives).all():
            raise InputError(f"{self.title}, {self.name}: the model gave effects that are not numbers: "
                             "try --dtype float32 or float64")
        return {"objectives": objectives}


class SelectionFiles:
    """The pickles of one selection: shards while an evaluation is under way, a file as soon as a step is
    done.

    Args:
        run_folder: after `claim`.
        names: {"topk": file name, "greedy": ..., ...}.
        examples: {key: Example}; title: what the progress bar says first; unit: what it counts.
        shape: (layers, units of a layer); cells of it are the units.
        label: "head" or "neuron", as the files name a unit within its layer.
        first_layer: the number of the table's first layer.

    Attributes:
        run: as `RunFolder.begin` gave it; None as long as a plan is all that is made, and nothing is written.
    """

    run: int | None = None

    def __init__(self, model: LanguageModel, run_folder: RunFolder, names: dict[str, str],
                 examples: Mapping[Any, Example], title: str, unit: str, shape: tuple[int, int], label: str,
                 first_layer: int = 0) -> None:
        self.model, self.run_folder, self.names = model, run_folder, names
        self.examples, self.title, self.unit = examples, title, unit
        self.shape, self.label, self.first_layer, self.cells = shape, label, first_layer, shape[0] * shape[1]

    def read(self, kind: str) -> Any:
        """Content of a finished file, or None."""
        if not self.run_folder.is_finished(self.names[kind]):
            return None
        return self.decode(kind, read_pickle(self.run_folder.folder / self.names[kind]))

    def write(self, kind: str, content: Any, rows: int) -> None:
        """Write a file and say so in the manifest."""
        assert self.run is not None, "to plan with"
        write_pickle(self.run_folder.folder / self.names[kind], self.encode(kind, content))
        self.run_folder.finish_file(self.run, self.names[kind], rows=rows)

    def encode(self, _kind: str, content: Any) -> Any:
        """What a file holds, from what the methods below work with."""
        return content

    def decode(self, _kind: str, content: Any) -> Any:
        """The other way round."""
        return content

    def objectives(self, kind: str, step: str | int, sets: Sequence[Sequence[int]],
                   examples: Mapping[Any, Example] | None = None) -> Float64[np.ndarray, "N sets"]:
        """Objectives of sets for every example, each kept at once. `examples`: in place of the
        selection's."""
        tasks = self.tasks(kind, step, sets, examples)
        with tqdm(total=len(tasks), unit=self.unit) as progress:
            shards = engine.run(self.model, [tasks], self.run_folder, progress)
        return np.array([shards(task.key)["objectives"] for task in tasks], np.float64)

    def tasks(self, kind: str, step: str | int, sets: Sequence[Sequence[int]],
              examples: Mapping[Any, Example] | None = None) -> list[Objectives]:
        """A task per example; arguments as of `objectives`."""
        same = tuple(sets)  # once for all examples: there may be 17,856 of them
        return [Objectives(self.names[kind], f"{step}_{key}", f"{self.title}{kind} {step}", 1, example, same)
                for key, example in (examples or self.examples).items()]

    def remember(self, kind: str, objectives: Float64[np.ndarray, "N sizes"]) -> None:
        """Keep the objectives of every example, for intervals of their means."""
        clusters: dict[str, list[str]] = {}
        for key, example in self.examples.items():
            for name, cluster in example.clusters.items():
                clusters.setdefault(name, []).append(cluster or str(key))
        content = {**(self.read("by_example") or {}), "clusters": clusters, kind: objectives}
        self.write("by_example", content, len(objectives))

    def named(self, units: Iterable[int]) -> list[tuple[int, int]]:
        """Units as pairs of plain numbers, (layer, unit of the layer)."""
        return [(self.first_layer + unit // self.shape[1], unit % self.shape[1]) for unit in map(int, units)]

    def cells_of(self, pairs: Iterable[Sequence[Any]]) -> list[int]:
        """The other way round."""
        return [(int(layer) - self.first_layer) * self.shape[1] + int(unit) for layer, unit in pairs]

    def top_k(self, order: list[int], k: int) -> dict[str, Any]:
        """Mean objective of the first 1 to k units of `order`: {"val": [k], label: [(layer, unit)]}.

        A file that goes as far is left as it is.
        """
        selection = self.read("topk")
        if selection is None or len(selection["val"]) < k:
            values = self.objectives("topk", k, [order[:size] for size in range(1, k + 1)])
            self.remember("topk", values)
            selection = {"val": values.mean(axis=0).tolist(), self.label: self.named(order[:k])}
            self.write("topk", selection, k)
        return selection

    def random_orders(self, k: int, orders: int, seed: int) -> dict[str, Any]:
        """Mean objective of the first 1 to k units of random orders: {"val": [orders][k],
        label: [orders][k]}."""
        selection = self.read("random")
        if selection is None or len(selection["val"]) < orders or len(selection["val"][0]) < k:
            drawn = [np.random.default_rng([seed, number]).permutation(self.cells)[:k].tolist()
                     for number in range(orders)]
            sets = [order[:size] for order in drawn for size in range(1, k + 1)]
            values = self.objectives("random", f"{orders}x{k}", sets).reshape(-1, orders, k)
            self.remember("random", values.mean(axis=1))
            selection = {"val": values.mean(axis=0).tolist(),
                         self.label: [self.named(order) for order in drawn]}
            self.write("random", selection, k)
        return selection

    def greedy(self, k: int) -> dict[str, Any]:
        """One unit after the other: {"val": [k], label: [(layer, unit)]}; a step is on disk before the next
        begins.

        greedy_intermediate holds {step: [N, layers, units of a layer]}: the objective of the set with each
        unit added; cells of units already in it carry no meaning.
        """
        selection = self.read("greedy") or {"val": [], self.label: []}
        tables = self.read("greedy_intermediate") or {}
        for step in range(len(selection["val"]), k):
            chosen = self.cells_of(selection[self.label])
            if step not in tables:
                values = self.objectives("greedy", step, [[*chosen, unit] for unit in range(self.cells)])
                tables[step] = values.reshape(-1, *self.shape)
                self.write("greedy_intermediate", tables, step + 1)
            best, value = greedy_step(tables[step].mean(axis=0), chosen)
            selection = {"val": [*selection["val"], value],
                         self.label: [*selection[self.label], *self.named([best])]}
            self.write("greedy", selection, step + 1)
            self.run_folder.remove_shards(self.names["greedy"])
        chosen = self.cells_of(selection[self.label])
        if all(step in tables for step in range(len(chosen))):
            self.remember("greedy", np.stack([np.asarray(tables[step], float).reshape(-1, self.cells)[:, unit]
                                              for step, unit in enumerate(chosen)], axis=1))
        return selection

    def lazy_greedy(self, k: int) -> dict[str, Any]:
        """The same by LazyGreedy, with "gains", "evaluations", "saved", "grown" and "certified" beside."""
        selection = self.read("lazy") or {"val": [], self.label: [], "gains": [np.inf] * self.cells,
                                          "evaluations": 0, "saved": 0, "grown": 0}
        lazy = LazyGreedy(np.array(selection["gains"]), selection["evaluations"], selection["saved"],
                          selection["grown"], self.cells_of(selection[self.label]))
        for step in range(len(selection["val"]), k):
            of_examples: dict[int, np.ndarray] = {}

            def evaluate(units, step=step, of_examples=of_examples):
                sets = [[*lazy.chosen, unit] for unit in units]
                values = self.objectives("lazy", f"{step}_{units[0]}", sets)
                of_examples.update(zip(units, values.T))
                return values.mean(axis=0)

            best, value = lazy.step(evaluate, selection["val"][-1] if selection["val"] else 0.0)
            # a run of an earlier version has no objectives of its first steps
            before = (self.read("by_example") or {}).get("lazy", np.zeros((len(of_examples[best]), 0)))
            if before.shape[1] >= step:
                self.remember("lazy", np.column_stack([before[:, :step], of_examples[best]]))
            selection = {"val": [*selection["val"], value], self.label: self.named(lazy.chosen),
                         "gains": lazy.gains.tolist(), "evaluations": lazy.evaluations, "saved": lazy.saved,
                         "grown": int(lazy.grown), "certified": lazy.certified}
            self.write("lazy", selection, step + 1)
            self.run_folder.remove_shards(self.names["lazy"])
        return selection


class NeuronSelectionFiles(SelectionFiles):
    """The same with the neuron study's contents.

    Top-k is a list of values; greedy has "layer" (where none was named), "neuron" and "val".
    """

    def encode(self, kind: str, content: Any) -> Any:
        """As the neuron study writes it."""
        if kind == "topk":
            return content["val"]
        if kind != "greedy":
            return content
        layers, neurons = ([pair[part] for pair in content["neuron"]] for part in (0, 1))
        return {**({"layer": layers} if self.shape[0] > 1 else {}), "neuron": neurons, "val": content["val"]}

    def decode(self, kind: str, content: Any) -> Any:
        """The other way round."""
        if kind == "topk":
            return {"val": list(content)}
        if kind != "greedy":
            return content
        layers = content.get("layer", [self.first_layer] * len(content["neuron"]))
        return {"val": list(content["val"]), "neuron": list(zip(layers, content["neuron"]))}


def run(files: SelectionFiles, order: list[int], options: Any) -> dict[str, dict[str, Any]]:
    """The selections that the command line asks for, {title: {"val", label, ...}}; `order`: the best alone
    first."""
    selections = {}
    if "topk" in options.algo:
        top_k = files.top_k(order, options.k)
        selections[TITLES["topk"]] = {files.label: files.named(order[: options.k]), **top_k}
    if "greedy" in options.algo:
        greedy = files.lazy_greedy(options.k) if options.lazy else files.greedy(options.k)
        selections[TITLES["lazy" if options.lazy else "greedy"]] = greedy
    if "random" in options.algo:
        selections[TITLES["random"]] = files.random_orders(options.k, options.orders, options.seed)
    return selections
