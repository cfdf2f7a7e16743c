"""Attention interventions: weights of chosen heads are replaced by those another prompt gave them; values, queries and keys stay the run's.

The models run transformers' attention interface with `attention_forward` in it: the library's own eager attention, and
behind it, while an override is open, what changes its result. It needs no hooks and serves every architecture that
uses the interface.

Shapes: B batch (interventions), L layers, H heads, T context tokens, d head size; R rows, S keys and
G key-value heads of one call.
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

IMPLEMENTATION = "eager_with_overrides"
Override = Callable[[Tensor, Tensor, Tensor], Tensor]  # of output, weights and values to the output
_overrides: dict[nn.Module, Override] = {}  # of attention modules, while they are open


def attention_forward(
    module: nn.Module, query: Float[Tensor, "B H R d"], key: Float[Tensor, "B G S d"],
    value: Float[Tensor, "B G S d"], attention_mask: Tensor | None, **settings: Any,
) -> tuple[Float[Tensor, "B R H d"], Float[Tensor, "B H R S"]]:
    """The library's eager attention of the module's architecture, then the open override of the module, if there is one."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    output, weights = eager(module, query, key, value, attention_mask, **settings)
    if module in _overrides:
        output = _overrides[module](output, weights, value)
    return output, weights


# without the mask of the same name, the library would drop causality and say nothing
AttentionInterface.register(IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


@contextmanager
def overriding(functions: Mapping[nn.Module, Override]) -> Iterator[None]:
    """While open, each of these attention modules has its output changed by its function."""
    _overrides.update(functions)
    try:
        yield
    finally:
        for module in functions:
            _overrides.pop(module, None)


@contextmanager
def recorded_weights(parts: Parts) -> Iterator[list[Float[Tensor, "B H T T"]]]:
    """While open, a run leaves its attention weights, a tensor per layer, in the list that is given."""
    seen: list[Tensor] = []

    @no_type_check  # as in `forward.run_base`
    def keep(output, weights, _values):
        seen.append(weights)
        return output

    with overriding({module: keep for module in parts.attentions}):
        yield seen


def attention_weights(
    model: PreTrainedModel, parts: Parts, tokens: Int[Tensor, "T"],
) -> Float[Tensor, "L H T T"]:
    """Attention weights of one run of `tokens`."""
    with recorded_weights(parts) as weights:
        model.base_model(tokens.unsqueeze(0), use_cache=False)
    return torch.cat(weights)


