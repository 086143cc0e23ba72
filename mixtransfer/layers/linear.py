"""Linear layers of token maps, and the MLP made of two of them; parameters are named as timm names them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = [
    "CHUNK_VALUES",
    "Linear",
    "Mlp",
    "WeightedFunction",
    "gelu",
    "in_chunks",
    "in_parts",
    "linear",
    "mkl_halves_this_core",
    "plain_cpu_float32",
]

#: Weights of a layer, and multiplications, from which on oneDNN's product is the faster one.
WEIGHTS, PRODUCTS = 96 * 96, 2**21
#: Multiplications from which on that makes up for a gradient function written in Python, and the same on `wide` cores.
TRAINED, TRAINED_WIDE = 2**28, 2**23
#: Channels of the wider operand up to which MKL is the faster one at a weight's gradient on `wide` cores as well.
FEW = 96
#: Hidden values of a piece of tokens, 4 MB in float32; fewer than three pieces are not worth the cut.
CHUNK_VALUES = 2**20


@functools.cache
def mkl_halves_this_core() -> bool:
    """Return whether the cores do twice what MKL asks of them: those of AMD, which it keeps to AVX2, from Zen 5 on.

    These are told from Zen 4, whose AVX-512 runs at half width, by having VNNI for AVX2 as well.
    """
    features = getattr(torch.cpu, "get_capabilities", dict)()
    amd = features.get("cpu_name", "").startswith("AMD")
    return amd and features.get("avx512_f", False) and features.get("avx_vnni", False)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x Wᵀ + b over the last axis: (…, C) -> (…, D) for a weight (D, C).

    On CPU in float32 the product is oneDNN's, which torch itself asks in compiled models alone: MKL's takes longer, the
    more so the fewer the rows, and more than twice as long on :func:`wide` cores.
    """
    if not (plain_cpu_float32(x, weight) and _pays(x.numel() * len(weight), weight.numel())):
        return F.linear(x, weight, bias)
    return _Product.apply(x, weight, bias) if torch.is_grad_enabled() else _product(x, weight, bias)


def plain_cpu_float32(*tensors: Tensor) -> bool:
    """Return whether operations on these run one by one on CPU in float32, and are there to be chosen.

    Not so where they are compiled, traced, counted, mapped or cast.
    """
    return (
        not torch.compiler.is_compiling()
        and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def _pays(products: int, weights: int) -> bool:
    """Return whether so many multiplications with so many weights are faster by oneDNN."""
    if torch.is_grad_enabled():
        return products >= (TRAINED_WIDE if mkl_halves_this_core() else TRAINED)
    return products >= PRODUCTS and (mkl_halves_this_core() or weights >= WEIGHTS)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # With gaps between a weight's rows or columns oneDNN takes its reference loop, a thousand times as long.
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class WeightedFunction(torch.autograd.Function):
    """A function of an input, a weight and a bias whose gradient is one of the first two alone."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep the input and the weight."""
        ctx.save_for_backward(*inputs[:2])


class _Product(WeightedFunction):
    """oneDNN's product with a gradient: its own for the input, for the weight whichever is the faster one."""

    @staticmethod
    def forward(x, weight, bias):
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows, of_x, of_weight = gradient.reshape(-1, len(weight)), None, None
        if needs_x:
            # Grad mode is on where a gradient of the gradient is wanted.
            of_x = gradient @ weight if torch.is_grad_enabled() else _product(gradient, weight.t(), None)
        if needs_weight:
            of_weight = _outer(rows, x.reshape(-1, x.size(-1)))
        return of_x, of_weight, rows.sum(dim=0) if needs_bias else None


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Return aᵀ b: (N, D) and (N, C) -> (D, C).

    oneDNN first copies the operand that it is given as the input, so that is the narrower one.
    """
    if torch.is_grad_enabled() or not mkl_halves_this_core() or max(a.size(1), b.size(1)) <= FEW:
        return a.t() @ b
    return _product(a.t(), b.t(), None) if a.size(1) < b.size(1) else _product(b.t(), a.t(), None).t()


def in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, hidden: int) -> Tensor:
    """Return ``function(x)`` for a function of single tokens, (…, C) -> (…, D), that widens them to ``hidden`` between.

    On CPU without gradient it runs on some thousand tokens at a time: the hidden values of a whole map would go to
    memory and back, into pages that the system first has to provide. An MLP on 16384 tokens of 96 channels takes 0.6
    of the time.
    """
    if not in_parts(x, x[..., 0].numel() * hidden):
        return function(x)
    pieces = x.reshape(-1, x.size(-1)).split(max(CHUNK_VALUES // hidden, 1))
    return torch.cat([function(piece) for piece in pieces]).unflatten(0, x.shape[:-1])


def gelu(x: Tensor) -> Tensor:
    """Return GELU(x) of a tensor that nobody else reads: without gradient in its place.

    On CPU another tensor of the size would come from pages that the system first has to provide. The MLPs of Swin-T's
    first two stages at 512² take 0.8 to 0.9 of the time.
    """
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def in_parts(x: Tensor, hidden: int) -> bool:
    """Return whether a map ``x`` is better widened to ``hidden`` values in parts."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu":
        return False
    return hidden > 3 * CHUNK_VALUES


class Linear(nn.Linear):
    """``nn.Linear`` computed by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, D) for (…, C)."""
        return linear(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Linear, GELU, linear over the last axis of (…, C)."""

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.fc1 = Linear(channels, hidden_channels)
        self.fc2 = Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, C)."""
        return in_chunks(self.rows, x, self.fc1.out_features)

    def rows(self, x: Tensor) -> Tensor:
        """Return the same for tokens that are few, or that need a gradient."""
        return self.fc2(gelu(self.fc1(x)))
