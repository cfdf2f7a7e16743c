"""A model whose weights do not fit on one GPU: its blocks lie on several, and rows move from block to block.

Weights stay where they were put. A hook gives each block its inputs on its own GPU, whoever calls it; what
leaves the last block comes back to the first GPU, on which all lies that is no block: word embedding, final
norm, unembedding.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mediation.errors import InputError
from mediation.model.architectures import Parts
from mediation.model.attention import near
from mediation.model.discovery import sample_tokens
from mediation.model.forward import changed, last_logits
from mediation.model.probes import ROUNDING, first_line


def gpus() -> list[torch.device]:
    """All that this process sees."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cuda", index) for index in range(count)]


def devices_of(device_map: str, device: str | torch.device) -> list[torch.device]:
    """The GPUs that a model is to be divided over.

    Raises:
        InputError: less than two, another device named, or an unknown `device_map`.
    """
    if device_map != "auto":
        raise InputError(f"device_map {device_map!r} is unknown: choose auto, or leave it out")
    if str(device) not in ("auto", "cuda"):
        raise InputError(f"--device_map auto takes all GPUs and does not go with --device {device}: use "
                         "--device auto, or leave out --device_map")
    found = gpus()
    if len(found) < 2:
        raise InputError(f"--device_map auto divides a model over two GPUs or more, here {len(found)} can be "
                         "seen: leave it out (--weights_dtype bfloat16 keeps weights in half of the memory)")
    return found


def divided(sizes: Sequence[int], others: int, devices: int) -> list[int]:
    """The device of each block, in order: as even as can be, by the sum of squares of what devices hold.

    Args:
        sizes: bytes of each block; others: of all else, on the first device.
    """
    sums = [0, *accumulate(sizes)]
    # of the first blocks, for each number of them: (sum of squares, device of each) on the devices so far
    ways = [((others + total) ** 2, [0] * end) for end, total in enumerate(sums)]
    for device in range(1, devices):
        ways = [min((squares + (sums[end] - sums[start]) ** 2, [*of_blocks, *[device] * (end - start)])
                    for start, (squares, of_blocks) in enumerate(ways[:end + 1]))
                for end in range(len(sums))]
    return ways[-1][1]


@torch.no_grad()
def spread(parts: Parts, devices: Sequence[torch.device]) -> None:
    """Divide a model that lies on the CPU over devices; it runs there as before.

    Raises:
        InputError: it does not fit there, or a short run of it fails, or gives other numbers than on the CPU.
    """
    model, tokens = parts.model, sample_tokens(parts.model)
    try:
        before = last_logits(model, tokens, 1)
        _place(parts, devices)
        behind: Float[Tensor, "2 1 V"] = last_logits(model, tokens.to(devices[0]), 1).cpu()
    except torch.OutOfMemoryError as error:
        raise InputError(f"out of memory: the model does not fit on {len(devices)} GPUs: name a smaller one, "
                         "use --weights_dtype bfloat16, or more GPUs") from error
    except Exception as error:  # the library's own code, for which tensors of two devices met
        raise InputError(_refusal(model, len(devices), first_line(error))) from error
    if not near(behind, before, ROUNDING):
        raise InputError(_refusal(model, len(devices), "a short run gives other numbers than on the CPU"))


def _refusal(model, count, reason):
    return (f"this {model.config.model_type} model does not run on {count} GPUs together ({reason}): leave "
            "out --device_map")


def _place(parts, devices):
    """Blocks to their devices, all else to the first."""
    inside = [_tensors(block) for block in parts.blocks]
    of_blocks = {id(tensor) for tensors in inside for tensor in tensors}
    others = [tensor for tensor in _tensors(parts.model) if id(tensor) not in of_blocks]
    where = divided([_bytes(tensors) for tensors in inside], _bytes(others), len(devices))
    for tensors, device in [(others, devices[0]), *((inside[block], devices[index])
                                                    for block, index in enumerate(where))]:
        for tensor in tensors:
            tensor.data = tensor.data.to(device)
    for block, index in zip(parts.blocks, where):
        block.register_forward_pre_hook(_bringing(devices[index]), with_kwargs=True)
    parts.blocks[-1].register_forward_hook(
        lambda _block, _inputs, output: _moved(output, devices[0]))


def _tensors(module: nn.Module) -> list[Tensor]:
    """Weights and buffers, each once."""
    return list({id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}.values())


def _bytes(tensors):
    return sum(tensor.nbytes for tensor in tensors)


def _moved(given: Any, device: torch.device) -> Any:
    """The same with every tensor on a device."""
    return changed(lambda _path, tensor: tensor.to(device), given)


@no_type_check  # as in `forward.run_bases`
def _bringing(device):
    """Hook that gives a module what it is called with on a device."""
    return lambda _module, positional, named: (_moved(positional, device), _moved(named, device))
