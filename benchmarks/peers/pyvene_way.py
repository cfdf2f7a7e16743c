"""The interventions by pyvene: one IntervenableModel with a function at every layer, on a batch of prompts.

    python benchmarks/peers/pyvene_way.py TASK.npz batched      # 64 rows per run, one intervention each

Prints the lines that `worker` describes. There is no way for heads: pyvene changes what goes into or comes
out of a module, and by default attention weights pass through none.
"""

import pyvene
import torch
from transformers import AutoModelForCausalLM
from worker import batches, edits_by_layer, last_token, serve


def load(task):
    """(IntervenableModel, {layer: (rows, neurons, values)} of the batch, which its functions look into)."""
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    edits = {}

    def set_neurons(layer):
        def function(outputs, _source):  # [B, 1, D], the outputs at the position
            if layer in edits:
                rows, neurons, values = edits[layer]
                outputs[rows, 0, neurons] = values
            return outputs
        return function

    embedding = "transformer.wte.output" if model.config.model_type == "gpt2" else "model.embed_tokens.output"
    blocks = range(model.config.num_hidden_layers)
    places = [{"component": embedding}, *({"component": "mlp_output", "layer": block} for block in blocks)]
    sites = [place | {"intervention": set_neurons(layer)} for layer, place in enumerate(places)]
    return pyvene.IntervenableModel(sites, model), edits


def batched(loaded, task):
    """One row per neuron; logits of the last position only, by the library model's own option."""
    model, edits = loaded
    pieces = []
    for part in batches(len(task.layers)):
        layers = task.layers[part]
        edits.clear()
        by_layer = edits_by_layer(layers, task.neurons[part], task.values[part])
        edits.update({layer: columns for layer, *columns in by_layer})
        base = {"input_ids": task.tokens.expand(len(layers), -1), "logits_to_keep": 1}
        _, changed = model(base, unit_locations={"base": task.position.item()}, use_cache=False)
        pieces.append(last_token(changed.logits, task.candidates))
    return torch.cat(pieces)


if __name__ == "__main__":
    serve(("pyvene", "transformers"), load, {"batched": batched})
