"""A forward pass that can be resumed at any block and position, through the library's own blocks.

`run_base` runs a prompt once and keeps what a resumed pass needs: the residual stream before every block,
keys and values, and the arguments with which each block was called. `Resumption` then moves a batch of
changed residuals through one block at a time, at the positions from the first changed one on: in a causal
model the earlier ones cannot change.

Symbols in shapes: B batch (interventions), T tokens, S = T - position tokens that can change, D hidden size,
G key-value heads, d head size.
A prompt costs about 4 x T x D numbers per block. Not for training: everything runs without gradients.
"""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from mediation.model.architectures import Parts
from mediation.model.products import Recorded, recorded

Prediction = tuple[Sequence[int], Sequence[int]]  # positions, and the tokens that are predicted at them
Keys = Float[Tensor, "B G S d"]  # or values


class RecordingCache:
    """Stands in for a key-value cache: keeps what every attention layer computes, and changes nothing."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Keys, values: Keys, layer: int, *_: Any, **__: Any) -> tuple[Keys, Keys]:
        """Record keys and values of an attention layer; return them as they are."""
        self.layers[layer] = (keys, values)
        return keys, values


class PrefixCache:
    """Stands in for a key-value cache: puts what was recorded of the first `length` positions first."""

    def __init__(self, record: RecordingCache, length: int) -> None:
        self.layers = {layer: (keys[:, :, :length], values[:, :, :length])
                       for layer, (keys, values) in record.layers.items()}

    def update(
        self, keys: Keys, values: Keys, layer: int, *_: Any, **__: Any,
    ) -> tuple[Float[Tensor, "B G T d"], Float[Tensor, "B G T d"]]:
        """Keys and values of the prefix, and behind them those of the batch. Nothing is stored."""
        all_keys, all_values = (torch.cat([prefix.expand(len(new), -1, -1, -1), new], dim=2)
                                for prefix, new in zip(self.layers[layer], (keys, values)))
        return all_keys, all_values


@dataclass(frozen=True)
class BaseRun:
    """What one run of one prompt left behind. Tensors in the model's dtype, on its device.

    `embedding`: output of the word embedding; `residuals`: input of every block and output of the last;
    `mlp_outputs`: of every block; `arguments`: what each block was called with; `cache`: keys and values;
    `linear_maps`: what its linear maps were given and gave, where it was asked for (see `products.recorded`).
    """

    embedding: Float[Tensor, "T D"]
    residuals: tuple[Float[Tensor, "T D"], ...]
    mlp_outputs: tuple[Float[Tensor, "T D"], ...]
    arguments: tuple[dict[str, Any], ...]
    cache: RecordingCache
    linear_maps: Recorded

    def outputs(self, layer: int) -> Float[Tensor, "T D"]:
        """What a layer of neurons gave at every position; 0 the word embedding, i the MLP of block i - 1."""
        return self.mlp_outputs[layer - 1] if layer else self.embedding

    def representations(self, position: int) -> Float[Tensor, "{len(self.residuals)} D"]:
        """Values of all neurons at one position; row 0 the word embedding, row i the MLP of block i - 1."""
        return torch.stack([self.embedding[position], *(output[position] for output in self.mlp_outputs)])


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
    pairs = [(list(prompt), list(candidate)) for prompt in prompts for candidate in candidates]
    # a candidate's last token predicts nothing that is asked for, and is left out
    tree, paths = _grow([prompt + candidate[:-1] for prompt, candidate in pairs], device)
    tokens, position_ids, visible = tree
    predictions = tuple((path[len(prompt) - 1:], candidate)
                        for path, (prompt, candidate) in zip(paths, pairs))
    return Tree(tokens, position_ids, visible, predictions)


def run_base(model: PreTrainedModel, parts: Parts, tokens: Int[Tensor, "T"], tree: Tree | None = None,
             linear_maps: bool = False) -> BaseRun:
    """Run the prompt `tokens` once and keep what resumed passes need. Hooks are removed even if it fails.

    With `tree` (whose tokens are run), branches do not see each other. `linear_maps`: keep what these are
    given and give, too.

    `model` runs eager attention: it is given an explicit mask, which can be cut to the positions that are run
    again.
    """
    cache = RecordingCache()
    embedding: list[Tensor] = []
    residuals: list[Tensor] = []
    mlp_outputs: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    @no_type_check  # a hook is made in every run: wrapping it for the tests takes longer than it
    def at_block(block, positional, named):
        call = inspect.signature(block.forward).bind(*positional, **named).arguments
        call.update(call.pop("kwargs", {}))
        hidden = call.pop("hidden_states")
        # the run itself keeps no cache (`use_cache=False`): this is the one way to its keys and values
        if parts.cache_name:
            call[parts.cache_name] = cache
        residuals.append(hidden[0])
        arguments.append(call)
        return (hidden,), call

    @no_type_check
    def at_mlp(_mlp, _inputs, output):
        mlp_outputs.append(output.reshape(-1, output.shape[-1]))

    handles = [block.register_forward_pre_hook(at_block, with_kwargs=True) for block in parts.blocks]
    handles.append(parts.embedding.register_forward_hook(lambda _, __, output: embedding.append(output[0])))
    handles += [mlp.register_forward_hook(at_mlp) for mlp in parts.mlps]
    handles.append(parts.blocks[-1].register_forward_hook(lambda _, __, output: residuals.append(output[0])))
    try:
        with recorded(parts.blocks if linear_maps else nn.ModuleList()) as record:
            model.base_model(tokens.unsqueeze(0), use_cache=False, **as_arguments(model, tree))
    finally:
        for handle in handles:
            handle.remove()
    return BaseRun(embedding[0], tuple(residuals), tuple(mlp_outputs), tuple(arguments), cache, record)


class Narrowing(TorchDispatchMode):
    """While open, `seen` becomes True when float64 numbers are made float32.

    Many norms and softmaxes of the library do so whatever the model's dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.seen |= any(isinstance(argument, torch.Tensor) and argument.dtype == torch.float64
                             for argument in args)
        return result


def as_arguments(model: PreTrainedModel, tree: Tree | None) -> dict[str, Any]:
    """Mask and positions of a tree, as the library's models take them.

    One mask, or one for each type of attention layer.
    """
    if tree is None or tree.visible is None or tree.position_ids is None:
        return {}
    window, types = getattr(model.config, "sliding_window", None), getattr(model.config, "layer_types", None)
    mask: Any = _additive(tree.visible, model.dtype)
    if window and (not types or "sliding_attention" in types):
        # how far back a window reaches is counted along the branch, not in the order of the nodes
        distance = tree.position_ids[:, None] - tree.position_ids
        sliding = _additive(tree.visible & (distance < window), model.dtype)
        mask = {"full_attention": mask, "sliding_attention": sliding} if types else sliding
    return {"attention_mask": mask, "position_ids": tree.position_ids.unsqueeze(0)}


def _additive(visible, dtype):
    """bool [T, T] -> [1, 1, T, T], 0 where it is true and the smallest number elsewhere."""
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill(~visible, torch.finfo(dtype).min)[None, None]


class Resumption:
    """Resumed passes of one base run: everything before `position` stays as it was.

    >>> resumption = Resumption(parts, base, position)
    >>> resumption.block(3, base.residuals[3][position:].unsqueeze(0))  # = base.residuals[4][position:]
    """

    def __init__(self, parts: Parts, base: BaseRun, position: int) -> None:
        self.parts = parts
        self.base = base
        self.position = position
        cache = {parts.cache_name: PrefixCache(base.cache, position)} if parts.cache_name else {}
        self.arguments = [self._cut(call) | cache for call in base.arguments]

    def _cut(self, call):
        """A block's arguments for the positions from `self.position` on."""
        cut = dict(call)
        if call.get("attention_mask") is not None:
            cut["attention_mask"] = call["attention_mask"][:, :, self.position:]  # [1, 1, S, T]
        for name in ("position_ids", "cache_position"):
            if call.get(name) is not None:
                cut[name] = call[name][..., self.position:]
        if call.get("position_embeddings") is not None:
            tables = call["position_embeddings"]
            cut["position_embeddings"] = tuple(table[:, self.position:] for table in tables)
        return cut

    def block(self, index: int, hidden: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Move `hidden` through one block."""
        return self.parts.blocks[index](hidden, **self.arguments[index])

    def rows(self, index: int, count: int) -> Float[Tensor, "{count} S D"]:
        """Copies of the base run's residual stream before block `index`."""
        return self.base.residuals[index][self.position:].expand(count, -1, -1).clone()
