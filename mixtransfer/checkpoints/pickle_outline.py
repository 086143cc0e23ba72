"""The contents of a pickle, without importing or calling anything that it names, and within bounds.

The pickle is followed with stand-ins for every class and function; tensors become their type and shape. What torch's
own reader would take and no ``torch.save`` writes is refused here, before torch sees the file: calls that allocate by a
number in the file, copies of copies, values nested without end, keys made to collide.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from mixtransfer.checkpoints.stand_ins import (
    DAMAGED,
    SIZES,
    STORAGES,
    TORCH,
    UNUSUAL,
    Entry,
    Foreign,
    Once,
    Storage,
    check_values,
    is_torch_type,
    too_much,
)
from mixtransfer.errors import UserError

__all__ = ["PickleOutline"]

REFUSED = {
    code[0]
    for code in (
        pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4,
        pickle.LONG4, pickle.INST, pickle.OBJ,
    )
}  # fmt: skip

#: Bounds on what a file holds, each several times what the largest published checkpoints and a long training's have:
#: tensors; steps of the pickle; objects that it makes; classes and functions that it names.
TENSORS, STEPS, OBJECTS, NAMES = 2**16, 2**22, 2**19, 1024
#: What an item of a list or dict counts as, in bytes.
ITEM = 64
#: Keys that are tuples.
TUPLES = 2**12
#: Bytes that are copied, and claimed by tensors that overlap, beyond twice the file's.
SPARE = 2**26
#: Steps that make an object.
MAKERS = {
    code[0]
    for code in (
        pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.LIST, pickle.DICT, pickle.FROZENSET,
        pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.MARK, pickle.REDUCE, pickle.NEWOBJ,
        pickle.NEWOBJ_EX, pickle.BUILD,
    )
}  # fmt: skip


class _Uncallable(Foreign):
    """A type that torch.save names and never calls."""

    def __new__(cls, *_: Any) -> Foreign:
        raise UserError(f"calls {cls.path[:60]}, which torch.save never does; {DAMAGED}")


#: Python's own reader in Python, which no stub describes.
PYTHONS: Any = pickle


class PickleOutline(PYTHONS._Unpickler):
    """The pure-Python unpickler, whose memory does not depend on indices in the file, with stand-ins for all names.

    Opcodes that allocate by a number in the file or reach into registries are refused.

    Args:
        file: at the pickle's first byte.
        size: bytes of the whole checkpoint.
        storage_bytes: tells how many bytes the storage under a key has; None believes the pickle.
    """

    dispatch = {code: method for code, method in PYTHONS._Unpickler.dispatch.items() if code not in REFUSED}

    def __init__(self, file: BinaryIO, size: int, storage_bytes: Callable[[str], int] | None = None):
        super().__init__(file, encoding="utf-8", errors="replace")
        self.size, self.storage_bytes = size, storage_bytes
        self.names: dict[str, type[Foreign] | Callable] = {}
        self.storages: dict[str, Storage] = {}
        self._read_file = self._file_read
        self._file_read = self._bounded_read
        self._objects = self._copied = self._claimed = self._tuples = self._tensors = 0
        self._layouts: set[tuple] = set()

    def read_whole(self) -> Any:
        """Return the outline of the pickled value.

        Raises:
            UserError: the pickle is damaged, or beyond the bounds.
        """
        with _as_damage():
            content = self.load()
        check_values(content)
        return content

    def load(self) -> Any:
        """Follow the pickle, counting its steps."""
        self._unframer = PYTHONS._Unframer(self._file_read, self._file_readline)
        self.read, self.readinto, self.readline = self._unframer.read, self._unframer.readinto, self._unframer.readline
        self.metastack, self.stack, self.proto = [], [], 0
        self.append = self.stack.append
        try:
            for _ in range(STEPS):
                code = self.read(1)
                if not code:
                    raise EOFError
                if code[0] in MAKERS:
                    self._objects += 1
                    if self._objects > OBJECTS:
                        raise too_much(OBJECTS, "objects")
                self.dispatch[code[0]](self)
        except PYTHONS._Stop as stop:
            return stop.value
        raise too_much(STEPS, "steps to read")

    def wants(self) -> tuple[str, ...]:
        """Return the names beyond torch's own."""
        return tuple(sorted(name for name in self.names if name not in TORCH and not is_torch_type(name)))

    def _bounded_read(self, count: int) -> bytes:
        if count > self.size:
            raise EOFError
        return self._read_file(count)

    def _load_empty_dict(self) -> None:
        self.append(Once())

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append(self._dict(zip(items[::2], items[1::2], strict=True)))

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put(self.stack[-1], key, value)

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._put(self.stack[-1], key, value)

    def _load_additems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(map(self._key, items))

    def _load_frozenset(self) -> None:
        self.append(frozenset(map(self._key, self.pop_mark())))

    def _load_reduce(self) -> None:
        arguments = self.stack.pop()
        self._pay(arguments)
        self.stack[-1] = self.stack[-1](*arguments)

    def _load_newobj(self) -> None:
        arguments = self.stack.pop()
        self._pay(arguments)
        self.stack[-1] = self.stack[-1].__new__(self.stack[-1], *arguments)

    def _load_build(self) -> None:
        state = self.stack.pop()
        self._pay(state)
        made = self.stack[-1]
        if isinstance(made, Foreign):
            made.state = state
        elif type(made) is not Once:  # of which torch keeps attributes that nothing reads
            raise pickle.UnpicklingError("a state of what has none")

    for _code, _method in (
        (pickle.EMPTY_DICT, _load_empty_dict), (pickle.DICT, _load_dict), (pickle.SETITEM, _load_setitem),
        (pickle.SETITEMS, _load_setitems), (pickle.ADDITEMS, _load_additems), (pickle.FROZENSET, _load_frozenset),
        (pickle.REDUCE, _load_reduce), (pickle.NEWOBJ, _load_newobj), (pickle.BUILD, _load_build),
    ):  # fmt: skip
        dispatch[_code[0]] = _method

    def _put(self, target: Any, key: Any, value: Any) -> None:
        if type(target) is not Once and not isinstance(target, Foreign):
            raise pickle.UnpicklingError("entries of what is no dict")
        target[self._key(key)] = value

    def _dict(self, pairs: Any = ()) -> Once:
        made = Once()
        for key, value in pairs.items() if isinstance(pairs, Mapping) else pairs:
            made[self._key(key)] = value
        return made

    def _key(self, key: Any) -> Any:
        """Return a key, if looking it up takes bounded time: numbers and tuples can be made to collide."""
        if type(key) is tuple:
            self._tuples += 1
            if self._tuples <= TUPLES and len(key) <= 16 and all(map(_is_simple, key)):
                return key
        elif _is_simple(key) or isinstance(key, Foreign | type):
            return key
        raise UserError(f"an entry's name is a {type(key).__name__} that no checkpoint has; {DAMAGED}")

    def _pay(self, arguments: Any) -> None:
        """Count what a call may copy: what is written once may be handed over often."""
        for value in arguments if isinstance(arguments, tuple) else (arguments,):
            if isinstance(value, str | bytes | list | tuple | Mapping | set):
                self._copied += len(value) * (1 if isinstance(value, str | bytes) else ITEM)
        if self._copied > 2 * self.size + SPARE:
            raise UserError(f"copies its values again and again; {DAMAGED}")

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function; nothing is imported."""
        module, name = pickle_name(module, name)
        path = f"{module}.{name}"
        if path not in self.names:
            if len(self.names) == NAMES:
                raise too_much(NAMES, "classes")
            self.names[path] = self._maker(path, name)
        return self.names[path]

    def _maker(self, path: str, name: str) -> type[Foreign] | Callable:
        """Return what stands for a class or function."""
        makers: dict[str, Callable] = {
            "collections.OrderedDict": self._dict,
            "collections.Counter": self._dict,
            "builtins.set": lambda items=(): set(map(self._key, items)),
            "builtins.bytearray": _bytes,
            "torch.Size": lambda sides=(): tuple(sides),
            "_codecs.encode": _encoded,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._typed_tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "torch._tensor._rebuild_from_type_v2": lambda make, _, args, __: make(*args),
            **{f"torch._utils._rebuild_{key}": _unusual(kind) for key, kind in UNUSUAL.items()},
        }
        if path in makers:
            return makers[path]
        valued = ("torch.device", "torch.serialization._get_layout", "builtins.complex")
        uncallable = (path in TORCH or is_torch_type(path)) and path not in valued
        return type(name, (_Uncallable if uncallable else Foreign,), {"path": path})

    def persistent_load(self, pid: Any) -> Storage:
        """Return a storage that the file names, if it has one of that size."""
        _, kind, key, _, count = pid[:5]
        name = kind.path.rsplit(".", 1)[-1]
        if name not in STORAGES or type(count) is not int or count < 0 or type(key) not in (str, int):
            raise UserError(f"a storage is of an unknown kind; {DAMAGED}")
        storage = Storage(STORAGES[name], str(key), count)
        needed = count * SIZES[storage.dtype]
        held = needed if self.storage_bytes is None else self.storage_bytes(storage.key)
        if needed > self.size or held < needed:
            raise UserError(f"storage {storage.key[:40]} claims {needed} bytes, more than there are; {DAMAGED}")
        if self.storages.setdefault(storage.key, storage) != storage:
            raise UserError(f"storage {storage.key[:40]} is named with two sizes; {DAMAGED}")
        return storage

    def _tensor(self, storage: Storage, offset: int, shape: tuple, stride: tuple, *more: Any) -> Entry:
        # What follows: requires_grad, hooks, and marks of conjugate and negative views.
        if len(more) > 2 and more[2]:
            raise UserError("holds a conjugate or negative view; save its .resolve_conj().resolve_neg()")
        return self._entry(storage, storage.dtype, offset, shape, stride)

    def _typed_tensor(self, storage, offset, shape, stride, _grad, _hooks, dtype, *more: Any) -> Entry:
        return self._entry(storage, dtype.path.rsplit(".", 1)[-1], offset, shape, stride, *more)

    def _entry(self, storage: Storage, dtype: str, offset: int, shape: tuple, stride: tuple, *more: Any) -> Entry:
        if dtype not in SIZES:
            raise UserError(f"holds values of type {dtype[:20]}, which no network of ours has")
        sides = (offset, *shape, *stride)
        if len(shape) != len(stride) or len(shape) > 32 or any(type(n) is not int or n < 0 for n in sides) or any(more):
            raise UserError(f"a tensor has no valid layout; {DAMAGED}")
        entry = Entry(dtype, tuple(shape), storage.key)
        held = storage.count * SIZES[storage.dtype] // SIZES[dtype]
        last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        if entry.count and (last >= held or entry.nbytes > self.size):
            raise UserError(f"a tensor claims shape {str(entry.shape)[:80]}, more than the file holds; {DAMAGED}")
        self._tensors += 1
        if self._tensors > TENSORS:
            raise too_much(TENSORS, "tensors")
        layout = (storage.key, dtype, offset, entry.shape, tuple(stride))
        if layout not in self._layouts:
            self._layouts.add(layout)
            self._claimed += entry.nbytes
        if self._claimed > 2 * self.size + SPARE:
            raise UserError(
                f"its tensors overlap and claim {self._claimed} bytes of a {self.size}-byte file; {DAMAGED}"
            )
        return entry


def _is_simple(key: Any) -> bool:
    if type(key) is int:
        return abs(key) < 2**61 - 1
    return key is None or type(key) in (str, bytes, bool, float)


def _parameter(data: Any, *_: Any) -> Entry:
    if not isinstance(data, Entry):
        raise pickle.UnpicklingError("a parameter of what is no tensor")
    return data


def _encoded(text: str, code: str, *more: Any) -> bytes:
    """Return bytes from the text that pickles of protocol 2 keep them as."""
    if code not in ("latin1", "latin-1") or more:
        raise pickle.UnpicklingError("text in another code")
    return text.encode("latin1")


def _bytes(content: Any = b"", code: str = "latin1") -> bytes:
    """Return what a bytearray was saved as; one that is named by its length alone holds nothing that was saved."""
    if isinstance(content, str):
        return _encoded(content, code)
    if not isinstance(content, bytes):
        raise UserError(f"demands memory instead of values (bytearray); {DAMAGED}")
    return content


def _unusual(kind: str) -> Callable:
    def refuse(*_: Any) -> None:
        raise UserError(f"holds a {kind} tensor, which no network of ours has; save it as a plain one (to_dense, ...)")

    return refuse


@contextlib.contextmanager
def _as_damage() -> Iterator[None]:
    """Turn what a malformed pickle makes the unpickler raise into a UserError; our own code raises none of these."""
    try:
        yield
    except UserError:
        raise
    except (pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError):
        raise UserError(f"its table of contents cannot be read; {DAMAGED}") from None
    except (struct.error, OverflowError, MemoryError, UnicodeError, RecursionError):
        raise UserError(f"its table of contents cannot be read; {DAMAGED}") from None


def pickle_name(module: str, name: str) -> tuple[str, str]:
    """Return the Python 3 name of what a protocol-2 pickle calls by its Python 2 name."""
    import _compat_pickle

    if (module, name) in _compat_pickle.NAME_MAPPING:
        return _compat_pickle.NAME_MAPPING[module, name]
    return _compat_pickle.IMPORT_MAPPING.get(module, module), name
