"""Where a checkpoint keeps its parts. Nothing else in the project asks what model it is.

A neuron of the study is an output of the word embedding or of a block's MLP module. The sweeps rely on one property of
the architectures listed here: a block ends by adding its MLP's output, as it is, to the residual stream.
To add an architecture with that property, add a line; the tests run every line against plain hooks.
"""

from dataclasses import dataclass
from operator import attrgetter

from torch import nn

from .errors import InputError


@dataclass(frozen=True)
class Architecture:
    """Attribute paths from the language model (`embedding`, `blocks`, `final_norm`, `head`) and from a block (`attention`, `mlp`)."""

    embedding: str
    blocks: str
    final_norm: str
    attention: str = "self_attn"
    mlp: str = "mlp"
    head: str = "lm_head"


LLAMA = Architecture("model.embed_tokens", "model.layers", "model.norm")
ARCHITECTURES = {  # by transformers' config.model_type
    "gpt2": Architecture("transformer.wte", "transformer.h", "transformer.ln_f", attention="attn"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
}


@dataclass(frozen=True)
class Parts:
    """The modules of one model: L blocks with their attentions and MLPs, the word embedding, the final norm and the unembedding."""

    embedding: nn.Module
    blocks: nn.ModuleList
    attentions: tuple
    mlps: tuple
    final_norm: nn.Module
    head: nn.Module


def find_parts(model):
    """The parts of a transformers causal language model.

    Raises:
        InputError: an architecture that is not in the table.
    """
    kind = model.config.model_type
    if kind not in ARCHITECTURES:
        raise InputError(f"architecture {kind!r} is not supported: the study runs on {', '.join(sorted(ARCHITECTURES))}")
    where = ARCHITECTURES[kind]
    blocks = attrgetter(where.blocks)(model)
    return Parts(
        embedding=attrgetter(where.embedding)(model),
        blocks=blocks,
        attentions=tuple(getattr(block, where.attention) for block in blocks),
        mlps=tuple(getattr(block, where.mlp) for block in blocks),
        final_norm=attrgetter(where.final_norm)(model),
        head=attrgetter(where.head)(model),
    )
