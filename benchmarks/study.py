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
    from experiment import Intervention
    from mediation.stimuli import professions

    in_fast = choose_precision(options)
    fast = load(options)
    exact = copy.copy(fast)  # the same weights
    exact.fast_rows = None
    templates = list(select_templates(None).values())
    words = {}
    for template in templates:
        for profession in professions.usable(fast.tokenizer, template, professions.select(None, None))[0]:
            words.setdefault(profession.word, []).append(Intervention(
                fast.tokenizer, template, [profession.word, "man", "woman"], ["he", "she"], fast.device))
    one = words["nurse"]
    units = (fast.num_layers + 1) * fast.num_neurons
    order = torch.randperm(units, generator=torch.Generator().manual_seed(options.seed))
    drawn = order[: int(options.share * units)].sort().values
    middle = fast.num_layers // 2
    first_stimuli = [of_word[0] for of_word in words.values()]
    values = np.stack(null_values(exact, first_stimuli))  # [words, L + 1, D]
    prompts = sum(map(len, words.values()))

    def of_2020() -> float:
        """The whole study: every prompt and type."""
        part = sum(timed(by_full_passes_2020, *arguments)[0] for arguments in passes_of_2020)
        return part / NEURONS_OF_2020 / len(templates) * units * prompts * 4

    def indirect(model: "Model") -> float:
        """Both indirect types, of all professions."""
        part = sum(timed(neurons_in_trees, model, one, kind, units=drawn)[0]
                   for kind in INDIRECT)
        return part * units / len(drawn) * len(words)

    def direct() -> float:
        """Both direct types in all layers, from some neurons of the middle layer in one type.

        A layer costs what the blocks behind it do. All of this is a twentieth of the whole.
        """
        of_neurons = values[:, middle, :INTERPOLATED]
        seconds, _ = timed(direct_interpolants, exact, one, "man_direct", of_neurons, middle)
        of_middle = seconds * fast.num_neurons / of_neurons.shape[1]
        # none behind the last layer, which is not run
        blocks_behind = fast.num_layers - np.arange(fast.num_layers)
        return 2 * of_middle * float(blocks_behind.sum() / blocks_behind[middle])

    def gradient() -> float:
        """All four types: gradients of every null prompt and, once, of both alternatives'; then steps.

        Each type's steps along the gradients are products with differences of values.
        """
        stimuli = [stimulus for of_word in list(words.values())[:WORDS_OF_GRADIENTS] for stimulus in of_word]
        null, (_, gradients, own) = timed(neuron_gradients_of, exact, stimuli, 0)
        alternatives = sum(timed(neuron_gradients_of, exact, one, prompt)[0] for prompt in (1, 2))
        steps, _ = timed(lambda: [gradients * (own - own[:1])[:, None] for _ in range(4)])
        return (null + steps) * prompts / len(stimuli) + alternatives

    with torch.no_grad():
        passes_of_2020 = [few_interventions(exact, stimulus, number) for number, stimulus in enumerate(one)]
        by_full_passes_2020(*passes_of_2020[0])  # warms up
        neurons_in_trees(exact, one, INDIRECT[0], units=drawn[::50])
        rounds = []
        for _ in range(options.rounds):
            times = {"2020 algorithm": of_2020(), "exact": indirect(exact)}
            if in_fast:
                times["fast"] = indirect(fast)
            shared = direct()  # in full precision in both ways
            rounds.append({way: seconds + shared * (way in ("exact", "fast"))
                           for way, seconds in times.items()} | {"gradient": gradient()})
    print(f"{fast.name}: {len(words)} professions, {prompts} prompts, 4 types, {units} neurons, "
          f"{units * prompts * 4:,} interventions; {torch.get_num_threads()} threads; {options.rounds} rounds"
          f"{f'; {fast.fast_rows}' if in_fast else ''}\n")
    print("| way | hours for the study | times the 2020 algorithm |\n| --- | --- | --- |")
    for way in rounds[0]:
        hours = [times[way] for times in rounds]
        ratios = [times["2020 algorithm"] / times[way] for times in rounds]
        print(f"| {way} | {statistics.median(hours) / 3600:.2f} | {statistics.median(ratios):.1f} "
              f"({min(ratios):.1f} to {max(ratios):.1f}) |")


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
