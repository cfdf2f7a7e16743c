"""How much faster a neuron sweep is than the 2020 algorithm: batched full passes under hooks, with the full vocabulary's logits.

    python -m benchmarks.neuron_sweep -model smollm2-135m
    python -m benchmarks.neuron_sweep -model gpt2-small-sized      # random weights, the size of GPT-2 small

One prompt, one type. Ours run every neuron; the 2020 algorithm some of them, drawn at random, and its time is scaled by their number.
"""

import torch

from benchmarks import compare, load, parser, share_of_products
from mediation.batches import FastRows
from mediation.neurons import edited
from mediation.options import exit_on_bad_input, positive
from mediation.sweeps import sweep


def main(options):
    """Draw the interventions of the slow way, compare all ways."""
    from experiment import Intervention

    options.precision = "fast"
    model = load(options)
    intervention = Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"], model.device)
    with torch.no_grad():
        runs, run_on, edits = model._experiment(intervention, "man_indirect", 1)
        tokens, candidates = intervention.base_strings_tok[run_on].to(model.device), [ids[0] for ids in intervention.candidates_tok]
        chosen = torch.randperm(len(edits), generator=torch.Generator().manual_seed(options.seed))[: options.interventions].sort().values

        def ours(**settings):
            return sweep(model.parts, runs[run_on], model._predictions(tokens, intervention.candidates_tok), edits, options.batch_size, **settings)

        def log_odds(log_probabilities):
            return (log_probabilities[:, 0] - log_probabilities[:, 1]).unsqueeze(1)

        def of_2020():
            return by_full_passes_2020(model, tokens, edits[chosen.to(model.device)], candidates, options.batch_size or 64)

        print(f"{model.name}, {model.device}, {intervention.base_strings[run_on]!r}, {torch.get_num_threads()} threads, {options.rounds} rounds")
        fast = FastRows()
        compare({"2020 algorithm": (of_2020, len(chosen), None), "exact": (ours, len(edits), chosen),
                 "fast": (lambda: ours(fast=fast), len(edits), chosen)}, options.rounds)
        print(f"\n{fast}")
        compare({"2020 algorithm": (lambda: log_odds(of_2020()), len(chosen), None),
                 "exact, log odds only": (lambda: log_odds(ours(odds_only=True)), len(edits), chosen),
                 "fast, log odds only": (lambda: log_odds(ours(odds_only=True, fast=FastRows())), len(edits), chosen)}, options.rounds)
        for name, settings in (("exact", {}), ("fast", {"fast": fast})):
            share = share_of_products(lambda settings=settings: ours(**settings), options.rounds)
            print(f"\n{name}: the products of the blocks' linear layers, run alone in the same shapes, take {share:.0%} of the sweep's time")


def by_full_passes_2020(model, tokens, edits, candidates, rows):
    """Every intervention through the whole model, hooks as in `mediation.neurons`, softmax over the logits of the last position."""
    pieces = []
    for start in range(0, len(edits), rows):
        some = edits[slice(start, start + rows)]
        with edited(model.parts, some):
            logits = model.model(tokens.expand(len(some), -1), use_cache=False).logits[:, -1]
        pieces.append(logits.double().log_softmax(-1)[:, candidates].cpu())
    return torch.cat(pieces)


if __name__ == "__main__":
    command_line = parser(__doc__)
    command_line.add_argument("--interventions", type=positive, default=1024, metavar="N", help="of the 2020 algorithm, drawn at random (default: 1024)")
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)
