"""The whole profession study against the 2020 algorithm's cost for it.

    python -m benchmarks.study -model smollm2-135m
    python -m benchmarks.study -model smollm2-135m --rounds 1 --share 0.02

It has 17 templates, every single-token profession, four types and every neuron. The whole would take the 2020
algorithm weeks, so each way runs a part of it, in turns, and is scaled by the number of interventions: the
2020 algorithm (batched full passes under hooks, the full vocabulary's logits) a few neurons in every
template; ours the indirect types of one profession on a random share of the neurons, and the direct types of
some neurons of the middle layer for all professions at once. Without the writing of tables.
"""

import argparse
import copy
import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks import choose_precision, load, parser, timed
from benchmarks.neuron_sweep import by_full_passes_2020
from mediation.mediators.neuron_sweeps import (
    direct_interpolants,
    neuron_gradients_of,
    neurons_in_trees,
    null_values,
    runs_and_edits,
)
from mediation.options import exit_on_bad_input, share
from mediation.stimuli.templates import select_templates

if TYPE_CHECKING:
    from experiment import Intervention, Model

INDIRECT = ("man_indirect", "woman_indirect")
NEURONS_OF_2020 = 64  # in each template
WORDS_OF_GRADIENTS = 8
INTERPOLATED = 64  # neurons of the middle layer, in the direct types


def main(options: argparse.Namespace) -> None:
    """Time the parts in turns, scale, print one table."""
    in_fast = choose_precision(options)
    study = Study.of(load(options), options.share, options.seed)
    with torch.no_grad():
        study.warm_up()
        rounds = [study.hours(in_fast) for _ in range(options.rounds)]
    fast = study.fast
    print(f"{fast.name}: {len(study.words)} professions, {study.prompts} prompts, 4 types, {study.units} "
          f"neurons, {study.units * study.prompts * 4:,} interventions; {torch.get_num_threads()} threads; "
          f"{options.rounds} rounds{f'; {fast.fast_rows}' if in_fast else ''}\n")
    print("| way | hours for the study | times the 2020 algorithm |\n| --- | --- | --- |")
    for way in rounds[0]:
        ratios = [hours["2020 algorithm"] / hours[way] for hours in rounds]
        print(f"| {way} | {statistics.median(hours[way] for hours in rounds):.2f} | "
              f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |")


@dataclass(frozen=True)
class Study:
    """The stimuli of all professions, and ways to run a part of the study that tell the hours of the whole.

    `fast`, `exact`: one model in two precisions; `drawn`: neurons that the indirect types are run on;
    `values`: of all neurons [words, L + 1, D].
    """

    fast: "Model"
    exact: "Model"
    words: "dict[str, list[Intervention]]"
    drawn: torch.Tensor
    values: np.ndarray

    @classmethod
    def of(cls, fast: "Model", part: float, seed: int) -> "Study":
        """Of a model, whose neurons a random part is drawn from."""
        from experiment import Intervention
        from mediation.stimuli import professions

        exact = copy.copy(fast)  # the same weights
        exact.fast_rows = None
        words: dict[str, list[Intervention]] = {}
        for template in select_templates(None).values():
            for profession in professions.usable(fast.tokenizer, template, professions.select(None, None))[0]:
                words.setdefault(profession.word, []).append(Intervention(
                    fast.tokenizer, template, [profession.word, "man", "woman"], ["he", "she"], fast.device))
        units = (fast.num_layers + 1) * fast.num_neurons
        order = torch.randperm(units, generator=torch.Generator().manual_seed(seed))
        values = np.stack(null_values(exact, [of_word[0] for of_word in words.values()]))
        return cls(fast, exact, words, order[: int(part * units)].sort().values, values)

    @property
    def one(self) -> "list[Intervention]":
        """One profession in every template."""
        return self.words["nurse"]

    @property
    def units(self) -> int:
        """All neurons."""
        return (self.fast.num_layers + 1) * self.fast.num_neurons

    @property
    def prompts(self) -> int:
        """Of all professions in all templates that they fit."""
        return sum(map(len, self.words.values()))

    @cached_property
    def passes_of_2020(self) -> list[tuple]:
        """What the 2020 algorithm is run on, of each template."""
        return [few_interventions(self.exact, stimulus, number) for number, stimulus in enumerate(self.one)]

    def warm_up(self) -> None:
        """Run some of each before anything is timed."""
        by_full_passes_2020(*self.passes_of_2020[0])
        neurons_in_trees(self.exact, self.one, INDIRECT[0], units=self.drawn[::50])

    def hours(self, in_fast: bool) -> dict[str, float]:
        """{way: hours of the whole study}, from one turn of each."""
        seconds = {"2020 algorithm": self.of_2020(), "exact": self.indirect(self.exact)}
        if in_fast:
            seconds["fast"] = self.indirect(self.fast)
        shared = self.direct()  # in full precision in both ways
        for way in seconds.keys() & {"exact", "fast"}:
            seconds[way] += shared
        seconds["gradient"] = self.gradient()
        return {way: of_way / 3600 for way, of_way in seconds.items()}

    def of_2020(self) -> float:
        """Seconds of every prompt and type."""
        part = sum(timed(by_full_passes_2020, *arguments)[0] for arguments in self.passes_of_2020)
        return part / NEURONS_OF_2020 / len(self.passes_of_2020) * self.units * self.prompts * 4

    def indirect(self, model: "Model") -> float:
        """Seconds of both indirect types, of all professions."""
        part = sum(timed(neurons_in_trees, model, self.one, kind, units=self.drawn)[0] for kind in INDIRECT)
        return part * self.units / len(self.drawn) * len(self.words)

    def direct(self) -> float:
        """Seconds of both direct types in all layers, from some neurons of the middle layer in one type.

        A layer costs what the blocks behind it do. All of this is a twentieth of the whole.
        """
        layers = self.fast.num_layers
        middle = layers // 2
        of_neurons = self.values[:, middle, :INTERPOLATED]
        seconds, _ = timed(direct_interpolants, self.exact, self.one, "man_direct", of_neurons, middle)
        of_middle = seconds * self.fast.num_neurons / of_neurons.shape[1]
        blocks_behind = layers - np.arange(layers)  # none behind the last layer, which is not run
        return 2 * of_middle * float(blocks_behind.sum() / blocks_behind[middle])

    def gradient(self) -> float:
        """Seconds of all four types: gradients of every null prompt and, once, of both alternatives'; then
        steps.

        Each type's steps along the gradients are products with differences of values.
        """
        some = list(self.words.values())[:WORDS_OF_GRADIENTS]
        stimuli = [stimulus for of_word in some for stimulus in of_word]
        null, (_, gradients, own) = timed(neuron_gradients_of, self.exact, stimuli, 0)
        alternatives = sum(timed(neuron_gradients_of, self.exact, self.one, prompt)[0] for prompt in (1, 2))
        steps, _ = timed(lambda: [gradients * (own - own[:1])[:, None] for _ in range(4)])
        return (null + steps) * self.prompts / len(stimuli) + alternatives


def few_interventions(
    model: "Model", stimulus: "Intervention", seed: int, count: int = NEURONS_OF_2020,
) -> tuple:
    """Arguments of `by_full_passes_2020` for a few random neurons of one prompt, in batches of 64."""
    _, run_on, edits = runs_and_edits(model, stimulus, INDIRECT[0])
    chosen = torch.randperm(len(edits), generator=torch.Generator().manual_seed(seed))[:count]
    candidates = [ids[0] for ids in stimulus.candidates_tok]
    tokens = stimulus.base_strings_tok[run_on].to(model.device)
    return model, tokens, edits[chosen.to(model.device)], candidates, 64


if __name__ == "__main__":
    command_line = parser(__doc__)
    command_line.add_argument("--share", type=share, default=0.1,
                              help="of the neurons that ours run in the indirect types (default: 0.1)")
    command_line.formatter_class = argparse.RawDescriptionHelpFormatter
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)
