"""RaftMLP beyond the published maps: the output of its first level, and resampling by matrices."""

import pytest
import torch
import torch.nn.functional as F
from toys import build_toy

from mixtransfer.backbones import raft_mlp
from mixtransfer.errors import UserError


def test_first_output_is_what_the_second_level_reads():
    published = build_toy("raft_mlp").double().eval()
    net = build_toy("raft_mlp", first_output="blocks").double().eval()
    net.load_state_dict(published.state_dict())
    x = torch.randn(2, 3, 75, 101).double()
    first, second, *_ = net(x)
    level = net.levels[1]
    expected = level.blocks[0](level.embed(first.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    torch.testing.assert_close(second, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(published(x)[1], second, rtol=0, atol=1e-12)
    assert (published(x)[0] - first).abs().max() > 1e-3
    with pytest.raises(UserError, match="first_output"):
        build_toy("raft_mlp", first_output="level")


@pytest.mark.parametrize("size", [(5, 11), (9, 4), (1, 7), (3, 8)])
def test_resampling_equals_interpolation_with_its_gradient(size):
    x = torch.randn(2, 7, 4, 3, dtype=torch.float64, requires_grad=True)
    fast = raft_mlp.resample(x, size)
    plain = F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)
    probe = torch.randn_like(plain)
    gradients = [torch.autograd.grad((out * probe).sum(), x)[0] for out in (fast, plain)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
