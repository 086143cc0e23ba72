"""Telling architecture and format from names and shapes alone, without torch.

``index.json`` beside this file holds the signature of every published network under every format's names; it is made
from the families by ``python -m mixtransfer.checkpoints.index``. A signature groups entries that differ in block or
stage numbers only: ``layers.#.blocks.#.attn.qkv.weight`` -> ``0.0:288x96*2,576x192*2``, the first numbers and the
shapes in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from mixtransfer.checkpoints.select import rule_for
from mixtransfer.checkpoints.timm_names import use_of, variants_of
from mixtransfer.errors import UserError

__all__ = ["CERTAIN", "INDEX", "Match", "group_name", "identify", "recognize", "signature"]

INDEX = Path(__file__).with_name("index.json")
#: Stands for any shape: the rows of a classifier's head.
ANY = "*"
#: From which share of agreeing groups on a file is converted without being told its architecture.
CERTAIN = 0.85
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])|(?<=_)\d+(?![^.])")


@dataclass(frozen=True)
class Match:
    """The fit of a file to a network under a format's names; counts are of groups of entries.

    Attributes:
        arch: the architecture.
        format: the format of the names.
        network: what tells networks of equal shapes apart, e.g. their number of heads.
        same: groups with the same names and shapes.
        resized: groups with the same names, and shapes of other sizes.
        missing: groups that the file lacks.
        extra: groups of the file that the network lacks and no rule names.
        absent: groups of the network that a file may lack, and this one does: heads, norms of the other use.
    """

    arch: str
    format: str
    network: str
    same: tuple[str, ...]
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def certainty(self) -> float:
        """The share of groups that agree, 0 to 1."""
        return len(self.same) / max(len(self.same + self.resized + self.missing + self.extra), 1)


def signature(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the signature of named shapes."""
    groups: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for key, shape in shapes.items():
        numbers = tuple(int(number) for number in _NUMBER.findall(key))
        groups.setdefault(group_name(key), []).append((numbers, tuple(shape)))
    return {name: _line(sorted(members)) for name, members in groups.items()}


def group_name(key: str) -> str:
    """Return the name of an entry with ``#`` for the numbers of blocks and stages."""
    return _NUMBER.sub("#", key)


def recognize(entries: Mapping[str, Any], arch: str | None = None) -> list[Match]:
    """Return the networks and formats that the entries of a checkpoint may belong to, best first.

    Args:
        entries: name -> anything with a ``shape``, without container and prefix; see :func:`select_weights`.
        arch: look at this architecture only.
    """
    shapes = {key: tuple(value.shape) for key, value in entries.items()}
    matches = []
    for family in _index()["families"].values():
        for name, format_ in family["formats"].items():
            written = format_.get("like", name)
            derived = [re.compile(pattern) for pattern in format_["derived"]]
            kept = {key: shape for key, shape in shapes.items() if not any(p.fullmatch(key) for p in derived)}
            found = signature(kept)
            format_ = family["formats"][written]
            common = len(found.keys() & set(format_["groups"]))
            if 2 * common < len(found) or not common:
                continue
            for candidate, known in family["archs"].items():
                if arch in (None, candidate):
                    matches.append(_match(candidate, name, known["network"], found, format_, known[written]))
    # Of formats that fit equally, the one that explains more wins, then the one that expects less, then the published.
    return sorted(matches, key=lambda m: (-m.certainty, -len(m.same), len(m.absent), m.format == "mixtransfer"))


def identify(entries: Mapping[str, Any], name: str) -> Match:
    """Return the one network and format that the entries fit.

    Networks of equal shapes that also compute the same (DeiT and ViT) count as one, the first.

    Raises:
        UserError: none fits well, or two that compute different things fit equally.
    """
    matches = recognize(entries)
    if not matches or matches[0].certainty < CERTAIN:
        if variants := variants_of(entries):
            raise UserError(f"{name}: timm's {variants[0]}, of no family here; {use_of(variants, name)}")
        near = "; the nearest are " + ", ".join(_named(m) for m in matches[:3]) if matches else ""
        raise UserError(f"{name}: not recognized{near}; say --arch (and --from)")
    best = matches[0]
    rivals = [m.arch for m in matches if m.certainty == best.certainty and m.network != best.network]
    if rivals:
        names = list(dict.fromkeys([best.arch, *rivals]))
        raise UserError(
            f"{name}: fits {', '.join(names)} alike: they have the same names and shapes and compute different things;"
            f" say which, e.g. --arch {names[0]}"
        )
    return best


def _named(match: Match) -> str:
    return f"{match.arch} under {match.format} names ({match.certainty:.0%})"


def _match(arch: str, name: str, network: str, found: Mapping[str, str], format_: dict, known: list[int]) -> Match:
    lines = _index()["lines"]
    expected = {group: lines[i] for group, i in zip(format_["groups"], known, strict=True) if i >= 0}
    optional = set(format_["optional"])
    shared = [group for group in found if group in expected]
    same = tuple(group for group in shared if expected[group] in (ANY, found[group]))
    return Match(
        arch=arch,
        format=name,
        network=network,
        same=same,
        resized=tuple(group for group in shared if group not in same),
        missing=tuple(group for group in expected if group not in found and group not in optional),
        extra=tuple(group for group in found if group not in expected and rule_for(group.replace("#", "0")) is None),
        absent=tuple(group for group in expected if group not in found and group in optional),
    )


@cache
def _index() -> dict:
    return json.loads(INDEX.read_text(encoding="utf-8"))


def _line(members: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    runs = [("x".join(map(str, shape)), len(list(run))) for shape, run in groupby(shape for _, shape in members)]
    first = ".".join(map(str, members[0][0]))
    return f"{first}:{','.join(shape if count == 1 else f'{shape}*{count}' for shape, count in runs)}"
