"""The published way of computing each family: it really is another way, and it leads to the same numbers."""

from __future__ import annotations

import json

import pytest
import torch
from toys import TOYS, build_toy

from benchmarks import command, families
from benchmarks.originals import WAYS, as_published
from benchmarks.speed import Result, speedups
from mixtransfer.backbones import FAMILIES
from mixtransfer.layers import cpu

every_toy = pytest.mark.parametrize("family", sorted(name for name in TOYS if name.split("/")[0] in WAYS))


#: Side of the images, where the published code runs at none of 64 pixels: its windows are larger than the last map.
SIDES = {"dynamicvit_swin": 128}


def shaken(family):
    """Return a toy whose layer scales, biases and positions all change its maps."""
    torch.manual_seed(0)
    net = build_toy(family)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return net


@every_toy
def test_modules_change_their_way_but_nothing_else_and_ours_stay(family):
    net = shaken(family)
    kinds = [type(module) for module in net.modules()]
    published = as_published(net)
    assert [type(module) for module in net.modules()] == kinds
    assert any(type(module) is not kind for module, kind in zip(published.modules(), kinds, strict=True))
    assert all(isinstance(module, kind) for module, kind in zip(published.modules(), kinds, strict=True))
    state = published.state_dict()
    assert list(state) == list(net.state_dict())
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


def test_every_published_way_has_a_recipe_that_its_code_runs():
    assert set(families.RECIPES) == set(WAYS)
    for name, recipe in families.RECIPES.items():
        assert recipe.arch in next(cls for cls in FAMILIES if cls.family == name).archs
        assert recipe.size % recipe.multiple == 0


@every_toy
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_maps_and_gradients_are_ours(family, training):
    ours = shaken(family).train(training)
    published = as_published(ours).train(training)
    side = SIDES.get(family, 64)
    images = torch.randn(2, 3, side, side)
    found = []
    for net in (ours, published):
        torch.manual_seed(1)  # SReT draws its orders, DynamicViT the tokens that it drops in training
        maps = net(images)
        torch.autograd.backward(maps, [torch.linspace(-1, 1, x.numel()).view_as(x) for x in maps])
        gradients = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
        found.append([*(x.detach() for x in maps), torch.cat(gradients)])
    for want, got in zip(*found, strict=True):
        assert (got - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize(
    "family", ["swin", "raft_mlp", "hire_mlp", "hornet", "regionvit", "fan", "pvt", "pvt_v2", "dynamicvit_convnext"]
)
def test_dense_codes_of_any_size_are_followed_at_an_odd_size(family):
    ours = shaken(family).eval()
    images = torch.randn(2, 3, 75, 101)
    with torch.no_grad():
        for want, got in zip(ours(images), as_published(ours)(images), strict=True):
            assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_maps_that_are_widened_in_parts_are_the_same(monkeypatch):
    """Evaluation cuts what training computes at once; here into parts of a row or two, at an odd size."""
    monkeypatch.setattr(cpu, "CHUNK_VALUES", 1)
    images = torch.randn(2, 3, 75, 101)
    for family in ("swin", "pvt_v2", "fcvit", "cmt", "hornet"):
        net = shaken(family).eval()
        whole = net(images)
        with torch.no_grad():
            for want, got in zip(whole, net(images), strict=True):
                assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_stochastic_depth_computes_everything_and_masks():
    """A dropped sample keeps its input, a kept one gets its branch divided by the share that is kept."""
    net = as_published(build_toy("deit", drop_path_rate=0.5)).double()
    block = net.blocks[-1]
    x = torch.randn(64, 5, 16, dtype=torch.float64)
    block.attn.proj.weight.data.zero_()
    block.attn.proj.bias.data.zero_()
    with torch.no_grad():
        moved = block(x, None)[0] - x
        whole = 2 * (block.eval()(x, None)[0] - x)
    kept = moved.flatten(1).any(dim=1)
    assert 0 < kept.sum() < len(x)
    torch.testing.assert_close(moved[kept], whole[kept])


def test_another_weight_stops_the_comparison():
    ours = shaken("pvt")
    published = as_published(ours)
    with torch.no_grad():
        published.block3[0].mlp.fc1.weight[0] += 0.1
    with pytest.raises(RuntimeError, match="the published way differs from ours in map or gradient 2"):
        families.require_same(ours, published, torch.randn(2, 3, 64, 64))


def test_speedups_are_theirs_divided_by_ours():
    times = {
        "a": {"ours": [1.0], "published": [2.0]},
        "b": {"ours": [1.0], "published": [0.5]},
        None: {"ours": [1.0], "others": [100.0]},
    }
    results = [Result("step", seconds, seconds, {}, family) for family, seconds in times.items()]
    assert speedups(results) == pytest.approx({"lowest": 0.5, "geometric_mean": 1.0})
    assert speedups(results[2:]) == {}


def test_the_case_names_families_in_what_it_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.MIN_SECONDS", 1e-3)
    file = tmp_path / "speed.json"
    argv = [
        "benchmark",
        "speed",
        "--case",
        "families",
        "--family",
        "sret",
        "pvt_v2",
        "--rounds",
        "1",
        "--size",
        "32",
        "--batch",
        "1",
    ]
    assert command.main([*argv, "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert [result["family"] for result in written["results"]] == ["sret", "sret", "pvt_v2", "pvt_v2"]
    assert [result["contest"] for result in written["results"][2:]] == [
        "pvt_v2_b0, 1 × 32², forward",
        "pvt_v2_b0, 1 × 32², drop path 0.1, forward and backward",
    ]
    gain = written["speedups"]
    assert f"lowest {gain['lowest']:.2f}, geometric mean {gain['geometric_mean']:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--family", "swim"], "unknown family 'swim'; did you mean swin"),
        (["--family", "posmlp", "--size", "256"], "--size 256: posmlp as published runs at multiples of 224"),
    ],
)
def test_mistakes_are_one_line(argv, message, capsys):
    assert command.main(["benchmark", "speed", "--case", "families", *argv]) == 2
    assert message in capsys.readouterr().err
