"""The contract that every backbone fulfills.

Shapes: B batch, H × W image, K label channels, C_i channels of output i with strides s_i, h × w the map of an output.

* ``forward(images)`` returns the tuple of dense maps (B, C_i, H_i, W_i), H_i = ceil(H / s_i), as the published dense
  code computes them; with ``token_labels`` (B, K, h, w) also the tuple of aligned labels (B, K, H_i, W_i).
* ``embed(images)`` returns the (B, D) vector that the published classifier feeds its linear head; with
  ``token_labels`` also the (B, K) label of that vector.
* ``embed_with_evidence(images, wanted)`` returns that vector and what some pretraining methods read beside it: the
  attention of the last block, the last tokens. A family lists what it offers in ``evidence``.

A family declares its published variants in ``archs`` and its published names of entries in ``official``. It says which
outputs a size has (:meth:`Backbone.outputs`), makes its layers (:meth:`Backbone.build`), computes the map of one output
after the other (:meth:`Backbone.trunk`), and the embedding from the same layers (:meth:`Backbone.embedding`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, TypeVar, overload

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mixtransfer.backbones.formats import library_formats
from mixtransfer.backbones.formats.key_map import KeyMap
from mixtransfer.backbones.reported import Reported
from mixtransfer.errors import UserError, unknown_name
from mixtransfer.layers.attention_maps import current_watch, noting, watching
from mixtransfer.layers.host_draws import PassDraws, repeated
from mixtransfer.layers.labels import image_label, pool_labels
from mixtransfer.layers.overwrite import unhooked
from mixtransfer.layers.residual import checked_rate, drop_path_rates

__all__ = ["ATTENTION", "OUTPUT_NORMS", "Backbone", "TokenClassifier", "evenly_spaced", "pyramid", "statistics_kept"]

T = TypeVar("T")

#: The evidence of a family whose last block attends to all patches, at the sizes at which it does.
ATTENTION = ("class_attention", "image_attention", "tokens")
#: Values of ``output_norm``.
OUTPUT_NORMS = ("published", "layer", "none")


class TokenClassifier(nn.Module):
    """A light classifier of single tokens on chosen outputs: LayerNorm over channels, then a linear map.

    Args:
        channels: channels C_i of each output of the backbone.
        num_classes: number of classes, background included where the labels have one.
        stages: positions in the tuple of outputs.

    Raises:
        UserError: ``stages`` is empty, or names an output that there is not.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, stages: Sequence[int]):
        super().__init__()
        if not stages or not all(0 <= stage < len(channels) for stage in stages):
            raise UserError(
                f"token_classifier.stages={tuple(stages)}: give some of the outputs, 0 to {len(channels) - 1}"
            )
        self.num_classes, self.stages = num_classes, tuple(stages)
        self.norms = nn.ModuleList(nn.LayerNorm(channels[stage]) for stage in stages)
        self.heads = nn.ModuleList(nn.Linear(channels[stage], num_classes) for stage in stages)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return logits (B, num_classes, H_i, W_i) for each of ``stages``."""
        return tuple(
            head(norm(features[stage].permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            for stage, norm, head in zip(self.stages, self.norms, self.heads, strict=True)
        )


class Backbone(BaseModule):
    """Base of all families.

    Args:
        arch: one of ``archs``, which holds the size of each variant by its name.
        in_channels: channels of the images.
        out_indices: outputs that are returned, see :meth:`outputs`; by default all, or four evenly spaced ones where
            there are more than four (the blocks of a network of one scale).
        output_norm: norms of the returned maps: ``"published"`` (those of the published dense code, if it has any),
            ``"layer"`` (a LayerNorm over the channels of each), or ``"none"``.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0; the same in all blocks where the
            published network has it so.
        frozen_stages: −1 freezes nothing, 0 the patch embedding, n also the first n stages (blocks, in networks of
            one scale).
        with_cp: recompute activations in the backward pass.
        with_embedding: keep the layers that only :meth:`embed` reads (the classifier's last norm, class-attention
            blocks, …). Off in dense models, where such parameters get no gradient, which stops distributed training.
        token_classifier: arguments of :class:`TokenClassifier`, or None.
        init_cfg: OpenMMLab initialization, e.g. ``dict(type="mixtransfer.Pretrained", checkpoint=...)``.
        options: the family's own, keywords of its :meth:`build`. Where one is ``img_size``, it is the side, or height
            and width, that tables are made for; by default the published one.

    Raises:
        UserError: a value that the architecture does not have or that is out of its range.
        TypeError: an option that the family does not have.
    """

    family: ClassVar[str]
    archs: ClassVar[Mapping[str, Any]]
    #: What the authors print about the variants; a variant may be missing.
    reported: ClassVar[Mapping[str, Reported]] = {}
    #: The paper's own names of entries; those of libraries are in :mod:`mixtransfer.backbones.formats`.
    official: ClassVar[KeyMap] = KeyMap()
    #: How token labels travel: ``"attention"``, or ``"pooling"`` where a network has none.
    label_rule: ClassVar[str]
    #: Regular expressions of entries that only ``forward`` reads and published classifiers lack.
    dense_only: ClassVar[tuple[str, ...]] = ()
    #: Regular expressions of entries that only ``embed`` reads and published dense checkpoints lack.
    embed_only: ClassVar[tuple[str, ...]] = ()
    #: What :meth:`embed_with_evidence` can tell beside the embedding; a network without attention has tokens alone.
    evidence: ClassVar[tuple[str, ...]] = ("tokens",)
    #: Where the last block of :data:`ATTENTION` is: attributes and positions, from the backbone on.
    last_block: ClassVar[tuple[str | int, ...]] = ()
    #: Whether the published classifier has a second head, ``aux_head``, on tokens, half of whose largest logit is added
    #: to the logits of the embedding. Such a family has ``encode``, which returns both.
    has_token_logits: bool = False
    encode: Callable[..., Any]
    norm: nn.Module

    def __init__(
        self,
        arch: str,
        *,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        output_norm: str = "published",
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        with_embedding: bool = False,
        token_classifier: dict | None = None,
        init_cfg: dict | None = None,
        **options: Any,
    ):
        if arch not in self.archs:
            raise unknown_name(f"architecture of {type(self).__name__}", arch, self.archs)
        if output_norm not in OUTPUT_NORMS:
            raise unknown_name("output_norm", output_norm, OUTPUT_NORMS)
        for name in options.keys() - self.own_options():
            raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument {name!r}")
        super().__init__(init_cfg)
        spec = self.archs[arch]
        self.arch, self.in_channels = arch, in_channels
        self.with_cp, self.with_embedding = with_cp, with_embedding
        self.drop_path_rate = checked_rate(drop_path_rate)
        self.draws = PassDraws()
        self.depths: tuple[int, ...] = spec.depths if hasattr(spec, "depths") else (spec.depth,)
        self.depth = sum(self.depths)
        outputs = self.outputs(spec)
        self.embed_channels, self.last_stride, self.output_count = *outputs[-1], len(outputs)
        self.out_indices = _checked_indices(out_indices, len(outputs), arch)
        self.out_channels: tuple[int, ...] = tuple(outputs[index][0] for index in self.out_indices)
        self.strides: tuple[int, ...] = tuple(outputs[index][1] for index in self.out_indices)
        if "img_size" in self.own_options():
            size = options.get("img_size") or spec.img_size
            options["img_size"] = (size, size) if isinstance(size, int) else tuple(size)

        self.build(spec, **options)
        #: Output -> the name of its norm.
        self.norm_names: dict[int, str] = {}
        for index, channels in zip(self.out_indices, self.out_channels, strict=True):
            named = {"layer": (f"output_norm{index}", nn.LayerNorm(channels)), "none": None}
            found = named[output_norm] if output_norm in named else self.published_norm(index, channels)
            if found is not None:
                self.norm_names[index], norm = found
                self.add_module(self.norm_names[index], norm)
        self.token_classifier = TokenClassifier(self.out_channels, **token_classifier) if token_classifier else None
        last = len(self.stage_modules()) - 1
        if not -1 <= frozen_stages <= last:
            raise UserError(f"frozen_stages={frozen_stages} of {arch}: give -1 (none) to {last}")
        self.frozen_stages = frozen_stages
        self._freeze()

    @classmethod
    def formats(cls) -> dict[str, KeyMap]:
        """Return the names of entries in every published format, ``"official"`` first."""
        return {"official": cls.official, **library_formats(cls.family)}

    @classmethod
    def own_options(cls) -> set[str]:
        """Return the options that the family has beside those of every backbone."""
        return {name for name in inspect.signature(cls.build).parameters if name not in ("self", "spec")}

    @classmethod
    def at_size(cls, size: int | tuple[int, int]) -> dict[str, Any]:
        """Return the option that makes the family's tables for images of a side or (height, width); {} without any."""
        return {"img_size": size} if "img_size" in cls.own_options() else {}

    def outputs(self, spec: Any) -> Sequence[tuple[int, int]]:
        """Return (channels, stride) of each output that a size has, in the order in which :meth:`trunk` yields them."""
        raise NotImplementedError

    def build(self, spec: Any, **options: Any) -> None:
        """Make and initialize the layers of a size.

        The constructor has set ``in_channels``, ``depths``, ``depth``, ``drop_path_rate``, ``with_embedding``,
        ``out_indices``, ``out_channels``, and ``embed_channels`` as the channels of the last output.
        """
        raise NotImplementedError

    def trunk(self, images: Tensor, labels: Tensor | None, count: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the map (B, h, w, C) and the label map (B, K, h, w) of each of the first ``count`` outputs.

        ``labels`` (B, K, h, w) are those that come with the images. A family whose ``label_rule`` is pooling is never
        given any, and yields None: :meth:`forward` pools them onto its maps.
        """
        raise NotImplementedError

    def embedding(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the image embedding (B, D) and, with ``labels`` (B, K, h, w), its label (B, K).

        By default it is the mean of the last map's tokens. A family whose ``label_rule`` is pooling is never given
        labels, as in :meth:`trunk`.
        """
        *_, (x, label) = self.trunk(images, labels, self.output_count)
        return self.mean_token(x), None if label is None else image_label(label)

    def mean_token(self, x: Tensor) -> Tensor:
        """Return the mean token (B, D) of the last map (B, h, w, C), behind :meth:`embedded`."""
        x = self.embedded(x)
        self.observe(x, lambda tokens: tokens)
        return x.mean(dim=(1, 2))

    def embedded(self, x: Tensor) -> Tensor:
        """Return tokens (…, D) of the last map (…, C) as the embedding reads them: behind ``norm``."""
        return self.norm(x)

    def observe(self, x: Tensor, norm: Callable[[Tensor], Tensor], places: Tensor | None = None) -> None:
        """Show the last patches to a watch, if there is one; whoever overrides :meth:`embedding` calls it.

        Args:
            x: their map (B, h, w, C).
            norm: from ``x`` to the ``"tokens"`` of :meth:`embed_with_evidence`, (B, h, w, D).
            places: (B, n), where on the map those are that took part in the last block, if not all did.
        """
        watch = current_watch()
        if watch is not None:
            (watch.batch, *size), watch.places = x.shape[:3], places
            watch.size = (size[0], size[1])
            watch.tokens = norm(x) if "tokens" in watch.wanted else None

    def published_norm(self, index: int, channels: int) -> tuple[str, nn.Module] | None:
        """Return the norm of maps (B, h, w, C) that the published dense code puts on an output, behind its name there.

        None where it has none, or where the norm is a part of the trunk.
        """
        return None

    def normalized(self, index: int, x: Tensor) -> Tensor:
        """Return the map (B, h, w, C) of an output behind its norm, if it has one."""
        return getattr(self, self.norm_names[index])(x) if index in self.norm_names else x

    def output_stage(self, index: int) -> int:
        """Return the position in :meth:`stage_modules` of what makes an output; its norm is frozen with that."""
        return index + 1

    def stage_modules(self) -> list[list[nn.Module | nn.Parameter]]:
        """Return what ``frozen_stages`` freezes: the patch embedding first, then stage after stage."""
        raise NotImplementedError

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter, for layer-wise learning-rate decay.

        Args:
            name: the parameter's name inside the backbone.

        Returns:
            0 for the patch embedding, i for block i of 1 … ``depth``, ``depth`` + 1 for what follows the blocks.
        """
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that the published recipe does not decay, beyond norms and biases."""
        return set()

    def drop_path_rates(self) -> list[float]:
        """Return the stochastic depth of each block, rising linearly from 0 to ``drop_path_rate``."""
        return drop_path_rates(self.drop_path_rate, self.depth)

    def forward(self, images: Tensor, token_labels: Tensor | None = None):
        """Return the dense maps, with ``token_labels`` the pair (maps, aligned labels); see the module's docstring."""
        pooled = token_labels is not None and self.label_rule == "pooling"
        maps, aligned = self.dense(images, None if pooled else token_labels)
        if token_labels is None:
            return maps
        if pooled:
            aligned = tuple(pool_labels(token_labels.detach(), (x.size(2), x.size(3))) for x in maps)
        return maps, aligned

    def dense(self, images: Tensor, labels: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the dense maps and, with ``labels`` (B, K, h, w), their aligned labels."""
        maps, aligned = [], []
        count = max(self.out_indices, default=-1) + 1
        with self._pass(images):
            for index, (x, label) in enumerate(self.trunk(images, labels, count) if count else ()):
                if index not in self.out_indices:
                    continue
                maps.append(self.normalized(index, x).permute(0, 3, 1, 2))
                if label is not None:
                    aligned.append(label)
        return tuple(maps), tuple(aligned)

    @overload
    def embed(self, images: Tensor, token_labels: None = None) -> Tensor: ...

    @overload
    def embed(self, images: Tensor, token_labels: Tensor) -> tuple[Tensor, Tensor]: ...

    def embed(self, images: Tensor, token_labels: Tensor | None = None):
        """Return the image embedding, with ``token_labels`` the pair (embedding, label).

        Raises:
            UserError: the backbone was built without embedding.
        """
        if not self.with_embedding:
            raise UserError(f"{self.arch} was built for dense maps only; pass with_embedding=True to use embed()")
        pooled = token_labels is not None and self.label_rule == "pooling"
        with self._pass(images):
            vector, label = self.embedding(images, None if pooled else token_labels)
        if token_labels is None:
            return vector
        return vector, image_label(token_labels) if pooled else label

    def embed_with_evidence(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Return the image embedding (B, D), under ``"vector"``, and what ``wanted`` names of ``evidence``.

        * ``"class_attention"`` (B, h, w): how much the class token attends to each patch in the last block that it
          takes part in, mean over the heads; its attention to itself is left out. Where the embedding is the mean of
          the patches, it is ``"image_attention"``.
        * ``"image_attention"`` (B, h, w): how much the patches attend to each patch in the last block of theirs, mean
          over heads and patches; what goes to the class token is left out.
        * ``"tokens"`` (B, D, h, w): the last patches behind the norm of the embedding.

        Attention has no gradient and is at least float32.

        Raises:
            UserError: the backbone cannot tell, or not at this size of images, or was built without embedding.
        """

        def run() -> tuple[Tensor, Tensor | None]:
            with self._pass(images):
                return self.embedding(images, None)

        (vector, _), seen = self.watched(run, wanted)
        return {"vector": vector, **seen}

    def watched(self, run: Callable[[], T], wanted: Collection[str]) -> tuple[T, dict[str, Tensor]]:
        """Return what ``run`` does, and what ``wanted`` names of the :meth:`embedding` that it calls.

        Raises:
            UserError: as in :meth:`embed_with_evidence`.
        """
        lacking = [name for name in wanted if name not in self.evidence]
        if lacking or not self.with_embedding:
            raise UserError(f"{self.arch} cannot tell {', '.join(lacking or ['its embedding: with_embedding=False'])}")
        with watching(wanted) as watch:
            result = run()
        tokens = {} if watch.tokens is None else {"tokens": watch.tokens.permute(0, 3, 1, 2)}
        return result, {**watch.maps(self.arch, self.last_stride), **tokens}

    def checkpointed(self, block: nn.Module, *args):
        """Run a block, recomputing its activations in the backward pass when ``with_cp`` is set."""
        watch = current_watch()
        if watch is not None and block is self._last_block():
            watch.on = True
        if noting():
            # Watched, attention runs for samples that recomputing it would drop.
            return block(*args)
        if self.with_cp and self.training and torch.is_grad_enabled():
            again = repeated()
            contexts = lambda: (nullcontext(), _recomputed(block, again))  # noqa: E731
            return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)
        return block(*args)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def init_weights(self) -> None:
        """Load the pretrained weights that ``init_cfg`` names; the constructor has drawn all others."""
        if self.init_cfg and not self.is_init:
            super().init_weights()

    def resize_loaded(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return checkpoint entries with size-dependent tables resampled to this network's sizes."""
        return state

    def drawing(self, images: Tensor) -> AbstractContextManager[None]:
        """Return a block in which the random draws of one pass go to the images' device together."""
        return self.draws.sent_to(images.device) if self.training else nullcontext()

    def _pass(self, images: Tensor) -> AbstractContextManager[None]:
        # A compiler plans the memory of a graph by itself, and its draws are the graph's own.
        return nullcontext() if torch.compiler.is_compiling() else self._eager_pass(images)

    @contextmanager
    def _eager_pass(self, images: Tensor) -> Iterator[None]:
        with unhooked(self), self.drawing(images):
            yield

    def _last_block(self) -> nn.Module | None:
        found: Any = self if self.last_block else None
        for step in self.last_block:
            found = getattr(found, step) if isinstance(step, str) else found[step]
        return found

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        parts = self.stage_modules()
        for index, name in self.norm_names.items():
            if self.output_stage(index) < len(parts):
                parts[self.output_stage(index)].append(getattr(self, name))
        for item in [item for part in parts[: self.frozen_stages + 1] for item in part]:
            if isinstance(item, nn.Parameter):
                item.requires_grad_(False)
            else:
                item.eval().requires_grad_(False)


@contextmanager
def _recomputed(block: nn.Module, again: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with statistics_kept(block), again():
        yield


@contextmanager
def statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are: recomputing a block must not count its batch a second time."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    momenta, counts = [norm.momentum for norm in norms], [counter.clone() for counter in counters]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for counter, count in zip(counters, counts, strict=True):
            counter.copy_(count)


def pyramid(channels: Sequence[int], stride: int = 4) -> list[tuple[int, int]]:
    """Return the outputs of stages whose strides double from ``stride`` on, see :meth:`Backbone.outputs`."""
    return [(width, stride * 2**index) for index, width in enumerate(channels)]


def evenly_spaced(depth: int) -> list[int]:
    """Return the positions of four of ``depth`` blocks, evenly spaced, the last among them."""
    return [depth * i // 4 - 1 for i in range(1, 5)]


def _checked_indices(indices: Sequence[int] | None, count: int, arch: str) -> tuple[int, ...]:
    if indices is None:
        return tuple(range(count) if count <= 4 else evenly_spaced(count))
    if any(not 0 <= index < count for index in indices) or list(indices) != sorted(set(indices)):
        raise UserError(f"out_indices={tuple(indices)} of {arch}: give rising numbers from 0 to {count - 1}")
    return tuple(indices)
