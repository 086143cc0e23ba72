"""What a checkpoint file holds, read from its headers: without torch, and without running anything from it.

A pickle is followed with stand-ins for every class and function that it names, so that nothing is imported or called;
tensors become their type and shape. The same walk checks that the file is whole and does not lie about sizes.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mixtransfer.errors import UserError

__all__ = ["Entry", "Foreign", "Header", "check_sums", "is_harmless", "is_url", "read_header"]

#: Bytes of an element: of torch's types, then of the names that safetensors gives them.
SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip
SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
#: What torch.save itself names, beyond storages and types.
TORCH = {
    "collections.OrderedDict", "collections.Counter", "torch.Size", "torch.Tensor", "torch.device",
    "torch.nn.parameter.Parameter", "torch.serialization._get_layout", "_codecs.encode", "builtins.set",
    "builtins.complex", "builtins.bytearray", "torch._tensor._rebuild_from_type_v2",
    *(f"torch._utils._rebuild_{name}" for name in ("parameter", "parameter_with_state", "tensor", "tensor_v2",
      "tensor_v3", "sparse_tensor", "qtensor", "meta_tensor_no_storage", "device_tensor_from_cpu_tensor")),
}  # fmt: skip

#: Bags of settings that training scripts save beside the weights; they are read as plain dicts or blank objects.
BAGS = ("yacs.config.CfgNode", "fvcore.common.config.CfgNode", "addict.addict.Dict", "collections.defaultdict")
BLANKS = (
    "argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath", "builtins.dict", "builtins.int", "builtins.float", "builtins.list",
)  # fmt: skip
#: What mmengine's message hub is made of, which a training resumes from: its buffers, and numbers of numpy.
HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
NUMPY = re.compile(r"numpy\.(ndarray|dtype|dtypes\.\w+|_?core\.multiarray\.(_reconstruct|scalar))")

LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
#: What Python's zipfile raises on a damaged file.
ZIP_ERRORS = (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, OSError, LookupError, struct.error, zlib.error)
HEADER_LIMIT = 100_000_000
REFUSED = {
    code[0]
    for code in (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4)
}
DAMAGED = "damaged or no checkpoint, fetch it again"


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Header:
    """The outline of a file.

    Attributes:
        kind: ``"safetensors"``, ``"torch zip"`` or ``"torch legacy"``.
        size: bytes of the file.
        content: what the file holds: dicts, lists and plain values, with :class:`Entry` for tensors and
            :class:`Foreign` for objects of other classes.
        wants: the classes and functions that the file names beyond torch's own, as ``module.name``.
    """

    kind: str
    size: int
    content: Any
    wants: tuple[str, ...] = ()


def is_harmless(name: str, wants: Sequence[str]) -> bool:
    """Tell whether a class or function, one of those that a file wants, is read without trust in the file."""
    if name == "builtins.getattr":  # of a history buffer's statistics, and of nothing else
        return HISTORY in wants
    return name in (*BAGS, *BLANKS, HISTORY) or NUMPY.fullmatch(name) is not None


class Foreign:
    """Stand-in for a class or function, and for what a pickle makes with it; keeps the arguments, runs nothing."""

    path = ""

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
        """Take an item as a list does."""
        self.items.append(value)

    extend = add = update = append


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    count: int


class _Once(OrderedDict):
    """A dict that refuses a second value for a key."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if key in self:
            raise UserError(f"names the entry {str(key)[:80]!r} twice; it was damaged or forged, fetch it again")
        super().__setitem__(key, value)


def read_header(path: str | Path) -> Header:
    """Read the outline of a ``.safetensors`` or ``torch.save`` file.

    Raises:
        UserError: there is no such file, or it is damaged, lies about its sizes, or is of another kind.
    """
    given, path = path, Path(path)
    if is_url(given):
        raise UserError(f"{given}: a URL, where a file is needed; download it first")
    if not path.is_file():
        what = "a folder, not a checkpoint file" if path.is_dir() else "no such checkpoint file"
        raise UserError(f"{path}: {what}")
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            head = file.read(64)
            if head.startswith(b"PK"):
                return _read_zip(file, size)
            if head.startswith(LEGACY_HEAD):
                return _read_legacy(file, size)
            if len(head) > 8 and head[8:9] == b"{":
                return _read_safetensors(file, size)
            raise UserError(f"{_kind_of(head)}; give a .safetensors or torch.save file")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def is_url(path: str | Path) -> bool:
    """Tell whether a path is a URL, such as ``https://...`` or mmengine's ``torchvision://...``, and no file's."""
    return re.match(r"[A-Za-z][\w+.-]*://", str(path)) is not None


def _kind_of(head: bytes) -> str:
    if not head:
        return "empty"
    if head.startswith(b"\x80"):
        return "a plain pickle, which only code can read safely"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    if head.lstrip().startswith((b"<", b"{")):
        return "a text or web page, not the file that it links to"
    return "not a checkpoint, or damaged"


def _read_safetensors(file: BinaryIO, size: int) -> Header:
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(HEADER_LIMIT, size - 8):
        raise UserError(f"its header claims {length} bytes of a {size}-byte file; {DAMAGED}")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_once)
        metadata = header.pop("__metadata__", {})
        content = {key: _safetensors_entry(key, value) for key, value in header.items()}
        spans = sorted(value["data_offsets"] for value in header.values())
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"its header is no list of tensors; {DAMAGED}") from None
    end = 0
    for start, stop in spans:
        if start != end or stop < start:
            raise UserError(f"its header leaves a gap or overlap at byte {end}; {DAMAGED}")
        end = stop
    if end != size - 8 - length:
        raise UserError(f"its header speaks of {end} bytes of weights, the file has {size - 8 - length}; {DAMAGED}")
    return Header("safetensors", size, {**content, **({"__metadata__": metadata} if metadata else {})})


def _once(pairs: list[tuple[str, Any]]) -> dict:
    result = _Once()
    for key, value in pairs:
        result[key] = value
    return result


def _safetensors_entry(key: str, value: dict) -> Entry:
    shape = tuple(value["shape"])
    start, stop = value["data_offsets"]
    if value["dtype"] not in SAFETENSORS:
        raise UserError(f"{key}: holds values of type {str(value['dtype'])[:20]}, which no network of ours has")
    if any(type(side) is not int or side < 0 for side in (*shape, start, stop)):
        raise UserError(f"{key}: has no valid shape; {DAMAGED}")
    entry = Entry(SAFETENSORS[value["dtype"]], shape)
    if entry.nbytes != stop - start:
        raise UserError(f"{key}: shape {shape} does not fill its {stop - start} bytes; {DAMAGED}")
    return entry


def _read_zip(file: BinaryIO, size: int) -> Header:
    try:
        archive = zipfile.ZipFile(file)
    except ZIP_ERRORS:
        raise UserError(f"its zip directory is missing or damaged: the file was cut; {DAMAGED}") from None
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise UserError(f"holds two zip members of one name; {DAMAGED}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError("holds compressed members, which torch.save never writes: a zip bomb, or another kind of file")
    if sum(member.file_size for member in members) > size:
        raise UserError(f"its zip members overlap; {DAMAGED}")
    if any(name.endswith(("/constants.pkl", "model.json")) for name in names):
        raise UserError("a TorchScript program, not named weights; save its state_dict() instead")
    root = next((name[: -len("data.pkl")] for name in names if name.endswith("data.pkl")), None)
    if root is None:
        raise UserError("a zip file without weights; give a .safetensors or torch.save file")
    sizes = {member.filename: member.file_size for member in members}

    def storage_bytes(key: str) -> int:
        return sizes.get(f"{root}data/{key}", -1)

    _forgive_absent_sums(archive)
    try:
        data = archive.read(f"{root}data.pkl")
    except ZIP_ERRORS:
        raise UserError(f"its table of contents cannot be read; {DAMAGED}") from None
    reader = _Reader(io.BytesIO(data), size, storage_bytes)
    content = reader.read()
    return Header("torch zip", size, content, reader.wants())


def check_sums(path: str | Path) -> None:
    """Read a ``torch.save`` zip file once and compare its checksums, which torch itself does not.

    Raises:
        UserError: naming the first member whose bytes changed after it was written.
    """
    with zipfile.ZipFile(path) as archive:
        _forgive_absent_sums(archive)
        try:
            bad = archive.testzip()
        except ZIP_ERRORS as error:
            bad = f"a member ({error})"
    if bad is not None:
        raise UserError(f"{path}: the bytes of {bad} do not have their checksum; the file was damaged, fetch it again")


def _forgive_absent_sums(archive: zipfile.ZipFile) -> None:
    # torch.serialization.set_crc32_options(False) writes zeros.
    for member in archive.infolist():
        member.CRC = member.CRC or None


def _read_legacy(file: BinaryIO, size: int) -> Header:
    file.seek(0)
    for _ in range(3):  # magic number, protocol, machine
        _Reader(file, size).read()
    reader = _Reader(file, size)
    content = reader.read()
    keys = _Reader(file, size).read()
    expected = sum(8 + s.count * SIZES[s.dtype] for s in reader.storages.values())
    if not isinstance(keys, list) or {str(key) for key in keys} != reader.storages.keys():
        raise UserError(f"its weights are not those that it lists; {DAMAGED}")
    if size - file.tell() != expected:
        raise UserError(f"holds {size - file.tell()} bytes of weights where {expected} are declared; {DAMAGED}")
    return Header("torch legacy", size, content, reader.wants())


class _Reader(pickle._Unpickler):
    """The pure-Python unpickler, whose memory does not depend on indices in the file, with stand-ins for all names.

    Opcodes that allocate by a number in the file or reach into registries are refused.
    """

    dispatch = {code: method for code, method in pickle._Unpickler.dispatch.items() if code not in REFUSED}

    def __init__(self, file: BinaryIO, size: int, storage_bytes: Callable[[str], int] | None = None):
        super().__init__(file, encoding="utf-8", errors="replace")
        self.size, self.storage_bytes = size, storage_bytes
        self.names: dict[str, type[Foreign] | Callable] = {}
        self.storages: dict[str, _Storage] = {}

    def read(self) -> Any:
        with _as_damage():
            return self.load()

    def wants(self) -> tuple[str, ...]:
        """Return the names beyond torch's own."""
        return tuple(sorted(name for name in self.names if name not in TORCH and not _is_torch_type(name)))

    def load_empty_dict(self) -> None:
        self.append(_Once())

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dict

    def find_class(self, module: str, name: str) -> Any:
        module, name = pickle_name(module, name)
        path = f"{module}.{name}"
        if path not in self.names:
            makers = {
                "collections.OrderedDict": _Once,
                "builtins.set": set,
                "torch.Size": tuple,
                "_codecs.encode": lambda text, *_: text.encode("latin1", "replace"),
                "torch._utils._rebuild_tensor": self._tensor,
                "torch._utils._rebuild_tensor_v2": self._tensor,
                "torch._utils._rebuild_tensor_v3": self._typed_tensor,
                "torch._utils._rebuild_parameter": lambda data, *_: data,
                "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
                "torch._tensor._rebuild_from_type_v2": lambda make, _, args, __: make(*args),
            }
            self.names[path] = makers.get(path) or type(name, (Foreign,), {"path": path})
        return self.names[path]

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, count = pid[:5]
        name = kind.path.rsplit(".", 1)[-1]
        if name not in STORAGES or type(count) is not int or count < 0:
            raise UserError(f"storage {str(key)[:40]} is of an unknown kind; {DAMAGED}")
        storage = _Storage(STORAGES[name], str(key), count)
        needed = count * SIZES[storage.dtype]
        held = needed if self.storage_bytes is None else self.storage_bytes(storage.key)
        if needed > self.size or held < needed:
            raise UserError(f"storage {storage.key[:40]} claims {needed} bytes, more than there are; {DAMAGED}")
        self.storages[storage.key] = storage
        return storage

    def _tensor(self, storage: _Storage, offset: int, shape: tuple, stride: tuple, *_: Any) -> Entry:
        return self._entry(storage, storage.dtype, offset, shape, stride)

    def _typed_tensor(self, storage, offset, shape, stride, _grad, _hooks, dtype, *_: Any) -> Entry:
        return self._entry(storage, dtype.path.rsplit(".", 1)[-1], offset, shape, stride)

    def _entry(self, storage: _Storage, dtype: str, offset: int, shape: tuple, stride: tuple) -> Entry:
        entry = Entry(dtype, tuple(shape), storage.key)
        if any(type(n) is not int or n < 0 for n in (offset, *shape, *stride)) or len(shape) != len(stride):
            raise UserError(f"a tensor of shape {str(shape)[:80]} has no valid layout; {DAMAGED}")
        held = storage.count * SIZES[storage.dtype] // SIZES[dtype]
        last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        if entry.count and (last >= held or entry.nbytes > self.size):
            raise UserError(f"a tensor claims shape {str(entry.shape)[:80]}, more than the file holds; {DAMAGED}")
        return entry


@contextlib.contextmanager
def _as_damage() -> Iterator[None]:
    """Turn what a malformed pickle makes the unpickler raise into a UserError; our own code raises none of these."""
    try:
        yield
    except UserError:
        raise
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError):
        raise UserError(f"its table of contents cannot be read; {DAMAGED}") from None
    except (struct.error, OverflowError, MemoryError, UnicodeError, RecursionError):
        raise UserError(f"its table of contents cannot be read; {DAMAGED}") from None


def pickle_name(module: str, name: str) -> tuple[str, str]:
    """Return the Python 3 name of what a protocol-2 pickle calls by its Python 2 name."""
    import _compat_pickle

    if (module, name) in _compat_pickle.NAME_MAPPING:
        return _compat_pickle.NAME_MAPPING[module, name]
    return _compat_pickle.IMPORT_MAPPING.get(module, module), name


def _is_torch_type(name: str) -> bool:
    package, _, leaf = name.rpartition(".")
    return package in ("torch", "torch.storage", "torch.cuda") and (leaf in STORAGES or leaf in SIZES)
