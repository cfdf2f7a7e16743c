"""Where a checkpoint keeps its parts. Nothing else in the project asks what model it is.

A neuron of the study is an output of the word embedding or of a block's MLP module (OPT has none: there it is
the linear map that its MLP ends with). What the sweeps rely on: a causal model's block ends by adding that
output, as it is or behind the norm that `mlp_norm` names, to the residual stream. A masked model's block need
not, for only its attention is studied.
To add an architecture with that property, add a line; the tests run every line against plain hooks.
"""

from dataclasses import dataclass, replace
from inspect import signature
from operator import attrgetter

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mediation.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """Attribute paths to the parts of a model.

    From the language model `embedding`, `blocks`, `final_norm` and `head`; from a block `attention`, `mlp`
    and `mlp_norm`. `final_norm`: all between the last block and the unembedding, a path, or several paths and
    modules that are run in turn. `masked`: it predicts masked tokens and sees in both directions.

    From the attention `attention_output`, the map that heads' outputs go through, and `projections`, the maps
    to queries, keys and values: one each, or one to all of them, whose output has all queries, then all keys,
    then all values, or with `fused_by_head` those of one head after the other. From the MLP `mlp_output`, the
    map that it ends with; "" where the MLP is that map.
    """

    embedding: str
    blocks: str
    final_norm: str | tuple[str | nn.Module, ...]
    attention: str = "self_attn"
    mlp: str = "mlp"
    head: str = "lm_head"
    mlp_norm: str | None = None
    masked: bool = False
    attention_output: str = "o_proj"
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    fused_by_head: bool = False
    mlp_output: str = "down_proj"


LLAMA = Architecture("model.embed_tokens", "model.layers", "model.norm")
ARCHITECTURES = {  # by transformers' config.model_type
    "gemma3_text": Architecture(
        "model.embed_tokens", "model.layers", "model.norm", mlp_norm="post_feedforward_layernorm"),
    "gpt2": Architecture("transformer.wte", "transformer.h", "transformer.ln_f", attention="attn",
                         attention_output="c_proj", projections=("c_attn",), mlp_output="c_proj"),
    "gpt_neox": Architecture(
        "gpt_neox.embed_in", "gpt_neox.layers", "gpt_neox.final_layer_norm", attention="attention",
        attention_output="dense", projections=("query_key_value",), fused_by_head=True,
        mlp_output="dense_4h_to_h"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "opt": Architecture(
        "model.decoder.embed_tokens", "model.decoder.layers", "model.decoder.final_layer_norm", mlp="fc2",
        attention_output="out_proj", mlp_output=""),
    "phi3": replace(LLAMA, projections=("qkv_proj",)),
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "bert": Architecture(
        "bert.embeddings.word_embeddings", "bert.encoder.layer", "cls.predictions.transform",
        attention="attention.self", mlp="output", head="cls.predictions.decoder", masked=True),
    "distilbert": Architecture(
        "distilbert.embeddings.word_embeddings", "distilbert.transformer.layer",
        ("vocab_transform", "activation", "vocab_layer_norm"),
        attention="attention", mlp="ffn", head="vocab_projector", masked=True),
    "roberta": Architecture(
        "roberta.embeddings.word_embeddings", "roberta.encoder.layer",
        ("lm_head.dense", nn.GELU(), "lm_head.layer_norm"),
        attention="attention.self", mlp="output", head="lm_head.decoder", masked=True),
}
CACHE_NAMES = ("past_key_values", "layer_past")  # of the argument by which blocks take a cache


@dataclass(frozen=True)
class Projection:
    """Queries, keys or values of one block: the `linear_map` that gives them, and `columns`, the outputs that
    are each head's, or each group's of heads that share keys and values."""

    linear_map: nn.Module
    columns: Int[Tensor, "heads d"]


@dataclass(frozen=True)
class Parts:
    """The modules of one model.

    The word embedding; L blocks with their attentions and MLPs, and the norms behind the MLPs, or None; what
    stands before the unembedding, and the unembedding. `masked`: it predicts masked tokens. `cache_name`:
    what its blocks call a cache of keys and values, or None.

    Of every block, but for masked models: `attention_outputs` and `mlp_outputs`, the maps that heads' outputs
    and hidden units go through; `projections`, for queries, keys and values the map that gives them, and
    which of its outputs are each head's.
    """

    embedding: nn.Module
    blocks: nn.ModuleList
    attentions: tuple[nn.Module, ...]
    mlps: tuple[nn.Module, ...]
    mlp_norms: tuple[nn.Module | None, ...]
    final_norm: nn.Module
    head: nn.Linear
    masked: bool
    cache_name: str | None
    attention_outputs: tuple[nn.Module, ...] = ()
    mlp_outputs: tuple[nn.Module, ...] = ()
    projections: tuple[tuple[Projection, Projection, Projection], ...] = ()


def is_masked(kind: str) -> bool:
    """Whether models of this transformers model_type, one of the table, predict masked tokens."""
    return ARCHITECTURES[kind].masked


def check_supported(config: PreTrainedConfig) -> None:
    """Whether the study runs on models of a transformers config, decided before weights are loaded.

    Raises:
        InputError: an architecture that is not in the table, or a variant of one that does not have the
            property above.
    """
    kind = config.model_type
    if kind not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise InputError(f"architecture {kind!r} is not supported: the study runs on {known}")
    _check_variant(kind, config)


def has_kinks(config: PreTrainedConfig) -> bool:
    """True where no Chebyshev polynomial follows the activation function of the MLPs: ReLU and its kind."""
    settings = ("activation_function", "hidden_act", "hidden_activation")
    return any("relu" in str(getattr(config, setting, None)) for setting in settings)


def find_parts(model: PreTrainedModel) -> Parts:
    """The parts of a transformers language model whose config is supported."""
    where = ARCHITECTURES[model.config.model_type]
    blocks = attrgetter(where.blocks)(model)
    final = (where.final_norm,) if isinstance(where.final_norm, str) else where.final_norm
    steps = [attrgetter(step)(model) if isinstance(step, str) else step for step in final]
    arguments = signature(blocks[0].forward).parameters
    attentions = tuple(attrgetter(where.attention)(block) for block in blocks)
    mlps = tuple(getattr(block, where.mlp) for block in blocks)
    inner = {} if where.masked else {
        "attention_outputs": tuple(getattr(attention, where.attention_output) for attention in attentions),
        "mlp_outputs": tuple(getattr(mlp, where.mlp_output) if where.mlp_output else mlp for mlp in mlps),
        "projections": tuple(_projections(where, attention, model.config) for attention in attentions)}
    return Parts(
        embedding=attrgetter(where.embedding)(model),
        blocks=blocks,
        attentions=attentions,
        mlps=mlps,
        mlp_norms=tuple(getattr(block, where.mlp_norm) if where.mlp_norm else None for block in blocks),
        final_norm=steps[0] if len(steps) == 1 else nn.Sequential(*steps),
        head=attrgetter(where.head)(model),
        masked=where.masked,
        cache_name=None if where.masked else next(name for name in CACHE_NAMES if name in arguments),
        **inner,
    )


def _projections(where, attention, config):
    """Queries, keys and values of one attention module."""
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    maps = [getattr(attention, name) for name in where.projections]
    if len(maps) == 3:
        counts, starts = (heads, groups, groups), (0, 0, 0)
    elif where.fused_by_head:  # of head h the outputs from 3 h d on: its query, its key, its value
        columns = torch.arange(heads * 3 * size).reshape(heads, 3, size)
        return tuple(Projection(maps[0], columns[:, part]) for part in range(3))
    else:
        maps, counts, starts = 3 * maps, (heads, groups, groups), (0, heads * size, (heads + groups) * size)
    return tuple(Projection(linear_map, start + torch.arange(count * size).reshape(count, size))
                 for linear_map, count, start in zip(maps, counts, starts))


def _check_variant(kind, config):
    """Raises InputError for settings under which a listed architecture is another one."""
    variants = {
        "norms after the MLP's sum": getattr(config, "do_layer_norm_before", True) is False,
        "no final norm": getattr(config, "_remove_final_layer_norm", False),
        "an embedding of another width":
            getattr(config, "word_embed_proj_dim", config.hidden_size) != config.hidden_size,
        "soft-capped logits": getattr(config, "final_logit_softcapping", None) is not None,
        "attention in both directions": bool(getattr(config, "use_bidirectional_attention", False)),
        "a decoder": ARCHITECTURES[kind].masked and getattr(config, "is_decoder", False),
    }
    reasons = [variant for variant, is_so in variants.items() if is_so]
    if reasons:
        raise InputError(f"this {kind} model has {reasons[0]}, which the study does not run: "
                         f"choose another checkpoint of {', '.join(sorted(ARCHITECTURES))}")
