"""How the time of a neuron sweep grows with units, prompts, layers and tokens, and how much memory it takes.

    python -m benchmarks.growth -model smollm2-135m
    python -m benchmarks.growth -model smollm2-135m --units 256 --rounds 1

Full-precision sweeps over randomly drawn neurons; each table varies one thing and is run in turns.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch

from benchmarks import load, parser, peak_of_this_process, timed
from mediation.errors import InputError
from mediation.mediators.neuron_sweeps import neurons_in_trees
from mediation.options import exit_on_bad_input, positive
from mediation.stimuli.templates import TEMPLATES

ADDED_WORDS = (0, 6, 14, 30)


def main(options: argparse.Namespace) -> None:
    """A table each for units, prompts, layers and tokens."""
    from experiment import Intervention

    model = load(options)
    units, neurons = (model.num_layers + 1) * model.num_neurons, model.num_neurons
    generator = torch.Generator().manual_seed(options.seed)
    shuffled = torch.randperm(units - neurons, generator=generator)  # the last layer is not run
    in_a_layer = torch.randperm(neurons, generator=generator)
    if 2 * options.units > len(shuffled):
        raise InputError(f"--units {options.units}: this model has {len(shuffled)} neurons before its last "
                         "layer, and twice the units are run")

    def stimulus(template: str) -> Intervention:
        return Intervention(model.tokenizer, template, ["nurse", "man", "woman"], ["he", "she"], model.device)

    def sweep(templates: Sequence[str], chosen: torch.Tensor) -> Callable:
        return lambda: neurons_in_trees(
            model, [stimulus(template) for template in templates], "man_indirect", units=chosen.sort().values)

    one, drawn = TEMPLATES[:1], shuffled[: options.units]
    before = peak_of_this_process()
    sweep(one, shuffled[:8])()  # packs the weights
    print(f"{model.name}, {torch.get_num_threads()} threads, {options.rounds} rounds; memory before the "
          f"first sweep {before:.0f} MB, with packed weights {peak_of_this_process():.0f} MB")
    counts = options.units // 4, options.units // 2, options.units, 2 * options.units
    grow("units", {count: sweep(one, shuffled[:count]) for count in counts}, options.rounds)
    grow("prompts (templates of one profession)",
         {count: sweep(TEMPLATES[:count], drawn) for count in (1, 4, 8, 17)}, options.rounds)
    layers = sorted({0, 1, model.num_layers // 2, model.num_layers - 1})
    count = min(options.units, neurons)
    grow(f"layer of {count} units",
         {layer: sweep(one, layer * neurons + in_a_layer[:count]) for layer in layers}, options.rounds)
    grow("tokens from the slot on",
         {2 + words: sweep(["The {}" + " and" * words + " said"], drawn) for words in ADDED_WORDS},
         options.rounds)
    grow("tokens before the slot",
         {1 + words: sweep(["The" + " very" * words + " {} said that"], drawn) for words in ADDED_WORDS},
         options.rounds)
    print(f"\nPeak memory of all this: {peak_of_this_process():.0f} MB")


def grow(what: str, runs: dict[int, Callable], rounds: int) -> None:
    """Time {size: function} in turns; seconds, and times the first."""
    seconds: dict[int, list[float]] = {size: [] for size in runs}
    for _ in range(rounds):
        for size, run in runs.items():
            seconds[size].append(timed(run)[0])
    first = next(iter(seconds.values()))
    print(f"\n| {what} | seconds | times the first |\n| --- | --- | --- |")
    for size, times in seconds.items():
        ratio = statistics.median(new / old for old, new in zip(first, times))
        print(f"| {size} | {statistics.median(times):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    command_line = parser(__doc__)
    command_line.add_argument("--units", type=positive, default=512, metavar="N",
                              help="neurons of a sweep (default: 512)")
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)
