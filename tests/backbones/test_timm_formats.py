"""Networks that no published record covers compute what timm's do, from timm's key names, and write them back."""

import pytest
import timm.layers
import torch
from timm.models.cait import Cait
from timm.models.pvt_v2 import PyramidVisionTransformerV2

from mixtransfer.backbones.cait import CaiT
from mixtransfer.backbones.cait import Spec as CaiTSpec
from mixtransfer.backbones.pvt import PVTv2
from mixtransfer.backbones.pvt import Spec as PVTSpec
from mixtransfer.layers import init

DEPTHS, CHANNELS, HEADS = (1, 2, 1, 1), (8, 8, 16, 16), (1, 1, 2, 2)


def cait_pair():
    theirs = Cait(img_size=64, embed_dim=16, depth=4, num_heads=2, init_values=0.5, num_classes=0)
    return theirs, CaiT, CaiTSpec(16, 4, 2, layer_scale=0.5, img_size=64), list(range(4))


def pvt_pair(linear):
    theirs = PyramidVisionTransformerV2(
        depths=DEPTHS, embed_dims=CHANNELS, num_heads=HEADS, mlp_ratios=(2, 2, 2, 2), linear=linear, num_classes=0
    )
    return theirs, PVTv2, PVTSpec(DEPTHS, CHANNELS, HEADS, (2, 2, 2, 2), linear=linear), list(range(4))


@pytest.mark.parametrize(
    ("pair", "size"),
    [(cait_pair, (64, 64)), (lambda: pvt_pair(False), (75, 101)), (lambda: pvt_pair(True), (75, 101))],
    ids=["cait", "pvt_v2", "pvt_v2_li"],
)
def test_equals_timm_from_its_names(pair, size):
    theirs, family, spec, indices = pair()
    theirs = theirs.double().eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p += 0.1 * torch.randn_like(p)
    toy = type(family.__name__, (family,), {"archs": {"toy": spec}})
    ours = toy(arch="toy", out_indices=indices, with_embedding=True).double().eval()
    published = theirs.state_dict()
    state, dropped = family.formats()["timm"].to_ours(published)
    ours.load_state_dict(state)
    assert not dropped and family.formats()["timm"].to_theirs(state)[0].keys() == published.keys()
    x = torch.randn(2, 3, *size).double()
    with torch.no_grad():
        torch.testing.assert_close(ours.embed(x), theirs(x), rtol=0, atol=1e-10)
        maps = theirs.forward_intermediates(x, indices=indices, intermediates_only=True)
        for a, b in zip(ours(x), maps, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "arguments"), [("trunc_normal_", {"std": 0.02}), ("trunc_normal_", {"std": 1.0}), ("lecun_normal_", {})]
)
def test_initial_values_are_timms(name, arguments):
    """Written here, so that a conversion to our names need not import timm."""
    values = []
    for module in (timm.layers, init):
        torch.manual_seed(0)
        values.append(torch.empty(8, 3, 4, 4))
        getattr(module, name)(values[-1], **arguments)
    assert torch.equal(*values) and values[0].std() > 0
