"""First-order effects of every neuron or head from one forward pass and one backward pass a candidate.

To first order an intervention that moves a unit's output by d moves a log-probability by its gradient times d, all at the run without
intervention (attribution patching: Nanda 2023; Kramar et al. 2024). A single-neuron intervention leaves the run near there, so this one point
is where the gradient is to be taken, not along a path to the other prompt.

Shapes: B prompts of T tokens, L layers, D neurons a layer, H heads, C predictions.
"""

import torch

from mediation.model.attention import recorded_weights
from mediation.model.forward import as_arguments
from mediation.model.readout import ReadOut


def neuron_gradients(model, parts, prompts, places, predictions, tree=None):
    """Gradients of predictions with respect to every neuron at P positions.

    Args:
        prompts: int64 [B, T], of equal length; places: P positions; predictions: C (positions, tokens) pairs, as a ReadOut takes them.
        tree: the Tree whose tokens the one prompt is, for candidates of several tokens.

    Returns: log-probabilities float64 [B, C], gradients [B, C, P, L + 1, D], values [B, P, L + 1, D] of the neurons.
    """
    outputs, residual = [], []
    handles = [parts.embedding.register_forward_hook(_leaf(outputs))]
    handles += [mlp.register_forward_hook(lambda _, __, output: outputs.append(output)) for mlp in parts.mlps]
    handles.append(parts.blocks[-1].register_forward_hook(lambda _, __, output: residual.append(output)))
    try:
        with torch.enable_grad():
            model.base_model(prompts, use_cache=False, **as_arguments(model, tree))
            log_probabilities = ReadOut(parts, predictions)(residual[0])  # [B, C]
            gradients = [torch.autograd.grad(column.sum(), outputs, retain_graph=True) for column in log_probabilities.unbind(dim=1)]
    finally:
        for handle in handles:
            handle.remove()

    def at_places(of_layers):
        """Outputs or gradients of the layers -> [B, P, L + 1, D]."""
        return torch.stack([of_layer.reshape(*prompts.shape, -1)[:, places] for of_layer in of_layers], dim=2)

    return log_probabilities.detach(), torch.stack([at_places(of_candidate) for of_candidate in gradients], dim=1), at_places(outputs).detach()


def head_gradients(model, parts, tree):
    """Gradients of a tree's predictions with respect to every head's attention weights.

    Returns: log-probabilities float64 [C], gradients [C, L, H, T, T], the weights themselves [L, H, T, T].
    """
    residual, outputs = [], []
    handles = [parts.embedding.register_forward_hook(_leaf(outputs)),
               parts.blocks[-1].register_forward_hook(lambda _, __, output: residual.append(output))]
    try:
        with torch.enable_grad(), recorded_weights(parts) as weights:
            model.base_model(tree.tokens.unsqueeze(0), use_cache=False, **as_arguments(model, tree))
            log_probabilities = ReadOut(parts, tree.predictions)(residual[0])[0]
            gradients = [torch.cat(torch.autograd.grad(value, weights, retain_graph=True)) for value in log_probabilities]
    finally:
        for handle in handles:
            handle.remove()
    return log_probabilities.detach(), torch.stack(gradients), torch.cat(weights).detach()


def _leaf(outputs):
    """Hook that makes the word embedding's output the leaf of the graph: no gradient is taken further down."""
    def detach(_module, _inputs, output):
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]
    return detach
