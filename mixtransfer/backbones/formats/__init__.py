"""Names of weights in the formats of libraries, and those libraries' networks; one file a family.

The paper's own names stand beside the network (``Backbone.official``). A file here, named as the family, holds in
``FORMATS`` the names of timm, torchvision, transformers, mmpretrain, mmdet and mmseg, as far as they have the network,
with builders of theirs that a conversion is proven against. It is imported when names are looked up, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixtransfer.backbones.formats.key_map import KeyMap

__all__ = ["library_formats"]


@cache
def library_formats(family: str) -> Mapping[str, KeyMap]:
    """Return the formats of libraries for a family, by name; none where no file here has the family's name."""
    name = f"{__name__}.{family}"
    return import_module(name).FORMATS if find_spec(name) else {}
