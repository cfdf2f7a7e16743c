"""Models that predict masked tokens: a candidate is scored token by token after the context, each at a mask (Vig et al. 2020, NeurIPS version).

Six approaches: 1 the context, the candidate so far and a mask; 2 the later tokens of the candidate follow the mask as they are; 3 they follow
as masks; 4, 5, 6 the same between the model's begin and separator tokens. Every token of a candidate is a sequence of its own, and the
weights that are put in come from the same sequence of the other prompt, whole.
"""

from dataclasses import dataclass
from functools import partial

import torch

from .attention import HeadEdits, attention_weights, overriding, replacement
from .errors import InputError
from .forward import Tree, run_base
from .readout import ReadOut
from .sweeps import sweep_heads_in

APPROACHES = (1, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Masking:
    """How a candidate is scored: the approach (1 to 6) and the ids of the tokens that it needs."""

    approach: int
    mask: int
    begin: int
    separator: int

    @classmethod
    def of(cls, tokenizer, approach):
        """Raises InputError for an unknown approach or a tokenizer without the tokens."""
        if approach not in APPROACHES:
            raise InputError(f"masking approach {approach!r} is unknown: choose 1 to 6")
        ids = tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id
        if None in ids[: 1 if approach <= 3 else 3]:
            raise InputError("the tokenizer of this masked model names no mask, begin or separator token: save the model with its tokenizer")
        return cls(approach, *ids)

    def sequences(self, context, candidate):
        """One Tree (of one branch) a token of the candidate, that predicts it at its mask; context int64 [T], candidate a list of ids."""
        found = []
        for index, token in enumerate(candidate):
            later = candidate[index + 1:]
            before = [*context.tolist(), *candidate[:index]]
            after = ([], later, [self.mask] * len(later))[(self.approach - 1) % 3]
            begin, end = ([], []) if self.approach <= 3 else ([self.begin], [self.separator])
            sequence = torch.tensor([*begin, *before, self.mask, *after, *end], device=context.device)
            found.append(Tree(sequence, None, None, (([len(begin) + len(before)], [token]),)))
        return found


def log_probabilities(model, parts, context, candidates, masking):
    """Mean token log-probability of each candidate (lists of ids) after `context` (int64 [T]), float64 [C]."""
    means = []
    for candidate in candidates:
        each = [ReadOut(parts, scored.predictions)(run_base(model, parts, scored.tokens, scored).residuals[-1].unsqueeze(0))[0, 0]
                for scored in masking.sequences(context, candidate)]
        means.append(torch.stack(each).mean())
    return torch.stack(means)


def sweep_masked_heads(model, parts, run_on, source, candidates, chosen, masking, batch_size=None, full_passes=False, progress=None, fast=None):
    """Log-probabilities of the candidates after the context `run_on` under B attention interventions.

    Args:
        run_on, source: contexts of equal length, int64 [T]: which is run, and whose weights are put in.
        chosen: bool [B, L, H], the heads of each intervention; the others as in `sweeps.sweep_heads`.

    Returns: float64 [B, C], mean token log-probabilities.
    """
    sequences, done, columns = sum(map(len, candidates)), 0, []

    def report(rows):
        """Rows of one of the sequences, told as whole interventions."""
        nonlocal done
        if progress:
            progress((done + rows) // sequences - done // sequences)
        done += rows

    for candidate in candidates:
        each = []
        for scored, other in zip(masking.sequences(run_on, candidate), masking.sequences(source, candidate)):
            edits = HeadEdits(chosen, attention_weights(model, parts, other.tokens), 0)
            reference = partial(by_full_passes, model, parts, scored, edits) if full_passes else None
            each.append(sweep_heads_in(model, parts, scored, scored.tokens, edits, batch_size, reference, report, fast))
        columns.append(torch.stack(each).mean(dim=0)[:, 0])
    return torch.stack(columns, dim=1)


def by_full_passes(model, parts, scored, edits, rows):
    """Reference: full forward passes with the weights replaced, and a softmax over the vocabulary; float64 [rows, 1]."""
    edits = edits[rows.to(scored.tokens.device)]
    ((position,), (token,)), = scored.predictions
    with overriding({module: replacement(edits, layer) for layer, module in enumerate(parts.attentions)}):
        logits = model(scored.tokens.expand(len(edits), -1)).logits[:, position]
    return logits.double().log_softmax(dim=-1)[:, [token]].cpu()
