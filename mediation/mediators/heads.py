"""Attention interventions: which heads' weights are replaced (`HeadEdits`), and the two ways in which a run takes them.

Shapes: B batch (interventions), L layers, H heads, T context tokens, R = T - first context rows that can differ.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class HeadEdits:
    """B interventions, each on a set of heads of the whole model.

    `chosen` bool [B, L, H]: heads whose weights are replaced; `weights` [L, H, T, T]: by these; `first`: rows before it are equal
    in both runs and are not touched.
    """

    chosen: torch.Tensor
    weights: torch.Tensor
    first: int

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, rows):
        return HeadEdits(self.chosen[rows], self.weights, self.first)


def heads_layers_model(layers, heads):
    """The sets of the study, bool [L x H + L + 1, L, H]: every head alone, every layer's heads together, all heads of the model."""
    single = torch.eye(layers * heads, dtype=torch.bool).reshape(-1, layers, heads)
    whole_layers = torch.eye(layers, dtype=torch.bool).unsqueeze(2).expand(-1, -1, heads)
    return torch.cat([single, whole_layers, torch.ones(1, layers, heads, dtype=torch.bool)])


def shift(edits, layer):
    """Override for resumed rows, which begin at position `edits.first`: the difference of the weights times the run's values is added.

    A head that is given the weights it has anyway is shifted by exactly 0.
    """
    rows, heads = edits.chosen[:, layer].nonzero(as_tuple=True)
    length = edits.weights.shape[-1]  # T
    new = edits.weights[layer, :, edits.first:]  # [H, R, T]

    def change(output, weights, values):
        groups = output.shape[2] // values.shape[1]  # heads that share keys and values
        difference = new[heads] - weights[rows, heads, : new.shape[1], :length]  # [n, R, T]
        output[rows, : new.shape[1], heads] += difference @ values[rows, heads // groups, :length]
        return output

    return change


def replacement(edits, layer):
    """Override for full passes, the plain way: the context's square of weights is replaced, and the output computed again."""
    rows, heads = edits.chosen[:, layer].nonzero(as_tuple=True)
    length = edits.weights.shape[-1]

    def change(output, weights, values):
        groups = output.shape[2] // values.shape[1]
        replaced = weights[rows, heads]  # [n, tokens, keys]
        replaced[:, :length, :length] = edits.weights[layer, heads]
        output[rows, :, heads] = replaced @ values[rows, heads // groups]
        return output

    return change
