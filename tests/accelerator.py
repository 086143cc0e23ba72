"""A simulated accelerator: a torch device ``sim`` whose tensors hold CPU data, and a counter of what crosses to it.

It proves without a GPU what goes wrong on one. An operation on ``sim`` takes tensors of that device alone: a table left
on the CPU, ``.numpy()`` of a device's tensor, or a CPU index fail or count as on CUDA. :func:`counted` lists every copy
between host and device and every read of a value that the host waits for, with the line of code that asked for it.

The device is torch's PrivateUse1, set up for a backend in Python. Its tensors are wrappers: their operations are taken
apart by torch as on any device, run on the CPU tensors inside, and the results are wrapped again. Random numbers come
from the CPU's generator, so that a step draws what it draws on the CPU.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "Crossing", "SimTensor", "counted", "on_device"]

NAME = "sim"
aten = torch.ops.aten

#: Operations whose result has a size, or is a value, that the host waits for on a GPU.
READS = {
    aten._local_scalar_dense.default: "item",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.bincount.default: "bincount",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
#: Operations on boxes of torchvision that bring their result to the host on a GPU.
READ_NAMES = {"torchvision::nms": "nms"}
#: Operations that take indices from the host, which a GPU gets by a copy.
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
#: Functions that would fill an empty tensor and change its size.
FACTORIES = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace")
#: The checkout.
ROOT = Path(__file__).parents[1]
#: Files whose callers ask for a crossing: this one, and the one that sends several tensors at once.
PASSED_OVER = (Path(__file__).name, "host_draws.py")
COPIES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}


@dataclass(frozen=True)
class Crossing:
    """One crossing between host and device.

    Attributes:
        kind: ``"copy"`` to the device, or ``"read"`` from it.
        what: the operation.
        place: file and line of the innermost code outside of torch, e.g. ``mixtransfer/layers/residual.py:38``.
        numbers: how many values crossed.
    """

    kind: str
    what: str
    place: str
    numbers: int

    @property
    def ours(self) -> bool:
        """Whether a line of mixtransfer asked for it; its ``compat`` computes what libraries ask for."""
        return self.place.startswith("mixtransfer/") and not self.place.startswith("mixtransfer/compat/")


@dataclass
class Log:
    """The crossings inside a :func:`counted` block."""

    crossings: list[Crossing] = field(default_factory=list)

    def count(self, kind: str, ours: bool = True) -> int:
        """Return the number of crossings of a kind that mixtransfer's lines, or those of others, asked for."""
        return sum(crossing.kind == kind and crossing.ours == ours for crossing in self.crossings)

    def lines(self, ours: bool = True) -> str:
        """Return the crossings as text, those of a line together."""
        found = Counter((c.kind, c.what, c.place) for c in self.crossings if c.ours == ours)
        return "\n".join(f"{number} × {kind} by {what} at {place}" for (kind, what, place), number in found.items())


_logs: list[Log] = []
_libraries: list[torch.library.Library] = []


@contextmanager
def counted() -> Iterator[Log]:
    """Count the crossings inside the block."""
    log = Log()
    _logs.append(log)
    try:
        yield log
    finally:
        _logs.remove(log)


def _note(kind: str, what: str, numbers: int) -> None:
    if _logs:
        crossing = Crossing(kind, what, _place(), numbers)
        for log in _logs:
            log.crossings.append(crossing)


def _place() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "torch" not in path.parts and path.name not in PASSED_OVER and path.suffix == ".py":
            # A checkout may have any name, a package's too, and an environment inside.
            if "site-packages" in path.parts:
                return f"{'/'.join(path.parts[path.parts.index('site-packages') + 1 :])}:{frame.f_lineno}"
            if any(path.is_relative_to(ROOT / folder) for folder in ("mixtransfer", "tests")):
                return f"{path.relative_to(ROOT).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back
    return "backward pass"


class SimTensor(Tensor):
    """A tensor of the simulated device, around a CPU tensor."""

    data_on_host: Tensor

    @staticmethod
    def __new__(cls, data: Tensor) -> SimTensor:
        return Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            layout=data.layout,
            device=torch.device(NAME, 0),
            requires_grad=False,
        )

    def __init__(self, data: Tensor):
        self.data_on_host = data

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo) -> Tensor:
        # torch's own copies a storage, which a wrapper has not.
        return memo.setdefault(id(self), SimTensor(self.data_on_host.clone()).requires_grad_(self.requires_grad))

    def tolist(self):
        """Read all values, which torch refuses for wrappers."""
        return self.cpu().tolist()

    def numpy(self, *args, **kwargs):
        """Refuse, as for every tensor that is not in the host's memory."""
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def __repr__(self, *args, **kwargs) -> str:
        return f"SimTensor({self.data_on_host!r})"


def _tensors(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in _tensors(item)]


def _unwrapped(value):
    if isinstance(value, SimTensor):
        return value.data_on_host
    return type(value)(map(_unwrapped, value)) if isinstance(value, list | tuple) else value


def _wrapped(value):
    if isinstance(value, Tensor):
        return SimTensor(value)
    return type(value)(map(_wrapped, value)) if isinstance(value, list | tuple) else value


def _run(func, args: tuple, kwargs: dict):
    if func is aten._fused_sdp_choice.default:
        return 0  # the one that is made of plain operations, which this device has
    tensors = _tensors(args) + _tensors(kwargs)
    _check(func, tensors, args)
    _count(func, tensors, args, kwargs)
    if torch.Tag.inplace_view in func.tags:
        raise NotImplementedError(f"{func}: changes the shape of a simulated tensor in its place")
    target = kwargs.get("device")
    away = func is aten._to_copy.default and target is not None and torch.device(target).type != NAME
    inner = {name: _unwrapped(value) for name, value in kwargs.items() if name != "pin_memory"}
    if target is not None:
        inner["device"] = torch.device("cpu")
    result = func(*map(_unwrapped, args), **inner)
    written = _written(func)
    if written:
        by_name = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        outs = tuple(by_name[name] for name in written)
        if any(out.size() != out.data_on_host.size() for out in outs if isinstance(out, SimTensor)):
            raise NotImplementedError(f"{func}: resized a simulated tensor in its place")
        return outs[0] if len(func._schema.returns) == 1 else outs
    return result if away else _wrapped(result)


@functools.cache
def _written(func) -> tuple[str, ...]:
    """Return the arguments that an operation writes into and returns."""
    names = []
    for returned in func._schema.returns:
        if returned.alias_info is None or not returned.alias_info.is_write:
            return ()
        names += [
            argument.name
            for argument in func._schema.arguments
            if argument.alias_info is not None
            and argument.alias_info.is_write
            and argument.alias_info.before_set == returned.alias_info.before_set
        ]
    return tuple(names)


def _check(func, tensors: list[Tensor], args: tuple) -> None:
    """Refuse tensors of the host, but for numbers, indices and the other side of a copy, as CUDA does."""
    if func in COPIES:
        return
    allowed = _tensors(args[1:2]) if func in INDEXING else []
    for tensor in tensors:
        if not isinstance(tensor, SimTensor) and tensor.dim() and not any(tensor is index for index in allowed):
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, but found {NAME}:0 and {tensor.device}"
            )


def _count(func, tensors: list[Tensor], args: tuple, kwargs: dict) -> None:
    if func is aten._to_copy.default:
        target = kwargs.get("device")
        if target is not None and torch.device(target).type != NAME:
            _note("read", "to the host", args[0].numel())
    elif func is aten.copy_.default:
        destination, source = args[:2]
        if not isinstance(source, SimTensor):
            _note("copy", "to the device", source.numel())
        elif not isinstance(destination, SimTensor):
            _note("read", "to the host", source.numel())
    elif func in INDEXING:
        for index in _tensors(args[1:2]):
            if not isinstance(index, SimTensor):
                _note("copy", "an index of the host", index.numel())
            elif index.dtype in (torch.bool, torch.uint8):
                _note("read", "nonzero of a mask", index.numel())
    elif func in READS:
        _note("read", READS[func], tensors[0].numel())
    elif (name := func._schema.name) in READ_NAMES:
        _note("read", READ_NAMES[name], tensors[0].numel())


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None) -> Tensor:
    return SimTensor(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None) -> Tensor:
    return SimTensor(torch.empty_strided(size, stride, dtype=dtype))


def _factory(op):
    def make(*args, dtype=None, layout=None, device=None, pin_memory=None, **kwargs) -> Tensor:
        return SimTensor(op(*args, dtype=dtype, **kwargs))

    return make


def _copy_from(source: Tensor, destination: Tensor, non_blocking: bool = False) -> Tensor:
    # torch.tensor(values, device=...) comes here past the dispatch to the class.
    _run(aten.copy_.default, (destination, source), {})
    return destination


def _lstm_cell(gates, hidden_gates, cell, bias=None, hidden_bias=None) -> tuple[Tensor, Tensor, Tensor]:
    # The CPU, which computes here, has no fused one.
    gates = gates + hidden_gates
    gates = gates if bias is None else gates + bias + hidden_bias
    new, kept, value, shown = gates.chunk(4, dim=1)
    cell = kept.sigmoid() * cell + new.sigmoid() * value.tanh()
    return shown.sigmoid() * cell.tanh(), cell, gates


class _Hook(torch._C._acc.PrivateUse1Hooks):
    """What torch's own code asks of the device."""

    def is_available(self) -> bool:
        return False

    def has_primary_context(self, dev_id) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Module:
    """What torch asks of ``torch.sim``."""

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def is_available() -> bool:
        # Whoever looks for an accelerator, a loader that would pin its batches for one, finds none.
        return False

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Nothing: random numbers come from the CPU's generator."""

    @staticmethod
    def get_rng_state(device=None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    @staticmethod
    def set_rng_state(state: Tensor, device=None) -> None:
        """Nothing, as above."""


@functools.cache
def on_device() -> torch.device:
    """Set the device up, once for the process, and return it."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module(), hook=_Hook())
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    for name in FACTORIES:
        packet, _, overload = name.partition(".")
        library.impl(name, _factory(getattr(getattr(aten, packet), overload or "default")), "PrivateUse1")
    library.impl("_thnn_fused_lstm_cell", _lstm_cell, "AutogradPrivateUse1")
    # torch's own computes a mean over the whole map and then changes the shape of the result in its place.
    library.impl("adaptive_avg_pool2d", aten._adaptive_avg_pool2d.default, "AutogradPrivateUse1")
    _libraries.append(library)  # registrations live as long as the library does
    return torch.device(NAME, 0)


DEVICE = on_device()
