"""Networks in ``torch.jit.trace`` and ``torch.export``, as users call them: any number of images, the eager answers."""

import pytest
import torch
from toys import TOYS, build_toy

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
#: One of each way to count: windows under tables, under regions, orders of tokens, chosen positions. The rest is long.
TRACED = ("swin", "regionvit", "sret", "dynamicvit_swin")
EXPORTED = ("swin",)


def some(names):
    return [pytest.param(name, marks=[] if name in names else pytest.mark.long) for name in TOYS]


def differences(run, net):
    with torch.no_grad():
        return [float((a - b).abs().max()) for a, b in zip(run(IMAGES), net(IMAGES), strict=True)]


@pytest.mark.parametrize("name", some(TRACED))
def test_a_trace_of_one_image_answers_about_several(name):
    """torch's own check, which traces twice, sees the same graph: nothing is kept from the first time."""
    net = build_toy(name).eval()
    with torch.no_grad():
        traced = torch.jit.trace(net, IMAGES[:1])
    assert max(differences(traced, net)) < 1e-5


@pytest.mark.parametrize("name", some(EXPORTED))
def test_the_number_of_images_is_free_in_an_export(name):
    net = build_toy(name).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(net, (IMAGES[:2],), dynamic_shapes=({0: batch},))
    assert max(differences(program.module(), net)) < 1e-5
