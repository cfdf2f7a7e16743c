"""Where a model keeps its parts: `Architecture` says it by names, `Parts` holds the modules themselves.

Of a causal model the names are found by watching one short run (`mediation.model.discovery`); nothing in the
project asks what kind of model it is. Masked models, of which only the attention is studied, are written down
here.

A neuron of the study is an output of the word embedding or of a block's MLP module (OPT has none: there it is
the linear map that its MLP ends with).
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mediation.errors import InputError


@dataclass(frozen=True)
class Form:
    """What the dimensions of a tensor that a block is called with run over.

    `tokens`: those over the sequence, a mask has two, queries first; `sequences`: the one over the batch;
    `of_text`: whether the tensor depends on which tokens these are, not only on how many.
    """

    tokens: tuple[int, ...] = ()
    sequences: int | None = None
    of_text: bool = False


Columns = tuple[tuple[int, ...], ...]  # of a linear map's outputs, those of each head
Maps = tuple[tuple[str, Columns], ...]  # of every block, a map and which of its outputs are each head's


@dataclass(frozen=True)
class Architecture:
    """Names of modules in a model, and what its blocks do with them. A plain record, which can be stored.

    A tuple of names has one for each block; it is empty where a block has no such part, but for attention:
    where only some blocks have it, the others' names are "". `width`: numbers of
    the residual stream.

    `final`: the modules between the last block and the unembedding `head`, if these are all that makes logits
    of a residual stream; None where the library's own code is asked. `attentions`: modules that call the
    library's eager attention once, whose output is weights times values, each of `heads` heads.
    `attention_ends`: whose outputs are the attentions'; `attention_outputs`: linear maps whose inputs are the
    heads' outputs, one behind the other. `queries`, `keys`, `values`: the maps that give them.
    `mlps`; `mlp_norms`: what stands behind each MLP, "" for nothing; `mlp_outputs`: the maps that they end
    with; `mlps_alone`: whether each, given some tokens alone, gives for them what it gives among others.

    `embedding_adds`, `mlp_adds`: whether the residual stream before the first block, and behind a block, is
    the embedding's, and the MLP's, output (behind its norm) added to what does not depend on it.
    `forms`: of every block, the tensors among its arguments. `cache`: the argument for keys and values.
    `returns`: of every block, the length of the tuple that it returns, 0 for a tensor alone.
    `takes_positions`: whether the model is told positions. `resumes`: whether a run can be resumed at any
    block and position, and trees of prompts be run; if not, `obstacle` says why.
    `masked`: it predicts masked tokens and sees in both directions.
    """

    embedding: str
    blocks: str
    head: str
    final: tuple[str, ...] | None
    width: int
    attentions: tuple[str, ...] = ()
    heads: int = 0
    attention_ends: tuple[str, ...] = ()
    attention_outputs: tuple[str, ...] = ()
    queries: Maps = ()
    keys: Maps = ()
    values: Maps = ()
    mlps: tuple[str, ...] = ()
    mlp_norms: tuple[str, ...] = ()
    mlp_outputs: tuple[str, ...] = ()
    mlps_alone: bool = False
    embedding_adds: bool = True
    mlp_adds: bool = True
    forms: tuple[dict[str, Form], ...] = ()
    cache: str | None = None
    returns: tuple[int, ...] = ()
    takes_positions: bool = True
    resumes: bool = True
    obstacle: str = ""
    masked: bool = False


@dataclass(frozen=True)
class Projection:
    """Queries, keys or values of one block: the `linear_map` that gives them, and `columns`, the outputs that
    are each head's, or each group's of heads that share keys and values."""

    linear_map: nn.Module
    columns: Int[Tensor, "heads d"]


@dataclass(frozen=True)
class Parts:
    """The modules of one model, see `Architecture`; of every block one, or none of any; None for "".

    `final_norm`: None where logits are made by the library's own code.
    """

    model: PreTrainedModel
    architecture: Architecture
    embedding: nn.Module
    blocks: nn.ModuleList
    head: nn.Linear
    final_norm: nn.Module | None
    attentions: tuple[nn.Module | None, ...]
    mlps: tuple[nn.Module, ...]
    mlp_norms: tuple[nn.Module | None, ...]
    attention_ends: tuple[nn.Module | None, ...] = ()
    attention_outputs: tuple[nn.Module | None, ...] = ()
    mlp_outputs: tuple[nn.Module, ...] = ()
    projections: tuple[tuple[Projection | None, ...], ...] = field(default=((), (), ()))

    @property
    def masked(self) -> bool:
        """Whether it predicts masked tokens."""
        return self.architecture.masked

    @property
    def attending(self) -> list[int]:
        """The blocks with attention that was found."""
        names = self.architecture.attentions or self.architecture.attention_ends
        return [block for block, name in enumerate(names) if name]


@dataclass(frozen=True)
class _MaskedModel:
    """Where a masked model keeps its parts: of the model, and of a block `attention` and `mlp`."""

    embedding: str
    blocks: str
    final: tuple[str | nn.Module, ...]
    head: str
    attention: str = "attention.self"
    mlp: str = "output"


MASKED = {  # by transformers' config.model_type
    "bert": _MaskedModel("bert.embeddings.word_embeddings", "bert.encoder.layer",
                         ("cls.predictions.transform",), "cls.predictions.decoder"),
    "distilbert": _MaskedModel(
        "distilbert.embeddings.word_embeddings", "distilbert.transformer.layer",
        ("vocab_transform", "activation", "vocab_layer_norm"), "vocab_projector", "attention", "ffn"),
    "roberta": _MaskedModel("roberta.embeddings.word_embeddings", "roberta.encoder.layer",
                            ("lm_head.dense", nn.GELU(), "lm_head.layer_norm"), "lm_head.decoder"),
}
# whatever the library's list of causal models says of them: these have two streams, permuted or iterated
# positions, or see in both directions
NOT_CAUSAL = ("cpmant", "prophetnet", "reformer", "xlm", "xlm-prophetnet", "xlnet")


def is_masked(config: PreTrainedConfig) -> bool:
    """Whether a model of this config predicts masked tokens."""
    return config.model_type in MASKED and not getattr(config, "is_decoder", False)


def check_supported(config: PreTrainedConfig) -> None:
    """Whether models of a transformers config may be studied, decided before weights are loaded.

    What a causal model needs besides is looked for when it is there, see `mediation.model.probes`.

    Raises:
        InputError: neither a causal language model of the library nor one of its masked models above; or one
            that sees later tokens.
    """
    kind = config.model_type
    if is_masked(config):
        return
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(f"architecture {kind!r} is not supported: the study runs on causal language models "
                         f"(docs/architectures.md) and on the masked models {', '.join(sorted(MASKED))}")
    both_ways = bool(getattr(config.get_text_config(), "use_bidirectional_attention", False))
    if kind in NOT_CAUSAL or both_ways:
        raise InputError(f"this {kind} model sees later tokens, too: the study needs a model that predicts "
                         "from what stands before (docs/architectures.md lists them)")


def has_kinks(config: PreTrainedConfig) -> bool:
    """True where no Chebyshev polynomial follows the activation function of the MLPs: ReLU and its kind."""
    settings = ("activation_function", "hidden_act", "hidden_activation")
    return any("relu" in str(getattr(config.get_text_config(), setting, None)) for setting in settings)


def parts_of(model: PreTrainedModel, architecture: Architecture) -> Parts:
    """The modules of a model that an Architecture names."""
    def modules(names):
        return tuple(model.get_submodule(name) if name else None for name in names)

    def projections(maps):
        return tuple(Projection(model.get_submodule(name), torch.tensor(columns)) if name else None
                     for name, columns in maps)

    norms = architecture.mlp_norms or [""] * len(architecture.mlps)
    return Parts(
        model, architecture, model.get_submodule(architecture.embedding),
        model.get_submodule(architecture.blocks), model.get_submodule(architecture.head),
        _in_turn(modules(architecture.final or ())),
        modules(architecture.attentions), modules(architecture.mlps), modules(norms),
        modules(architecture.attention_ends), modules(architecture.attention_outputs),
        modules(architecture.mlp_outputs),
        tuple(map(projections, (architecture.queries, architecture.keys, architecture.values))))


def masked_parts(model: PreTrainedModel) -> Parts:
    """The modules of a masked model that is written down here."""
    where = MASKED[model.config.model_type]
    count = len(model.get_submodule(where.blocks))
    architecture = Architecture(
        where.embedding, where.blocks, where.head, (), model.config.hidden_size, masked=True,
        attentions=tuple(f"{where.blocks}.{block}.{where.attention}" for block in range(count)),
        heads=model.config.num_attention_heads,
        mlps=tuple(f"{where.blocks}.{block}.{where.mlp}" for block in range(count)))
    steps = [model.get_submodule(step) if isinstance(step, str) else step for step in where.final]
    return replace(parts_of(model, architecture), final_norm=_in_turn(steps))


def _in_turn(steps):
    """Modules as one; None for none."""
    return nn.Sequential(*steps) if len(steps) > 1 else (*steps, None)[0]
