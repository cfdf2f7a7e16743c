"""Interventions on sites: in one descent through the layers per group of positions, or one full pass each.

`sweep_sites` and `sweep_sites_by_full_passes` (the reference) give the same numbers. No block is run for an
intervention before the one in which its site lies, and no position before the first that it changes:
interventions that begin at neighbouring positions go together, so that a late one does not pay for an early
one's positions. `estimate_sites` gives the first order of the same.

Symbols in shapes: B interventions, R of them that one call runs, T tokens of the context, N nodes of the tree
(context and continuations), U units of a site, W width of a site, P predictions.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformers import PreTrainedModel

from mediation.mediators.batches import Progress, in_batches
from mediation.mediators.gradients import leaf
from mediation.mediators.sites import Site, SiteEdits, edited_sites, recorded_sites, residuals
from mediation.mediators.sweeps import Descents, automatic_batch_size, in_full_passes
from mediation.model.architectures import Parts
from mediation.model.fast_rows import FastRows
from mediation.model.forward import BaseRun, Resumption, run, run_bases
from mediation.model.readout import ReadOut
from mediation.model.token_trees import Tree

# rows x positions that take as long as reading a model's weights once: a descent of less is mostly that
WORTH_A_DESCENT = 64
Values = list[Float[Tensor, "N _"]]


def run_with_sites(model: PreTrainedModel, parts: Parts, tree: Tree, sites: Sequence[Site],
                   linear_maps: bool = False) -> tuple[BaseRun, Values]:
    """The base run of a tree, and the values of these sites in it."""
    return runs_with_sites(model, parts, [tree], sites, linear_maps)[0]


def runs_with_sites(model: PreTrainedModel, parts: Parts, trees: Sequence[Tree], sites: Sequence[Site],
                    linear_maps: bool = False) -> list[tuple[BaseRun, Values]]:
    """The same of several trees: in one batch where they have one shape and linear maps are not asked for."""
    if len(trees) > 1 and (linear_maps or not all(trees[0].has_shape_of(tree) for tree in trees)):
        return [run_with_sites(model, parts, tree, sites, linear_maps) for tree in trees]
    tokens = torch.stack([tree.tokens for tree in trees])
    with recorded_sites(sites) as record:
        bases = run_bases(model, parts, tokens, trees[0], linear_maps)
    of_trees = [values.reshape(*tokens.shape, values.shape[-1]) for values in record]
    return [(base, [values[row] for values in of_trees]) for row, base in enumerate(bases)]


def sweep_sites(
    parts: Parts, base: BaseRun, own: Values, tree: Tree, edits: SiteEdits, batch_size: int | None = None,
    progress: Progress | None = None, fast: FastRows | None = None,
    without: Float64[Tensor, "P"] | None = None,
) -> Float64[Tensor, "{len(edits)} {len(tree.predictions)}"]:
    """Log-probabilities of a tree's predictions under B interventions on its context.

    What is replaced by itself, and what cannot reach the output, is not run: it is exactly the base run's.

    Args:
        base, own: of `run_with_sites`, with linear maps where `fast` is given; tree: that was run; without:
            log-probabilities without intervention, where they are known.
    """
    residual = base.residuals[-1]
    if without is None:
        without = ReadOut(parts, tree.predictions)(residual.unsqueeze(0))[0]
    result = without.repeat(len(edits), 1)
    edits = effective(edits, own, tree, len(parts.blocks))
    first, joins, nodes = edits.first, edits.joins, len(tree.tokens)
    changed = first < edits.at.shape[1]
    if progress:
        progress(int((~changed).sum()))
    descents = Descents(parts, base, tree.predictions, fast=fast)
    for start, end in groups(torch.bincount(first[changed], minlength=edits.at.shape[1]).tolist(), nodes):
        def descend(rows, read_out, start=start):
            return sites_by_descent(parts, base, own, edits[rows], start, read_out)

        rows = ((first >= start) & (first < end)).nonzero().squeeze(1)
        size = batch_size or automatic_batch_size(parts, residual.device, nodes - start)
        descents.fill(result, rows, joins, descend, size, start, progress)
    return result


def effective(edits: SiteEdits, own: Values, tree: Tree, blocks: int) -> SiteEdits:
    """The same interventions without what changes nothing: replacements where value and run agree in all of a
    unit's numbers, and in the last block at positions that predict nothing."""
    predicts = torch.zeros(edits.at.shape[1], dtype=torch.bool)
    positions = [position for places, _ in tree.predictions for position in places]
    predicts[[position for position in positions if position < len(predicts)]] = True
    at = edits.at.clone()
    for index, site in enumerate(edits.sites):
        members = (edits.site == index).nonzero().squeeze(1)
        if not len(members):
            continue
        differs = (edits.values[index] != own[index][: at.shape[1]]).cpu()  # [T, W]
        of_units = differs[:, site.columns].any(dim=2).T  # [U, T]
        reaches = predicts if site.stays_in_place(blocks) else torch.ones_like(predicts)
        at[members] &= of_units[edits.unit[members]] & reaches
    return replace(edits, at=at)


def groups(counts: Sequence[int], nodes: int) -> list[tuple[int, int]]:
    """Ranges [start, end) of first positions whose interventions are run together, from the cheapest cut.

    A group costs its rows times the positions from its start on, and WORTH_A_DESCENT.

    Args:
        counts: interventions that begin at each position; nodes: of the tree.
    """
    firsts = [position for position, count in enumerate(counts) if count]
    # cheapest[i]: (cost, where the last group begins) for the first i of these positions
    cheapest: list[tuple[float, int]] = [(0, 0)]
    for end in range(1, len(firsts) + 1):
        rows, best = 0, (float("inf"), 0)
        for start in range(end - 1, -1, -1):
            rows += counts[firsts[start]]
            cost = cheapest[start][0] + rows * (nodes - firsts[start]) + WORTH_A_DESCENT
            best = min(best, (cost, start))
        cheapest.append(best)
    ranges, end = [], len(firsts)
    while end:
        start = cheapest[end][1]
        ranges.append((firsts[start], firsts[end - 1] + 1))
        end = start
    return ranges[::-1]


def sites_by_descent(parts: Parts, base: BaseRun, own: Values, edits: SiteEdits, first: int,
                     read_out: ReadOut) -> Float64[Tensor, "{len(edits)} {read_out.columns}"]:
    """What `read_out` predicts under each intervention, in one descent through the layers.

    Rows join before the block in which their first site lies, at the positions from `first` on.
    """
    blocks, joins = len(parts.blocks), edits.joins
    order = joins.argsort(stable=True)  # what rows give is put back in the caller's order
    edits, begins = edits[order], joins[order].tolist()
    of_block: dict[int, list[int]] = {}
    for index in edits.site.unique().tolist():
        of_block.setdefault(edits.sites[index].joins, []).append(index)
    resumption = Resumption(parts, base, first)
    length = len(base.residuals[0]) - first
    hidden = resumption.rows(begins[0], 0)
    positions = torch.arange(first, first + length)
    differs = positions >= edits.first[:, None]  # [B, S]
    for block in range(begins[0], blocks + 1):
        if joining := begins.count(block):
            hidden = torch.cat([hidden, resumption.rows(block, joining)])
        here = of_block.get(block, [])
        for index in here:
            if edits.sites[index].added:
                outputs = own[index][first:].repeat(len(hidden), 1, 1)
                edits.write(index, outputs, first)
                hidden = resumption.embedded(outputs)
        if block == blocks:
            for index in here:
                edits.write(index, hidden, first)
            break
        here = [index for index in here if not edits.sites[index].added]
        where = differs[: len(hidden)]
        if block == blocks - 1:
            where = where & torch.isin(positions, torch.tensor(read_out.positions))
        # within an MLP that is run at some positions alone, nothing can be changed at positions, and no map
        # knows which of the base run's it is to be compared with
        whole = read_out.fast or any(edits.sites[index].is_inside(mlp) for index in here
                                     for mlp in parts.mlps[block:block + 1])
        with edited_sites(edits, here, length, first):
            hidden = resumption.block(block, hidden, None if whole else where)
    result = torch.empty(len(edits), read_out.columns, dtype=torch.float64)
    result[order] = read_out(hidden, first)
    return result


def sites_by_full_passes(
    model: PreTrainedModel, context: Int[Tensor, "T"], edits: SiteEdits,
    candidates: Sequence[Sequence[int]],
) -> Float64[Tensor, "{len(edits)} {len(candidates)}"]:
    """Reference: mean token log-probabilities of the candidates (token ids) after `context`.

    Full forward passes under plain hooks, one per row and different beginning of the candidates, and a
    softmax over the vocabulary.
    """
    sites = edits.site.unique().tolist()
    return in_full_passes(model, context, candidates, len(edits),
                          lambda length: edited_sites(edits, sites, length))


def sweep_sites_by_full_passes(
    model: PreTrainedModel, parts: Parts, context: Int[Tensor, "T"], edits: SiteEdits,
    candidates: Sequence[Sequence[int]], base: Float64[Tensor, "P"],
    batch_size: int | None = None, progress: Progress | None = None,
) -> Float64[Tensor, "{len(edits)} {len(candidates)}"]:
    """The plain reference of `sweep_sites`: every intervention that changes a position is run, in batches.

    Args:
        base: log-probabilities without intervention, which the others have exactly.
    """
    result = base.repeat(len(edits), 1)
    changed = edits.first < len(context)
    if progress:
        progress(int((~changed).sum()))
    size = batch_size or automatic_batch_size(parts, context.device, len(context))
    in_batches(lambda rows: sites_by_full_passes(model, context, edits[rows], candidates),
               changed.nonzero().squeeze(1), size, result, progress)
    return result


def estimate_sites(
    model: PreTrainedModel, parts: Parts, own: Values, tree: Tree, edits: SiteEdits,
    without: Float64[Tensor, "P"],
) -> Float64[Tensor, "{len(edits)} {len(tree.predictions)}"]:
    """The same to first order: gradient times what a replacement moves its unit by, summed over them.

    One forward pass, and one backward pass per prediction (attribution patching: Nanda 2023).

    Args:
        own: of `run_with_sites`; without: log-probabilities without intervention. What has no gradient, or is
            replaced by itself, has exactly these.
    """
    sites = [*edits.sites, residuals(parts)[-1]]
    with torch.enable_grad(), leaf(parts), recorded_sites(sites) as record:
        run(model, parts, tree.tokens.unsqueeze(0), tree)
        log_probabilities = ReadOut(parts, tree.predictions)(record[-1])[0]
        gradients = [torch.autograd.grad(each, record[:-1], retain_graph=True, materialize_grads=True)
                     for each in log_probabilities]
    nodes = len(tree.tokens)
    estimates = without.repeat(len(edits), 1)
    for index in edits.site.unique().tolist():
        members = (edits.site == index).nonzero().squeeze(1)
        step = (edits.values[index] - own[index][: edits.at.shape[1]]).double()  # [T, W]
        columns = edits.sites[index].columns.to(step.device)
        for prediction, of_sites in enumerate(gradients):
            of_site = of_sites[index].reshape(nodes, -1)[: len(step)].double()
            gained = (of_site * step)[:, columns].sum(dim=2).T.cpu()  # [U, T]
            of_members = (gained[edits.unit[members]] * edits.at[members]).sum(dim=1)
            estimates[:, prediction].index_add_(0, edits.row[members], of_members)
    return estimates
