"""Key maps: how a published format names a family's entries, both ways.

A map is a table of templates. ``{i}`` stands for a number, ``{i+1}`` for a number that is one more there than here, and
``{rest}`` for everything that follows, so that ``("stages.{i}.norm.{rest}", "layers.{i}.norm.{rest}")`` renames in
either direction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from mixtransfer.errors import UserError

__all__ = ["Fused", "KeyMap", "Reorder"]

#: Norms that the option ``output_norm`` adds to any backbone; no published format has a place for them.
OUTPUT_NORM = r"output_norm\d+\..+"
_HOLE = re.compile(r"\\\{(\w+)(?:\\\+(\d+))?\\\}")
_FILL = re.compile(r"\{(\w+)(?:\+(\d+))?\}")


@dataclass(frozen=True)
class Reorder:
    """A change of a value between formats: entries of ours that match ``key`` go through one of two functions."""

    key: str
    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fused:
    """Entries that one format holds one below the other, in ``whole``, and another in ``parts``.

    All are templates without shifts, and named as the renames leave them.

    Attributes:
        whole: the one entry.
        parts: the several.
        shares: how the rows of ``whole`` are shared out, relative to each other; by default evenly.
    """

    whole: str
    parts: tuple[str, ...]
    shares: tuple[int, ...] = ()

    def join(self, state: dict[str, Tensor]) -> None:
        """Put the whole in place of its parts, where all of them are there and fit each other.

        Parts that do not are misshapen or too few, which the loader then says by name.
        """
        pattern = _pattern(self.parts[0])
        for match in [m for key in state if (m := pattern.fullmatch(key))]:
            names = [_fill(part, match) for part in self.parts]
            values = [state[name] for name in names if name in state]
            alike = len({(value.dtype, value.dim(), value.shape[1:]) for value in values}) == 1 and values[0].dim()
            if alike and len(values) == len(names):
                state[_fill(self.whole, match)] = torch.cat([state.pop(name) for name in names])

    def split(self, state: dict[str, Tensor]) -> None:
        """Put the parts in place of the whole."""
        pattern, ends = _pattern(self.whole), list(accumulate(self.shares or [1] * len(self.parts)))
        for match in [m for key in state if (m := pattern.fullmatch(key)) and state[key].dim()]:
            whole = state.pop(match.string)
            parts = whole.tensor_split([len(whole) * end // ends[-1] for end in ends[:-1]])
            state |= dict(zip((_fill(part, match) for part in self.parts), parts, strict=True))


@dataclass(frozen=True)
class KeyMap:
    """The names of one format.

    Attributes:
        renames: (theirs, ours) templates; the first that matches is taken, a key that none matches keeps its name.
        derived: regular expressions of their entries that a network computes from its configuration (index tables,
            masks); they are dropped, by name.
        absent: regular expressions of our entries that this format has no name for; left out when writing it.
        reorders: changes of values.
        fused: entries that this format splits, e.g. the projection to query, key and value.
        joined: entries that this format fuses and ours does not.
        network: builds that library's network for ``(size, classes, channels)``: a row of ``archs``, the classes of its
            head (0: it answers the embedding; None: dense maps, before norms that the format has no place for), and
            the channels of the images. None where the library has no such network.
    """

    renames: tuple[tuple[str, str], ...] = ()
    derived: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    reorders: tuple[Reorder, ...] = ()
    fused: tuple[Fused, ...] = ()
    joined: tuple[Fused, ...] = ()
    network: Callable[[Any, int | None, int], nn.Module | None] | None = field(default=None, repr=False, compare=False)
    _tables: dict = field(default_factory=dict, repr=False, compare=False)

    @property
    def dense(self) -> bool:
        """Whether the format is one of dense backbones, without a classifier's head."""
        return _matches(self.absent, "head.weight")

    def to_ours(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Return the entries under our names, and the keys that were dropped as derived."""
        dropped = [key for key in state if _matches(self.derived, key)]
        ours = self._rename({k: v for k, v in state.items() if k not in set(dropped)}, source=0)
        for rule in self.fused:
            rule.join(ours)
        for rule in self.joined:
            rule.split(ours)
        for reorder in self.reorders:
            for key in ours:
                if re.fullmatch(reorder.key, key):
                    ours[key] = _reordered(reorder.to_ours, ours[key])
        return ours, dropped

    def to_theirs(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Return the entries under their names, and our keys that the format has no place for."""
        left_out = [key for key in state if _matches((*self.absent, OUTPUT_NORM), key)]
        kept = {k: v for k, v in state.items() if k not in set(left_out)}
        for reorder in self.reorders:
            for key in kept:
                if re.fullmatch(reorder.key, key):
                    kept[key] = _reordered(reorder.to_theirs, kept[key])
        for rule in self.joined:
            rule.join(kept)
        for rule in self.fused:
            rule.split(kept)
        return self._rename(kept, source=1), left_out

    def _rename(self, state: Mapping[str, Tensor], source: int) -> dict[str, Tensor]:
        if source not in self._tables:
            pairs = [(rule[source], rule[1 - source]) for rule in self.renames]
            self._tables[source] = [(_pattern(a), _shifts(a), b) for a, b in pairs]
        renamed: dict[str, Tensor] = {}
        for key, value in state.items():
            new = _translate(key, self._tables[source])
            if new in renamed:
                raise UserError(
                    f"two entries would both be named {new!r}, the second is {key!r}; say which format it is"
                )
            renamed[new] = value
        return renamed


def _reordered(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    try:
        return function(value)
    except (RuntimeError, IndexError):
        return value  # of a form that no network has: misshapen, which the loader says by name


def _matches(patterns: tuple[str, ...], key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def _pattern(template: str) -> re.Pattern:
    def hole(match: re.Match) -> str:
        return f"(?P<{match[1]}>.+)" if match[1] == "rest" else rf"(?P<{match[1]}>\d+)"

    return re.compile(_HOLE.sub(hole, re.escape(template)))


def _fill(template: str, match: re.Match) -> str:
    return _FILL.sub(lambda hole: match[hole[1]], template)


def _shifts(template: str) -> dict[str, int]:
    return {match[1]: int(match[2] or 0) for match in _FILL.finditer(template)}


def _translate(key: str, table: list[tuple[re.Pattern, dict[str, int], str]]) -> str:
    for pattern, shifts, template in table:
        match = pattern.fullmatch(key)
        if not match:
            continue
        values = {k: v if k == "rest" else int(v) - shifts[k] for k, v in match.groupdict().items()}
        if any(isinstance(v, int) and v < 0 for v in values.values()):
            continue
        return _FILL.sub(
            lambda hole, values=values: (
                values[hole[1]] if hole[1] == "rest" else str(values[hole[1]] + int(hole[2] or 0))
            ),
            template,
        )
    return key
