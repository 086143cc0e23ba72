"""Names of Sequencer2D's entries in timm, and timm's network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.sequencer import PATCHES, Spec

__all__ = ["FORMATS"]


def _timm(spec: Spec, classes: int | None, channels: int) -> nn.Module:
    from timm.models.sequencer import Sequencer2d as Network

    size = dict(layers=spec.depths, patch_sizes=PATCHES, embed_dims=spec.channels, mlp_ratios=(3,) * len(PATCHES))
    return Network(classes or 0, in_chans=channels, hidden_sizes=[width // 4 for width in spec.channels], **size)


class TimmKeys(KeyMap):
    """timm keeps the downsampling with the stage behind it, under a name that does not tell the depth of the former."""

    def to_ours(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Return the entries under our names, and none dropped."""
        ours, dropped = super().to_ours(state)
        blocks = {tuple(map(int, key.split(".")[1:3])) for key in ours if key.startswith("blocks.")}
        for key in [key for key in ours if key.startswith("downsample.")]:
            _, stage, name = key.split(".", 2)
            depth = sum(1 for i, _ in blocks if i == int(stage))
            ours[f"blocks.{stage}.{depth}.{name}"] = ours.pop(key)
        return ours, dropped


FORMATS = {
    "timm": TimmKeys(
        renames=(
            ("stages.{i+1}.downsample.down.{rest}", "downsample.{i}.down.{rest}"),
            ("stages.{i+1}.downsample.down.{rest}", "blocks.{i}.{j}.down.{rest}"),
            ("stages.{i}.blocks.{j}.{rest}", "blocks.{i}.{j}.{rest}"),
            ("head.fc.{rest}", "head.{rest}"),
        ),
        network=_timm,
    ),
}
