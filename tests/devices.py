"""GPUs that are not there: tensors that lie on the CPU, and of which each is said to be on some device.

`Devices` is open while a model is loaded and run. What is moved to, or made on, "cuda:0" or "cuda:1" is
marked so; `.device` says it, results are where their operands are, and what CUDA refuses is refused: an
operation on tensors of two devices (but for numbers without dimensions on the CPU, copies, indices there),
and reading a tensor as an array. Below Python, too: operations are checked as they reach PyTorch's kernels,
those of the library and of backward passes among them. It knows nothing of speed, memory or rounding.
"""

from collections import Counter

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
aten = torch.ops.aten
# indices on the CPU are taken by tensors on any device
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
BETWEEN_DEVICES = {aten.copy_, aten._copy_from}


class MixedDevices(RuntimeError):
    """As CUDA's: expected all tensors to be on the same device."""


class Devices:
    """While open, devices are told apart.

    >>> with Devices() as devices:
    ...     model = Model(device="cuda:0", gpt2_version=folder)

    `seen`: how many operations ran on each device.
    """

    def __init__(self):
        self.of_storage = {}  # address: (weak reference that keeps it from being used again, device)
        self.seen = Counter()
        self.modes = _Kernels(self), _Calls(self)

    def __enter__(self):
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error):
        for mode in reversed(self.modes):
            mode.__exit__(*error)

    def of(self, tensor):
        """Where a tensor is."""
        with torch._C.DisableTorchFunction():
            if tensor.is_meta:
                return torch.device("meta")
            return self.of_storage.get(tensor.untyped_storage()._cdata, (None, CPU))[1]

    def put(self, tensor, device):
        """Say where a tensor is."""
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
            if device == CPU:
                self.of_storage.pop(storage._cdata, None)
            else:
                self.of_storage[storage._cdata] = StorageWeakRef(storage), device
        if len(self.of_storage) > 20_000:
            self.of_storage = {key: known for key, known in self.of_storage.items() if not known[0].expired()}
        return tensor


def _tensors(given):
    """All that lie in lists, tuples and the values of dictionaries."""
    if isinstance(given, torch.Tensor):
        return [given]
    below = given.values() if isinstance(given, dict) else given if isinstance(given, list | tuple) else ()
    return [tensor for each in below for tensor in _tensors(each)]


def _device(name):
    """"cuda" is the first one."""
    device = torch.device(name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


class _Kernels(TorchDispatchMode):
    """Checks operations, and says where their results are."""

    def __init__(self, devices):
        super().__init__()
        self.devices = devices

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        given, packet = _tensors([*args, kwargs]), function.overloadpacket
        places = [self.devices.of(each) for each in given]
        large = [place for each, place in zip(given, places) if each.dim() or place != CPU]
        home = (large or places or [CPU])[0]
        counted = large
        if packet in INDEXING:
            home = places[0]
            counted = [place for place in large if place != CPU]
            if len(args) > 2 and isinstance(args[2], torch.Tensor) and args[2].dim():
                counted.append(self.devices.of(args[2]))  # what is put in
        if packet not in BETWEEN_DEVICES and len({home, *counted}) > 1:
            shapes = [tuple(each.shape) for each in given]
            raise MixedDevices(f"{function}: tensors of shapes {shapes} on {[*map(str, places)]}")
        result = function(*args, **(kwargs or {}))
        self.devices.seen[str(home)] += 1
        if packet not in BETWEEN_DEVICES:
            for each in _tensors(result):
                if not any(each is one for one in given):
                    self.devices.put(each, home)
        return result


class _Calls(TorchFunctionMode):
    """What Python asks of devices: which one, another one, a new tensor on one."""

    def __init__(self, devices):
        super().__init__()
        self.devices = devices

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        kwargs, devices = dict(kwargs or {}), self.devices
        tensor = args[0] if args and isinstance(args[0], torch.Tensor) else None
        name = getattr(function, "__name__", "")
        if tensor is not None:
            owner = getattr(function, "__self__", None)
            if name == "__get__" and owner is torch.Tensor.device:
                return devices.of(tensor)
            if name == "__get__" and owner is torch.Tensor.is_cuda:
                return devices.of(tensor).type == "cuda"
            if name in ("numpy", "__array__") and devices.of(tensor) != CPU:
                raise TypeError(f"{devices.of(tensor)} tensor as an array: use .cpu()")
            if name in ("cpu", "cuda"):
                return self.moved(tensor, _device(name))
            if name == "to":
                return self.to(function, tensor, [*args[1:], *kwargs.values()])
        device = kwargs.get("device")
        if device is None or _device(device).type == "meta":
            return function(*args, **kwargs)
        kwargs["device"] = CPU  # in truth
        if tensor is None or name not in ("tensor", "as_tensor"):
            return devices.put(function(*args, **kwargs), _device(device))
        return self.moved(function(self.moved(tensor, CPU), *args[1:], **kwargs), _device(device))

    def moved(self, tensor, device):
        """The tensor itself where it is there."""
        if self.devices.of(tensor) == device:
            return tensor
        return _Moved.apply(tensor, self.devices, device)

    def to(self, function, tensor, given):
        """Tensor.to in all its forms."""
        device = dtype = None
        for each in given:
            if isinstance(each, torch.Tensor):
                device, dtype = self.devices.of(each), each.dtype
            elif isinstance(each, torch.dtype):
                dtype = each
            elif isinstance(each, torch.device | str):
                device = each
        tensor = tensor if dtype is None else function(tensor, dtype)
        return tensor if device is None else self.moved(tensor, _device(device))


class _Moved(torch.autograd.Function):
    """A copy on another device; its gradient goes back."""

    @staticmethod
    def forward(context, tensor, devices, device):
        context.devices, context.home = devices, devices.of(tensor)
        return devices.put(tensor.clone(), device)

    @staticmethod
    def backward(context, gradient):
        return context.devices.put(gradient.clone(), context.home), None, None
