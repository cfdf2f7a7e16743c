"""Weights that are kept in half precision while all that is computed is float32.

A matrix is made float32 where it is multiplied, and its copy is let go of behind the product. So a checkpoint
of half precision gives the numbers that it gives as a float32 model, in half of the memory. Norms, biases and
other vectors are float32.

Symbols in shapes: in, out: what a linear map is given and gives.
"""

import weakref
from collections.abc import Callable
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mediation.errors import InputError

aten = torch.ops.aten
HALF = (torch.bfloat16, torch.float16)
LINEAR = (nn.Linear, Conv1D)

_keeping: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models


class _Product(torch.autograd.Function):
    """x weight^T, of which no float32 copy is kept for a backward pass."""

    @staticmethod
    @no_type_check
    def forward(context, x, weight):
        context.save_for_backward(weight)
        return x @ weight.to(x.dtype).T

    @staticmethod
    @no_type_check
    def backward(context, gradient):
        (weight,) = context.saved_tensors
        return gradient @ weight.to(gradient.dtype), None


def times(x: Float[Tensor, "... in"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "... out"]:
    """x weight^T in the precision of x, whatever that of the weight is."""
    return _Product.apply(x, weight)  # type: ignore[no-untyped-call]  # PyTorch's


def keeps_half(model: nn.Module) -> bool:
    """Whether a model's weights are kept in half precision, and all else in float32."""
    return model in _keeping


def keep_in_half(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep a model's matrices in a half precision, and let all that is computed be float32.

    Raises:
        InputError: a weight that is too large for float16.
    """
    kept: dict[nn.Module, list[str]] = {}
    for module in model.modules():
        if names := _matrices(module):
            kept[module] = names
    matrices = {id(getattr(module, name)) for module, names in kept.items() for name in names}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        tensor.data = tensor.data.to(dtype if id(tensor) in matrices else torch.float32)
        if tensor.dtype == torch.float16 and not tensor.isfinite().all():
            raise InputError(f"the weights {name} do not fit into float16: use --weights_dtype bfloat16, or "
                             "leave it out")
    for module, names in kept.items():
        module.forward = _forward(module, names)  # type: ignore[method-assign]  # exchanged on purpose
    _keeping.add(model)


class _Half(TorchDispatchMode):
    """While open, `seen` becomes True when numbers of half precision are computed.

    Parts of a weight, and rows of an embedding, are none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    @no_type_check
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in HALF and function.overloadpacket != aten.embedding:
            memory = result.untyped_storage().data_ptr()
            self.seen |= all(each.untyped_storage().data_ptr() != memory
                             for each in args if isinstance(each, Tensor))
        return result


@torch.no_grad()
def check_float32(model: PreTrainedModel, tokens: Int[Tensor, "B T"]) -> None:
    """Raises InputError for a model of which some part computes in the precision of its weights.

    Args:
        tokens: of a short text.
    """
    try:
        with _Half() as half:
            model(tokens, use_cache=False)
        if not half.seen:
            return
    except RuntimeError:  # products of two precisions
        pass
    raise InputError(f"this {model.config.model_type} model computes some of its numbers in the precision of "
                     "its weights: leave out --weights_dtype")


def _matrices(module):
    """Names of a module's own weights that are kept."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return []  # small, and read by other modules than their own
    return [name for name, weight in module.named_parameters(recurse=False)
            if weight.dim() > 1 and weight.is_floating_point()]


@no_type_check  # a module's own, whatever it takes
def _forward(module: nn.Module, names: list[str]) -> Callable[..., Any]:
    """What a module runs instead of its own forward."""
    def linear(x):
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        product = times(x, weight)
        return product if module.bias is None else product + module.bias

    def rows(tokens):
        return nn.functional.embedding(tokens, module.weight).float()

    def as_float32(*positional, **named):
        # an attribute of the object's own comes before a parameter of that name
        own = {name: module._parameters[name].float() for name in names}
        module.__dict__.update(own)
        try:
            return type(module).forward(module, *positional, **named)
        finally:
            for name in names:
                module.__dict__.pop(name, None)

    return linear if type(module) in LINEAR else rows if type(module) is nn.Embedding else as_float32
