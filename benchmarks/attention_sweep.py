"""How much faster sweeps over heads are than one full pass per head, and a step of their greedy selection.

    python -m benchmarks.attention_sweep -model smollm2-135m
    python -m benchmarks.attention_sweep -model gpt2-small-sized    # random weights, the size of GPT-2 small

Both ways run the same interventions, the indirect effects of one WinoBias-like example of our own: every
head, every attention layer and the whole model. In the greedy step three heads are chosen, and each other one
is added to them.
"""

import argparse
from functools import partial

import torch

from benchmarks import choose_precision, compare, load, parser
from mediation.options import exit_on_bad_input


def main(options: argparse.Namespace) -> None:
    """All sets, both ways."""
    from experiment import Intervention
    from mediation.mediators.head_sweeps import head_edits
    from mediation.mediators.heads import heads_layers_model
    from mediation.mediators.sweeps import sweep_heads
    from mediation.model.fast_rows import FastRows

    in_fast = choose_precision(options)
    model = load(options)
    intervention = Intervention(model.tokenizer, "The carpenter thanked the nurse because {}", ["she", "he"],
                                ["had helped in the night.", "was ill and tired."], model.device)
    lengths = [len(ids) for ids in intervention.candidates_tok]
    print(f"{model.name}, {model.device}, {intervention.base_strings[0]!r}, candidates of {lengths} tokens")
    every = heads_layers_model(model.num_layers, model.num_heads)
    units = model.num_layers * model.num_heads
    chosen = [units // 2, units // 3, units - 5]  # the middle, a third of the way, near the end
    added = [unit for unit in range(units) if unit not in chosen]
    with torch.no_grad():
        for name, sets in (("every head, layer and the model", every),
                           ("a greedy step", every[added] | every[chosen].any(dim=0))):
            context, edits = head_edits(model, intervention, "indirect", sets)
            run = partial(sweep_heads, model.model, model.parts, context, intervention.candidates_tok, edits,
                          options.batch_size)
            ways = {"one full pass a head": {"full_passes": True}, "exact": {}}
            if in_fast:
                ways["fast"] = {"fast": FastRows()}
            print(f"\n{name}")
            compare({way: (partial(run, **settings), len(edits), None) for way, settings in ways.items()},
                    options.rounds)


if __name__ == "__main__":
    command_line = parser(__doc__)
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)
