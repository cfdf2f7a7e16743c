"""The interventions by TransformerLens: hooks at its TransformerBridge's hook points.

    python benchmarks/peers/transformer_lens_way.py TASK.npz batched         # 64 rows per run, one
    intervention each python benchmarks/peers/transformer_lens_way.py TASK.npz one_run_a_cell  # one run per
    unit, as in its tutorials python benchmarks/peers/transformer_lens_way.py TASK.npz heads_batched
    python benchmarks/peers/transformer_lens_way.py TASK.npz heads_one_run_a_cell

Prints the lines that `worker` describes. `start_at_layer` is not used: since version 4 the blocks before it
are run all the same.
"""

import torch
from transformer_lens.model_bridge import TransformerBridge
from worker import batches, continuation, continuation_runs, edits_by_layer, last_token, serve


def load(task):
    """Weights as they are in the folder; eager attention, as the bridge always has it."""
    return TransformerBridge.boot_transformers(task.model, device="cpu")


def hook_name(layer):
    """The hook point of a layer of neurons."""
    return "embed.hook_out" if layer == 0 else f"blocks.{layer - 1}.hook_mlp_out"


def set_neurons(rows, position, neurons, values):
    """A hook that sets one neuron in each of the rows."""
    def hook(output, hook):
        output = output.clone()
        output[rows, position, neurons] = values
        return output
    return hook


def batched(model, task):
    """One row per neuron; logits of the last position only, by the library model's own option."""
    pieces = []
    for part in batches(len(task.layers)):
        layers = task.layers[part]
        edits = edits_by_layer(layers, task.neurons[part], task.values[part])
        hooks = [(hook_name(layer), set_neurons(rows, task.position, neurons, values))
                 for layer, rows, neurons, values in edits]
        logits = model.run_with_hooks(task.tokens.expand(len(layers), -1), fwd_hooks=hooks, use_cache=False,
                                      logits_to_keep=1)
        pieces.append(last_token(logits, task.candidates))
    return torch.cat(pieces)


def one_run_a_cell(model, task):
    """One run per neuron, nothing but defaults."""
    pieces = []
    for layer, neuron, value in zip(task.layers.tolist(), task.neurons, task.values):
        hooks = [(hook_name(layer), set_neurons(0, task.position, neuron, value))]
        logits = model.run_with_hooks(task.tokens.unsqueeze(0), fwd_hooks=hooks)
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
    """One row per head, for both continuations."""
    columns = []
    for tokens, ids in continuation_runs(task):
        pieces = []
        for part in batches(len(task.layers)):
            layers = task.layers[part]
            hooks = [(f"blocks.{layer}.attn.hook_pattern", set_heads(rows, heads, task.weights[layer, heads]))
                     for layer, rows, heads in edits_by_layer(layers, task.heads[part])]
            logits = model.run_with_hooks(tokens.expand(len(layers), -1), fwd_hooks=hooks, use_cache=False,
                                          logits_to_keep=len(ids))
            pieces.append(continuation(logits, ids))
        columns.append(torch.cat(pieces))
    return torch.stack(columns, dim=1)


def heads_one_run_a_cell(model, task):
    """One run per head and continuation, nothing but defaults."""
    columns = []
    for tokens, ids in continuation_runs(task):
        pieces = []
        for layer, head in zip(task.layers.tolist(), task.heads.tolist()):
            hooks = [(f"blocks.{layer}.attn.hook_pattern", set_heads(0, head, task.weights[layer, head]))]
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -len(ids):]
            pieces.append(continuation(logits, ids))
        columns.append(torch.cat(pieces))
    return torch.stack(columns, dim=1)


if __name__ == "__main__":
    ways = batched, one_run_a_cell, heads_batched, heads_one_run_a_cell
    serve(("transformer-lens", "transformers"), load, {way.__name__: way for way in ways})
