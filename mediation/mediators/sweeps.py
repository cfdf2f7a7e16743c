"""Many interventions on one prompt: in one descent through the layers, or one full pass each (the reference).

`by_full_passes` and `by_descent` (neurons), `heads_by_full_passes` and `heads_by_descent` (attention) give
the same numbers. A descent goes down the layers once with a batch that grows: at layer l the interventions of
layer l join, those already in it move one block on. No block is run for an intervention before the layer that
it changes, and no position before the changed one.

Symbols in shapes: B batch (interventions), R rows of them, S positions that can change, T tokens, L attention
layers, H heads, D hidden size.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from transformers import PreTrainedModel

from mediation.mediators.batches import Progress, Run, in_batches, in_two_precisions
from mediation.mediators.heads import HeadEdits, replacements, shift
from mediation.mediators.neurons import NeuronEdits, change, edited, writing
from mediation.model.architectures import Parts
from mediation.model.attention import attention_weights, changed_outputs
from mediation.model.fast_rows import FastRows
from mediation.model.forward import BaseRun, Resumption, last_logits, run_base
from mediation.model.products import exchanged, on_differences, packed
from mediation.model.readout import ReadOut
from mediation.model.token_trees import Prediction, Tree, pack

# rows x positions x width of the widest linear map: on a CPU what its cache holds (measured best between 2
# and 3 million), on CUDA nothing was gained past it
NUMBERS_AT_ONCE = {"cpu": 2_500_000, "cuda": 500_000_000}
Descend = Callable[[Int[Tensor, "R"], ReadOut], Float64[Tensor, "R _"]]
TOKENS_AT_MOST = {"cpu": 2048, "cuda": 65536}


def automatic_batch_size(parts: Parts, device: torch.device | str, positions: int) -> int:
    """Interventions run at once when the user names no number."""
    kind = "cuda" if torch.device(device).type == "cuda" else "cpu"
    width = max(max(weight.shape) for weight in parts.blocks[0].parameters())
    return rows_at_once(width, kind, positions)


def rows_at_once(width: int, kind: str, positions: int) -> int:
    """The same of a device of this kind, where a block's widest linear map is so wide."""
    return max(1, min(NUMBERS_AT_ONCE[kind] // width, TOKENS_AT_MOST[kind]) // positions)


def by_full_passes(
    model: PreTrainedModel, parts: Parts, tokens: Int[Tensor, "T"], edits: NeuronEdits,
    candidates: Sequence[Sequence[int]],
) -> Float64[Tensor, "{len(edits)} {len(candidates)}"]:
    """Reference: mean token log-probabilities of the candidates (token ids) after the prompt `tokens`.

    Full forward passes under plain hooks, one per row and different beginning of the candidates, and a
    softmax over the vocabulary.
    """
    return in_full_passes(model, tokens, candidates, len(edits), lambda _: edited(parts, edits))


def in_full_passes(
    model: PreTrainedModel, tokens: Int[Tensor, "T"], candidates: Sequence[Sequence[int]], rows: int,
    changed: Callable[[int], AbstractContextManager],
) -> Float64[Tensor, "{rows} {len(candidates)}"]:
    """Mean token log-probabilities of the candidates (token ids) after `tokens`, in full passes of `rows`.

    Candidates that differ in their last tokens only are read out of one pass.

    Args:
        changed: of a sequence's length, under which its pass runs: a row per intervention.
    """
    def after(beginning):
        """Log-probabilities [rows, beginning + 1, vocabulary] from the last of `tokens` on."""
        sequence = torch.cat([tokens, torch.tensor(beginning, dtype=tokens.dtype, device=tokens.device)])
        with changed(len(sequence)):
            logits = last_logits(model, sequence.expand(rows, -1), len(beginning) + 1)
        return logits.double().log_softmax(dim=-1)

    beginnings = {tuple(candidate[:-1]) for candidate in candidates}
    of_beginning = {beginning: after(beginning) for beginning in beginnings}
    columns = [of_beginning[tuple(candidate[:-1])][:, range(len(candidate)), candidate].mean(dim=1)
               for candidate in candidates]
    return torch.stack(columns, dim=1).cpu()


def by_descent(parts: Parts, base: BaseRun, edits: NeuronEdits,
               read_out: ReadOut) -> Float64[Tensor, "{len(edits)} {read_out.columns}"]:
    """What `read_out` predicts under each intervention, in one descent through the layers.

    Args:
        base: of the prompt, or tree of prompts, that is intervened upon.
    """
    layer_of_row = edits.layers.amin(dim=1)
    # where a block adds its MLP's output, rows join behind the MLP that they change; else before its block
    joins = layer_of_row if parts.architecture.mlp_adds else (layer_of_row - 1).clamp(min=0)
    # what rows give is put back in the caller's order
    order = joins.argsort(stable=True)
    edits, first = edits[order], joins[order].tolist()
    resumption = Resumption(parts, base, edits.position)
    hidden = resumption.rows(first[0], 0)
    for block in range(first[0], len(parts.blocks) + 1):
        if len(hidden):  # the rows under way move one block on, at the positions from the changed one on
            hidden = _through_block(resumption, block - 1, hidden, edits[: len(hidden)])
        if joining := first.count(block):
            new = edits[len(hidden): len(hidden) + joining]
            hidden = torch.cat([hidden, _changed_residual(resumption, block, new)])
    result = torch.empty(len(edits), read_out.columns, dtype=torch.float64)
    result[order.cpu()] = read_out(hidden, edits.position)
    return result


def _through_block(resumption, index, hidden, edits):
    """One block for the rows under way [R, S, D]."""
    if not (edits.layers == index + 1).any():
        return resumption.block(index, hidden)

    handle = resumption.parts.mlps[index].register_forward_hook(writing(0, edits, index + 1))
    try:
        return resumption.block(index, hidden)
    finally:
        handle.remove()


def _changed_residual(resumption, layer, edits):
    """The residual stream [R, S, D] before block `layer` when the MLP, or embedding, before it is changed.

    Where that cannot be said without running the block of the MLP, it is not changed yet.
    """
    if layer and not resumption.parts.architecture.mlp_adds:
        return resumption.rows(layer, len(edits))
    own = resumption.base.outputs(layer)[edits.position:]  # [S, D]
    if not layer:
        outputs = own.repeat(len(edits), 1, 1)
        change(outputs, 0, edits, 0)
        return resumption.embedded(outputs)
    # what the MLP, and the norm behind it where there is one, gave the stream is replaced, at the positions
    # that are changed; a value replaced by itself moves it by exactly 0
    own = own[: edits.width]
    new = own.repeat(len(edits), 1, 1)
    change(new, 0, edits, layer)
    norm = resumption.parts.mlp_norms[layer - 1]
    moved = new - own if norm is None else norm(new) - norm(own.expand_as(new))
    hidden = resumption.rows(layer, len(edits))
    hidden[:, : edits.width] += moved.to(hidden.device)
    return hidden


def sweep(
    parts: Parts, base: BaseRun, predictions: Sequence[Prediction], edits: NeuronEdits,
    batch_size: int | None = None, odds_only: bool = False, progress: Progress | None = None,
    fast: FastRows | None = None,
) -> Float64[Tensor, "{len(edits)} {len(predictions)}"]:
    """Log-probabilities under B interventions on one prompt or tree of prompts.

    They are run in batches of `batch_size` rows (None: automatic). A batch that does not fit into memory is
    halved, and the sweep goes on.

    Args:
        base: of the prompt or tree, with its linear maps where `fast` is given.
        odds_only: without the normaliser, see ReadOut.
        fast: None, or where rows are counted that are to be run in bfloat16 on the difference to the base
            run, see `batches`.
    """
    residual = base.residuals[-1]  # [T, D]
    result = ReadOut(parts, predictions, odds_only=odds_only)(residual.unsqueeze(0)).repeat(len(edits), 1)
    reaches_output = torch.ones(len(edits), dtype=torch.bool)
    changed = range(edits.position, edits.position + edits.width)
    # the last block's MLP, at positions that predict nothing, cannot reach the output: such rows are not run,
    # they are the base run's, so that their effect is exactly 0
    if not any(position in changed for positions, _ in predictions for position in positions):
        reaches_output = (edits.layers.amin(dim=1) < len(parts.blocks)).cpu()
        if progress:
            progress(int((~reaches_output).sum()))
    rows = reaches_output.nonzero().squeeze(1)
    # no position before the changed one is run: a batch holds what is left of the sequence
    size = batch_size or automatic_batch_size(parts, residual.device, len(residual) - edits.position)

    def descend(rows, read_out):
        return by_descent(parts, base, edits[rows.to(residual.device)], read_out)

    Descents(parts, base, predictions, odds_only, fast).fill(
        result, rows, edits.layers.amin(dim=1).cpu(), descend, size, edits.position, progress)
    return result


class Descents:
    """Fills rows of a sweep by descents from one base run: exactly, or with `fast` in two precisions.

    To be made once per base run: packing the weights looks at all of them.

    Args:
        odds_only: without the normaliser, see ReadOut; fast: None, or where rows are counted that are to be
            run in bfloat16 on the difference to the base run, see `batches`.
    """

    def __init__(self, parts: Parts, base: BaseRun, predictions: Sequence[Prediction],
                 odds_only: bool = False, fast: FastRows | None = None) -> None:
        self.parts, self.base, self.predictions = parts, base, predictions
        self.odds_only, self.fast = odds_only, fast
        self.packed = packed([*parts.blocks, parts.head])

    def fill(self, result: Float64[Tensor, "B P"], rows: Int[Tensor, "R"], layers: Int[Tensor, "B"],
             descend: Descend, size: int, first: int, progress: Progress | None = None) -> None:
        """Fill these rows of `result` by `descend`.

        Args:
            layers: where each row begins; descend: numbers of the rows with these indices by a ReadOut;
            size: rows at once; first: the position from which on a row can change.
        """
        exact_read_out = self._read_out(len(rows), False)

        def exactly(rows):
            with exchanged(self.packed):
                return descend(rows, exact_read_out)

        if self.fast is None or not len(rows):
            in_batches(exactly, rows, size, result, progress)
            return
        fast_read_out = self._read_out(len(rows), True)
        # the blocks' maps only: the unembedding is left in the model's precision
        forwards = self.packed | on_differences(self.parts.blocks, self.base.linear_maps, first)

        def on_the_difference(rows):
            with exchanged(forwards):
                return descend(rows, fast_read_out)

        in_two_precisions(exactly, on_the_difference, rows, layers, size, result, self.fast, progress,
                          self.odds_only)

    def _read_out(self, rows, in_bfloat16):
        return ReadOut(self.parts, self.predictions, self.base.residuals[-1], rows, self.odds_only,
                       in_bfloat16)


def sweep_by_full_passes(
    model: PreTrainedModel, parts: Parts, tokens: Int[Tensor, "T"], edits: NeuronEdits,
    candidates: Sequence[Sequence[int]], batch_size: int | None = None, progress: Progress | None = None,
) -> Float64[Tensor, "{len(edits)} {len(candidates)}"]:
    """The plain reference of `sweep` on one prompt, as `by_full_passes`."""
    result = torch.empty(len(edits), len(candidates), dtype=torch.float64)
    size = batch_size or automatic_batch_size(parts, tokens.device, len(tokens))

    def run(rows):
        return by_full_passes(model, parts, tokens, edits[rows.to(tokens.device)], candidates)

    in_batches(run, torch.arange(len(edits)), size, result, progress)
    return result


def heads_by_descent(parts: Parts, base: BaseRun, edits: HeadEdits,
                     read_out: ReadOut) -> Float64[Tensor, "{len(edits)} {read_out.columns}"]:
    """What `read_out` predicts under each attention intervention, in one descent through the layers.

    Rows join before the first attention layer whose heads they change; only positions from the first context
    row that differs on are run. Heads that every row changes are changed in one more row, the leader: the
    others part from it where their own heads begin.

    Args:
        base: of the tree of the context that is intervened upon and its continuations.
        edits: each row with a head chosen.
    """
    layers = len(parts.blocks)
    common = edits.chosen.all(dim=0)  # [L, H]
    own = (edits.chosen & ~common).any(dim=2)  # [B, L]
    # a row's first attention layer of its own; one without joins at the last
    layer_of_row = torch.where(own.any(dim=1), own.int().argmax(dim=1), layers - 1)
    order = layer_of_row.argsort(stable=True)
    first = layer_of_row[order].tolist()
    led = bool(common.any())
    chosen = edits.chosen[order]
    if led:  # the leader is row 0, which changes what all change and nothing else
        chosen = torch.cat([common[None], chosen])
    edits = HeadEdits(chosen, edits.weights, edits.first)
    start = min(first[0], int(common.any(dim=1).int().argmax()) if led else layers)

    resumption = Resumption(parts, base, edits.first)
    hidden = resumption.rows(start, int(led))
    for layer in range(start, layers):
        joining = first.count(layer)
        if joining:
            # up to here rows were as the leader is, or, without one, as the base run is
            new = hidden[:1].expand(joining, -1, -1) if led else resumption.rows(layer, joining)
            hidden = torch.cat([hidden, new])
        under_way = edits[: len(hidden)]
        changes, module = {}, parts.attentions[layer]
        if module is not None and under_way.chosen[:, layer].any():
            changes[module] = shift(under_way, layer)
        with changed_outputs(changes):
            hidden = resumption.block(layer, hidden)
    result = torch.empty(len(order), read_out.columns, dtype=torch.float64)
    result[order.cpu()] = read_out(hidden[int(led):], edits.first)
    return result


def heads_by_full_passes(
    model: PreTrainedModel, parts: Parts, context: Int[Tensor, "T"], candidates: Sequence[Sequence[int]],
    edits: HeadEdits,
) -> Float64[Tensor, "{len(edits)} {len(candidates)}"]:
    """Reference: mean token log-probabilities of the candidates (token ids) after `context`.

    Full forward passes, weights replaced, nothing shared but by candidates that begin alike.
    """
    changes = replacements(parts, edits)
    return in_full_passes(model, context, candidates, len(edits), lambda _: changed_outputs(changes))


def sweep_heads(
    model: PreTrainedModel, parts: Parts, context: Int[Tensor, "T"], candidates: Sequence[Sequence[int]],
    edits: HeadEdits, batch_size: int | None = None, full_passes: bool = False,
    progress: Progress | None = None, fast: FastRows | None = None,
) -> Float64[Tensor, "{len(edits)} {len(candidates)}"]:
    """Log-probabilities of the candidates (token ids) after `context` under B attention interventions.

    Args:
        full_passes: run the plain reference, every intervention in full passes of its own.
        fast: None, or where rows are counted that are to be run in bfloat16 on the difference to the base
            run, see `batches`.
    """
    def reference(rows):
        return heads_by_full_passes(model, parts, context, candidates, edits[rows.to(context.device)])

    if full_passes:
        # as in the descent, heads whose weights are the run's own are not touched
        edits = _touched(edits, attention_weights(model, parts, context))
        none = HeadEdits(torch.zeros_like(edits.chosen[:1]), edits.weights, edits.first)
        result = heads_by_full_passes(model, parts, context, candidates, none).repeat(len(edits), 1)
        rows = edits.chosen.flatten(1).any(dim=1).nonzero().squeeze(1).cpu()
        if progress:
            progress(len(edits) - len(rows))
        in_batches(reference, rows, 1, result, progress)
        return result
    continuations = pack([context.tolist()], candidates, context.device)
    return sweep_heads_in(model, parts, continuations, context, edits, batch_size, None, progress, fast)


def _touched(edits, own):
    """The same interventions without heads whose weights are the run's own anyway.

    One on none but these has exactly no effect, and is not run.
    """
    differs = (own != edits.weights)[:, :, edits.first:].any(dim=3).any(dim=2)  # [L, H]
    return HeadEdits(edits.chosen & differs, edits.weights, edits.first)


def sweep_heads_in(
    model: PreTrainedModel, parts: Parts, tree: Tree, context: Int[Tensor, "T"], edits: HeadEdits,
    batch_size: int | None = None, reference: Run | None = None, progress: Progress | None = None,
    fast: FastRows | None = None,
) -> Float64[Tensor, "{len(edits)} {len(tree.predictions)}"]:
    """Log-probabilities of a tree's predictions under B attention interventions.

    Args:
        context: the sequence with which the tree begins, which is intervened upon.
        reference: None, or a function that is called with one row at a time instead; the others as in
            `sweep_heads`.
    """
    edits = _touched(edits, attention_weights(model, parts, context))
    base = run_base(model, parts, tree.tokens, tree, linear_maps=fast is not None)
    residual = base.residuals[-1]
    result = ReadOut(parts, tree.predictions)(residual.unsqueeze(0)).repeat(len(edits), 1)
    changed = edits.chosen.any(dim=2).any(dim=1).cpu()
    if progress:
        progress(int((~changed).sum()))
    rows = changed.nonzero().squeeze(1)
    if reference:
        in_batches(reference, rows, 1, result, progress)
        return result

    def descend(rows, read_out):
        return heads_by_descent(parts, base, edits[rows.to(context.device)], read_out)

    size = batch_size or automatic_batch_size(parts, context.device, len(tree.tokens) - edits.first)
    layers = edits.chosen.any(dim=2).int().argmax(dim=1).cpu()
    Descents(parts, base, tree.predictions, fast=fast).fill(result, rows, layers, descend, size, edits.first,
                                                            progress)
    return result
