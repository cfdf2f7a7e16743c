"""Where a causal model keeps its parts, found by watching one short run.

Names differ from architecture to architecture; what modules do does not. The blocks are a list of modules
each of which is given what the one before gave. The attention is the module that calls the library's eager
attention. The MLP is the last module of a block that has weights and is no attention. Which of a linear map's
outputs are a head's is seen in the gradient of that head's queries, keys or values. What is not seen is left
out: the mediators that need it are not offered.

Symbols in shapes: B batch, T tokens, H heads, G groups of heads that share keys and values, d head size.
"""

import itertools
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mediation.errors import InputError
from mediation.model.architectures import Architecture, Columns, Form
from mediation.model.attention import Attended, watched_attention
from mediation.model.forward import changed, first_argument, first_tensor, front, signature_of
from mediation.model.readout import NOT_PROBABILITIES

LENGTH = 8  # tokens of the runs that are watched
CACHES = ("past_key_values", "layer_past", "past_key_value")  # how blocks call a cache of keys and values
# what MLPs are called; a block may have another heavy module behind its attention
MLP = re.compile(r"mlp(?!_?s?conv)|feed_?forward|\bffn?\b|\bfc2\b|moe|experts", re.IGNORECASE)
OTHER = re.compile(r"mamba|mixer|conv|recurrent|rwkv_att", re.IGNORECASE)  # what is none
LINEAR = (nn.Linear, Conv1D)


@dataclass
class Call:
    """One call of a module: the first tensor that it was given, how many sequences of vectors it was given,
    what it gave, and when it began and ended."""

    module: nn.Module
    name: str
    given: Any
    sequences: int
    result: Any
    begin: int
    end: int = 0

    @property
    def gave(self) -> Any:
        """The tensor, or the first of several; None for anything else."""
        first = first_tensor(self.result)
        return first if isinstance(first, Tensor) else None


@dataclass
class Watched:
    """A run: the calls of its modules and of the library's attention, in order, and the logits."""

    calls: list[Call]
    attended: list[Attended]
    logits: Tensor

    def within(self, begin: int, end: int) -> list[Call]:
        """Calls that began and ended between two times."""
        return [call for call in self.calls if begin < call.begin and call.end < end]

    def of(self, module: nn.Module) -> list[Call]:
        """Of one module."""
        return [call for call in self.calls if call.module is module]


def sample_tokens(model: PreTrainedModel) -> Int[Tensor, "2 T"]:
    """Two texts of token ids drawn at random, no special ones, always the same."""
    config = model.config.get_text_config()
    named = [getattr(config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
    special = {number for each in named for number in (each if isinstance(each, list) else [each])}
    usual = [number for number in range(config.vocab_size) if number not in special]
    length = min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH)
    drawn = torch.randint(len(usual), (2, length), generator=torch.Generator().manual_seed(0))
    return torch.tensor(usual, device=model.device)[drawn.to(model.device)]


@torch.no_grad()
def watch(model: PreTrainedModel, tokens: Int[Tensor, "1 T"]) -> Watched:
    """Run a prompt and note what happens."""
    clock = itertools.count(1)
    calls: list[Call] = []
    names = {module: name for name, module in model.named_modules()}

    def before(module, positional, named):
        first = positional[0] if positional else named.get(first_argument(module))
        tensors = [each for each in (*positional, *named.values()) if isinstance(each, Tensor)]
        calls.append(Call(module, names[module], first if isinstance(first, Tensor) else None,
                          sum(each.dim() == 3 for each in tensors), None, next(clock)))

    def after(module, _inputs, output):
        call = next(call for call in reversed(calls) if call.module is module and not call.end)
        call.result, call.end = output, next(clock)

    handles = [handle for module in names for handle in (
        module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after))]
    try:
        with watched_attention(clock) as attended:
            logits = model(tokens, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return Watched(calls, attended, logits)


def discover(model: PreTrainedModel, tokens: Int[Tensor, "2 T"], seen: Watched) -> Architecture:
    """The parts of a causal model, as far as they can be seen in a run of the first of two texts.

    Raises:
        InputError: no blocks, word embedding or unembedding, or logits that are no numbers.
    """
    if seen.logits.isnan().any():  # numbers that are none equal nothing: nothing could be found
        raise InputError(NOT_PROBABILITIES)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    if embedding is None or head is None or not seen.of(embedding) or not seen.of(head):
        raise InputError(refusal(model, "no word embedding or unembedding was called in a run"))
    blocks = _blocks(model, seen, head)
    calls = [seen.of(block)[0] for block in blocks]
    if calls[0].given.dim() != 3:
        raise InputError(refusal(model, "its blocks pass on several residual streams at once"))
    found = Architecture(
        names[embedding], names[blocks], names[head], _final(seen, calls[-1], head), calls[0].given.shape[-1],
        returns=tuple(0 if isinstance(call.result, Tensor) else len(call.result) for call in calls),
        takes_positions="position_ids" in signature_of(model.base_model)[0].parameters,
        cache=next((name for name in CACHES if name in signature_of(blocks[0])[0].parameters), None),
    )
    arguments = front(model, blocks, found.returns, tokens[:1])[1]
    # a word embedding of another width is no layer of the same neurons
    mlps = _mlps(seen, calls) if seen.of(embedding)[0].gave.shape[-1] == found.width else {}
    return replace(found, forms=_forms(model, blocks, found.returns, tokens), **mlps,
                   **_attention(names, seen, calls, arguments))


def refusal(model: PreTrainedModel, reason: str) -> str:
    """A line for a model that cannot be studied."""
    return (f"this {model.config.model_type} model cannot be studied: {reason}; docs/architectures.md lists "
            "the models that can")


def _blocks(model, seen, head):
    """The heaviest list of modules called once each, in a chain, before the unembedding."""
    end = seen.of(head)[-1].begin

    def is_chain(modules):
        calls = [seen.of(module) for module in modules]
        if not calls or any(len(each) != 1 for each in calls) or calls[-1][0].end > end:
            return False
        return all(one.gave is not None and other.given is not None and torch.equal(one.gave, other.given)
                   for (one,), (other,) in itertools.pairwise(calls)) and calls[0][0].given is not None

    chains = [each for each in model.modules() if isinstance(each, nn.ModuleList) and is_chain(each)]
    if not chains:
        raise InputError(refusal(model, "it has no list of blocks each of which is given what the one "
                                         "before gave"))
    return max(chains, key=lambda modules: sum(weight.numel() for weight in modules.parameters()))


def _final(seen, last, head):
    """Names of the modules between the last block and the unembedding, if they are all there is."""
    unembedding = seen.of(head)[-1]
    names, time, hidden = [], last.end, last.gave
    for call in seen.within(last.end, unembedding.begin):
        if call.begin < time:  # within the one before
            continue
        if call.given is None or call.gave is None or not torch.equal(call.given, hidden):
            return None
        names.append(call.name)
        time, hidden = call.end, call.gave
    is_all = torch.equal(hidden, unembedding.given) and torch.equal(unembedding.gave, seen.logits)
    return tuple(names) if is_all and names and isinstance(head, nn.Linear) else None


def _forms(model, blocks, returns, tokens):
    """Of every block, what the dimensions of its tensors run over: seen by running other lengths, batches and
    texts."""
    def tensors(tokens):
        listed = []
        for call in front(model, blocks, returns, tokens)[1]:
            of_block: dict[str, Tensor] = {}
            changed(of_block.__setitem__, call)
            listed.append(of_block)
        return listed

    with torch.no_grad():
        runs = tensors(tokens[:1]), tensors(tokens[:1, :-1]), tensors(tokens[:1].repeat(2, 1)), \
            tensors(tokens[1:])
    forms = []
    for usual, shorter, twice, other in zip(*runs):
        of_block = {}
        for path, tensor in usual.items():
            if not all(path in each and each[path].dim() == tensor.dim() for each in (shorter, twice, other)):
                continue
            batch = _differing(tensor, twice[path])
            of_block[path] = Form(tuple(_differing(tensor, shorter[path])), batch[0] if batch else None,
                                  not torch.equal(tensor, other[path]))
        forms.append(of_block)
    return tuple(forms)


def _differing(one, other):
    """Dimensions in which two tensors differ in size."""
    return [dimension for dimension, (a, b) in enumerate(zip(one.shape, other.shape)) if a != b]


def _complete(of_blocks):
    """As a tuple, or () where it was not seen in a block."""
    return () if None in of_blocks else tuple(of_blocks)


def _mlps(seen, calls):
    """MLPs, norms behind them, and the linear maps that they end with."""
    mlps, norms = [], []
    ends: list[Any] = []
    for block in calls:
        inside = seen.within(block.begin, block.end)
        attending = {each.module for each in seen.attended if block.begin < each.time < block.end}
        children = [part for child in block.module.children()
                    for part in (child if isinstance(child, nn.ModuleList) else [child])]
        heavy = [call for call in inside if call.module in children
                 and any(weight.dim() > 1 for weight in call.module.parameters())
                 and not attending & set(call.module.modules())
                 and call.gave is not None and call.gave.shape[-1] == block.given.shape[-1]
                 and not OTHER.search(f"{call.name.removeprefix(block.name)} {type(call.module).__name__}")]
        named = [call for call in heavy if MLP.search(
            f"{call.name.removeprefix(block.name)} {type(call.module).__name__}")]
        if not heavy:
            return {}
        mlp = (named or heavy)[-1]
        linear = [call for call in inside if isinstance(call.module, LINEAR)
                  and call.module in set(mlp.module.modules())]
        if mlp.sequences > 1 and linear:  # it adds the residual stream itself: the MLP is its linear map
            mlp = linear[-1]
        if mlp.gave.shape[-1] != block.given.shape[-1]:
            return {}
        last = linear[-1] if linear and torch.equal(linear[-1].gave.flatten(), mlp.gave.flatten()) else None
        ends.append(last)
        mlps.append(mlp.name)
        norms.append(next((call.name for call in inside if call.begin > mlp.end and call.given is not None
                           and "norm" in type(call.module).__name__.lower()
                           and torch.equal(call.given.flatten(), mlp.gave.flatten())), ""))
    whole = all(ends) and len({last.given.shape[-1] for last in ends}) == 1
    return {"mlps": tuple(mlps), "mlp_norms": tuple(norms),
            "mlp_outputs": tuple(last.name for last in ends) if whole else ()}


def _attention(names, seen, calls, arguments):
    """Attention modules, where their outputs lie, and the maps to queries, keys and values."""
    by_block = [[each for each in seen.attended if block.begin < each.time < block.end] for block in calls]
    attended = [each for of_block in by_block for each in of_block]
    heads = {each.query.shape[1] for each in attended}
    # one of several in a block, or of several blocks' common one, could not be changed alone
    once = max(map(len, by_block)) == 1 and len({each.module for each in attended}) == len(attended)
    if not once or len(heads) != 1:
        return {}
    known: dict[Any, tuple] = {}  # of each kind of block, with names that begin in the block
    inner = []
    for block, of_block, given in zip(calls, by_block, arguments):
        if not of_block:
            inner.append(["", "", *[("", ())] * 3])
            continue
        called = tuple(call.name.removeprefix(block.name) for call in seen.within(block.begin, block.end))
        kind = type(block.module), called, tuple(weight.shape for weight in block.module.parameters())
        if kind not in known:
            inside = {module: name for name, module in block.module.named_modules()}
            known[kind] = _inside(inside, seen, block, of_block[0], given)
        inner.append([_named(part, block.name) for part in known[kind]])
    ends, outputs, queries, keys, values = (_complete(each) for each in zip(*inner))
    # a table has as many units in every layer
    queries, keys, values = (() if len({len(columns) for name, columns in maps if name}) > 1 else maps
                             for maps in (queries, keys, values))
    weighted = all(each.is_weighted_sum() for each in attended)
    return {"heads": heads.pop(), "attention_ends": ends, "attention_outputs": outputs,
            "attentions": tuple(names[each[0].module] if each else "" for each in by_block
                                ) if weighted else (),
            "queries": queries, "keys": keys, "values": values}


def _named(part, block):
    """A name, or a map with its outputs, as it is called in the model; None as it is."""
    if part is None:
        return None
    return f"{block}.{part}" if isinstance(part, str) else (f"{block}.{part[0]}", part[1])


@torch.enable_grad()
def _inside(names, seen, block, attended, arguments):
    """Of one block: names of the module whose output is the attention's and of the map that is given the
    heads' outputs; and the maps to queries, keys and values with the outputs of each head. None for what is
    not seen.

    The block is run once more with the output of every linear map a leaf, so that a gradient ends at the last
    map before queries, keys and values; and that of the attention, so that it ends at the heads.
    """
    inside = seen.within(block.begin, block.end)
    clock = itertools.count(1)
    maps: dict[nn.Module, tuple[int, Tensor, Tensor]] = {}  # when it was called, what it was given, its leaf

    def make_leaf(linear_map, inputs, output):
        leaf = output.detach().requires_grad_()
        maps[linear_map] = next(clock), inputs[0], leaf
        return leaf

    handles = [call.module.register_forward_hook(make_leaf) for call in inside
               if isinstance(call.module, LINEAR)]
    try:
        with watched_attention(clock, leaf=True) as again:
            block.module(block.given, **arguments)
        (call,) = again
    except Exception:  # whatever does not run a second time is not looked into
        return None, None, None, None, None
    finally:
        for handle in handles:
            handle.remove()
    before = {each: leaf for each, (time, _, leaf) in maps.items() if time < call.time}
    projections = [_projection(names, part, before) for part in (call.query, call.key, call.value)]
    output = next((each for each, (time, given, _) in maps.items()
                   if time > call.time and _takes_heads(given, call.output)), None)
    whole = next(each for each in inside if each.module is attended.module)
    gave = next((each.gave for each in inside if each.module is output), None)
    # behind it there may be more, such as a gate; and it may lie outside of the attention module
    ends_with_it = gave is not None and (
        output not in set(attended.module.modules()) or torch.equal(gave, whole.gave))
    end = names[output if ends_with_it else attended.module]
    return end, names.get(output), *projections


def _projection(names, part, leaves):
    """(the map that gives queries, keys or values [1, H, T, d], its outputs for each head), None if several
    do."""
    weights = torch.randn(part.shape[1:], generator=torch.Generator().manual_seed(0)).to(part)
    by_map: dict[nn.Module, list[Tensor]] = {}
    for head in range(part.shape[1]):
        asked = (part[0, head] * weights[head]).sum()
        gradients = torch.autograd.grad(asked, list(leaves.values()), retain_graph=True, allow_unused=True)
        for linear_map, gradient in zip(leaves, gradients):
            if gradient is not None and gradient.any():
                by_map.setdefault(linear_map, []).append(gradient.flatten(0, -2).abs().sum(dim=0))
    if len(by_map) != 1:
        return None
    ((linear_map, of_heads),) = by_map.items()
    if leaves[linear_map].shape[:-1].numel() != part.shape[2]:  # not a row for each token
        return None
    columns = _columns(torch.stack(of_heads)) if len(of_heads) == part.shape[1] else None
    return (names[linear_map], columns) if columns else None


def _columns(reaching: Tensor) -> Columns | None:
    """Which outputs of a map are each head's, from how strongly each head [H, outputs] depends on them.

    Heads that share them are one. With a norm over all heads each depends on all outputs, on its own most.
    """
    heads, width = reaching.shape
    columns = list(dict.fromkeys(tuple(row.nonzero().flatten().tolist()) for row in reaching))
    flat = list(itertools.chain(*columns))
    mixed = heads > 1 and len(columns) == 1
    if not mixed and len(set(flat)) == len(flat) and len(set(map(len, columns))) == 1:
        return tuple(columns)
    if width % heads:
        return None
    of_slices = reaching.reshape(heads, heads, -1).mean(dim=2)
    if not torch.equal(of_slices.argmax(dim=1), torch.arange(heads, device=of_slices.device)):
        return None
    return tuple(map(tuple, torch.arange(width).reshape(heads, -1).tolist()))


def _takes_heads(given, outputs):
    """Whether what a map is given are the heads' outputs [1, T, H, d], one behind the other."""
    heads = outputs.shape[2]
    if given.shape[-1] % heads or not given.requires_grad:
        return False
    slices = given.reshape(-1, heads, given.shape[-1] // heads)
    for head in range(heads):
        asked = slices[:, head].sum()
        (gradient,) = torch.autograd.grad(asked, outputs, retain_graph=True, allow_unused=True)
        if gradient is None:
            return False
        reaching = gradient.abs().flatten(0, 1).sum(dim=(0, 2))  # [H]
        if not reaching[head] or reaching.count_nonzero() != 1:
            return False
    return True
