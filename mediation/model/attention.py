"""Attention interventions: weights of chosen heads are replaced by those that another prompt gave them.

Values, queries and keys stay the run's. The models run transformers' attention interface with
`attention_forward` in it: the library's own eager attention, and behind it what changes its output while
`changed_outputs` is open. It needs no hooks and serves every architecture that uses the interface.

Symbols in shapes: B batch (interventions), L attention layers, H heads, T context tokens, d head size;
R rows, S keys and G key-value heads of one call.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from mediation.model.architectures import Parts

IMPLEMENTATION = "eager_with_changed_outputs"
# of output, weights and values, as `attention_forward` has them, to the output
Change = Callable[[Float[Tensor, "B R H d"], Float[Tensor, "B H R S"], Float[Tensor, "B G S d"]],
                  Float[Tensor, "B R H d"]]
_changes: dict[nn.Module, Change] = {}  # of attention modules, while they are open


def attention_forward(
    module: nn.Module, query: Float[Tensor, "B H R d"], key: Float[Tensor, "B G S d"],
    value: Float[Tensor, "B G S d"], attention_mask: Tensor | None, **settings: Any,
) -> tuple[Float[Tensor, "B R H d"], Float[Tensor, "B H R S"]]:
    """The library's eager attention of the module's architecture, then the module's open change, if any."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    output, weights = eager(module, query, key, value, attention_mask, **settings)
    if module in _changes:
        output = _changes[module](output, weights, value)
    return output, weights


# without the mask of the same name, the library would drop causality and say nothing
AttentionInterface.register(IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


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
    """While open, a run leaves its attention weights, a tensor per attention layer, in this list."""
    record: list[Tensor] = []

    @no_type_check  # as in `forward.run_base`
    def keep(output, weights, _values):
        record.append(weights)
        return output

    with changed_outputs({module: keep for module in parts.attentions}):
        yield record


def attention_weights(
    model: PreTrainedModel, parts: Parts, tokens: Int[Tensor, "T"],
) -> Float[Tensor, "L H T T"]:
    """Attention weights of one run of `tokens`."""
    with recorded_weights(parts) as weights:
        model.base_model(tokens.unsqueeze(0), use_cache=False)
    return torch.cat(weights)
