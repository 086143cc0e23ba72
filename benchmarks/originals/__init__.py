"""The published codes' way of computing each family, to compare with: plain, and not meant for use.

The classes here derive from our own and hold the same parameters; they override how a result is reached. What is
slower in them is what the published code does: attention maps that are made, biases, masks and filters that are made
again at every call, maps that are copied to another layout and back, branches that are computed and then dropped. Where
a published code does as we do, nothing is overridden. Labels are not carried, sizes that the published network refuses
are not handled. Written from the fact sheets and from reading the published codes; no line of them is here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from benchmarks.originals import convolutions, sparse, tokens, windows
from benchmarks.originals.common import COMMON
from mixtransfer.backbones import Backbone

__all__ = ["WAYS", "as_published"]

#: family -> our class -> the published way.
WAYS: Mapping[str, Mapping[type[nn.Module], type[nn.Module]]] = {
    family: {**COMMON, **ways}
    for group in (tokens.WAYS, windows.WAYS, convolutions.WAYS, sparse.WAYS)
    for family, ways in group.items()
}


def as_published(backbone: Backbone) -> Backbone:
    """Return a copy of a backbone, weights included, that computes its dense maps as the published code does."""
    published = copy.deepcopy(backbone)
    ways = WAYS[published.family]
    for module in published.modules():
        kind = type(module)
        way = next((ways[base] for base in kind.__mro__ if base in ways), None)
        if way is not None:
            # A class of its own below ours keeps what it adds.
            module.__class__ = way if kind in ways else type(way.__name__, (way, kind), {})
    return published
