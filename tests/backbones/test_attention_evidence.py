"""Attention of the last block as evidence, for every family that has attention: against its labels, and refusals."""

import pytest
import torch
from toys import TOYS, build_toy

from mixtransfer.backbones.base import ATTENTION
from mixtransfer.errors import UserError

FAMILIES = [family for family in TOYS if set(ATTENTION) <= set(build_toy(family).evidence)]
#: Sides of images whose last map one window of the toy covers without padding.
SIDES = {"mixmim": 64, "msg_transformer": 64}
KEPT = {"dynamicvit": dict(keep_rate=1.0), "dynamicvit/lvvit": dict(keep_rate=1.0)}
#: Families whose embedding is read from a token that is no patch.
CLASS_TOKEN = {"deit", "tnt", "pvt", "regionvit", "msg_transformer", "dynamicvit", "dynamicvit/lvvit"}
CHANNELS = 5


def last_block(net):
    return net._last_block()


def labels_through(module, run):
    """Return the label rows (…, K), some with a count of them, that enter and leave a module in its last call."""
    found = {}

    def keep(_, args, output):
        (found["before"],) = [x for x in args if torch.is_tensor(x) and x.size(-1) in (CHANNELS, CHANNELS + 1)]
        (found["after"],) = [x for x in output if torch.is_tensor(x) and x.size(-1) in (CHANNELS, CHANNELS + 1)]

    handle = module.register_forward_hook(keep)
    run()
    handle.remove()
    return [found[key].flatten(0, -3) for key in ("before", "after")]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_move_by_the_attention_that_is_told(family, mode):
    """A label becomes the mean of itself and of what its token attended to (TL-Align), by another way of computing."""
    torch.manual_seed(0)
    net = build_toy(family, with_embedding=True, **(KEPT.get(family, {}) if mode == "eval" else {})).double()
    net.train(mode == "train")
    side = SIDES.get(family, 128)
    images = torch.randn(3, 3, side, side, dtype=torch.float64)
    shares = torch.rand(3, CHANNELS, 16, 16, dtype=torch.float64)

    torch.manual_seed(1)
    seen = net.embed_with_evidence(images, ATTENTION)
    torch.manual_seed(1)
    before, after = labels_through(last_block(net), lambda: net.embed(images, shares))
    torch.manual_seed(1)
    torch.testing.assert_close(seen["vector"], net.embed(images), rtol=0, atol=1e-12)
    moved = 2 * after - before
    first = family in CLASS_TOKEN
    for name, rows in (
        ("image_attention", slice(int(first), None)),
        ("class_attention", slice(0, 1 if first else None)),
    ):
        if name == "class_attention" and family.startswith(("fan", "cait")):
            continue  # its class token attends in blocks of its own, see below
        attention = seen[name].flatten(1)
        assert attention.shape[1] + first == before.shape[1] and not attention.requires_grad
        expected = torch.einsum("bn,bnk->bk", attention, before[:, int(first) :])
        if first:
            expected = expected + (1 - attention.sum(1, keepdim=True)) * before[:, 0]
        torch.testing.assert_close(moved[:, rows].mean(1), expected, rtol=0, atol=1e-12)
    assert seen["tokens"].shape == (3, net.embed_channels, *seen["image_attention"].shape[1:])


@pytest.mark.parametrize("family", ["fan", "fan/vit", "cait"])
def test_a_class_token_attends_in_the_last_class_block(family):
    torch.manual_seed(0)
    net = build_toy(family, with_embedding=True).double().eval()
    images, shares = torch.randn(2, 3, 64, 64).double(), torch.rand(2, CHANNELS, 4, 4).double()
    blocks = net.cls_attn_blocks if family.startswith("fan") else net.blocks_token_only
    seen = net.embed_with_evidence(images, ("class_attention",))["class_attention"].flatten(1)
    before, attended = labels_through(blocks[-1].attn, lambda: net.embed(images, shares))
    expected = torch.einsum("bn,bnk->bk", seen, before[:, 1:]) + (1 - seen.sum(1, keepdim=True)) * before[:, 0]
    torch.testing.assert_close(attended[:, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["swin", "dynamicvit_swin", "regionvit", "msg_transformer"])
def test_a_window_larger_than_the_map_counts_for_its_tokens_alone(family):
    """Rows of padded slots are no patches; what goes to them is left out."""
    torch.manual_seed(0)
    net = build_toy(family, with_embedding=True).double().eval()
    side, first = (32 if family == "msg_transformer" else 80), family in CLASS_TOKEN
    images, calls = torch.randn(2, 3, side, side).double(), []
    attn = last_block(net).attn
    # The values follow the keys: attention is softmax(q kᵀ) for whichever values, here those of single slots.
    inputs = {}
    name = "local" if family == "regionvit" else "forward"
    plain = getattr(attn, name)
    setattr(attn, name, lambda x, *args: (inputs.update(x=x, args=args), calls.append(1), plain(x, *args))[-1])
    seen = net.embed_with_evidence(images, ATTENTION)
    setattr(attn, name, plain)
    height, width = seen["image_attention"].shape[1:]
    x = inputs["x"]
    if family in ("swin", "dynamicvit_swin"):
        grid = inputs["args"][0]
        q, k, _ = grid.split(attn.qkv(x), attn.qkv.bias, attn.heads)
        bias, window = attn.bias(grid), grid.window
    elif family == "regionvit":
        regions = inputs["args"][0]
        q, k, _ = attn.project(x)
        q = q.unflatten(0, (-1, 1)).masked_fill(regions.idle, 0).flatten(0, 1)
        bias, window = attn.bias(regions), net.window
    else:
        qkv = attn.qkv(x).flatten(0, 1).unflatten(2, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, bias, window = qkv[0], qkv[1], attn.bias(), net.window
    maps = (q @ k.transpose(2, 3) / q.size(-1) ** 0.5 + bias).softmax(-1).mean(1)
    assert window > max(height, width) and calls == [1]
    patches = maps[:, first:, first:].unflatten(2, (window, window))[..., :height, :width]
    own = patches.unflatten(1, (window, window))[:, :height, :width]
    torch.testing.assert_close(seen["image_attention"], own.flatten(1, 2).mean(1), rtol=0, atol=1e-12)
    if first:
        row = maps[:, 0, 1:].unflatten(1, (window, window))[:, :height, :width]
        torch.testing.assert_close(seen["class_attention"], row, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["dynamicvit", "dynamicvit/lvvit"])
def test_nobody_attends_to_tokens_that_were_dropped(family):
    torch.manual_seed(0)
    net = build_toy(family, with_embedding=True).double().eval()
    images, entered = torch.randn(2, 3, 64, 64).double(), []
    handle = net.blocks[-1].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    seen = net.embed_with_evidence(images, ATTENTION)
    handle.remove()
    kept = entered[0].size(1) - 1
    assert kept < 16
    for name in ("class_attention", "image_attention"):
        assert ((seen[name] > 0).flatten(1).sum(1) == kept).all()
    # Dropped tokens are told as they were when they were dropped: those of the dense maps.
    dense = build_toy(family, with_embedding=True, out_indices=(3,)).double().eval()
    dense.load_state_dict(net.state_dict())
    (last,), _ = dense.dense(images, None)
    torch.testing.assert_close(seen["tokens"], net.norm(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("family", "size", "most"),
    [
        ("swin", 160, 128),
        ("mixmim", 96, 64),
        ("dynamicvit_swin", 160, 128),
        ("regionvit", 160, 128),
        ("msg_transformer", 128, 64),
    ],
)
def test_a_last_block_that_sees_only_windows_is_refused_with_the_size_at_which_it_does(family, size, most):
    net = build_toy(family, with_embedding=True)
    images = torch.randn(1, 3, size, size)
    with pytest.raises(UserError, match=f"no attention covers the image; train on images of at most {most} × {most}"):
        net.embed_with_evidence(images, ("image_attention",))
    assert net.embed_with_evidence(images, ("tokens",))["tokens"].isfinite().all()


@pytest.mark.parametrize("family", ["swin", "cait", "pvt", "dynamicvit"])
def test_stochastic_depth_and_recomputing_leave_no_sample_out(family):
    torch.manual_seed(0)
    net = build_toy(family, with_embedding=True, drop_path_rate=0.5).train()
    images = torch.randn(6, 3, 64, 64)
    runs = []
    for with_cp in (False, True):
        net.with_cp = with_cp
        net.zero_grad()
        torch.manual_seed(2)
        seen = net.embed_with_evidence(images, ATTENTION)
        assert (seen["image_attention"].sum(dim=(1, 2)) > 0).all() and len(seen["image_attention"]) == 6
        seen["vector"].square().sum().backward()
        runs.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    assert runs[0].keys() == runs[1].keys()
    for name, grad in runs[0].items():
        torch.testing.assert_close(runs[1][name], grad)
