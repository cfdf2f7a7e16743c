"""How much faster a sweep is than the 2020 algorithm: batched full passes under hooks, with the full vocabulary's logits.

    python -m benchmarks.neuron_sweep -model smollm2-135m
    python -m benchmarks.neuron_sweep -model gpt2-small-sized      # random weights, the size of GPT-2 small

Both ways run the same interventions of one prompt, drawn from all layers, in turns in one process; the ratio of their times
is what counts, for the machine may be shared. Their results are compared first.
"""

import argparse
import statistics
import tempfile
import time

from mediation.options import Parser, add_model_options, device, exit_on_bad_input, positive

GPT2_SMALL_SIZED = "gpt2-small-sized"


def parse_options():
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--interventions", type=positive, default=1024, metavar="N", help="drawn at random from all neurons (default: 1024)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="turns of both ways (default: 3)")
    return parser.parse_args()


def main(options):
    """Compare, time in turns, print the ratio."""
    import torch

    model, intervention = load(options)
    runs, run_on, edits = model._experiment(intervention, "man_indirect", 1)
    tokens, candidates = intervention.base_strings_tok[run_on].to(model.device), [ids[0] for ids in intervention.candidates_tok]
    chosen = torch.randperm(len(edits), generator=torch.Generator().manual_seed(options.seed))[: options.interventions].sort().values
    edits = edits[chosen.to(model.device)]

    ways = {
        "full passes under hooks": lambda: by_full_passes_2020(model, tokens, edits, candidates, options.batch_size or 64),
        "descent": lambda: model._sweep(runs[run_on], tokens, edits, intervention.candidates_tok, options.batch_size),
    }
    first, second = (way() for way in ways.values())
    print(f"{model.name}, {model.device}, {torch.get_num_threads()} threads, {len(edits)} interventions on {intervention.base_strings[run_on]!r}")
    print(f"largest difference in a log-probability: {(first - second).abs().max():.1e}")
    seconds = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        print(f"{name:24} {len(edits) / statistics.median(times):7.0f} interventions a second (median of {options.rounds})")
    slow, fast = seconds.values()
    ratios = [a / b for a, b in zip(slow, fast)]
    print(f"ratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


def load(options):
    """(Model, the stimulus "The nurse said that"); GPT-2 small's size with random weights needs no download of weights."""
    import torch

    from experiment import Intervention, Model

    if options.model == GPT2_SMALL_SIZED:
        from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

        from mediation.checkpoints import bundled_model

        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(options.seed)
            GPT2LMHeadModel(GPT2Config()).save_pretrained(f"{folder}/{GPT2_SMALL_SIZED}")
            AutoTokenizer.from_pretrained(bundled_model("smollm2-135m")).save_pretrained(f"{folder}/{GPT2_SMALL_SIZED}")
            model = Model(gpt2_version=f"{folder}/{GPT2_SMALL_SIZED}")
    else:
        model = Model(device=device(options.device), gpt2_version=options.model, dtype=getattr(torch, options.dtype))
    return model, Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"], model.device)


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
    chosen_options = parse_options()
    with exit_on_bad_input():
        import torch

        with torch.no_grad():
            main(chosen_options)
