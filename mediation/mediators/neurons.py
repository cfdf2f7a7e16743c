"""Neuron interventions: what is changed (`NeuronEdits`), and the plain way to run it (`edited`).

The plain way is the reference for every fast one. Layers count as in every written table: 0 the output of the
word embedding, i >= 1 the MLP output of block i - 1.

Symbols in shapes: B batch (interventions), K neurons of a set, P positions, T tokens, D neurons per layer,
`layers` = L + 1: the word embedding and L blocks; M edits of one layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mediation.model.architectures import Parts
from mediation.model.forward import first_tensor

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

    `values`: what each neuron is set to, or with `add` what is added to it; `position`: the token where that
    is done, or with `offsets` (from 0 on) the first one: each neuron is changed at position + offset.
    A neuron named twice in a row is changed once.
    """

    layers: Int[Tensor, "B K"]
    neurons: Int[Tensor, "B K"]
    values: Float[Tensor, "B K"]
    position: int
    add: bool = False
    offsets: Int[Tensor, "B K"] | None = None

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, rows: slice | Int[Tensor, " _"]) -> "NeuronEdits":
        return NeuronEdits(self.layers[rows], self.neurons[rows], self.values[rows], self.position, self.add,
                           None if self.offsets is None else self.offsets[rows])

    @property
    def width(self) -> int:
        """Positions from the first changed one to one past the last."""
        return 1 if self.offsets is None else int(self.offsets.max()) + 1

    def at(self, layer: int) -> tuple[Int[Tensor, "M"], Int[Tensor, "M"], Int[Tensor, "M"],
                                      Float[Tensor, "M"]]:
        """Rows, offsets, neurons and values of the edits in one layer."""
        rows, members = (self.layers == layer).nonzero(as_tuple=True)
        offsets = torch.zeros_like(rows) if self.offsets is None else self.offsets[rows, members]
        return rows, offsets, self.neurons[rows, members], self.values[rows, members]

    def sets(self, units: Int[Tensor, "sets members"]) -> "NeuronEdits":
        """One intervention per row of `units`: on what the rows of these edits that it names change."""
        parts = self.layers, self.neurons, self.values
        layers, neurons, values = (part[units].flatten(1) for part in parts)
        offsets = None if self.offsets is None else self.offsets[units].flatten(1)
        return NeuronEdits(layers, neurons, values, self.position, self.add, offsets)


def single_neuron_edits(values: Float[Tensor, "layers D"] | Float[Tensor, "P layers D"],
                        position: int | Sequence[int], add: bool = False) -> NeuronEdits:
    """One intervention per neuron of the whole model, layer by layer: (L + 1) x D rows.

    Args:
        position: where `values` are put in, or the P positions, ascending, that are changed together.
    """
    positions = [position] if isinstance(position, int) else list(position)
    values = values.reshape(len(positions), *values.shape[-2:])
    counts = (torch.arange(count, device=values.device) for count in values.shape[1:])
    layers, neurons = torch.meshgrid(*counts, indexing="ij")
    offsets = None
    if len(positions) > 1:
        from_first = [place - positions[0] for place in positions]
        offsets = torch.tensor(from_first, device=values.device).expand(layers.numel(), -1)
    layers, neurons = (part.reshape(-1, 1).expand(-1, len(positions)) for part in (layers, neurons))
    return NeuronEdits(layers, neurons, values.flatten(1).T, positions[0], add, offsets)


def change(outputs: Float[Tensor, "B T D"], position: int, edits: NeuronEdits, layer: int) -> None:
    """Write the edits of one layer into a module's outputs, in place.

    The edits' first position has index `position` there.
    """
    rows, offsets, neurons, values = (part.to(outputs.device) for part in edits.at(layer))
    places = rows, position + offsets, neurons
    outputs[places] = outputs[places] + values if edits.add else values


def writing(position: int, edits: NeuronEdits, layer: int) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
    """Forward hook that writes the edits of one layer into a copy of its module's output; as `change`."""
    def write(_module, _inputs, output):
        copy = first_tensor(output).clone()
        # some blocks give their MLP rows and tokens in one
        change(copy.view(len(edits), -1, copy.shape[-1]), position, edits, layer)
        return type(output)([copy, *output[1:]]) if isinstance(output, (tuple, list)) else copy
    return write


@contextmanager
def edited(parts: Parts, edits: NeuronEdits) -> Iterator[None]:
    """While open, a full forward pass over B equal prompts runs under the B interventions.

    Plain hooks, nothing else.

    >>> with edited(parts, edits):
    ...     logits = model(tokens.expand(len(edits), -1)).logits
    """
    modules = {0: parts.embedding} | {i + 1: mlp for i, mlp in enumerate(parts.mlps)}
    handles = [modules[layer].register_forward_hook(writing(edits.position, edits, layer))
               for layer in edits.layers.unique().tolist()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
