"""Models that predict masked tokens: a candidate is scored token by token after the context, each at a mask.

Six approaches (Vig et al. 2020, NeurIPS version): 1 the context, the candidate so far and a mask; 2 the later
tokens of the candidate follow the mask as they are; 3 they follow as masks; 4, 5, 6 the same between the
model's begin and separator tokens. Every token of a candidate is a sequence of its own, and the attention
weights that are put in come from the same sequence of the other prompt, whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mediation.errors import InputError
from mediation.model.architectures import Parts
from mediation.model.forward import run_base
from mediation.model.readout import ReadOut
from mediation.model.token_trees import Tree

APPROACHES = (1, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Masking:
    """How a candidate is scored: the approach (1 to 6) and the ids of the tokens that it needs.

    `begin`, `separator`: may be None for approaches 1 to 3, which do not need them.
    """

    approach: int
    mask: int
    begin: int | None
    separator: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, approach: int) -> "Masking":
        """Raises InputError for an unknown approach or a tokenizer without the tokens."""
        if approach not in APPROACHES:
            raise InputError(f"masking approach {approach!r} is unknown: choose 1 to 6")
        ids = tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id
        if None in ids[: 1 if approach <= 3 else 3]:
            raise InputError("the tokenizer of this masked model names no mask, begin or separator token: "
                             "save the model with its tokenizer")
        return cls(approach, *ids)

    def sequences(self, context: Int[Tensor, "T"], candidate: Sequence[int]) -> list[Tree]:
        """One Tree (of one branch) per token of the candidate, that predicts it at its mask."""
        trees = []
        for index, token in enumerate(candidate):
            later = candidate[index + 1:]
            before = [*context.tolist(), *candidate[:index]]
            after = ([], later, [self.mask] * len(later))[(self.approach - 1) % 3]
            begin, end = ([], []) if self.approach <= 3 else ([self.begin], [self.separator])
            sequence = torch.tensor([*begin, *before, self.mask, *after, *end], device=context.device)
            trees.append(Tree(sequence, None, None, (([len(begin) + len(before)], [token]),)))
        return trees


def log_probabilities(
    model: PreTrainedModel, parts: Parts, context: Int[Tensor, "T"], candidates: Sequence[Sequence[int]],
    masking: Masking,
) -> Float64[Tensor, "C"]:
    """Mean token log-probability of each candidate (token ids) after `context`."""
    means = []
    for candidate in candidates:
        of_tokens = []
        for tree in masking.sequences(context, candidate):
            residual = run_base(model, parts, tree.tokens, tree).residuals[-1]
            of_tokens.append(ReadOut(parts, tree.predictions)(residual.unsqueeze(0))[0, 0])
        means.append(torch.stack(of_tokens).mean())
    return torch.stack(means)
