"""The contents of a checkpoint file, read from its headers: without torch, and without running anything from it.

A pickle is followed with stand-ins for every class and function that it names, so that nothing is imported or called;
tensors become their type and shape. The same walk checks that the file is whole and does not lie about sizes.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mixtransfer.checkpoints.pickle_outline import TENSORS, PickleOutline
from mixtransfer.checkpoints.stand_ins import DAMAGED, SIZES, Entry, Once, check_values, too_much
from mixtransfer.errors import UserError

__all__ = ["Header", "check_sums", "is_url", "read_header", "require_file", "whole_of"]

#: Names that safetensors gives torch's types.
SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip

LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
#: What Python's zipfile raises on a damaged file.
ZIP_ERRORS = (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, OSError, LookupError, struct.error, zlib.error)
#: Bytes of a header of safetensors, of an index of such files, and of the list of a zip file's members.
HEADER_LIMIT = 2**24
#: What follows the name of a model in the name of its index, and of its parts.
INDEX, PART = ".safetensors.index.json", re.compile(r"(.+)-\d{5}-of-(?!00001)\d{5}\.safetensors")


@dataclass(frozen=True)
class Header:
    """The outline of a file.

    Attributes:
        kind: ``"safetensors"``, ``"safetensors index"``, ``"torch zip"`` or ``"torch legacy"``.
        size: bytes of the file, or of all that an index lists.
        content: what the file holds: dicts, lists and plain values, with :class:`Entry` for tensors and
            :class:`Foreign` for objects of other classes.
        wants: the classes and functions that the file names beyond torch's own, as ``module.name``.
        parts: the files that an index lists.
    """

    kind: str
    size: int
    content: Any
    wants: tuple[str, ...] = ()
    parts: tuple[Path, ...] = ()


def read_header(path: str | Path) -> Header:
    """Read the outline of a ``.safetensors`` or ``torch.save`` file, or of the parts that an index lists.

    Raises:
        UserError: there is no such file, or it is damaged, lies about its sizes, or is of another kind.
    """
    path = require_file(path)
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            head = file.read(64)
            if head.startswith(b"PK"):
                return _read_zip(file, size)
            if head.startswith(LEGACY_HEAD):
                return _read_legacy(file, size)
            if path.name.endswith(INDEX):
                return _read_index(file, size, path)
            if len(head) > 8 and head[8:9] == b"{":
                return _read_safetensors(file, size)
            raise UserError(f"{_kind_of(head)}; give a .safetensors or torch.save file")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def require_file(path: str | Path) -> Path:
    """Return the path of a checkpoint.

    Raises:
        UserError: it is a URL or a folder, or there is no such file.
    """
    if is_url(path):
        raise UserError(f"{path}: a URL, where a file is needed; download it first")
    path = Path(path)
    if not path.is_file():
        what = "a folder, not a checkpoint file" if path.is_dir() else "no such checkpoint file"
        raise UserError(f"{path}: {what}")
    return path


def whole_of(path: str | Path) -> Path | None:
    """Return the index of the model that a file is a part of by its name, ``model-00001-of-00002.safetensors``."""
    match = PART.fullmatch(Path(path).name)
    return Path(path).with_name(match[1] + INDEX) if match else None


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
        check_values(header)
        metadata = header.pop("__metadata__", {})
        content = {key: _safetensors_entry(key, value) for key, value in header.items()}
        spans = sorted(value["data_offsets"] for value in header.values())
        if len(content) > TENSORS:
            raise too_much(TENSORS, "tensors")
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


def _read_index(file: BinaryIO, size: int, path: Path) -> Header:
    """Read what the parts of a model hold, which must be what their index says."""
    if size > HEADER_LIMIT:
        raise UserError(f"has {size} bytes, more than an index of safetensors files; {DAMAGED}")
    file.seek(0)
    parts: dict[str, set[str]] = {}
    try:
        for key, name in json.loads(file.read(), object_pairs_hook=_once)["weight_map"].items():
            parts.setdefault(name, set()).add(key)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"is no index of safetensors files; {DAMAGED}") from None
    content, files = {}, []
    for name, keys in parts.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"lists {str(name)[:100]!r}, which is no .safetensors file beside it")
        files.append(path.with_name(name))
        part = read_header(files[-1])
        size += part.size
        found = {key: value for key, value in part.content.items() if key != "__metadata__"}
        if part.kind != "safetensors" or found.keys() != keys:
            raise UserError(f"{name} has not the {len(keys)} entries that this index lists for it; {DAMAGED}")
        content |= found
        if len(content) > TENSORS:
            raise too_much(TENSORS, "tensors")
    return Header("safetensors index", size, content, parts=tuple(files))


def _once(pairs: list[tuple[str, Any]]) -> dict:
    result = Once()
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
    _check_directory(file, size)
    try:
        archive = zipfile.ZipFile(file)
    except ZIP_ERRORS:
        raise UserError(f"its zip directory is missing or damaged: the file was cut; {DAMAGED}") from None
    members = archive.infolist()
    names = [member.filename for member in members]
    # torch looks members up without regard to case, and takes the first one's folder for all.
    if len({name.lower() for name in names}) < len(names):
        raise UserError(f"holds two zip members of one name; {DAMAGED}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError("holds compressed members, which torch.save never writes: a zip bomb, or another kind of file")
    if sum(member.file_size for member in members) > size:
        raise UserError(f"its zip members overlap; {DAMAGED}")
    if any(name.endswith(("/constants.pkl", "model.json")) for name in names):
        raise UserError("a TorchScript program, not named weights; save its state_dict() instead")
    if all(member.header_offset for member in members):
        raise UserError(f"its zip members do not begin the file; {DAMAGED}")
    root = names[0].partition("/")[0] + "/" if names else ""
    if f"{root}data.pkl" not in names:
        raise UserError("a zip file without weights; give a .safetensors or torch.save file")
    if any(not name.startswith(root) for name in names):
        raise UserError(f"its zip members lie in several folders; {DAMAGED}")
    sizes = {member.filename: member.file_size for member in members}

    def storage_bytes(key: str) -> int:
        return sizes.get(f"{root}data/{key}", -1)

    _forgive_absent_sums(archive)
    try:
        data = archive.read(f"{root}data.pkl")
    except ZIP_ERRORS:
        raise UserError(f"its table of contents cannot be read; {DAMAGED}") from None
    reader = PickleOutline(io.BytesIO(data), size, storage_bytes)
    content = reader.read_whole()
    return Header("torch zip", size, content, reader.wants())


def _check_directory(file: BinaryIO, size: int) -> None:
    """Make sure that the list of members is short, and the last thing in the file, where every reader finds it."""
    tail = 22 + 20 + 56
    file.seek(max(size - tail, 0))
    end = file.read(tail)
    signature, length = end[-22:-18], end[-10:-6]
    if size < 22 or signature != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise UserError(f"its zip directory is missing or damaged: the file was cut; {DAMAGED}")
    (listed,) = struct.unpack("<L", length)
    if len(end) == tail and end[56:60] == b"PK\x06\x07":
        (listed,) = struct.unpack("<Q", end[40:48])
        if struct.unpack("<Q", end[64:72]) != (size - tail,):
            raise UserError(f"its zip directory does not lie where it says; {DAMAGED}")
    if listed > HEADER_LIMIT:
        raise UserError(f"lists its zip members in {listed} bytes, which no checkpoint does; {DAMAGED}")


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
        setattr(member, "CRC", member.CRC or None)  # noqa: B010 - declared as int alone


def _read_legacy(file: BinaryIO, size: int) -> Header:
    file.seek(0)
    for _ in range(3):  # magic number, protocol, machine
        PickleOutline(file, size).read_whole()
    reader = PickleOutline(file, size)
    content = reader.read_whole()
    keys = PickleOutline(file, size).read_whole()
    expected = sum(8 + s.count * SIZES[s.dtype] for s in reader.storages.values())
    named = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not named or len(keys) != len(reader.storages) or set(keys) != reader.storages.keys():
        raise UserError(f"its weights are not those that it lists; {DAMAGED}")
    if size - file.tell() != expected:
        raise UserError(f"holds {size - file.tell()} bytes of weights where {expected} are declared; {DAMAGED}")
    return Header("torch legacy", size, content, reader.wants())
