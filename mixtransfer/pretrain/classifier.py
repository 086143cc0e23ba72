"""An image classifier on top of any backbone's image embedding, trained with a mixing method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from mixtransfer.backbones import backbone_class
from mixtransfer.errors import UserError
from mixtransfer.mixing import Draw, Mixing, PendingDraw
from mixtransfer.mixing.draws import size_of
from mixtransfer.mixing.losses import soft_cross_entropy
from mixtransfer.mixing.steps import StepCounter, outside_graphs
from mixtransfer.pretrain.activation_maps import class_map, crop_map, teacher_map
from mixtransfer.pretrain.teachers import Teacher
from mixtransfer.registry import MODELS, build

__all__ = ["MixingClassifier", "region_means", "smooth_one_hot", "soft_cross_entropy"]


@MODELS.register_module()
class MixingClassifier(StepCounter, BaseModel):
    """Backbone, image embedding, linear head; ``aux_head`` on tokens where the published network has one.

    Methods that classify regions (SMMix) add ``region_head`` on the mean tokens of both sides of the mix.

    Args:
        arch: an architecture name, see :func:`mixtransfer.list_archs`.
        num_classes: rows of the head.
        backbone: keyword arguments of the backbone.
        mixing: config of a mixing method, e.g. ``dict(type="TLAlign")``; None trains on the images as they are.
        cell_size: side in pixels of the cells of the grid that the method draws its regions on.
        teacher: for methods that need an activation map, ``dict(arch=..., checkpoint=..., source="auto",
            trust=False)``: a frozen classifier of the same classes, best one whose embedding is the mean of its last
            tokens. :meth:`init_weights` loads it, completely. Without one the samples bring the maps, see :meth:`loss`.
        label_smoothing: mass of a label that is divided evenly among all classes, from 0, below 1.
        binary_loss: learn every class by itself, by a binary cross-entropy (mean over batch and classes), in place of
            the cross-entropy of the softmax.
        data_preprocessor: config of the preprocessor, normally ``mmpretrain.ClsDataPreprocessor``.
        init_cfg: OpenMMLab initialization.

    Raises:
        UserError: the mixing method needs evidence that this model cannot collect, or a number is out of range.
    """

    #: Prefixes of entries in checkpoints of earlier versions -> ours.
    former_names: ClassVar[Mapping[str, str]] = {"token_head.": "region_head."}
    #: Evidence that can be collected, by its name in a method's ``needs`` -> the backbone's evidence behind it.
    evidence: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "token_labels": (),
        "class_attention": ("class_attention",),
        "region_logits": ("tokens",),
        "image_attention": ("image_attention",),
        "unmixed_logits": (),
        "activation_map": (),
    }

    #: What a derived model reads of the pass of the mixed images besides, by the backbone's names.
    wanted: tuple[str, ...] = ()

    def __init__(
        self,
        arch: str,
        num_classes: int = 1000,
        *,
        backbone: dict | None = None,
        mixing: dict | None = None,
        cell_size: int = 16,
        teacher: dict | None = None,
        label_smoothing: float = 0.1,
        binary_loss: bool = False,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = backbone_class(arch)(arch=arch, out_indices=(), with_embedding=True, **(backbone or {}))
        self.head = _head(self.backbone.embed_channels, num_classes)
        if self.backbone.has_token_logits:
            self.aux_head = _head(self.backbone.embed_channels, num_classes)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing={label_smoothing}: give 0 or more, below 1")
        if cell_size < 1:
            raise UserError(f"cell_size={cell_size}: give a number of pixels from 1")
        self.num_classes, self.label_smoothing, self.cell_size = num_classes, label_smoothing, cell_size
        self.binary_loss = binary_loss
        self.mixing: Mixing | None = None if mixing is None else build(mixing, Mixing)
        needs = self.mixing.needs if self.mixing else ()
        lacking = [need for need in needs if not self.collects(need)]
        if lacking:
            blind = any(name.endswith("attention") for need in lacking for name in self.evidence.get(need, ()))
            raise UserError(
                f"mixing {type(self.mixing).__name__}: needs {', '.join(lacking)}, which {type(self).__name__} cannot "
                f"collect from {arch}{', a network without attention' if blind else ''}"
            )
        if "region_logits" in needs:
            self.region_head = _head(self.backbone.embed_channels, num_classes)
        self.teacher: Teacher | None = None
        if teacher is not None:
            if "activation_map" not in needs:
                raise UserError("teacher: the mixing method needs no activation map; leave it out")
            self.teacher = Teacher(teacher, lambda arch: MixingClassifier(arch, num_classes))
        self._register_load_state_dict_pre_hook(_accept_other_names)

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor") -> Any:
        """Run the classifier.

        Args:
            inputs: (B, 3, H, W).
            data_samples: mmpretrain ``DataSample`` per image, with ``gt_label`` for ``mode="loss"``.
            mode: ``"tensor"`` returns logits (B, num_classes), ``"loss"`` a dict of losses, ``"predict"`` the samples
                with ``pred_score`` and ``pred_label``.
        """
        if mode == "tensor":
            return self.classify(inputs)[0]
        if mode == "loss":
            labels = torch.cat([sample.gt_label for sample in data_samples])
            return self.loss(inputs, labels, self.sample_fields(data_samples))
        if mode == "predict":
            scores = self.classify(inputs)[0].softmax(dim=1)
            for sample, score, label in zip(data_samples, scores, scores.argmax(dim=1, keepdim=True), strict=True):
                sample.set_pred_score(score).set_pred_label(label)
            return data_samples
        raise ValueError(f"mode={mode!r}: give 'tensor', 'loss' or 'predict'")

    def classify(self, images: Tensor, token_labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, num_classes) and, with ``token_labels``, the label (B, K) of the embedding."""
        if self.backbone.has_token_logits:
            with self.backbone.drawing(images):
                encoded = self.backbone.encode(images, token_labels)
            return self.head(encoded.vector) + 0.5 * self.aux_head(encoded.tokens).amax(dim=1), encoded.label
        if token_labels is None:
            return self.head(self.backbone.embed(images)), None
        vector, label = self.backbone.embed(images, token_labels)
        return self.head(vector), label

    def collects(self, need: str) -> bool:
        """Return whether a piece of evidence can be collected from this network."""
        return need in self.evidence and set(self.evidence[need]) <= set(self.backbone.evidence)

    def loss(self, images: Tensor, labels: Tensor, fields: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the losses of a training step, and count it.

        Args:
            images: (B, 3, H, W).
            labels: (B,), the classes of the images.
            fields: further fields of the samples, stacked, by name. A method that needs an activation map reads, if
                there is no teacher, ``activation_map`` (B, h, w), the scores of the images' own classes in every cell
                of the crops, or ``label_map`` (B, 2, R, h, w), scores and numbers of the R best classes in every
                cell of the whole images, and ``crop`` (B, 4), top, left, height and width of the crops as shares of the
                whole images' sides.

        Raises:
            UserError: the samples lack a field.
        """
        if self.mixing is None:
            return {"loss": self.criterion(self.classify(images)[0], self.smoothed(labels, images))}
        _, draw, evidence = self.mixed(images, labels, fields)
        targets = evidence["targets"]
        self.count_step()
        extra = self.mixing.losses(targets, draw, evidence)
        loss = self.criterion(evidence["logits"], self.mixing.relabel(targets, draw, evidence))
        # mmengine logs the sum of several losses as "loss".
        return {"loss_class": loss, **extra} if extra else {"loss": loss}

    def mixed(
        self, images: Tensor, labels: Tensor, fields: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Draw, dict[str, Tensor]]:
        """Return this step's mixed images (B, 3, H, W), their draw, and the evidence that the label follows from.

        Takes the arguments of :meth:`loss`.
        """
        pending = self.draw(images)
        evidence = self.collect_unmixed(images, labels, pending, fields)
        draw = outside_graphs(pending.resolve)(evidence)
        images = self.mixing.apply(images, draw)
        evidence["targets"] = self.smoothed(labels, images)
        return images, draw, evidence | self.collect(images, draw)

    def smoothed(self, labels: Tensor, images: Tensor) -> Tensor:
        """Return the smoothed labels (B, num_classes) of classes (B,), of the images' type but at least float32."""
        dtype = torch.promote_types(images.dtype, torch.float32)
        return smooth_one_hot(labels, self.num_classes, self.label_smoothing, dtype)

    def criterion(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits and labels, both (B, K)."""
        if self.binary_loss:
            return F.binary_cross_entropy_with_logits(logits, targets.to(logits))
        return soft_cross_entropy(logits, targets)

    @torch.no_grad()
    def collect_unmixed(
        self, images: Tensor, labels: Tensor, draw: Draw | PendingDraw, fields: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the evidence about the unmixed images that the step needs; most steps need none.

        The network sees them as in evaluation.
        """
        needs, evidence = self.mixing.needs_unmixed(draw), {}
        if "activation_map" in needs:
            evidence["activation_map"] = self.activation_map(images, labels, fields)
        if "image_attention" in needs or "unmixed_logits" in needs:
            with _evaluating(self):
                wanted = [name for need in needs for name in self.evidence[need]]
                (evidence["unmixed_logits"], _), seen = self.backbone.watched(lambda: self.classify(images), wanted)
            evidence |= seen
        return evidence

    def collect(self, images: Tensor, draw: Draw | None) -> dict[str, Tensor]:
        """Return the logits (B, num_classes) of mixed images (B, 3, H, W), and the evidence that the target needs.

        Without a draw nothing is mixed; what the model itself ``wanted`` comes along.
        """
        needs = self.mixing.target.needs if self.mixing is not None else ()
        wanted = [*self.wanted, *(name for need in needs for name in self.evidence[need])]
        label_map = draw.label_map(images) if draw is not None and "token_labels" in needs else None
        evidence: dict[str, Tensor] = {}
        if wanted:
            (logits, label), evidence = self.backbone.watched(lambda: self.classify(images, label_map), wanted)
        else:
            logits, label = self.classify(images, label_map)
        evidence["logits"] = logits
        if label is not None:
            evidence["token_labels"] = label
        if "region_logits" in needs:
            evidence["region_logits"] = self.region_head(region_means(evidence["tokens"], draw))
        return evidence

    @torch.no_grad()
    def activation_map(self, images: Tensor, labels: Tensor, fields: Mapping[str, Tensor] | None) -> Tensor:
        """Return the activation maps (B, h, w) of unmixed images for their classes (B,).

        They come from the teacher, on its grid, or from the samples, whose label maps are brought on the grid of draws.

        Raises:
            UserError: there is no teacher, and the samples bring no maps.
        """
        if self.teacher is not None:
            net = self.teacher.net
            return teacher_map(net.backbone.embed_with_evidence(images, ("tokens",)), net.head, labels)
        if fields and "activation_map" in fields:
            return fields["activation_map"]
        if fields is None or not {"label_map", "crop"} <= set(fields):
            raise UserError(
                f"{type(self.mixing).__name__}: give a teacher, or samples with activation_map, which LoadMap reads, "
                "or with label_map and crop, passed on by PackInputs(algorithm_keys=['label_map', 'crop'])"
            )
        return crop_map(class_map(fields["label_map"], labels), fields["crop"], self.cell_grid(images))

    def init_weights(self) -> None:
        """Initialize as configured, and load the teacher.

        Raises:
            UserError: the teacher's file does not fit, naming each missing, unexpected or misshapen entry.
        """
        super().init_weights()
        if self.teacher is not None:
            self.teacher.load()

    @outside_graphs
    def draw(self, images: Tensor) -> Draw | PendingDraw:
        """Draw how this step mixes its images (B, 3, H, W), on their device."""
        self.mixing.run_seed = self.run_seed
        drawn = self.mixing.draw(tuple(images.shape), self.cell_grid(images), self.step)
        return drawn.to(images.device) if isinstance(drawn, Draw) else drawn

    def cell_grid(self, images: Tensor) -> tuple[int, int]:
        """Return the grid (h, w) of cells that the method draws on."""
        height, width = (-(-side // self.cell_size) for side in images.shape[2:])
        return height, width

    def sample_fields(self, samples: list) -> dict[str, Tensor]:
        """Return the fields of the samples that :meth:`loss` reads, stacked, by name; without those that one lacks."""
        if self.teacher is not None or self.mixing is None or "activation_map" not in self.mixing.needs:
            return {}
        known = ("activation_map", "label_map", "crop")
        names = [name for name in known if all(name in sample for sample in samples)]
        return {name: torch.stack([getattr(sample, name) for sample in samples]) for name in names}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MixingClassifier:
        if self.teacher is not None:
            self.teacher.apply(fn, recurse)
        return super()._apply(fn, recurse)


def region_means(tokens: Tensor, draw: Draw) -> Tensor:
    """Return the mean (B, 2, D) of the tokens (B, D, h, w) that are the image's own, and of its partner's.

    The mean of no token is 0.
    """
    share = draw.on_grid(size_of(tokens)).flatten(1).to(tokens).expand(len(tokens), -1)
    shares = torch.stack([1 - share, share], dim=1)
    weights = shares / shares.sum(dim=2, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
    return weights @ tokens.flatten(2).transpose(1, 2)


def smooth_one_hot(labels: Tensor, num_classes: int, smoothing: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return soft labels (B, K): ``smoothing``/K everywhere, and 1 − ``smoothing`` more at each label of (B,)."""
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, dtype=dtype, device=labels.device)
    return targets.scatter_(1, labels.view(-1, 1), 1 - smoothing + off)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Run a network as in evaluation; afterwards every part of it is in the mode that it was in."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _head(channels: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(channels, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def _accept_other_names(state: dict[str, Tensor], prefix: str, *_) -> None:
    """Accept entries under former names, and a backbone's own names, as ``convert_state_dict`` returns them."""
    for old, new in MixingClassifier.former_names.items():
        for key in [key for key in state if key.startswith(f"{prefix}{old}")]:
            state[f"{prefix}{new}{key.removeprefix(f'{prefix}{old}')}"] = state.pop(key)
    own = tuple(f"{prefix}{name}." for name in ("backbone", "head", "aux_head", "region_head", "data_preprocessor"))
    if any(key.startswith(own[0]) for key in state):
        return
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(own)]:
        state[f"{prefix}backbone.{key[len(prefix) :]}"] = state.pop(key)
