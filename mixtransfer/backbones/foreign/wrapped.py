"""The contract of backbones around a network that another library computes.

Before a network is built, it is drawn on the device ``meta``, without values: a pass there tells the channels and
strides of its maps, whether it takes images of any size, and which parameters no output reads. Nothing is taken from
what a library declares about its networks.

Shapes: B batch, H × W image, C_i channels and s_i stride of output i.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixtransfer.backbones.base import Backbone, statistics_kept
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.errors import UserError

__all__ = ["Sketch", "WrappedArchs", "WrappedBackbone"]

#: The attribute that holds the library's network, in front of all names of its entries.
FRONT = "body."
#: What a pass through a network raises at a size of images that it does not take.
REFUSALS = (AssertionError, RuntimeError, ValueError, IndexError, TypeError)
#: What was found out in this process: sketches by class, name, settings and channels, and unread parameters of those.
SKETCHES: dict[tuple, Sketch] = {}
UNREAD: dict[tuple, list[str]] = {}
#: Outputs of finer maps are left out of the default, as dense heads have no use for them.
FINEST = 4


@dataclass(frozen=True)
class Sketch:
    """The outline of a network.

    Attributes:
        outputs: (channels, stride) of each output.
        fixed: the one height and width of images that it takes, or None where it takes any.
        embed_channels: channels of the image embedding.
        layers: parameter -> its layer: 0 before the blocks, 1 … ``depth`` inside, ``depth`` + 1 behind them.
        stages: parameter -> its stage, numbered in the same way.
        whole: the entries of the network with its classifier and everything else that a dense network goes without.
        depth: the number of blocks.
        stage_count: the number of stages.
        output_stages: the stage that makes each output.
        img_size: the side of the images that it was pretrained on.
    """

    outputs: tuple[tuple[int, int], ...]
    fixed: tuple[int, int] | None
    embed_channels: int
    layers: Mapping[str, int]
    stages: Mapping[str, int]
    whole: frozenset[str]
    depth: int
    stage_count: int
    output_stages: tuple[int, ...]
    img_size: int

    @property
    def plain(self) -> bool:
        """Whether all maps have one stride, so that a neck has to make their pyramid."""
        return len({stride for _, stride in self.outputs}) == 1

    @property
    def patch(self) -> int | None:
        """The stride of a plain network, as the sizes of families of ours name it."""
        return self.outputs[0][1] if self.plain else None

    @property
    def multiple(self) -> int:
        """The number of pixels that both sides of the images are padded to a multiple of."""
        return math.lcm(*(stride for _, stride in self.outputs))

    def usual_outputs(self) -> tuple[int, ...] | None:
        """Return the outputs of strides from 4 on, the last four of them; None where the stride is always the same."""
        found = [index for index, (_, stride) in enumerate(self.outputs) if stride >= FINEST]
        return None if self.plain or len(self.outputs) <= 4 else tuple(found[-4:])


class WrappedArchs(Mapping[str, Sketch]):
    """The networks of a library by name, each drawn when it is asked for.

    Args:
        prefix: what precedes the library's own names.
        names: returns the names that the library lists.
        draw: returns the sketch of a network; raises a UserError about a name that it does not know.
    """

    def __init__(self, prefix: str, names: Callable[[], Sequence[str]], draw: Callable[[str], Sketch]):
        self.prefix, self.names, self.draw = prefix, names, draw

    def __contains__(self, arch: object) -> bool:
        """Tell whether a name is meant for the library; whether it has the network, :meth:`__getitem__` finds out."""
        return isinstance(arch, str) and arch.startswith(self.prefix)

    def __getitem__(self, arch: str) -> Sketch:
        if arch not in self:
            raise KeyError(arch)
        return self.draw(arch)

    def __iter__(self) -> Iterator[str]:
        return (self.prefix + name for name in self.names())

    def __len__(self) -> int:
        return len(self.names())


class WrappedBackbone(Backbone):
    """Base of the backbones whose network another library computes.

    Images are padded on the right and at the bottom to whole tokens of the coarsest map, and the maps are cut to
    ceil(H / s_i) × ceil(W / s_i). Token labels are pooled onto the maps. ``layer_of``, ``frozen_stages`` and
    ``with_cp`` go by the library's own blocks and stages. Parameters that no chosen output reads are not trained.

    Args:
        arch: the library's name of the network, behind the library's prefix.
        network: the library's own settings of the network that differ from what ``arch`` says.
        out_indices: by default the last four outputs of strides from 4 on, or four evenly spaced blocks of a network of
            one stride.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.

    Raises:
        UserError: the library is not installed or has no such network, the network takes no such setting, or no such
            images.
    """

    label_rule = "pooling"
    evidence = ()
    archs: ClassVar[WrappedArchs]
    body: nn.Module

    def __init__(
        self,
        arch: str,
        *,
        network: Mapping[str, Any] | None = None,
        out_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        **options: Any,
    ):
        if arch in self.archs:
            self.network = dict(network or {})
            self.sketch = self.sketched(arch, self.network, in_channels)
            self.archs = {arch: self.sketch}  # pyright: ignore[reportAttributeAccessIssue]
            out_indices = self.sketch.usual_outputs() if out_indices is None else out_indices
        super().__init__(arch, out_indices=out_indices, in_channels=in_channels, **options)

    # What a library's class says ------------------------------------------------------------------------------------

    @classmethod
    def drawn(cls, arch: str, network: Mapping[str, Any], in_channels: int) -> Sketch:
        """Draw a network with settings of one's own."""
        raise NotImplementedError

    def create(self, indices: Sequence[int]) -> nn.Module:
        """Return the library's network with random weights, without what none of the outputs ``indices`` reads."""
        raise NotImplementedError

    def maps(self, body: nn.Module, images: Tensor, indices: Sequence[int]) -> Sequence[Tensor]:
        """Return the maps (B, C_i, h, w) of the outputs ``indices`` of padded images."""
        raise NotImplementedError

    def vector(self, images: Tensor) -> Tensor:
        """Return the image embedding (B, D) of padded images."""
        raise NotImplementedError

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return entries of a file under the names of :attr:`body`, with tables of its sizes."""
        raise NotImplementedError

    def undecayed(self) -> set[str]:
        """Return the names of parameters of :attr:`body` that the library's recipes do not decay."""
        raise NotImplementedError

    @classmethod
    def sketched(cls, arch: str, network: Mapping[str, Any], in_channels: int) -> Sketch:
        """Return the sketch of a network, drawn once in a process."""
        key = cls.family, arch, repr(sorted(network.items())), in_channels
        if key not in SKETCHES:
            SKETCHES[key] = cls.drawn(arch, network, in_channels)
        return SKETCHES[key]

    # The contract ---------------------------------------------------------------------------------------------------

    def outputs(self, spec: Sketch) -> Sequence[tuple[int, int]]:
        return spec.outputs

    def build(self, spec: Sketch) -> None:
        self.embed_channels = self.sketch.embed_channels
        self.body = self.create(self.out_indices)
        # Everything else that the file of the whole network holds is left behind, by a rule of the loader.
        own = self.body.state_dict().keys()
        self.embed_only = tuple(re.escape(FRONT + key) for key in sorted(self.sketch.whole - own))  # pyright: ignore
        if not self.with_embedding and self.out_indices:
            for name in self._unread():
                self.body.get_parameter(name).requires_grad_(False)
        if self.with_cp:
            for block, parts in maximal_parts(self.body, self.sketch.layers).items():
                for part in parts if 0 < block <= self.depth else ():
                    if isinstance(part, nn.Module):
                        _recompute(part)

    def trunk(self, images: Tensor, labels: Tensor | None, count: int) -> Iterator[tuple[Any, None]]:
        size, indices = images.shape[-2:], [index for index in self.out_indices if index < count]
        found = dict(zip(indices, self.maps(self.body, self.padded(images), indices), strict=True))
        for index in range(count):
            if index not in found:
                yield None, None
                continue
            height, width = (math.ceil(side / self.sketch.outputs[index][1]) for side in size)
            yield found[index][:, :, :height, :width].permute(0, 2, 3, 1), None

    def embedding(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, None]:
        return self.vector(self.padded(images)), None

    def padded(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) as the network takes them.

        Raises:
            UserError: it takes images of one size only, and these are of another.
        """
        height, width = images.shape[-2:]
        fixed, multiple = self.sketch.fixed, self.sketch.multiple
        if fixed is not None and (height, width) != fixed:
            raise UserError(
                f"{self.arch} takes images of {fixed[0]}×{fixed[1]} pixels only, not {height}×{width}; build it for"
                f" others, network=dict(img_size={max(height, width)}), where it can be, or crop and test at that size"
            )
        below, right = -height % multiple, -width % multiple
        return F.pad(images, (0, right, 0, below)) if below or right else images

    def stage_modules(self) -> list[list[nn.Module | nn.Parameter]]:
        parts = maximal_parts(self.body, self.sketch.stages)
        return [parts.get(stage, []) for stage in range(self.sketch.stage_count + 1)]

    def output_stage(self, index: int) -> int:
        return self.sketch.output_stages[index]

    def layer_of(self, name: str) -> int:
        return self.sketch.layers.get(name.removeprefix(FRONT), self.depth + 1)

    def no_weight_decay(self) -> set[str]:
        own = {name for name, _ in self.body.named_parameters()}
        return {FRONT + name for name in self.undecayed() & own}

    def resize_loaded(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        inside = {key.removeprefix(FRONT): value for key, value in state.items() if key.startswith(FRONT)}
        rest = {key: value for key, value in state.items() if not key.startswith(FRONT)}
        return {**rest, **{FRONT + key: value for key, value in self.adapted(inside).items()}}

    @classmethod
    def formats(cls) -> dict[str, KeyMap]:
        heads = (("head.weight", "head.weight"), ("head.bias", "head.bias"))
        return {cls.family: KeyMap(renames=(*heads, ("{rest}", FRONT + "{rest}")))}

    def _unread(self) -> list[str]:
        """Return the parameters that none of the chosen outputs reads, as a pass on the device ``meta`` tells."""
        key = id(self.sketch), self.out_indices
        if key not in UNREAD:
            sides = self.sketch.fixed or (4 * self.sketch.multiple,) * 2
            with torch.device("meta"), torch.enable_grad():
                shadow = self.create(self.out_indices).eval()
                images = torch.empty(1, self.in_channels, *sides)
                names, parameters = zip(*shadow.named_parameters(), strict=True)
                total = sum(x.sum() for x in self.maps(shadow, images, self.out_indices))
                gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            UNREAD[key] = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
        return UNREAD[key]


def measured(
    arch: str, run: Callable[[Tensor], Sequence[Tensor]], in_channels: int, cells: Sequence[int], side: int
) -> tuple[tuple[tuple[int, int], ...], tuple[int, int] | None]:
    """Return (channels, stride) of each map of a network on the device ``meta``, and the size that it is fixed to.

    Args:
        arch: for messages.
        run: from images (1, C, H, W) to the maps.
        in_channels: C.
        cells: numbers of pixels, of one of which the strides are divisors.
        side: of the images that the network was pretrained on.

    Raises:
        UserError: its maps have no whole strides.
    """
    odd = None
    for height, width in [(4 * cell, 5 * cell) for cell in cells] + [(side, side)]:
        fixed = (side, side) if (height, width) == (side, side) else None
        if fixed and odd:
            break  # It takes any size, but has no whole strides.
        try:
            with torch.no_grad():
                maps = run(torch.empty(1, in_channels, height, width, device="meta"))
        except REFUSALS:
            if fixed:
                raise
            continue
        found = [(x.size(1), round(height / x.size(2))) for x in maps]
        sides = [(-(-height // stride), -(-width // stride)) for _, stride in found]
        if sides == [tuple(x.shape[2:]) for x in maps]:
            return tuple(found), fixed
        odd = f"{arch}: makes maps of {maps[-1].size(2)}×{maps[-1].size(3)} tokens of images of {height}×{width} pixels"
    raise UserError(f"{odd}, no whole stride; take another network")


def maximal_parts(body: nn.Module, numbers: Mapping[str, int]) -> dict[int, list[nn.Module | nn.Parameter]]:
    """Return, by number, the largest modules all of whose parameters have it, and the parameters beside those."""
    found: dict[int, list[nn.Module | nn.Parameter]] = {}

    def visit(module: nn.Module, path: str) -> None:
        inside = {numbers[path + name] for name, _ in module.named_parameters()}
        if len(inside) == 1 and path and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            found.setdefault(inside.pop(), []).append(module)
        elif inside:
            for name, parameter in module.named_parameters(recurse=False):
                found.setdefault(numbers[path + name], []).append(parameter)
            for name, child in module.named_children():
                visit(child, f"{path}{name}.")

    visit(body, "")
    return found


class _Recomputed:
    """Put before a block's class: its activations are computed again in the backward pass.

    Statistics count the batch once, and draws are repeated. The block keeps its place and its names.
    """

    training: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = super().forward  # pyright: ignore[reportAttributeAccessIssue]
        if not self.training or not torch.is_grad_enabled():
            return run(*args, **kwargs)
        contexts = lambda: (nullcontext(), statistics_kept(self))  # noqa: E731 # pyright: ignore
        return checkpoint(run, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _recompute(block: nn.Module) -> None:
    kind = type(block)
    block.__class__ = type(f"Recomputed{kind.__name__}", (_Recomputed, kind), {})
