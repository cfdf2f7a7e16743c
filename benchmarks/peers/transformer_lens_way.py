"""The interventions by TransformerLens: hooks at its TransformerBridge's hook points.

    # 64 rows per run, one intervention each
    python benchmarks/peers/transformer_lens_way.py TASK.npz batched
    # one run per unit, as in its tutorials
    python benchmarks/peers/transformer_lens_way.py TASK.npz one_run_a_cell

The ways for heads are heads_batched and heads_one_run_a_cell, for maps maps_batched and maps_one_run_a_cell.
Prints the lines that `worker` describes. `start_at_layer` is not used: since version 4 the blocks before it
are run all the same.
"""

import torch
from transformer_lens.model_bridge import TransformerBridge
from worker import (
    batches,
    cells_of,
    continuation,
    continuation_runs,
    edits_by_layer,
    last_token,
    put,
    serve,
)


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


IN_ATTENTION = {"attentions": "hook_out", "head_outputs": "hook_z", "values": "hook_v"}


def site_name(model, of_map, layer):
    """The hook point of a layer of a map."""
    if of_map == "mlps":
        return hook_name(layer)
    if of_map == "residuals":
        behind = layer == model.cfg.n_layers
        return f"blocks.{layer - 1}.hook_out" if behind else f"blocks.{layer}.hook_in"
    return f"blocks.{layer}.attn.{IN_ATTENTION[of_map]}"


def run_both(model, task):
    """(log-probabilities of the null prompt's run [1, 2], what the map's sites are in the alternative's).

    By its own cache, of these sites only.
    """
    null = model(task.tokens.unsqueeze(0))
    names = {layer: site_name(model, task.map, layer) for layer in cells_of(task)[0].unique().tolist()}
    _, cache = model.run_with_cache(task.other.unsqueeze(0), names_filter=list(names.values()))
    return last_token(null, task.candidates), {layer: cache[name] for layer, name in names.items()}


def put_cells(rows, units, positions, source):
    """A hook that puts the alternative's value into a unit of each of the rows."""
    def hook(output, hook):
        output = output.clone()
        wide = output.unsqueeze(2) if output.dim() == 3 else output  # whole modules are one unit
        put(wide, rows, units, positions, source.view(1, *wide.shape[1:]))
        return output
    return hook


def maps_batched(model, task):
    """One row per cell, but for cells before the prompts differ, which change nothing."""
    layers, units, positions = cells_of(task)
    null, sources = run_both(model, task)
    result = null.repeat(len(layers), 1)
    changed = ((positions < 0) | (positions >= task.first)).nonzero().squeeze(1)
    for part in batches(len(changed)):
        cells = changed[part]
        hooks = [(site_name(model, task.map, layer), put_cells(rows, of_rows, places, sources[layer]))
                 for layer, rows, of_rows, places in edits_by_layer(layers[cells], units[cells],
                                                                    positions[cells])]
        logits = model.run_with_hooks(task.tokens.expand(len(cells), -1), fwd_hooks=hooks, use_cache=False,
                                      logits_to_keep=1)
        result[cells] = last_token(logits, task.candidates)
    return result


def maps_one_run_a_cell(model, task):
    """One run per cell, nothing but defaults."""
    _, sources = run_both(model, task)
    pieces = []
    for layer, unit, position in zip(*(column.tolist() for column in cells_of(task))):
        hook = put_cells(torch.tensor([0]), torch.tensor([unit]), torch.tensor([position]), sources[layer])
        logits = model.run_with_hooks(task.tokens.unsqueeze(0),
                                      fwd_hooks=[(site_name(model, task.map, layer), hook)])
        pieces.append(last_token(logits, task.candidates))
    return torch.cat(pieces)


if __name__ == "__main__":
    ways = (batched, one_run_a_cell, heads_batched, heads_one_run_a_cell, maps_batched,
            maps_one_run_a_cell)
    serve(("transformer-lens", "transformers"), load, {way.__name__: way for way in ways})
