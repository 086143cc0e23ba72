"""Reading a checkpoint file without running code from it, and finding the weights inside."""

from __future__ import annotations

import contextlib
import pickle
import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mixtransfer.checkpoints.headers import BAGS, BLANKS, DAMAGED, HISTORY, NUMPY, check_sums, is_harmless, read_header
from mixtransfer.checkpoints.select import find_container, is_tensor
from mixtransfer.errors import UserError

__all__ = ["find_weights", "read_checkpoint", "read_file", "strip_prefix"]


def read_checkpoint(path: str | Path, trust: bool = False, *, mapped: bool = False) -> dict[str, Any]:
    """Read a ``.safetensors`` or ``torch.save`` file into host memory.

    Only tensors, plain values, and settings of known harmless classes are read; nothing in the file is run.

    Args:
        path: the file.
        trust: unpickle arbitrary objects, which runs code from the file.
        mapped: leave the values in the file until they are read; it must then stay as it is.

    Raises:
        UserError: the file is missing, damaged, no checkpoint, or wants code and ``trust`` is not set.
    """
    content = read_file(path, trust, mapped=mapped)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not named weights")
    return dict(content)


def read_file(path: str | Path, trust: bool = False, *, mapped: bool = False) -> Any:
    """Return what a file holds, as :func:`read_checkpoint` does, be it named weights or not."""
    outline, path = read_header(path), Path(path)
    try:
        if outline.kind == "safetensors":
            return load_file(path)
        if outline.kind == "torch zip":
            check_sums(path)
        with _allowed(outline.wants):
            # torch.load itself may be ours: engine/guarded_loading.py.
            content = torch.serialization.load(
                path, map_location="cpu", weights_only=not trust, mmap=mapped and outline.kind == "torch zip"
            )
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        unknown = [name for name in outline.wants if not is_harmless(name, outline.wants)]
        if unknown and not trust:
            raise UserError(
                f"{path}: wants to run code ({', '.join(unknown[:4])}); pass --trust (trust=True) only if you know its"
                " author"
            ) from None
        raise UserError(f"{path}: {DAMAGED} ({str(error).splitlines()[0][:100]})") from None
    except (ImportError, AttributeError) as error:
        raise UserError(f"{path}: needs a package that is not installed ({error}); install it") from None
    except (
        SafetensorError,
        RuntimeError,
        AssertionError,
        EOFError,
        OSError,
        ArithmeticError,
        ValueError,
        LookupError,
        TypeError,
        struct.error,
    ):
        raise UserError(f"{path}: {DAMAGED}") from None
    return content


def find_weights(content: Mapping[str, Any], name: str = "the checkpoint") -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint of a whole model: its container's, or its own.

    Raises:
        UserError: nothing in ``content`` looks like weights.
    """
    entries = find_container(content, name).entries
    weights = {key: value for key, value in entries.items() if is_tensor(value)}
    return strip_prefix(weights, "module.")


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove ``prefix`` from all keys if every key has it, else return the entries as they are."""
    if not all(key.startswith(prefix) for key in state):
        return dict(state)
    return {key[len(prefix) :]: value for key, value in state.items()}


class _Blank:
    """An object that takes any arguments and state, and does nothing."""

    def __init__(self, *args: Any):
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


@contextlib.contextmanager
def _allowed(wants: Sequence[str]) -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` read those of ``wants`` that are known to be harmless."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(list(_stand_ins(wants).values()))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _stand_ins(wants: Sequence[str]) -> dict[str, Any]:
    """Return what takes the place of each harmless name; torch goes by ``__module__`` and ``__qualname__``."""
    found: dict[str, Any] = {}
    for path in wants:
        module, _, name = path.rpartition(".")
        named = {"__module__": module, "__qualname__": name}
        if path in BAGS:
            found[path] = type(name, (), {**named, "__new__": lambda cls, *_: OrderedDict()})
        elif path in BLANKS:
            found[path] = type(name, (_Blank,), named)
        elif path == HISTORY:
            from mmengine.logging import HistoryBuffer

            found[path] = HistoryBuffer
        elif path == "builtins.getattr" and HISTORY in wants:
            found[path] = _named(_statistics, path)
        elif NUMPY.fullmatch(path):
            found |= _numpy_parts(path)
    return found


def _numpy_parts(path: str) -> dict[str, Any]:
    leaf = path.rpartition(".")[2]
    kinds = {f"numpy.dtypes.{kind}": getattr(np.dtypes, kind) for kind in np.dtypes.__all__}
    if path == "numpy.dtype":
        return {path: np.dtype, **kinds}
    if path.startswith("numpy.dtypes."):
        return {path: kinds[path]} if path in kinds else {}
    makers = {"_reconstruct": _empty_array, "scalar": _scalar}
    return {path: np.ndarray if path == "numpy.ndarray" else _named(makers[leaf], path)}


def _empty_array(_kind: type, _shape: tuple, code: bytes) -> np.ndarray:
    """Make the array that its pickled state then fills."""
    return np.ndarray((0,), code)


def _scalar(kind: np.dtype, value: bytes) -> Any:
    return np.frombuffer(value, kind)[0]


def _named(function: Any, path: str) -> Any:
    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, _, call.__qualname__ = path.rpartition(".")
    call.__name__ = call.__qualname__
    return call


def _statistics(owner: Any, name: str) -> Any:
    """The one use of getattr in an mmengine checkpoint: a buffer's named statistic."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ("mean", "max", "min", "current"):
        raise pickle.UnpicklingError(f"getattr of {name!r}")
    return getattr(owner, name)
