"""How the linear layers of a model multiply while a sweep runs: by packed weights, or in bfloat16 on the difference to the base run.

The library's blocks stay as they are; only what their linear layers do with their input is exchanged, and put back at the end (and GPT-2's
activation function, which the library computes in eight steps, for PyTorch's own in one).
`packed` gives the same numbers as the library's own product up to rounding. `on_differences` is approximate: y = y_base + W (x - x_base), where
W and x - x_base are bfloat16 and everything else, the non-linear parts above all, keeps the model's precision. Its error scales with the
difference to the base run, not with the activations.

Shapes: B rows, T positions of the base run, S the last of them that are run again.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, no_type_check

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from mediation.errors import InputError

Product = Callable[[Float[Tensor, "... in"]], Float[Tensor, "... out"]]
Forwards = dict[nn.Module, Callable[..., Tensor]]  # layers and what they run instead of their own
# inputs and outputs of linear layers
Recorded = dict[nn.Module, tuple[Float[Tensor, "T _"], Float[Tensor, "T _"]]]

# linear layer -> {dtype: (version of the weight, its product)}
_kept: weakref.WeakKeyDictionary[nn.Module, dict[torch.dtype, Any]] = weakref.WeakKeyDictionary()
GELU = partial(nn.functional.gelu, approximate="tanh")


def _layers(blocks, *kinds):
    """All modules of exactly these kinds inside the blocks."""
    return [layer for block in blocks for layer in block.modules() if type(layer) in kinds]


def _weight(layer):
    """Of outputs by inputs, whichever way the layer keeps it."""
    return layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16. ONEDNN_MAX_CPU_ISA=AVX2, which switches oneDNN's own products off, makes it False on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    on_cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return on_cpu and hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def product(weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None) -> Product:
    """Function of x to x weight^T + bias, the fastest that is here for many rows: oneDNN with packed weights
    on a CPU, else PyTorch's own.

    Where the hardware does not multiply bfloat16, its product is emulated: that of two bfloat16 numbers is exact in float32, and sums are float32
    in hardware, too. oneDNN's names in PyTorch are private; nothing else in the project uses them.
    """
    if weight.dtype == torch.bfloat16 and not multiplies_bfloat16(weight.device):
        emulated = product(weight.float(), None if bias is None else bias.float())
        return lambda x: emulated(x.float()).bfloat16()
    if weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16) and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        in_blocks = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, in_blocks, bias, "none", [], "")
    return lambda x: nn.functional.linear(x, weight, bias)


def _product_of(layer, dtype):
    """The product of a layer's weight in `dtype`, kept until the weight changes; in bfloat16 without the bias, which no difference has.

    The sum of the weight is looked at, too: changes through `.data` leave no other trace.
    """
    kept = _kept.setdefault(layer, {})
    version = layer.weight.data_ptr(), layer.weight._version, float(layer.weight.detach().sum())
    if dtype not in kept or kept[dtype][0] != version:
        kept[dtype] = version, product(_weight(layer).to(dtype), None if dtype == torch.bfloat16 else layer.bias)
    return kept[dtype][1]


@contextmanager
def exchanged(forwards: Forwards) -> Iterator[None]:
    """While open, layers run these functions of `packed` or `on_differences`. Put back after errors, too."""
    try:
        for layer, forward in forwards.items():
            layer.forward = forward
        yield
    finally:
        for layer in forwards:
            layer.__dict__.pop("forward", None)


def packed(blocks: nn.ModuleList | list[nn.Module]) -> Forwards:
    """The functions by which the linear layers of `blocks` multiply by packed weights; empty where that is
    not faster, or the copy would not fit into memory twice over. To be asked for once per sweep."""
    layers = _layers(blocks, nn.Linear, Conv1D)
    if not layers or layers[0].weight.device.type != "cpu" or layers[0].weight.dtype != torch.float32:
        return {}
    new = sum(layer.weight.nbytes for layer in layers if torch.float32 not in _kept.get(layer, {}))
    if new and 2 * new > psutil.virtual_memory().available:
        return {}
    return {layer: _product_of(layer, torch.float32) for layer in layers} | dict.fromkeys(_layers(blocks, NewGELUActivation), GELU)


@contextmanager
def recorded(blocks: nn.ModuleList) -> Iterator[Recorded]:
    """While open, a run of one sequence leaves input and output of every linear layer in what is given."""
    record: Recorded = {}

    @no_type_check  # as in `forward.run_base`
    def keep(layer, inputs, output):
        record[layer] = inputs[0].reshape(-1, inputs[0].shape[-1]), output.reshape(-1, output.shape[-1])

    handles = [layer.register_forward_hook(keep) for layer in _layers(blocks, nn.Linear, Conv1D)]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def on_differences(blocks: nn.ModuleList, record: Recorded, first: int) -> Forwards:
    """The functions by which linear layers multiply only what differs from the recorded run, in bfloat16, at
    the positions from `first` on."""
    # several layers are given the same input one after the other, as queries, keys and values are
    last: list[Any] = [None, None]

    @no_type_check  # as in `forward.run_base`
    def forward_of(layer, inputs, outputs):
        multiply = _product_of(layer, torch.bfloat16)

        def forward(x):
            if x is not last[0]:
                last[:] = x, (x.view(-1, *inputs.shape) - inputs).bfloat16()  # some blocks give their layers rows and positions in one
            return multiply(last[1]).to(outputs.dtype).add_(outputs).view(*x.shape[:-1], -1)
        return forward

    forwards = {layer: forward_of(layer, inputs[first:], outputs[first:]) for layer, (inputs, outputs) in record.items()}
    return forwards | dict.fromkeys(_layers(blocks, NewGELUActivation), GELU)


def check_bfloat16(device: torch.device) -> None:
    """Raises InputError where the hardware does not multiply bfloat16: the fast precision would be slower there than the exact one."""
    if not multiplies_bfloat16(device):
        raise InputError(f"--precision fast needs a processor that multiplies bfloat16, and {device} does not: use --precision exact")
