"""A forward pass that can be resumed at any block and position, through the library's own blocks.

`run_base` runs a prompt once and keeps what a resumed pass needs: the residual stream before every block,
keys and values, and the arguments with which each block was called. `Resumption` then moves a batch of
changed residuals through one block at a time, at the positions from the first changed one on: in a causal
model the earlier ones cannot change. Which dimensions of the arguments run over positions is known of each
model (`Form`), whatever their names are.

Symbols in shapes: B batch (interventions), T tokens, S = T - position tokens that can change, D hidden size,
G key-value heads, d head size.
A prompt costs about 4 x T x D numbers per block. Not for training: everything runs without gradients.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from mediation.errors import InputError
from mediation.model.architectures import Form, Parts
from mediation.model.products import Recorded, exchanged, recorded
from mediation.model.token_trees import Tree

Keys = Float[Tensor, "B G S d"]  # or values
HOOKS = ("_forward_pre_hooks", "_forward_hooks")  # where PyTorch keeps a module's


class RecordingCache:
    """Stands in for a key-value cache: keeps what every attention layer computes, and changes nothing."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Keys, values: Keys, layer: int, *_: Any, **__: Any) -> tuple[Keys, Keys]:
        """Record keys and values of an attention layer; return them as they are."""
        self.layers[layer] = (keys, values)
        return keys, values

    def of_sequence(self, row: int) -> "RecordingCache":
        """What was recorded of one sequence of the batch."""
        one = RecordingCache()
        one.layers = {layer: (keys[row:row + 1], values[row:row + 1])
                      for layer, (keys, values) in self.layers.items()}
        return one


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
    """What one run of one prompt left behind. Tensors in the model's dtype, each where it was computed.

    `tokens`, `depths`: that were run, and their positions where these do not count up from 0;
    `embedding`: output of the word embedding; `residuals`: input of every block and output of the last;
    `mlp_outputs`: of every block; `arguments`: what each block was called with; `cache`: keys and values;
    `linear_maps`: what its linear maps were given and gave, where it was asked for (see `products.recorded`).
    """

    tokens: Int[Tensor, "T"]
    depths: Int[Tensor, "T"] | None
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
        of_mlps = (output[position].to(self.embedding.device) for output in self.mlp_outputs)
        return torch.stack([self.embedding[position], *of_mlps])


def signature_of(module: nn.Module) -> tuple[inspect.Signature, str, str | None]:
    """What a module's `forward` takes: its signature, the name of its first argument, and of its **arguments.

    As its class has it, whatever is run in its place.
    """
    return _signature(type(module))  # type: ignore[arg-type]  # a class can be hashed


@cache
def _signature(kind):
    signature = inspect.signature(kind.forward)
    names = list(signature.parameters)[1:]
    collecting = (name for name, each in signature.parameters.items() if each.kind == each.VAR_KEYWORD)
    return signature, names[0] if names else "", next(collecting, None)


def first_argument(module: nn.Module) -> str:
    """What a module calls the first thing that it is given: a block the residual stream."""
    return signature_of(module)[1]


def called_with(block: nn.Module, positional: tuple, named: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The residual stream that a block was given, and all its other arguments by name."""
    signature, first, collecting = signature_of(block)
    call = signature.bind(block, *positional, **named).arguments
    call.pop(next(iter(signature.parameters)))
    call.update(call.pop(collecting or "", {}))
    return call.pop(first), call


def first_tensor(given: Any) -> Any:
    """A module's output where that is the first of several; the output itself where it is alone."""
    return given[0] if isinstance(given, (tuple, list)) else given


def changed(function: Callable[..., Any], given: Any, path: str = "") -> Any:
    """What a block is called with, every tensor in it exchanged by function(path, tensor).

    A path is the argument's name, and where in it the tensor lies: "position_embeddings.0".
    """
    if isinstance(given, Tensor):
        return function(path, given)
    below = f"{path}." if path else ""
    if isinstance(given, dict):
        return {key: changed(function, value, f"{below}{key}") for key, value in given.items()}
    if type(given) in (tuple, list):
        return type(given)(changed(function, value, f"{below}{index}") for index, value in enumerate(given))
    return given


@contextmanager
def blocks_skipped(blocks: nn.ModuleList, returns: Sequence[int], calls: list,
                   hidden: Tensor | None = None) -> Iterator[None]:
    """While open, blocks give `hidden`, or what they are given, and list that and their other arguments.

    Their hooks, which are for runs through them, are not called.

    Args:
        returns: of every block, how many things it returns, see `Architecture`.
    """
    @no_type_check
    def skip(block, count):
        def forward(*positional, **named):
            given, call = called_with(block, positional, named)
            calls.append((given, call))
            given = given if hidden is None else hidden
            return (given, *[None] * (count - 1)) if count else given
        return forward

    hooks = [{name: getattr(block, name) for name in HOOKS} for block in blocks]
    try:
        for block, count in zip(blocks, returns):
            block.forward = skip(block, count)  # type: ignore[method-assign]  # exchanged on purpose
            block.__dict__.update({name: OrderedDict() for name in HOOKS})
        yield
    finally:
        for block, own in zip(blocks, hooks):
            block.__dict__.pop("forward", None)  # the class' own is there again
            block.__dict__.update(own)


def front(model: PreTrainedModel, blocks: nn.ModuleList, returns: Sequence[int], tokens: Int[Tensor, "B T"],
          **positions: Int[Tensor, "1 T"]) -> tuple[Float[Tensor, "B T D"], list[dict[str, Any]]]:
    """The residual stream before the first block, and what each block is called with besides."""
    calls: list[tuple[Tensor, dict[str, Any]]] = []
    with blocks_skipped(blocks, returns, calls):
        model.base_model(tokens, use_cache=False, **positions)
    return calls[0][0], [call for _, call in calls]


def logits_behind(parts: Parts, hidden: Float[Tensor, "B P D"]) -> Float[Tensor, "B P V"]:
    """Logits of residual streams that leave the last block, by the library's own code."""
    tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    with blocks_skipped(parts.blocks, parts.architecture.returns, [], hidden):
        return parts.model(tokens, use_cache=False).logits


def last_logits(model: PreTrainedModel, tokens: Int[Tensor, "B T"], keep: int) -> Float[Tensor, "B {keep} V"]:
    """Logits at the last `keep` positions; some of the library's models compute all of them."""
    takes = "logits_to_keep" in signature_of(model)[0].parameters
    more = {"logits_to_keep": keep} if takes else {}
    return model(tokens, use_cache=False, **more).logits[:, -keep:]


def run(model: PreTrainedModel, parts: Parts, tokens: Int[Tensor, "B T"], tree: Tree | None = None) -> None:
    """Run prompts, or trees of one shape in which branches do not see each other, through all blocks.

    What is wanted of it is taken by hooks.
    """
    if tree is None or tree.visible is None:
        model.base_model(tokens, use_cache=False)
        return
    check_resumes(parts)
    hidden, calls = _front_of_tree(model, parts, tokens, tree)
    for block, call in zip(parts.blocks, calls):
        hidden = first_tensor(block(hidden, **call))


def check_resumes(parts: Parts) -> None:
    """Raises InputError for a model whose runs cannot be resumed, or branch."""
    if not parts.architecture.resumes:
        raise InputError(f"this {parts.model.config.model_type} model {parts.architecture.obstacle}: run its "
                         "interventions as full passes, alone")


def _positions(parts, depths):
    """The argument that tells a model positions other than 0, 1, 2."""
    return {"position_ids": depths[None]} if depths is not None and parts.architecture.takes_positions else {}


def _front_of_tree(model, parts, tokens, tree):
    """`front` of trees: what depends on positions alone is a plain sequence's, taken at each node's depth.

    So a mask knows how far a window reaches back along the branch; and what a node does not see is left out.
    """
    architecture, depths = parts.architecture, tree.position_ids
    known = model, parts.blocks, architecture.returns
    with torch.no_grad():
        _, plain = front(*known, tokens[:, : int(depths.max()) + 1])
    # after it, so that what hooks keep of the embedding is the tree's
    hidden, calls = front(*known, tokens, **_positions(parts, depths))

    def of_nodes(forms):
        def at_nodes(path, tensor):
            form = forms.get(path, Form())
            for dimension in form.tokens:
                tensor = tensor.index_select(dimension, depths)
            if len(form.tokens) < 2:
                return tensor
            if tensor.dtype == torch.bool:
                return tensor & tree.visible
            return tensor.masked_fill(~tree.visible, torch.finfo(tensor.dtype).min)
        return at_nodes

    of_tree = []
    for forms, own, of_plain in zip(architecture.forms, calls, plain):
        nodes = changed(of_nodes(forms), of_plain)
        of_tree.append(nodes | {name: own[name] for name in own if any(
            form.of_text and path.split(".")[0] == name for path, form in forms.items())})
    return hidden, of_tree


def run_base(model: PreTrainedModel, parts: Parts, tokens: Int[Tensor, "T"], tree: Tree | None = None,
             linear_maps: bool = False) -> BaseRun:
    """Run the prompt `tokens` once and keep what resumed passes need, see `run_bases`."""
    return run_bases(model, parts, tokens.unsqueeze(0), tree, linear_maps)[0]


def run_bases(model: PreTrainedModel, parts: Parts, tokens: Int[Tensor, "B T"], tree: Tree | None = None,
              linear_maps: bool = False) -> list[BaseRun]:
    """Run prompts once, in one batch, and keep what resumed passes of each need: a few read the weights once.

    Hooks are removed even if it fails. With `tree`, which has the shape of all, branches do not see each
    other. `linear_maps`: keep what these are given and give, too; of one prompt alone.

    `model` runs eager attention: it is given an explicit mask, which can be cut to the positions that are run
    again.
    """
    cache = RecordingCache()
    embedding: list[Tensor] = []
    residuals: list[Tensor] = []
    mlp_outputs: list[Tensor] = []
    arguments: list[dict[str, Any]] = []
    cache_name = parts.architecture.cache if parts.architecture.resumes else None

    @no_type_check  # a hook is made in every run: wrapping it for the tests takes longer than it
    def at_block(block, positional, named):
        hidden, call = called_with(block, positional, named)
        # the run itself keeps no cache (`use_cache=False`): this is the one way to its keys and values
        if cache_name:
            call[cache_name] = cache
        residuals.append(hidden.clone())  # as all that is kept: some blocks add to it in place
        arguments.append(call)
        return (hidden,), call

    @no_type_check
    def at_last(_block, _inputs, output):
        residuals.append(first_tensor(output).clone())

    @no_type_check
    def at_mlp(_mlp, _inputs, output):
        output = first_tensor(output)
        mlp_outputs.append(output.reshape(len(tokens), -1, output.shape[-1]).clone())

    handles = [block.register_forward_pre_hook(at_block, with_kwargs=True) for block in parts.blocks]
    handles.append(parts.embedding.register_forward_hook(
        lambda _module, _inputs, output: embedding.append(output.clone())))
    handles += [mlp.register_forward_hook(at_mlp) for mlp in parts.mlps]
    handles.append(parts.blocks[-1].register_forward_hook(at_last))
    try:
        with recorded(parts.blocks if linear_maps else nn.ModuleList()) as record:
            run(model, parts, tokens, tree)
    finally:
        for handle in handles:
            handle.remove()
    depths = tree.position_ids if tree is not None and tree.visible is not None else None
    forms = parts.architecture.forms or ({},) * len(arguments)
    return [BaseRun(one, depths, embedding[-1][row], tuple(values[row] for values in residuals),
                    tuple(values[row] for values in mlp_outputs),
                    tuple(_of_sequence(call, of_call, row, len(tokens))
                          for call, of_call in zip(arguments, forms)), cache.of_sequence(row), record)
            for row, one in enumerate(tokens)]


def _of_sequence(call, forms, row, count):
    """What a block that was called with `count` sequences would have been given with one of them alone."""
    def cut(path, tensor):
        dimension = forms[path].sequences if path in forms else None
        if dimension is None or tensor.shape[dimension] < count:  # the same for all of them
            return tensor
        rows = tensor.shape[dimension] // count  # more than one where every head has its own
        return tensor.narrow(dimension, row * rows, rows)
    return changed(cut, call) if count > 1 else call


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


class Resumption:
    """Resumed passes of one base run: everything before `position` stays as it was.

    >>> resumption = Resumption(parts, base, position)
    >>> resumption.block(3, base.residuals[3][position:].unsqueeze(0))  # = base.residuals[4][position:]
    """

    def __init__(self, parts: Parts, base: BaseRun, position: int) -> None:
        check_resumes(parts)
        self.parts = parts
        self.base = base
        self.position = position
        architecture = parts.architecture
        cache = {architecture.cache: PrefixCache(base.cache, position)} if architecture.cache else {}
        # masked models are run from their first position on: nothing is cut
        self.forms = architecture.forms or ({},) * len(base.arguments)
        self.arguments = [self._cut(call, forms) | cache for call, forms in zip(base.arguments, self.forms)]

    def _cut(self, call, forms):
        """A block's arguments for the positions from `self.position` on."""
        def cut(path, tensor):
            tokens = forms[path].tokens if path in forms else ()
            return tensor.narrow(tokens[0], self.position, tensor.shape[tokens[0]] - self.position) \
                if tokens else tensor
        return changed(cut, call)

    def block(self, index: int, hidden: Float[Tensor, "B S D"],
              where: Bool[Tensor, "B S"] | None = None) -> Float[Tensor, "B S D"]:
        """Move `hidden` through one block, and to where the base run's residual stream behind it is.

        Args:
            where: None, or where the output of the block's MLP can differ from the base run's, or is of
                interest. An MLP that can be run at these positions alone is.
        """
        forms = self.forms[index]

        def repeat(path, tensor):
            """For every sequence of the batch."""
            dimension = forms[path].sequences if path in forms else None
            if dimension is None or len(hidden) == 1:
                return tensor
            counts = [len(hidden) if dimension == each else 1 for each in range(tensor.dim())]
            if tensor.shape[dimension] > 1:  # a row for every head of every sequence
                return tensor.repeat(counts)
            return tensor.expand([count if count > 1 else -1 for count in counts])

        alone = where is not None and not where.all() and self.parts.architecture.mlps_alone
        with exchanged(self._mlp_at(index, where) if alone else {}):
            behind = first_tensor(self.parts.blocks[index](hidden, **changed(repeat, self.arguments[index])))
        return behind.to(self.base.residuals[index + 1].device)

    def _mlp_at(self, index, where):
        """An MLP, and what it does when it is run at these positions alone and gives the base run's output
        elsewhere."""
        mlp, own = self.parts.mlps[index], self.base.mlp_outputs[index][self.position:]
        run, places = mlp.forward, where.flatten().nonzero().squeeze(1).to(own.device)

        @no_type_check  # as in `run_bases`
        def forward(*positional, **named):
            given, call = called_with(mlp, positional, named)
            some = given.reshape(-1, given.shape[-1])[places]
            output = run(some.reshape(*[1] * (given.dim() - 2), *some.shape), **call)
            whole = own.repeat(len(where), 1)
            whole[places] = first_tensor(output).reshape(len(places), -1)
            whole = whole.reshape(*given.shape[:-1], -1)
            return type(output)([whole, *output[1:]]) if isinstance(output, (tuple, list)) else whole
        return {mlp: forward}

    def rows(self, index: int, count: int) -> Float[Tensor, "{count} S D"]:
        """Copies of the base run's residual stream before block `index`."""
        return self.base.residuals[index][self.position:].expand(count, -1, -1).clone()

    def embedded(self, outputs: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """The residual stream before the first block when the word embedding gives `outputs`."""
        parts, base, first = self.parts, self.base, self.position
        if parts.architecture.embedding_adds:
            rows = self.rows(0, len(outputs))
            return rows + (outputs - base.embedding[first:]).to(rows.device)
        whole = base.embedding.expand(len(outputs), -1, -1).clone()
        whole[:, first:] = outputs
        handle = parts.embedding.register_forward_hook(lambda _module, _inputs, _output: whole)
        try:
            hidden, _ = front(parts.model, parts.blocks, parts.architecture.returns,
                              base.tokens.expand(len(outputs), -1), **_positions(parts, base.depths))
        finally:
            handle.remove()
        return hidden[:, first:].to(base.residuals[0].device)
