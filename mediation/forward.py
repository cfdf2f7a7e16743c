"""A forward pass that can be resumed at any block and position, through the library's own blocks.

`run_base` runs a prompt once and keeps what a resumed pass needs: the residual stream before every block, keys and
values, and the arguments each block was called with. `Resumption` then moves a batch of changed residuals through one
block at a time, at the positions from the first changed one on: in a causal model the earlier ones cannot change.

Shapes: B batch (interventions), T tokens, S = T - position tokens that can change, L layers, D hidden size, C candidates.
Costs about 4 x T x D numbers a layer for a prompt. Not for training: everything runs without gradients.
"""

import inspect
from dataclasses import dataclass

import torch

READ_OUT_ROWS = 96  # rows of logits held at once: larger buffers spend their time in page faults


class RecordingCache:
    """Stands in for a key-value cache: keeps what every layer computes, and changes nothing."""

    def __init__(self):
        self.layers = {}

    def update(self, keys, values, layer, *_, **__):
        """Record keys and values [1, key-value heads, T, head size] of a layer; return them as they are."""
        self.layers[layer] = (keys, values)
        return keys, values


class PrefixCache:
    """Stands in for a key-value cache: puts the recorded keys and values of the first `length` positions before the batch's."""

    def __init__(self, recorded, length):
        self.layers = {layer: (k[:, :, :length], v[:, :, :length]) for layer, (k, v) in recorded.layers.items()}

    def update(self, keys, values, layer, *_, **__):
        """keys, values [B, key-value heads, S, head size] -> [B, key-value heads, length + S, head size]. Nothing is stored."""
        return tuple(torch.cat([prefix.expand(len(new), -1, -1, -1), new], dim=2)
                     for prefix, new in zip(self.layers[layer], (keys, values)))


@dataclass(frozen=True)
class BaseRun:
    """What one run of one prompt left behind. Tensors in the model's dtype, on its device.

    `embedding` [T, D]: output of the word embedding; `residuals` L + 1 x [T, D]: input of every block and output of the last;
    `mlp_outputs` L x [T, D]; `arguments` L dictionaries: what each block was called with; `cache`: keys and values.
    """

    embedding: torch.Tensor
    residuals: tuple
    mlp_outputs: tuple
    arguments: tuple
    cache: RecordingCache

    def representations(self, position):
        """Values of all neurons at one position, [L + 1, D]; row 0 the word embedding, row i the MLP of block i - 1."""
        return torch.stack([self.embedding[position], *(output[position] for output in self.mlp_outputs)])


@dataclass(frozen=True)
class Continuations:
    """A context of T tokens with its candidates packed behind it, each seeing the context and itself only.

    `tokens` int64 [T + sum of (candidate length - 1)]: a candidate's last token predicts nothing that is asked for.
    `position_ids` of the same length; `visible` bool, square: row sees column.
    `predictions`: per candidate (positions, tokens): which token is predicted where.
    """

    tokens: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor
    predictions: tuple


def pack(context, candidates):
    """Continuations of `context` (int64 [T]) by `candidates` (lists of token ids, none empty)."""
    device, length = context.device, len(context)
    pieces = [context, *(torch.tensor(candidate[:-1], dtype=torch.long, device=device) for candidate in candidates)]
    owner = torch.cat([torch.full_like(piece, index) for index, piece in enumerate(pieces)])  # 0 the context, i candidate i - 1
    position_ids = torch.cat([torch.arange(length, device=device), *(length + torch.arange(len(piece), device=device) for piece in pieces[1:])])
    earlier = torch.ones(len(owner), len(owner), dtype=torch.bool, device=device).tril()
    visible = earlier & ((owner.unsqueeze(0) == 0) | (owner.unsqueeze(0) == owner.unsqueeze(1)))
    predictions = tuple(([length - 1, *(owner == index).nonzero().flatten().tolist()], list(candidate))
                        for index, candidate in enumerate(candidates, start=1))
    return Continuations(torch.cat(pieces), position_ids, visible, predictions)


def run_base(model, parts, tokens, continuations=None):
    """Run the prompt `tokens` (int64 [T]) once and keep what resumed passes need. Hooks are removed even if the run fails.

    With `continuations` (whose tokens are run), candidates that are packed behind the context do not see each other.

    `model` runs eager attention: it is given an explicit mask, which can be cut to the positions that are run again.
    """
    cache, embedding, residuals, mlp_outputs, arguments = RecordingCache(), [], [], [], []

    def at_block(block, positional, named):
        call = inspect.signature(block.forward).bind(*positional, **named).arguments
        call.update(call.pop("kwargs", {}))
        hidden = call.pop("hidden_states")
        call["past_key_values"] = cache
        residuals.append(hidden[0])
        arguments.append(call)
        return (hidden,), call

    handles = [block.register_forward_pre_hook(at_block, with_kwargs=True) for block in parts.blocks]
    handles.append(parts.embedding.register_forward_hook(lambda _, __, output: embedding.append(output[0])))
    handles += [mlp.register_forward_hook(lambda _, __, output: mlp_outputs.append(output[0])) for mlp in parts.mlps]
    handles.append(parts.final_norm.register_forward_pre_hook(lambda _, inputs: residuals.append(inputs[0][0])))
    try:
        model(tokens.unsqueeze(0), use_cache=False, logits_to_keep=1, **_tree(model, continuations))
    finally:
        for handle in handles:
            handle.remove()
    return BaseRun(embedding[0], tuple(residuals), tuple(mlp_outputs), tuple(arguments), cache)


def _tree(model, continuations):
    """Mask and positions of packed candidates, as the library's models take them."""
    if continuations is None:
        return {}
    mask = torch.zeros(continuations.visible.shape, dtype=model.dtype, device=continuations.visible.device)
    mask = mask.masked_fill(~continuations.visible, torch.finfo(model.dtype).min)[None, None]  # [1, 1, T, T]
    return {"attention_mask": mask, "position_ids": continuations.position_ids.unsqueeze(0)}


class Resumption:
    """Resumed passes of one base run: everything before `position` stays as it was.

    >>> resumption = Resumption(parts, base, position)
    >>> hidden = resumption.block(3, base.residuals[3][position:].unsqueeze(0))  # = base.residuals[4][position:]
    """

    def __init__(self, parts, base, position):
        self.parts = parts
        self.base = base
        self.position = position
        cache = PrefixCache(base.cache, position)
        self.arguments = [self._cut(call) | {"past_key_values": cache} for call in base.arguments]

    def _cut(self, call):
        """A block's arguments for the positions from `self.position` on."""
        cut = dict(call)
        cut["attention_mask"] = call["attention_mask"][:, :, self.position:]  # [1, 1, S, T]
        for name in ("position_ids", "cache_position"):
            if call.get(name) is not None:
                cut[name] = call[name][..., self.position:]
        if call.get("position_embeddings") is not None:
            cut["position_embeddings"] = tuple(table[:, self.position:] for table in call["position_embeddings"])
        return cut

    def block(self, index, hidden):
        """Move `hidden` [B, S, D] through one block."""
        return self.parts.blocks[index](hidden, **self.arguments[index])

    def rows(self, index, count):
        """`count` copies of the base run's residual stream before block `index`, [count, S, D]."""
        return self.base.residuals[index][self.position:].expand(count, -1, -1).clone()


def candidate_log_probabilities(parts, hidden, candidates):
    """Log-probabilities of single-token candidates after a residual stream that left the last block.

    Args:
        hidden: [B, D], at the position that predicts the candidate.
        candidates: C token ids.

    Returns: float64 [B, C], on the CPU.
    """
    return token_log_probabilities(parts, hidden.unsqueeze(1), [0] * len(candidates), candidates)


def token_log_probabilities(parts, hidden, positions, tokens):
    """Log-probability of each of n tokens, predicted at its position of a residual stream [B, P, D] that left the last block.

    Returns: float64 [B, n], on the CPU.
    """
    needed = sorted(set(positions))
    at = [needed.index(position) for position in positions]
    pieces = []
    for rows in hidden[:, needed].split(max(1, READ_OUT_ROWS // len(needed))):
        logits = parts.head(parts.final_norm(rows))  # [rows, positions, vocabulary]
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        pieces.append(logits[:, at, tokens].double() - logits.logsumexp(-1)[:, at].double())
    return torch.cat(pieces).cpu()


def continuation_log_probabilities(parts, hidden, continuations, first):
    """Mean token log-probability of each candidate (the logarithm of p in the study), from residuals [B, T - first, D] that begin at `first`.

    Returns: float64 [B, C], on the CPU.
    """
    positions = [position - first for where, _ in continuations.predictions for position in where]
    tokens = [token for _, predicted in continuations.predictions for token in predicted]
    each = token_log_probabilities(parts, hidden, positions, tokens)
    return torch.stack([part.mean(dim=1) for part in each.split([len(predicted) for _, predicted in continuations.predictions], dim=1)], dim=1)
