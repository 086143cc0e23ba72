"""PosMLP's token mixing: the formulas as the paper writes them, and padding."""

import pytest
import torch
import torch.nn.functional as F

from mixtransfer.backbones import posmlp
from mixtransfer.layers.windows import OffsetWindows


def plain_matrices(kind: str, pos: torch.nn.Module, window: int) -> torch.Tensor:
    """Return the matrices of a position map pair by pair."""
    groups = len(pos.attention_centers) if "qpe" in kind else pos.window_relative_position_bias_table.size(1)
    scores = torch.empty(groups, window**2, window**2).double()
    for m in range(window**2):
        for n in range(window**2):
            (row, column), (source_row, source_column) = divmod(m, window), divmod(n, window)
            if kind == "lrpe":
                offset = (row - source_row + window - 1) * (2 * window - 1) + column - source_column + window - 1
                scores[:, m, n] = pos.window_relative_position_bias_table[offset]
                continue
            offset = torch.tensor([source_column - column, row - source_row]).double()
            for s in range(groups):
                center, spread = pos.attention_centers[s], pos.attention_spreads[s]
                if kind == "gqpe":
                    scores[s, m, n] = -0.5 * (offset - center) @ spread @ spread.T @ (offset - center)
                else:
                    scores[s, m, n] = spread**2 * center @ offset - 0.5 * offset @ offset
    return scores if kind == "lrpe" else scores.softmax(dim=2)


@pytest.mark.parametrize("kind", ["gqpe", "qpe", "lrpe"])
def test_matrices_equal_the_formula(kind):
    torch.manual_seed(0)
    gate = posmlp.Gate(3, 2, kind).double()
    for p in gate.parameters():
        p.data += 0.3 * torch.randn_like(p)
    with torch.no_grad():
        expected = plain_matrices(kind, gate.pos, 3)
        torch.testing.assert_close(gate.matrices(), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(gate.matrices(), expected, rtol=0, atol=1e-12)
        next(gate.pos.parameters()).add_(1)
        torch.testing.assert_close(gate.matrices(), plain_matrices(kind, gate.pos, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["gqpe", "lrpe"])
def test_padding_is_left_out_of_the_mixing(kind):
    """A 3 × 5 map in windows of 2: each token is the mean over the real tokens of its window, whatever the padding."""
    torch.manual_seed(0)
    groups, per_group, batch = 2, 3, 2
    gate = posmlp.Gate(2, groups, kind).double()
    for p in gate.parameters():
        p.data += 0.3 * torch.randn_like(p)
    valid = OffsetWindows((3, 5), 2).valid(torch.device("cpu"))
    windows = len(valid)
    u, v = torch.randn(2, groups * per_group, batch * windows * 4).double()
    out = gate(u, v, valid).view(groups, per_group, batch, windows, 4)
    scores = gate.matrices().unsqueeze(1).expand(-1, windows, -1, -1)
    if kind == "gqpe":
        scores = scores.log().masked_fill(valid[:, None] == 0, -torch.inf).softmax(dim=3)
    else:
        scores = scores * valid[:, None]
    mixed = torch.einsum("gwmn,gvbwn->gvbwm", scores, u.view(out.shape)) + gate.pos.token_proj_n_bias.view(-1)
    torch.testing.assert_close(out, mixed * v.view(out.shape), rtol=0, atol=1e-12)


def test_block_equals_the_published_order_of_channels():
    """Channel c of the gated half belongs to group c mod g."""
    torch.manual_seed(0)
    block = posmlp.Block(6, 4, window=2, groups=3, position="gqpe", drop_path=0.0).double()
    x = torch.randn(2, 8, 6).double()
    u, v = F.gelu(block.proj_c_e(block.norm(x))).view(2, 2, 4, 24).chunk(2, dim=-1)
    u = torch.einsum("smn,bwnvs->bwmvs", block.gate_unit.matrices(), u.unflatten(-1, (4, 3))).flatten(-2)
    expected = x + block.proj_c_s((u + block.gate_unit.pos.token_proj_n_bias) * v).flatten(1, 2)
    torch.testing.assert_close(block(x, None), expected, rtol=0, atol=1e-12)
