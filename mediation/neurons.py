"""Neuron interventions: what is changed (`NeuronEdits`), and the plain way to run it (`edited`), the reference for every fast one.

Layers count as in every written table: 0 the output of the word embedding, i >= 1 the MLP output of block i - 1.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NeuronEdits:
    """B interventions, each on a set of K neurons at one token position.

    `layers`, `neurons`: int64 [B, K]; `values` [B, K]: what each neuron is set to, or with `add` what is added to it.
    A neuron named twice in a row is changed once.
    """

    layers: torch.Tensor
    neurons: torch.Tensor
    values: torch.Tensor
    position: int
    add: bool = False

    def __len__(self):
        return len(self.layers)

    def __getitem__(self, rows):
        return NeuronEdits(self.layers[rows], self.neurons[rows], self.values[rows], self.position, self.add)

    def at(self, layer):
        """(rows, neurons, values) of the edits in one layer, three vectors of equal length."""
        rows, members = (self.layers == layer).nonzero(as_tuple=True)
        return rows, self.neurons[rows, members], self.values[rows, members]


def single_neuron_edits(values, position, add=False):
    """One intervention a neuron of the whole model: `values` [L + 1, D] -> NeuronEdits of (L + 1) x D rows, layer by layer."""
    layers, neurons = torch.meshgrid(*(torch.arange(n, device=values.device) for n in values.shape), indexing="ij")
    return NeuronEdits(layers.reshape(-1, 1), neurons.reshape(-1, 1), values.reshape(-1, 1), position, add)


def change(outputs, position, edits, layer):
    """Write the edits of one layer into a module's outputs [B, tokens, D], in place, at index `position` of the token axis."""
    rows, neurons, values = edits.at(layer)
    outputs[rows, position, neurons] = outputs[rows, position, neurons] + values if edits.add else values


@contextmanager
def edited(parts, edits):
    """While open, a full forward pass over B equal prompts runs under the B interventions: plain hooks, nothing else.

    >>> with edited(parts, edits):
    ...     logits = model(tokens.expand(len(edits), -1)).logits
    """

    def hook(layer):
        def write(_module, _inputs, output):
            output = output.clone()
            change(output, edits.position, edits, layer)
            return output
        return write

    modules = {0: parts.embedding} | {i + 1: mlp for i, mlp in enumerate(parts.mlps)}
    handles = [modules[layer].register_forward_hook(hook(layer)) for layer in edits.layers.unique().tolist()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
