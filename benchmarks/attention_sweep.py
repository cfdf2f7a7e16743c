"""How much faster sweeps over heads are than one full pass per head, and a step of their greedy selection.

    python -m benchmarks.attention_sweep -model smollm2-135m
    python -m benchmarks.attention_sweep -model gpt2-small-sized    # random weights, the size of GPT-2 small

The indirect effects of one WinoBias-like example of our own: every head, every attention layer and the whole
model. In the greedy step three heads are chosen, and each other one is added to them. Full passes run a part
of the interventions, drawn at random, and their time is scaled by their number.
"""

import argparse
from functools import partial

import torch

from benchmarks import choose_precision, compare, load, parser
from mediation.options import exit_on_bad_input, positive


def main(options: argparse.Namespace) -> None:
    """All sets, both ways."""
    from experiment import Intervention
    from mediation.mediators.head_sweeps import head_edits
    from mediation.mediators.heads import heads_layers_model
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
            drawn = torch.randperm(len(edits), generator=torch.Generator().manual_seed(options.seed))
            drawn = drawn[: options.heads].sort().values
            one_by_one = partial(run_on, model, context, intervention, edits[drawn.to(model.device)])
            ways = {"exact": {}} | ({"fast": {"fast": FastRows()}} if in_fast else {})
            print(f"\n{name}")
            compare({"one full pass a head": (partial(one_by_one, full_passes=True), len(drawn), None),
                     **{way: (partial(run_on, model, context, intervention, edits, options.batch_size,
                                      **settings), len(edits), drawn) for way, settings in ways.items()}},
                    options.rounds)


def run_on(model, context, intervention, edits, batch_size=None, **settings):
    """Log-probabilities of both candidates under interventions on heads."""
    from mediation.mediators.sweeps import sweep_heads

    return sweep_heads(model.model, model.parts, context, intervention.candidates_tok, edits, batch_size,
                       **settings)


if __name__ == "__main__":
    command_line = parser(__doc__)
    command_line.add_argument("--heads", type=positive, default=48, metavar="N",
                              help="interventions of the full passes, drawn at random (default: 48)")
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)
