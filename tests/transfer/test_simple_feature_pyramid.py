"""ViTDet: attention in windows as detectron2 computes it, and the pyramid of one map."""

import torch
from toys import build_toy

from mixtransfer.backbones.base import evenly_spaced
from mixtransfer.transfer.simple_feature_pyramid import SimpleFeaturePyramid


def test_the_pyramid_has_the_strides_of_its_anchors():
    neck = SimpleFeaturePyramid([16], 8, 5)
    maps = neck((torch.randn(2, 16, 5, 7),))
    assert [tuple(x.shape[1:]) for x in maps] == [(8, 20, 28), (8, 10, 14), (8, 5, 7), (8, 3, 4), (8, 2, 2)]
    sum(x.square().mean() for x in maps).backward()
    assert [name for name, value in neck.named_parameters() if value.grad is None] == []


def test_blocks_attend_in_windows_but_for_four():
    """Windows of 3 on a grid of 4 × 5, padded with zeros behind the norm, without a class token."""
    net = build_toy("deit", window=3, out_indices=(0,)).double().eval()
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    images = torch.randn(2, 3, 64, 80).double()
    assert evenly_spaced(4) == [0, 1, 2, 3]
    net.depth = 8  # so that the first block is one of those in windows
    (found,) = net(images)

    x, _, grid = net.tokens(images, None)
    x, block = x[:, 1:], net.blocks[0]
    y = torch.nn.functional.pad(block.norm1(x).unflatten(1, grid), (0, 0, 0, 1, 0, 2))
    out = torch.zeros_like(y)
    for top in (0, 3):
        for left in (0, 3):
            part = y[:, top : top + 3, left : left + 3].flatten(1, 2)
            out[:, top : top + 3, left : left + 3] = block.attn(part, None)[0].unflatten(1, (3, 3))
    x = x + out[:, :4, :5].flatten(1, 2)
    x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(found, x.transpose(1, 2).unflatten(2, grid), rtol=0, atol=1e-12)


def test_labels_keep_their_mass_and_every_parameter_learns():
    net = build_toy("deit", window=3)
    net.depth = 8
    labels = torch.rand(2, 3, 4, 5).softmax(dim=1)
    maps, aligned = net(torch.randn(2, 3, 64, 80), labels)
    for label in aligned:
        torch.testing.assert_close(label.sum(dim=1), torch.ones_like(label[:, 0]))
    sum(x.square().mean() for x in maps).backward()
    assert [k for k, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not net.cls_token.requires_grad
