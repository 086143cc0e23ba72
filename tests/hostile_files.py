"""Checkpoint files as nobody saves them: each is to be refused in one line or read right, at every door."""

from __future__ import annotations

import codecs
import collections
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save

from mixtransfer import build_backbone


class Call:
    """Pickles as the call of a function with arguments, and a state to be set on what it returns."""

    def __init__(self, function: Callable, *args: Any, state: Any = None):
        self.made = function, args, state

    def __reduce__(self):
        return self.made


class Raw:
    """Pickles as these opcodes, which push one value; ``assemble`` puts them in."""

    def __init__(self, opcodes: bytes):
        self.opcodes = opcodes


#: Which values hold :class:`Raw`.
RAW = ("tuples in", "state", "5 million", "a million", "2000", "deep lists", "deeper dicts", "log that", "log with")


class Assembler(pickle._Pickler):
    """Writes :class:`Raw` as it is; storages are named as torch names them."""

    storages: dict[str, torch.UntypedStorage]

    def persistent_id(self, value):
        if not isinstance(value, torch.storage.TypedStorage):
            return None
        key = next((k for k, s in self.storages.items() if s._cdata == value._untyped_storage._cdata), None)
        key = key or str(len(self.storages))
        self.storages[key] = value._untyped_storage
        return "storage", getattr(torch, value.pickle_storage_type()), key, "cpu", value._size()

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Raw):
            self.write(value.opcodes)
        else:
            super().save(value, save_persistent_id)


def assembled(content: Any) -> bytes:
    """Return a ``torch.save`` zip file whose pickle may hold :class:`Raw`."""
    stream, file = io.BytesIO(), io.BytesIO()
    pickler = Assembler(stream, protocol=2)
    pickler.storages = {}
    pickler.dump(content)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", stream.getvalue())
        for key, storage in pickler.storages.items():
            archive.writestr(f"a/data/{key}", torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes())
        archive.writestr("a/version", "3\n")
    return file.getvalue()


def saved(content: Any, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def rezipped(data: bytes, before: bytes = b"", comment: bytes = b"", rename=lambda name: name, more=()) -> bytes:
    result = io.BytesIO()
    result.write(before)
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "a" if before else "w") as new:
        for name in old.namelist():
            new.writestr(rename(name), old.read(name))
        for name, content in more:
            new.writestr(name, content)
        new.comment = comment
    return result.getvalue()


def safetensors_of(header: Any, payload: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def weights() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(build_backbone("swin_micro").state_dict())


def laughs(levels: int = 60) -> bytes:
    """Return opcodes of tuples in tuples, twice each: 2**levels of them, in 2 bytes a level."""
    return b")" + b"2\x86" * levels


def attached(value: Any, **attributes: Any) -> Any:
    for name, attribute in attributes.items():
        setattr(value, name, attribute)
    return value


def deep(levels: int, kind: type = list) -> Any:
    value: Any = kind()
    for _ in range(levels):
        value = [value] if kind is list else {"x": value}
    return value


def buffer_with(**state: Any) -> Any:
    row = np.zeros(3)
    state = {"_log_history": row, "_count_history": row, "_max_length": 9, **state}
    # The last value of a file, so that what it notes for later use is used no more.
    return Raw(b"cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81" + pickle.dumps(state, 2)[2:-1] + b"b")


def values() -> dict[str, Any]:
    """Return what stands beside the weights of a file."""
    itself: list[Any] = []
    itself.append(itself)
    around: dict[str, Any] = {}
    around["x"] = {"y": around}
    lists: list[Any] = []
    for _ in range(7):
        lists = [lists] * 30
    text, shared, items = "é" * 200_000, b"x" * 200_000, [1, 2, 3] * 100_000
    liar = Call(np.dtype, "V8", False, True, state=(3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))
    scalar = np.float64(1).__reduce__()[0]
    return {
        "bytearray of 6 GiB": Call(bytearray, 6 << 30),
        "bytearray of 2**45": Call(bytearray, 2**45),
        "storage of 6 GiB": Call(torch.UntypedStorage, 6 << 30),
        "tensor of 6 GiB": Call(torch.Tensor, 3 << 29),
        "typed tensor of 6 GiB": Call(torch.FloatTensor, 3 << 29),
        "sound bytearray": bytearray(b"abc"),
        "shared lists": lists,
        "tuples in tuples": Raw(laughs()),
        "tuples in tuples as a key": Raw(b"}" + laughs() + b"Ns"),
        "tuples in tuples in a set": Call(set, Raw(b"]" + laughs() + b"a")),
        "tuples in tuples as a shape": Call(
            torch._utils._rebuild_tensor_v2, torch.zeros(1).storage(), 0, Raw(laughs()), (1,), False, {}
        ),
        "tuples in tuples as a storage": Raw(laughs() + b"Q"),
        "deep lists": Raw(b"]" * 5000 + b"a" * 4999),
        "deep dicts": deep(90, dict),
        "deeper dicts": Raw(b"}X\x01\x00\x00\x00x" * 300 + b"N" + b"s" * 300),
        "itself": itself,
        "around": around,
        "5 million steps": Raw(b"N0" * 2_500_000 + b"N"),
        "a million dicts": Raw(b"(" + b"}" * 1_000_000 + b"l"),
        "2000 classes": [Raw(f"cx\nc{number}\n".encode()) for number in range(2000)],
        "colliding keys": {(2**61 - 1) * number: 1 for number in range(500)},
        "colliding complex keys": {complex(-1000003 * number, number): 1 for number in range(500)},
        "tuple keys": {("a", number): 1 for number in range(100)},
        "many tuple keys": {(number, -number): 1 for number in range(9000)},
        "keys that are no text": {1: 2, None: 3, 2.5: 4, b"x": 5},
        "huge int": 7**2000,
        "large int": 7**200,
        "one text encoded often": [Call(codecs.encode, text, "latin1") for _ in range(3000)],
        "text in another code": Call(codecs.encode, "ü" * 1000, "punycode"),
        "one value copied often": [Call(bytearray, shared) for _ in range(3000)],
        "one list copied often": [Call(set, items) for _ in range(3000)],
        "array of objects": np.array([object, 1], dtype=object)[1:],
        "array that lies": Call(scalar, liar, b"\x41" * 8),
        "array of other bytes": Call(
            np.array(1).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, (9,), np.dtype("f8"), False, b"1234")
        ),
        "sound arrays": {"a": np.arange(6).reshape(2, 3).T, "b": np.float32(3), "c": np.array(["x", "yz"])},
        "log that lies": buffer_with(_log_history="x"),
        "log with methods": buffer_with(statistics_methods={"mean": 5}),
        "sound log": HistoryBuffer([1.0, 2.0], [1, 1]),
        "getattr": Call(getattr, torch.device, "__init__"),
        "dict with attributes": Call(collections.OrderedDict, [["a", 1]], state={"items": 5, "keys": 6, "values": 7}),
        "state of a list": Raw(b"]}b"),
        "state of a tensor": Raw(b"ctorch\nTensor\n)\x81}b"),
        "escapes": {"\x1b[2J\x1b]8;;http://x\x07": "\x1b[31m\u202eabc", "model\nnetwork  swin_tiny": "a\nb"},
        "lone surrogate": {"a\ud800": 1},
        "surrogate value": "a\ud800",
        "long name": {"x" * 100_000: 1},
    }


def tensors(state: dict[str, torch.Tensor]) -> dict[str, dict[Any, Any]]:
    """Return weights that are none, or not all of them."""
    key = next(key for key, value in state.items() if value.ndim == 2)
    value = state[key]
    quantized = torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)
    return {
        "sparse": {key: value.to_sparse()},
        "csr": {key: value.to_sparse_csr()},
        "quantized": {key: quantized},
        "meta": {key: value.to("meta")},
        "nested": {key: torch.nested.nested_tensor([value[0], value[1, :2]])},
        "complex": {key: value + 1j},
        "conjugate": {key: (value + 1j).conj()},
        "negative": {key: (value + 1j).conj().imag},
        "float8": {key: value.to(torch.float8_e4m3fn)},
        "int": {key: value.int()},
        "bool": {key: value.bool()},
        "nan": {key: torch.full_like(value, torch.nan)},
        "scalar": {key: torch.tensor(1.0), "head.weight": torch.tensor(1.0), "head.bias": torch.tensor(1.0)},
        "expanded": {key: torch.ones(1).expand_as(value)},
        "overlapping": {key: value.flatten()[: value.numel() // 2 + 1].as_strided(value.shape, (1, 1))},
        "expanded often": {f"x{number}": torch.ones(1).expand(400_000 + number) for number in range(400)},
        "attributes": {key: attached(value.clone(), is_complex=5, float=6, detach=7, dtype_="x")},
        "parameter": {key: torch.nn.Parameter(value)},
        "int keys": {0: value, None: value, ("a", 1): value},
        "surrogate name": {"head.\ud800": value},
        "escaping name": {"head.\x1b[2J\n": value},
        "long name": {"head." + "x" * 100_000: value},
        "module names": {"module." * 60 + str(number): value[0] for number in range(5000)},
        "70 000 views": {f"x{number}": value[0, 0] for number in range(70_000)},
    }


def files() -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Return name -> suffix and maker of every hostile file."""
    state = weights()
    sound = saved({"model": state})
    found: dict[str, tuple[str, Callable[[], bytes]]] = {
        "sound": ("pth", lambda: sound),
        "sound legacy": ("pth", lambda: saved({"model": state}, True)),
    }
    for name, value in values().items():
        beside = {"model": state, "x": value}
        found[f"beside: {name}"] = "pth", partial(assembled, beside)
        if not name.startswith(RAW):
            found[f"beside, legacy: {name}"] = "pth", partial(saved, beside, True)
    for name, change in tensors(state).items():
        flat = {**state, **change}
        found[f"weights: {name}"] = "pth", partial(saved, {"model": flat})
        if name in ("expanded", "attributes", "int keys", "surrogate name", "scalar", "nan"):
            found[f"weights, flat legacy: {name}"] = "pth", partial(saved, flat, True)
        if name in ("complex", "float8", "int", "nan", "escaping name"):
            plain = {key: value.clone(memory_format=torch.contiguous_format) for key, value in flat.items()}
            found[f"weights, safetensors: {name}"] = "safetensors", partial(save, plain)
    found |= {f"zip: {name}": ("pth", partial(bytes, content)) for name, content in zips(sound).items()}
    found |= {
        f"safetensors: {name}": ("safetensors", partial(bytes, data)) for name, data in safetensors_files().items()
    }
    return found


def zips(sound: bytes) -> dict[str, bytes]:
    """Return zip files that two readers could read in two ways."""
    with zipfile.ZipFile(io.BytesIO(saved({"model": {"x": torch.ones(3)}}))) as archive:
        second = [(f"second/{name.partition('/')[2]}", archive.read(name)) for name in archive.namelist()]
    return {
        "two folders": rezipped(sound, more=second),
        "comment": rezipped(sound, comment=b"PK\x05\x06" + bytes(18)),
        "something before": rezipped(sound, before=b"PK" + bytes(30)),
        "names by case": rezipped(sound, more=[("archive/DATA.PKL", b"x")]),
        "no folder": rezipped(sound, rename=lambda name: name.partition("/")[2]),
        "empty": b"PK\x05\x06" + bytes(18),
    }


def safetensors_files() -> dict[str, bytes]:
    """Return safetensors files with headers that nobody writes."""
    entry, empty = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, {"dtype": "F32", "shape": [0]}
    escapes = {"__metadata__": {"\x1b[2J": "\u202e" * 300}, "head.\x1b[2J": entry}
    huge = b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'
    return {
        "70 000 tensors": safetensors_of({str(n): {**empty, "data_offsets": [0, 0]} for n in range(70_000)}),
        "deep metadata": safetensors_of({"__metadata__": {"a": deep(900)}, "a": entry}, bytes(4)),
        "deep": safetensors_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "metadata of numbers": safetensors_of({"__metadata__": {"a": 3}, "a": entry}, bytes(4)),
        "surrogate": safetensors_of(b'{"head.\\ud800":' + json.dumps(entry).encode() + b"}", bytes(4)),
        "escapes": safetensors_of({**escapes, "a": {**entry, "data_offsets": [4, 8]}}, bytes(8)),
        "huge numbers": safetensors_of(huge, bytes(4)),
    }


def write(folder: Path, file: tuple[str, Callable[[], bytes]]) -> Path:
    path = folder / f"file.{file[0]}"
    path.write_bytes(file[1]())
    return path
