"""``docs/mixing.md`` names every part that there is, and its own method trains."""

import re
from pathlib import Path

import pytest
import torch

import mixtransfer
from mixtransfer.mixing import Mixing, Region, Target
from mixtransfer.registry import MODELS
from mixtransfer.transfer import TokenMixHook

DOCS = Path(__file__).parents[2] / "docs"
#: Said of each; ``Mixing`` is any pair.
PAGE = (DOCS / "mixing.md").read_text(encoding="utf-8")


def parts(base: type) -> set[str]:
    found = {cls for cls in MODELS.module_dict.values() if isinstance(cls, type) and issubclass(cls, base)}
    return {cls.__name__ for cls in found if cls.__module__.startswith("mixtransfer.mixing")}


@pytest.mark.parametrize("base", [Mixing, Region, Target])
def test_every_part_is_on_the_page(base):
    assert [name for name in sorted(parts(base)) if f"`{name}`" not in PAGE and f'"{name}"' not in PAGE] == []


def test_every_region_of_the_hook_is_on_its_page_or_refused():
    page = (DOCS / "token_mix_hook.md").read_text(encoding="utf-8")
    assert [name for name in sorted(parts(Region)) if f"`{name}`" not in page] == []
    for line in re.findall(r"^\| (`.*?) \|", page.partition("| region | pixels")[2], re.MULTILINE):
        for name in re.findall(r"`(\w+)`", line):
            if name in parts(Region) - {"RandomChoice"}:
                TokenMixHook(dict(type=name))


def test_a_method_of_ones_own_is_short_and_trains():
    region, target, method = re.findall(r"```python\n(.*?)```", PAGE.partition("## Writing your own")[2], re.DOTALL)
    names, room = ("RightSide", "Attended", "SideMix"), {"__name__": "sidemix"}
    try:
        for code, name in zip((region, target, method), names, strict=True):
            assert len(code.splitlines()) < 60
            exec(code, room)
            assert name in MODELS.module_dict
        net = mixtransfer.build_classifier("deit_tiny", 3, mixing=dict(type="SideMix")).train()
        (loss,) = net.loss(torch.randn(2, 3, 48, 48), torch.tensor([0, 2])).values()
        loss.backward()
        assert loss.isfinite()
        TokenMixHook(dict(type="RightSide"))
        # Each alone goes with any other.
        for region, target in (("RightSide", "Area"), ("Box", "Attended")):
            pair = dict(type="Mixing", region=dict(type=region), target=dict(type=target))
            net = mixtransfer.build_classifier("deit_tiny", 3, mixing=pair).train()
            assert net.loss(torch.randn(2, 3, 48, 48), torch.tensor([0, 2]))["loss"].isfinite()
    finally:
        for name in names:
            MODELS.module_dict.pop(name, None)
