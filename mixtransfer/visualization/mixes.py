"""Two sheets about mixing: every method on the same two images, and the fluctuation of tokens block by block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.runner import Runner
from torch import Tensor

from mixtransfer.errors import UserError
from mixtransfer.mixing import Mixing, TokenBox, WholeImage
from mixtransfer.mixing.draws import Draw, step_generator
from mixtransfer.pretrain.activation_maps import teacher_map
from mixtransfer.pretrain.classifier import MixingClassifier
from mixtransfer.registry import MODELS
from mixtransfer.visualization.batches import SOURCES, restore_images, training_batch
from mixtransfer.visualization.pictures import enlarge, heat, save_curves, save_sheet
from mixtransfer.visualization.token_shares import at_most, drifts, token_shares, write_numbers

__all__ = ["save_every_method", "save_fluctuation"]

#: Cells of a box along the shorter side of an image, and blocks that are drawn.
CELLS, STEPS = 8, 7
#: Steps of a method that are looked through for one in which either image has a third of the mix.
TRIES, THIRD = 200, 0.3
#: Difference below which the output is the mean of the last tokens.
SAME = 1e-3
#: Stages of a network that the sheet of all methods has room for.
STAGES = 4


def save_fluctuation(runner: Runner, path: Path, count: int, seed: int, title: str) -> list[Path]:
    """Draw how the shares of a mix move through a network; return the sheet, the curve and the file of numbers.

    A box of cells of each image's partner covers a third to two thirds of it, whatever the config mixes.

    Args:
        runner: of a classifier, segmentor or detector whose network has attention.
        path: the sheet; the curve is ``NAME_curve.png`` and the numbers ``NAME.json`` beside it.
        count: images to draw; the numbers are about the whole batch.
        seed: of batch and boxes.
        title: of the sheet.

    Raises:
        UserError: the network has no attention, or the batch has several views.
    """
    model, net = runner.model, runner.model.backbone
    data = model.train().data_preprocessor(training_batch(runner, seed, shuffled=True), training=True)
    images = data["inputs"]
    if not isinstance(images, Tensor):
        raise UserError(f"{type(model).__name__} gets several views of its images; give a model of single images")
    side = min(images.shape[2:]) // CELLS
    grid = (images.shape[2] // side, images.shape[3] // side)
    draw = _balanced(lambda step: TokenBox().draw(tuple(images.shape), grid, step_generator(seed, 0, step)))
    mixed = draw.mix(images)
    pixels = draw.pixels(tuple(images.shape[2:])).double().expand(len(images), -1, -1)[:, None].to(images)
    steps, output = token_shares(net, mixed, pixels)
    drift = drifts(steps, pixels).mean(axis=1)
    pictures, size = restore_images(mixed, model.data_preprocessor), tuple(images.shape[2:])
    shown = at_most(steps, STEPS)
    rows = [
        [pictures[i], heat(pixels[i, 0].cpu().numpy()), *(_enlarged(step.share[i], size) for step in shown)]
        for i in range(min(count, len(images)))
    ]
    area = pixels.mean(dim=(1, 2, 3))
    heads = [f"of the partner {area[i]:.2f} by area, {output[i]:.2f} in the output" for i in range(len(rows))]
    titles = ("mixed image", "from the partner", *(f"tokens, {step.name}" for step in shown))
    sheet = save_sheet(rows, titles, path, SOURCES, title=title, heads=heads)
    places = list(range(len(steps) + 1))
    moved = [float((step.share.mean(dim=(1, 2)) - area).abs().mean()) for step in steps]
    whole = {"its tokens": (places, [0.0, *moved])}
    at_the_end = float((output - area).abs().mean())
    if abs(at_the_end - moved[-1]) > SAME:
        whole["the output"] = (places[-2:], [at_the_end] * 2)
    curve = save_curves(
        {
            "a token: mean distance from the input's share": {"tokens": (places, [0.0, *drift.tolist()])},
            "an image: mean distance from its share of the area": whole,
        },
        steps[0].name.partition(" ")[0],
        path.with_name(f"{path.stem}_curve.png"),
    )
    about = {"about": title, "arch": net.arch, "images": len(images)}
    return [sheet, curve, write_numbers(path.with_suffix(".json"), about, steps, pixels, output)]


def save_every_method(runner: Runner, names: Sequence[str], path: Path, seed: int, title: str) -> Path:
    """Draw the same two images under every mixing method, on the network of a classifier: one row a method.

    TokenMix's teacher is the network itself. A method whose evidence the network has not is left out and named.

    Raises:
        UserError: the model is no :class:`~mixtransfer.pretrain.MixingClassifier`.
    """
    model = runner.model
    if type(model) is not MixingClassifier:
        raise UserError(f"--mixing all: {type(model).__name__} is no MixingClassifier; give a config of one")
    data = model.train().data_preprocessor(training_batch(runner, seed, shuffled=True), training=True)
    samples = data["data_samples"]
    images, labels = data["inputs"], torch.cat([sample.gt_label for sample in samples])
    # Two images of two classes, and each is the other's partner.
    other = next((i for i in range(1, len(labels)) if labels[i] != labels[0]), 1)
    images, labels = images[[0, other]], labels[[0, other]]
    pictures, size = restore_images(images, model.data_preprocessor), tuple(images.shape[2:])
    rows: list[list[Any]] = []
    heads, refused = [], []
    attends = model.backbone.label_rule == "attention"
    for name in _methods():
        try:
            net = _with_method(model, runner.cfg.model, name)
        except UserError:
            refused.append(name)
            continue
        mixed, draw, share = _mix(net, images, labels, seed)
        pixels = draw.pixels(size).double().expand(2, -1, -1).to(images.device)
        cells: list[Any] = [heat(pixels[0].cpu().numpy()), restore_images(mixed, model.data_preprocessor)[0]]
        if attends:
            steps, _ = token_shares(net.backbone, mixed, pixels[:, None].to(images))
            cells += [_enlarged(s.share[0], size) for s in at_most([s for s in steps if s.ends_stage], STAGES)]
        rows.append(cells)
        heads.append(f"{name}: of the second image {pixels[0].mean():.2f} by area, {share:.2f} by label")
    rows.insert(0, [pictures[0], pictures[1], *[None] * (len(rows[0]) - 2)])
    said = f"{_name(names, labels[0])} and {_name(names, labels[1])}"
    heads.insert(0, said + (f"; not with this network: {', '.join(refused)}" if refused else ""))
    stages = [f"tokens {n}" for n in range(1, len(rows[0]) - 1)]
    return save_sheet(rows, ("mask", "mixed", *stages), path, SOURCES, title=title, heads=heads, wrap=2 + STAGES)


def _methods() -> list[str]:
    found = [cls for cls in MODELS.module_dict.values() if isinstance(cls, type) and issubclass(cls, Mixing)]
    return sorted(cls.__name__ for cls in found if cls is not Mixing and cls.__module__.startswith("mixtransfer."))


def _with_method(model: MixingClassifier, config: Any, method: str) -> MixingClassifier:
    """Return a classifier with the weights of ``model`` that mixes by a method; what the method adds is new."""
    backbone = dict(config.get("backbone") or {})
    options = {"mixing": {"type": method}, "cell_size": model.cell_size, "label_smoothing": 0.0}
    net = MixingClassifier(config.arch, model.num_classes, backbone=backbone, **options)
    net.load_state_dict({**net.state_dict(), **model.state_dict()})
    return net.to(next(model.parameters()).device).eval()


@torch.no_grad()
def _mix(net: MixingClassifier, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Draw, float]:
    """Return the mixed images of a balanced step, its draw, and the partner's share of the first one's label."""
    assert net.mixing is not None
    net.mixing.seed = seed
    seen = net.backbone.embed_with_evidence(images, ("tokens",))
    fields = {"activation_map": teacher_map(seen, net.head, labels)}
    results = []

    def resolved(step: int) -> Draw:
        net.step = step
        results[:] = net.mixed(images, labels, fields)
        return results[1]

    # A method with Mixup in other steps is shown by its own.
    blends = isinstance(net.mixing.region, WholeImage)
    draw = _balanced(resolved, lambda draw: blends or draw.pastes)
    mixed, _, evidence = results
    shares = net.mixing.relabel(torch.eye(2, device=images.device), draw, evidence)
    return mixed, draw, float(shares[0, 1])


def _balanced(make: Any, fits: Any = lambda draw: True) -> Draw:
    """Return the first draw in which either image has a third of the first mix, or the most even one of many."""
    best = None
    for step in range(TRIES):
        draw = make(step)
        distance = abs(float(draw.ratio[0]) - 0.5)
        if fits(draw) and (best is None or distance < best[0]):
            best = distance, step
            if distance <= 0.5 - THIRD:
                return draw
    assert best is not None, f"no step of {TRIES} mixes"
    return make(best[1])


def _enlarged(share: Tensor, size: tuple[int, int]) -> np.ndarray:
    return enlarge(heat(share.cpu().numpy()), size)


def _name(names: Sequence[str], label: Tensor) -> str:
    return names[int(label)] if int(label) < len(names) else f"class {int(label)}"
