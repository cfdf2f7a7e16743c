"""Attention interventions: weights of chosen heads are replaced by those that another prompt gave them.

Values, queries and keys stay the run's. The models run the library's own eager attention; `make_changeable`
puts a function around the one of their modelling file, which changes its output while `changed_outputs` is
open. It needs no hooks and serves every architecture whose modelling file has an `eager_attention_forward`.

Symbols in shapes: B batch (interventions), L attention layers, H heads, T context tokens, d head size;
R rows, S keys and G key-value heads of one call.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mediation.model.architectures import Parts

EAGER = "eager_attention_forward"  # its name in the library's modelling files
# of output, weights and values of one call to the output
Change = Callable[[Float[Tensor, "B R H d"], Float[Tensor, "B H R S"], Float[Tensor, "B G S d"]],
                  Float[Tensor, "B R H d"]]
_changes: dict[nn.Module, Change] = {}  # of attention modules, while they are open
_watching: list[Callable[..., Tensor]] = []  # told of every call while `watched_attention` is open


def near(one: Tensor, other: Tensor, factor: float = 100.0) -> bool:
    """Whether two tensors are the same up to rounding, measured at the largest number.

    Many norms compute in float32 whatever the model's dtype, so float64 counts as float32.
    """
    if one.shape != other.shape:
        return False
    precision = max(torch.finfo(one.dtype).eps, torch.finfo(torch.float32).eps)
    scale = float(torch.maximum(one.abs().max(), other.abs().max()))
    return float((one - other).abs().max()) <= factor * precision * scale


@dataclass(frozen=True)
class Attended:
    """One call of the library's eager attention: when, by which module, what it was given and gave."""

    time: int
    module: nn.Module
    query: Float[Tensor, "B H R d"]
    key: Float[Tensor, "B G S d"]
    value: Float[Tensor, "B G S v"]
    output: Float[Tensor, "B R H v"]
    weights: Float[Tensor, "B H R S"] | None

    def is_weighted_sum(self) -> bool:
        """Whether the output is weights times values, so that other weights can be put in."""
        if self.weights is None or self.weights.shape[1] % self.value.shape[1]:
            return False
        values = self.value.repeat_interleave(self.weights.shape[1] // self.value.shape[1], dim=1)
        if self.weights.shape[-1] != values.shape[2]:
            return False
        return near((self.weights.to(values.dtype) @ values).transpose(1, 2), self.output)


def make_changeable(model: nn.Module) -> None:
    """Let `changed_outputs` change the attention of all models of this model's modelling files.

    A registered attention function would be another name than "eager", for which some models ask.
    """
    for kind in {type(module) for module in model.modules()}:
        names = inspect.unwrap(kind.forward).__globals__  # in which the library looks up its function
        if EAGER in names and not hasattr(names[EAGER], "__wrapped__"):
            names[EAGER] = _changeable(names[EAGER])


def _changeable(eager):
    """The library's eager attention, then the module's open change, if any."""
    @functools.wraps(eager)
    def attention(module, query, key, value, *inputs, **settings):
        output, weights = eager(module, query, key, value, *inputs, **settings)
        for tell in _watching:
            output = tell(module, query, key, value, output, weights)
        if module in _changes:
            output = _changes[module](output, weights, value)
        return output, weights
    return attention


@contextmanager
def watched_attention(clock: Iterator[int], leaf: bool = False) -> Iterator[list[Attended]]:
    """While open, calls of the library's attention are listed, with the time that `clock` tells.

    Args:
        leaf: make its output a leaf of the graph.
    """
    calls: list[Attended] = []

    def tell(module, query, key, value, output, weights):
        output = output.detach().requires_grad_() if leaf else output
        calls.append(Attended(next(clock), module, query, key, value, output, weights))
        return output

    _watching.append(tell)
    try:
        yield calls
    finally:
        _watching.remove(tell)


@contextmanager
def changed_outputs(changes: Mapping[nn.Module, Change]) -> Iterator[None]:
    """While open, each of these attention modules has its output changed by its function."""
    _changes.update(changes)
    try:
        yield
    finally:
        for module in changes:
            _changes.pop(module, None)


@contextmanager
def recorded_weights(parts: Parts) -> Iterator[list[Float[Tensor, "B H T T"]]]:
    """While open, a run leaves its attention weights, a tensor per block with attention, in this list."""
    record: list[Tensor] = []

    @no_type_check  # as in `forward.run_base`
    def keep(output, weights, _values):
        record.append(weights)
        return output

    with changed_outputs({module: keep for module in parts.attentions if module is not None}):
        yield record


def of_blocks(parts: Parts, weights: Sequence[Float[Tensor, "1 H T T"]]) -> Float[Tensor, "L H T T"]:
    """Weights, or their gradients, of the blocks with attention as those of all blocks: the others' are 0."""
    home = parts.head.weight.device
    here = iter([of_block.to(home) for of_block in weights])
    none = torch.zeros_like(weights[0], device=home)
    return torch.cat([none if module is None else next(here) for module in parts.attentions])


def attention_weights(
    model: PreTrainedModel, parts: Parts, tokens: Int[Tensor, "T"],
) -> Float[Tensor, "L H T T"]:
    """Attention weights of one run of `tokens`."""
    with recorded_weights(parts) as weights:
        model.base_model(tokens.unsqueeze(0), use_cache=False)
    return of_blocks(parts, weights)
