"""Proof that converted weights work: a strict load, a finite answer, the way back, and the other library's network."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixtransfer.backbones import Backbone
from mixtransfer.checkpoints.fit import AUX_HEAD, HEAD, FittedState, misfits, shorten
from mixtransfer.checkpoints.rename import OURS, Renamed, key_map, rename
from mixtransfer.checkpoints.select import matches
from mixtransfer.errors import UserError

__all__ = ["Candidate", "build_without_values", "differing", "file_names", "nonfinite", "prove"]

#: Functions of ``torch.nn.init``, and the methods of tensors with which others initialize parameters.
FILLS = {name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")} | {
    *("add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "sub_", "zero_"),
}
#: The largest difference of two answers, in standard deviations of the library's.
TOLERANCE = 1e-4
#: Of images for dense networks with windows: those of 7, 8 and 12 pad maps of it, and cover the last.
PADDED_SIZE = (160, 160)
#: The prefix that a format's own files put before the backbone's names, beside the classifier's ``head.``.
FILE_PREFIX = {"mmpretrain": "backbone."}


@dataclass(frozen=True)
class Candidate:
    """A conversion that is to be proven.

    Attributes:
        file: the name of the source, for messages.
        weights: its entries, under its own names.
        fitted: the same under our names, fitted to the network.
        theirs: the same under the names of ``target``, as they will be written.
        target: the format to write.
        net: our network, built without values; its proof loads ``fitted`` into it.
        network: keyword arguments of the backbone that differ from the published ones.
    """

    file: str
    weights: Mapping[str, Tensor]
    fitted: FittedState
    theirs: Renamed
    target: str
    net: Backbone
    network: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that the network is made for."""
        size = self.network.get("img_size") or getattr(self.net.archs[self.net.arch], "img_size", 224)
        return (size, size) if isinstance(size, int) else tuple(size)

    def images(self, size: tuple[int, int]) -> Tensor:
        """Return the images (1, channels, H, W) of a proof: standard normal, the same on every machine."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, self.network.get("in_channels", 3), *size, generator=generator)

    def under_names_of(self, library: str, state: Mapping[str, Tensor]) -> Renamed:
        """Return entries under the names of a library; the very ones to be written, where they are the same."""
        own = self.fitted.state
        if library == self.target and state.keys() == own.keys() and all(state[key] is own[key] for key in own):
            return self.theirs
        return rename(state, self.net.arch, OURS, library)


class _NoInit(TorchFunctionMode):
    """Skip what fills parameters: their values come from the checkpoint."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # torch.nn.init hands its tensor over by name.
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, nn.Parameter) and getattr(function, "__name__", "") in FILLS:
            return target
        return function(*args, **kwargs)


@contextmanager
def build_without_values() -> Iterator[None]:
    """Build networks inside whose parameters have no values yet and take no memory; buffers have theirs.

    The device ``meta`` would do the same for our networks; those of timm make buffers where their parameters are.
    """
    with _NoInit():
        yield


def prove(candidate: Candidate, allow_nonfinite: bool = False) -> dict[str, str]:
    """Prove that a conversion loads, answers, equals the libraries' networks and goes back.

    Args:
        candidate: the conversion.
        allow_nonfinite: accept NaN and infinite answers; libraries are not compared then.

    Returns:
        A sentence for each thing that was proven.

    Raises:
        UserError: one of them does not hold.
    """
    goes_back = _prove_return(candidate)
    net, fitted, size = candidate.net, candidate.fitted, candidate.size
    answer = _run(net, fitted.state, candidate.images(size))
    what = "maps" if not net.with_embedding else "logits" if HEAD[0] in fitted.state else "embedding"
    finite = all(bool(x.isfinite().all()) for x in answer)
    if not finite and not allow_nonfinite:
        raise UserError(f"{candidate.file}: {net.arch} answers with NaN or infinite {what}; these weights do not work")
    libraries = sorted({fitted.source, candidate.target} - {OURS, "official"}) if finite else ()
    return {
        **{f"against {library}": _prove_equal(candidate, library, answer) for library in libraries},
        "loads": "strictly, every entry",
        "answers": f"{'finite' if finite else 'NaN or infinite'} {what} on a fixed {size[0]}x{size[1]} image",
        "goes back": goes_back,
    }


def _prove_return(candidate: Candidate) -> str:
    """Rename what is to be written back to ours and on to the source's names, where the bytes must be the source's."""
    fitted, theirs, arch = candidate.fitted, candidate.theirs, candidate.net.arch
    placed = {key: value for key, value in fitted.state.items() if key not in theirs.left_out}
    back = rename(theirs.state, arch, candidate.target).state
    unchanged = {key: value for key, value in back.items() if key in placed and key not in fitted.resized}
    returned = rename(unchanged, arch, OURS, fitted.source).state
    lost = [*differing(returned, candidate.weights), *differing(placed, back)]
    if lost:
        raise UserError(
            f"{candidate.file}: {len(lost)} entries do not come back as they were: {shorten(lost)}; the file mixes"
            f" names of two formats, or is not in {fitted.source} names: say --from"
        )
    return f"{len(returned)} entries with the same bytes under {fitted.source} names"


def _prove_equal(candidate: Candidate, library: str, answer: tuple[Tensor, ...]) -> str:
    """Compare our network's answer with that of the library's own."""
    result = _compare(candidate, library, answer)
    if isinstance(result, str):
        return f"not compared: {result}"
    difference, on = result
    if not difference <= TOLERANCE:
        raise UserError(
            f"{candidate.file}: {library}'s {candidate.net.arch} answers otherwise: {on} differ by {difference:.1e} of"
            f" their standard deviation, {TOLERANCE:.0e} is allowed; this is a bug, nothing was written"
        )
    return f"{on} differ by {difference:.1e} of their standard deviation"


def _run(backbone: Backbone, state: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor, ...]:
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


def _compare(candidate: Candidate, library: str, answer: tuple[Tensor, ...]) -> tuple[float, str] | str:
    """Feed the same images to our network and to the library's own, and return how far the answers are apart.

    Both get the converted weights. Where the library's network is dense, or the weights are, dense maps are compared,
    with windows at a size of its own: where a window covers a whole map, classifiers drop the shift that dense networks
    keep. Dense norms that the weights lack are the identity's, 1 and 0, in both. Weights without a
    head count as dense in a family whose embedding reads nothing but the maps, if the library has a dense network.

    Args:
        candidate: the conversion; its network is loaded.
        library: the format.
        answer: the network's answer on the images of its size.

    Returns:
        The largest absolute difference relative to the standard deviation of the library's answer, and what was
        compared; or why nothing was.

    Raises:
        UserError: the library's network does not take the weights.
    """
    net = candidate.net
    dense = key_map(type(net), library).dense or not net.with_embedding
    if not dense and HEAD[0] not in candidate.fitted.state and not net.embed_only:
        result = _compare_at(candidate, library, answer, dense=True)
        if not isinstance(result, str):
            return result
    return _compare_at(candidate, library, answer, dense)


def _compare_at(candidate: Candidate, library: str, answer: tuple[Tensor, ...], dense: bool) -> tuple[float, str] | str:
    net, state, network = candidate.net, candidate.fitted.state, candidate.network
    names, head = key_map(type(net), library), state.get(HEAD[0])
    none = f"no network of {library} takes these weights"
    if names.network is None:
        return none
    size = _comparable_size(candidate, dense, names.dense)
    images = candidate.images(size)
    if dense:
        ours, named = _dense_counterpart(candidate, library, {**network, **net.at_size(size)})
        with _evaluating(ours):
            answer = ours(images)
    else:
        if size != candidate.size:
            with build_without_values():
                ours = type(net)(arch=net.arch, out_indices=(), with_embedding=True, **{**network, **net.at_size(size)})
            own = {*ours.state_dict(), *HEAD, *AUX_HEAD}
            state = ours.resize_loaded({key: value for key, value in state.items() if key in own})
            answer = _run(ours, state, images)
        named = candidate.under_names_of(library, state)
    spec, fields = net.archs[net.arch], {field.name for field in dataclasses.fields(net.archs[net.arch])}
    sizes = {"img_size": size if size[0] != size[1] else size[0], "window": network.get("window")}
    spec = dataclasses.replace(spec, **{k: v for k, v in sizes.items() if k in fields and v is not None})
    with _size_errors(library, net.arch, size, "img_size" in network):
        try:
            with build_without_values():
                theirs = names.network(spec, None if dense else 0 if head is None else len(head), images.size(1))
        except ModuleNotFoundError as error:
            return f"{error.name} is not installed"
        if theirs is None:
            return none
        _load_theirs(theirs, named.state, library, net)
        with _evaluating(theirs):
            other = _maps(theirs, images, net.out_indices) if dense else _vector(theirs(images))
    what = "dense maps" if dense else "logits" if head is not None else "embedding"
    return _largest_difference(answer, other), f"{what} at {size[0]}x{size[1]}"


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


def _comparable_size(candidate: Candidate, dense: bool, pads: bool) -> tuple[int, int]:
    """Return the image size at which a library's network computes what ours does.

    Dense code with windows that pads takes a small size. Classifiers pad each in its own way, or drop what is no whole
    patch, so there patches and windows fit. With windows the images are square, as networks differ in whether a window
    that covers one side of a map ends the shift along the other; those of dense maps are two windows wide.
    """
    net, network, size = candidate.net, candidate.network, candidate.size
    window = network.get("window") or getattr(net.archs[net.arch], "window", 0)
    if window and dense and pads:
        return PADDED_SIZE
    with build_without_values():
        strides = type(net)(arch=net.arch).strides
    unit = window * max(strides) or min(strides)
    larger = -(-size[0] // unit) * unit, -(-size[1] // unit) * unit
    if window:
        side = 2 * unit if dense else max(larger)
        return side, side
    # Our networks, too, either pad to whole patches or drop the rest; tables tell.
    if larger != size and _shapes(net, {**network, **net.at_size(larger)}) != _shapes(net, network):
        return max(size[0] // unit, 1) * unit, max(size[1] // unit, 1) * unit
    return larger


def _shapes(net: Backbone, network: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    with build_without_values():
        return {key: tuple(value.shape) for key, value in type(net)(arch=net.arch, **network).state_dict().items()}


def _dense_counterpart(candidate: Candidate, library: str, network: Mapping[str, Any]) -> tuple[Backbone, Renamed]:
    """Return our dense network without the norms that the library has no place for, loaded, and its entries there."""
    net, state = candidate.net, candidate.fitted.state
    outputs = {"out_indices": net.out_indices} if net.out_indices else {}
    with build_without_values():
        ours = type(net)(arch=net.arch, **outputs, **network)
    own = ours.state_dict()
    state = ours.resize_loaded({key: value for key, value in state.items() if key in own})
    for key in own.keys() - state.keys():
        state[key] = (torch.ones_like if key.endswith("weight") else torch.zeros_like)(own[key])
    theirs = candidate.under_names_of(library, state)
    _without_layers(ours, theirs.left_out)
    ours.load_state_dict(
        {key: _single(value) for key, value in state.items() if key not in theirs.left_out}, assign=True
    )
    return ours, theirs


def _without_layers(network: nn.Module, keys: Collection[str]) -> None:
    """Put the identity in place of the layers that hold these entries."""
    for name in {key.rpartition(".")[0] for key in keys}:
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, nn.Identity())


def _load_theirs(theirs: nn.Module, state: Mapping[str, Tensor], library: str, net: Backbone) -> None:
    """Load strictly; the network may lack entries that it computes, and those of layers that are not compared."""
    named = {key: _single(value) for key, value in file_names(state, library).items()}
    result = theirs.load_state_dict(named, strict=False, assign=True)
    prefix, unread = FILE_PREFIX.get(library, ""), (*net.embed_only, r"head\..+")
    missing = []
    for key in result.missing_keys:
        ours = next(iter(rename({key.removeprefix(prefix): torch.empty(0)}, net.arch, library).state), "")
        if ours and not matches(unread, ours):
            missing.append(key)
    problems = misfits(missing=missing, unexpected=result.unexpected_keys)
    if problems:
        raise UserError(f"{library}'s {net.arch} does not take the weights: {problems}")


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def file_names(state: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    """Return the entries as the library's own files name them: with the prefix of the backbone, if they have one."""
    prefix = FILE_PREFIX.get(library, "")
    return {key if key.startswith("head.") else prefix + key: value for key, value in state.items()}


def _maps(network: nn.Module, images: Tensor, indices: Sequence[int]) -> tuple[Tensor, ...]:
    intermediates = getattr(network, "forward_intermediates", None)
    if intermediates is not None:
        return tuple(intermediates(images, indices=list(indices), intermediates_only=True))
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
    return [key for key, value in first.items() if key not in second or not _same(second[key], value)]


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b)))


def _bits(value: Tensor) -> Tensor:
    return value.detach().contiguous().reshape(-1).view(torch.uint8)
