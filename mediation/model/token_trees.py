"""Prompts and their continuations as one sequence of tokens, in which what they share stands once.

Symbols in shapes: T tokens, which are the nodes of a tree.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Prediction = tuple[Sequence[int], Sequence[int]]  # positions, and the tokens that are predicted at them


@dataclass(frozen=True)
class Tree:
    """Sequences of tokens that share their beginnings, as one sequence of T nodes.

    Each node sees itself and what leads to it. `visible`: the row's node sees the column's; None, as
    `position_ids`, where the model's own are meant.
    `predictions`: which tokens are predicted at which nodes.
    """

    tokens: Int[Tensor, "T"]
    position_ids: Int[Tensor, "T"] | None
    visible: Bool[Tensor, "T T"] | None
    predictions: tuple[Prediction, ...]

    def has_shape_of(self, other: "Tree") -> bool:
        """Whether their nodes lie alike, whatever the tokens."""
        if len(self.tokens) != len(other.tokens) or (self.visible is None) != (other.visible is None):
            return False
        return self.visible is None or other.visible is None or torch.equal(self.visible, other.visible)


def _grow(sequences, device):
    """The tree of token sequences, nodes in the order in which they first come; and each sequence's nodes.

    Returns: (tokens, position_ids, visible) of a Tree; for each sequence the indices of its nodes.
    """
    # a node is what leads to it, its own token last: sequences that begin alike share their first nodes
    nodes: dict[tuple[int, ...], int] = {}
    paths = []
    for sequence in sequences:
        beginnings = [tuple(sequence[:end]) for end in range(1, len(sequence) + 1)]
        paths.append([nodes.setdefault(beginning, len(nodes)) for beginning in beginnings])
    visible = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    for path in paths:
        for depth, node in enumerate(path):
            visible[node, path[: depth + 1]] = True
    of_nodes = [[beginning[-1], len(beginning) - 1] for beginning in nodes]
    tokens, depths = torch.tensor(of_nodes, device=device).unbind(dim=1)
    return (tokens, depths, visible.to(device)), paths


def pack(
    prompts: Iterable[Sequence[int]], candidates: Sequence[Sequence[int]], device: torch.device | str,
) -> Tree:
    """Tree of prompts (token ids) and their continuations by `candidates` (token ids, none empty).

    Predictions come prompt by prompt, candidate by candidate.
    """
    return pack_pairs([(prompt, candidate) for prompt in prompts for candidate in candidates], device)


def pack_pairs(pairs: Sequence[Prediction], device: torch.device | str) -> Tree:
    """Tree of pairs of a prompt and a candidate behind it; predictions in their order."""
    # a candidate's last token predicts nothing that is asked for, and is left out
    tree, paths = _grow([[*prompt, *candidate[:-1]] for prompt, candidate in pairs], device)
    tokens, position_ids, visible = tree
    predictions = tuple((path[len(prompt) - 1:], candidate)
                        for path, (prompt, candidate) in zip(paths, pairs))
    return Tree(tokens, position_ids, visible, predictions)
