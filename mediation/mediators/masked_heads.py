"""Attention interventions on masked models: every token of a candidate is a sequence of its own, with weights of its own."""

from functools import partial

import torch

from mediation.mediators.heads import HeadEdits, replacement
from mediation.mediators.sweeps import sweep_heads_in
from mediation.model.attention import attention_weights, changed_outputs


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
    with changed_outputs({module: replacement(edits, layer) for layer, module in enumerate(parts.attentions)}):
        logits = model(scored.tokens.expand(len(edits), -1)).logits[:, position]
    return logits.double().log_softmax(dim=-1)[:, [token]].cpu()
