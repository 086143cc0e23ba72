"""Small members of every family, one row each, for tests of the contract."""

from __future__ import annotations

from mixtransfer.backbones import FAMILIES, Backbone, deit, swin

#: family -> the toy's size; built under the name "<family>_toy".
TOYS = {
    "deit": deit.Spec(16, 4, 2, img_size=64),
    "swin": swin.Spec(8, (1, 2, 2, 1), (1, 2, 2, 4), window=4, img_size=64),
}


def build_toy(family: str, **kwargs) -> Backbone:
    cls = next(cls for cls in FAMILIES if cls.family == family)
    toy = type(cls.__name__, (cls,), {"archs": {f"{family}_toy": TOYS[family]}})
    return toy(arch=f"{family}_toy", **kwargs)
