"""Each token's share of the two images of a mix, block by block: what TL-Align calls token fluctuation.

Paper: Xiao et al., "Token-Label Alignment for Vision Transformers", ICCV 2023, arXiv 2210.06455, section 3.1: attention
moves content between tokens, so that a token of a mixed image stands for its own place less and less, and the ratio by
area describes the output no more. The share follows the same rule as the labels (section 3.2).

Shapes: B batch, h × w grid of tokens, N tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mixtransfer.backbones import Backbone
from mixtransfer.checkpoints.whole_files import replace_whole
from mixtransfer.errors import UserError
from mixtransfer.layers.labels import pool_labels

__all__ = ["Step", "at_most", "drifts", "token_shares", "write_numbers"]

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """The tokens after a block or an output.

    Attributes:
        name: "block 3", or "output 2" where blocks do not keep tokens in the order of the image.
        share: the partner's share of each token (B, h, w).
        ends_stage: whether the backbone has an output here.
    """

    name: str
    share: Tensor
    ends_stage: bool


@torch.no_grad()
def token_shares(net: Backbone, images: Tensor, labels: Tensor) -> tuple[list[Step], Tensor]:
    """Return the partner's share of every token after every block, and of the image embedding (B,).

    The network sees the images as in evaluation. Without an embedding the second is the mean of the last tokens.

    Args:
        net: a backbone whose labels travel with attention.
        images: mixed images (B, 3, H, W).
        labels: the partner's share in every pixel or cell (B, 1, h, w).

    Raises:
        UserError: the backbone has no attention.
    """
    if net.label_rule != "attention":
        raise UserError(f"{net.arch} has no attention that moves tokens; give a network with attention")
    training = [part for part in net.modules() if part.training]
    net.eval()
    rows: list[Tensor] = []
    groups: list[tuple[list[Tensor], Tensor]] = []
    checkpointed = net.checkpointed

    def recorded(block: nn.Module, *args: Any) -> Any:
        result = checkpointed(block, *args)
        last = result[-1] if isinstance(result, tuple) else None
        if isinstance(last, Tensor) and last.dim() == 3 and last.shape[::2] == (len(images), 1):
            rows.append(last)
        return result

    vars(net)["checkpointed"] = recorded
    try:
        for _, label in net.trunk(images, labels, net.output_count):
            assert label is not None, "a network with attention moves labels"
            groups.append((rows[:], label))
            rows.clear()
    finally:
        del vars(net)["checkpointed"]
    output = net.embed(images, labels)[1] if net.with_embedding else groups[-1][1].mean(dim=(2, 3))
    for part in training:
        part.training = True
    return _steps(groups), output[:, 0]


def _steps(groups: Sequence[tuple[list[Tensor], Tensor]]) -> list[Step]:
    blocks: list[Step] = []
    for rows, label in groups:
        maps = [_as_map(row, label) for row in rows]
        if not maps or not torch.equal(maps[-1], label[:, 0]):
            # Windows, strips, or tokens that were left out: rows are no map.
            return [Step(f"output {n}", label[:, 0], True) for n, (_, label) in enumerate(groups, 1)]
        blocks += [Step(f"block {len(blocks) + n}", share, n == len(maps)) for n, share in enumerate(maps, 1)]
    return blocks


def _as_map(rows: Tensor, label: Tensor) -> Tensor:
    """Return rows (B, N, 1) as a map (B, h, w) on a label's grid, without tokens of the whole image in front."""
    count = label.shape[2] * label.shape[3]
    shown = rows[:, max(rows.shape[1] - count, 0) :, 0]
    return shown.unflatten(1, label.shape[2:]) if shown.shape[1] == count else rows[..., 0]


def drifts(steps: Sequence[Step], labels: Tensor) -> np.ndarray:
    """Return how far tokens are from the input's share of their area, (steps, B): the mean absolute difference."""
    found = [(step.share - pool_labels(labels, step.share.shape[1:])[:, 0]).abs().mean(dim=(1, 2)) for step in steps]
    return torch.stack(found).cpu().numpy()


def at_most(items: Sequence[T], count: int) -> list[T]:
    """Return at most ``count`` of some items, evenly chosen, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def write_numbers(path: Path, about: dict, steps: Sequence[Step], labels: Tensor, output: Tensor) -> Path:
    """Write the figures of a fluctuation as JSON: ``about``, shares and drift of each image after each step."""
    drift = drifts(steps, labels)
    content = {
        **about,
        "input_share": labels.mean(dim=(1, 2, 3)).tolist(),
        "steps": [
            {"name": step.name, "share": step.share.mean(dim=(1, 2)).tolist(), "drift": drift[n].tolist()}
            for n, step in enumerate(steps)
        ],
        "output_share": output.tolist(),
    }
    with replace_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
