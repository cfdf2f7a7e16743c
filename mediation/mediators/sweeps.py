"""Many interventions on one prompt: in one descent through the layers, or one full pass each (the reference).

`by_full_passes` and `by_descent` (neurons), `heads_by_full_passes` and `heads_by_descent` (attention) give the same numbers.
A descent goes down the layers once with a batch that grows: at layer l the interventions of layer l join, those already in
it move one block on. No block is run for an intervention before the layer it changes, and no position before the changed one.
"""

import torch

from mediation.mediators.batches import in_batches, in_two_precisions
from mediation.mediators.heads import HeadEdits, replacement, shift
from mediation.mediators.neurons import change, edited, writing
from mediation.model.attention import attention_weights, changed_outputs
from mediation.model.forward import Resumption, pack, run_base
from mediation.model.products import exchanged, on_differences, packed
from mediation.model.readout import ReadOut

# rows x positions x width of the widest layer: on a CPU what its cache holds (measured best between 2 and 3 million), with no gain past the second number
NUMBERS_AT_ONCE = {"cpu": 2_500_000, "cuda": 500_000_000}
TOKENS_AT_MOST = {"cpu": 2048, "cuda": 65536}


def automatic_batch_size(parts, device, positions):
    """Interventions run at once when the user names no number."""
    kind = "cuda" if torch.device(device).type == "cuda" else "cpu"
    width = max(max(weight.shape) for weight in parts.mlps[0].parameters())
    return max(1, min(NUMBERS_AT_ONCE[kind] // width, TOKENS_AT_MOST[kind]) // positions)


def by_full_passes(model, parts, tokens, edits, candidates):
    """Reference: full forward passes under plain hooks, one a row and different beginning of the candidates, and a softmax over the vocabulary.

    Args:
        tokens: the prompt, int64 [T]; edits: NeuronEdits of B rows; candidates: C lists of token ids.

    Returns: float64 [B, C], mean token log-probabilities.
    """
    def after(beginning):
        """Log-probabilities [B, beginning + 1, vocabulary] from the prompt's last token on."""
        sequence = torch.cat([tokens, torch.tensor(beginning, dtype=tokens.dtype, device=tokens.device)])
        with edited(parts, edits):
            logits = model(sequence.expand(len(edits), -1), use_cache=False, logits_to_keep=len(beginning) + 1).logits
        return logits.double().log_softmax(dim=-1)

    of_beginning = {beginning: after(beginning) for beginning in {tuple(candidate[:-1]) for candidate in candidates}}
    columns = [of_beginning[tuple(candidate[:-1])][:, range(len(candidate)), candidate].mean(dim=1) for candidate in candidates]
    return torch.stack(columns, dim=1).cpu()


def by_descent(parts, base, edits, read_out):
    """Log-probabilities of what `read_out` (a ReadOut) predicts under each intervention, in one descent through the layers.

    Args:
        parts: the model's modules.
        base: BaseRun of the prompt, or tree of prompts, that is intervened upon.
        edits: NeuronEdits of B rows.

    Returns: float64 [B, predictions], in the order of the rows.
    """
    # rows join in the order of their first layer; what they give is put back in the caller's order
    first = edits.layers.amin(dim=1)
    order = first.argsort(stable=True)
    edits, first = edits[order], first[order].tolist()
    layers = len(parts.blocks)
    resumption = Resumption(parts, base, edits.position)
    hidden = resumption.rows(0, 0)
    for layer in range(first[0], layers + 1):
        if len(hidden):
            hidden = _through_block(resumption, layer - 1, hidden, edits[: len(hidden)])
        joining = first.count(layer)
        if joining:
            new = edits[len(hidden): len(hidden) + joining]
            hidden = torch.cat([hidden, _changed_residual(resumption, layer, new)])
    result = torch.empty(len(edits), read_out.columns, dtype=torch.float64)
    result[order.cpu()] = read_out(hidden, edits.position)
    return result


def _through_block(resumption, index, hidden, edits):
    """One block for the rows under way [B, S, D]; a row of a set may change neurons of this block's MLP too."""
    if not (edits.layers == index + 1).any():
        return resumption.block(index, hidden)

    handle = resumption.parts.mlps[index].register_forward_hook(writing(0, edits, index + 1))
    try:
        return resumption.block(index, hidden)
    finally:
        handle.remove()


def _changed_residual(resumption, layer, edits):
    """The residual stream [B, S, D] before block `layer` when the MLP (or embedding) that it was last given is changed.

    What that module, and the norm behind it where there is one, gave the stream is replaced; a value replaced by itself moves it by exactly 0.
    """
    own = resumption.base.outputs(layer)[edits.position:][: edits.width]  # [positions that are changed, D]
    new = own.expand(len(edits), -1, -1).clone()
    change(new, 0, edits, layer)
    norm = resumption.parts.mlp_norms[layer - 1] if layer else None
    moved = new - own if norm is None else norm(new) - norm(own.expand_as(new))
    hidden = resumption.rows(layer, len(edits))
    hidden[:, : edits.width] += moved
    return hidden


def sweep(parts, base, predictions, edits, batch_size=None, odds_only=False, progress=None, fast=None):
    """Log-probabilities under B interventions on one prompt or tree of prompts, chunked to `batch_size` rows (None: automatic).

    A batch that does not fit into memory is halved, and the sweep goes on. Interventions that cannot reach the output
    (last block's MLP, at a position that predicts nothing) are not run: their rows are the base run's, so their effect is exactly 0.

    Args:
        base: BaseRun of the prompt, with its linear layers where `fast` is given; predictions: as a ReadOut takes them.
        odds_only: without the normaliser, see ReadOut.
        progress: called with the number of interventions done after each chunk.
        fast: None, or FastRows that are counted on: bfloat16 on the difference to the base run, see `batches`.

    Returns: float64 [B, predictions].
    """
    residual = base.residuals[-1]  # [T, D]
    result = ReadOut(parts, predictions, odds_only=odds_only)(residual.unsqueeze(0)).repeat(len(edits), 1)
    reaches_output = torch.ones(len(edits), dtype=torch.bool)
    changed = range(edits.position, edits.position + edits.width)
    if not any(position in changed for positions, _ in predictions for position in positions):
        reaches_output = (edits.layers.amin(dim=1) < len(parts.blocks)).cpu()
        if progress:
            progress(int((~reaches_output).sum()))
    todo = reaches_output.nonzero().squeeze(1)
    size = batch_size or automatic_batch_size(parts, residual.device, len(residual) - edits.position)

    def descend(rows, read_out):
        return by_descent(parts, base, edits[rows.to(residual.device)], read_out)

    _run(descend, todo, edits.layers.amin(dim=1).cpu(), size, result, parts, base, predictions, edits.position, odds_only, progress, fast)
    return result


def _run(descend, todo, layers, size, result, parts, base, predictions, first, odds_only, progress, fast):
    """Fill the rows `todo` of `result` by `descend` (a function of rows and a ReadOut), exactly, or with `fast` in two precisions.

    `layers`: where each row begins; `first`: the position from which on it can change.
    """
    def read_out(in_bfloat16):
        return ReadOut(parts, predictions, base.residuals[-1], len(todo), odds_only, in_bfloat16)

    exact_read_out, exact_layers = read_out(False), packed([*parts.blocks, parts.head])

    def exactly(rows):
        with exchanged(exact_layers):
            return descend(rows, exact_read_out)

    if fast is None or not len(todo):
        in_batches(exactly, todo, size, result, progress)
        return
    fast_read_out = read_out(True)
    fast_layers = exact_layers | on_differences(parts.blocks, base.linear_maps, first)  # the unembedding is left in the model's precision

    def on_the_difference(rows):
        with exchanged(fast_layers):
            return descend(rows, fast_read_out)

    in_two_precisions(exactly, on_the_difference, todo, layers, size, result, fast, progress, odds_only)


def sweep_by_full_passes(model, parts, tokens, edits, candidates, batch_size=None, progress=None):
    """The plain reference of `sweep` on one prompt (int64 [T]), as `by_full_passes`."""
    result = torch.empty(len(edits), len(candidates), dtype=torch.float64)
    size = batch_size or automatic_batch_size(parts, tokens.device, len(tokens))
    in_batches(lambda rows: by_full_passes(model, parts, tokens, edits[rows.to(tokens.device)], candidates), torch.arange(len(edits)), size, result, progress)
    return result


def heads_by_descent(parts, base, edits, read_out):
    """Log-probabilities of both candidates under each attention intervention, in one descent through the layers.

    Rows join before the first layer whose heads they change; only positions from the first context row that differs on are run.
    Heads that every row changes are changed in one more row, the leader: the others part from it where their own heads begin.

    Args:
        base: BaseRun of the tree of the context that is intervened upon and its continuations.
        edits: HeadEdits of B rows, each with a head chosen; read_out: ReadOut of the continuations.

    Returns: float64 [B, C].
    """
    layers = len(parts.blocks)
    common = edits.chosen.all(dim=0)  # [L, H]
    own = (edits.chosen & ~common).any(dim=2)  # [B, L]
    first = torch.where(own.any(dim=1), own.int().argmax(dim=1), layers - 1)  # a row's first layer of its own
    order = first.argsort(stable=True)
    first = first[order].tolist()
    led = bool(common.any())
    edits = HeadEdits(torch.cat([common[None], edits.chosen[order]]) if led else edits.chosen[order], edits.weights, edits.first)
    start = min(first[0], int(common.any(dim=1).int().argmax()) if led else layers)

    resumption = Resumption(parts, base, edits.first)
    hidden = resumption.rows(start, int(led))
    for layer in range(start, layers):
        joining = first.count(layer)
        if joining:
            hidden = torch.cat([hidden, hidden[:1].expand(joining, -1, -1) if led else resumption.rows(layer, joining)])
        under_way = edits[: len(hidden)]
        changes = {parts.attentions[layer]: shift(under_way, layer)} if under_way.chosen[:, layer].any() else {}
        with changed_outputs(changes):
            hidden = resumption.block(layer, hidden)
    result = torch.empty(len(order), read_out.columns, dtype=torch.float64)
    result[order.cpu()] = read_out(hidden[int(led):], edits.first)
    return result


def heads_by_full_passes(model, parts, context, candidates, edits):
    """Reference: a full forward pass a row and candidate (lists of token ids) after `context` (int64 [T]), weights replaced, nothing shared.

    Returns: float64 [B, C].
    """
    columns = []
    for candidate in candidates:
        ids = torch.tensor(candidate, device=context.device)
        tokens = torch.cat([context, ids[:-1]]).expand(len(edits), -1)
        with changed_outputs({module: replacement(edits, layer) for layer, module in enumerate(parts.attentions)}):
            logits = model(tokens, use_cache=False, logits_to_keep=len(ids)).logits  # [B, candidate's tokens, vocabulary]
        columns.append(logits.double().log_softmax(-1)[:, torch.arange(len(ids)), ids].mean(dim=1).cpu())
    return torch.stack(columns, dim=1)


def sweep_heads(model, parts, context, candidates, edits, batch_size=None, full_passes=False, progress=None, fast=None):
    """Log-probabilities of the candidates after `context` under B attention interventions.

    Args:
        context: int64 [T]; candidates: lists of token ids.
        full_passes: True runs the plain reference, every intervention and candidate in a full pass of its own.
        progress: called with the number of interventions done after each batch.
        fast: None, or FastRows that are counted on: bfloat16 on the difference to the base run, see `batches`.

    Returns: float64 [B, C].
    """
    def reference(rows):
        return heads_by_full_passes(model, parts, context, candidates, edits[rows.to(context.device)])

    continuations = pack([context.tolist()], candidates, context.device)
    return sweep_heads_in(model, parts, continuations, context, edits, batch_size, reference if full_passes else None, progress, fast)


def sweep_heads_in(model, parts, tree, context, edits, batch_size=None, reference=None, progress=None, fast=None):
    """Log-probabilities of a tree's predictions under B attention interventions on `context`, the sequence it begins with.

    Heads whose weights are the run's own anyway are not touched: an intervention on none but these has exactly no effect.

    Args:
        reference: None, or a function of rows that is called with one row at a time instead.

    Returns: float64 [B, predictions]; the others as in `sweep_heads`.
    """
    own = attention_weights(model, parts, context)
    differs = (own != edits.weights)[:, :, edits.first:].any(dim=3).any(dim=2)  # [L, H]
    edits = HeadEdits(edits.chosen & differs, edits.weights, edits.first)
    base = run_base(model, parts, tree.tokens, tree, linear_maps=fast is not None)
    residual = base.residuals[-1]
    result = ReadOut(parts, tree.predictions)(residual.unsqueeze(0)).repeat(len(edits), 1)
    changed = edits.chosen.any(dim=2).any(dim=1).cpu()
    if progress:
        progress(int((~changed).sum()))
    todo = changed.nonzero().squeeze(1)
    if reference:
        in_batches(reference, todo, 1, result, progress)
        return result

    def descend(rows, read_out):
        return heads_by_descent(parts, base, edits[rows.to(context.device)], read_out)

    size = batch_size or automatic_batch_size(parts, context.device, len(tree.tokens) - edits.first)
    layers = edits.chosen.any(dim=2).int().argmax(dim=1).cpu()
    _run(descend, todo, layers, size, result, parts, base, tree.predictions, edits.first, False, progress, fast)
    return result
