"""Depthwise convolutions: the gradient of a wide kernel, computed as a convolution, is the convolution's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mixtransfer.layers import cpu as module
from mixtransfer.layers.depthwise import Depthwise, depthwise


@pytest.fixture
def applied(monkeypatch):
    """Return the shapes of the maps whose weight gradient is computed as a convolution."""
    seen, apply = [], module._Depthwise.apply
    monkeypatch.setattr(module._Depthwise, "apply", lambda x, *rest: seen.append(tuple(x.shape)) or apply(x, *rest))
    return seen


def native(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=weight.size(-1) // 2, groups=len(weight))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize(("shape", "kernel"), [((2, 6, 9, 12), 7), ((1, 6, 1, 3), 11), ((3, 6, 40, 5), 5)], ids=str)
def test_values_and_gradients_are_those_of_float64(shape, kernel, bias, layout, applied):
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
    parameters = [torch.randn(6, 1, kernel, kernel, requires_grad=True)] + [torch.randn(6, requires_grad=True)] * bias
    gradient, results = torch.randn(shape), []
    for function, dtype in ((depthwise, torch.float32), (native, torch.float64)):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in (x, *parameters)]
        out = function(inputs[0], inputs[1], inputs[2] if bias else None)
        results.append([out, *torch.autograd.grad(out, inputs, gradient.to(dtype))])
    for ours, exact in zip(*results, strict=True):
        assert (ours - exact).abs().max() <= 1e-5 * exact.std()
    assert applied == [shape]


def test_one_kernel_for_all_channels(applied):
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(1, 1, 9, 9, requires_grad=True)
    ours, theirs = (
        torch.autograd.grad(function(x, weight.expand(8, -1, -1, -1), None).square().sum(), weight)[0]
        for function in (depthwise, native)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)
    assert len(applied) == 1


def test_gradients_of_gradients(applied):
    x, weight = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(4, 1, 5, 5, requires_grad=True)
    results = []
    for function in (depthwise, native):
        slopes = torch.autograd.grad(function(x, weight, None).pow(3).sum(), [x, weight], create_graph=True)
        results.append(torch.autograd.grad(sum(slope.square().sum() for slope in slopes), [x, weight]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    assert applied == [(2, 4, 6, 6)]


def test_small_kernels_no_gradient_and_what_looks_at_operations_take_the_convolution(applied):
    layer, x = Depthwise(4, 7), torch.randn(1, 6, 6, 4)
    with torch.no_grad():
        layer(x)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 6 * 6 * 4 * 49
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer(x[:0]).shape == (0, 6, 6, 4)
    Depthwise(4, 3)(x)
    assert applied == []
    layer(x)
    assert applied == [(1, 4, 6, 6)]
