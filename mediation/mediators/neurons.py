"""Neuron interventions: what is changed (`NeuronEdits`), and the plain way to run it (`edited`), the reference for every fast one.

Layers count as in every written table: 0 the output of the word embedding, i >= 1 the MLP output of block i - 1.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

NULL, MAN, WOMAN = 0, 1, 2  # indices of a stimulus' prompts


class InterventionType(NamedTuple):
    """Which of a stimulus' prompts does what.

    `run_on`: index of the prompt that is run; `values_of`: of the prompt whose values are put into its
    neurons; `minus`: of the prompt whose values are subtracted from these before they are added to the
    neurons' own. None: they replace the neurons' own.
    """

    run_on: int
    values_of: int
    minus: int | None = None


INTERVENTION_TYPES = {
    "man_direct": InterventionType(run_on=MAN, values_of=NULL),
    "man_indirect": InterventionType(run_on=NULL, values_of=MAN),
    "woman_direct": InterventionType(run_on=WOMAN, values_of=NULL),
    "woman_indirect": InterventionType(run_on=NULL, values_of=WOMAN),
    "man_minus_woman": InterventionType(run_on=NULL, values_of=MAN, minus=WOMAN),
    "woman_minus_man": InterventionType(run_on=NULL, values_of=WOMAN, minus=MAN),
    "direct": InterventionType(run_on=1, values_of=NULL),  # these two of stimuli with one alternative
    "indirect": InterventionType(run_on=NULL, values_of=1),
}


@dataclass(frozen=True)
class NeuronEdits:
    """B interventions, each on a set of K neurons.

    `layers`, `neurons`: int64 [B, K]; `values` [B, K]: what each neuron is set to, or with `add` what is added to it; `position`: the token
    where that is done, or with `offsets` (int64 [B, K], from 0 on) the first one: each neuron is changed at position + offset.
    A neuron named twice in a row is changed once.
    """

    layers: torch.Tensor
    neurons: torch.Tensor
    values: torch.Tensor
    position: int
    add: bool = False
    offsets: torch.Tensor | None = None

    def __len__(self):
        return len(self.layers)

    def __getitem__(self, rows):
        return NeuronEdits(self.layers[rows], self.neurons[rows], self.values[rows], self.position, self.add,
                           None if self.offsets is None else self.offsets[rows])

    @property
    def width(self):
        """Positions from the first changed one to one past the last."""
        return 1 if self.offsets is None else int(self.offsets.max()) + 1

    def at(self, layer):
        """(rows, offsets, neurons, values) of the edits in one layer, vectors of equal length."""
        rows, members = (self.layers == layer).nonzero(as_tuple=True)
        offsets = torch.zeros_like(rows) if self.offsets is None else self.offsets[rows, members]
        return rows, offsets, self.neurons[rows, members], self.values[rows, members]

    def sets(self, units):
        """Interventions on sets of these rows together: units int64 [B, K] -> NeuronEdits of B rows."""
        layers, neurons, values = (part[units].flatten(1) for part in (self.layers, self.neurons, self.values))
        return NeuronEdits(layers, neurons, values, self.position, self.add, None if self.offsets is None else self.offsets[units].flatten(1))


def single_neuron_edits(values, position, add=False):
    """One intervention a neuron of the whole model, layer by layer: NeuronEdits of (L + 1) x D rows.

    Args:
        values: [L + 1, D] at one position (a number), or [P, L + 1, D] at P positions (a list, ascending) that are changed together.
    """
    positions = [position] if isinstance(position, int) else list(position)
    values = values.reshape(len(positions), *values.shape[-2:])
    layers, neurons = torch.meshgrid(*(torch.arange(n, device=values.device) for n in values.shape[1:]), indexing="ij")
    offsets = None
    if len(positions) > 1:
        offsets = torch.tensor([place - positions[0] for place in positions], device=values.device).expand(layers.numel(), -1)
    return NeuronEdits(*(part.reshape(-1, 1).expand(-1, len(positions)) for part in (layers, neurons)), values.flatten(1).T, positions[0], add, offsets)


def change(outputs, position, edits, layer):
    """Write the edits of one layer into a module's outputs [B, tokens, D], in place; the edits' first position has index `position` there."""
    rows, offsets, neurons, values = edits.at(layer)
    outputs[rows, position + offsets, neurons] = outputs[rows, position + offsets, neurons] + values if edits.add else values


def writing(position, edits, layer):
    """Forward hook that writes the edits of one layer into the output of its module, on a copy; as `change`."""
    def write(_module, _inputs, output):
        changed = output.clone()
        change(changed.view(len(edits), -1, changed.shape[-1]), position, edits, layer)  # some blocks give their MLP rows and tokens in one
        return changed
    return write


@contextmanager
def edited(parts, edits):
    """While open, a full forward pass over B equal prompts runs under the B interventions: plain hooks, nothing else.

    >>> with edited(parts, edits):
    ...     logits = model(tokens.expand(len(edits), -1)).logits
    """
    modules = {0: parts.embedding} | {i + 1: mlp for i, mlp in enumerate(parts.mlps)}
    handles = [modules[layer].register_forward_hook(writing(edits.position, edits, layer)) for layer in edits.layers.unique().tolist()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
