"""Renaming a state dict between the published formats and ours.

Ours is the backbone's own names, with the classifier's linear head as ``head.weight`` and ``head.bias``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mixtransfer.backbones import Backbone, backbone_class
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.errors import unknown_name

__all__ = ["OURS", "Renamed", "convert_state_dict", "rename"]

OURS = "mixtransfer"


@dataclass
class Renamed:
    """A converted state dict, with every entry that did not come along.

    Attributes:
        state: the entries under the target's names.
        derived: source keys that a network computes itself, dropped by the format's rule.
        left_out: our keys that the target format has no name for.
    """

    state: dict[str, Tensor]
    derived: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def rename(state: Mapping[str, Tensor], arch: str, source: str = "official", target: str = OURS) -> Renamed:
    """Rename the entries of a state dict; see :func:`convert_state_dict`."""
    family = backbone_class(arch)
    result = Renamed(dict(state))
    if source != OURS:
        result.state, result.derived = _key_map(family, source).to_ours(state)
    if target != OURS:
        result.state, result.left_out = _key_map(family, target).to_theirs(result.state)
    return result


def convert_state_dict(
    state_dict: Mapping[str, Tensor], arch: str, source: str = "official", target: str = OURS
) -> dict[str, Tensor]:
    """Return ``state_dict`` under the names of another format; values are changed only where an order differs.

    Args:
        state_dict: entries of one backbone or classifier, without container and prefix.
        arch: an architecture name, see :func:`mixtransfer.list_archs`.
        source: ``"official"`` (the paper's own names), ``"mixtransfer"``, or a format that the family lists.
        target: like ``source``.

    Raises:
        UserError: an unknown architecture or format.
    """
    return rename(state_dict, arch, source, target).state


def _key_map(family: type[Backbone], name: str) -> KeyMap:
    if name not in family.formats:
        raise unknown_name(f"format of {family.family}", name, [OURS, *family.formats])
    return family.formats[name]
