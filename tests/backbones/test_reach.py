"""How far an output sees: on an image of 448 × 672, three by two of the tiles that published classifiers take.

What does not depend on a pixel keeps its bits when the pixel changes. docs/design.md has the table.
"""

from __future__ import annotations

import pytest
import torch
from recipes import read

from mixtransfer.backbones import FAMILIES, mixmim, msg_transformer, posmlp
from mixtransfer.registry import MODELS

HEIGHT, WIDTH, CORNER = 448, 672, 32


def reach(net) -> list[float]:
    """Return the share of each output's tokens that the lower right corner of an image reaches."""
    torch.manual_seed(0)
    net = net.eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            # Loud enough that what arrives from afar is not rounded away.
            parameter.data.normal_(std=1.5 / parameter[0].numel() ** 0.5)
        else:
            # Layer scales start near 0, gates at it.
            parameter.data.uniform_(0.5, 1)
    images = torch.randn(1, 3, HEIGHT, WIDTH).repeat(2, 1, 1, 1)
    images[1, :, -CORNER:, -CORNER:] += 10
    with torch.no_grad():
        maps = net(images)
    return [(x[0] != x[1]).any(dim=0).double().mean().item() for x in maps]


def dense(name: str, **options):
    """Return the backbone of a recipe's dense model with further options."""
    backbone = dict(read(f"det/mask_rcnn_{name}.py").model.backbone)
    return MODELS.build({**backbone, "init_cfg": None, "out_indices": (0, 1, 2, 3), **options})


#: Family -> a member that is deep enough, but narrow.
NARROW = {
    "mixmim": mixmim.Spec(16, (1, 1, 2, 2), (2, 2, 6, 2)),
    "msg_transformer": msg_transformer.Spec(64, (2, 4, 4, 2), (1, 2, 4, 8)),
    "posmlp": posmlp.Spec((16, 16, 32, 64), (2, 2, 6, 2)),
}


@pytest.mark.parametrize("family", NARROW)
def test_dense_recipes_see_beyond_the_tiles_of_pretraining(family, monkeypatch):
    cls = next(cls for cls in FAMILIES if cls.family == family)
    monkeypatch.setitem(cls.archs, "narrow", NARROW[family])
    *_, third, last = reach(dense(family, arch="narrow"))
    assert third == last == 1.0
    assert max(reach(cls("narrow"))) <= 1 / 6 + 0.02
