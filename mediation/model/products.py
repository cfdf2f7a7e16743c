"""How the linear maps of a model multiply while a sweep runs.

By packed weights, or in bfloat16 on the difference to the base run. The library's blocks stay as they are;
only what their linear maps do with their input is exchanged, and put back at the end (and GPT-2's activation
function, which the library computes in eight steps, for PyTorch's own in one).
`packed` gives the same numbers as the library's own product up to rounding. `on_differences` is approximate:
y = y_base + W (x - x_base), where W and x - x_base are bfloat16 and everything else, the non-linear parts
above all, keeps the model's precision. Its error scales with the difference to the base run, not with the
activations.

Symbols in shapes: T positions of the base run.
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
Forwards = dict[nn.Module, Callable[..., Tensor]]  # modules, and what they run instead of their own
# inputs and outputs of linear maps
Recorded = dict[nn.Module, tuple[Float[Tensor, "T _"], Float[Tensor, "T _"]]]

# linear map -> {dtype: (version of the weight, its product)}
_products: weakref.WeakKeyDictionary[nn.Module, dict[torch.dtype, Any]] = weakref.WeakKeyDictionary()
_fixed: list[dict[nn.Module, float]] = []  # sums of weights, while somebody vouches for them
GELU = partial(nn.functional.gelu, approximate="tanh")


def _modules(blocks, *kinds):
    """All modules of exactly these kinds inside the blocks."""
    return [module for block in blocks for module in block.modules() if type(module) in kinds]


def _linear_maps(blocks):
    """All that multiply by a weight inside the blocks."""
    return _modules(blocks, nn.Linear, Conv1D)


def _weight(linear_map):
    """Of outputs by inputs, whichever way the map keeps it."""
    weight = linear_map.weight.detach()
    return weight.T if isinstance(linear_map, Conv1D) else weight


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16.

    ONEDNN_MAX_CPU_ISA=AVX2, which switches oneDNN's own products off, makes it False on a CPU.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    on_cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    packs = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return on_cpu and packs and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def product(weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None) -> Product:
    """Function of x to x weight^T + bias, the fastest that is here for many rows.

    That is oneDNN with packed weights on a CPU, else PyTorch's own. oneDNN's names in PyTorch are private;
    nothing else in the project uses them.
    """
    if weight.dtype == torch.bfloat16 and not multiplies_bfloat16(weight.device):
        # the product of two bfloat16 numbers is exact in float32, and hardware sums them in float32, too
        emulated = product(weight.float(), None if bias is None else bias.float())
        return lambda x: emulated(x.float()).bfloat16()
    can_be_packed = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    if can_be_packed and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        in_blocks = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, in_blocks, bias, "none", [], "")
    return lambda x: nn.functional.linear(x, weight, bias)


@contextmanager
def fixed_weights() -> Iterator[None]:
    """While open, weights are summed up once, not for every sweep: the caller vouches that none changes
    through `.data`, which nothing but their sum would tell."""
    _fixed.append({})
    try:
        yield
    finally:
        _fixed.pop()


def version_of(linear_map: Any) -> tuple[int, int, float]:
    """What tells a map's weight from what it was before it changed, in whatever way."""
    weight, sums = linear_map.weight.detach(), _fixed[-1] if _fixed else {}
    if linear_map not in sums:
        sums[linear_map] = float(weight.sum())
    return weight.data_ptr(), weight._version, sums[linear_map]


def _product_of(linear_map, dtype):
    """The product of a linear map's weight in `dtype`, kept until the weight changes.

    In bfloat16 without the bias, which no difference has.
    """
    products = _products.setdefault(linear_map, {})
    version = version_of(linear_map)
    if dtype not in products or products[dtype][0] != version:
        bias = None if dtype == torch.bfloat16 else linear_map.bias
        products[dtype] = version, product(_weight(linear_map).to(dtype), bias)
    return products[dtype][1]


@contextmanager
def exchanged(forwards: Forwards) -> Iterator[None]:
    """While open, modules run these functions instead of their own. Put back after errors, too."""
    before = {module: {"forward": module.__dict__["forward"]} if "forward" in module.__dict__ else {}
              for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            module.__dict__.pop("forward", None)  # the class' own is there again
            module.__dict__.update(own)


def packed(blocks: nn.ModuleList | list[nn.Module]) -> Forwards:
    """The functions by which the linear maps of `blocks` multiply by packed weights.

    Empty where that is not faster, or the copy would not fit into memory twice over. To be asked for once per
    sweep.
    """
    linear_maps = _linear_maps(blocks)
    if not linear_maps:
        return {}
    weight = linear_maps[0].weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return {}
    unpacked = [each for each in linear_maps if torch.float32 not in _products.get(each, {})]
    copy = sum(each.weight.nbytes for each in unpacked)
    if copy and 2 * copy > psutil.virtual_memory().available:
        return {}
    forwards = {each: _product_of(each, torch.float32) for each in linear_maps}
    return forwards | dict.fromkeys(_modules(blocks, NewGELUActivation), GELU)


@contextmanager
def recorded(blocks: nn.ModuleList) -> Iterator[Recorded]:
    """While open, a run of one sequence leaves input and output of every linear map in this record."""
    record: Recorded = {}

    @no_type_check  # as in `forward.run_base`
    def keep(linear_map, inputs, output):
        rows = inputs[0].reshape(-1, inputs[0].shape[-1])
        record[linear_map] = rows, output.reshape(-1, output.shape[-1])

    handles = [linear_map.register_forward_hook(keep) for linear_map in _linear_maps(blocks)]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def on_differences(blocks: nn.ModuleList, record: Recorded, first: int) -> Forwards:
    """The functions by which linear maps multiply only what differs from the recorded run, in bfloat16.

    They take the positions from `first` on.
    """
    # several maps are given one input, one after the other, as those to queries, keys and values are: its
    # difference is taken once
    last: list[Any] = [None, None]

    @no_type_check  # as in `forward.run_base`
    def forward_of(linear_map, inputs, outputs):
        own = linear_map.forward
        multiply = _product_of(linear_map, torch.bfloat16)

        def forward(x):
            # where what is cached is made into keys and values later, the map is given all positions
            if x.dim() > 2 and x.shape[-2] != len(inputs):
                return own(x)
            if x is not last[0]:
                rows = x.view(-1, *inputs.shape)  # some blocks give their maps rows and positions in one
                last[:] = x, (rows - inputs).bfloat16()
            return multiply(last[1]).to(outputs.dtype).add_(outputs).view(*x.shape[:-1], -1)
        return forward

    forwards = {linear_map: forward_of(linear_map, inputs[first:], outputs[first:])
                for linear_map, (inputs, outputs) in record.items()}
    return forwards | dict.fromkeys(_modules(blocks, NewGELUActivation), GELU)


def check_bfloat16(device: torch.device) -> None:
    """Raises InputError where the hardware does not multiply bfloat16.

    The fast precision would be slower there than the exact one.
    """
    if not multiplies_bfloat16(device):
        raise InputError(f"--precision fast needs a processor that multiplies bfloat16, and {device} does "
                         "not: use --precision exact")
