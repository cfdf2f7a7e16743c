"""Choosing few units that together have a large effect: the best alone (top-k), or one after the other (greedy).

A *unit* is a head (layer, head) or a neuron (layer, neuron), addressed by its index in a table [layers, units of a layer]. The objective of a set
is its mean effect over examples; whoever calls says how it is computed.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mediation.effects.odds import effect, log_odds
from mediation.errors import InputError
from mediation.files.storage import read_pickle, write_pickle
from mediation.mediators.head_sweeps import heads_in_sets
from mediation.mediators.neuron_sweeps import neuron_sets
from mediation.stimuli.interventions import Intervention
from mediation.studies import engine
from mediation.studies.engine import Task

BATCH = 16  # units that lazy greedy evaluates at once


def check_size(k, units):
    """Raises InputError when more units are asked for than there are."""
    if k > units:
        raise InputError(f"--k {k}: there are {units} units: give a number up to {units}")


def best_first(values):
    """Indices of a table's cells by value, largest first; equal ones in the table's order. `values` [any shape] -> int64 [cells]."""
    return np.argsort(-np.asarray(values, np.float64).ravel(), kind="stable")


def greedy_step(values, chosen):
    """The best unit that is not chosen yet: (index, value). `values` [cells]: the objective of the set with each unit added."""
    open_values = np.array(values, np.float64).ravel()
    open_values[list(chosen)] = -np.inf
    best = int(open_values.argmax())
    return best, float(open_values[best])


@dataclass
class LazyGreedy:
    """Greedy that evaluates only units whose last gain can still win (Minoux 1978).

    A unit's last gain bounds its next one only if gains never grow as the set does. Nothing says that they do not here, so
    each growth that is seen is counted, and the result is certified equal to plain greedy only if no unit was left out in any step.
    """

    gains: np.ndarray  # [cells], last known gain of every unit
    evaluations: int = 0
    saved: int = 0
    grown: int = 0
    chosen: list = field(default_factory=list)

    @property
    def certified(self):
        """True when every step evaluated every open unit, which makes it plain greedy."""
        return self.saved == 0

    def step(self, evaluate, value):
        """Choose one more unit.

        Args:
            evaluate: function of a list of units to their objective [len], each added to the chosen set.
            value: objective of the chosen set.

        Returns: (unit, its objective).
        """
        order = [unit for unit in best_first(self.gains).tolist() if unit not in self.chosen]
        fresh = {}
        for start in range(0, len(order), BATCH):
            if fresh and max(fresh.values()) - value > self.gains[order[start]]:
                break  # no unit that is left can win or draw, if its gain has not grown
            some = order[start:start + BATCH]
            for unit, objective in zip(some, evaluate(some)):
                fresh[unit] = float(objective)
                self.grown += fresh[unit] - value > self.gains[unit] + 1e-9
        self.evaluations += len(fresh)
        self.saved += len(order) - len(fresh)
        for unit, objective in fresh.items():
            self.gains[unit] = objective - value
        best = max(fresh, key=lambda unit: (fresh[unit], -unit))
        self.chosen.append(best)
        return best, fresh[best]


@dataclass(frozen=True)
class Objectives(Task):
    """Objectives of sets of units for one example: `objectives` float64 [len(sets)].

    `example`: a record with a method `objectives(model, sets)`; `sets`: lists of units.
    """

    example: Any
    sets: tuple

    def compute(self, model, earlier, progress):
        """See `Task`.

        Raises:
            InputError: objectives that are no numbers.
        """
        objectives = self.example.objectives(model, self.sets)
        if not np.isfinite(objectives).all():
            raise InputError(f"{self.title}, {self.name}: the model gave effects that are not numbers: try --dtype float32 or float64")
        progress(self.interventions)
        return {"objectives": objectives}


@dataclass(frozen=True)
class HeadExample:
    """Indirect effects of sets of heads on one stimulus, each set replaced together; a head is layer x H + head."""

    intervention: Intervention
    batch_size: int | None

    def objectives(self, model, sets):
        """Float64 [len(sets)]."""
        chosen = torch.zeros(len(sets), model.num_layers * model.num_heads, dtype=torch.bool)
        for row, heads in enumerate(sets):
            chosen[row, list(heads)] = True
        c1, c2 = model.continuation_probabilities(self.intervention)[0]
        swept = heads_in_sets(model, self.intervention, "indirect", chosen.reshape(len(sets), model.num_layers, model.num_heads),
                                                      self.batch_size)
        return effect(swept[:, 1] - swept[:, 0], log_odds(c2, c1))


@dataclass(frozen=True)
class NeuronExample:
    """Odds ratios minus 1 toward the anti-stereotypical gender, of sets of neurons changed together on one stimulus.

    `kind`: intervention type; `sign`: of the log odds he over she; a unit is `first` + its number, layer by layer.
    """

    intervention: Intervention
    kind: str
    sign: int
    batch_size: int | None
    first: int = 0

    def objectives(self, model, sets):
        """Float64 [len(sets)]."""
        longest = max(len(units) for units in sets)
        padded = [[self.first + unit for unit in (*units, *[units[0]] * (longest - len(units)))] for units in sets]  # a neuron named twice is changed once
        swept, base = neuron_sets(model, self.intervention, self.kind, torch.tensor(padded), self.batch_size)
        return effect(self.sign * (swept[:, 0] - swept[:, 1]), self.sign * (base[0] - base[1]))


class SelectionFiles:
    """The pickles of one selection in a RunFolder: shards while an evaluation is under way, a file as soon as a step is done.

    Args:
        run_folder, run: after `claim` and `begin`; names: {"topk": file name, "greedy": ..., ...}.
        examples: {key: HeadExample or NeuronExample}.
        title: what is told in the progress bar; unit: what it counts.
        shape: (layers, units of a layer); cells of it are the units.
        label: "head" or "neuron", as the files name a unit within its layer; first_layer: the number of the table's first layer.
    """

    def __init__(self, model, run_folder, run, names, examples, title, unit, shape, label, first_layer=0):
        self.model, self.run_folder, self.run, self.names = model, run_folder, run, names
        self.examples, self.title, self.unit = examples, title, unit
        self.shape, self.label, self.first_layer, self.cells = shape, label, first_layer, shape[0] * shape[1]

    def read(self, kind):
        """Content of a finished file, or None."""
        name = self.names[kind]
        return self.decode(kind, read_pickle(self.run_folder.folder / name)) if self.run_folder.is_finished(name) else None

    def write(self, kind, content, rows):
        """Write a file and say so in the manifest."""
        write_pickle(self.run_folder.folder / self.names[kind], self.encode(kind, content))
        self.run_folder.finish_file(self.run, self.names[kind], rows=rows)

    def encode(self, _kind, content):
        """What a file holds, from what the methods below work with."""
        return content

    def decode(self, _kind, content):
        """The other way round."""
        return content

    def objectives(self, kind, step, sets, examples=None):
        """Objectives of sets for every example, float64 [N, len(sets)]; each example is kept at once. `examples`: in place of the selection's."""
        tasks = [Objectives(self.names[kind], f"{step}_{key}", f"{self.title}{kind} {step}", 1, example, tuple(sets))
                 for key, example in (examples or self.examples).items()]
        with tqdm(total=len(tasks), unit=self.unit) as progress:
            shards = engine.run(self.model, [tasks], self.run_folder, progress)
        return np.array([shards(task.key)["objectives"] for task in tasks], np.float64)

    def named(self, units):
        """Units as pairs of plain numbers, (layer, unit of the layer)."""
        return [(self.first_layer + unit // self.shape[1], unit % self.shape[1]) for unit in map(int, units)]

    def cells_of(self, pairs):
        """The other way round."""
        return [(int(layer) - self.first_layer) * self.shape[1] + int(unit) for layer, unit in pairs]

    def top_k(self, order, k):
        """Mean objective of the first 1 to k units of `order`: {"val": [k], label: [(layer, unit)]}; a file that goes as far is kept."""
        done = self.read("topk")
        if done is None or len(done["val"]) < k:
            values = self.objectives("topk", k, [order[:size] for size in range(1, k + 1)])
            done = {"val": values.mean(axis=0).tolist(), self.label: self.named(order[:k])}
            self.write("topk", done, k)
            self.run_folder.remove_shards(self.names["topk"])
        return done

    def random_orders(self, k, orders, seed):
        """Mean objective of the first 1 to k units of random orders: {"val": [orders][k], label: [orders][k]}."""
        done = self.read("random")
        if done is None or len(done["val"]) < orders or len(done["val"][0]) < k:
            drawn = [np.random.default_rng([seed, number]).permutation(self.cells)[:k].tolist() for number in range(orders)]
            values = self.objectives("random", f"{orders}x{k}", [order[:size] for order in drawn for size in range(1, k + 1)])
            done = {"val": values.mean(axis=0).reshape(orders, k).tolist(), self.label: [self.named(order) for order in drawn]}
            self.write("random", done, k)
            self.run_folder.remove_shards(self.names["random"])
        return done

    def greedy(self, k):
        """One unit after the other: {"val": [k], label: [(layer, unit)]}; every step is on disk before the next begins.

        greedy_intermediate holds {step: [N, layers, units of a layer]}: the objective of the set with each unit added; cells of
        units already in it carry no meaning.
        """
        found = self.read("greedy") or {"val": [], self.label: []}
        tables = self.read("greedy_intermediate") or {}
        for step in range(len(found["val"]), k):
            chosen = self.cells_of(found[self.label])
            if step not in tables:
                values = self.objectives("greedy", step, [[*chosen, unit] for unit in range(self.cells)])
                tables[step] = values.reshape(-1, *self.shape)
                self.write("greedy_intermediate", tables, step + 1)
            best, value = greedy_step(tables[step].mean(axis=0), chosen)
            found = {"val": [*found["val"], value], self.label: [*found[self.label], *self.named([best])]}
            self.write("greedy", found, step + 1)
            self.run_folder.remove_shards(self.names["greedy"])
        return found

    def lazy_greedy(self, k):
        """The same by LazyGreedy, with "gains", "evaluations", "saved", "grown" and "certified" beside."""
        found = self.read("lazy") or {"val": [], self.label: [], "gains": [np.inf] * self.cells, "evaluations": 0, "saved": 0, "grown": 0}
        lazy = LazyGreedy(np.array(found["gains"]), found["evaluations"], found["saved"], found["grown"], self.cells_of(found[self.label]))
        for step in range(len(found["val"]), k):
            def evaluate(units, step=step):
                return self.objectives("lazy", f"{step}_{units[0]}", [[*lazy.chosen, unit] for unit in units]).mean(axis=0)

            _, value = lazy.step(evaluate, found["val"][-1] if found["val"] else 0.0)
            found = {"val": [*found["val"], value], self.label: self.named(lazy.chosen), "gains": lazy.gains.tolist(), "evaluations": lazy.evaluations,
                     "saved": lazy.saved, "grown": int(lazy.grown), "certified": lazy.certified}
            self.write("lazy", found, step + 1)
            self.run_folder.remove_shards(self.names["lazy"])
        return found


class NeuronSelectionFiles(SelectionFiles):
    """The same with the neuron study's contents: top-k a list of values; greedy "layer" (where none was named), "neuron" and "val"."""

    def encode(self, kind, content):
        """As the neuron study writes it."""
        if kind == "topk":
            return content["val"]
        if kind != "greedy":
            return content
        layers, neurons = ([pair[part] for pair in content["neuron"]] for part in (0, 1))
        return {**({"layer": layers} if self.shape[0] > 1 else {}), "neuron": neurons, "val": content["val"]}

    def decode(self, kind, content):
        """The other way round."""
        if kind == "topk":
            return {"val": list(content)}
        if kind != "greedy":
            return content
        layers = content.get("layer", [self.first_layer] * len(content["neuron"]))
        return {"val": list(content["val"]), "neuron": list(zip(layers, content["neuron"]))}


KINDS = ("topk", "greedy", "greedy_intermediate", "lazy", "random")
TITLES = {"topk": "top-k", "greedy": "greedy", "lazy": "lazy greedy", "random": "random order"}


def run(files, order, options):
    """The selections that the command line asks for, {title: {"val", label, ...}}; `order`: units, the best alone first."""
    found = {}
    if "topk" in options.algo:
        found[TITLES["topk"]] = {files.label: files.named(order[: options.k]), **files.top_k(order, options.k)}
    if "greedy" in options.algo:
        found[TITLES["lazy" if options.lazy else "greedy"]] = files.lazy_greedy(options.k) if options.lazy else files.greedy(options.k)
    if "random" in options.algo:
        found[TITLES["random"]] = files.random_orders(options.k, options.orders, options.seed)
    return found


def read_found(paths, label):
    """The selections in files, as `run` gives them. `paths`: {kind: path}; files that are not there are left out.

    Raises:
        InputError: a file that `read_pickle` refuses, or one that is no selection.
    """
    found = {}
    for kind, path in paths.items():
        if path.exists():
            content = read_pickle(path)
            try:
                if kind != "random":
                    check_choice(content["val"], content[label])
                for values, pairs in zip(content["val"], content[label]) if kind == "random" else ():
                    check_choice(values, pairs)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise InputError(f"{path} is no selection of {label}s (val and {label} of equal length): move it away") from error
            found[TITLES[kind]] = content
    return found


def check_choice(values, pairs):
    """Raises ValueError or TypeError when these are not n finite numbers and n pairs of whole numbers."""
    pairs = np.asarray(pairs)
    if not len(values) or pairs.shape != (len(values), 2) or not np.issubdtype(pairs.dtype, np.integer) or not np.isfinite(np.asarray(values, float)).all():
        raise ValueError("no selection")
