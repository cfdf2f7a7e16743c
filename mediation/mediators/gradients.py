"""First-order effects of every neuron or head from one forward pass, and one backward pass per candidate.

To first order an intervention that moves a unit's output by d moves a log-probability by its gradient times
d, all at the run without intervention (attribution patching: Nanda 2023; Kramar et al. 2024). A single-neuron
intervention leaves the run near there, so this one point is where the gradient is to be taken, not along a
path to the other prompt.

Symbols in shapes: B prompts of T tokens, P positions, D neurons per layer, `layers` = L + 1: the word
embedding and L blocks; H heads, C predictions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformers import PreTrainedModel

from mediation.mediators.sites import mlps, recorded_sites, residuals
from mediation.model.architectures import Parts
from mediation.model.attention import of_blocks, recorded_weights
from mediation.model.forward import run
from mediation.model.readout import ReadOut
from mediation.model.token_trees import Prediction, Tree


def neuron_gradients(
    model: PreTrainedModel, parts: Parts, prompts: Int[Tensor, "B T"], places: Sequence[int],
    predictions: Sequence[Prediction], tree: Tree | None = None,
) -> tuple[Float64[Tensor, "B C"], Float[Tensor, "B C P layers D"], Float[Tensor, "B P layers D"]]:
    """Gradients of predictions with respect to every neuron at P positions.

    Args:
        tree: the Tree whose tokens the one prompt is, for candidates of several tokens.

    Returns: log-probabilities, their gradients, and the values of the neurons.
    """
    sites = [*mlps(parts), residuals(parts)[-1]]
    with torch.enable_grad(), leaf(parts), recorded_sites(sites) as record:
        run(model, parts, prompts, tree)
        *outputs, residual = record
        log_probabilities = ReadOut(parts, predictions)(residual)  # [B, C]
        # prompts do not see each other: the gradient of their sum is each prompt's own
        gradients = [torch.autograd.grad(column.sum(), outputs, retain_graph=True)
                     for column in log_probabilities.unbind(dim=1)]

    def at_places(of_layers):
        """Outputs or gradients of the layers -> [B, P, layers, D]."""
        # some blocks give their MLP prompts and tokens in one
        return torch.stack([of_layer.reshape(*prompts.shape, -1)[:, places].to(prompts.device)
                            for of_layer in of_layers], dim=2)

    of_candidates = torch.stack([at_places(of_candidate) for of_candidate in gradients], dim=1)
    return log_probabilities.detach(), of_candidates, at_places(outputs).detach()


def head_gradients(
    model: PreTrainedModel, parts: Parts, tree: Tree,
) -> tuple[Float64[Tensor, "C"], Float[Tensor, "C L H T T"], Float[Tensor, "L H T T"]]:
    """Gradients of a tree's predictions with respect to every head's attention weights.

    Returns: log-probabilities, their gradients, and the weights themselves.
    """
    with (torch.enable_grad(), leaf(parts), recorded_sites(residuals(parts)[-1:]) as residual,
          recorded_weights(parts) as weights):
        run(model, parts, tree.tokens.unsqueeze(0), tree)
        log_probabilities = ReadOut(parts, tree.predictions)(residual[0])[0]
        gradients = [of_blocks(parts, torch.autograd.grad(of_candidate, weights, retain_graph=True))
                     for of_candidate in log_probabilities]
    return log_probabilities.detach(), torch.stack(gradients), of_blocks(parts, weights).detach()


@contextmanager
def leaf(parts: Parts) -> Iterator[None]:
    """While open, the word embedding's output is the leaf of the graph: no gradient is taken further down."""
    handle = parts.embedding.register_forward_hook(
        lambda _module, _inputs, output: output.detach().requires_grad_())
    try:
        yield
    finally:
        handle.remove()
