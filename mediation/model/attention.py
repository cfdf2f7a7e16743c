"""Attention interventions: weights of chosen heads are replaced by those another prompt gave them; values, queries and keys stay the run's.

The models run transformers' attention interface with `attention_forward` in it: the library's own eager attention, and
behind it, while an override is open, what changes its result. It needs no hooks and serves every architecture that
uses the interface.

Shapes: B batch (interventions), L layers, H heads, T context tokens, R = T - first context rows that can differ, d head size.
"""

import sys
from contextlib import contextmanager

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

IMPLEMENTATION = "eager_with_overrides"
_overrides = {}  # attention module -> function (output, weights, values) -> output, while an override is open


def attention_forward(module, query, key, value, attention_mask, **settings):
    """The library's eager attention of the module's architecture, then the open override of the module, if there is one."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    output, weights = eager(module, query, key, value, attention_mask, **settings)  # [B, tokens, H, d], [B, H, tokens, keys]
    if module in _overrides:
        output = _overrides[module](output, weights, value)
    return output, weights


# without the mask of the same name, the library would drop causality and say nothing
AttentionInterface.register(IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


@contextmanager
def overriding(functions):
    """While open, each attention module of `functions` {module: function} has its output changed by its function."""
    _overrides.update(functions)
    try:
        yield
    finally:
        for module in functions:
            _overrides.pop(module, None)


@contextmanager
def recorded_weights(parts):
    """While open, a run leaves its attention weights, [B, H, T, T] a layer, in the list that is given."""
    seen = []

    def keep(output, weights, _values):
        seen.append(weights)
        return output

    with overriding(dict.fromkeys(parts.attentions, keep)):
        yield seen


def attention_weights(model, parts, tokens):
    """Attention weights of one run of `tokens` (int64 [T]), [L, H, T, T]."""
    with recorded_weights(parts) as weights:
        model.base_model(tokens.unsqueeze(0), use_cache=False)
    return torch.cat(weights)


