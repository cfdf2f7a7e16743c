"""How much faster a neuron sweep is than the 2020 algorithm: batched full passes under hooks, with the full vocabulary's logits.

    python -m benchmarks.neuron_sweep -model smollm2-135m
    python -m benchmarks.neuron_sweep -model gpt2-small-sized      # random weights, the size of GPT-2 small

Both ways run the same interventions of one prompt, drawn from all layers.
"""

from benchmarks import compare, load, parser
from mediation.options import exit_on_bad_input, positive


def main(options):
    """Draw the interventions, compare both ways."""
    import torch

    from experiment import Intervention

    model = load(options)
    intervention = Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"], model.device)
    with torch.no_grad():
        runs, run_on, edits = model._experiment(intervention, "man_indirect", 1)
        tokens, candidates = intervention.base_strings_tok[run_on].to(model.device), [ids[0] for ids in intervention.candidates_tok]
        chosen = torch.randperm(len(edits), generator=torch.Generator().manual_seed(options.seed))[: options.interventions].sort().values
        edits = edits[chosen.to(model.device)]
        print(f"{model.name}, {model.device}, {intervention.base_strings[run_on]!r}")
        compare(("full passes under hooks", lambda: by_full_passes_2020(model, tokens, edits, candidates, options.batch_size or 64)),
                ("descent", lambda: model._sweep(runs[run_on], tokens, edits, intervention.candidates_tok, options.batch_size)), len(edits), options.rounds)


def by_full_passes_2020(model, tokens, edits, candidates, rows):
    """Every intervention through the whole model, hooks as in `mediation.neurons`, softmax over the logits of the last position."""
    import torch

    from mediation.neurons import edited

    pieces = []
    for start in range(0, len(edits), rows):
        some = edits[slice(start, start + rows)]
        with edited(model.parts, some):
            logits = model.model(tokens.expand(len(some), -1), use_cache=False).logits[:, -1]
        pieces.append(logits.double().log_softmax(-1)[:, candidates].cpu())
    return torch.cat(pieces)


if __name__ == "__main__":
    command_line = parser(__doc__)
    command_line.add_argument("--interventions", type=positive, default=2048, metavar="N", help="drawn at random from all neurons (default: 2048)")
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)
