"""Faster ways to compute on a CPU what torch computes there; nothing here runs on a GPU.

Every function computes what the plain operation does, to rounding, gradients included. Where operations are compiled,
traced, counted, mapped or cast, the plain operation runs, and inside :func:`plain_torch` it runs everywhere.

* :func:`linear`: oneDNN's matrix product in place of MKL's, which torch itself calls in compiled models alone.
* :func:`depthwise`: the gradient of a wide depthwise kernel as a convolution.
* :func:`in_chunks`: functions of single tokens on some thousand tokens at a time.
* :func:`attend_few`, :class:`FlashWithLabels`, :class:`BiasedAttention`: attention whose fused kernel is slower, drops
  the labels or gives no gradient for a bias.
* :func:`may_overwrite`: whether a result may be written over its operand without gradient.

Shapes: G groups (batch and windows), h heads, N queries, M keys, d channels a head, K label channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from mixtransfer.layers.overwrite import overwriting_allowed

__all__ = [
    "BiasedAttention",
    "FlashWithLabels",
    "attend_few",
    "bias_is_trained",
    "depthwise",
    "depthwise_pays",
    "filtered",
    "in_chunks",
    "in_parts",
    "labels_fit",
    "linear",
    "linear_pays",
    "may_overwrite",
    "mkl_halves_this_core",
    "plain_cpu_float32",
    "plain_torch",
    "prefers_rows",
]

#: Weights of a layer, and multiplications, from which on oneDNN's product is the faster one.
WEIGHTS, PRODUCTS = 96 * 96, 2**21
#: Multiplications from which on that makes up for a gradient function written in Python; the second where MKL halves
#: the core.
TRAINED, TRAINED_HALVED = 2**28, 2**23
#: Channels of the wider operand up to which MKL is the faster one at a weight's gradient even where it halves the core.
FEW_CHANNELS = 96
#: Hidden values of a chunk of tokens, 4 MB in float32; fewer than three chunks are not worth the cut.
CHUNK_VALUES = 2**20
#: Side of a depthwise kernel from which on the gradient of its weight is faster as a convolution.
WIDE_KERNEL = 5
#: Side of a depthwise kernel up to which channels-first maps filter as fast as channels-last ones.
NARROW_KERNEL = 7
#: Pairs of queries and keys up to which a map is cheaper than the backward pass of the flash kernel.
FEW_PAIRS = 32 * 32
#: The flash kernel is fastest when a head's width is a multiple of the vector width.
COLUMN_MULTIPLE = 8

_state = {"enabled": True}


@contextmanager
def plain_torch() -> Iterator[None]:
    """Compute with torch's plain operations inside the block."""
    before, _state["enabled"] = _state["enabled"], False
    try:
        yield
    finally:
        _state["enabled"] = before


def may_overwrite(x: Tensor) -> bool:
    """Return whether a function of single values may be written over ``x``, which nobody else reads.

    Another tensor of the size would come from pages that the system first has to provide.
    """
    return (
        overwriting_allowed()
        and _state["enabled"]
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


@functools.cache
def mkl_halves_this_core() -> bool:
    """Return True on AMD Zen 5 and newer, where MKL uses AVX2 only: half the vector width of the core.

    These are told from Zen 4, whose AVX-512 runs at half width, by having VNNI for AVX2 as well.
    """
    features = getattr(torch.cpu, "get_capabilities", dict)()
    amd = features.get("cpu_name", "").startswith("AMD")
    return amd and features.get("avx512_f", False) and features.get("avx_vnni", False)


def plain_cpu_float32(*tensors: Tensor) -> bool:
    """Return whether operations on these run one by one on a CPU in float32, so that another kernel can be chosen."""
    return (
        _state["enabled"]
        and not torch.compiler.is_compiling()
        and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def linear_pays(x: Tensor, weight: Tensor) -> bool:
    """Return whether x Wᵀ of (…, C) and (D, C) is faster by :func:`linear`."""
    if not plain_cpu_float32(x, weight):
        return False
    products = x.numel() * len(weight)
    if torch.is_grad_enabled():
        return products >= (TRAINED_HALVED if mkl_halves_this_core() else TRAINED)
    return products >= PRODUCTS and (mkl_halves_this_core() or weight.numel() >= WEIGHTS)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x Wᵀ + b over the last axis, (…, C) -> (…, D), by oneDNN.

    MKL's product takes longer, the more so the fewer the rows, and more than twice as long where it halves the core.
    """
    return _Product.apply(x, weight, bias) if torch.is_grad_enabled() else _product(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # With gaps between a weight's rows or columns oneDNN takes its reference loop, a thousand times as long.
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _WeightedFunction(torch.autograd.Function):
    """A function of an input, a weight and a bias whose gradient depends on the first two alone."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])


class _Product(_WeightedFunction):
    """oneDNN's product with a gradient: its own for the input, for the weight the faster one of oneDNN's and MKL's."""

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
    if torch.is_grad_enabled() or not mkl_halves_this_core() or max(a.size(1), b.size(1)) <= FEW_CHANNELS:
        return a.t() @ b
    return _product(a.t(), b.t(), None) if a.size(1) < b.size(1) else _product(b.t(), a.t(), None).t()


def depthwise_pays(x: Tensor, weight: Tensor) -> bool:
    """Return whether a depthwise convolution of (B, C, H, W) by (C, 1, k, k) is faster by :func:`depthwise`."""
    return weight.size(-1) >= WIDE_KERNEL and torch.is_grad_enabled() and x.numel() > 0 and plain_cpu_float32(x, weight)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of each channel with its own odd kernel, whose weight gradient is a convolution, too.

    oneDNN's gradient of a wide kernel takes longer than all the rest of its step: 33 ms for 1024 channels of 36 × 36
    with a kernel of 9 × 9, 1.4 ms as the convolution of the padded map with the gradient as its kernel.
    """
    return _Depthwise.apply(x, weight, bias)


def filtered(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return torch's own convolution of each channel (B, C, H, W) with its odd kernel (C, 1, k, k)."""
    return F.conv2d(x, weight, bias, padding=weight.size(-1) // 2, groups=len(weight))


class _Depthwise(_WeightedFunction):
    """Written in operations that have gradients, so that this one has as well."""

    @staticmethod
    def forward(x, weight, bias):
        return filtered(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        of_x = filtered(gradient, weight.flip(2, 3), None) if needs_x else None
        of_weight = None
        if needs_weight:
            # Every channel of every sample is a map of its own here, and its gradient the kernel.
            maps, kernels = F.pad(x, [weight.size(-1) // 2] * 4).flatten(0, 1), gradient.flatten(0, 1).unsqueeze(1)
            of_weight = F.conv2d(maps.unsqueeze(0), kernels, groups=len(kernels)).view(len(x), *weight.shape).sum(dim=0)
        return of_x, of_weight, gradient.sum(dim=(0, 2, 3)) if needs_bias else None


def prefers_rows(x: Tensor, kernel: int) -> bool:
    """Return whether depthwise kernels of side ``kernel`` filter a map without gradient faster with channels last.

    They take two thirds of the time, but not where MKL halves the core, nor for narrow kernels.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or not _state["enabled"]:
        return False
    return kernel > NARROW_KERNEL and not mkl_halves_this_core()


def in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, hidden: int) -> Tensor:
    """Return ``function(x)`` for a function of single tokens, (…, C) -> (…, D), that widens them to ``hidden`` between.

    Without gradient it runs on some thousand tokens at a time: the hidden values of a whole map would go to memory and
    back, into pages that the system first has to provide. An MLP on 16384 tokens of 96 channels takes 0.6 of the time.
    """
    if not in_parts(x, x[..., 0].numel() * hidden):
        return function(x)
    chunks = x.reshape(-1, x.size(-1)).split(max(CHUNK_VALUES // hidden, 1))
    return torch.cat([function(chunk) for chunk in chunks]).unflatten(0, x.shape[:-1])


def in_parts(x: Tensor, hidden: int) -> bool:
    """Return whether a map ``x`` is better widened to ``hidden`` values in parts."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu" or not _state["enabled"]:
        return False
    return hidden > 3 * CHUNK_VALUES


def attend_few(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """Return softmax(q kᵀ / √d) v in training with few pairs of queries and keys, else None: the fused kernel wins.

    Args:
        q: queries (G, h, N, d).
        k: keys (G, h, M, d).
        v: values (G, h, M, d).
    """
    few = q.size(2) * k.size(2) <= FEW_PAIRS
    if not (few and q.device.type == "cpu" and torch.is_grad_enabled() and _state["enabled"]):
        return None
    return (q * q.size(-1) ** -0.5 @ k.transpose(2, 3)).softmax(dim=-1) @ v


def labels_fit(q: Tensor, labels: Tensor) -> bool:
    """Return whether :class:`FlashWithLabels` takes these: labels of the same type, and no wider than a head."""
    same = q.device.type == "cpu" and q.dtype == labels.dtype
    return same and labels.size(-1) <= q.size(-1) and _state["enabled"]


def bias_is_trained(q: Tensor, bias: Tensor) -> bool:
    """Return whether :class:`BiasedAttention` is needed: the fused kernels give no gradient for a bias."""
    return q.device.type == "cpu" and torch.is_grad_enabled() and (q.requires_grad or bias.requires_grad)


class FlashWithLabels(torch.autograd.Function):
    """Flash attention whose value head is widened by the label columns, forward only.

    Queries and keys are padded with zeros to the same width, which leaves their products as they are. The backward
    kernel runs on the unpadded tensors, with the log-sum-exp of the forward.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output (G, h, N, d) and the labels that each query attended to (G, N, K)."""
        heads, width, channels = q.size(1), q.size(-1), labels.size(-1)
        extra = -(-channels // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        columns = F.pad(labels, (0, extra - channels)).unsqueeze(1).expand(-1, heads, -1, -1)
        scale = width**-0.5
        wide, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            F.pad(q, (0, extra)), F.pad(k, (0, extra)), torch.cat([v, columns], dim=-1), 0.0, False, scale=scale
        )
        out = wide[..., :width].contiguous()
        moved = wide[..., width : width + channels].mean(dim=1)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        ctx.mark_non_differentiable(moved)
        return out, moved

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor, _grad_moved: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        q, k, v, out, lse = ctx.saved_tensors
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, q, k, v, out, lse, 0.0, False, scale=ctx.scale
        )
        return *grads, None


class BiasedAttention(torch.autograd.Function):
    """Window attention with a trainable bias, in training.

    The map is made once, turned into probabilities in place and kept for the backward pass; the gradient of the bias is
    one sum over images and windows.
    """

    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output (G, h, N, d) and, with ``labels`` (G, M, K), those that each query attended to."""
        groups, heads, tokens, width = q.shape
        q, k, v = (x.reshape(groups * heads, -1, width) for x in (q, k, v))
        scale = width**-0.5
        attention = torch.bmm(q * scale, k.transpose(1, 2))
        grouped = attention.view(-1, *bias.shape)
        grouped += bias
        torch.softmax(attention, dim=-1, out=attention)
        out = torch.bmm(attention, v).view(groups, heads, tokens, width)
        moved = None
        if labels is not None:
            mean = attention.view(groups, heads, tokens, -1).mean(dim=1, dtype=labels.dtype)
            if attention.dtype != labels.dtype:
                # Rows of half precision do not add up to 1 exactly, and labels would gain or lose mass.
                mean /= mean.sum(dim=-1, keepdim=True)
            with torch.autocast("cpu", enabled=False):
                moved = torch.bmm(mean, labels)
            ctx.mark_non_differentiable(moved)
        ctx.save_for_backward(q, k, v, attention)
        ctx.scale, ctx.bias_shape, ctx.bias_dtype = scale, bias.shape, bias.dtype
        return out, moved

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor, _grad_moved: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys, values and bias."""
        q, k, v, attention = ctx.saved_tensors
        shape = (*grad_out.shape[:2], -1, grad_out.size(-1))
        grad_out = grad_out.reshape(q.shape)
        grad_v = torch.bmm(attention.transpose(1, 2), grad_out)
        grad = torch.bmm(grad_out, v.transpose(1, 2))
        grad = torch._softmax_backward_data(grad, attention, -1, attention.dtype)
        grad_bias = None
        if ctx.needs_input_grad[3]:
            grad_bias = grad.view(-1, *ctx.bias_shape)
            # A sum over one is slow.
            grad_bias = (
                grad_bias.sum(dim=0, dtype=ctx.bias_dtype) if len(grad_bias) > 1 else grad_bias[0].to(ctx.bias_dtype)
            )
        grad_q = torch.bmm(grad, k).mul_(ctx.scale)
        grad_k = torch.bmm(grad.transpose(1, 2), q).mul_(ctx.scale)
        return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape), grad_bias, None
