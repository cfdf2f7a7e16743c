"""How much faster a neuron sweep is than the 2020 algorithm: batched full passes under hooks, all logits.

    python -m benchmarks.neuron_sweep -model smollm2-135m
    python -m benchmarks.neuron_sweep -model gpt2-small-sized      # random weights, the size of GPT-2 small

One prompt, one type. Ours run many neurons, drawn at random; the 2020 algorithm a part of those, and its time
is scaled by their number.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks import choose_precision, compare, load, parser, share_of_products
from mediation.mediators.neuron_sweeps import runs_and_edits
from mediation.mediators.neurons import NeuronEdits, edited
from mediation.mediators.sweeps import sweep
from mediation.model.fast_rows import FastRows
from mediation.options import exit_on_bad_input, positive

if TYPE_CHECKING:
    from experiment import Model


def main(options: argparse.Namespace) -> None:
    """Draw the interventions of the slow way, compare all ways."""
    from experiment import Intervention

    in_fast = choose_precision(options)
    model = load(options)
    intervention = Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"],
                                model.device)
    with torch.no_grad():
        runs, run_on, edits = runs_and_edits(model, intervention, "man_indirect")
        tokens = intervention.base_strings_tok[run_on].to(model.device)
        candidates = [ids[0] for ids in intervention.candidates_tok]
        order = torch.randperm(len(edits), generator=torch.Generator().manual_seed(options.seed))
        drawn = order[: options.neurons]
        neurons = drawn.sort().values
        chosen = torch.isin(neurons, drawn[: options.interventions]).nonzero().squeeze(1)
        edits = edits[neurons.to(model.device)]

        def ours(**settings):
            predictions = tuple(([len(tokens) - 1], [candidate]) for candidate in candidates)
            return sweep(model.parts, runs[run_on], predictions, edits, options.batch_size, **settings)

        print(f"{model.name}, {model.device}, {intervention.base_strings[run_on]!r}, "
              f"{torch.get_num_threads()} threads, {options.rounds} rounds")
        fast = FastRows()
        ways = {"exact": {}, "fast": {"fast": fast}, "exact, log odds only": {"odds_only": True},
                "fast, log odds only": {"odds_only": True, "fast": FastRows()}}
        ways = {way: settings for way, settings in ways.items() if in_fast or "fast" not in settings}
        of_2020 = partial(by_full_passes_2020, model, tokens, edits[chosen.to(model.device)], candidates,
                          options.batch_size or 64)
        compare({"2020 algorithm": (of_2020, len(chosen), None),
                 **{way: (partial(ours, **settings), len(edits), chosen) for way, settings in ways.items()}},
                options.rounds)
        if in_fast:
            print(f"\n{fast}")
        for way in ("exact", "fast") if in_fast else ("exact",):
            share = share_of_products(partial(ours, **ways[way]), options.rounds)
            print(f"\n{way}: its products with weights, run alone in the same shapes, take {share:.0%} of "
                  "the sweep's time")


def by_full_passes_2020(
    model: "Model", tokens: torch.Tensor, edits: NeuronEdits, candidates: Sequence[int], rows: int,
) -> torch.Tensor:
    """Every intervention through the whole model, in batches of `rows`: log-probabilities [interventions, 2].

    Hooks are those of `mediation.mediators.neurons`; softmax over the logits of the last position.
    """
    pieces = []
    for start in range(0, len(edits), rows):
        batch = edits[slice(start, start + rows)]
        with edited(model.parts, batch):
            logits = model.model(tokens.expand(len(batch), -1), use_cache=False).logits[:, -1]
        pieces.append(logits.double().log_softmax(-1)[:, candidates].cpu())
    return torch.cat(pieces)


if __name__ == "__main__":
    command_line = parser(__doc__)
    command_line.add_argument("--interventions", type=positive, default=1024, metavar="N",
                              help="of the 2020 algorithm, drawn at random (default: 1024)")
    command_line.add_argument("--neurons", type=positive, default=8192, metavar="N",
                              help="of ours, drawn at random (default: 8192)")
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)
