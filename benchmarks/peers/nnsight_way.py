"""The interventions by nnsight: a trace over the folder's model.

    python benchmarks/peers/nnsight_way.py TASK.npz batched     # 64 rows per trace, each with its
    intervention python benchmarks/peers/nnsight_way.py TASK.npz invokes     # 64 invokes per trace, as its
    documentation does python benchmarks/peers/nnsight_way.py TASK.npz heads_batched
    python benchmarks/peers/nnsight_way.py TASK.npz heads_invokes

Prints the lines that `worker` describes. Attention weights are reached by its source tracing into the
library's eager attention; neurons run with the library's default attention, which is faster.
"""

import nnsight
import torch
from worker import batches, continuation, continuation_runs, edits_by_layer, last_token, serve


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


if __name__ == "__main__":
    ways = batched, invokes, heads_batched, heads_invokes
    serve(("nnsight", "transformers"), load, {way.__name__: way for way in ways})
