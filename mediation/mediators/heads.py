"""Attention interventions: which heads' weights are replaced (`HeadEdits`), and two ways to run them.

Symbols in shapes: B batch (interventions), L attention layers, H heads, T context tokens, R = T - first
context rows that can differ.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mediation.model.architectures import Parts
from mediation.model.attention import Change


@dataclass(frozen=True)
class HeadEdits:
    """B interventions, each on a set of heads of the whole model.

    `chosen`: heads whose weights are replaced; `weights`: by these; `first`: rows before it are equal in both
    runs and are not touched.
    """

    chosen: Bool[Tensor, "B L H"]
    weights: Float[Tensor, "L H T T"]
    first: int

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows: slice | Int[Tensor, " _"]) -> "HeadEdits":
        return HeadEdits(self.chosen[rows], self.weights, self.first)


def heads_layers_model(layers: int, heads: int) -> Bool[Tensor, "{layers*heads+layers+1} {layers} {heads}"]:
    """The sets of the study: every head alone, every attention layer's heads together, all of the model."""
    single = torch.eye(layers * heads, dtype=torch.bool).reshape(-1, layers, heads)
    whole_layers = torch.eye(layers, dtype=torch.bool).unsqueeze(2).expand(-1, -1, heads)
    return torch.cat([single, whole_layers, torch.ones(1, layers, heads, dtype=torch.bool)])


def heads_layers_and_whole(values: Any, layers: int, heads: int) -> tuple:
    """Numbers of the sets of `heads_layers_model` (array or tensor) in their parts: [L, H], [L] and one."""
    return values[: layers * heads].reshape(layers, heads), values[layers * heads: -1], values[-1].item()


def shift(edits: HeadEdits, layer: int) -> Change:
    """Change of resumed rows, which begin at position `edits.first`.

    The difference of the weights times the run's values is added: a head that is given the weights that it
    has anyway is shifted by exactly 0.
    """
    rows, heads = edits.chosen[:, layer].nonzero(as_tuple=True)
    length = edits.weights.shape[-1]  # T
    new = edits.weights[layer, :, edits.first:][heads]  # [n, R, T]
    count = new.shape[1]

    def change(output, weights, values):
        groups = output.shape[2] // values.shape[1]  # heads that share keys and values
        row, head, put_in = (part.to(output.device) for part in (rows, heads, new))
        difference = put_in - weights[row, head, :count, :length]
        output[row, :count, head] += difference @ values[row, head // groups, :length]
        return output

    return change


def replacements(parts: Parts, edits: HeadEdits) -> dict[nn.Module, Change]:
    """Changes of a full pass, the plain way."""
    return {module: replacement(edits, layer) for layer, module in enumerate(parts.attentions)
            if module is not None}


def replacement(edits: HeadEdits, layer: int) -> Change:
    """Change of full passes, the plain way.

    The context's square of weights is replaced, and the output computed again.
    """
    rows, heads = edits.chosen[:, layer].nonzero(as_tuple=True)
    length, put_in = edits.weights.shape[-1], edits.weights[layer, heads]

    def change(output, weights, values):
        groups = output.shape[2] // values.shape[1]
        row, head = rows.to(output.device), heads.to(output.device)
        new = weights[row, head]  # [n, tokens, keys]
        new[:, :length, :length] = put_in.to(output.device)
        output[row, :, head] = new @ values[row, head // groups]
        return output

    return change
