"""Any network of timm with ``forward_intermediates``, which is nearly every one, by timm's own name.

Library: huggingface/pytorch-image-models (Apache-2.0), from release 1.0.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mixtransfer.backbones.foreign.wrapped import Sketch, WrappedArchs, WrappedBackbone, measured
from mixtransfer.errors import UserError, unknown_name
from mixtransfer.registry import MODELS

__all__ = ["PREFIX", "TimmBackbone", "known_tags"]

PREFIX = "timm/"
#: Settings with which networks that were made for one size of images take any, where they have them.
ANY_SIZE: Mapping[str, Any] = {"dynamic_img_size": True, "dynamic_mask": True, "strict_img_size": False}
#: Arguments of ``timm.create_model`` that would read a file or the network, or say what options here say.
NOT_OURS = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable"),
    *("features_only", "out_indices", "num_classes", "in_chans", "drop_path_rate"),
)


def known_tags(name: str) -> list[str]:
    """Return the pretrained tags that the installed timm lists for a network.

    Raises:
        UserError: it has no such network.
    """
    from timm.models import get_arch_pretrained_cfgs, is_model, list_models

    if not is_model(name):
        known = list_models()
        # All thousand of them are no help.
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise unknown_name("network of timm", name, known if near else ["timm.list_models() has them"])
    return [full.partition(".")[2] for full in get_arch_pretrained_cfgs(name) if "." in full]


def _draw(arch: str) -> Sketch:
    return TimmBackbone.sketched(arch, {}, 3)


def _names() -> list[str]:
    from timm.models import list_models

    return list_models()


@MODELS.register_module()
class TimmBackbone(WrappedBackbone):
    """A network of timm, under timm's names of weights.

    Its file is read by our loader, completely: ``init_cfg=dict(type="mixtransfer.Pretrained", checkpoint=FILE)``. Names
    of the original authors go through timm's own ``checkpoint_filter_fn``. Outputs are those of
    ``forward_intermediates``, without a final norm: stages, or the blocks of a network of one stride.

    Args:
        arch: ``"timm/NAME"`` or ``"timm/NAME.TAG"``, as ``timm.list_models()`` has them; the tag names weights and
            changes, if anything, the size of images that the network is built for.
        network: further arguments of ``timm.create_model``, e.g. ``dict(img_size=384)``.
        options: those of :class:`~mixtransfer.backbones.base.Backbone`.
    """

    family = "timm"
    archs = WrappedArchs(PREFIX, _names, _draw)

    @classmethod
    def drawn(cls, arch: str, network: Mapping[str, Any], in_channels: int) -> Sketch:
        from timm.models._manipulate import group_with_matcher

        with torch.device("meta"):
            whole = _create(arch, network, {"in_chans": in_channels})
            body = _create(arch, network, {"in_chans": in_channels, "num_classes": 0}).eval()
        if not hasattr(body, "forward_intermediates"):
            raise UserError(f"{arch}: timm cannot tell the maps inside of it (no forward_intermediates); take another")
        info, side = list(body.feature_info), _side(body)
        indices = list(range(len(info)))
        cell = math.lcm(*(entry["reduction"] for entry in info))
        outputs, fixed = measured(arch, lambda x: _maps(body, x, indices), in_channels, [cell], side)
        grouped = {}
        for coarse in (False, True):
            # A name that no pattern takes comes behind the last block.
            names = itertools.chain(body.named_parameters(), [("\0", None)])
            grouped[coarse] = group_with_matcher(names, body.group_matcher(coarse=coarse), reverse=True)
        layers, stages = grouped[False], grouped[True]
        depth, count = layers.pop("\0") - 1, stages.pop("\0") - 1
        made = [
            max((n for name, n in stages.items() if name.startswith(entry["module"] + ".") and n <= count), default=0)
            for entry in info
        ]
        with torch.no_grad():
            sides = fixed or (4 * max(stride for _, stride in outputs),) * 2
            vector = body(torch.empty(1, in_channels, *sides, device="meta"))
        return Sketch(
            outputs=outputs,
            fixed=fixed,
            embed_channels=vector.shape[-1],
            layers=layers,
            stages=stages,
            whole=frozenset((*whole.state_dict(), *body.state_dict())),
            depth=depth,
            stage_count=count,
            output_stages=tuple(made),
            img_size=side,
        )

    def create(self, indices: Sequence[int]) -> nn.Module:
        given: dict[str, Any] = {"in_chans": self.in_channels, "num_classes": 0}
        if self.drop_path_rate:
            given["drop_path_rate"] = self.drop_path_rate
        body = _create(self.arch, self.network, given)
        if not self.with_embedding and indices and hasattr(body, "prune_intermediate_layers"):
            body.prune_intermediate_layers(list(indices), prune_norm=True, prune_head=True)
        return body

    def maps(self, body: nn.Module, images: Tensor, indices: Sequence[int]) -> Sequence[Tensor]:
        return _maps(body, images, indices)

    def vector(self, images: Tensor) -> Tensor:
        return self.body(images)

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        adapt = getattr(sys.modules[type(self.body).__module__], "checkpoint_filter_fn", None)
        try:
            return state if adapt is None else dict(adapt(state, self.body))
        except (AssertionError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"timm's {adapt.__name__}: {type(error).__name__} {error}") from error

    def undecayed(self) -> set[str]:
        return set(self.body.no_weight_decay()) if hasattr(self.body, "no_weight_decay") else set()


def _create(arch: str, network: Mapping[str, Any], given: Mapping[str, Any]) -> nn.Module:
    """Build a network of timm with random weights, for images of any size where it can be."""
    import timm

    name = arch.removeprefix(PREFIX)
    plain, _, tag = name.partition(".")
    tags = known_tags(plain)
    if tag and tag not in tags:
        raise unknown_name(f"pretrained tag of {plain}", tag, tags)
    refused = sorted(set(network) & set(NOT_OURS))
    if refused:
        raise UserError(
            f"network of {arch}: {refused[0]} is not taken here; init_cfg names weights, out_indices outputs"
        )
    try:
        return timm.create_model(name, **{**_flexible(plain), **network}, **given)
    except TypeError as error:
        raise UserError(f"{arch}: {str(error).splitlines()[0]}") from error


@cache
def _flexible(name: str) -> dict[str, Any]:
    """Return those of :data:`ANY_SIZE` that a network of timm has."""
    import timm

    with torch.device("meta"):
        taken = inspect.signature(type(timm.create_model(name)).__init__).parameters
    return {key: value for key, value in ANY_SIZE.items() if key in taken}


def _maps(body: Any, images: Tensor, indices: Sequence[int]) -> Sequence[Tensor]:
    if not indices:
        return []
    return body.forward_intermediates(images, indices=list(indices), output_fmt="NCHW", intermediates_only=True)


def _side(body: Any) -> int:
    """Return the side of the images that a network of timm is built for."""
    size = getattr(getattr(body, "patch_embed", None), "img_size", None) or body.default_cfg["input_size"][-1]
    return size if isinstance(size, int) else size[0]
