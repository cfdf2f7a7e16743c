"""The interventions by pyvene: one IntervenableModel with a function at every layer, on a batch of prompts.

    python benchmarks/peers/pyvene_way.py TASK.npz batched      # 64 rows a run, each with an intervention of its own

Prints what `worker` says. There is no way for heads: pyvene changes what goes into or comes out of a module, and by default
attention weights pass through none.
"""

import pyvene
import torch
from transformers import AutoModelForCausalLM
from worker import batches, edits_by_layer, last_token, serve


def load(task):
    """(IntervenableModel, dictionary {layer: (rows, neurons, values)} of the batch, which its functions look into)."""
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
    places = [{"component": embedding}, *({"component": "mlp_output", "layer": block} for block in range(model.config.num_hidden_layers))]
    return pyvene.IntervenableModel([place | {"intervention": set_neurons(layer)} for layer, place in enumerate(places)], model), edits


def batched(loaded, task):
    """One row a neuron; logits of the last position only, by the library model's own option."""
    model, edits = loaded
    pieces = []
    for some in batches(len(task.layers)):
        layers = task.layers[some]
        edits.clear()
        edits.update({layer: rest for layer, *rest in edits_by_layer(layers, task.neurons[some], task.values[some])})
        base = {"input_ids": task.tokens.expand(len(layers), -1), "logits_to_keep": 1}
        _, changed = model(base, unit_locations={"base": task.position.item()}, use_cache=False)
        pieces.append(last_token(changed.logits, task.candidates))
    return torch.cat(pieces)


if __name__ == "__main__":
    serve(("pyvene", "transformers"), load, {"batched": batched})
