"""Sweeps over the attention heads of a language model: single ones, those of a layer, all of them, sets.

All take a `LanguageModel` first, and `Intervention` objects with two contexts x, x' of equal length and two
candidates. The effect "indirect" runs x with weights computed on x', "direct" x' with weights computed on x.

Symbols in shapes: B batch (sets of heads), L layers, H heads, T tokens of the context.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from mediation.errors import InputError
from mediation.mediators.batches import Progress
from mediation.mediators.catalogue import CATALOGUE
from mediation.mediators.gradients import head_gradients
from mediation.mediators.heads import HeadEdits, heads_layers_and_whole, heads_layers_model
from mediation.mediators.masked_heads import sweep_masked_heads
from mediation.mediators.sweeps import heads_by_full_passes, sweep_heads
from mediation.model.attention import attention_weights
from mediation.model.language_model import LanguageModel
from mediation.model.token_trees import pack
from mediation.stimuli.interventions import Intervention


@torch.no_grad()
def heads_in_sets(model: LanguageModel, intervention: Intervention, effect: str,
                  chosen: Bool[Tensor, "B L H"], batch_size: int | None = None,
                  progress: Progress | None = None) -> Float64[Tensor, "B 2"]:
    """Log-probabilities of both candidates under B sets of heads that are changed together.

    Heads that all sets have are run once for all.

    Raises:
        InputError: a stimulus or an effect that is not of the form above.
    """
    if model.masking:
        return masked_heads_in_sets(model, intervention, effect, chosen, batch_size, progress)
    context, edits = head_edits(model, intervention, effect, chosen)
    return sweep_heads(model.model, model.parts, context, intervention.candidates_tok, edits, batch_size,
                       model.full_passes, progress, model.fast_rows)


@torch.no_grad()
def masked_heads_in_sets(model: LanguageModel, intervention: Intervention, effect: str,
                         chosen: Bool[Tensor, "B L H"], batch_size: int | None = None,
                         progress: Progress | None = None,
                         full_passes: bool = False) -> Float64[Tensor, "B 2"]:
    """`heads_in_sets` of a masked model; with `full_passes` by these, however the model was made."""
    assert model.masking is not None, "a causal model"
    intervention.check_for_attention()
    run_on, source = _contexts(model, intervention, effect)
    return sweep_masked_heads(model.model, model.parts, run_on, source, intervention.candidates_tok,
                              chosen.to(model.device), model.masking, batch_size,
                              full_passes or model.full_passes, progress, model.fast_rows)


@torch.no_grad()
def head_edits(model: LanguageModel, intervention: Intervention, effect: str,
               chosen: Bool[Tensor, "B L H"]) -> tuple[Int[Tensor, "T"], HeadEdits]:
    """The context that a causal model runs, and the interventions on it; errors as in `heads_in_sets`."""
    CATALOGUE["heads"].check_model(model)
    first = intervention.check_for_attention()
    run_on, source = _contexts(model, intervention, effect)
    weights = attention_weights(model.model, model.parts, source)
    return run_on, HeadEdits(chosen.to(model.device), weights, first)


def _contexts(model: LanguageModel, intervention: Intervention,
              effect: str) -> tuple[Int[Tensor, "T"], Int[Tensor, "T"]]:
    """The context that is run, and the one whose attention weights are put in."""
    if effect not in ("indirect", "direct"):
        raise InputError(f"effect {effect!r} is unknown: choose indirect or direct")
    x, other = (tokens.to(model.device) for tokens in intervention.base_strings_tok)
    return (x, other) if effect == "indirect" else (other, x)


def heads_layers_and_model(
    model: LanguageModel, intervention: Intervention, effect: str, batch_size: int | None = None,
    progress: Progress | None = None,
) -> tuple[Float64[Tensor, "L H"], Float64[Tensor, "L H"], Float64[Tensor, "L"], Float64[Tensor, "L"],
           float, float]:
    """Probabilities of both candidates under each head, each layer's heads and all heads of the model.

    A probability is the exp of the mean token log-probability. Errors as in `heads_in_sets`.

    Returns: c1_head, c2_head, c1_layer, c2_layer, c1_model, c2_model.
    """
    layers, heads = model.num_layers, model.num_heads
    chosen = heads_layers_model(layers, heads)
    log_probabilities = heads_in_sets(model, intervention, effect, chosen, batch_size, progress)
    (head1, layer1, model1), (head2, layer2, model2) = (
        heads_layers_and_whole(of_candidate, layers, heads)
        for of_candidate in log_probabilities.exp().unbind(dim=1))
    return head1, head2, layer1, layer2, model1, model2


def head_experiment(
    model: LanguageModel, intervention: Intervention, effect: str, layers_to_adj: Sequence[int],
    heads_to_adj: Sequence[int], search: bool,
) -> tuple[float | Float64[Tensor, "L H"], float | Float64[Tensor, "L H"]]:
    """Probabilities of both candidates when heads (layers_to_adj[i], heads_to_adj[i]) are changed together.

    With `search`, these and every other head in turn, [L, H]; these alone where the head is one of them.

    Raises:
        InputError: a head outside the model; the others as in `heads_in_sets`.
    """
    _check_heads(model, layers_to_adj, heads_to_adj)
    given = torch.zeros(model.num_layers, model.num_heads, dtype=torch.bool)
    given[list(layers_to_adj), list(heads_to_adj)] = True
    single = heads_layers_model(model.num_layers, model.num_heads)[: given.numel()]
    chosen = single | given if search else given.unsqueeze(0)
    c1, c2 = heads_in_sets(model, intervention, effect, chosen).exp().unbind(dim=1)
    return (c1.reshape(given.shape), c2.reshape(given.shape)) if search else (c1.item(), c2.item())


@torch.no_grad()
def head_estimates(model: LanguageModel, intervention: Intervention, effect: str) -> Float64[Tensor, "L H 2"]:
    """Log-probabilities of both candidates under each single-head intervention to first order.

    See `mediation.mediators.gradients`.

    Raises:
        InputError: a masked model; the others as in `heads_in_sets`.
    """
    if model.masking:
        raise InputError(f"{model.name} is a masked model: its heads are all run, use --method exact")
    none = torch.zeros(0, model.num_layers, model.num_heads, dtype=torch.bool)
    context, edits = head_edits(model, intervention, effect, none)
    tree = pack([context.tolist()], intervention.candidates_tok, model.device)
    log_probabilities, gradients, own = head_gradients(model.model, model.parts, tree)
    first, length = edits.first, len(context)  # a tree's first nodes are the context's
    step = (edits.weights - own[..., :length, :length])[:, :, first:]  # [L, H, T - first, T]
    heads = (gradients[..., first:length, :length] * step).double().sum(dim=(-2, -1)).cpu()  # [2, L, H]
    return (heads + log_probabilities[:, None, None]).movedim(0, -1)


@torch.no_grad()
def attention_intervention(model: LanguageModel, context: Int[Tensor, "*one T"],
                           candidates: Sequence[Sequence[int]], overrides: Sequence[dict]) -> list[float]:
    """Probabilities of continuations (lists of token ids) when attention weights on the context are set.

    Args:
        overrides: one for each layer: `layer` (0 to L - 1), `attention_override` [1, H, T, T] the weights put
            in, `attention_override_mask` [1, H, T, T], true for whole heads that are set.

    Returns: exp of the mean token log-probability of each.

    Raises:
        InputError: a masked model, a layer outside the model, or weights that do not fit the context.
    """
    if model.masking:
        raise InputError(f"{model.name} is a masked model, each of whose sequences has weights of its own: "
                         "use attention_intervention_experiment")
    context = context.reshape(-1).to(model.device)
    shape = (model.num_layers, model.num_heads, len(context), len(context))
    weights = torch.zeros(shape, dtype=model.dtype, device=model.device)
    chosen = torch.zeros(1, *shape[:2], dtype=torch.bool, device=model.device)
    for entry in overrides:
        layer, override = entry["layer"], entry["attention_override"].to(model.device)
        mask = entry["attention_override_mask"].to(model.device).bool()
        _check_heads(model, [layer], [0])
        fits = override.reshape(-1, *override.shape[-3:]).shape == (1, *shape[1:])
        if not fits or mask.shape != override.shape:
            raise InputError(f"attention_override of layer {layer} is {list(override.shape)}, "
                             f"the context needs {[1, *shape[1:]]}")
        heads = mask.reshape(shape[1:]).flatten(1)  # [H, T x T]
        if (heads.any(dim=1) != heads.all(dim=1)).any():
            raise InputError(f"attention_override_mask of layer {layer} sets parts of a head's weights: "
                             "set whole heads")
        weights[layer], chosen[0, layer] = override.reshape(shape[1:]), heads.any(dim=1)
    edits = HeadEdits(chosen, weights, 0)
    return heads_by_full_passes(model.model, model.parts, context, candidates, edits)[0].exp().tolist()


def _check_heads(model: LanguageModel, layers: Sequence[int], heads: Sequence[int]) -> None:
    """Raises InputError for a head outside the model."""
    for layer, head in zip(layers, heads):
        if layer not in model.parts.attending or not 0 <= head < model.num_heads:
            there = ", ".join(map(str, model.parts.attending))
            if len(model.parts.attending) == model.num_layers:
                there = f"0 to {model.num_layers - 1}"
            raise InputError(f"head {layer}-{head} is not in the model: layers {there}, "
                             f"heads 0 to {model.num_heads - 1}")
