"""First-order effects of every neuron or head from one forward pass and one backward pass a candidate.

To first order an intervention that moves a unit's output by d moves a log-probability by its gradient times d, all at the run without
intervention (attribution patching: Nanda 2023; Kramar et al. 2024). A single-neuron intervention leaves the run near there, so this one point
is where the gradient is to be taken, not along a path to the other prompt.

Shapes: B prompts of T tokens, L layers, D neurons a layer, H heads, C predictions.
"""

import torch

from .attention import recorded_weights
from .forward import as_arguments
from .readout import ReadOut


def neuron_gradients(model, parts, prompts, position, candidates):
    """Gradients of candidates' log-probabilities with respect to every neuron at one position.

    Args:
        prompts: int64 [B, T], of equal length; candidates: C token ids.

    Returns: log-probabilities float64 [B, C], gradients [B, C, L + 1, D], values [B, L + 1, D] of the neurons.
    """
    outputs, residual = [], []
    handles = [parts.embedding.register_forward_hook(_leaf(outputs))]
    handles += [mlp.register_forward_hook(lambda _, __, output: outputs.append(output)) for mlp in parts.mlps]
    handles.append(parts.final_norm.register_forward_pre_hook(lambda _, inputs: residual.append(inputs[0])))
    predictions = tuple(([prompts.shape[1] - 1], [candidate]) for candidate in candidates)
    try:
        with torch.enable_grad():
            model(prompts, use_cache=False, logits_to_keep=1)
            log_probabilities = ReadOut(parts, predictions)(residual[0])  # [B, C]
            gradients = [torch.autograd.grad(column.sum(), outputs, retain_graph=True) for column in log_probabilities.unbind(dim=1)]
    finally:
        for handle in handles:
            handle.remove()
    at_position = torch.stack([torch.stack([of_layer[:, position] for of_layer in of_candidate], dim=1) for of_candidate in gradients], dim=1)
    return log_probabilities.detach(), at_position, torch.stack([output[:, position].detach() for output in outputs], dim=1)


def head_gradients(model, parts, tree):
    """Gradients of a tree's predictions with respect to every head's attention weights.

    Returns: log-probabilities float64 [C], gradients [C, L, H, T, T], the weights themselves [L, H, T, T].
    """
    residual, outputs = [], []
    handles = [parts.embedding.register_forward_hook(_leaf(outputs)),
               parts.final_norm.register_forward_pre_hook(lambda _, inputs: residual.append(inputs[0]))]
    try:
        with torch.enable_grad(), recorded_weights(parts) as weights:
            model(tree.tokens.unsqueeze(0), use_cache=False, logits_to_keep=1, **as_arguments(model, tree))
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
