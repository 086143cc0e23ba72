"""Training steps that run on the simulated accelerator and on the CPU alike.

A step is forward pass, loss, backward pass and optimizer; its images, labels and weights are on the device already. It
is warm when two steps of its shapes lie before it. ``benchmarks/crossings.py`` prints what crosses in warm steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Union
from unittest.mock import patch

import torch
from accelerator import Log, counted
from mmengine.structures import instance_data
from torch import Tensor, nn
from toys import TOYS, build_toy

from mixtransfer.backbones import FAMILIES
from mixtransfer.pretrain import DynamicClassifier, MixingClassifier, MixMIM, OAMixer, TokenLabelingClassifier

__all__ = ["FAMILY_STEPS", "HOOK_STEPS", "MIXING_STEPS", "STEPS", "dense", "hooked", "losses_of", "warm"]

CLASSES = 5
GENERATOR = torch.Generator
#: A training step: called again and again, it returns the losses of step after step.
Step = Callable[[], dict[str, Tensor]]


@contextmanager
def toys_registered() -> Iterator[None]:
    """Let the toys be found by name, as ``deit_toy`` or ``posmlp/lrpe_toy``."""
    classes = {name: next(cls for cls in FAMILIES if cls.family == name.split("/")[0]) for name in TOYS}
    added = {name: cls.archs for name, cls in classes.items()}
    try:
        for name, cls in classes.items():
            cls.archs = {**cls.archs, f"{name}_toy": TOYS[name]}
        yield
    finally:
        for name, cls in reversed(classes.items()):
            cls.archs = added[name]


def trained(net: nn.Module, device: torch.device, losses: Callable[[nn.Module], dict[str, Tensor]]) -> Step:
    """Return the training step of a network on a device."""
    net = net.to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step() -> dict[str, Tensor]:
        # A generator of the simulated device is the CPU's.
        with patch.object(torch, "Generator", lambda device=None: GENERATOR()), toys_registered():
            found = losses(net)
        sum(found.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        return {name: value.detach() for name, value in found.items()}

    return step


def dense(family: str, device: torch.device, batch: int = 4, size: int = 64, **options) -> Step:
    """Return the step of a dense network that carries token labels."""
    torch.manual_seed(0)
    net = build_toy(family, drop_path_rate=0.4, **options)
    images = torch.randn(batch, 3, size, size).to(device)
    labels = torch.rand(batch, 3, size // 4, size // 4).softmax(dim=1).to(device)

    def losses(net: nn.Module) -> dict[str, Tensor]:
        maps, aligned = net(images, labels)
        found = {f"map{i}": x.square().mean() for i, x in enumerate(maps)}
        return found | {f"label{i}": x.square().mean() for i, x in enumerate(aligned)}

    return trained(net, device, losses)


def classifier(kind: type[nn.Module], arch: str, device: torch.device, *, fields=None, batch=4, size=64, **options):
    """Return the step of a classifier that mixes the batch."""
    torch.manual_seed(0)
    options.setdefault("backbone", {})
    with toys_registered():
        net = kind(arch, **options)
    images = torch.randn(batch, 3, size, size).to(device)
    labels = torch.arange(batch).remainder(CLASSES).to(device)
    fields = {name: value.to(device) for name, value in (fields or {}).items()}
    if kind is MixMIM:
        return trained(net, device, lambda net: net(images, mode="loss"))
    return trained(net, device, lambda net: net.loss(images, labels, fields))


def mixing(method: dict, arch: str = "deit_toy", kind: type[nn.Module] = MixingClassifier, **options):
    """Return what makes the step of a mixing method, given a device."""
    options = {"backbone": {"drop_path_rate": 0.4}, **options}
    return lambda device: classifier(kind, arch, device, num_classes=CLASSES, mixing=method, **options)


def label_maps(batch: int = 4, ranks: int = 3, side: int = 6) -> dict[str, Tensor]:
    """Return fields of samples that bring their activation maps."""
    scores = torch.rand(batch, 1, ranks, side, side)
    numbers = torch.randint(0, CLASSES, scores.shape).float()
    crops = torch.tensor([[0.1, 0.2, 0.7, 0.6]]).repeat(batch, 1)
    return {"label_map": torch.cat([scores, numbers], dim=1), "crop": crops}


def hooked(kind: str, device: torch.device, counts: tuple[int, ...] = (3, 2), **options) -> Step:
    """Return the step of a segmentor or a detector with TokenMixHook, from the batch that the loader brings."""
    # Both libraries take seconds to import.
    from hooked_models import attach, det_batch, detector, runner_of, seg_batch, segmentor
    from tiny_runs import SMALL_DETECTOR

    torch.manual_seed(0)
    segments = kind == "segmentor"
    model = segmentor(**options) if segments else detector("mask-rcnn_r50_fpn", SMALL_DETECTOR, **options)
    images, samples = seg_batch(len(counts)) if segments else det_batch(counts)
    hook = attach(model, dict(type="TokenBox"))
    hook.before_train_iter(runner_of(model, iteration=3), 3)

    def losses(net: nn.Module) -> dict[str, Tensor]:
        data = net.data_preprocessor({"inputs": images, "data_samples": samples}, True)
        # mmengine lists the kinds of tensors that may index, by device.
        with patch.object(instance_data, "IndexType", Union[instance_data.IndexType, Tensor]):  # noqa: UP007
            found = net(**data, mode="loss")
        sums = {name: sum(value) if isinstance(value, list) else value for name, value in found.items()}
        return {name: value for name, value in sums.items() if "loss" in name}

    return trained(model, device, losses)


TEACHER = dict(arch="pvt_v2_toy", checkpoint="none.pth")
DROP = {"drop_path_rate": 0.4}
#: Family, or family/variant -> its dense step on a device.
FAMILY_STEPS: dict[str, Callable[[torch.device], Step]] = {
    name: lambda device, name=name: dense(name, device) for name in TOYS
}
#: Method of mixing, or of pretraining -> its step on a device.
MIXING_STEPS: dict[str, Callable[[torch.device], Step]] = {
    "no mixing": mixing(None),
    "Mixup": mixing(dict(type="Mixup")),
    "CutMix": mixing(dict(type="CutMix")),
    "MixupOrCutMix": mixing(dict(type="MixupOrCutMix")),
    "TLAlign": mixing(dict(type="TLAlign")),
    "TransMix": mixing(dict(type="TransMix", switch_prob=1.0)),
    "SMMix": mixing(dict(type="SMMix", switch_prob=1.0)),
    "SMMix, Mixup's steps": mixing(dict(type="SMMix", switch_prob=0.0)),
    "TokenMix, maps": mixing(dict(type="TokenMix", switch_prob=1.0), fields=label_maps()),
    "TokenMix, teacher": mixing(dict(type="TokenMix", switch_prob=1.0), teacher=TEACHER),
    "OAMixer, CutMix of tokens": mixing(
        dict(type="Mixing", region=dict(type="TokenBox"), target=dict(type="Area")),
        kind=OAMixer,
        fields={"patch_labels": torch.rand(4, 3, 16, 16)},
    ),
    "DynamicViT, TLAlign": mixing(dict(type="TLAlign"), "dynamicvit_toy", DynamicClassifier),
    "DynamicSwin, TLAlign": mixing(dict(type="TLAlign"), "dynamicvit_swin_toy", DynamicClassifier),
    "token labeling, CutMix": mixing(dict(type="CutMix"), "fan_toy", TokenLabelingClassifier),
    "MixMIM": lambda device: classifier(
        MixMIM, "mixmim_toy", device, backbone=DROP, decoder_channels=16, decoder_depth=1, decoder_heads=2
    ),
}


def warm(step: Step) -> Log:
    """Return what crosses in a step that two others lie before."""
    step(), step()
    with counted() as log:
        step()
    return log


def losses_of(step: Step, steps: int = 2) -> list[dict[str, float]]:
    """Return the losses of some steps, drawn from the same numbers on any device."""
    torch.manual_seed(1)
    return [{name: float(value) for name, value in step().items()} for _ in range(steps)]


HOOK_STEPS: dict[str, Callable[[torch.device], Step]] = {
    "TokenMixHook, segmentor": lambda device: hooked("segmentor", device, drop_path_rate=0.4),
    "TokenMixHook, detector": lambda device: hooked("detector", device, drop_path_rate=0.4),
}
STEPS = FAMILY_STEPS | MIXING_STEPS | HOOK_STEPS
