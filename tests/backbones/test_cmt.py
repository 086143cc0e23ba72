"""CMT's pair bias at other sizes: no published number covers it."""

import torch

from mixtransfer.backbones.cmt import resize_pair_bias


def coordinates(grid):
    """Return the (row, column) centers of a grid of tokens on the unit square, (h·w, 2)."""
    rows, columns = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in grid)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)


def test_a_resampled_pair_bias_keeps_the_geometry_of_queries_and_keys():
    """A bias that is linear in the four coordinates stays that function of them, borders aside.

    torch's bicubic kernel follows a line to 1 % only; mixing up axes or rows is off by the range of the values, 6.
    """

    def bias(queries, keys):
        q, k = coordinates(queries), coordinates(keys)
        weights = torch.tensor([[1.0, -3.0], [0.5, 2.0]], dtype=torch.float64)
        return (q @ weights[0])[None, :, None] + (k @ weights[1])[None, None, :]

    old, new = ((16, 24), (8, 12)), ((20, 30), (10, 12))
    resized = resize_pair_bias(bias(*old), old, new)
    inner = (slice(None), slice(3, -3), slice(3, -3), slice(3, -3), slice(3, -3))
    shape = (1, *new[0], *new[1])
    torch.testing.assert_close(resized.view(shape)[inner], bias(*new).view(shape)[inner], rtol=0, atol=0.02)
