"""Stand-ins for the values of a checkpoint file until they are read: tensors by type and shape, objects by name.

Beside them, which names are harmless, and how many values a file may hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixtransfer.errors import UserError

__all__ = ["DAMAGED", "Entry", "Foreign", "Once", "Storage", "check_values", "is_harmless", "is_torch_type", "too_much"]

DAMAGED = "damaged or no checkpoint, fetch it again"
#: Bytes of an element.
SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
#: What rebuilds tensors that are no plain arrays of numbers -> what they are.
UNUSUAL = {
    "sparse_tensor": "sparse", "sparse_csr_tensor": "sparse", "qtensor": "quantized", "nested_tensor": "nested",
    "meta_tensor_no_storage": "meta", "wrapper_subclass": "wrapped", "device_tensor_from_numpy": "foreign device's",
    "device_tensor_from_cpu_tensor": "foreign device's",
}  # fmt: skip
#: What torch.save itself names, beyond storages and types.
TORCH = {
    "collections.OrderedDict", "collections.Counter", "torch.Size", "torch.Tensor", "torch.device",
    "torch.nn.parameter.Parameter", "torch.serialization._get_layout", "_codecs.encode", "builtins.set",
    "builtins.complex", "builtins.bytearray", "torch._tensor._rebuild_from_type_v2",
    *(f"torch._utils._rebuild_{name}" for name in ("parameter", "parameter_with_state", "tensor", "tensor_v2",
      "tensor_v3", *UNUSUAL)),
}  # fmt: skip

#: Bags of settings that training scripts save beside the weights; they are read as plain dicts or blank objects.
BAGS = ("yacs.config.CfgNode", "fvcore.common.config.CfgNode", "addict.addict.Dict", "collections.defaultdict")
BLANKS = (
    "argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath", "builtins.dict", "builtins.int", "builtins.float", "builtins.list",
)  # fmt: skip
#: What mmengine's message hub is made of, which a training resumes from: its buffers, and numbers of numpy.
HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
NUMPY = re.compile(r"numpy\.(ndarray|dtype|_?core\.multiarray\.(_reconstruct|scalar))")
#: Values counted as often as they are reached, levels of nesting, characters of a name.
VALUES, LEVELS, NAME = 2**20, 100, 512


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor: its type, its shape, and the storage that its values lie in (shared by tied weights)."""

    dtype: str
    shape: tuple[int, ...]
    storage: str = ""

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.count * SIZES[self.dtype]


def is_harmless(name: str, wants: Sequence[str]) -> bool:
    """Tell whether a class or function, one of those that a file wants, is read without trust in the file."""
    if name == "builtins.getattr":  # of a history buffer's statistics, and of nothing else
        return HISTORY in wants
    return name in (*BAGS, *BLANKS, HISTORY) or NUMPY.fullmatch(name) is not None


class Foreign:
    """Stand-in for a class or function, and for what a pickle makes with it; keeps the arguments, runs nothing."""

    path = ""
    args: tuple
    state: Any
    items: list[tuple[Any, Any]]

    def __new__(cls, *args: Any) -> Foreign:
        """Keep the arguments; a pickle may make an object without calling ``__init__``."""
        made = super().__new__(cls)
        made.args, made.state, made.items = args, None, []
        return made

    def __init__(self, *_: Any):
        """Take what ``__new__`` kept."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """Take an item as a list does, and forget it."""

    extend = add = update = append


@dataclass(frozen=True, slots=True)
class Storage:
    """The storage of tensors: a key, and the type and number of its elements."""

    dtype: str
    key: str
    count: int


class Once(dict):
    """A dict that refuses a second value for a key."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        if key in self:
            raise UserError(f"names the entry {str(key)[:80]!r} twice; it was damaged or forged, fetch it again")
        super().__setitem__(key, value)


def check_values(content: Any) -> None:
    """Make sure that whoever walks through the values of a file comes to an end, and that its names are text.

    Raises:
        UserError: too many values, too deep (values inside themselves are), or a name that is no text.
    """
    level, seen = [content], 0
    for _ in range(LEVELS):
        below: list[Any] = []
        for value in level:
            if isinstance(value, Foreign) and value.path in BAGS:
                value = dict(value.items)
            if isinstance(value, Mapping):
                for key in value:
                    _check_name(key)
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
            if seen + len(below) > VALUES:
                raise too_much(VALUES, "values")
        if not below:
            return
        seen, level = seen + len(below), below
    raise UserError(f"nests its values more than {LEVELS} deep; {DAMAGED}")


def _check_name(key: Any) -> None:
    if isinstance(key, str) and len(key) > NAME:
        raise UserError(f"the name of an entry has {len(key)} characters: {key[:40]}…; {DAMAGED}")
    if isinstance(key, str) and not key.isascii() and any("\ud800" <= c <= "\udfff" for c in key):
        raise UserError(f"the name of an entry is no text: {key[:80]}; {DAMAGED}")


def too_much(bound: int, what: str) -> UserError:
    """Return the error for a file that holds more of something than a bound."""
    return UserError(f"holds more than {bound:,} {what}, which no checkpoint does; {DAMAGED}")


def is_torch_type(name: str) -> bool:
    """Tell whether torch has a type of storages or of numbers by this name, or could."""
    package, _, leaf = name.rpartition(".")
    if package == "torch" and re.fullmatch(r"(q?u?int|b?float|bits|complex|bool)\w*", leaf):
        return True
    return package in ("torch", "torch.storage", "torch.cuda") and (leaf in STORAGES or leaf in SIZES)
