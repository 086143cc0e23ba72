"""How far an output sees: on an image of 448 × 672, three by two of the tiles that published classifiers take.

What does not depend on a pixel keeps its bits when the pixel changes. docs/design.md has the table.
"""

from __future__ import annotations

import pytest
import torch
from recipes import read

from mixtransfer.backbones import FAMILIES, mixmim, msg_transformer, posmlp
from mixtransfer.backbones.mlp_mixer import resampling
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
    # A few tokens round away what reaches them.
    assert min(third, last) > 0.99
    assert max(reach(cls("narrow"))) <= 1 / 6 + 0.02


#: Family -> share of each output's tokens that the corner reaches, for the networks of the Mask R-CNN recipes. What is
#: below 1 has a reason in docs/design.md.
SHARES = {
    **dict.fromkeys(("deit", "tnt", "pyramid_tnt", "hire_mlp", "pvt", "pvt_v2", "cait", "regionvit"), (1, 1, 1, 1)),
    **dict.fromkeys(("cmt", "fcvit", "sequencer2d", "mlp_mixer", "dynamicvit"), (1, 1, 1, 1)),
    "sret": (1, 1, 1),
    "raft_mlp": (0.004, 1, 1, 1),
    "hornet": (0.010, 0.054, 1, 1),
    "fan": (0.015, 0.069, 1, 1),
    "convmixer": (0.344, 0.896, 1, 1),
    "swin": (0.017, 0.069, 0.762, 1),
    "fan_swin": (1, 1, 1, 1),
    "swin_mlp": (0.008, 0.041, 0.714, 1),
    "dynamicvit_swin": (0.017, 0.069, 1, 1),
    "dynamicvit_convnext": (0.015, 0.069, 1, 1),
    "mixmim": (0.007, 0.007, 1, 1),
    "msg_transformer": (0.042, 0.167, 1, 1),
    "posmlp": (0.023, 0.094, 1, 1),
}


@pytest.mark.long
@pytest.mark.parametrize("family", [cls.family for cls in FAMILIES])
def test_reach_of_every_familys_recipe(family):
    backbone = {**read(f"det/mask_rcnn_{family}.py").model.backbone, "init_cfg": None, "drop_path_rate": 0.0}
    backbone.pop("out_indices", None)
    assert reach(MODELS.build(backbone)) == pytest.approx(SHARES[family], abs=0.002)


@pytest.mark.parametrize(("old", "new"), [(28, 14), (42, 14), (33, 14), (5, 14), (1, 14), (3, 1)])
def test_mlp_mixer_sees_all_of_a_map_that_it_shrinks(old, new):
    """Its resampling is a triangle as wide as a pixel of the coarser line, clamped where it enlarges."""
    width = max(old / new, 1.0)
    center = (torch.arange(new).double() + 0.5) * old / new - 0.5
    if new > old:
        center = center.clamp(0, old - 1)
    weights = (1 - (torch.arange(old) - center[:, None]).abs() / width).clamp(min=0)
    expected = weights / weights.sum(dim=1, keepdim=True)
    torch.testing.assert_close(resampling(old, new, center.device, torch.float64), expected, rtol=0, atol=1e-6)
