"""A description of a checkpoint file, from its headers alone: no torch, no code of the file."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtransfer.checkpoints.fetch import located
from mixtransfer.checkpoints.headers import Header, read_header, whole_of
from mixtransfer.checkpoints.recognize import CERTAIN, Match, recognize
from mixtransfer.checkpoints.select import EMA, RAW, Selection, select_weights
from mixtransfer.checkpoints.stand_ins import Entry, Foreign, is_harmless
from mixtransfer.checkpoints.timm_names import use_of, variants_of
from mixtransfer.errors import visible

__all__ = ["Description", "describe"]

#: Settings of a training script that say what was trained.
TELLING = ("model", "arch", "data_set", "dataset", "input_size", "img_size", "nb_classes", "num_classes", "epochs")
METRIC = re.compile(
    r"(best|max|min|val|test)?_?(acc\w*|accuracy|top1|top5|miou|map|bbox_map\w*|loss|metric|score)", re.I
)
PROGRESS = ("epoch", "iter", "iteration", "step", "global_step", "best_epoch")
#: The head's weight, as the formats call it.
HEAD = re.compile(r"(head|heads\.head|head\.fc|head\.layers\.head|classifier)\.weight")
UNCERTAIN = 0.5


@dataclass(frozen=True)
class Description:
    """The contents of a file, as rows of a table and as data.

    Attributes:
        rows: (name, text), in reading order.
        matches: the architectures and formats that the weights may belong to, best first.
        entries: the weights, by name in the network.
    """

    rows: tuple[tuple[str, str], ...]
    matches: tuple[Match, ...]
    entries: Mapping[str, Entry]

    def __str__(self) -> str:
        """Return the table."""
        rows = [(visible(name), visible(text)) for name, text in self.rows]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def describe(path: str | Path, average: bool | None = None) -> Description:
    """Describe a checkpoint file.

    Args:
        path: a ``.safetensors`` or ``torch.save`` file, or its name.
        average: describe the moving average (True) or the raw weights (False); see :func:`select_weights`.

    Raises:
        UserError: the file is missing, damaged or of another kind, or holds no weights.
    """
    path = located(path)
    outline = read_header(path)
    parts = f" of {len(outline.parts)} files" if outline.parts else ""
    rows = [("file", f"{path}: {outline.kind}{parts}, {_bytes(outline.size)}"), ("code", _code(outline))]
    if index := whole_of(path):
        rows.append(("part", f"of the model that {index} lists; give that file instead"))
    selected = select_weights(outline.content, str(path), average)
    matches = recognize(selected.weights)
    rows += _network(selected, matches)
    rows += _weights(selected, outline.content)
    rows += _others(outline.content, selected)
    return Description(tuple(rows), tuple(matches), selected.weights)


def _code(outline: Header) -> str:
    if not outline.wants:
        return "none: tensors and plain values only"
    odd = [name for name in outline.wants if not is_harmless(name, outline.wants)]
    return f"wants {_some(odd)}; read with --trust only if you know its author" if odd else "none that would be run"


def _network(selected: Selection, matches: list[Match]) -> Iterator[tuple[str, str]]:
    certain = matches[0].certainty >= CERTAIN if matches else False
    if not certain and (variants := variants_of(selected.weights)):
        alike = f" (of equal shapes: {_some(variants[1:])})" if len(variants) > 1 else ""
        yield "network", f"timm's {variants[0]}{alike}, of no family here"
        yield "names", "timm"
        yield "use", use_of(variants, "FILE")
        return
    best = [m for m in matches if matches[0].certainty == m.certainty and len(m.same) == len(matches[0].same)]
    if not best or best[0].certainty < UNCERTAIN:
        near = f"; nearest: {best[0].arch}, {best[0].certainty:.0%}" if best else ""
        yield "network", f"not recognized{near}"
        return
    first = best[0]
    alike = dict.fromkeys(m.arch for m in best if m.network == first.network and m.arch != first.arch)
    others = dict.fromkeys(m.arch for m in best if m.network != first.network)
    text = first.arch + (f" (the same network: {', '.join(alike)})" if alike else "")
    text += f" or, of equal shapes, {', '.join(others)}" if others else ""
    yield "network", f"{text}, {first.certainty:.1%} certain"
    formats = list(dict.fromkeys(m.format for m in best if m.arch == first.arch))
    yield "names", formats[0] + (f" (the same as {', '.join(formats[1:])})" if formats[1:] else "")
    for what in ("resized", "missing", "extra"):
        groups = getattr(first, what)
        if groups:
            yield f"  {what}", _some(groups)
    yield "use", _use(selected)


def _use(selected: Selection) -> str:
    heads = [value for key, value in selected.weights.items() if HEAD.fullmatch(key) and value.shape]
    parts = [f"classifier of {heads[0].shape[0]} classes"] if heads else []
    dense = [rule for rule in selected.dropped if rule in ("neck and dense heads", "transformer decoder of a detector")]
    if dense:
        outside = Counter(key.removeprefix("module.").split(".")[0] for rule in dense for key in selected.dropped[rule])
        parts = [f"backbone of a dense model ({', '.join(outside)})"]
    return ", ".join(parts or ["backbone alone"])


def _weights(selected: Selection, content: Any) -> Iterator[tuple[str, str]]:
    entries = selected.weights.values()
    place = ".".join(selected.container) or "the top level"
    kind = "moving average" if selected.average else "weights"
    under = f" under {selected.prefix}" if selected.prefix else ""
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in Counter(e.dtype for e in entries).most_common())
    yield kind, f"{len(selected.weights)} entries in {place}{under}: {kinds}"
    floats = [e for e in entries if "float" in e.dtype]
    yield "parameters", f"{sum(e.count for e in floats):,} ({_bytes(sum(e.nbytes for e in entries))})"
    if selected.other:
        yield "raw weights" if selected.average else "moving average", f"in {selected.other}"
    for rule, keys in selected.dropped.items():
        yield f"  {rule}", f"{len(keys)}: {_some(keys)}"


def _others(content: Mapping, selected: Selection) -> Iterator[tuple[str, str]]:
    if not selected.container:
        if isinstance(content.get("__metadata__"), Mapping):
            yield (
                "metadata",
                ", ".join(f"{_short(k)}={_short(v)}" for k, v in list(content["__metadata__"].items())[:6]),
            )
        return
    for key, value in content.items():
        if key in (*RAW, *EMA):
            continue
        entries = list(_entries(value))
        value = _plain(value)
        settings = _settings(value)
        if entries:
            yield str(key), f"{len(entries)} tensors, {_bytes(sum(e.nbytes for e in entries))}"
        elif key == "meta" and settings:
            yield "meta", _telling(settings, (*PROGRESS, *settings))
        elif isinstance(value, (int, float)) and (key in PROGRESS or METRIC.fullmatch(str(key))):
            yield str(key), f"{value:g}" if isinstance(value, float) else str(value)
        elif settings is not None:
            yield str(key), f"{len(settings)} settings" + (f": {text}" if (text := _telling(settings, TELLING)) else "")
        else:
            yield str(key), _short(value)


def _entries(value: Any, depth: int = 0) -> Iterator[Entry]:
    if isinstance(value, Entry):
        yield value
    elif depth < 6 and isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _entries(item, depth + 1)


def _settings(value: Any) -> dict[str, Any] | None:
    if isinstance(value, Foreign):
        value = value.state if isinstance(value.state, Mapping) and value.state else dict(value.items)
    return {str(key): _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else None


def _telling(settings: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    told = {key: settings[key] for key in keys if isinstance(settings.get(key), (str, int, float))}
    return ", ".join(f"{key}={_short(value)}" for key, value in list(told.items())[:6])


def _plain(value: Any) -> Any:
    """Return the number in a pickled numpy scalar, and anything else as it is."""
    if isinstance(value, Foreign) and value.path.endswith("multiarray.scalar") and len(value.args) == 2:
        kind, data = value.args
        named = kind.args[0] if isinstance(kind, Foreign) and kind.args else None
        code = {"f8": "d", "f4": "f", "i8": "q", "i4": "i"}.get(named) if isinstance(named, str) else None
        if code and isinstance(data, bytes) and len(data) == struct.calcsize(code):
            return struct.unpack(f"<{code}", data)[0]
    return value


def _short(value: Any) -> str:
    if isinstance(value, Foreign):
        return f"a {value.path}"
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return f"{len(value)} items"
    if callable(value):
        return "a class or function"
    value = value[:200] if isinstance(value, (str, bytes)) else value
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else text[:39] + "…"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.3g} GiB"


def _some(keys, shown: int = 4) -> str:
    keys = list(keys)
    return ", ".join(keys[:shown]) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")
