"""HorFPN and the gated fusion of UPerNet equal the published necks and heads, and take maps of any size."""

import mmdet.registry
import mmseg.registry
import pytest
import torch
from parity_records import assert_matches, both_precisions, image, published_state, record, records

from mixtransfer.transfer.hornet_heads import GatedFusion

NECK = dict(type="mixtransfer.HorFPN", in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5)
HEAD = dict(
    type="mixtransfer.HorUPerHead",
    in_channels=[8, 16, 32, 64],
    in_index=[0, 1, 2, 3],
    channels=8,
    num_classes=3,
    norm_cfg=dict(type="BN"),
    align_corners=False,
)


def build(config):
    """Build as a detector builds its neck and a segmentor its head."""
    return (mmdet if config["type"] == "mixtransfer.HorFPN" else mmseg).registry.MODELS.build(config)


def load(config, expected, gates, dtype):
    """Return the network of a record, and its maps; ``gates`` is the published entry that configures the gates."""
    arguments = dict(expected["source"]["kwargs"])
    gates = arguments.pop(gates)
    assert (gates["order"], gates["proj_out"]) == (2, True)
    options = {"global_filter": True} if gates["type"] == "gngf" else {"kernel_size": gates["kernel_size"]}
    if "norm_cfg" in arguments:
        # SyncBN runs on GPUs only, and evaluates as BN does.
        arguments["norm_cfg"] = {**arguments["norm_cfg"], "type": "BN"}
    net = build({**config, **arguments, **options}).to(dtype).eval()
    net.load_state_dict(published_state(expected, dtype))
    assert sum(p.numel() for p in net.parameters()) == expected["param_count"]
    levels = expected["input"]["levels"]
    maps = [image(x["height"], x["width"], expected["input"]["batch"], x["channels"]).to(dtype) for x in levels]
    return net, maps


@both_precisions
@pytest.mark.parametrize(("system", "name"), records("neck"))
def test_neck_equals_published(system, name, dtype, tolerance):
    expected = record(system, name)
    net, maps = load({"type": NECK["type"]}, expected, "gn_conv_cfg", dtype)
    with torch.no_grad():
        outputs = {f"out{index}": output for index, output in enumerate(net(maps))}
    assert outputs.keys() == expected["outputs"].keys()
    for key, output in outputs.items():
        assert_matches(output, expected["outputs"][key], tolerance, key)


@both_precisions
@pytest.mark.parametrize(("system", "name"), records("head"))
def test_head_equals_published(system, name, dtype, tolerance):
    expected = record(system, name)
    net, maps = load({"type": HEAD["type"]}, expected, "conv_cfg", dtype)
    with torch.no_grad():
        assert_matches(net(maps), expected["outputs"]["logits"], tolerance, "logits")
        assert_matches(net._forward_feature(maps), expected["outputs"]["features"], tolerance, "features")


def pyramid(height, width):
    sizes = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
    return [torch.randn(2, channels, *size) for channels, size in zip((8, 16, 32, 64), sizes, strict=True)]


@pytest.mark.parametrize("size", [(64, 64), (75, 101), (33, 160), (1, 1)])
@pytest.mark.parametrize("config", [NECK, {**NECK, "add_extra_convs": "on_input"}, HEAD], ids=["neck", "extra", "head"])
@pytest.mark.parametrize("wide", [dict(kernel_size=3), dict(global_filter=True)], ids=["3x3", "gf"])
def test_any_size_and_gradients(config, wide, size):
    net, maps = build({**config, **wide}), pyramid(*size)
    outputs = net(maps)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [tuple(m.shape[2:]) for m in outputs[:4]] == [tuple(m.shape[2:]) for m in maps[: len(outputs)]]
    sum(output.square().mean() for output in outputs).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_autocast_runs_close_to_float32():
    net, maps = build({**NECK, "global_filter": True}), pyramid(64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(maps)
    for a, b in zip(low, net(maps), strict=True):
        assert (a.float() - b).abs().mean() / b.std() < 0.1


def test_gates_have_no_scale():
    """At one position the answer is out(pw(p · q₀) · q₁), q weighted by the kernel's center alone."""
    net = GatedFusion(6, 4, kernel_size=3).double()
    x = torch.randn(1, 6, 1, 1).double()
    p, q = net.proj_in(x.flatten()).split([2, 6])
    q = q * net.dwconv.weight[:, 0, 1, 1] + net.dwconv.bias
    expected = net.proj_out(net.pws[0](p * q[:2]) * q[2:])
    torch.testing.assert_close(net(x).flatten(), expected, rtol=0, atol=1e-12)
