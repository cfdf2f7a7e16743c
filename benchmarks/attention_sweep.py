"""How much faster an attention sweep is than one full pass a head: every head, layer and the whole model of one example.

    python -m benchmarks.attention_sweep -model smollm2-135m
    python -m benchmarks.attention_sweep -model gpt2-small-sized      # random weights, the size of GPT-2 small

Both ways run the same interventions, the indirect effects of one WinoBias-like example of our own.
"""

from benchmarks import compare, load, parser
from mediation.options import exit_on_bad_input


def main(options):
    """All sets of heads, both ways."""
    import torch

    from experiment import Intervention
    from mediation.attention import heads_layers_model
    from mediation.sweeps import sweep_heads

    model = load(options)
    intervention = Intervention(model.tokenizer, "The carpenter thanked the nurse because {}", ["she", "he"],
                                ["had helped in the night.", "was ill and tired."], model.device)
    with torch.no_grad():
        context, edits = model._head_edits(intervention, "indirect", heads_layers_model(model.num_layers, model.num_heads))
        print(f"{model.name}, {model.device}, {intervention.base_strings[0]!r}, candidates of {[len(ids) for ids in intervention.candidates_tok]} tokens")
        ways = [lambda full=full: sweep_heads(model.model, model.parts, context, intervention.candidates_tok, edits, options.batch_size, full)
                for full in (True, False)]
        compare(("one full pass a head", ways[0]), ("descent", ways[1]), len(edits), options.rounds)


if __name__ == "__main__":
    command_line = parser(__doc__)
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)
