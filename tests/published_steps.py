"""Training steps of published code, held against a classifier that replays their draws."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from parity_records import assert_matches, img_size, published_state, record, record_input
from torch import Tensor

import mixtransfer
from mixtransfer.checkpoints.rename import OURS
from mixtransfer.mixing import Draw, EvenDraw, PendingDraw, PixelDraw
from mixtransfer.mixing.draws import flip_partner, own_share
from mixtransfer.pretrain import MixingClassifier
from mixtransfer.pretrain.classifier import smooth_one_hot

#: Prefixes of published entries that our classifiers name differently -> ours.
HEADS = {"token_head.": "region_head."}


class Step:
    """One recorded training step: the published weights in our classifier, the images, the targets, the answers."""

    def __init__(self, system: str, name: str, dtype: torch.dtype, **options):
        self.expected = record(system, name)
        self.given, self.outputs = self.expected["given"], self.expected["outputs"]
        self.batch, arch = self.expected["input"]["batch"], self.expected["arch"]
        classes, smoothing = self.given["num_classes"], self.given["label_smoothing"]
        options = {"backbone": img_size(self.expected), "label_smoothing": smoothing, **options}
        self.net: MixingClassifier = mixtransfer.build_classifier(arch, classes, **options)
        self.net.to(dtype).train()
        state = published_state(self.expected, dtype)
        heads = {key: value for key, value in state.items() if key.startswith(tuple(HEADS))}
        self.net.load_state_dict(mixtransfer.convert_state_dict(state, arch) | heads)
        self.images = record_input(self.expected).to(dtype)
        self.labels = torch.tensor(self.given["labels"])
        self.targets = smooth_one_hot(self.labels, classes, smoothing, dtype)

    def even_draw(self, own: float) -> Draw:
        """Return the draw of Mixup whose images keep a share ``own`` of themselves."""
        ratio = torch.full((self.batch,), own, dtype=torch.float64)
        mask = (1 - ratio[:1]).view(1, 1, 1).expand(1, *self.net.cell_grid(self.images))
        return EvenDraw(flip_partner(self.batch), mask, ratio)

    def box_draw(self, top: int, bottom: int, left: int, right: int) -> Draw:
        """Return the draw of CutMix with a box of pixels."""
        return pixel_box(self.images, self.net.cell_grid(self.images), (top, bottom, left, right))

    def replay(self, draw: Draw | PendingDraw) -> None:
        """Let the classifier draw what is recorded."""
        self.net.mixing.draw = lambda shape, grid, step: draw

    def check(self, tolerance: float, **found: Tensor) -> None:
        """Compare outputs of the record with what was found under their names."""
        for name, value in found.items():
            assert_matches(value, self.outputs[name], tolerance, name)

    def check_gradients(self, tolerance: float) -> None:
        """Compare all recorded gradients, and the logits in evaluation."""
        check_gradients(self.net, self.outputs, tolerance)
        with torch.no_grad():
            logits = self.net.eval()(self.images)
        self.check(tolerance, eval_logits_of_unmixed_images=logits)


def pixel_box(images: Tensor, grid: tuple[int, int], box: tuple[int, int, int, int]) -> PixelDraw:
    """Return the draw that pastes a box of pixels (top, bottom, left, right), with its mask on a grid."""
    top, bottom, left, right = box
    pixels = torch.zeros(1, *images.shape[2:], dtype=torch.bool)
    pixels[:, top:bottom, left:right] = True
    mask = F.interpolate(pixels[:, None].double(), grid, mode="area")[:, 0]
    return PixelDraw(flip_partner(len(images)), mask, own_share(pixels, len(images)), pixels)


def check_gradients(net: MixingClassifier, outputs: dict, tolerance: float) -> None:
    """Compare all gradients of a record, which lie under published names behind ``grad.`` or ``grad:``."""
    found = published_gradients(net)
    keys = [key for key in outputs if key.startswith(("grad.", "grad:"))]
    assert keys
    for key in keys:
        assert_matches(found[key[len("grad.") :]], outputs[key], tolerance, key)


def published_gradients(net: MixingClassifier) -> dict[str, Tensor]:
    """Return the gradients of a classifier by the published names, and in their order of channels."""
    ours = {name.removeprefix("backbone."): p.grad for name, p in net.named_parameters() if p.grad is not None}
    heads = {}
    for old, new in HEADS.items():
        heads |= {old + name.removeprefix(new): ours.pop(name) for name in list(ours) if name.startswith(new)}
    return mixtransfer.convert_state_dict(ours, net.backbone.arch, source=OURS, target="official") | heads
