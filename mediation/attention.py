"""Attention interventions: weights of chosen heads are replaced by those another prompt gave them; values, queries and keys stay the run's.

The models run transformers' attention interface with `attention_forward` in it: the library's own eager attention, and
behind it, while an override is open, what changes its result. It needs no hooks and serves every architecture that
uses the interface.

Shapes: B batch (interventions), L layers, H heads, T context tokens, R = T - first context rows that can differ, d head size.
"""

import sys
from contextlib import contextmanager
from dataclasses import dataclass

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


@dataclass(frozen=True)
class HeadEdits:
    """B interventions, each on a set of heads of the whole model.

    `chosen` bool [B, L, H]: heads whose weights are replaced; `weights` [L, H, T, T]: by these; `first`: rows before it are equal
    in both runs and are not touched.
    """

    chosen: torch.Tensor
    weights: torch.Tensor
    first: int

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, rows):
        return HeadEdits(self.chosen[rows], self.weights, self.first)


def heads_layers_model(layers, heads):
    """The sets of the study, bool [L x H + L + 1, L, H]: every head alone, every layer's heads together, all heads of the model."""
    single = torch.eye(layers * heads, dtype=torch.bool).reshape(-1, layers, heads)
    whole_layers = torch.eye(layers, dtype=torch.bool).unsqueeze(2).expand(-1, -1, heads)
    return torch.cat([single, whole_layers, torch.ones(1, layers, heads, dtype=torch.bool)])


def shift(edits, layer):
    """Override for resumed rows, which begin at position `edits.first`: the difference of the weights times the run's values is added.

    A head that is given the weights it has anyway is shifted by exactly 0.
    """
    rows, heads = edits.chosen[:, layer].nonzero(as_tuple=True)
    length = edits.weights.shape[-1]  # T
    new = edits.weights[layer, :, edits.first:]  # [H, R, T]

    def change(output, weights, values):
        groups = output.shape[2] // values.shape[1]  # heads that share keys and values
        difference = new[heads] - weights[rows, heads, : new.shape[1], :length]  # [n, R, T]
        output[rows, : new.shape[1], heads] += difference @ values[rows, heads // groups, :length]
        return output

    return change


def replacement(edits, layer):
    """Override for full passes, the plain way: the context's square of weights is replaced, and the output computed again."""
    rows, heads = edits.chosen[:, layer].nonzero(as_tuple=True)
    length = edits.weights.shape[-1]

    def change(output, weights, values):
        groups = output.shape[2] // values.shape[1]
        replaced = weights[rows, heads]  # [n, tokens, keys]
        replaced[:, :length, :length] = edits.weights[layer, heads]
        output[rows, :, heads] = replaced @ values[rows, heads // groups]
        return output

    return change
