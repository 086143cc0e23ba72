"""What single families do beyond the contract: other sizes than the published ones, and fast forms of slow formulas."""

import pytest
import torch
import torch.nn.functional as F
from parity_records import load_official
from toys import build_toy

import mixtransfer
from mixtransfer.backbones import pyramid_tnt, regionvit, sret


@pytest.mark.parametrize("family", ["tnt", "pyramid_tnt", "mixmim", "sret"])
def test_a_checkpoint_of_another_image_size_loads_resampled(family):
    small, large = build_toy(family, with_embedding=True), build_toy(family, img_size=128, with_embedding=True)
    loaded = large.resize_loaded(small.state_dict())
    assert any(loaded[key].shape != value.shape for key, value in small.state_dict().items())
    large.load_state_dict(loaded)


def test_pair_table_is_resampled_over_patches_then_over_keys():
    table = torch.randn(1, 2, 12, 10).double()
    resized = pyramid_tnt.resize_pair_table(table, ((3, 4), (2, 5)), ((5, 6), (3, 4)))
    for head in range(2):
        columns = [F.interpolate(table[0, head, :, m].view(1, 1, 3, 4), size=(5, 6), mode="bicubic") for m in range(10)]
        rows = torch.stack([column.flatten() for column in columns], dim=1)
        for row, expected in zip(resized[0, head], rows, strict=True):
            plain = F.interpolate(expected.view(1, 1, 2, 5), size=(3, 4), mode="bicubic")
            torch.testing.assert_close(row, plain.flatten(), rtol=0, atol=1e-12)


def test_mixed_images_do_not_see_each_other():
    """Tokens of one image stay the same when its partner changes, also in windows with padding."""
    net = build_toy("mixmim", with_embedding=True).double().eval()
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 1, 1]])
    images = torch.randn(3, 3, 96, 128).double()
    changed = images.clone()
    changed[2] = torch.randn(3, 96, 128)
    with torch.no_grad():
        first, second = net.encode_mixed(images, mask)[0], net.encode_mixed(changed, mask)[0]
    own = mask.flatten() == 0
    torch.testing.assert_close(first[own], second[own], rtol=0, atol=1e-12)
    assert (first[~own] - second[~own]).abs().min() > 1e-6


@pytest.mark.parametrize(("size", "grid"), [((7, 10), (2, 3)), ((8, 9), (3, 3)), ((3, 12), (1, 3)), ((8, 8), (2, 2))])
def test_attention_in_padded_regions_equals_the_published_masking(size, grid):
    """Values and gradients of filling forbidden logits with the smallest number, which padded queries attend evenly."""
    torch.manual_seed(0)
    attention = regionvit.Attention(64, window=4).double()
    regions = regionvit.Regions(size, grid, 4, torch.device("cpu"))
    x = torch.randn(2 * regions.count, 17, 64).double().requires_grad_()
    q, k, v = attention.project(x)
    logits = q @ k.transpose(-1, -2) * 32**-0.5 + F.pad(attention.rel_pos[:, attention.index], (1, 0, 1, 0))
    if regions.mask is not None:
        allowed = (regions.mask == 0) & ~regions.idle
        logits = logits.masked_fill(~allowed.repeat(2, 1, 1, 1), torch.finfo(x.dtype).min)
    plain = attention.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    fast, _ = attention.local(x, regions, None)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)
    weights = torch.randn_like(plain)
    sources = [x, *attention.parameters()]
    for a, b in zip(
        torch.autograd.grad((fast * weights).sum(), sources),
        torch.autograd.grad((plain * weights).sum(), sources),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_rotated_table_keeps_neighboring_offsets_together():
    index = regionvit.rotated_index(5)
    y, x = torch.arange(25) // 5, torch.arange(25) % 5
    table = torch.empty(1, 81)
    table[0, index.flatten()] = (10.0 * (y[None] - y[:, None]) + (x[None] - x[:, None])).flatten()
    assert torch.equal(regionvit.resize_rotated_table(table, 5), table)
    center = regionvit.resize_rotated_table(table, 10)[0, regionvit.rotated_index(10)[55]].view(10, 10)
    assert (center.diff(dim=0) > 0).all() and (center.diff(dim=1) > 0).all()


def test_detectors_with_larger_windows_load_a_classifier():
    classifier = mixtransfer.build_backbone("regionvit_small", out_indices=())
    detector = mixtransfer.build_backbone("regionvit_small_w14_peg", with_embedding=False)
    report = load_official(detector, classifier.state_dict(), "regionvit_small", "mixtransfer")
    assert "cls_token.proj.weight" in report.resized and "layers.0.block.1.attn.rel_pos" in report.resized
    assert all("peg" in name or name.startswith("norm") for name in report.new)


def test_messengers_swap_chunk_by_chunk():
    """Messenger d becomes chunk d of every messenger of its region, in order; patches stay."""
    block = build_toy("msg_transformer").layers[0].blocks[0].eval()
    for part in (block.attn.proj, block.mlp.fc2):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    x = torch.randn(3, 4, 5, 16)
    with torch.no_grad():
        out, labels = block(x, torch.rand(3, 4, 5, 2))
    for d in range(4):
        swapped = torch.cat([x[:, s, 0, 4 * d : 4 * d + 4] for s in range(4)], dim=-1)
        torch.testing.assert_close(out[:, d, 0], swapped, rtol=0, atol=0)
    torch.testing.assert_close(out[:, :, 1:], x[:, :, 1:], rtol=0, atol=0)
    assert (labels[:, :, 0] == labels[:, :1, 0]).all()


@pytest.mark.parametrize(("tokens", "slices", "lengths"), [(10, 4, [3, 3, 2, 2]), (8, 4, [2] * 4), (2, 4, [1, 1])])
def test_slices_of_any_number_of_tokens(tokens, slices, lengths):
    """Slices attend inside themselves, in the given order, and tokens and labels come back in their own."""
    attention = sret.Attention(8, heads=2).double()
    x, labels, order = torch.randn(2, tokens, 8).double(), torch.rand(2, tokens, 3).double(), torch.randperm(tokens)
    out, attended = attention(x, torch.tensor(0.5), slices, (order, order.argsort()), labels)
    for part in order.split(lengths):
        plain, moved = attention(x[:, part], torch.tensor(0.5), 1, None, labels[:, part])
        torch.testing.assert_close(out[:, part], plain, rtol=0, atol=1e-12)
        torch.testing.assert_close(attended[:, part], moved, rtol=0, atol=1e-12)


def test_orders_are_fixed_in_evaluation_and_can_be_replayed():
    net = build_toy("sret").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first = net(x)[0]
        assert torch.equal(first, net(x)[0])
        net.orders[64, 0] = torch.arange(64)
        assert not torch.equal(first, net(x)[0])


def test_shared_weights_appear_under_both_published_names():
    for family, pair in (
        ("sret", ("transformers.0.blocks.0.attn.qkv.weight", "transformers.0.blocks.2.attn.qkv.weight")),
        ("regionvit", ("layers.1.block.0.proj.2.weight", "layers.1.block.0.proj_cls.2.weight")),
    ):
        state = build_toy(family).state_dict()
        assert state[pair[0]].data_ptr() == state[pair[1]].data_ptr()


def test_windows_of_the_published_mixmim_networks():
    from mixtransfer.backbones.mixmim import published_windows

    assert published_windows((56, 28, 14, 7)) == (14, 14, 14, 7)
    assert published_windows((64, 32, 16, 8)) == (16, 16, 16, 8)
    assert published_windows((96, 48, 24, 12)) == (16, 16, 24, 12)
