"""The interventions by nnsight: a trace over the folder's model.

    # 64 rows per trace, each with its intervention
    python benchmarks/peers/nnsight_way.py TASK.npz batched
    # 64 invokes per trace, as its documentation does
    python benchmarks/peers/nnsight_way.py TASK.npz invokes

The ways for heads are heads_batched and heads_invokes; for maps maps_batched, maps_invokes and
maps_one_run_a_cell, a trace per cell. Prints the lines that `worker` describes. Attention weights are reached
by its source tracing into the library's eager attention; all else runs with the library's default attention,
which is faster.
"""

import nnsight
import torch
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
    """The model as nnsight wraps it; the task is named because it cannot be guessed without a hub."""
    attention = {"attn_implementation": "eager"} if hasattr(task, "heads") else {}
    return nnsight.TransformersModel(task.model, task="text-generation", dispatch=True, dtype=torch.float32,
                                     **attention)


def layers_of(model):
    """Modules whose outputs are the neurons' layers: the word embedding, and each block's MLP."""
    if model.config.model_type == "gpt2":
        return [model.transformer.wte, *(block.mlp for block in model.transformer.h)]
    return [model.model.embed_tokens, *(block.mlp for block in model.model.layers)]


def attentions_of(model):
    """Each block's attention module."""
    if model.config.model_type == "gpt2":
        return [block.attn for block in model.transformer.h]
    return [block.self_attn for block in model.model.layers]


def batched(model, task):
    """One row per neuron; logits of the last position only."""
    modules, pieces = layers_of(model), []
    for part in batches(len(task.layers)):
        layers = task.layers[part]
        with model.trace(task.tokens.expand(len(layers), -1), use_cache=False, logits_to_keep=1):
            for layer, rows, neurons, values in edits_by_layer(layers, task.neurons[part], task.values[part]):
                modules[layer].output[rows, task.position, neurons] = values
            logits = model.lm_head.output.save()
        pieces.append(last_token(logits, task.candidates))
    return torch.cat(pieces)


def invokes(model, task):
    """One invoke per neuron."""
    modules, pieces = layers_of(model), []
    for part in batches(len(task.layers)):
        edits = list(zip(task.layers[part].tolist(), task.neurons[part], task.values[part]))
        with model.trace(use_cache=False, logits_to_keep=1) as tracer:
            logits = nnsight.save([])
            for layer, neuron, value in edits:
                with tracer.invoke(task.tokens.unsqueeze(0)):
                    modules[layer].output[:, task.position, neuron] = value
                    logits.append(model.lm_head.output)
        pieces.append(last_token(torch.cat(logits), task.candidates))
    return torch.cat(pieces)


def heads_batched(model, task):
    """One row per head, for both continuations."""
    modules, columns, length = attentions_of(model), [], len(task.tokens)
    for tokens, ids in continuation_runs(task):
        pieces = []
        for part in batches(len(task.layers)):
            layers = task.layers[part]
            with model.trace(tokens.expand(len(layers), -1), use_cache=False, logits_to_keep=len(ids)):
                for layer, rows, heads in edits_by_layer(layers, task.heads[part]):
                    # the dropout of an evaluation hands the weights on as they are: the values are weighted
                    # by its output
                    weights = (modules[layer].source.attention_interface_1
                               .source.nn_functional_dropout_0.output)
                    weights[rows, heads, :length, :length] = task.weights[layer, heads]
                logits = model.lm_head.output.save()
            pieces.append(continuation(logits, ids))
        columns.append(torch.cat(pieces))
    return torch.stack(columns, dim=1)


def heads_invokes(model, task):
    """One invoke per head, for both continuations."""
    modules, columns, length = attentions_of(model), [], len(task.tokens)
    for tokens, ids in continuation_runs(task):
        pieces = []
        for part in batches(len(task.layers)):
            with model.trace(use_cache=False, logits_to_keep=len(ids)) as tracer:
                logits = nnsight.save([])
                for layer, head in zip(task.layers[part].tolist(), task.heads[part].tolist()):
                    with tracer.invoke(tokens):
                        weights = (modules[layer].source.attention_interface_1
                                   .source.nn_functional_dropout_0.output)
                        weights[:, head, :length, :length] = task.weights[layer, head]
                        logits.append(model.lm_head.output)
            pieces.append(continuation(torch.cat(logits), ids))
        columns.append(torch.cat(pieces))
    return torch.stack(columns, dim=1)


def site_of(model, of_map, layer):
    """(module, whether its input is meant, units) of a layer of a map; models with the modules of Llama."""
    blocks, config = model.model.layers, model.config
    if of_map == "residuals":
        behind = layer == config.num_hidden_layers
        return blocks[layer - 1 if behind else layer], not behind, 1
    if of_map == "mlps":
        return layers_of(model)[layer], False, 1
    attention = blocks[layer].self_attn
    if of_map == "values":
        return attention.v_proj, False, config.num_key_value_heads
    if of_map == "head_outputs":
        return attention.o_proj, True, config.num_attention_heads
    return attention.o_proj, False, 1


def values_at(module, at_input, units):
    """The site's values [B, T, U, numbers], to be changed in place."""
    return (module.input if at_input else module.output).unflatten(-1, (units, -1))


def run_both(model, task):
    """(log-probabilities of the null prompt's run [1, 2], what the map's sites are in the alternative's)."""
    with model.trace(task.tokens.unsqueeze(0), use_cache=False):
        logits = model.lm_head.output.save()
    with model.trace(task.other.unsqueeze(0), use_cache=False):
        sources = nnsight.save({})
        for layer in cells_of(task)[0].unique().tolist():
            sources[layer] = values_at(*site_of(model, task.map, layer)).clone()
    return last_token(logits, task.candidates), sources


def maps_batched(model, task):
    """One row per cell, but for cells before the prompts differ, which change nothing."""
    layers, units, positions = cells_of(task)
    null, sources = run_both(model, task)
    result = null.repeat(len(layers), 1)
    changed = ((positions < 0) | (positions >= task.first)).nonzero().squeeze(1)
    for part in batches(len(changed)):
        cells = changed[part]
        with model.trace(task.tokens.expand(len(cells), -1), use_cache=False, logits_to_keep=1):
            for layer, rows, of_rows, places in edits_by_layer(layers[cells], units[cells], positions[cells]):
                put(values_at(*site_of(model, task.map, layer)), rows, of_rows, places, sources[layer])
            logits = model.lm_head.output.save()
        result[cells] = last_token(logits, task.candidates)
    return result


def maps_invokes(model, task):
    """One invoke per cell."""
    _, sources = run_both(model, task)
    cells = list(zip(*(column.tolist() for column in cells_of(task))))
    pieces, only = [], torch.tensor([0])
    for part in batches(len(cells)):
        with model.trace(use_cache=False, logits_to_keep=1) as tracer:
            logits = nnsight.save([])
            for layer, unit, position in cells[part]:
                with tracer.invoke(task.tokens.unsqueeze(0)):
                    put(values_at(*site_of(model, task.map, layer)), only, torch.tensor([unit]),
                        torch.tensor([position]), sources[layer])
                    logits.append(model.lm_head.output)
        pieces.append(last_token(torch.cat(logits), task.candidates))
    return torch.cat(pieces)


def maps_one_run_a_cell(model, task):
    """One trace per cell, nothing but defaults."""
    _, sources = run_both(model, task)
    pieces, only = [], torch.tensor([0])
    for layer, unit, position in zip(*(column.tolist() for column in cells_of(task))):
        with model.trace(task.tokens.unsqueeze(0)):
            put(values_at(*site_of(model, task.map, layer)), only, torch.tensor([unit]),
                torch.tensor([position]), sources[layer])
            logits = model.lm_head.output.save()
        pieces.append(last_token(logits, task.candidates))
    return torch.cat(pieces)


if __name__ == "__main__":
    ways = batched, invokes, heads_batched, heads_invokes, maps_batched, maps_invokes, maps_one_run_a_cell
    serve(("nnsight", "transformers"), load, {way.__name__: way for way in ways})
