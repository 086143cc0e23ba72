"""FAN-Swin: Swin Transformer whose MLPs weight their channels by attention among them, but in the last stage.

Papers: Zhou et al., "Understanding The Robustness in Vision Transformers", ICML 2022, arXiv 2204.12451; Liu et al.,
"Swin Transformer", ICCV 2021, arXiv 2103.14030. Code: NVlabs/FAN, ``models/swin_utils.py`` and the model functions in
``models/fan.py``, under the NVIDIA Source Code License-NC (no commercial use); nothing here is taken from it. Neither
weights nor scores are published there.

Shapes: B batch, L = H·W tokens of a stage, C channels.

Kept from the published code: the MLP of channel processing adds nothing to its depthwise branch, unlike FAN's. Heads
of channels are those of the attention. Dense maps, of which there is no published code, are Swin's, with its norms.
"""

from __future__ import annotations

from mixtransfer.backbones import swin
from mixtransfer.backbones.swin import Spec, SwinTransformer
from mixtransfer.layers.channel_processing import ChannelProcessing
from mixtransfer.layers.residual import residual_of_all
from mixtransfer.registry import MODELS

__all__ = ["FANSwin"]


class Block(swin.Block):
    """x + attention(LN x), then x + channel processing(LN x), each with stochastic depth."""

    def __init__(self, channels: int, heads: int, window: int, drop_path: float):
        super().__init__(channels, heads, window, drop_path)
        self.mlp = ChannelProcessing(channels, heads, skip=False)

    def forward(self, x, grid, labels):
        """Return tokens (B, L, C) and their labels (B, L, K) or None."""
        x, labels = self.attended(x, grid, labels)
        branch = self.mlp(self.norm2(x), (grid.height, grid.width))
        return residual_of_all(x, branch, self.drop_path, self.training), labels


@MODELS.register_module()
class FANSwin(SwinTransformer):
    """FAN-Swin with outputs at strides 4, 8, 16 and 32, each with a norm of its own.

    Args:
        img_size: as of :class:`~mixtransfer.backbones.swin.SwinTransformer`.
        window: as there.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "fan_swin"
    # The repository's model functions.
    archs = {
        "fan_swin_tiny": Spec(96, (2, 2, 6, 2), (3, 6, 12, 24)),
        "fan_swin_small": Spec(96, (2, 2, 18, 2), (3, 6, 12, 24)),
        "fan_swin_base": Spec(128, (2, 2, 18, 2), (4, 8, 16, 32)),
        "fan_swin_large": Spec(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    }
    reported = {}
    block_types = (Block, Block, Block, swin.Block)

    def no_weight_decay(self):
        # As published: timm decays what has two axes or more, the tables of relative positions too.
        return {name for name, _ in self.named_parameters() if name.endswith(".gamma")}
