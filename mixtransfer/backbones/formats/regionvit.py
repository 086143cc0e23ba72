"""Names of RegionViT's entries in detectron2."""

from __future__ import annotations

from mixtransfer.backbones.formats.key_map import KeyMap

__all__ = ["FORMATS"]

# The published detectors are detectron2's: their backbones hold the network as the lowest part of a pyramid.
FORMATS = {"detectron2": KeyMap(renames=(("bottom_up.model.{rest}", "{rest}"),))}
