"""Maps that accompany images, by a frozen network of any family: the best classes of every cell, or the foreground.

Class maps are what TokenLabeling (arXiv 2104.10858) and OAMixer (alinlab/OAMixer, generate_relabel.py) store: the
classifier's head on every last token of the whole image, the five best scores and their numbers. Foreground is found
without labels as TokenCut does (Wang et al., CVPR 2022, arXiv 2202.11539, section 3): tokens whose cosine is above 0.2
are joined, the graph is cut by the second eigenvector of its normalized Laplacian, and the foreground is the side
of the token that stands out most.

Different from TokenCut: the features are the last tokens instead of the last keys, and no edges are refined.

Shapes: B batch, h × w grid of tokens, N = h·w, D channels, R best classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.device import get_device
from torch import Tensor

from mixtransfer.checkpoints.load import load_checkpoint
from mixtransfer.checkpoints.whole_files import replace_whole
from mixtransfer.datasets.folders import DatasetFolder
from mixtransfer.datasets.image_maps import map_file
from mixtransfer.datasets.resizing import resize
from mixtransfer.datasets.sources import image_files
from mixtransfer.datasets.stored import VOID, Unusable, read_mask
from mixtransfer.errors import UserError
from mixtransfer.pretrain.classifier import MixingClassifier
from mixtransfer.pretrain.teachers import Teacher

__all__ = ["class_maps", "foreground_from_masks", "teacher_maps", "token_cut", "write_maps"]

#: TokenCut's threshold of the cosine, and the weight of an edge below it.
JOINED, APART = 0.2, 1e-5
#: ImageNet's mean and deviation, RGB of 8 bits.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
#: The largest class number that half precision holds exactly, with those below it.
EXACT_IN_HALF = 2048

Progress = Callable[[int, int], None]
Maker = Callable[[Sequence[Path]], Sequence[np.ndarray]]


@torch.no_grad()
def class_maps(net: MixingClassifier, images: Tensor, best: int) -> np.ndarray:
    """Return scores and numbers (B, 2, R, h, w) of the ``best`` classes of each token of images (B, 3, H, W)."""
    tokens = net.backbone.embed_with_evidence(images, ("tokens",))["tokens"]
    found = net.head(tokens.permute(0, 2, 3, 1)).topk(min(best, net.num_classes), dim=-1)
    maps = torch.stack([found.values, found.indices.to(found.values)], dim=1).permute(0, 1, 4, 2, 3)
    return maps.cpu().numpy().astype(np.float16 if net.num_classes <= EXACT_IN_HALF else np.float32)


@torch.no_grad()
def token_cut(tokens: Tensor) -> Tensor:
    """Return the tokens of the foreground, (B, h, w) bool, of tokens (B, D, h, w)."""
    features = F.normalize(tokens.flatten(2).double(), dim=1)
    edges = torch.where(features.transpose(1, 2) @ features > JOINED, 1.0, APART).double()
    root = edges.sum(dim=2).rsqrt()
    laplacian = torch.eye(edges.shape[1]).to(edges) - root[:, :, None] * edges * root[:, None]
    second = torch.linalg.eigh(laplacian).eigenvectors[:, :, 1] * root
    upper = second > second.mean(dim=1, keepdim=True)
    peak = upper.gather(1, second.abs().argmax(dim=1, keepdim=True))
    return (upper == peak).unflatten(1, tokens.shape[2:])


def teacher_maps(
    kind: str, folder: DatasetFolder, arch: str, checkpoint: str, *, side: int | None, best: int, trust: bool
) -> Maker:
    """Return the function that makes maps of image files by a frozen network.

    Args:
        kind: ``"classes"`` for the best classes of each token, by a classifier of the dataset's classes, or
            ``"foreground"``, for which the network needs no head.
        folder: the dataset.
        arch: the network's architecture.
        checkpoint: its file.
        side: images are resized to this many pixels a side; None for the side that the architecture is made for.
        best: classes that are kept of each token.
        trust: let the file run code.

    Raises:
        UserError: the file does not fit the architecture or the classes.
    """
    classes = len(folder.classes)
    if kind == "classes":
        config = {"arch": arch, "checkpoint": checkpoint, "trust": trust}
        teacher = Teacher(config, lambda name: MixingClassifier(name, classes))
        teacher.load()
        net = teacher.net
    else:
        net = MixingClassifier(arch, classes).requires_grad_(False).eval()
        load_checkpoint(net.backbone, checkpoint, trust=trust)
    side, device = side or getattr(net.backbone.archs[arch], "img_size", 224), get_device()
    net.to(device)

    @torch.no_grad()
    def make(files: Sequence[Path]) -> Sequence[np.ndarray]:
        images = torch.stack([_network_input(path, side) for path in files]).to(device)
        if kind == "classes":
            return class_maps(net, images, best)
        tokens = net.backbone.embed_with_evidence(images, ("tokens",))["tokens"]
        # A device may have no float64.
        return token_cut(tokens.cpu()).numpy().astype(np.uint8) * 255

    return make


def _network_input(path: Path, side: int) -> Tensor:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"{path} cannot be read as an image; see mixtransfer data check")
    rgb = torch.from_numpy(resize(image, (side, side), "bicubic")[..., ::-1].copy()).float()
    return ((rgb - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)


def foreground_from_masks(root: Path, masks: Path) -> Maker:
    """Return the function that makes foreground maps of image files below ``root`` from masks of labels.

    The mask of ``root``/NAME.jpg is ``masks``/NAME.png; 0 and 255 are background.
    """

    def make(files: Sequence[Path]) -> Sequence[np.ndarray]:
        found = []
        for path in files:
            mask = (masks / path.relative_to(root)).with_suffix(".png")
            try:
                found.append(np.where(np.isin(read_mask(mask), VOID), np.uint8(0), np.uint8(255)))
            except Unusable as error:
                said = error if mask.is_file() else "no such file"
                raise UserError(f"{mask}: {said}; each image of {root} needs its mask there") from error
        return found

    return make


def write_maps(folder: DatasetFolder, name: str, kind: str, make: Maker, batch: int, progress: Progress) -> int:
    """Write the maps of all images of a dataset to ``ROOT/name``, and return their number.

    Maps that are there already are kept, so that a run that was stopped goes on.

    Args:
        folder: a dataset of one folder a class.
        name: the folder of the maps inside the dataset's.
        kind: of the maps, see :class:`~mixtransfer.datasets.image_maps.LoadMap`.
        make: makes the maps of some images.
        batch: images at a time.
        progress: called as ``progress(done, total)``.
    """
    root = folder.root
    files = [path for split in (folder.train, folder.val) for path in image_files(root / split.images)]
    targets = {path: map_file(path, root, name, kind) for path in files}
    todo = [path for path in files if not targets[path].is_file()]
    for start in range(0, len(todo), batch):
        paths = todo[start : start + batch]
        for path, found in zip(paths, make(paths), strict=True):
            _save(targets[path], found)
        progress(start + len(paths), len(todo))
    return len(todo)


def _save(path: Path, content: np.ndarray) -> None:
    with replace_whole(path) as partial:
        if path.suffix == ".png":
            done, data = cv2.imencode(".png", content)
            assert done
            partial.write_bytes(data.tobytes())
        else:
            with open(partial, "wb") as file:
                np.save(file, content)
