"""A pretended accelerator, for machines without one: values on the CPU, the rules of a device, and counts of what costs time on one.

    module = moved_to_device(module)
    with Accelerator(watched="/minirl/") as device:
        loss(module, items, device=DEVICE).backward()
    assert not device.waits

`DEVICE` is the backend that torch reserves for backends in Python. A tensor there holds a CPU tensor, and every operation runs on the CPU.
Like CUDA, the pretended device refuses operations that mix devices. It counts three things: operations, operations for which the host
waits until the device is done, and operations that CUDA refuses under `torch.use_deterministic_algorithms(True)`.

It shows nothing of CUDA's own kernels, of memory or of streams, and no branch on `is_cuda` is taken.
"""

import sys
from collections import Counter
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE = torch.device("privateuseone", 0)
VIEWS = {
    "view", "_unsafe_view", "expand", "transpose", "t", "slice", "select", "unsqueeze", "squeeze", "permute", "detach", "alias",
    "as_strided", "split", "split_with_sizes", "unbind", "lift_fresh", "_reshape_alias",
}  # fmt: skip
"""They start no kernel."""
VALUES_READ = {"_local_scalar_dense", "equal"}
SIZES_READ = {"nonzero", "masked_select", "unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
NONDETERMINISTIC = {
    "adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "avg_pool3d_backward", "bincount", "cumprod", "cumprod_", "cumsum", "cumsum_", "_ctc_loss_backward", "_embedding_bag_backward",
    "fractional_max_pool2d_backward", "fractional_max_pool3d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward", "histc",
    "kthvalue", "logcumsumexp", "masked_scatter", "masked_scatter_", "max_unpool2d", "max_unpool3d", "median", "nanmedian",
    "nll_loss_forward", "nll_loss2d_forward", "put", "put_", "reflection_pad1d_backward", "reflection_pad2d_backward",
    "reflection_pad3d_backward", "scatter_reduce", "scatter_reduce_", "upsample_linear1d_backward", "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward", "upsample_trilinear3d_backward",
}  # fmt: skip
"""What has no deterministic kernel on CUDA (documentation of `torch.use_deterministic_algorithms`); sums of integers have one. Also
`cumprod` and `masked_scatter`, whose gradients use others of the list or wait for the device."""


class Place(NamedTuple):
    """The innermost line of a watched file."""

    file: str
    function: str
    line: int


NOWHERE = Place("", "", 0)


class Pretended(torch.Tensor):
    """A tensor on the pretended device. held: the CPU tensor with its values."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Pretended":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "device": DEVICE}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, **layout)

    def __init__(self, held: torch.Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Operations outside of an accelerator's context, which nobody counts."""
        return Accelerator().dispatch(func, args, kwargs or {})


class Accelerator(ExitStack):
    """A context that carries out operations on the pretended device and counts them. watched: part of the path of watched files.

    operations: by place. waits: by reason and place. nondeterministic: by operation and place. copies_to_device: a number.
    """

    def __init__(self, watched: str = "/minirl/"):
        super().__init__()
        self._watched = watched
        self._pinned: list[torch.Tensor] = []  # keeps their memory from being used again
        self.operations: Counter[Place] = Counter()
        self.waits: Counter[tuple[str, Place]] = Counter()
        self.nondeterministic: Counter[tuple[str, Place]] = Counter()
        self.copies_to_device = 0

    def __enter__(self) -> "Accelerator":
        super().__enter__()
        _Backend.is_there = True
        self.callback(setattr, _Backend, "is_there", False)
        self.enter_context(_Functions(self))
        self.enter_context(_Operations(self))
        return self

    def dispatch(self, func, args, kwargs):
        """Carry out one operation of the dispatcher on the tensors that are held, by the rules of a device."""
        name, asked = func._schema.name.removeprefix("aten::"), kwargs.get("device")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
        result_there = bool(there) if asked is None else torch.device(asked).type == DEVICE.type
        if name in ("_to_copy", "copy_"):
            self._check_copy(name, args, kwargs, result_there)
        elif there:
            self._check_operands(name, args, tensors)
        if (there or result_there) and name not in VIEWS:
            self.operations[self._place()] += 1
            self._check_determinism(name, tensors)
        wrappers = {id(tensor.held): tensor for tensor in there}  # an operation in place returns the same wrapper
        if asked is not None:
            kwargs = kwargs | {"device": torch.device("cpu")}
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if not result_there:
            return out

        def wrapped(value):
            if not isinstance(value, torch.Tensor):
                return value
            return wrappers[id(value)] if id(value) in wrappers else Pretended(value)

        return tree_map(wrapped, out)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self._pinned.append(tensor)
        return tensor

    def wait(self, reason: str) -> None:
        self.waits[reason, self._place()] += 1

    def _check_copy(self, name, args, kwargs, result_there: bool) -> None:
        source, target_there = (args[1], isinstance(args[0], Pretended)) if name == "copy_" else (args[0], result_there)
        if isinstance(source, Pretended) == target_there:
            return
        if not target_there:
            self.wait("a copy from the device")
            return
        self.copies_to_device += 1
        non_blocking = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
        memory = source.untyped_storage().data_ptr()
        if not non_blocking or not any(memory == pinned.untyped_storage().data_ptr() for pinned in self._pinned):
            self.wait("a copy to the device that is not non_blocking from pinned memory")

    def _check_operands(self, name, args, tensors) -> None:
        indices = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, torch.Tensor)] if name in INDEXED else []
        for tensor in tensors:
            if not isinstance(tensor, Pretended) and tensor.ndim and not any(tensor is index for index in indices):
                raise RuntimeError(f"{name}: expected all tensors on one device, found {DEVICE} and cpu, at {self._place()}")
        if name in VALUES_READ:
            self.wait("a value read by Python")
        if name in SIZES_READ or (name == "repeat_interleave" and len(tensors) == 1):
            self.wait(f"{name}: a size that depends on values")
        if any(not isinstance(index, Pretended) for index in indices):
            self.wait("an index copied from the host")
        if any(index.dtype == torch.bool for index in indices) and not (name != "index" and args[2].numel() == 1):  # a fill needs no size
            self.wait("a mask as an index: a size that depends on values")

    def _check_determinism(self, name, tensors) -> None:
        if name in NONDETERMINISTIC and any(tensor.is_floating_point() for tensor in tensors):
            self.nondeterministic[name, self._place()] += 1

    def _place(self) -> Place:
        frame = sys._getframe(1)
        while frame is not None and (self._watched not in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
            frame = frame.f_back
        if frame is None:
            return NOWHERE
        return Place("/".join(frame.f_code.co_filename.split("/")[-2:]), frame.f_code.co_name, frame.f_lineno)


class _Operations(TorchDispatchMode):
    def __init__(self, accelerator: Accelerator):
        super().__init__()
        self._accelerator = accelerator

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self._accelerator.dispatch(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What the dispatcher does not see or a CPU build refuses: copies inside `torch.tensor`, `tolist`, pinned memory."""

    def __init__(self, accelerator: Accelerator):
        super().__init__()
        self._accelerator = accelerator

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        if func is torch.empty and kwargs.get("pin_memory"):
            return self._accelerator.pin(func(*args, **kwargs | {"pin_memory": False}))
        if func is torch.Tensor.pin_memory:
            return self._accelerator.pin(args[0].clone())
        if func is torch.Tensor.tolist and isinstance(args[0], Pretended):
            self._accelerator.wait("a value read by Python")
            return args[0].held.tolist()
        return func(*args, **kwargs)


class _Backend(_DummyBackendModule):
    """torch has an accelerator inside an accelerator's context only, so that no other test finds one."""

    is_there = False

    def is_available(self) -> bool:
        return _Backend.is_there

    def device_count(self) -> int:
        return int(_Backend.is_there)


def moved_to_device(module: torch.nn.Module) -> torch.nn.Module:
    """The module with parameters and buffers on the pretended device, in place; tied parameters stay tied."""
    moved: dict[int, torch.nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                there = torch.nn.Parameter(Pretended(parameter.data), requires_grad=parameter.requires_grad)
                owner._parameters[name] = moved.setdefault(id(parameter), there)
        for name, buffer in owner._buffers.items():
            owner._buffers[name] = buffer if buffer is None else Pretended(buffer)
    return module


def _held(value):
    return value.held if isinstance(value, Pretended) else value


# On import, because torch's autograd counts devices at the first backward pass of a process.
_setup_privateuseone_for_python_backend("pretend", backend_module=_Backend())
