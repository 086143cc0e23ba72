"""Proof that converted weights work: a strict load, a finite answer, the way back, and the other library's network."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixtransfer.backbones import Backbone
from mixtransfer.checkpoints.account import HEAD, some
from mixtransfer.checkpoints.convert import OURS, convert
from mixtransfer.errors import UserError

__all__ = [
    "TOLERANCE",
    "build_without_values",
    "compare",
    "differing",
    "file_names",
    "fixed_images",
    "nonfinite",
    "run",
]

TOLERANCE = 1e-4
#: The prefix that a format's own files put before the backbone's names, beside the classifier's ``head.``.
FILE_PREFIX = {"mmpretrain": "backbone."}


class _NoInit(TorchFunctionMode):
    """Skip what fills parameters with random values: each is replaced by the checkpoint's."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], nn.Parameter):
            return args[0]
        return function(*args, **(kwargs or {}))


@contextmanager
def build_without_values():
    """Build networks inside whose parameters have no values yet; buffers have theirs."""
    with _NoInit():
        yield


def fixed_images(size: tuple[int, int], channels: int) -> Tensor:
    """Return the images (1, channels, H, W) that every proof runs on: standard normal, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, *size, generator=generator)


def run(backbone: Backbone, state: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor, ...]:
    """Load the entries strictly and return what the network answers: logits, the embedding, or the dense maps.

    The entries become the backbone's own parameters, without a copy where they are float32 already.
    """
    own = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    backbone.load_state_dict({key: value for key, value in own.items() if key not in HEAD}, assign=True)
    backbone.eval()
    with torch.inference_mode():
        if not backbone.with_embedding:
            return backbone(images)
        vector = backbone.embed(images)
        return (F.linear(vector, *(own[key] for key in HEAD)) if HEAD[0] in own else vector,)


def compare(
    net: Backbone, state: Mapping[str, Tensor], library: str, network: Mapping[str, Any], size: tuple[int, int]
) -> tuple[float, str]:
    """Feed the same images to our network and to the library's own, and return how far the answers are apart.

    Both get the converted weights. Where the library's network is dense, or there is no classifier, dense maps are
    compared, on an image somewhat larger than ``size``: where a window covers a whole map, classifiers drop the shift
    of windows that dense networks keep.

    Args:
        net: our network, from :func:`run`.
        state: all entries under our names.
        library: the format.
        network: keyword arguments of the backbone that differ from the published ones.
        size: height and width of the images that the network is made for.

    Returns:
        The largest absolute difference relative to the standard deviation of the library's answer, and what was
        compared.

    Raises:
        UserError: the library's network does not take the weights.
    """
    family, key_map = type(net), net.formats[library]
    head = state.get(HEAD[0])
    dense = key_map.dense or not net.with_embedding
    classes = None if dense else 0 if head is None else len(head)
    spec = net.archs[net.arch]
    least = (network.get("window") or getattr(spec, "window", 0)) * max(family(arch=net.arch).strides)
    size = tuple(max(side, least) for side in size)
    if dense:
        # Libraries of classifiers pad otherwise than dense code where windows do not divide a map: no padding there.
        size = tuple(side + 32 if key_map.dense or not least else 2 * least for side in size)
    channels = network.get("in_channels", 3)
    images = fixed_images(size, channels)
    fields = {field.name for field in dataclasses.fields(spec)}
    sizes = {"img_size": size[0], "window": network.get("window")}
    spec = dataclasses.replace(spec, **{k: v for k, v in sizes.items() if k in fields and v is not None})
    use = {"with_embedding": not dense, **({} if dense else {"out_indices": ()})}
    ours = family(arch=net.arch, **use, **{**network, "img_size": size}).eval()
    own = ours.state_dict()
    kept = {key: value.float() for key, value in state.items() if key in own}
    ours.load_state_dict(ours.resize_loaded(kept), strict=False)
    if dense:
        left_out = convert(ours.state_dict(), net.arch, OURS, library).left_out
        for name in {key.rpartition(".")[0] for key in left_out}:
            parent, _, leaf = name.rpartition(".")
            setattr(ours.get_submodule(parent), leaf, nn.Identity())
    state = {**ours.state_dict(), **({} if dense or head is None else {key: state[key] for key in HEAD})}
    theirs = key_map.network(spec, classes, channels)
    theirs.eval()  # OpenMMLab's Swin returns None from it
    _load_theirs(theirs, convert(state, net.arch, OURS, library).state, library, net)
    with torch.inference_mode():
        if dense:
            answers = ours(images), _maps(theirs, images, ours.out_indices)
        else:
            answers = run(ours, state, images), _vector(theirs(images))
    what = "dense maps" if dense else "logits" if head is not None else "embedding"
    return _largest_difference(*answers), f"{what} at {size[0]}x{size[1]}"


def _load_theirs(theirs: nn.Module, state: Mapping[str, Tensor], library: str, net: Backbone) -> None:
    """Load strictly; the network may lack entries that it computes, and those of layers that are not compared."""
    state = file_names(state, library)
    result = theirs.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    prefix = FILE_PREFIX.get(library, "")
    missing = []
    for key in result.missing_keys:
        bare = key.removeprefix(prefix)
        (ours,) = convert({bare: torch.empty(0)}, net.arch, library).state or ("",)
        if ours and not any(re.fullmatch(p, ours) for p in (*net.embed_only, *net.dense_only, r"head\..+")):
            missing.append(key)
    if missing or result.unexpected_keys:
        raise UserError(
            f"{library}'s {net.arch} does not take the weights: {len(missing)} missing ({some(missing)}),"
            f" {len(result.unexpected_keys)} unexpected ({some(result.unexpected_keys)}); this is a bug of ours"
        )


def file_names(state: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    """Return the entries as the library's own files name them: with the prefix of the backbone, if they have one."""
    prefix = FILE_PREFIX.get(library, "")
    return {key if key.startswith("head.") else prefix + key: value for key, value in state.items()}


def _maps(network: nn.Module, images: Tensor, indices: Sequence[int]) -> tuple[Tensor, ...]:
    if hasattr(network, "forward_intermediates"):
        return tuple(network.forward_intermediates(images, indices=list(indices), intermediates_only=True))
    return tuple(network(images))


def _vector(answer: Tensor | tuple[Tensor, ...]) -> tuple[Tensor]:
    return (answer if isinstance(answer, Tensor) else answer[-1],)


def nonfinite(state: Mapping[str, Tensor]) -> list[str]:
    """Return the entries that hold NaN or infinite values."""
    return [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]


def _largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of two answers, relative to the standard deviation of the second."""
    if [x.shape for x in ours] != [x.shape for x in theirs]:
        return float("inf")
    return max(float((a - b).abs().max() / b.std().clamp(min=1e-12)) for a, b in zip(ours, theirs, strict=True))


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Return the entries of ``first`` that ``second`` lacks or holds with other bytes."""
    return [
        key
        for key, value in first.items()
        if key not in second
        or second[key].dtype != value.dtype
        or second[key].shape != value.shape
        or not torch.equal(_bits(second[key]), _bits(value))
    ]


def _bits(value: Tensor) -> Tensor:
    return value.detach().contiguous().reshape(-1).view(torch.uint8)
