"""The simulated accelerator refuses and counts what a GPU refuses and waits for; draws go there in one copy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerator import DEVICE, counted
from torch import nn

from mixtransfer.engine.hooks import LossGuardHook
from mixtransfer.errors import UserError
from mixtransfer.layers.attention import attend_windows
from mixtransfer.layers.host_draws import PassDraws, drawn, repeated, send, uniform
from mixtransfer.mixing import Draw, PixelDraw
from mixtransfer.mixing.draws import flip_partner, own_share


def crossings(function):
    with counted() as log:
        function()
    return [(crossing.kind, crossing.what) for crossing in log.crossings]


def test_what_stops_on_a_gpu_stops_here():
    x = torch.ones(2, 3).to(DEVICE)
    with pytest.raises(TypeError, match="can't convert sim:0 device type tensor to numpy"):
        x.numpy()
    with pytest.raises(TypeError, match="can't convert sim:0"):
        np.asarray(x)
    for function in (lambda: x + torch.ones(3), lambda: x @ torch.ones(3, 1), lambda: nn.Linear(3, 1)(x)):
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            function()
    assert (x + torch.tensor(1.0)).device.type == "sim"  # a number of the host, as on a GPU


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.sum().item(), [("read", "item")]),
        (lambda x: bool(x[0, 0] > 0), [("read", "item")]),
        (lambda x: x.tolist(), [("read", "to the host")]),
        (lambda x: x.cpu(), [("read", "to the host")]),
        (lambda x: torch.empty(2, 3).copy_(x), [("read", "to the host")]),
        (lambda x: x.nonzero(), [("read", "nonzero")]),
        (lambda x: x[x > 0], [("read", "nonzero of a mask")]),
        (lambda x: torch.equal(x, x), [("read", "equal")]),
        (lambda x: x[torch.tensor([0])], [("copy", "an index of the host")]),
        (lambda x: torch.ones(3).to(DEVICE), [("copy", "to the device")]),
        (lambda x: torch.tensor([1, 2], device=DEVICE), [("copy", "to the device")]),
        (lambda x: x.copy_(torch.zeros(2, 3)), [("copy", "to the device")]),
        (lambda x: torch.zeros(2, device=DEVICE) + torch.arange(2, device=DEVICE), []),
        (lambda x: x.softmax(dim=1)[:, :2].sum(), []),
        (lambda x: x.double().to(torch.float32), []),
    ],
)
def test_crossings_are_counted(function, expected):
    x = torch.ones(2, 3).to(DEVICE)
    assert crossings(lambda: function(x)) == expected


def test_a_crossing_has_its_line():
    with counted() as log:
        torch.ones(3).to(DEVICE)
    assert log.crossings[0].place.startswith("tests/device/test_accelerator.py:") and not log.crossings[0].ours


def test_gradients_and_statistics_are_the_cpus():
    nets = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU()) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(2, 3, 8, 8)
    for net, device in zip(nets, (DEVICE, torch.device("cpu")), strict=True):
        net.to(device)(x.to(device)).square().mean().backward()
    there, here = (dict(net.named_parameters()) | dict(net.named_buffers()) for net in nets)
    for name, value in here.items():
        torch.testing.assert_close(there[name].detach().cpu(), value.detach())
        if value.requires_grad:
            torch.testing.assert_close(there[name].grad.cpu(), value.grad)


def test_several_tensors_of_any_type_are_one_copy():
    tensors = [
        torch.tensor([True, False, True]),
        torch.arange(5),
        torch.rand(2, 3, dtype=torch.float64),
        torch.empty(0, 4),
        torch.tensor(7, dtype=torch.uint8),
        torch.rand(3, 4).t(),
    ]
    assert crossings(lambda: send(tensors, DEVICE)) == [("copy", "to the device")]
    for there, here in zip(send(tensors, DEVICE), tensors, strict=True):
        assert there.device == DEVICE and there.dtype == here.dtype and torch.equal(there.cpu(), here)
    assert all(a is b for a, b in zip(send(tensors, torch.device("cpu")), tensors, strict=True))


def random_pass(device, lengths):
    return [uniform((length,), device).cpu() for length in lengths]


def test_draws_of_a_pass_are_those_of_the_cpu_whatever_was_expected():
    """A pass may ask for more, less or something else than the one before it, and others draw after it."""
    passes = [(3, 4), (3, 4), (3, 4, 5), (3,), (3, 2, 9), (3, 2, 9)]
    results = []
    for device in (torch.device("cpu"), DEVICE):
        torch.manual_seed(3)
        draws, found = PassDraws(), []
        for lengths in passes:
            with counted() as log, draws.sent_to(device):
                found += random_pass(device, lengths)
            found.append(torch.rand(2))
        results.append(found)
        assert log.count("copy", ours=False) + log.count("copy") == (device == DEVICE)
    assert all(torch.equal(there, here) for here, there in zip(*results, strict=True))


def test_draws_are_handed_out_again():
    draws = PassDraws()
    for warm in (False, True):
        state = torch.get_rng_state()
        with draws.sent_to(DEVICE):
            first = uniform((2,), DEVICE).cpu()
            again, before = repeated(), torch.get_rng_state()
            second = uniform((3,), DEVICE).cpu()
        with torch.random.fork_rng():
            # What activation checkpointing does; warm, the numbers are there already.
            torch.set_rng_state(state if warm else before)
            with again():
                assert torch.equal(uniform((3,), DEVICE).cpu(), second)
        assert len(first) == 2 and draws.requests[1][1] == ((3,),)


def test_a_draw_outside_of_a_pass_is_a_copy_of_its_own():
    assert crossings(lambda: uniform((3,), DEVICE)) == [("copy", "to the device")]


def _pair(count):
    return torch.rand(count), torch.arange(count)


def test_draws_are_plain_functions_with_plain_arguments():
    numbers, order = drawn(_pair, 3, device=DEVICE)
    assert numbers.device == order.device == DEVICE and order.tolist() == [0, 1, 2]


@pytest.mark.parametrize("empty", [False, True])
def test_a_mix_on_the_device_is_the_hosts(empty):
    pixels = torch.zeros(1, 8, 8, dtype=torch.bool)
    pixels[:, :4, :3] = not empty
    mask = torch.nn.functional.avg_pool2d(pixels[:, None].double(), 4)[:, 0]
    images = torch.rand(4, 3, 8, 8)
    there = images.to(DEVICE)
    for draw in (
        PixelDraw(flip_partner(4), mask, own_share(pixels, 4), pixels),
        Draw(flip_partner(4), mask > 0.5, own_share(pixels, 4)),
    ):
        moved = draw.to(DEVICE)
        with counted() as log:
            mixed = moved.mix(there)
        assert log.crossings == [] and moved.to(DEVICE) is moved
        assert torch.equal(mixed.cpu(), draw.mix(images)) and draw.to(torch.device("cpu")) is draw
        assert (mixed is there) == (not draw.mask.any())


def test_the_guard_of_losses_reads_all_of_them_at_once():
    losses = {name: torch.tensor(value).to(DEVICE) for name, value in (("loss", 3.0), ("loss_a", 1.0), ("loss_b", 2.0))}
    hook, runner = LossGuardHook(), SimpleNamespace(iter=4, work_dir="nowhere")
    assert crossings(lambda: hook.after_train_iter(runner, 0, outputs=losses)) == [("read", "to the host")]
    losses["loss_b"] = torch.tensor(float("nan")).to(DEVICE)
    with pytest.raises(UserError, match="iteration 5: loss_b is nan"):
        hook.after_train_iter(runner, 0, outputs=losses)
    hook.after_train_iter(runner, 0, outputs={})


def test_windows_with_masks_of_their_own_attend_as_on_the_cpu():
    """On a device the windows of an image are heads, so that their masks are not repeated for each image."""
    q, k, v = torch.randn(3, 6, 2, 5, 4).unbind(0)
    labels = torch.rand(6, 5, 9)
    for bias in (torch.randn(3, 2, 5, 5), torch.randn(3, 1, 5, 5), torch.randn(1, 2, 5, 5)):
        with torch.no_grad():
            here = attend_windows(q, k, v, bias, labels)
            there = attend_windows(*(x.to(DEVICE) for x in (q, k, v, bias, labels)))
        for ours, expected in zip(there, here, strict=True):
            torch.testing.assert_close(ours.cpu(), expected)
