"""The interventions by TransformerLens: hooks at its hook points, in its TransformerBridge over the folder's model.

    python benchmarks/peers/transformer_lens_way.py TASK.npz batched          # 64 rows a run, each with an intervention of its own
    python benchmarks/peers/transformer_lens_way.py TASK.npz one_run_a_cell   # run_with_hooks for each unit, as its tutorials do
    python benchmarks/peers/transformer_lens_way.py TASK.npz heads_batched
    python benchmarks/peers/transformer_lens_way.py TASK.npz heads_one_run_a_cell

Prints what `worker` says. `start_at_layer` is not used: since version 4 the blocks before it are run all the same.
"""

import torch
from transformer_lens.model_bridge import TransformerBridge
from worker import batches, continuation, continuation_runs, edits_by_layer, last_token, serve


def load(task):
    """Weights as they are in the folder; eager attention, as the bridge always has it."""
    return TransformerBridge.boot_transformers(task.model, device="cpu")


def hook_name(layer):
    """Where a neuron's layer comes out."""
    return "embed.hook_out" if layer == 0 else f"blocks.{layer - 1}.hook_mlp_out"


def set_neurons(rows, position, neurons, values):
    """A hook that sets one neuron in each of the rows."""
    def hook(output, hook):
        output = output.clone()
        output[rows, position, neurons] = values
        return output
    return hook


def batched(model, task):
    """One row a neuron; logits of the last position only, by the library model's own option."""
    pieces = []
    for some in batches(len(task.layers)):
        layers = task.layers[some]
        hooks = [(hook_name(layer), set_neurons(rows, task.position, neurons, values))
                 for layer, rows, neurons, values in edits_by_layer(layers, task.neurons[some], task.values[some])]
        logits = model.run_with_hooks(task.tokens.expand(len(layers), -1), fwd_hooks=hooks, use_cache=False, logits_to_keep=1)
        pieces.append(last_token(logits, task.candidates))
    return torch.cat(pieces)


def one_run_a_cell(model, task):
    """One run a neuron, nothing but defaults."""
    pieces = []
    for layer, neuron, value in zip(task.layers.tolist(), task.neurons, task.values):
        logits = model.run_with_hooks(task.tokens.unsqueeze(0), fwd_hooks=[(hook_name(layer), set_neurons(0, task.position, neuron, value))])
        pieces.append(last_token(logits, task.candidates))
    return torch.cat(pieces)


def set_heads(rows, heads, weights):
    """A hook that sets the context's square of one head's pattern in each of the rows; weights [n, T, T]."""
    length = weights.shape[-1]

    def hook(pattern, hook):
        pattern = pattern.clone()
        pattern[rows, heads, :length, :length] = weights
        return pattern
    return hook


def heads_batched(model, task):
    """One row a head, for both continuations."""
    columns = []
    for tokens, ids in continuation_runs(task):
        pieces = []
        for some in batches(len(task.layers)):
            layers = task.layers[some]
            hooks = [(f"blocks.{layer}.attn.hook_pattern", set_heads(rows, heads, task.weights[layer, heads]))
                     for layer, rows, heads in edits_by_layer(layers, task.heads[some])]
            logits = model.run_with_hooks(tokens.expand(len(layers), -1), fwd_hooks=hooks, use_cache=False, logits_to_keep=len(ids))
            pieces.append(continuation(logits, ids))
        columns.append(torch.cat(pieces))
    return torch.stack(columns, dim=1)


def heads_one_run_a_cell(model, task):
    """One run a head and continuation, nothing but defaults."""
    columns = []
    for tokens, ids in continuation_runs(task):
        pieces = []
        for layer, head in zip(task.layers.tolist(), task.heads.tolist()):
            hooks = [(f"blocks.{layer}.attn.hook_pattern", set_heads(0, head, task.weights[layer, head]))]
            pieces.append(continuation(model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -len(ids):], ids))
        columns.append(torch.cat(pieces))
    return torch.stack(columns, dim=1)


if __name__ == "__main__":
    serve(("transformer-lens", "transformers"), load, {function.__name__: function for function in (
        batched, one_run_a_cell, heads_batched, heads_one_run_a_cell)})
