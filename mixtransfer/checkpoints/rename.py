"""Renaming a state dict between the published formats and ours.

Ours is the backbone's own names, with the classifier's linear head as ``head.weight`` and ``head.bias``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mixtransfer.backbones import Backbone, backbone_class
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.errors import unknown_name

__all__ = ["OURS", "Renamed", "absent_from", "convert_state_dict", "key_map", "rename"]

OURS = "mixtransfer"


@dataclass(frozen=True)
class Renamed:
    """A state dict under the names of another format, with every entry that did not come along.

    Attributes:
        state: the entries under the target's names.
        derived: source keys that a network computes itself, dropped by the format's rule.
        left_out: our keys that the target format has no name for.
    """

    state: dict[str, Tensor]
    derived: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def rename(state: Mapping[str, Tensor], arch: str, source: str = "official", target: str = OURS) -> Renamed:
    """Rename the entries of a state dict; see :func:`convert_state_dict`."""
    family = backbone_class(arch)
    derived, left_out = [], []
    if source != OURS:
        state, derived = key_map(family, source).to_ours(state)
    if target != OURS:
        state, left_out = key_map(family, target).to_theirs(state)
    return Renamed(dict(state), tuple(derived), tuple(left_out))


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


def key_map(family: type[Backbone], name: str) -> KeyMap:
    """Return a family's names of a format other than ours; raises a UserError if it does not list the format."""
    if name not in family.formats():
        raise unknown_name(f"format of {family.family}", name, [OURS, *family.formats()])
    return family.formats()[name]


def absent_from(family: type[Backbone], name: str) -> tuple[str, ...]:
    """Return regular expressions of our entries that a format has no name for; none for our own format."""
    return () if name == OURS else key_map(family, name).absent
