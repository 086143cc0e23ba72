"""Proof that converted weights work: a strict load, a finite answer, the way back, and the other library's network."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixtransfer.backbones import Backbone
from mixtransfer.checkpoints.fit import AUX_HEAD, HEAD, shorten
from mixtransfer.checkpoints.rename import OURS, rename
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
#: Of images for dense networks with windows: those of 7, 8 and 12 pad maps of it, and cover the last.
PADDED_SIZE = (160, 160)
#: The prefix that a format's own files put before the backbone's names, beside the classifier's ``head.``.
FILE_PREFIX = {"mmpretrain": "backbone."}


class _NoInit(TorchFunctionMode):
    """Skip what fills parameters of more than ``largest`` values with random ones: the checkpoint's replace them."""

    def __init__(self, largest: int):
        super().__init__()
        self.largest = largest

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        # torch.nn.init hands its tensor over by name.
        target = args[0] if args else kwargs.get("tensor")
        fills = name.endswith("_") and not name.endswith("__")
        if fills and isinstance(target, nn.Parameter) and target.numel() > self.largest:
            return target
        return function(*args, **kwargs)


@contextmanager
def build_without_values(largest: int = -1):
    """Build networks inside whose parameters of more than ``largest`` values have none yet; buffers have theirs."""
    with _NoInit(largest):
        yield


def fixed_images(size: tuple[int, int], channels: int) -> Tensor:
    """Return the images (1, channels, H, W) that every proof runs on: standard normal, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, *size, generator=generator)


def run(backbone: Backbone, state: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor, ...]:
    """Load the entries strictly and return what the network answers: logits, the embedding, or the dense maps.

    The entries become the backbone's own parameters, without a copy where they are float32 already. Norms that the
    entries lack are taken out of the network.
    """
    own = {key: _single(value) for key, value in state.items()}
    _without_layers(backbone, {key for key in backbone.state_dict() if key not in own and "." in key})
    heads = (*HEAD, *AUX_HEAD)
    backbone.load_state_dict({key: value for key, value in own.items() if key not in heads}, assign=True)
    with _evaluating(backbone):
        if not backbone.with_embedding:
            return backbone(images)
        return (_logits(backbone, own, images) if HEAD[0] in own else backbone.embed(images),)


@contextmanager
def _evaluating(network: nn.Module):
    """Evaluate a network, and let go of what it keeps for further images."""
    network.eval()
    with torch.inference_mode():
        yield
    network.train()


def _logits(backbone: Backbone, own: Mapping[str, Tensor], images: Tensor) -> Tensor:
    if not backbone.has_token_logits:
        return F.linear(backbone.embed(images), *(own[key] for key in HEAD))
    encoded = backbone.encode(images)
    tokens = F.linear(encoded.tokens, *(own[key] for key in AUX_HEAD))
    return F.linear(encoded.vector, *(own[key] for key in HEAD)) + 0.5 * tokens.amax(dim=1)


def compare(
    net: Backbone,
    state: Mapping[str, Tensor],
    library: str,
    network: Mapping[str, Any],
    size: tuple[int, int],
    answer: tuple[Tensor, ...],
) -> tuple[float, str] | str:
    """Feed the same images to our network and to the library's own, and return how far the answers are apart.

    Both get the converted weights. Where the library's network is dense, or the weights are, dense maps are compared,
    with windows at a size of its own: where a window covers a whole map, classifiers drop the shift that dense networks
    keep. Dense norms that the weights lack are the identity's, 1 and 0, in both. Weights without a
    head count as dense in a family whose embedding reads nothing but the maps, if the library has a dense network.

    Args:
        net: our network, from :func:`run`.
        state: all entries under our names.
        library: the format.
        network: keyword arguments of the backbone that differ from the published ones.
        size: height and width of the images that the network is made for.
        answer: what ``net`` answers on the fixed images of ``size``.

    Returns:
        The largest absolute difference relative to the standard deviation of the library's answer, and what was
        compared; or why nothing was.

    Raises:
        UserError: the library's network does not take the weights.
    """
    dense = net.formats[library].dense or not net.with_embedding
    if not dense and HEAD[0] not in state and not net.embed_only:
        result = _compare(net, state, library, network, size, answer, dense=True)
        if not isinstance(result, str):
            return result
    return _compare(net, state, library, network, size, answer, dense)


def _compare(net, state, library, network, size, answer, dense: bool) -> tuple[float, str] | str:
    key_map, head = net.formats[library], state.get(HEAD[0])
    none = f"no network of {library} takes these weights"
    if key_map.network is None:
        return none
    compared = _comparable_size(net, network, size, dense, key_map.dense)
    images = fixed_images(compared, network.get("in_channels", 3))
    if dense:
        ours, state = _dense_counterpart(net, state, library, {**network, "img_size": compared})
        with _evaluating(ours):
            answer = ours(images)
    elif compared != size:
        with build_without_values():
            ours = type(net)(arch=net.arch, out_indices=(), with_embedding=True, **{**network, "img_size": compared})
        own = {*ours.state_dict(), *HEAD, *AUX_HEAD}
        state = ours.resize_loaded({key: value for key, value in state.items() if key in own})
        answer = run(ours, state, images)
    spec, fields = net.archs[net.arch], {field.name for field in dataclasses.fields(net.archs[net.arch])}
    sizes = {"img_size": compared if compared[0] != compared[1] else compared[0], "window": network.get("window")}
    spec = dataclasses.replace(spec, **{k: v for k, v in sizes.items() if k in fields and v is not None})
    with _size_errors(library, net.arch, compared, "img_size" in network):
        try:
            with build_without_values():
                theirs = key_map.network(spec, None if dense else 0 if head is None else len(head), images.size(1))
        except ModuleNotFoundError as error:
            return f"{error.name} is not installed"
        if theirs is None:
            return none
        _load_theirs(theirs, rename(state, net.arch, OURS, library).state, library, net)
        with _evaluating(theirs):
            other = _maps(theirs, images, net.out_indices) if dense else _vector(theirs(images))
    what = "dense maps" if dense else "logits" if head is not None else "embedding"
    return _largest_difference(answer, other), f"{what} at {compared[0]}x{compared[1]}"


@contextmanager
def _size_errors(library: str, arch: str, size: tuple[int, int], chosen: bool):
    """Say in one line what networks raise, each in its own way, for images of a chosen size that they do not take."""
    try:
        yield
    except UserError:
        raise
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if not chosen:
            raise
        text = f"{library}'s {arch} does not take images of {size[0]}x{size[1]} pixels"
        raise UserError(f"{text}; --no-verify writes its names all the same") from error


def _comparable_size(net: Backbone, network: Mapping[str, Any], size: tuple[int, int], dense: bool, pads: bool):
    """Return the image size at which a library's network computes what ours does.

    Dense code with windows that pads takes a small size. Classifiers pad each in its own way, or drop what is no whole
    patch, so there patches and windows fit. With windows the images are square, as networks differ in whether a window
    that covers one side of a map ends the shift along the other; those of dense maps are two windows wide.
    """
    window = network.get("window") or getattr(net.archs[net.arch], "window", 0)
    if window and dense and pads:
        return PADDED_SIZE
    with build_without_values():
        strides = type(net)(arch=net.arch).strides
    unit = window * max(strides) or min(strides)
    larger = tuple(-(-side // unit) * unit for side in size)
    if window:
        side = 2 * unit if dense else max(larger)
        return side, side
    # Our networks, too, either pad to whole patches or drop the rest; tables tell.
    if larger != size and _shapes(net, {**network, "img_size": larger}) != _shapes(net, network):
        return tuple(max(side // unit, 1) * unit for side in size)
    return larger


def _shapes(net: Backbone, network: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    with build_without_values():
        return {key: tuple(value.shape) for key, value in type(net)(arch=net.arch, **network).state_dict().items()}


def _dense_counterpart(
    net: Backbone, state: Mapping[str, Tensor], library: str, network: Mapping[str, Any]
) -> tuple[Backbone, dict[str, Tensor]]:
    """Return our dense network without the norms that the library has no place for, loaded, and its entries."""
    outputs = {"out_indices": net.out_indices} if net.out_indices else {}
    with build_without_values():
        ours = type(net)(arch=net.arch, **outputs, **network)
    own = ours.state_dict()
    state = ours.resize_loaded({key: value for key, value in state.items() if key in own})
    for key in own.keys() - state.keys():
        state[key] = (torch.ones_like if key.endswith("weight") else torch.zeros_like)(own[key])
    left_out = rename(state, net.arch, OURS, library).left_out
    _without_layers(ours, left_out)
    state = {key: value for key, value in state.items() if key not in left_out}
    ours.load_state_dict({key: _single(value) for key, value in state.items()}, assign=True)
    return ours, state


def _without_layers(network: nn.Module, keys: Collection[str]) -> None:
    """Put the identity in place of the layers that hold these entries."""
    for name in {key.rpartition(".")[0] for key in keys}:
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, nn.Identity())


def _load_theirs(theirs: nn.Module, state: Mapping[str, Tensor], library: str, net: Backbone) -> None:
    """Load strictly; the network may lack entries that it computes, and those of layers that are not compared."""
    named = {key: _single(value) for key, value in file_names(state, library).items()}
    result = theirs.load_state_dict(named, strict=False, assign=True)
    prefix = FILE_PREFIX.get(library, "")
    missing = []
    for key in result.missing_keys:
        ours = next(iter(rename({key.removeprefix(prefix): torch.empty(0)}, net.arch, library).state), "")
        if ours and not any(re.fullmatch(p, ours) for p in (*net.embed_only, r"head\..+")):
            missing.append(key)
    if missing or result.unexpected_keys:
        raise UserError(
            f"{library}'s {net.arch} does not take the weights: {len(missing)} missing ({shorten(missing)}),"
            f" {len(result.unexpected_keys)} unexpected ({shorten(result.unexpected_keys)})"
        )


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


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
    return [
        key
        for key, value in state.items()
        # One pass: the extremes are NaN where any value is.
        if value.is_floating_point() and value.numel() and not all(x.isfinite() for x in value.aminmax())
    ]


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
