"""Reading a checkpoint file without running code from it, and finding the weights inside."""

from __future__ import annotations

import contextlib
import pickle
import re
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

from mixtransfer.checkpoints.fetch import located
from mixtransfer.checkpoints.headers import check_sums, read_header, whole_of
from mixtransfer.checkpoints.select import all_behind, find_container, named_tensors, without_wrappers
from mixtransfer.checkpoints.stand_ins import BAGS, BLANKS, DAMAGED, HISTORY, NUMPY, is_harmless
from mixtransfer.errors import UserError

__all__ = ["find_weights", "read_checkpoint", "read_file"]

#: What distributed training and averaging put in front of all names.
MODULE = "module."


def read_checkpoint(path: str | Path, trust: bool = False, *, mapped: bool = False) -> dict[str, Any]:
    """Read a ``.safetensors`` or ``torch.save`` file, or the parts that an index lists, into host memory.

    Only tensors, plain values, and settings of known harmless classes are read; nothing in the file is run.

    Args:
        path: the file, or its name, see :mod:`mixtransfer.checkpoints.fetch`.
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
    path = located(path)
    header = read_header(path)
    kind, wants, parts = header.kind, header.wants, header.parts
    index = whole_of(path)
    if index is not None:
        raise UserError(f"{path}: a part of a model; give {index}, and keep all parts beside it")
    unknown = [name for name in wants if not is_harmless(name, wants)]
    if unknown and not trust:
        raise UserError(
            f"{path}: wants to run code ({', '.join(unknown[:4])}); pass --trust (trust=True) only if you know its"
            " author"
        )
    del header  # of many values, while torch reads them again
    try:
        if kind.startswith("safetensors"):
            return {key: value for part in parts or (path,) for key, value in load_file(part).items()}
        if kind == "torch zip":
            check_sums(path)
        with _allowed(wants):
            # torch.load itself may be ours: engine/guarded_loading.py.
            content = torch.serialization.load(
                path, map_location="cpu", weights_only=not trust, mmap=mapped and kind == "torch zip"
            )
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {DAMAGED} ({str(error).splitlines()[0][:100]})") from None
    except (ImportError, AttributeError) as error:
        if not trust:
            raise UserError(f"{path}: {DAMAGED}") from None
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
    return content if trust else _tidy(content)


def _tidy(value: Any) -> Any:
    """Return a value in plain containers, and tensors without what a file may hang on them.

    Attributes of a file's own would take the place of methods: ``items`` of a dict, ``shape`` of a tensor.
    """
    if isinstance(value, Tensor):
        return Tensor.detach(value).as_subclass(Tensor)
    if isinstance(value, dict):
        return {key: _tidy(item) for key, item in dict.items(value)}
    if type(value) in (list, tuple, torch.Size):
        return (list if type(value) is list else tuple)(_tidy(item) for item in value)
    return value


def find_weights(content: Mapping[str, Any], name: str = "the checkpoint") -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint of a whole model: its container's, or its own.

    What wrappers of the model put into the names (torch.compile, DDP, averaging) is left out, and the count that
    averaging keeps beside them.

    Raises:
        UserError: nothing in ``content`` looks like weights, or two entries have one name.
    """
    entries = find_container(content, name).entries
    found = {key: (without_wrappers(key), value) for key, value in named_tensors(entries, name).items()}
    if all_behind(MODULE, [new for new, _ in found.values()]):
        found = {
            key: (new.removeprefix(MODULE), value) for key, (new, value) in found.items() if new.startswith(MODULE)
        }
    weights: dict[str, Tensor] = {}
    for key, (new, value) in found.items():
        if new in weights:
            raise UserError(f"{name}: {key} and another entry both name {new}")
        weights[new] = value
    return weights


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
    """Return what takes the place of each harmless name; torch looks at ``__module__`` and ``__qualname__``."""
    found: dict[str, Any] = {}
    for path in wants:
        if path in BAGS:
            found[path] = type(*_titles(path, __new__=lambda cls, *_: OrderedDict()))
        elif path in BLANKS:
            found[path] = type(*_titles(path, _Blank))
        elif path == HISTORY:
            found[path] = _history_class(path)
        elif path == "builtins.getattr" and HISTORY in wants:
            found[path] = _named(_statistics, path)
        elif path == "numpy.dtype":
            found[path] = type(*_titles(path, _Kind))
        elif path == "numpy.ndarray":
            found[path] = type(*_titles(path, _Array))
        elif NUMPY.fullmatch(path):
            found[path] = _named(_empty_array if path.endswith("_reconstruct") else _scalar, path)
    return found


def _titles(path: str, *bases: type, **members: Any) -> tuple[str, tuple[type, ...], dict[str, Any]]:
    module, _, name = path.rpartition(".")
    return name, bases, {"__module__": module, "__qualname__": name, **members}


class _Kind:
    """In the place of ``numpy.dtype``: one of plain numbers or text, whose state cannot claim that it is another."""

    def __init__(self, code: str, *_: Any):
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?[biufcSU]\d{1,4}", code):
            raise pickle.UnpicklingError("an array of other values than numbers")
        self.kind = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.kind = self.kind.newbyteorder(state[1])


class _Array(np.ndarray):
    """In the place of ``numpy.ndarray``: filled with exactly the bytes that its shape takes."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_columns, data = state
        if not isinstance(kind, _Kind) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array of other values than numbers")
        filled: Any = (1, shape, kind.kind, bool(by_columns), data)
        super().__setstate__(filled)


def _empty_array(kind: type[_Array], *_: Any) -> np.ndarray:
    """Make the array that its pickled state then fills."""
    if not issubclass(kind, _Array):
        raise pickle.UnpicklingError("an array of an unknown kind")
    return np.ndarray.__new__(kind, (0,))


def _scalar(kind: _Kind, value: bytes) -> Any:
    if not isinstance(kind, _Kind):
        raise pickle.UnpicklingError("a number of an unknown kind")
    return np.frombuffer(value, kind.kind)[0]


def _history_class(path: str) -> type:
    """Return a kind of mmengine's buffers that takes its two rows from a file, and leaves alone what all share."""
    from mmengine.logging import HistoryBuffer

    def fill(self: HistoryBuffer, state: dict) -> None:
        rows = state["_log_history"], state["_count_history"]
        if not all(isinstance(row, _Array) for row in rows):
            raise pickle.UnpicklingError("a log of other values than numbers")
        plain: Any = [np.asarray(row) for row in rows]
        HistoryBuffer.__init__(self, *plain)

    return type(*_titles(path, HistoryBuffer, __setstate__=fill))


def _named(function: Any, path: str) -> Any:
    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, _, call.__qualname__ = path.rpartition(".")
    call.__name__ = call.__qualname__
    return call


def _statistics(owner: Any, name: str) -> str:
    """The one use of getattr in an mmengine checkpoint: a buffer's named statistic, which every buffer has anyway."""
    from mmengine.logging import HistoryBuffer

    if not (isinstance(owner, type) and issubclass(owner, HistoryBuffer)) or name not in (
        "mean",
        "max",
        "min",
        "current",
    ):
        raise pickle.UnpicklingError(f"getattr of {name!r}")
    return name
