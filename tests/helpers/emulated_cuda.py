"""Tensors that compute on the CPU and say that they are on a CUDA device.

An operation on tensors of two devices raises, as on a GPU. What would make the host wait for the device is counted
with the file and line that made it: an `item`, a boolean index, a blocking copy between devices.

    with Cuda() as cuda:
        cuda.move(model)
        model(**{name: cuda.tensor(value) for name, value in inputs.items()})
    print(cuda.syncs)
"""

import collections
import sys
import traceback
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
PACKAGE = str(Path(__file__).parents[2] / "plugin")

SYNCING = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.unique_consecutive.default: "unique_consecutive",
    aten._unique2.default: "unique",
    aten.equal.default: "equal",
    aten.is_nonzero.default: "is_nonzero",
    aten.repeat_interleave.Tensor: "repeat_interleave",  # but for a given output_size
}
INDEXING = {
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}  # fmt: skip


class OtherDevice(RuntimeError):
    """Tensors of one operation are on different devices."""


class CudaTensor(torch.Tensor):
    """A tensor on the meta device whose values are those of `plain`, on the CPU, and whose device is `_on`."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    plain: torch.Tensor
    _on: torch.device
    anywhere = False  # a constant that torch's own code has made, for whatever device it computes on

    @staticmethod
    def __new__(cls, plain, device, requires_grad=False):
        with _disable_current_modes():
            meta = torch.empty_strided(plain.shape, plain.stride(), dtype=plain.dtype, device="meta")
            made = torch.Tensor._make_subclass(cls, meta, requires_grad)
        made.plain, made._on = plain, _device(device)
        return made

    device = property(lambda self: self._on)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def get_device(self):
        return self._on.index

    def to(self, *args, **kwargs):
        """As `Tensor.to`, whose own parser would look at the meta tensor."""
        if args and isinstance(args[0], torch.Tensor):
            return self.to(device=args[0].device, dtype=args[0].dtype)
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for value in args:
            if isinstance(value, torch.dtype):
                dtype = value
            elif not isinstance(value, bool):
                device = value
        device = self._on if device is None else _device(device)
        dtype = self.dtype if dtype is None else dtype
        if (device, dtype) == (self._on, self.dtype):
            return self
        return Move.apply(self, device, dtype, kwargs.get("non_blocking", False))

    def __setitem__(self, index, value):
        if not isinstance(value, torch.Tensor):
            value = CudaTensor(torch.tensor(value, dtype=self.dtype), self._on)
        return torch.Tensor.__setitem__(self, index, value)

    def cpu(self):
        return self.to("cpu")

    def __repr__(self):
        return f"CudaTensor({self.plain!r}, {self._on})"

    def tolist(self):
        Cuda.current.count("tolist")
        return self.plain.tolist()

    def numpy(self):
        raise TypeError(f"a tensor on {self._on} has no numpy array")

    def __array__(self, *args, **kwargs):
        return self.numpy()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return Cuda.current.run(function, args, kwargs or {})


class Move(torch.autograd.Function):
    """A copy to a device whose gradient comes back to where the tensor is; autograd itself takes that to be meta."""

    @staticmethod
    def forward(ctx, tensor, device, dtype, non_blocking):
        ctx.back = tensor.device, tensor.dtype
        return aten._to_copy(tensor, device=device, dtype=dtype, non_blocking=non_blocking)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(*ctx.back), None, None, None


def _device(name) -> torch.device:
    device = torch.device("cuda", name) if isinstance(name, int) else torch.device(name)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def _tensors(*values) -> list[torch.Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]


class Cuda(TorchDispatchMode):
    """The emulator, while its body runs.

    Attributes:
        syncs: (kind, place) -> how often the host waited; the place is the innermost line of this package, or that of
            transformers that it was for.
    """

    current: "Cuda"

    def __init__(self):
        super().__init__()
        self.syncs: collections.Counter = collections.Counter()
        self.latest = torch.device("cuda", 0)

    def __enter__(self):
        self.patched = torch.Tensor.to, torch.tensor, torch.cuda._lazy_init
        torch.Tensor.to, torch.tensor, torch.cuda._lazy_init = _to, _tensor, lambda: None
        torch._C._set_only_lift_cpu_tensors(True)
        Cuda.current = self
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        torch.Tensor.to, torch.tensor, torch.cuda._lazy_init = self.patched
        return super().__exit__(*error)

    def tensor(self, value: torch.Tensor, device="cuda:0") -> CudaTensor:
        return CudaTensor(value, device)

    def move(self, module: torch.nn.Module, device="cuda:0") -> torch.nn.Module:
        """The module with its parameters and buffers on the device; tied ones stay tied."""
        done = {}
        for each in module.modules():
            for name, parameter in each._parameters.items():
                if parameter is not None and not isinstance(parameter, CudaTensor):
                    if id(parameter) not in done:
                        moved = CudaTensor(parameter.data, device)
                        done[id(parameter)] = torch.nn.Parameter(moved, requires_grad=parameter.requires_grad)
                    each._parameters[name] = done[id(parameter)]
            for name, buffer in each._buffers.items():
                if buffer is not None and not isinstance(buffer, CudaTensor):
                    each._buffers[name] = CudaTensor(buffer, device)
        return module

    def count(self, kind: str) -> None:
        place = library = None
        for frame, line in traceback.walk_stack(sys._getframe(2)):
            file = frame.f_code.co_filename
            if file.startswith(PACKAGE):
                place = f"{file.removeprefix(PACKAGE)[1:]}:{line}"
                break
            if library is None and "site-packages/transformers" in file:
                library = f"transformers{file.partition('site-packages/transformers')[2]}:{line}"
        self.syncs[kind, library or place or "elsewhere"] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        on_cuda = device is not None and torch.device(device).type in ("cuda", "meta")
        if on_cuda or any(isinstance(tensor, CudaTensor) for tensor in _tensors(args, kwargs)):
            return self.run(function, args, kwargs)
        return function(*args, **kwargs)

    def run(self, function, args, kwargs):
        """Runs an operation on the CPU, and gives its result the device that it would have."""
        if function is torch.ops.prim.device.default:
            return args[0]._on
        on_device = [tensor for tensor in _tensors(args, kwargs) if isinstance(tensor, CudaTensor)]
        self.latest = on_device[0]._on if on_device else self.latest
        anywhere = all(tensor.anywhere for tensor in on_device)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
            kwargs = {**kwargs, "device": self.latest}  # torch's own code, which sees what the tensors really are
        else:
            anywhere = anywhere and bool(on_device)

        def without_meta(value):
            if isinstance(value, torch.Tensor) and not isinstance(value, CudaTensor) and value.device.type == "meta":
                with _disable_current_modes():  # autograd's zeros
                    return CudaTensor(torch.zeros(value.shape, dtype=value.dtype), self.latest)
            return value

        args, kwargs = tree_map(without_meta, args), tree_map(without_meta, kwargs)
        given = _tensors(args, kwargs)
        target = self.device_of_result(function, args, kwargs, given)
        plain_args, plain = tree_map(_plain, args), tree_map(_plain, kwargs)
        if plain.get("device") is not None:
            plain["device"] = torch.device("cpu")
        plain.pop("pin_memory", None)
        with _disable_current_modes():
            result = _product(function, plain_args, plain)
        wrapped = {id(tensor.plain): tensor for tensor in given if isinstance(tensor, CudaTensor)}
        wrapped |= {id(tensor): tensor for tensor in given}

        def wrap(value):
            if not isinstance(value, torch.Tensor):
                return value
            if id(value) in wrapped:  # written in place
                return wrapped[id(value)]
            if target.type == "cuda":
                value = CudaTensor(value, target)
                value.anywhere = anywhere
            return value

        return tree_map(wrap, result)

    def device_of_result(self, function, args, kwargs, given) -> torch.device:
        named = None if kwargs.get("device") is None else _device(kwargs["device"])
        if function is aten._to_copy.default:
            source, target = args[0].device, named or args[0].device
            if source != target and not kwargs.get("non_blocking"):
                self.count(f"copy from {source.type} to {target.type}")
            return target
        if function is aten.copy_.default:
            if args[0].device != args[1].device and not (len(args) > 2 and args[2]):
                self.count(f"copy from {args[1].device.type} to {args[0].device.type}")
            return args[0].device
        if function in INDEXING:
            own = args[0].device
            indices = [index for index in args[1] if index is not None]
            for index in indices:
                if index.device.type == "cpu" and own.type == "cuda":
                    self.count("index on the CPU")
                elif index.device != own:
                    raise OtherDevice(f"{function}: an index on {index.device}, a tensor on {own}")
                if index.dtype in (torch.bool, torch.uint8) and own.type == "cuda":
                    self.count("boolean index")
            given = [tensor for tensor in given if not any(tensor is index for index in indices)]
        elif function in SYNCING and any(tensor.device.type == "cuda" for tensor in given):
            if function is not aten.repeat_interleave.Tensor or kwargs.get("output_size") is None:
                self.count(SYNCING[function])
        # A number on the CPU goes with any device, and so do constants of torch's own code, see `run`.
        devices = {tensor.device for tensor in given if tensor.dim() or tensor.device.type == "cuda"}
        devices = {tensor.device for tensor in given if not getattr(tensor, "anywhere", False)} & devices or devices
        if len(devices) > 1:
            raise OtherDevice(f"{function}: tensors on {', '.join(sorted(map(str, devices)))}")
        return named or (devices.pop() if devices else torch.device("cpu"))


def _plain(value):
    return value.plain if isinstance(value, CudaTensor) else value


def _product(function, args, kwargs):
    """The operation; half-precision products into float32, which the CPU lacks, in float32."""
    if function is aten.mm.dtype:
        return args[0].float() @ args[1].float()
    if function is aten.mm.dtype_out:
        return kwargs["out"].copy_(args[0].float() @ args[1].float())
    return function(*args, **kwargs)


_plain_to, _plain_tensor = torch.Tensor.to, torch.tensor


def _to(self, *args, **kwargs):
    if args and isinstance(args[0], CudaTensor) and not isinstance(self, CudaTensor):
        return _plain_to(self, device=args[0]._on, dtype=args[0].dtype)
    return _plain_to(self, *args, **kwargs)


def _tensor(data, *args, **kwargs):
    """`torch.tensor` of a list that holds tensors, for which the host waits."""

    def read(value):
        if isinstance(value, CudaTensor):
            return value.tolist()
        return [read(each) for each in value] if isinstance(value, list | tuple) else value

    return _plain_tensor(read(data) if isinstance(data, list | tuple) else data, *args, **kwargs)
