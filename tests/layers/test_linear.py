"""Linear layers by oneDNN: torch's numbers and gradients, and torch's own product where others look at it."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mixtransfer.layers import cpu as module
from mixtransfer.layers.linear import Linear, linear


@pytest.fixture(params=[False, True], ids=["narrow cores", "wide cores"])
def products(request, monkeypatch):
    """Send layers of any size but zero to oneDNN, and return the shapes that arrive there."""
    monkeypatch.setattr(module, "mkl_halves_this_core", lambda: request.param)
    for limit in ("PRODUCTS", "TRAINED", "TRAINED_HALVED"):
        monkeypatch.setattr(module, limit, 1)
    seen, product = [], module._product
    monkeypatch.setattr(module, "_product", lambda x, *rest: seen.append(tuple(x.shape)) or product(x, *rest))
    return seen


@pytest.mark.parametrize("shape", [(128,), (3, 128), (0, 128), (2, 7, 128), (2, 0, 128), (2, 3, 5, 128)], ids=str)
@pytest.mark.parametrize("channels", [96, 160])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_values_and_gradients_are_torchs(shape, channels, bias, products):
    layer, gradient = Linear(128, channels, bias), torch.randn(*shape[:-1], channels)
    results = []
    for function in (linear, F.linear):
        x = torch.ones(shape).cumsum(-1).div(128).requires_grad_()
        parameters = list(layer.parameters())
        out = function(x, layer.weight, layer.bias)
        with torch.no_grad():
            assert torch.allclose(function(x, layer.weight, layer.bias), out, atol=1e-5)
        results.append([out, *torch.autograd.grad(out, [x, *parameters], gradient)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    # Forward with and without gradient, the gradients of the input and, on wide cores, of the weight.
    assert len(products) == (0 if 0 in shape else 4 if module.mkl_halves_this_core() else 3)


def test_gradients_of_gradients(products):
    layer, x = Linear(128, 96), torch.randn(4, 128, requires_grad=True)
    results = []
    for function in (linear, F.linear):
        (slope,) = torch.autograd.grad(function(x, layer.weight, layer.bias).pow(3).sum(), x, create_graph=True)
        results += torch.autograd.grad(slope.square().sum(), layer.weight)
    torch.testing.assert_close(*results, atol=1e-2, rtol=1e-3)
    assert products[0] == (4, 128)


def test_onednn_is_never_given_a_weight_with_gaps(products, monkeypatch):
    # It would compute the same, but in a reference loop; an expanded gradient becomes such a weight.
    seen, product = [], torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda x, w, *rest: seen.append(w) or product(x, w, *rest)
    )
    x, weight = torch.randn(64, 128, requires_grad=True), torch.randn(160, 256, requires_grad=True)
    results = []
    for function in (linear, F.linear):
        out = function(x, weight[:, ::2], None)
        results += [out, *torch.autograd.grad(out.sum(), [x, weight])]
    for ours, theirs in zip(results[:3], results[3:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert seen and all(w.is_contiguous() or w.t().is_contiguous() for w in seen)


def test_what_looks_at_operations_sees_torchs_own(products):
    layer, x = Linear(128, 96), torch.randn(4, 128)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 4 * 128 * 96
        assert "aten::linear" in str(torch.jit.trace(layer, x, check_trace=False).inlined_graph)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(torch.vmap(layer)(x), F.linear(x, layer.weight, layer.bias))
    torch.func.vmap(torch.func.grad(lambda row: layer(row).sum()))(x)
    assert products == []
    layer(x)
    assert products == [(4, 128)]
