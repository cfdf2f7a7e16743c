"""The sweep of one intervention type over a study's stimuli: which tasks, in which stages, and what they
gave.

    stimuli -> trees of prompts -> stages: [gradients,] [values, layers,] trees
            -> numbers, stimulus by stimulus
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mediation.mediators.interpolation import Interpolants
from mediation.mediators.neurons import INTERVENTION_TYPES
from mediation.model.fast_rows import FastRows
from mediation.model.language_model import LanguageModel, families
from mediation.stimuli.interventions import Intervention
from mediation.studies.engine import Shards, StudyOptions, Task
from mediation.studies.error_budget import Check
from mediation.studies.estimated_trees import EstimatedTree, Gradients, trees_to_compare
from mediation.studies.interpolated_trees import (
    Alternative,
    InterpolatedLayer,
    InterpolatedTree,
    alike_in_alternative,
)
from mediation.studies.results import Swept, sample_of
from mediation.studies.trees import Tree, digest


@dataclass(frozen=True)
class NeuronSweep:
    """The tasks of one intervention type.

    `stages`: lists of tasks, the last of which hold the numbers; `where`: for each stimulus of the study
    (its task, its position there); `types`: how many intervention types the tasks of the other stages serve.
    """

    stages: list[Sequence[Task]]
    where: list[tuple[Tree, int]]
    types: int


def plan(model: LanguageModel, stimuli: Sequence[Intervention], kind: str, options: StudyOptions, table: str,
         labels: Sequence[str] | None = None,
         gradients: Gradients | None = None) -> NeuronSweep:
    """The sweep of one intervention type over a study's stimuli.

    Args:
        kind: one of INTERVENTION_TYPES; table: of the shards, see `Task`.
        labels: what each stimulus is called, such as its word, the same for all of a tree.
        gradients: for the methods that estimate.
    """
    trees, values, layers, tasks = families(stimuli), [], [], []
    group_of: dict[int, tuple[Alternative, tuple]] = {}
    of_stimulus: dict[int, tuple[Tree, int]] = {}
    if not options.estimates:
        for group in alike_in_alternative(model, stimuli, kind, options):
            of_words, of_layers = group.tasks(model, f"interpolated_{table}")
            values.append(of_words)
            layers += of_layers
            keys = tuple(task.key for task in of_layers)
            group_of |= {member: (group, keys) for member in group.members}
    compared = trees_to_compare([[stimuli[member] for member in members] for members in trees])
    units = (model.num_layers + 1) * model.num_neurons
    for number, members in enumerate(trees):
        of_tree = tuple(stimuli[member] for member in members)
        label = labels[members[0]] if labels else f"tree {number + 1} of {len(trees)}"
        about: dict[str, Any] = {"table": table, "name": f"tree_{number}_{digest(of_tree, kind)}",
                                 "title": f"{kind}, {label}", "interventions": len(members) * units,
                                 "stimuli": of_tree, "kind": kind, "options": options, "label": label}
        task: Tree
        if members[0] in group_of:  # then all of them are: their prompts are alike up to the slot's end
            group, keys = group_of[members[0]]
            about["interventions"] = 0  # the layers' tasks ran them
            task = InterpolatedTree(**about, word=group.word_of[members[0]], layers=keys,
                                    columns=tuple(group.template_of[member] for member in members))
        elif gradients:
            task = EstimatedTree(**about, gradients=tuple(map(gradients.where, of_tree)),
                                 compared=number in compared)
        else:
            task = Tree(**about)
        tasks.append(task)
        of_stimulus |= {member: (task, position) for position, member in enumerate(members)}
    every: tuple[Sequence[Task], ...] = (gradients.tasks if gradients else [], values, layers, tasks)
    where = [of_stimulus[index] for index in range(len(stimuli))]
    return NeuronSweep([stage for stage in every if stage], where, gradients.types if gradients else 1)


class NeuronResults:
    """What a sweep gave, stimulus by stimulus.

    Args:
        sweep: whose tasks were computed; shards: of these; top: size of the top of which screening must miss
            nothing.
    """

    def __init__(self, sweep: NeuronSweep, shards: Shards, top: int) -> None:
        self.sweep, self.shards, self.top = sweep, shards, top
        before = sum(shards.seconds[task.key] for stage in sweep.stages[:-1] for task in stage)
        # a stimulus' share of the earlier stages
        self.seconds_before = before / sweep.types / len(sweep.where)

    def __call__(self, index: int) -> Swept:
        """The numbers of one stimulus, by its index in the study."""
        task, position = self.sweep.where[index]
        arrays = self.shards(task.key)
        check, sample = Check.from_arrays(arrays), None
        if "drawn" in arrays:
            run_on = INTERVENTION_TYPES[task.kind].run_on
            sample = sample_of(arrays, position, run_on, task.name, task.label, self.top)
        return Swept(
            arrays["log_probabilities"][position], arrays["base"][position], arrays.get("exact"),
            seconds=self.shards.seconds[task.key] / len(task.stimuli) + self.seconds_before,
            check=Check(check.deviation, 0, 0) if position else check,  # counted once for a tree
            fast=FastRows(*arrays["fast"]) if "fast" in arrays else None,
            source=(task.key, position), sample=sample)

    def interpolation(self) -> dict[str, float] | None:
        """For the manifest: how many neurons were interpolated between words, and how many run for every
        word."""
        layers = [Interpolants.from_arrays(self.shards(task.key))
                  for stage in self.sweep.stages for task in stage if isinstance(task, InterpolatedLayer)]
        if not layers:
            return None
        neurons, run = (sum(len(part) for part in parts) for parts in
                        ([layer.low for layer in layers], [layer.run for layer in layers]))
        evaluations = sum(layer.evaluations for layer in layers) / neurons
        prompts = sum(isinstance(task, InterpolatedTree) for task, _ in self.sweep.where)
        return {"interpolated": neurons - run, "run_for_every_word": run, "evaluations_a_neuron": evaluations,
                "largest_error": max(layer.error for layer in layers), "prompts": prompts}


def describe_interpolation(kind: str, counts: dict[str, float], word: str) -> str:
    """One line for people on what `NeuronResults.interpolation` says of an intervention type; `word`:
    "profession"."""
    return (f"{kind}: {counts['interpolated']} neurons interpolated between {word}s "
            f"({counts['prompts']} prompts; {counts['evaluations_a_neuron']:.1f} runs per neuron, "
            f"errors seen or estimated up to {counts['largest_error']:.1e}), "
            f"{counts['run_for_every_word']} run for every {word}")
