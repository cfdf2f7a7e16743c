"""Attention interventions on masked models.

Every token of a candidate is a sequence of its own, with attention weights of its own.

Symbols in shapes: B batch (interventions), R rows of one call, L attention layers, H heads, T context tokens,
C candidates.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor
from transformers import PreTrainedModel

from mediation.mediators.batches import Progress
from mediation.mediators.heads import HeadEdits, replacements
from mediation.mediators.sweeps import sweep_heads_in
from mediation.model.architectures import Parts
from mediation.model.attention import attention_weights, changed_outputs
from mediation.model.fast_rows import FastRows
from mediation.model.masked import Masking
from mediation.model.token_trees import Tree


def sweep_masked_heads(
    model: PreTrainedModel, parts: Parts, run_on: Int[Tensor, "T"], source: Int[Tensor, "T"],
    candidates: Sequence[Sequence[int]], chosen: Bool[Tensor, "B L H"], masking: Masking,
    batch_size: int | None = None, full_passes: bool = False, progress: Progress | None = None,
    fast: FastRows | None = None,
) -> Float64[Tensor, "B {len(candidates)}"]:
    """Mean token log-probabilities of the candidates under B attention interventions.

    Args:
        run_on, source: the context that is run, and the one whose weights are put in.
        chosen: the heads of each intervention; the others as in `sweeps.sweep_heads`.
    """
    sequences, done = sum(map(len, candidates)), 0  # done: rows of all sequences

    def report(rows):
        """Rows of one of the sequences, told as whole interventions."""
        nonlocal done
        if progress:
            progress((done + rows) // sequences - done // sequences)
        done += rows

    columns = []
    for candidate in candidates:
        of_tokens = []
        for tree, other in zip(masking.sequences(run_on, candidate), masking.sequences(source, candidate)):
            # first 0: these models see in both directions, so every row can differ
            edits = HeadEdits(chosen, attention_weights(model, parts, other.tokens), 0)
            reference = partial(by_full_passes, model, parts, tree, edits) if full_passes else None
            of_tokens.append(sweep_heads_in(model, parts, tree, tree.tokens, edits, batch_size, reference,
                                            report, fast))
        columns.append(torch.stack(of_tokens).mean(dim=0)[:, 0])
    return torch.stack(columns, dim=1)


def by_full_passes(model: PreTrainedModel, parts: Parts, tree: Tree, edits: HeadEdits,
                   rows: Int[Tensor, "R"]) -> Float64[Tensor, "R 1"]:
    """Reference: full forward passes with the weights replaced, and a softmax over the vocabulary."""
    edits = edits[rows.to(tree.tokens.device)]
    ((position,), (token,)), = tree.predictions
    with changed_outputs(replacements(parts, edits)):
        logits = model(tree.tokens.expand(len(edits), -1)).logits[:, position]
    return logits.double().log_softmax(dim=-1)[:, [token]].cpu()
